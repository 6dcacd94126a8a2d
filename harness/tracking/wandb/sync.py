"""`harness sync`: a run brought to W&B whole, from its journal.

W&B's own log loses its tail when a process is killed, and gives up when the server refuses it once; the journal does
neither. What W&B has already is not sent again.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from harness.config.settings import Config
from harness.tracking import run_dir
from harness.tracking.journal import read_journal
from harness.tracking.wandb import init
from harness.tracking.wandb.rows import rows
from harness.utils.errors import BusyError, DataError, TrackingError

if TYPE_CHECKING:
    from harness.tracking.tracker import Status


@dataclass(frozen=True)
class SyncResult:
    """What a sync came to.

    Attributes:
        records: in the journal. sent: of them, those that W&B did not have.
        steps: in the journal. arrived: steps that W&B has now; None where it does not say.
    """

    folder: Path
    url: str
    records: int
    sent: int
    steps: int
    arrived: int | None


def sync(folder: Path, say: Callable[[str], None], anew: bool = False) -> SyncResult:
    """Send to W&B what it lacks of a run: the same W&B run, each step once.

    Args:
        anew: send all of it as a new W&B run; W&B takes no step that lies before its newest.

    Raises:
        DataError: there is no journal. BusyError: the run is still being written.
        TrackingError: W&B can not be had, or refused something.
    """
    story = read_journal(folder)
    if "config" not in story.header:
        raise DataError(f"{folder}: its journal has lost its first line, so nothing says what the run was")
    if run_dir.is_locked(folder):
        raise BusyError(f"{folder} is still being written; sync it when it has ended")
    config = Config(**story.header["config"]).replace(wandb="online")
    extra = {key: value for key, value in story.header.items() if key != "config"}
    tracker = init.start(
        config,
        folder,
        run_name=config.name or folder.name,
        run_id=uuid.uuid4().hex[:8] if anew else None,
        earlier=story.records,
        extra=extra,
        say=say,
    )
    assert isinstance(tracker, init.WandbTracker)  # online was asked for by name
    sent = sum(record.step >= tracker.first_step for record in story.records)
    for artifact in story.artifacts:
        if all(path.is_file() for path in artifact.files.values()):
            tracker.artifact(artifact)
    tracker.summary(story.summary)
    tracker.finish(cast("Status", story.status or "failed"), story.exit_code or 0)
    steps = len({step for record in story.records for step, _ in rows(record)})
    arrived = init.count_arrived_rows(tracker.url, steps)
    if arrived is not None and arrived < steps:
        raise TrackingError(
            f"W&B has {arrived} of {steps} steps of {folder}, and takes none that lies before its newest; send all of it as a new W&B run with: harness sync --anew {shlex.quote(str(folder))}"
        )
    return SyncResult(folder, tracker.url, len(story.records), sent, steps, arrived)
