"""The part of a W&B report that compares several runs, and groups of seeds by their mean and spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.config.settings import setting_fields
from harness.tracking.wandb.api import RunFacts, RunsFacts
from harness.tracking.wandb.panels import (
    grid_section,
    is_number,
    joined_facts,
    line_panels,
    machine_panels,
    markdown_table,
    media_sections,
    number_text,
    result_numbers,
)
from harness.utils.stats import mean_interval
from harness.utils.text import markdown

MAX_SETTINGS = 8  # columns of the table
MAX_MEDIA = 6  # runs whose images are side by side
# Settings that say where a run is and what it is called, not how it differs.
OF_THE_PLACE = ("name", "group", "tags", "notes", "job_type", "output", "resume", "recipe", "data_dir", "seed")


def runs_blocks(wr: Any, facts: RunsFacts) -> list[Any]:
    """Return the blocks of a report of several runs: table, curves, comparison, images."""
    runsets = _runsets(wr, facts.runs)
    by_group = groups_of(facts.runs)
    is_grouped = any(len(runs) > 1 for runs in by_group.values())
    joined = joined_facts(facts.runs)
    curves = _runsets(wr, facts.runs, groupby=["group"]) if is_grouped else runsets
    results = [
        (wr.BarPlot(title=key, metrics=[wr.SummaryMetric(key)], **(_spread() if is_grouped else {})), 8, 6)
        for key, _ in result_numbers(joined.summary)
    ]
    shown = facts.runs[:MAX_MEDIA]
    return [
        wr.MarkdownBlock(text=runs_headline(facts)),
        *grid_section(wr, "Results", curves, results),
        *grid_section(wr, "Training", curves, line_panels(wr, joined.summary, **_spread() if is_grouped else {})),
        *grid_section(wr, "Comparison", runsets, [(wr.RunComparer(diff_only="split"), 24, 12)]),
        *media_sections(wr, joined_facts(shown), _runsets(wr, shown)),
        *grid_section(wr, "Time and memory", curves, machine_panels(wr, joined.summary)),
    ]


def runs_headline(facts: RunsFacts) -> str:
    """Return the runs with the settings in which they differ and their results, and the mean of each group, as Markdown."""
    names = compared_settings(facts.runs)[:MAX_SETTINGS]
    metrics = [key for key, _ in result_numbers(joined_facts(facts.runs).summary)]
    rows = [
        [
            f"[{markdown(run.name)}]({run.url})",
            markdown(run.group),
            *(markdown(str(run.config.get(name, ""))) for name in ("seed", *names)),
            *(_result(run, key) for key in metrics),
        ]
        for run in facts.runs
    ]
    head = ["run", "group", "seed", *names, *(key.removeprefix("result/") for key in metrics)]
    blocks = [f"{len(facts.runs)} runs.", markdown_table(head, rows)]
    seeds = {group: runs for group, runs in groups_of(facts.runs).items() if len(runs) > 1}
    if seeds and metrics:
        means = [
            [markdown(group), str(len(runs)), *(_mean(runs, key) for key in metrics)] for group, runs in seeds.items()
        ]
        blocks += [
            "Mean and standard deviation of each group:",
            markdown_table(["group", "runs", *head[-len(metrics) :]], means),
        ]
    return "\n\n".join(blocks)


def groups_of(runs: Sequence[RunFacts]) -> dict[str, list[RunFacts]]:
    """Return the W&B groups of runs -> their runs."""
    groups: dict[str, list[RunFacts]] = {}
    for run in runs:
        if run.group:
            groups.setdefault(run.group, []).append(run)
    return groups


def compared_settings(runs: Sequence[RunFacts]) -> list[str]:
    """Return the settings, besides the seed, in which runs differ."""
    names = [name for name in setting_fields() if name not in OF_THE_PLACE]
    return [name for name in names if any(run.config.get(name) != runs[0].config.get(name) for run in runs)]


def _runsets(wr: Any, runs: Sequence[RunFacts], **options: Any) -> list[Any]:
    """Return a run set for each project that the runs are in."""
    by_project: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        by_project.setdefault((run.entity, run.project), []).append(run.run_id)
    return [
        wr.Runset(name=project, entity=entity, project=project, filters=f"ID in {ids!r}", **options)
        for (entity, project), ids in by_project.items()
    ]


def _spread() -> dict[str, str]:
    """Return what makes a panel show the mean of each group, and the standard deviation about it."""
    return {"groupby": "Group", "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}


def _result(run: RunFacts, key: str) -> str:
    value = run.summary.get(key)
    return number_text(key, value) if is_number(value) else ""


def _mean(runs: Sequence[RunFacts], key: str) -> str:
    measured = [run for run in runs if is_number(run.summary.get(key))]
    # The same seed twice is no spread; a run that names none counts by itself.
    by_seed = {run.config.get("seed", run.run_id): run.summary[key] for run in reversed(measured)}
    values = list(reversed(by_seed.values()))
    if not values:
        return ""
    interval = mean_interval(values)
    return number_text(key, interval.mean) + (f" ± {number_text(key, interval.sd)}" if interval.sd is not None else "")
