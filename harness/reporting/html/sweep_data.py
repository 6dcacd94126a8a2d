"""What a sweep's folder says of its search: trials, best, importance, and where each trial stands."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.reporting.html.run_data import SWEEP, TRIALS, sub_mapping
from harness.utils.errors import HarnessError
from harness.utils.files import read_json

AFTER = ("values", "seconds", "training seconds", "folder", "reason")  # columns behind the metric's
WIDE = 20.0  # a parameter whose greatest value is so many times its least one is shown on a logarithmic axis


@dataclass(frozen=True)
class TrialData:
    """One trial; `value` is NaN where the metric was never logged.

    Attributes:
        parameters: name -> the text in the table. values: how many the metric has.
    """

    name: str
    state: str
    parameters: Mapping[str, str]
    value: float
    values: int
    seconds: float
    reason: str
    folder: str

    @property
    def evaluated(self) -> bool:
        return math.isfinite(self.value)


@dataclass(frozen=True)
class ParameterAxis:
    """A searched parameter.

    Attributes:
        words: the values where they are not numbers, in the order of their first appearance.
        logarithmic: whether it is shown by its logarithm.
    """

    name: str
    words: tuple[str, ...] = ()
    logarithmic: bool = False

    @property
    def label(self) -> str:
        plain = self.name.lower().replace("-", "").replace("_", "")
        return {"lrmax": "LRMAX", "lrmin": "LRMIN"}.get(plain, self.name)

    def place(self, text: str) -> float:
        """Where a value stands: its number, or its place among the words; NaN where it has none."""
        if self.words:
            return float(self.words.index(text)) if text in self.words else math.nan
        return as_number(text)


@dataclass(frozen=True)
class SweepData:
    """A search as its folder tells of it; what could not be read is named in `missing`.

    Attributes:
        told: `sweep.json`. best: the text of `best.yaml`. document: the sweep's own YAML.
    """

    path: Path
    metric: str
    maximise: bool
    trials: Sequence[TrialData]
    axes: Sequence[ParameterAxis]
    told: Mapping[str, Any] = field(default_factory=dict)
    best: str = ""
    document: Mapping[str, Any] = field(default_factory=dict)
    missing: Sequence[str] = ()

    @property
    def name(self) -> str:
        return str(self.told.get("name") or self.document.get("name") or self.path.name)

    @property
    def evaluated(self) -> list[TrialData]:
        """The trials that logged the metric, in the order of their beginning."""
        return [trial for trial in self.trials if trial.evaluated]

    @property
    def winner(self) -> TrialData | None:
        """The best trial: the one that the search itself named, else the one with the best value."""
        named = sub_mapping(self.told, "best").get("trial")
        found = next((trial for trial in self.evaluated if trial.name == named), None)
        if found is not None or not self.evaluated:
            return found
        return (max if self.maximise else min)(self.evaluated, key=lambda trial: trial.value)

    @property
    def importance(self) -> dict[str, float]:
        """Parameter -> share of the metric's variance that it explains, the greatest first."""
        pairs = sub_mapping(self.told, "importance").items()
        known = {str(name): float(share) for name, share in pairs if isinstance(share, int | float)}
        return dict(sorted(known.items(), key=lambda pair: -pair[1]))

    @property
    def varied(self) -> list[ParameterAxis]:
        """The parameters of which more than one value was tried."""
        return [axis for axis in self.axes if len({trial.parameters.get(axis.name) for trial in self.evaluated}) > 1]

    @property
    def pair(self) -> list[ParameterAxis]:
        """LRMIN and LRMAX where both were searched, else the two parameters that matter most."""
        by_label = {axis.label: axis for axis in self.varied}
        if "LRMIN" in by_label and "LRMAX" in by_label:
            return [by_label["LRMIN"], by_label["LRMAX"]]
        return sorted(self.varied, key=lambda axis: -self.importance.get(axis.name, 0.0))[:2]

    def best_so_far(self) -> list[float]:
        """The best value among each trial and those before it."""
        so_far: list[float] = []
        for trial in self.evaluated:
            before = so_far[-1:] or [trial.value]
            so_far.append((max if self.maximise else min)(before[0], trial.value))
        return so_far


def read_sweep(path: Path) -> SweepData:
    """What a sweep's folder holds; damage is no error but is told in `missing`."""
    missing: list[str] = []
    told = read_json(path / SWEEP)
    if not told:
        missing.append("sweep.json: the search has not come to its first stop, or the file is damaged")
    names, rows = _table(path / TRIALS, missing)
    about = sub_mapping(told, "metric")
    trials = [_trial(names, row) for row in rows]
    metric = _metric(names) or str(about.get("name") or "metric")
    document = _document(path / "sweep.yaml", missing)
    goal = about.get("goal") or sub_mapping(document, "metric").get("goal")
    axes = [_axis(name, trials, sub_mapping(document, "parameters")) for name in _parameters(names)]
    return SweepData(path, metric, goal == "maximize", trials, axes, told, _text(path / "best.yaml"), document, missing)


def _table(path: Path, missing: list[str]) -> tuple[list[str], list[list[str]]]:
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            names, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error) as error:
        missing.append(f"{TRIALS}, the table of trials ({getattr(error, 'strerror', None) or 'it is empty'})")
        return [], []
    whole = [row for row in rows if len(row) == len(names)]
    if len(whole) < len(rows) or names[:2] != ["trial", "state"] or tuple(names[-len(AFTER) :]) != AFTER:
        missing.append(f"a part of {TRIALS}: it is damaged")
    return (names, whole) if tuple(names[-len(AFTER) :]) == AFTER else ([], [])


def _metric(names: Sequence[str]) -> str:
    return names[-len(AFTER) - 1] if names else ""


def _parameters(names: Sequence[str]) -> Sequence[str]:
    return names[2 : -len(AFTER) - 1]


def _trial(names: Sequence[str], row: Sequence[str]) -> TrialData:
    values, seconds, _, folder, reason = row[-len(AFTER) :]
    return TrialData(
        name=row[0],
        state=row[1],
        parameters=dict(zip(_parameters(names), row[2:], strict=False)),
        value=as_number(row[-len(AFTER) - 1]),
        values=int(as_number(values)) if math.isfinite(as_number(values)) else 0,
        seconds=as_number(seconds),
        reason=reason,
        folder=folder,
    )


def _axis(name: str, trials: Sequence[TrialData], parameters: Mapping[str, Any]) -> ParameterAxis:
    texts = [text for trial in trials if (text := trial.parameters.get(name, ""))]
    numbers = [as_number(text) for text in texts]
    if not all(map(math.isfinite, numbers)):
        return ParameterAxis(name, words=tuple(dict.fromkeys(texts)))
    distribution = str(sub_mapping(parameters, name).get("distribution", ""))
    wide = bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) >= WIDE
    return ParameterAxis(name, logarithmic=bool(numbers) and min(numbers) > 0 and ("log" in distribution or wide))


def as_number(text: str) -> float:
    """The number that a text is; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _document(path: Path, missing: list[str]) -> Mapping[str, Any]:
    try:
        return yaml_io.read_yaml(path)
    except HarnessError:
        missing.append("sweep.yaml, what was searched")
        return {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
