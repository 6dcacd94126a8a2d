"""Who writes down what a run says: one narrow interface, and the tracker that writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias

from harness.tracking.records import Artifact, Record, Scalar

Status: TypeAlias = Literal["finished", "failed", "stopped"]


class Tracker(Protocol):
    """Takes what a run says, in the order in which it is said."""

    def record(self, record: Record) -> None:
        """Write one record; steps never go down."""

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Add to the plain figures that stand for the whole run."""

    def artifact(self, artifact: Artifact) -> None:
        """Keep these files as they are now."""

    def alert(self, title: str, text: str) -> None:
        """Tell the person who owns the run."""

    def finish(self, status: Status, exit_code: int) -> None:
        """Write what is still open and close; a second call does nothing."""


class NullTracker:
    """Takes everything and writes nothing, so that no caller has to ask whether there is a tracker."""

    state = "disabled"
    sync_command = ""
    url = ""

    def record(self, record: Record) -> None:
        """Nothing."""

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Nothing."""

    def artifact(self, artifact: Artifact) -> None:
        """Nothing."""

    def alert(self, title: str, text: str) -> None:
        """Nothing."""

    def stopped_by_server(self) -> bool:
        """No."""
        return False

    def finish(self, status: Status, exit_code: int) -> None:
        """Nothing."""
