"""`harness plot`: draw a learning-rate schedule without training, and record it in W&B on request."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.reporting.figures import schedule
from harness.runs.tracked_run import check_tracking, is_tracked, is_tracking_requested, tracked_output
from harness.tracking.records import Curve, Record
from harness.tracking.run_files import check_output_folder


def plot_schedule(
    settings: Mapping[str, Any],
    out: Path,
    steps_per_epoch: int,
    iterations: int | None = None,
    step_size: int | None = None,
) -> str:
    """Draw the schedule that the settings describe into `out`; return what was drawn, as text.

    Args:
        settings: as given by the user. A cyclic schedule without rates of its own is the classic one: 0.08 to 0.8.
        out: PNG or SVG, by its suffix.
        steps_per_epoch: updates in an epoch.
        iterations, step_size: length and half-cycle of a cyclic curve, in updates.
    """
    curve = schedule.curve(settings, steps_per_epoch, iterations, step_size)
    config, name = curve.config, f"plot-{out.stem}"
    is_requested = is_tracking_requested(settings) and is_tracked(config)
    if is_requested:
        check_tracking(config)
    text = schedule.draw_schedule(curve, out)
    if not is_requested:
        return text
    is_kept = config.wandb == "offline" or "tensorboard" in config.tracker  # what the tracker writes is in the folder
    folder = Path(config.output).expanduser() / name if is_kept else Path(tempfile.mkdtemp())
    check_output_folder(folder, is_named=False)
    with tracked_output(config.replace(job_type="plot"), folder, job_type="plot", name=name) as tracker:
        line = Curve("iteration", curve.x, {"lr": curve.lr}, title="learning rate")
        tracker.record(Record(0, 0, {"plot/lr": line}, kind="final"))
    return text
