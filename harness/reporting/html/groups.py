"""Runs grouped by their settings, with mean and interval over the seeds; and the settings in which runs differ."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.reporting.html.run_data import RunData, affecting_settings
from harness.tracking.metric_names import interval_scale
from harness.tracking.run_dir import RunState
from harness.utils.plain import setting_text, to_plain
from harness.utils.stats import MeanInterval, Scale, mean_interval
from harness.utils.text import truncate

MAX_SETTINGS, MAX_VALUE = 5, 24  # of a label: settings, and characters of a value


def spread(values: Sequence[float], scale: Scale = "linear") -> MeanInterval | None:
    """Return mean, standard deviation and interval of the finite ones among `values`; None where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return mean_interval(finite, scale=scale) if finite else None


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in the seed, among the settings that affect the results.

    Attributes:
        label: the settings in which this group differs from the others; of a single group, what all of its runs are.
        runs: every run, repetitions of a seed among them.
        settings: those of the label alone; empty where there is nothing to tell apart.
    """

    label: str
    runs: Sequence[RunData]
    settings: str = ""

    @property
    def name(self) -> str:
        """The name of its run, or of the first one and how many more there are."""
        more = f" and {len(self.runs) - 1} more" if len(self.runs) > 1 else ""
        return self.runs[0].name + more

    @property
    def seeds(self) -> list[Any]:
        """The seeds, each once."""
        return sorted({_seed(run) for run in self.runs}, key=lambda seed: (str(type(seed)), seed))

    @cached_property
    def distinct(self) -> list[RunData]:
        """One run of each seed: the first one that has finished, else the first one.

        Runs of one seed are repetitions of one experiment, and what they do not differ in is no spread.
        """
        chosen: dict[Any, RunData] = {}
        for run in sorted(self.runs, key=lambda run: run.state != RunState.FINISHED):
            chosen.setdefault(_seed(run), run)
        return [run for run in self.runs if chosen[_seed(run)] is run]

    @property
    def repetitions(self) -> dict[Any, list[RunData]]:
        """Seed -> its runs, for the seeds that several runs have."""
        by_seed: dict[Any, list[RunData]] = {}
        for run in self.runs:
            by_seed.setdefault(_seed(run), []).append(run)
        return {seed: runs for seed, runs in by_seed.items() if len(runs) > 1}

    def spread(self, key: str) -> MeanInterval | None:
        """Return mean and interval of a metric of the result, such as `test/acc`, over the seeds."""
        return spread([run.figure(key) for run in self.distinct], interval_scale(key))

    def run_label(self, run: RunData) -> str:
        """Return what tells a run from the others of the page: its name, the group's settings, and the seed where it has several."""
        seed = f"seed {_seed(run)}" if len(self.seeds) > 1 else ""
        return ", ".join(part for part in (run.name, self.settings, seed) if part)


def _seed(run: RunData) -> Any:
    seed = run.config.get("seed", "?")
    return seed if isinstance(seed, int | str) else str(seed)


def group_runs(runs: Sequence[RunData]) -> list[RunGroup]:
    """Return the runs grouped by settings and data, in the order of each group's first run."""
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        groups.setdefault(_group_key(run), []).append(run)
    members = list(groups.values())
    texts = _labels(members)
    return [RunGroup(label, each, settings) for (label, settings), each in zip(texts, members, strict=True)]


def _group_key(run: RunData) -> str:
    settings = {key: value for key, value in affecting_settings(run).items() if key != "seed"}
    return json.dumps(to_plain([settings, run.dataset.get("fingerprint")]), sort_keys=True)


def _labels(groups: Sequence[Sequence[RunData]]) -> list[tuple[str, str]]:
    """Return a label for each group, which no other has, and the settings in it: those that are not equal in all groups."""
    first = [members[0] for members in groups]
    if len(groups) == 1:
        return [(f"{len(groups[0])} runs like {first[0].name}" if len(groups[0]) > 1 else first[0].name, "")]
    differing = run_differences(first, seed=False)
    labels = []
    for index in range(len(first)):
        parts = [f"{name}={_short(values[index])}" for name, values in differing.items() if values[index] != ""]
        more = [f"{len(parts) - MAX_SETTINGS} more"] if len(parts) > MAX_SETTINGS + 1 else []
        labels.append(", ".join(parts[:MAX_SETTINGS] + more if more else parts))
    # Other data, or differences that are left out, which the names of the runs tell apart at least.
    return [
        (label if label and labels.count(label) == 1 else f"{label} ({run.name})" if label else run.name, label)
        for label, run in zip(labels, first, strict=True)
    ]


def _short(value: Any) -> str:
    return truncate(setting_text(value), MAX_VALUE)


def _readable(name: str, value: Any) -> Any:
    """Return the value of a setting whose own text is for machines as words."""
    if name != "extended" or not isinstance(value, list | tuple):
        return value
    parts = [str(item).partition(":") for item in value]
    return ", ".join(f"{epochs} epochs to update {step}" for step, _, epochs in parts)


def run_differences(runs: Sequence[RunData], *, seed: bool = True) -> dict[str, list[Any]]:
    """Return setting -> value in each run, for the settings that affect the results and are not equal in all runs.

    Of mappings such as `model_args`, the arguments that differ are listed one by one; what a run does not have is empty.

    Args:
        seed: whether the seed counts as a difference.
    """
    settings = [_flat(affecting_settings(run)) | {"data": run.data} for run in runs]
    names = dict.fromkeys(name for each in settings for name in each)
    return {
        name: [_readable(name, each.get(name, "")) for each in settings]
        for name in names
        if (seed or name != "seed") and len({json.dumps(to_plain(each.get(name, ""))) for each in settings}) > 1
    }


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": part for key, part in value.items()}
        else:
            flat[name] = value
    return flat
