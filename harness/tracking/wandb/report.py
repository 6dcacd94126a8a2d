"""Build a W&B report of a run, of several runs or of a sweep from the keys that were logged (extra: reports)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from harness.config import yaml_io
from harness.config.settings import canonical_name
from harness.tracking.wandb.api import RunFacts, RunsFacts, SweepFacts, look_up, metric_of, parse, wandb_api_errors
from harness.tracking.wandb.client import reason
from harness.tracking.wandb.panels import (
    grid_section,
    is_number,
    line_panel,
    line_panels,
    machine_panels,
    media_sections,
    number_text,
    report_module,
    result_numbers,
    runset_of,
    scatter_panel,
)
from harness.tracking.wandb.runs_report import runs_blocks
from harness.tracking.wandb.sweep_front import config_value, front_blocks, front_of
from harness.utils.errors import UsageError
from harness.utils.text import markdown

MAX_TITLE = 128  # characters


def save_report(*targets: str, draft: bool = False) -> str:
    """Save a new report in W&B and return its URL.

    Args:
        targets: a run or a sweep, or several runs and groups of runs, each as ENTITY/PROJECT/RUN_ID, PROJECT/RUN_ID,
            ENTITY/PROJECT/sweeps/ID, ENTITY/PROJECT/groups/NAME, a URL, or the directory of a run, of several seeds or
            of a sweep.
        draft: only its author sees it.

    Raises:
        UsageError: a target is invalid, or W&B has no such run or sweep.
        TrackingError: wandb-workspaces is not installed, there is no API key, or W&B is unavailable.
    """
    report_module()
    with wandb_api_errors():
        report = build(look_up_all(targets))
        try:
            report.save(draft=draft)
        except ValueError as error:
            raise UsageError(f"W&B does not accept the report: {reason(error)}") from error
        return str(report.url)


def look_up_all(targets: Sequence[str]) -> RunFacts | RunsFacts | SweepFacts:
    """Return what W&B has of one target, or of the runs of several; called inside `wandb_api_errors`.

    Raises:
        UsageError: a target is invalid, W&B has no such run, or a sweep is one of several targets.
    """
    known = [look_up(target) for target in map(parse, targets)]
    if len(known) == 1:
        return known[0]
    runs: dict[tuple[str, str, str], RunFacts] = {}
    for target, facts in zip(targets, known, strict=True):
        if isinstance(facts, SweepFacts):
            raise UsageError(f"{target} is a sweep, which has a report of its own; leave it out, or give it alone")
        for run in facts.runs if isinstance(facts, RunsFacts) else (facts,):
            runs[run.entity, run.project, run.run_id] = run
    names = [facts.name for facts in known]
    return RunsFacts(", ".join(names) if len(names) < 4 else f"{len(runs)} runs", tuple(runs.values()))


def build(facts: RunFacts | RunsFacts | SweepFacts) -> Any:
    """Return the report of a run, of several runs or of a sweep, not saved yet; no network."""
    wr = report_module()
    place: RunFacts | SweepFacts
    if isinstance(facts, SweepFacts):
        place, title, blocks = facts, f"Sweep {facts.name}", _sweep_blocks(wr, facts)
    elif isinstance(facts, RunsFacts):
        place, title, blocks = facts.runs[0], facts.name, [wr.TableOfContents(), *runs_blocks(wr, facts)]
    else:
        place, title, blocks = facts, f"Run {facts.name}", _run_blocks(wr, facts)
    return wr.Report(
        entity=place.entity,
        project=place.project,
        title=title[:MAX_TITLE],
        description=place.url,
        blocks=blocks,
        width="fluid",
    )


def _run_blocks(wr: Any, run: RunFacts) -> list[Any]:
    runs = runset_of(wr, run)
    return [
        wr.MarkdownBlock(text=run_headline(run)),
        wr.TableOfContents(),
        *grid_section(wr, "Training", [runs], line_panels(wr, run.summary)),
        *media_sections(wr, run, [runs]),
        *grid_section(wr, "Time and memory", [runs], machine_panels(wr, run.summary)),
        wr.H2(text="Settings"),
        wr.CodeBlock(code=yaml_io.dump_yaml(_settings(run.config)), language="yaml"),
    ]


def _sweep_blocks(wr: Any, sweep: SweepFacts) -> list[Any]:
    front = front_of(sweep.config, sweep.trials)
    if front:
        sweep = dataclasses.replace(sweep, best=front[0])  # W&B knows none where there are several metrics
    trials = f"Sweep == {sweep.sweep_id!r}" if sweep.sweep_id else f"Group == {sweep.group!r} and JobType == 'trial'"
    runs = wr.Runset(name="runs of the sweep", entity=sweep.entity, project=sweep.project, filters=trials)
    metric, best = metric_of(sweep.config)[0], sweep.best
    parameters = swept_parameters(sweep.config)
    panels = [(line_panel(wr, metric, [metric], "epoch"), 12, 8)] if metric else []
    if best is not None:
        panels += line_panels(wr, best.summary)
    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name), log=is_log) for name, is_log in parameters.items()
    ]
    objective = wr.SummaryMetric(metric)
    comparison = [
        (wr.ParallelCoordinatesPlot(columns=[*columns, wr.ParallelCoordinatesPlotColumn(metric=objective)]), 24, 9),
        (wr.ParameterImportancePlot(with_respect_to=metric), 12, 8),
        *([(scatter_panel(wr, parameters, objective), 12, 8)] if len(parameters) > 1 else []),
        (wr.ScalarChart(title=metric, metric=objective), 8, 6),
        (wr.RunComparer(diff_only="split"), 24, 12),
    ]
    blocks = [
        wr.MarkdownBlock(text=sweep_headline(sweep)),
        wr.TableOfContents(),
        *front_blocks(wr, sweep, front, runs, list(parameters)),
        *grid_section(wr, "Parameters", [runs], comparison if metric and parameters else comparison[-1:]),
        *grid_section(wr, "Training", [runs], panels),
    ]
    if best is not None:
        blocks += [wr.H1(text=markdown(f"Best run: {best.name}")), *media_sections(wr, best, [runset_of(wr, best)])]
    if sweep.finals:  # they have the galleries and Grad-CAM, which trials leave out
        blocks += [wr.H1(text="Best configuration, trained again"), *runs_blocks(wr, _finals(sweep))]
    return [
        *blocks,
        wr.H2(text="Sweep configuration"),
        wr.CodeBlock(code=yaml_io.dump_yaml(dict(sweep.config)), language="yaml"),
    ]


def _finals(sweep: SweepFacts) -> RunsFacts:
    return RunsFacts(f"Final runs of {sweep.name}", sweep.finals, sweep.group)


def run_headline(run: RunFacts) -> str:
    """Return the run's main settings, its results and how they were chosen, as Markdown."""
    config, summary = run.config, run.summary
    settings = ", ".join(
        f"{name.replace('_', ' ')} {config[name]}"
        for name in ("model", "data", "epochs", "batch_size", "optimizer", "schedule", "seed")
        if config.get(name) not in (None, "")
    )
    rows = [f"| {key.removeprefix('result/')} | {number_text(key, value)} |" for key, value in result_numbers(summary)]
    rates = ", ".join(
        f"{name.upper().replace('_', '')} {summary[name]:.3g}"
        for name in ("lr_min", "lr_max")
        if is_number(summary.get(name))
    )
    chosen, confidence = summary.get("result/chosen"), summary.get("find/sure")
    lines = [
        f"[{markdown(run.name)}]({run.url}): {markdown(settings)}. State: {run.state}.",
        *(["| metric | value |\n| --- | --- |\n" + "\n".join(rows)] if rows else ["No result yet."]),
        *([f"Result: {markdown(chosen)}, epoch {summary.get('result/epoch')}."] if chosen else []),
        *(
            [f"Learning rates: {rates}" + (f"; range test: {markdown(confidence)}." if confidence else ".")]
            if rates
            else []
        ),
    ]
    return "\n\n".join(lines)


