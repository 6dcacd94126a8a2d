"""`harness sync`: upload the records of a run that W&B does not have, from its journal.

W&B's own log loses its end when a process is killed, and W&B stops uploading when the server refuses it once; the
journal is complete. Steps that W&B has are not sent again.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.settings import Config
from harness.tracking import run_dir
from harness.tracking.journal import read_journal
from harness.tracking.wandb import init
from harness.tracking.wandb.limits import check_link, check_wandb_values
from harness.tracking.wandb.rows import rows
from harness.utils.checksums import SUMS
from harness.utils.errors import BusyError, DataError, HarnessError, TrackingError, UsageError, first_line


@dataclass(frozen=True)
class SyncResult:
    """The result of a sync.

    Attributes:
        records: in the journal.
        sent: records that W&B did not have.
        steps: in the journal.
        arrived: steps that W&B has now; None where it does not report them.
    """

    folder: Path
    url: str
    records: int
    sent: int
    steps: int
    arrived: int | None


def sync(
    folder: Path, notify: Callable[[str], None], anew: bool = False, corrections: Mapping[str, Any] | None = None
) -> SyncResult:
    """Send the missing records of a run to the same W&B run, each step once.

    Args:
        anew: send everything as a new W&B run; W&B accepts no step before its latest.
        corrections: setting -> value, in place of what the run was started with: `project`, `tags` and the like.

    Raises:
        UsageError: W&B would refuse the project, a tag or a name of the run.
        DataError: there is no journal.
        BusyError: the run is still being written.
        TrackingError: W&B is unavailable, or did not accept everything.
    """
    folder = Path(folder).expanduser()
    run_dir.check_own_files(folder)
    journal = read_journal(folder)
    if "config" not in journal.header:
        raise DataError(f"{folder}: the journal has lost its first line, and with it the settings of the run")
    if run_dir.is_locked(folder):
        raise BusyError(f"{folder} is still being written; sync it when the run has ended")
    try:
        config = Config(**journal.header["config"]).replace(wandb="online")
    except (HarnessError, TypeError) as error:
        raise DataError(f"{folder}: the journal's first line has no usable settings: {first_line(error)}") from None
    changes = dict(corrections or {})
    # The run may come from somebody else, who does not decide what a registry gets: its own `link` does not hold.
    link = str(changes.pop("link", ""))
    config = config.replace(**changes)
    try:
        check_wandb_values(config)
        check_link(link)
    except UsageError as error:
        raise UsageError(f"{folder}: {error}; give another value to harness sync with that option") from None
    if link and not any(artifact.kind == "model" and not artifact.is_input for artifact in journal.artifacts):
        raise UsageError(f"{folder} has no model to link to {link}: the run did not finish, or log_model was never")
    if changed := run_dir.changed_results(folder):
        raise DataError(
            f"{folder}: {', '.join(changed)} changed since the run ended; restore {'it' if len(changed) == 1 else 'them'}, or remove {SUMS} to upload the run as it is"
        )
    run_dir.make_folder(folder / "wandb", "copy the run directory to where it can be written")
    extra = {key: value for key, value in journal.header.items() if key != "config"}
    tracker = init.start(
        config,
        folder,
        run_name=config.name or folder.name,
        run_id=uuid.uuid4().hex[:8] if anew else None,
        earlier=journal.records,
        extra=extra,
        link=link,
        notify=notify,
    )
    assert isinstance(tracker, init.WandbTracker)  # wandb=online is never disabled
    if journal.settings:
        tracker.settings(journal.settings)
    sent = sum(record.step >= tracker.first_step for record in journal.records)
    for artifact in journal.artifacts:
        if all(path.is_file() for path in artifact.files.values()):
            tracker.artifact(artifact)
    tracker.summary(journal.summary)
    tracker.finish(journal.status or "failed", journal.exit_code or 0)
    steps = len({step for record in journal.records for step, _ in rows(record)})
    arrived = init.count_arrived_rows(tracker.url, steps)
    if arrived is not None and arrived < steps:
        raise TrackingError(
            f"W&B has {arrived} of {steps} steps of {folder} and accepts none before its latest; "
            f"send all of them as a new W&B run with: harness sync --anew {shlex.quote(str(folder))}"
        )
    return SyncResult(folder, tracker.url, len(journal.records), sent, steps, arrived)
