"""`harness plot`: the curve of a schedule, drawn without training."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.recipe import make_config
from harness.config.settings import Config, canonical_name, coerce
from harness.reporting.figures import training_curves
from harness.tracking.records import Curve, Record
from harness.training.schedule import Schedule, make_schedule

# The drawn triangular curve that this project grew from: Smith's 0.08 to 0.8.
CYCLIC = {"lr_min": 0.08, "lr_max": 0.8}
ITERATIONS, STEP_SIZE = 100, 10


def draw(
    given: Mapping[str, Any],
    out: Path,
    steps_per_epoch: int,
    iterations: int | None = None,
    step_size: int | None = None,
) -> str:
    """Draw the schedule that the settings describe into `out`; what was drawn, in words.

    Args:
        given: settings given by hand. A cyclic schedule without its own is the classic one: 0.08 to 0.8.
        iterations, step_size: length and half-cycle of a cyclic curve, in updates.
    """
    drawn = curve(given, steps_per_epoch, iterations, step_size)
    x, lr, schedule = drawn.x, drawn.lr, drawn.schedule
    moves = schedule.momentum_min is not None
    momentum = [schedule.momentum_at(step) for step in x] if moves else None
    title = f"{schedule.kind.replace('_', ' ')}: LR between {min(lr):g} and {max(lr):g}"
    training_curves.schedule_curve(x, lr, out, lr_min=min(lr), lr_max=max(lr), momentum=momentum, title=title)
    if "wandb" in {canonical_name(key) for key in given} and drawn.config.wandb != "disabled":
        _track(drawn.config, x, lr, out)
    return f"{out}: {title}, {schedule.steps} iterations"


@dataclass(frozen=True)
class ScheduleCurve:
    """What is drawn: the learning rate `lr` at each step `x`, the end included."""

    config: Config
    schedule: Schedule
    x: list[int]
    lr: list[float]


def curve(
    given: Mapping[str, Any], steps_per_epoch: int, iterations: int | None = None, step_size: int | None = None
) -> ScheduleCurve:
    """The curve that `draw` draws, with the same arguments."""
    given = {canonical_name(key): value for key, value in given.items()}
    classic = given.get("schedule") == "cyclic" and "recipe" not in given
    config = make_config({**(_classic(given) if classic else {}), **given})
    schedule = make_schedule(config, steps_per_epoch)
    if iterations or step_size or (classic and not {"epochs", "cycles"} & given.keys()):
        schedule = triangles(schedule, iterations or ITERATIONS, step_size or STEP_SIZE)
    x = list(range(schedule.steps + 1))
    return ScheduleCurve(config, schedule, x, [schedule.lr(step) for step in x])


def _classic(given: Mapping[str, Any]) -> dict[str, float]:
    """The classic 0.08 and 0.8, or a tenth and ten times of the one that is given."""
    if "lr_max" in given:
        return {"lr_min": float(coerce("lr_max", given["lr_max"])) / 10}
    if "lr_min" in given:
        return {"lr_max": float(coerce("lr_min", given["lr_min"])) * 10}
    return CYCLIC


def triangles(schedule: Schedule, iterations: int, step_size: int) -> Schedule:
    """A cyclic schedule of `iterations` updates, rising for `step_size` and falling for as many."""
    from dataclasses import replace

    return replace(schedule, steps=iterations, cycles=iterations / (2 * step_size))


def _track(config: Any, x: list[int], lr: list[float], out: Path) -> None:
    from harness.tracking.wandb import init

    folder = (
        Path(config.output).expanduser() / f"plot-{out.stem}" if config.wandb == "offline" else Path(tempfile.mkdtemp())
    )
    folder.mkdir(parents=True, exist_ok=True)
    tracker = init.start(config.replace(job_type="plot"), folder, run_name=f"plot-{out.stem}")
    tracker.record(Record(0, 0, {"plot/lr": Curve("iteration", x, {"lr": lr}, title="learning rate")}, kind="final"))
    tracker.finish("finished", 0)
