"""A run in several processes, as those do it that do not lead: the same training, with nobody to tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harness.lr_finder.finder import with_placeholder_lr
from harness.config.settings import Config
from harness.runs.progress import SilentReporter
from harness.utils.errors import CheckpointError, UsageError
from harness.utils.signals import StopRequests
from harness.runs.components import Components, build_components
from harness.utils.seeding import seed_for
from harness.tracking.run_dir import RunDir
from harness.runs.trainer import RunResult, Trainer
from harness.tracking.journal import NullJournal
from harness.tracking.tracker import NullTracker
from harness.training.distributed import SingleProcess
from harness.training.loop import TrainerState


def check_distributed(config: Config, processes: SingleProcess) -> None:
    """Refuse what several processes can not do together.

    Raises:
        UsageError: a range test is asked for, which one process does.
    """
    if processes.world_size > 1 and config.needs_lr_find:
        raise UsageError(
            "lr_min or lr_max is `find`, which one process does; run `harness lr-find` first, and give torchrun its numbers"
        )


def run_worker(config: Config, processes: SingleProcess) -> RunResult:
    """Train beside the process that leads, which alone writes, judges and explains."""
    check_distributed(config, processes)
    parts = build_components(with_placeholder_lr(config), processes)
    progress = restore_state(parts, processes.broadcast(None))
    folder = RunDir(Path("nowhere"), resumed=False)  # is written by nobody here
    with StopRequests() as stop_requests:
        Trainer(parts, folder, NullTracker(), NullJournal(), SilentReporter(), progress, stop_requests).train()
    return RunResult(folder.path, {}, progress.history, parts.learner.eval_model)


def restore_state(parts: Components, state: dict[str, Any] | None) -> TrainerState:
    """The parts and the progress of a run as they were saved; of a new one as they are.

    Raises:
        CheckpointError: the saved state does not fit the run's optimizer.
    """
    progress = TrainerState()
    if state is None:
        return progress
    try:
        parts.learner.load_state_dict(state["learner"])
        progress.load_state_dict(state["progress"], parts.learner.device)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the checkpoint does not fit the run's optimizer and progress: {why}; start anew with --resume never"
        ) from error
    if own := parts.learner.processes.rank_key:  # what was saved of torch's random state is the leader's
        torch.manual_seed(seed_for(parts.config.seed, "resumed", progress.step, *own))
    return progress
