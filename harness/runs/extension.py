"""`harness run --resume RUN --epochs N`: another number of epochs for a run that has finished or was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.config.settings import Config
from harness.runs.components import Components
from harness.runs.progress import ProgressReporter
from harness.tracking import run_dir
from harness.tracking.run_files import CHECKPOINTS
from harness.tracking.tracker import Tracker
from harness.training import checkpoint
from harness.training.distributed import SingleProcess
from harness.training.saved_progress import check_progress
from harness.utils.errors import CheckpointError, UsageError
from harness.utils.text import counted


def with_extension(config: Config, processes: SingleProcess) -> Config:
    """Return the settings with the change of length in `extended`, where the named run was to have other epochs.

    The main process reads the run; all have the same settings afterwards.

    Raises:
        UsageError: the run has trained more epochs already.
        CheckpointError: the run has no usable checkpoint.
    """
    if config.resume in ("auto", "never"):
        return config
    extended = _extended(config) if processes.is_main else ()
    return config.replace(extended=processes.broadcast(extended))


def _extended(config: Config) -> tuple[str, ...]:
    path = Path(config.resume).expanduser()
    stored = run_dir.stored_config(path)
    if stored is not None and not config.extended and ("epochs" in config.undecided or stored.epochs == config.epochs):
        return stored.extended  # no number is given, or the one that the run has already
    if stored is None or stored.epochs == config.epochs or stored.extended != config.extended:
        return config.extended  # nothing to extend, or `claim_run_dir` names what differs
    newest = checkpoint.newest_checkpoint(path / CHECKPOINTS)
    if newest is None:
        if run_dir.saved_step(path):
            raise CheckpointError(
                f"the checkpoints of {path} are gone, so it cannot be trained on; put {path / CHECKPOINTS} back"
            )
        return stored.extended or (f"0:{stored.epochs}",)
    progress: Any = checkpoint.load_checkpoint(newest)["progress"]
    try:
        check_progress(progress)
    except ValueError as error:
        raise CheckpointError(f"{newest} is not a checkpoint of this run: {error}") from None
    done, step = len(progress["history"]), int(progress["step"])
    started = done + bool(progress["lrs"])
    if config.epochs < started:
        more = " and begun another" if started > done else ""
        raise UsageError(
            f"--epochs {config.epochs}: {path} has trained {done} epochs already{more}; give {started} or more, or start a new run with --resume never"
        )
    former = [entry for entry in stored.extended if int(entry.partition(":")[0]) < step]
    if len(former) < len(stored.extended):  # nothing was trained since the last change, which this one replaces
        return (*former, f"{step}:{stored.extended[len(former)].partition(':')[2]}")
    return (*stored.extended, f"{step}:{stored.epochs}")


def report_extension(components: Components, tracker: Tracker, reporter: ProgressReporter) -> None:
    """Report what becomes of the schedule, and record the changed settings."""
    config, steps = components.config, components.loaders.train.steps
    former = config.extensions()[-1][1]
    shape = components.schedule.describe_extension(steps)
    reporter.message(f"The run has {counted(config.epochs, 'epoch', 'epochs')} now instead of {former}: {shape}.")
    tracker.settings({"epochs": config.epochs, "extended": ",".join(config.extended)})
