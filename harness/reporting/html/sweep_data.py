"""Read a sweep's folder back: its trials and parameters, and what the figures and the page's charts need of them."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.config.names import TrialStatus
from harness.reporting.html.run_data import SWEEP, TRIALS
from harness.utils.errors import HarnessError
from harness.utils.files import read_json
from harness.utils.plain import sub_mapping
from harness.utils.text import percent, truncate

LAST_COLUMNS = ("values", "seconds", "training_s", "folder", "reason")  # behind the metric's
# Names of version 0.1 in trials.csv and sweep.json, and what they are called now.
FORMER_NAMES = {
    "training seconds": "training_s",
    "test/acc mean": "test/acc_mean",
    "test/acc standard deviation": "test/acc_sd",
}
WIDE = 20.0  # a parameter whose greatest value is so many times its least is shown on a logarithmic axis
MAX_NUMERIC_CHOICES = 3  # a list of so few numbers is shown as categories
MAX_TICKS = 8  # categories up to which each is named on its axis
STATE_LABELS: dict[str, str] = {**{state.value: state.value for state in TrialStatus}, "pruned": "stopped early"}


@dataclass(frozen=True)
class TrialData:
    """One trial.

    Attributes:
        parameters: name -> text in `trials.csv`.
        value: of the metric; NaN where it was never logged.
        values: how many values of the metric were logged.
        folder: the run directory, relative to the sweep's folder.
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
    """A searched parameter as an axis of a chart.

    Attributes:
        categories: the values where they are not numbers, or only a few, in the order of the sweep's file.
        logarithmic: whether equal factors are equally far apart.
    """

    name: str
    categories: tuple[str, ...] = ()
    logarithmic: bool = False

    @property
    def label(self) -> str:
        plain = self.name.lower().replace("-", "").replace("_", "")
        return {"lrmax": "LRMAX", "lrmin": "LRMIN", "lrminratio": "LRMIN/LRMAX"}.get(plain, self.name)

    def position(self, trial: TrialData) -> float:
        """Return a trial's number on this axis, or the index of its category; NaN where it has none."""
        text = trial.parameters.get(self.name, "")
        if self.categories:
            return float(self.categories.index(text)) if text in self.categories else math.nan
        return as_number(text)

    def units(self, trials: Sequence[TrialData]) -> list[float]:
        """Return the trials' positions scaled to 0..1 over all of them."""
        positions = [self.position(trial) for trial in trials]
        if self.logarithmic:
            positions = [math.log(position) if position > 0 else math.nan for position in positions]
        known = [position for position in positions if math.isfinite(position)]
        width = max(known) - min(known) if known else 0.0
        return [(position - min(known)) / width if width else 0.5 for position in positions]

    def ticks(self, trials: Sequence[TrialData]) -> list[tuple[float, str]]:
        """Return (unit, text) of each category, or of the least, the middle and the greatest value."""
        units = {trial.parameters[self.name]: unit for trial, unit in zip(trials, self.units(trials), strict=True)}
        ranked = sorted((unit, text) for text, unit in units.items() if math.isfinite(unit))
        if ranked and (len(ranked) > MAX_TICKS or not self.categories):
            ranked = list(dict.fromkeys([ranked[0], ranked[len(ranked) // 2], ranked[-1]]))
        return [(unit, truncate(value_text(text), 18)) for unit, text in ranked]


@dataclass(frozen=True)
class SweepData:
    """A sweep as its folder describes it; what could not be read is named in `missing`.

    Attributes:
        summary: `sweep.json`. best: the text of `best.yaml`. document: the sweep's own YAML.
    """

    path: Path
    metric: str
    maximise: bool
    trials: Sequence[TrialData]
    axes: Sequence[ParameterAxis]
    summary: Mapping[str, Any] = field(default_factory=dict)
    best: str = ""
    document: Mapping[str, Any] = field(default_factory=dict)
    missing: Sequence[str] = ()

    @property
    def name(self) -> str:
        return str(self.summary.get("name") or self.document.get("name") or self.path.name)

    @property
    def final(self) -> Mapping[str, Any]:
        """The results of the final runs, under their present names; empty without any."""
        return {FORMER_NAMES.get(name, name): value for name, value in sub_mapping(self.summary, "final").items()}

    @property
    def evaluated(self) -> list[TrialData]:
        """The trials that logged the metric, in the order in which they started."""
        return [trial for trial in self.trials if trial.evaluated]

    @property
    def failed_without_value(self) -> list[TrialData]:
        return [trial for trial in self.trials if trial.state == TrialStatus.FAILED and not trial.evaluated]

    @property
    def ranked(self) -> list[TrialData]:
        """The trials that logged the metric, the worst first."""
        return sorted(self.evaluated, key=lambda trial: trial.value, reverse=not self.maximise)

    @property
    def winner(self) -> TrialData | None:
        """The best trial: the one that `sweep.json` names, else the one with the best value."""
        named = sub_mapping(self.summary, "best").get("trial")
        trial = next((trial for trial in self.evaluated if trial.name == named), None)
        if trial is not None or not self.evaluated:
            return trial
        return (max if self.maximise else min)(self.evaluated, key=lambda trial: trial.value)

    @property
    def importance(self) -> dict[str, float]:
        """Parameter -> fraction of the metric's variance that it explains, the greatest first."""
        pairs = sub_mapping(self.summary, "importance").items()
        known = {str(name): float(share) for name, share in pairs if isinstance(share, int | float)}
        return dict(sorted(known.items(), key=lambda pair: -pair[1]))

    @property
    def varied(self) -> list[ParameterAxis]:
        """The parameters of which more than one value was tried."""
        return [axis for axis in self.axes if len({trial.parameters.get(axis.name) for trial in self.evaluated}) > 1]

    @property
    def pair(self) -> list[ParameterAxis]:
        """LRMIN (or its fraction of LRMAX) and LRMAX where both were searched, else the two most important parameters."""
        by_label = {axis.label: axis for axis in self.varied}
        for label in ("LRMIN", "LRMIN/LRMAX"):
            if label in by_label and "LRMAX" in by_label:
                return [by_label[label], by_label["LRMAX"]]
        return sorted(self.varied, key=lambda axis: -self.importance.get(axis.name, 0.0))[:2]

    @property
    def limits(self) -> tuple[float, float]:
        """The range of the metric that is worth telling apart: one diverged loss would flatten all others."""
        values = [trial.value for trial in self.evaluated]
        low, high, middle = min(values), max(values), statistics.median(values)
        if self.maximise and high > middle:
            low = max(low, middle - 3 * (high - middle))
        elif not self.maximise and middle > low:
            high = min(high, middle + 3 * (middle - low))
        return low, high if high > low else low + 1e-9

    @property
    def is_fraction(self) -> bool:
        """Whether the metric is an accuracy, which a person reads in percent."""
        return self.metric.endswith("acc")

    def score_text(self, value: float) -> str:
        """Return a value of the metric as a person reads it."""
        if not math.isfinite(value):
            return "–"
        return percent(value) if self.is_fraction else f"{value:.4g}"

    def score_unit(self, value: float) -> float:
        """Return where a value lies within `limits`, 0..1; one beyond them lies at the end."""
        low, high = self.limits
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def score_ticks(self) -> list[tuple[float, str]]:
        """Return (unit, text) of the least, the middle and the greatest score of `limits`, marked where some lie beyond."""
        low, high = self.limits
        values = [trial.value for trial in self.evaluated]
        signs = {0.0: "≤ " if min(values) < low else "", 0.5: "", 1.0: "≥ " if max(values) > high else ""}
        return [(unit, sign + self.score_text(low + unit * (high - low))) for unit, sign in signs.items()]

    def best_so_far(self) -> list[float]:
        """Return for each evaluated trial the best value up to and including it."""
        so_far: list[float] = []
        for trial in self.evaluated:
            before = so_far[-1:] or [trial.value]
            so_far.append((max if self.maximise else min)(before[0], trial.value))
        return so_far


def read_sweep(path: Path) -> SweepData:
    """Read a sweep's folder; damage raises nothing, but is named in `missing`."""
    missing: list[str] = []
    summary = read_json(path / SWEEP)
    if not summary:
        missing.append("sweep.json: no trial has ended yet, or the file is damaged")
    names, rows = _table(path / TRIALS, missing)
    about = sub_mapping(summary, "metric")
    trials = [_trial(names, row) for row in rows]
    metric = _metric(names) or str(about.get("name") or "metric")
    document = _document(path / "sweep.yaml", missing)
    goal = about.get("goal") or sub_mapping(document, "metric").get("goal")
    axes = [_axis(name, trials, sub_mapping(document, "parameters")) for name in _parameters(names)]
    best = _text(path / "best.yaml")
    return SweepData(path, metric, goal == "maximize", trials, axes, summary, best, document, missing)


def _table(path: Path, missing: list[str]) -> tuple[list[str], list[list[str]]]:
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            header, *rows = csv.reader(file)
        names = [FORMER_NAMES.get(name, name) for name in header]
    except (OSError, ValueError, csv.Error) as error:
        missing.append(f"{TRIALS}, the table of trials ({getattr(error, 'strerror', None) or 'it is empty'})")
        return [], []
    complete = [row for row in rows if len(row) == len(names)]
    has_columns = tuple(names[-len(LAST_COLUMNS) :]) == LAST_COLUMNS
    if len(complete) < len(rows) or names[:2] != ["trial", "state"] or not has_columns:
        missing.append(f"a part of {TRIALS}: it is damaged")
    return (names, complete) if has_columns else ([], [])


def _metric(names: Sequence[str]) -> str:
    return names[-len(LAST_COLUMNS) - 1] if names else ""


def _parameters(names: Sequence[str]) -> Sequence[str]:
    return names[2 : -len(LAST_COLUMNS) - 1]


def _trial(names: Sequence[str], row: Sequence[str]) -> TrialData:
    values, seconds, _, folder, reason = row[-len(LAST_COLUMNS) :]
    return TrialData(
        name=row[0],
        state=row[1],
        parameters=dict(zip(_parameters(names), row[2:], strict=False)),
        value=as_number(row[-len(LAST_COLUMNS) - 1]),
        values=int(as_number(values)) if math.isfinite(as_number(values)) else 0,
        seconds=as_number(seconds),
        reason=reason,
        folder=folder,
    )


def _axis(name: str, trials: Sequence[TrialData], parameters: Mapping[str, Any]) -> ParameterAxis:
    texts = [text for trial in trials if (text := trial.parameters.get(name, ""))]
    numbers = [as_number(text) for text in texts]
    first, *inner = name.split(".")
    spec = sub_mapping(parameters, first)
    for part in inner:  # `model_args.width`
        spec = sub_mapping(sub_mapping(spec, "parameters"), part)
    listed = spec.get("values")
    listed = listed if isinstance(listed, list) else []
    if not all(map(math.isfinite, numbers)) or 0 < len(listed) <= MAX_NUMERIC_CHOICES:
        return ParameterAxis(name, categories=_categories(texts, listed))
    wide = bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) >= WIDE
    is_log = "log" in str(spec.get("distribution", ""))
    return ParameterAxis(name, logarithmic=bool(numbers) and min(numbers) > 0 and (is_log or wide))


def _categories(texts: Sequence[str], listed: Sequence[Any]) -> tuple[str, ...]:
    """Return the values of a list in its order, each as the table writes it, then those that only the table has."""
    in_table = {_same(text): text for text in texts}
    ordered = [in_table.get(_same(value), str(value)) for value in listed]
    return tuple(dict.fromkeys([*ordered, *texts]))


def _same(value: Any) -> float | str:
    """Return what is equal for a value of the YAML and its text in the table."""
    number = as_number(str(value))
    return number if math.isfinite(number) else str(value).lstrip("'")


def as_number(text: str) -> float:
    """Return the number that a text is; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def value_text(text: str) -> str:
    """Return a parameter's value with at most four digits, a text without its quotes."""
    number = as_number(text)
    return f"{number:.4g}" if math.isfinite(number) else text.strip('"')


def _document(path: Path, missing: list[str]) -> Mapping[str, Any]:
    try:
        return yaml_io.read_yaml(path, aliases=True)
    except HarnessError:
        missing.append("sweep.yaml, the sweep's configuration")
        return {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
