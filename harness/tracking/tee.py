"""Several trackers as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.tracking.records import Artifact, Record, Scalar
from harness.tracking.tracker import Status, Tracker


class MultiTracker:
    """Hands everything to each tracker in turn; put the one that must never miss anything first."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def record(self, record: Record) -> None:
        """Write one record with each."""
        for tracker in self.trackers:
            tracker.record(record)

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Add to the summary of each."""
        for tracker in self.trackers:
            tracker.summary(values)

    def artifact(self, artifact: Artifact) -> None:
        """Keep the files with each."""
        for tracker in self.trackers:
            tracker.artifact(artifact)

    def alert(self, title: str, text: str) -> None:
        """Tell by each."""
        for tracker in self.trackers:
            tracker.alert(title, text)

    def finish(self, status: Status, exit_code: int) -> None:
        """Close every tracker, also when one fails.

        Raises:
            Exception: the first failure; the others are notes on it.
        """
        first: Exception | None = None
        for tracker in self.trackers:
            try:
                tracker.finish(status, exit_code)
            except Exception as error:  # noqa: BLE001 - kept and raised below, when all are closed
                if first is None:
                    first = error
                else:
                    first.add_note(f"{type(tracker).__name__} failed to close as well: {error!r}")
        if first is not None:
            raise first
