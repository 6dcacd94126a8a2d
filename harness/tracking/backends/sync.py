"""`harness sync --tracker`: write a run that has ended to another tracker than W&B, from its journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.tracking.backends.backend import POSITION
from harness.tracking.backends.registry import backend_type_of, open_trackers
from harness.tracking.journal import JournalContents
from harness.tracking.uploadable import read_uploadable, valid_time
from harness.tracking.wandb.rows import last_row_step
from harness.utils.errors import TrackingError
from harness.utils.files import read_json
from harness.utils.plain import sub_mapping


@dataclass(frozen=True)
class TrackerSync:
    """The result of a sync to a tracker.

    Attributes:
        title: of the tracker.
        rows: number of rows that it did not have.
    """

    folder: Path
    title: str
    rows: int


def sync_tracker(
    kind: str,
    folder: Path,
    notify: Callable[[str], None],
    anew: bool = False,
    corrections: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    plugins: Iterable[str] = (),
) -> TrackerSync:
    """Write to a tracker what it lacks of a run: each step once, the files that the run has kept, and how it ended.

    Args:
        kind: a name of `BACKENDS`, or one that a plug-in registers.
        anew: write everything as a new run of the tracker.
        corrections: setting -> value, in place of what the run was started with: `project`, `name` and the like.
        timeout: seconds without progress after which the tracker is given up; `finish_timeout` of the run when None.
        plugins: modules that may register the tracker.

    Raises:
        UsageError: the tracker's package is missing.
        DataError: there is no journal.
        BusyError: the run is still being written.
        TrackingError: the tracker did not take everything.
    """
    folder = Path(folder).expanduser()
    backend_type = backend_type_of(kind, plugins)
    journal, config = read_uploadable(folder, {**(corrections or {}), "tracker": (kind,)})
    if timeout is not None:
        config = config.replace(finish_timeout=round(timeout))
    status, exit_code = journal.end
    position = {} if anew else read_json(folder / kind / POSITION)
    is_whole = position.get("whole", True) is True
    if is_whole and position.get("ended") == status and position.get("step") == _last_step(journal):
        return TrackerSync(folder, backend_type.title, 0)
    if not is_whole and not backend_type.is_replaced:
        raise TrackingError(
            f"{backend_type.title} may lack rows of {folder}, as it failed or the run was killed while they were written; "
            f"write the run as a new one with: harness sync --tracker {kind} --anew"
        )
    (tracker,) = open_trackers(
        config,
        folder,
        run_name=config.name or folder.name,
        is_resumed=is_whole and not anew,
        earlier=journal.records,
        intervals=journal.intervals,
        extra=journal.facts,
        started=_started(journal),
        notify=notify,
    )
    tracker.flush()
    for artifact in journal.artifacts:
        if artifact.is_complete:
            tracker.artifact(artifact)
    for title, text in journal.alerts:
        tracker.alert(title, text)
    tracker.summary(journal.summary)
    tracker.flush()
    tracker.finish(status, exit_code)
    if tracker.state != "complete":
        raise TrackingError(
            f"{backend_type.title} does not have the whole run {folder}; when its cause is mended, "
            f"write the run as a new one with: harness sync --tracker {kind} --anew"
        )
    return TrackerSync(folder, backend_type.title, tracker.rows)


def _last_step(journal: JournalContents) -> int:
    """Return the step of the last row of a run; -1 where there is none."""
    return max((last_row_step(record) for record in journal.records), default=-1)


def _started(journal: JournalContents) -> float:
    """Return when a run began, seconds since 1970: by its journal, or by its first record."""
    times = [time for record in journal.records if (time := valid_time(record.time))]
    return valid_time(sub_mapping(journal.header, "process").get("started")) or min(times, default=0.0)
