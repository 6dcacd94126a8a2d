"""The part of a W&B report of a sweep for several metrics: its Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.tracking.wandb.api import RunFacts, SweepFacts, metrics_of
from harness.tracking.wandb.panels import grid_section, is_number, markdown_table, number_text
from harness.utils.stats import pareto_indices
from harness.utils.text import markdown


def front_of(config: Mapping[str, Any], runs: Sequence[RunFacts]) -> list[RunFacts]:
    """Return the trials than which no other is better in one metric and at least as good in all, the best by the first first.

    Args:
        config: of the sweep.
        runs: its trials; those that have not finished, or lack a metric, are left out.
    """
    metrics = metrics_of(config)
    complete = [
        run for run in runs if run.state == "finished" and all(is_number(run.summary.get(name)) for name, _ in metrics)
    ]
    points = [
        [-run.summary[name] if goal == "maximize" else run.summary[name] for name, goal in metrics] for run in complete
    ]
    return [complete[index] for index in sorted(pareto_indices(points), key=lambda index: points[index])]


def front_blocks(
    wr: Any, sweep: SweepFacts, front: Sequence[RunFacts], runset: Any, parameters: Sequence[str]
) -> list[Any]:
    """Return a scatter plot of the first two metrics, and a table of the trials on the front; none for a single metric.

    Args:
        front: by `front_of`.
        parameters: names of those that are searched.
    """
    metrics = metrics_of(sweep.config)
    if len(metrics) < 2:
        return []
    x, y, *others = (wr.SummaryMetric(name) for name, _ in metrics)
    plot = wr.ScatterPlot(
        title=" and ".join(name for name, _ in metrics[:2]), x=x, y=y, z=others[0] if others else None
    )
    return [
        *grid_section(wr, "Pareto front", [runset], [(plot, 24, 9)]),
        wr.MarkdownBlock(text=front_text(sweep, front, parameters)),
    ]


def front_text(sweep: SweepFacts, front: Sequence[RunFacts], parameters: Sequence[str]) -> str:
    """Return which trials are on the front, with their metrics and parameters, as Markdown."""
    metrics = metrics_of(sweep.config)
    goals = ", ".join(f"{goal} `{name}`" for name, goal in metrics)
    if not front:
        return f"No trial has finished with all metrics: {goals}."
    rows = [
        [
            f"[{markdown(run.name)}]({run.url})",
            *(number_text(name, run.summary[name]) for name, _ in metrics),
            *(markdown(str(config_value(run.config, name))) for name in parameters),
        ]
        for run in front
    ]
    count = f"{len(front)} of {len(sweep.trials)} trials"
    return f"{count} are on the Pareto front ({goals}): no other is better in one metric and as good in all.\n\n" + (
        markdown_table(["trial", *(markdown(name) for name, _ in metrics), *map(markdown, parameters)], rows)
    )


def config_value(config: Mapping[str, Any], name: str) -> Any:
    """Return a value of a run's config by its name, `model_args.width`; None where it has none."""
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
