"""A sweep as its folder describes it: its trials and parameters, and what the figures and the page's charts need of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.config.names import TrialStatus
from harness.utils.plain import sub_mapping
from harness.utils.text import percent, truncate

# Names of version 0.1 in trials.csv and sweep.json, and what they are called now.
FORMER_NAMES = {
    "training seconds": "training_s",
    "test/acc mean": "test/acc_mean",
    "test/acc standard deviation": "test/acc_sd",
}
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
        further: of several metrics, the values of those after the first; NaN where one was never logged.
    """

    name: str
    state: str
    parameters: Mapping[str, str]
    value: float
    values: int
    seconds: float
    reason: str
    folder: str
    further: Mapping[str, float] = field(default_factory=dict)

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
        further: of several metrics, the names of those after the first.
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
    further: Sequence[str] = ()

    @property
    def name(self) -> str:
        return str(self.summary.get("name") or self.document.get("name") or self.path.name)

    @property
    def description(self) -> str:
        text = self.document.get("description")
        return text if isinstance(text, str) else ""

    @property
    def front(self) -> list[TrialData]:
        """The trials of the Pareto front of several metrics, in the order of `sweep.json`."""
        trials = {trial.name: trial for trial in self.trials}
        names = [str(each.get("trial")) for each in mappings_in(self.summary.get("pareto"))]
        return [trials[name] for name in names if name in trials]

    @property
    def front_step(self) -> Literal["post", "pre", ""]:
        """Where the front of two metrics, over the second, changes its value: behind a trial, before it; else empty."""
        if len(self.further) != 1:  # in two of more metrics the front is no line
            return ""
        goals = [each.get("goal") for each in mappings_in(self.summary.get("metrics"))]
        return "pre" if goals[1:] == ["maximize"] else "post"

    @property
    def hypervolume(self) -> float:
        """The volume between the front and the worst value of each metric; NaN where there is none."""
        value = sub_mapping(self.summary, "hypervolume").get("value")
        return float(value) if isinstance(value, int | float) else math.nan

    @property
    def seed_groups(self) -> list[Mapping[str, Any]]:
        """The configurations of a sweep over seeds, the best mean first."""
        listed = mappings_in(self.summary.get("seed_groups"))
        groups = [
            {**each, "parameters": sub_mapping(each, "parameters")} for each in listed if _is_number(each.get("mean"))
        ]
        return sorted(groups, key=lambda group: float(group["mean"]), reverse=self.maximise)

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
        """Whether the metric is an accuracy, an mAP or the like, which a person reads in percent."""
        return self.metric.endswith(("acc", "map", "f1_macro", "exact_match"))

    def score_text(self, value: float) -> str:
        """Return a value of the metric as a person reads it."""
        if not math.isfinite(value):
            return "–"
        return percent(value) if self.is_fraction else f"{value:.4g}"

    def score_unit(self, value: float) -> float:
        """Return where a value lies within `limits`, 0..1; one beyond them lies at the end."""
        low, high = self.limits
        return min(max((value - low) / (high - low), 0.0), 1.0)

    @property
    def clipped(self) -> list[TrialData]:
        """The trials whose value lies beyond `limits`, so that a chart can only show it at the end of its axis."""
        low, high = self.limits
        return [trial for trial in self.evaluated if not low <= trial.value <= high]

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


def mappings_in(value: Any) -> list[Mapping[str, Any]]:
    """Return the mappings in a list of a file that may be damaged."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
