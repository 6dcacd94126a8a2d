"""What a tracker other than W&B has to do: four verbs over plain values, and closing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from harness.tracking.records import Artifact, Histogram, Scalar
from harness.tracking.tracker import Status
from harness.utils.plain import json_text

POSITION = "harness-sent.json"  # the highest step sent, so that a resumed run sends no step twice


@dataclass(frozen=True)
class RunLabels:
    """What identifies and describes a run in a backend.

    Attributes:
        folder: the run directory, absolute.
        run_id: by which the backend knows the run already; empty for a new one.
        store: the store in which it has that run.
        started: when a run began that is written afterwards, seconds since 1970; 0: it begins now.
    """

    folder: Path
    project: str
    name: str
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""
    run_id: str = ""
    store: str = ""
    started: float = 0.0


@dataclass(frozen=True)
class Picture:
    """An image as a PNG file.

    Attributes:
        size: width and height, pixels.
    """

    png: bytes
    size: tuple[int, int]
    caption: str = ""


@dataclass(frozen=True)
class MeasuredRow:
    """What was measured at one step: numbers and texts, images, and histograms, by name.

    Attributes:
        time: when, seconds since 1970.
        histograms: not every tracker shows them.
    """

    step: int
    scalars: Mapping[str, Scalar]
    pictures: Mapping[str, Picture]
    time: float
    histograms: Mapping[str, Histogram] = field(default_factory=dict)


class Backend(ABC):
    """One run in a tracker. It is made, used and closed in one thread, and may raise anything.

    Attributes:
        title: the tracker's name for users.
        run_id: by which a resumed run finds its earlier part; that of the labels where the backend still has it.
        store: where the run is written; a run is resumed only in the store in which it began.
        address: where the user can look at the run.
        is_replaced: whether a new run takes the place of the earlier one of the run directory.
    """

    title: ClassVar[str]
    is_replaced: ClassVar[bool] = False
    run_id: str
    store: str = ""
    address: str = ""

    @abstractmethod
    def __init__(self, labels: RunLabels) -> None:
        """Begin the run, or continue the one with the id of the labels."""

    @abstractmethod
    def log(self, rows: Sequence[MeasuredRow]) -> None:
        """Write what was measured at some steps, which increase."""

    @abstractmethod
    def config(self, values: Mapping[str, Any]) -> None:
        """Set settings, plain values and mappings of such; a value that is set again replaces the earlier one."""

    @abstractmethod
    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Write figures that describe the whole run."""

    @abstractmethod
    def files(self, artifact: Artifact) -> None:
        """Keep files as they are now."""

    @abstractmethod
    def close(self, status: Status) -> None:
        """Write what is pending, and how the run ended.

        Raises:
            Exception: the tracker has not everything that it was given.
        """


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    """Yield (name, value) of nested settings, `model_args.width`; a list is its JSON, and an empty mapping has no value."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        elif isinstance(value, bool | int | float | str):
            yield name, value
        else:
            yield name, "none" if value is None else json_text(value)
