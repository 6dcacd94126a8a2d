"""How sure a figure is: the interval of a share, and mean and spread over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.reporting.html.run_data import RunData, affecting_settings
from harness.utils.stats import CONFIDENCE, MeanInterval
from harness.utils.stats import mean_interval as of


def spread(values: Sequence[float]) -> MeanInterval | None:
    """Mean, standard deviation and interval of the finite ones among `values`; None where there are none."""
    known = [value for value in values if math.isfinite(value)]
    return of(known) if known else None


def share_interval(share: float, images: int) -> tuple[float, float]:
    """The 95 % interval of a share of `images` images.

    Source: Wilson (1927); Brown, Cai, DasGupta, "Interval Estimation for a Binomial Proportion", 2001, eq. 4.
    """
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    reach = z / (1 + z * z / images) * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    return max(0.0, middle - reach), min(1.0, middle + reach)


@dataclass(frozen=True)
class RunGroup:
    """Runs that are equal in everything that counts but the seed."""

    name: str
    runs: Sequence[RunData]

    @property
    def seeds(self) -> list[Any]:
        return sorted({run.config.get("seed", "?") for run in self.runs}, key=str)

    def spread(self, key: str) -> MeanInterval | None:
        return spread([run.figure(key) for run in self.runs])


def group_runs(runs: Sequence[RunData]) -> list[RunGroup]:
    """The runs, those of equal settings and data together, in the order of the first of each."""
    found: dict[str, list[RunData]] = {}
    for run in runs:
        found.setdefault(_what(run), []).append(run)
    apart = differences([together[0] for together in found.values()], seed=False)
    return [
        RunGroup(_named(together, place, {key: values[place] for key, values in apart.items()}, len(found)), together)
        for place, together in enumerate(found.values())
    ]


def _what(run: RunData) -> str:
    settings = {key: value for key, value in affecting_settings(run).items() if key != "seed"}
    return json.dumps([settings, run.dataset.get("fingerprint")], sort_keys=True, default=str)


def _named(together: Sequence[RunData], place: int, own: Mapping[str, Any], count: int) -> str:
    if len(together) == 1:
        return together[0].name
    if count == 1 or not own:
        return f"{len(together)} runs like {together[0].name}"
    return ", ".join(f"{key}={value}" for key, value in list(own.items())[:4])


def differences(runs: Sequence[RunData], *, seed: bool = True) -> dict[str, list[Any]]:
    """Setting -> its value in each run, for the settings that count and are not equal in all."""
    settings = [affecting_settings(run) for run in runs]
    names = dict.fromkeys(name for own in settings for name in own)
    return {
        name: [own.get(name, "") for own in settings]
        for name in names
        if (seed or name != "seed") and len({json.dumps(own.get(name, ""), default=str) for own in settings}) > 1
    }
