"""What a run folder says of its run, as far as it can be read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.config.settings import Config
from harness.evaluation.metrics import SavedPredictions, read_predictions
from harness.tracking import journal, run_dir
from harness.tracking.records import Record, Scalar, Table, Value
from harness.tracking.run_dir import RunState
from harness.utils.errors import DataError, HarnessError, UsageError
from harness.utils.files import read_json

FINDER, TRIALS, SWEEP = "lr_finder.json", "trials.csv", "sweep.json"
SPLITS = ("test", "val")


@dataclass(frozen=True)
class RunData:
    """What one run left behind; what could not be read is empty, and named in `missing`.

    Attributes:
        state: finished, running, failed, preempted, interrupted, or crashed (it died without a word).
        config: the settings by name, as the run was given them.
        header: the journal's first line. summary: `summary.json`. status: `status.json`.
        finder: `lr_finder.json`. records: of the journal. alerts: (title, text).
    """

    path: Path
    state: str
    config: Mapping[str, Any] = field(default_factory=dict)
    header: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    finder: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Record] = ()
    alerts: Sequence[tuple[str, str]] = ()
    predictions: SavedPredictions | None = None
    missing: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The name that the user gave it, else that of its folder."""
        return str(self.config.get("name") or self.path.name)

    @property
    def epochs(self) -> list[Record]:
        """The records of the epochs."""
        return [record for record in self.records if record.kind == "epoch"]

    @property
    def classes(self) -> list[str]:
        found = sub_mapping(self.header, "dataset").get("classes") or sub_mapping(self.summary, "dataset").get(
            "classes"
        )
        return [str(name) for name in found] if isinstance(found, list) else []

    @property
    def environment(self) -> Mapping[str, Any]:
        return sub_mapping(self.summary, "environment") or sub_mapping(self.header, "environment")

    @property
    def dataset(self) -> Mapping[str, Any]:
        return sub_mapping(self.header, "dataset") or sub_mapping(self.summary, "dataset")

    @property
    def result(self) -> Mapping[str, Any]:
        """The figures of the result; empty where the run has not come to it."""
        return sub_mapping(self.summary, "result")

    @property
    def split(self) -> str:
        """The split that is reported: test where it was read, else validation."""
        known = set(self.result) | {key for record in self.epochs for key in record.values}
        return next((split for split in SPLITS if f"{split}/acc" in known), "test")

    @property
    def watched(self) -> str:
        """The split that each epoch was evaluated on."""
        known = {key for record in self.epochs for key in record.values}
        return next((split for split in ("val", "test") if f"{split}/acc" in known), "test")

    def figure(self, key: str) -> float:
        """A figure of the result such as `test/acc`; NaN where there is none."""
        return number(self.result.get(key))

    def line(self, key: str) -> tuple[list[int], list[float]]:
        """(epochs, values) of a metric."""
        pairs = [(record.epoch, number(record.values[key])) for record in self.epochs if key in record.values]
        return [epoch for epoch, _ in pairs], [value for _, value in pairs]

    def steps(self, key: str) -> tuple[list[float], list[float]]:
        """(steps, values) of what was measured at every step."""
        x: list[float] = []
        y: list[float] = []
        for record in self.records:
            if record.steps is not None and key in record.steps.lines:
                x += [float(step) for step in record.steps.x]
                y += [float(value) for value in record.steps.lines[key]]
        return x, y

    def value(self, key: str) -> Value | None:
        """What was last said under this key."""
        return next((record.values[key] for record in reversed(self.records) if key in record.values), None)

    def table(self, key: str) -> Table | None:
        found = self.value(key)
        return found if isinstance(found, Table) and found.rows else None

    def scalars(self) -> list[Mapping[str, Scalar]]:
        """The plain values of each epoch."""
        return [record.scalars() for record in self.epochs]


def sub_mapping(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping in a mapping; empty where there is none."""
    found = mapping.get(key)
    return found if isinstance(found, Mapping) else {}


def number(value: Any) -> float:
    """A plain number, else NaN."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def is_run(path: Path) -> bool:
    """Whether a folder holds a run, be it a damaged one."""
    return any((path / name).is_file() for name in (run_dir.CONFIG, journal.NAME))


def is_sweep(path: Path) -> bool:
    """Whether a folder is a sweep's."""
    return any((path / name).is_file() for name in (TRIALS, SWEEP))


def check(path: Path) -> None:
    """Refuse what no page can be made of.

    Raises:
        UsageError: it is neither a run's folder nor a sweep's.
    """
    if is_run(path) or is_sweep(path):
        return
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}; `harness runs` lists what there is")
    inside = sum(is_run(inner) or is_sweep(inner) for inner in path.iterdir() if inner.is_dir())
    remedy = (
        f"it holds {inside}: harness report {path}/*" if inside else f"`harness runs {path.parent}` lists what there is"
    )
    raise UsageError(f"{path} is no run's or sweep's folder; {remedy}")


def read_run(path: Path, state: str = "") -> RunData:
    """What a run folder holds; damage is no error but is told in `missing`.

    Args:
        state: of a run that is about to say so itself; by default what its status says.
    """
    missing: list[str] = []
    story = journal.JournalContents()
    try:
        story = journal.read_journal(path)
    except DataError as error:
        missing.append(f"the journal, and with it curves and pictures ({error})")
    state = state or _state(path)
    ended = state not in (RunState.RUNNING, RunState.CRASHED)
    if story.records and ended and not story.whole:
        missing.append("the end of the journal: it is torn or damaged, and what follows the damage is not shown")
    summary = run_dir.read_summary(path)
    if not summary and state == RunState.FINISHED and not any(record.kind == "find" for record in story.records):
        missing.append("summary.json, and with it the headline figures")
    config = _config(path, story.header, missing)
    classes = (
        sub_mapping(story.header, "dataset").get("classes") or sub_mapping(summary, "dataset").get("classes") or []
    )
    predictions, why = read_predictions(path / "predictions.csv", [str(name) for name in classes])
    if why and (state == RunState.FINISHED and summary):
        missing.append(f"predictions.csv, and with it the confusion matrix ({why})")
    return RunData(
        path=path,
        state=state,
        config=config,
        header=story.header,
        summary=summary,
        status=read_json(path / run_dir.STATUS),
        finder=read_json(path / FINDER),
        records=story.records,
        alerts=story.alerts,
        predictions=predictions,
        missing=missing,
    )


def _config(path: Path, header: Mapping[str, Any], missing: list[str]) -> Mapping[str, Any]:
    try:
        return yaml_io.read_yaml(path / run_dir.CONFIG)
    except HarnessError as error:
        missing.append(f"config.yaml ({error})")
    return sub_mapping(header, "config")


def _state(path: Path) -> str:
    state = str(read_json(path / run_dir.STATUS).get("state", RunState.CRASHED))
    if state == RunState.RUNNING:
        with contextlib.suppress(OSError):  # a folder that can not be written has no one writing in it
            if run_dir.is_locked(path):
                return state
        return RunState.CRASHED
    return state


def affecting_settings(run: RunData) -> Mapping[str, Any]:
    """The settings that a run's numbers depend on; all of them where they can not be understood."""
    try:
        return Config(**dict(run.config)).affecting_results()
    except (HarnessError, TypeError):
        return run.config
