"""`harness plot`: the learning rate schedule of a configuration, drawn without training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.recipe import make_config
from harness.config.settings import Config, canonical_name, coerce
from harness.reporting.figures import training_curves
from harness.training.schedule import Schedule, make_schedule

# The triangular schedule that is drawn where a cyclic one is asked for without rates.
CYCLIC = {"lr_min": 0.08, "lr_max": 0.8}
ITERATIONS, STEP_SIZE = 100, 10


@dataclass(frozen=True)
class ScheduleCurve:
    """The learning rate `lr` at each step `x`, the last one included."""

    config: Config
    schedule: Schedule
    x: list[int]
    lr: list[float]


def draw_schedule(drawn: ScheduleCurve, out: Path) -> str:
    """Draw the curve of a schedule into `out` and return one line that describes it."""
    x, lr, schedule = drawn.x, drawn.lr, drawn.schedule
    has_momentum = schedule.momentum_min is not None
    momentum = [schedule.momentum_at(step) for step in x] if has_momentum else None
    title = f"{schedule.kind.replace('_', ' ')}: learning rate {min(lr):g} to {max(lr):g}"
    training_curves.draw_schedule_curve(x, lr, out, lr_min=min(lr), lr_max=max(lr), momentum=momentum, title=title)
    return f"{out}: {title}, {schedule.steps} iterations"


def curve(
    overrides: Mapping[str, Any], steps_per_epoch: int, iterations: int | None = None, step_size: int | None = None
) -> ScheduleCurve:
    """Return the curve of the schedule that the settings describe.

    Args:
        overrides: the user's settings. A cyclic schedule without rates runs from 0.08 to 0.8.
        iterations, step_size: length and half-cycle of a cyclic schedule, in optimizer updates.
    """
    overrides = {canonical_name(key): value for key, value in overrides.items()}
    is_default_cyclic = overrides.get("schedule") == "cyclic" and "recipe" not in overrides
    config = make_config({**(_cyclic_rates(overrides) if is_default_cyclic else {}), **overrides})
    schedule = make_schedule(config, steps_per_epoch)
    if iterations or step_size or (is_default_cyclic and not {"epochs", "cycles"} & overrides.keys()):
        schedule = triangular(schedule, iterations or ITERATIONS, step_size or STEP_SIZE)
    x = list(range(schedule.steps + 1))
    return ScheduleCurve(config, schedule, x, [schedule.lr(step) for step in x])


def _cyclic_rates(overrides: Mapping[str, Any]) -> dict[str, float]:
    """Return 0.08 and 0.8, or the missing rate as a tenth or ten times of the given one."""
    if "lr_min_ratio" in overrides:
        return {} if "lr_max" in overrides else {"lr_max": CYCLIC["lr_max"]}
    if "lr_max" in overrides:
        return {"lr_min": float(coerce("lr_max", overrides["lr_max"])) / 10}
    if "lr_min" in overrides:
        return {"lr_max": float(coerce("lr_min", overrides["lr_min"])) * 10}
    return CYCLIC


def triangular(schedule: Schedule, iterations: int, step_size: int) -> Schedule:
    """Return a cyclic schedule of `iterations` updates after its warm-up, which rises for `step_size` updates and falls for as many."""
    return dataclasses.replace(schedule, steps=schedule.warmup + iterations, cycles=iterations / (2 * step_size))
