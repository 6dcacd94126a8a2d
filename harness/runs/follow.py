"""A run in several processes, as those do it that do not lead: the same training, with nobody to tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harness.lr_finder.finder import provisional
from harness.config.settings import Config
from harness.runs.progress import Silent
from harness.utils.errors import CheckpointError, UsageError
from harness.utils.signals import Interrupts
from harness.runs.components import Parts, assemble
from harness.utils.seeding import seed_for
from harness.tracking.run_dir import RunFolder
from harness.runs.trainer import Result, Story
from harness.tracking.journal import NoJournal
from harness.tracking.tracker import NoTracker
from harness.training.distributed import Alone
from harness.training.loop import Progress


def check_together(config: Config, processes: Alone) -> None:
    """Refuse what several processes can not do together.

    Raises:
        UsageError: a range test is asked for, which one process does.
    """
    if processes.count > 1 and config.seeks:
        raise UsageError(
            "lr_min or lr_max is `find`, which one process does; run `harness find` first, and give torchrun its numbers"
        )


def follow(config: Config, processes: Alone) -> Result:
    """Train beside the process that leads, which alone writes, judges and explains."""
    check_together(config, processes)
    parts = assemble(provisional(config), processes)
    progress = go_on(parts, processes.from_first(None))
    folder = RunFolder(Path("nowhere"), resumed=False)  # is written by nobody here
    with Interrupts() as interrupts:
        Story(parts, folder, NoTracker(), NoJournal(), Silent(), progress, interrupts).train()
    return Result(folder.path, {}, progress.history, parts.learner.judged)


def go_on(parts: Parts, state: dict[str, Any] | None) -> Progress:
    """The parts and the progress of a run as they were saved; of a new one as they are.

    Raises:
        CheckpointError: the saved state does not fit the run's optimizer.
    """
    progress = Progress()
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
    if own := parts.learner.processes.own:  # what was saved of torch's random state is the leader's
        torch.manual_seed(seed_for(parts.config.seed, "resumed", progress.step, *own))
    return progress