def sweep_headline(sweep: SweepFacts) -> str:
    """Return the sweep's method, metric and parameters, and its best run, as Markdown."""
    metric, goal = metric_of(sweep.config)
    names = swept_parameters(sweep.config)
    lines = [
        f"[{markdown(sweep.name)}]({sweep.url}): {sweep.runs} runs, method {sweep.config.get('method')}, "
        f"{goal} `{metric}` over {', '.join(f'`{name}`' for name in names)}."
    ]
    if sweep.best is not None:
        value = sweep.best.summary.get(metric)
        shown = number_text(metric, value) if is_number(value) else "?"
        parameters = ", ".join(f"{name} {markdown(config_value(sweep.best.config, name))}" for name in names)
        lines.append(f"Best: [{markdown(sweep.best.name)}]({sweep.best.url}) with {metric} {shown}: {parameters}.")
    return "\n\n".join(lines)


def swept_parameters(sweep: Mapping[str, Any]) -> dict[str, bool]:
    """Return the parameters that a sweep varies, under the settings' names -> whether each has a log scale.

    A nested one is named as W&B names it, `model_args.width`.
    """
    parameters: dict[str, bool] = {}
    for key, spec in (sweep.get("parameters") or {}).items():
        try:
            name = canonical_name(key)
        except UsageError:
            name = str(key)
        if isinstance(spec, Mapping):
            parameters |= _swept(name, spec)
    return parameters


def _swept(name: str, spec: Mapping[str, Any]) -> dict[str, bool]:
    """Return what `swept_parameters` returns of one parameter and those that are nested in it."""
    if isinstance(nested := spec.get("parameters"), Mapping):
        swept: dict[str, bool] = {}
        for key, inner in nested.items():
            swept |= _swept(f"{name}.{key}", inner) if isinstance(inner, Mapping) else {}
        return swept
    if "value" in spec or len(spec.get("values", (1, 2))) < 2:
        return {}
    return {name: "log" in str(spec.get("distribution", ""))}


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings sorted by name, the long sections of data and environment last."""
    long = ("dataset", "environment")
    return {key: config[key] for key in [*sorted(set(config) - set(long)), *(key for key in long if key in config)]}
