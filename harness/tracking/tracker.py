"""The interface of trackers: what writes the records of a run. `NullTracker` writes nothing, `MultiTracker` to several."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

from harness.tracking.metric_names import check_metric_names
from harness.tracking.records import Artifact, Record, Scalar

# How a run ended, in the journal's last line and in W&B's summary; `status.json` has the finer `RunState`.
Status: TypeAlias = Literal["finished", "failed", "stopped"]


class Tracker(ABC):
    """Write the records of a run in the order in which they are measured."""

    @abstractmethod
    def record(self, record: Record) -> None:
        """Write one record; steps never decrease."""

    @abstractmethod
    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Add figures that describe the whole run."""

    @abstractmethod
    def settings(self, values: Mapping[str, Scalar]) -> None:
        """Add settings that the run has determined itself, such as a learning rate of a range test."""

    @abstractmethod
    def artifact(self, artifact: Artifact) -> None:
        """Keep these files as they are now."""

    @abstractmethod
    def alert(self, title: str, text: str) -> None:
        """Notify the owner of the run."""

    @abstractmethod
    def finish(self, status: Status, exit_code: int) -> None:
        """Write what is pending and close; a second call does nothing."""


class NullTracker(Tracker):
    """Accept everything and write nothing, so that no caller has to ask whether there is a tracker."""

    state = "disabled"
    sync_command = ""
    url = ""

    def record(self, record: Record) -> None:
        """Do nothing."""

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Do nothing."""

    def settings(self, values: Mapping[str, Scalar]) -> None:
        """Do nothing."""

    def artifact(self, artifact: Artifact) -> None:
        """Do nothing."""

    def alert(self, title: str, text: str) -> None:
        """Do nothing."""

    def finish(self, status: Status, exit_code: int) -> None:
        """Do nothing."""

    def console(self, text: str) -> None:
        """Do nothing."""

    def file(self, path: Path) -> None:
        """Do nothing."""

    def stopped_by_server(self) -> bool:
        """Return False: there is no server."""
        return False


class MultiTracker(Tracker):
    """Pass everything to each tracker in turn; put the one that must never miss anything first."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def record(self, record: Record) -> None:
        """Write one record with each tracker, with the present time where it has none.

        Raises:
            ValueError: a metric name is not valid in W&B.
        """
        check_metric_names([*record.values, *(record.steps.lines if record.steps is not None else ())])
        record = record if record.time else replace(record, time=round(time.time(), 3))
        for tracker in self.trackers:
            tracker.record(record)

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Add figures to the summary of each tracker.

        Raises:
            ValueError: a metric name is not valid in W&B.
        """
        check_metric_names(values)
        for tracker in self.trackers:
            tracker.summary(values)

    def settings(self, values: Mapping[str, Scalar]) -> None:
        """Add settings with each tracker."""
        for tracker in self.trackers:
            tracker.settings(values)

    def artifact(self, artifact: Artifact) -> None:
        """Keep the files with each tracker."""
        for tracker in self.trackers:
            tracker.artifact(artifact)

    def alert(self, title: str, text: str) -> None:
        """Send the alert through each tracker."""
        for tracker in self.trackers:
            tracker.alert(title, text)

    def finish(self, status: Status, exit_code: int) -> None:
        """Close every tracker, even when one fails.

        Raises:
            Exception: the first failure; the others are notes on it.
        """
        first: Exception | None = None
        for tracker in self.trackers:
            try:
                tracker.finish(status, exit_code)
            except Exception as error:  # noqa: BLE001 - kept, and raised below when all are closed
                if first is None:
                    first = error
                else:
                    first.add_note(f"{type(tracker).__name__} failed to close as well: {error!r}")
        if first is not None:
            raise first
