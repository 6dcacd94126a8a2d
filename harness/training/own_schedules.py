"""Schedules that a plug-in registers: functions of the position in a run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

from harness.config.names import SCHEDULES
from harness.config.registered import registered_function
from harness.config.settings import Config
from harness.utils.errors import UsageError, first_line
from harness.utils.registry import register

Shape: TypeAlias = Callable[[float, float], float]


def register_schedule(function: Any = None, *, name: str = "") -> Any:
    """Register a learning-rate schedule: `--schedule NAME --plugin MODULE` trains with it.

    The function gets the number of updates done before an update, and that of the whole curve (a warm-up of `harness` is in
    neither); a run of changed length may pass fractions. It returns the position of the LR between LRMIN (0) and LRMAX (1).
    It must be a pure function, so that a resumed run has the same rates. `--schedule-args` are further arguments.

    Args:
        name: by default that of the function.

    Raises:
        UsageError: the name is one of a schedule of `harness`, or another module has registered it.
    """
    return register("schedule", function, name=name, taken=SCHEDULES)


def find_shape(config: Config) -> Shape | None:
    """Return the function of a schedule that a plug-in registers, with its arguments; None for one of `harness`.

    Raises:
        UsageError: there is no such schedule, or it is one of `harness`, which takes no `schedule_args`.
    """
    name, arguments = config.schedule, config.schedule_args
    function = registered_function("schedule", name, config.plugin)
    if function is not None:
        return functools.partial(_checked, name, functools.partial(function, **arguments), arguments)
    if arguments:
        raise UsageError(
            f"schedule_args are for schedules of plug-ins, and schedule={name} is one of harness; leave them out"
        )
    return None


def _checked(name: str, function: Shape, arguments: dict[str, Any], step: float, steps: float) -> float:
    """Return what a user's function returns at a step, which must be a number from 0 to 1.

    Raises:
        UsageError: it is none, or the function fails.
    """
    try:
        height = float(function(step, steps))
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UsageError(
            f"schedule={name}{f' with {given}' if given else ''} raised {type(error).__name__} at step {step:g} of {steps:g}: {first_line(error)}"
        ) from error
    if not (math.isfinite(height) and 0 <= height <= 1):
        raise UsageError(
            f"schedule={name} returned {height:g} at step {step:g} of {steps:g}; need a number from 0 (LRMIN) to 1 (LRMAX)"
        )
    return height
