"""Runs grouped by their settings, with mean and interval over the seeds; and the settings in which runs differ."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.reporting.html.run_data import RunData, affecting_settings
from harness.utils.plain import to_plain
from harness.utils.stats import CONFIDENCE, MeanInterval, mean_interval


def spread(values: Sequence[float]) -> MeanInterval | None:
    """Return mean, standard deviation and interval of the finite ones among `values`; None where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return mean_interval(finite) if finite else None


def share_interval(share: float, images: int) -> tuple[float, float]:
    """Return the 95 % interval of a fraction of `images` images.

    Source: Wilson (1927); Brown, Cai, DasGupta, "Interval Estimation for a Binomial Proportion", 2001, eq. 4.
    """
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in the seed, among the settings that affect the results."""

    name: str
    runs: Sequence[RunData]

    @property
    def seeds(self) -> list[Any]:
        return sorted({run.config.get("seed", "?") for run in self.runs}, key=str)

    def spread(self, key: str) -> MeanInterval | None:
        """Return mean and interval of a metric of the result, such as `test/acc`."""
        return spread([run.figure(key) for run in self.runs])


def group_runs(runs: Sequence[RunData]) -> list[RunGroup]:
    """Return the runs grouped by settings and data, in the order of each group's first run."""
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        groups.setdefault(_group_key(run), []).append(run)
    differing = run_differences([members[0] for members in groups.values()], seed=False)
    return [
        RunGroup(_group_name(members, {key: values[index] for key, values in differing.items()}, len(groups)), members)
        for index, members in enumerate(groups.values())
    ]


def _group_key(run: RunData) -> str:
    settings = {key: value for key, value in affecting_settings(run).items() if key != "seed"}
    return json.dumps(to_plain([settings, run.dataset.get("fingerprint")]), sort_keys=True)


def _group_name(members: Sequence[RunData], differing: Mapping[str, Any], groups: int) -> str:
    if len(members) == 1:
        return members[0].name
    if groups == 1 or not differing:
        return f"{len(members)} runs like {members[0].name}"
    return ", ".join(f"{key}={value}" for key, value in list(differing.items())[:4])


def run_differences(runs: Sequence[RunData], *, seed: bool = True) -> dict[str, list[Any]]:
    """Return setting -> value in each run, for the settings that affect the results and are not equal in all runs.

    Args:
        seed: whether the seed counts as a difference.
    """
    settings = [affecting_settings(run) for run in runs]
    names = dict.fromkeys(name for each in settings for name in each)
    return {
        name: [each.get(name, "") for each in settings]
        for name in names
        if (seed or name != "seed") and len({json.dumps(to_plain(each.get(name, ""))) for each in settings}) > 1
    }
