"""Which trials of a search are the best: by one metric, by their mean over seeds, or by several metrics at once."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.config.names import TrialStatus
from harness.sweep.distributions import as_text
from harness.sweep.metric import Metric
from harness.utils.stats import pareto_indices


@dataclass(frozen=True)
class TrialRecord:
    """What the storage has of one trial.

    Attributes:
        state: running, complete, pruned or failed.
        history: values of the metric, in order; of several metrics, those of the first.
        objectives: of a complete trial with several metrics, the value of each.
    """

    number: int
    name: str
    state: str
    values: Mapping[str, Any]
    history: Sequence[float]
    reason: str
    objectives: Sequence[float] = ()


@dataclass(frozen=True)
class SeedGroup:
    """The complete trials of one configuration, which differ in their seed only.

    Attributes:
        values: of the configuration, without the seed.
        scores: the metric of each trial.
    """

    values: Mapping[str, Any]
    records: Sequence[TrialRecord]
    scores: Sequence[float]

    @property
    def mean(self) -> float:
        """Return the mean of the scores."""
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float:
        """Return the standard deviation of the scores; 0 for one."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0

    @property
    def typical(self) -> TrialRecord:
        """Return the trial whose score is nearest to the mean."""
        pairs = zip(self.records, self.scores, strict=True)
        return min(pairs, key=lambda pair: abs(pair[1] - self.mean))[0]


def best_record(records: Sequence[TrialRecord], metrics: Sequence[Metric], seed: str = "") -> TrialRecord | None:
    """Return the best trial: a complete one, and one that was stopped early only where none is complete.

    Of several metrics it is the trial of the Pareto front that is best by the first.

    Args:
        seed: the searched parameter that is the seed: the best configuration by its mean over the seeds is taken, and of
            its trials the one nearest to that mean. Configurations with fewer seeds than others are not compared.
    """
    metric = metrics[0]
    if len(metrics) > 1:
        front = pareto_front(records, metrics)
        return min(front, key=lambda record: _signed(record.objectives, metrics), default=None)
    if seed and (groups := seed_groups(records, metric, seed)):
        most = max(len(group.records) for group in groups)
        whole = [group for group in groups if len(group.records) == most]
        return (max if metric.maximise else min)(whole, key=lambda group: group.mean).typical
    for state in (TrialStatus.COMPLETE, TrialStatus.PRUNED):
        evaluated = [record for record in records if record.state == state and record.history]
        if evaluated:
            return (max if metric.maximise else min)(evaluated, key=lambda record: metric.best(record.history))
    return None


def seed_groups(records: Sequence[TrialRecord], metric: Metric, seed: str) -> list[SeedGroup]:
    """Return the complete trials by configuration, in the order of their first trials."""
    members: dict[str, list[TrialRecord]] = {}
    for record in records:
        if record.state == TrialStatus.COMPLETE and record.history:
            members.setdefault(as_text(_without(record.values, seed)), []).append(record)
    return [
        SeedGroup(_without(group[0].values, seed), group, [metric.best(record.history) for record in group])
        for group in members.values()
    ]


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def pareto_front(records: Sequence[TrialRecord], metrics: Sequence[Metric]) -> list[TrialRecord]:
    """Return the trials than which no other is better in one metric and at least as good in all, the best by the first metric first."""
    complete = [record for record in records if len(record.objectives) == len(metrics)]
    signed = [_signed(record.objectives, metrics) for record in complete]
    front = [(signed[index], complete[index]) for index in pareto_indices(signed)]
    return [record for _, record in sorted(front, key=lambda pair: (pair[0], pair[1].number))]


def reference_point(records: Sequence[TrialRecord], metrics: Sequence[Metric]) -> list[float]:
    """Return the worst value of each metric over all complete trials; empty where there is none."""
    complete = [record.objectives for record in records if len(record.objectives) == len(metrics)]
    columns = zip(*complete, strict=True)
    return [(min if metric.maximise else max)(column) for metric, column in zip(metrics, columns, strict=False)]


def hypervolume(records: Sequence[TrialRecord], metrics: Sequence[Metric], reference: Sequence[float]) -> float:
    """Return the volume between the Pareto front and a reference point, in the product of the metrics' units.

    Zitzler and Thiele, "Multiobjective optimization using evolutionary algorithms" (PPSN 1998). It grows whenever a
    trial joins the front, for a fixed reference point.
    """
    corner = _signed(reference, metrics)
    points = [_signed(record.objectives, metrics) for record in pareto_front(records, metrics)]
    return _volume([point for point in points if all(p < c for p, c in zip(point, corner, strict=True))], corner)


def _volume(points: Sequence[Sequence[float]], corner: Sequence[float]) -> float:
    """Return the volume that points dominate below a corner, all to be minimised, slice by slice along the last axis."""
    if len(corner) == 1:
        return corner[0] - min((point[0] for point in points), default=corner[0])
    volume = 0.0
    ordered = sorted(points, key=lambda point: point[-1])
    for index, point in enumerate(ordered):
        top = ordered[index + 1][-1] if index + 1 < len(ordered) else corner[-1]
        if top > point[-1]:
            volume += (top - point[-1]) * _volume([other[:-1] for other in ordered[: index + 1]], corner[:-1])
    return volume


def _signed(values: Sequence[float], metrics: Sequence[Metric]) -> list[float]:
    """Return values of the metrics so that smaller ones are better."""
    return [-value if metric.maximise else value for value, metric in zip(values, metrics, strict=True)]
