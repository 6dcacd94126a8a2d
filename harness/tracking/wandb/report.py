"""Build a W&B report of a run or a sweep from the keys that were logged.

The only importer of wandb-workspaces (extra: reports).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.config import yaml_io
from harness.config.names import SPLIT_NAMES
from harness.config.settings import canonical_name
from harness.tracking.wandb.api import RunFacts, SweepFacts, look_up, parse, wandb_api_errors
from harness.tracking.wandb.client import reason
from harness.utils.errors import TrackingError, UsageError
from harness.utils.text import markdown, percent

GRID_COLUMNS = 24  # of a W&B panel grid
MAX_TITLE = 128  # characters
MEDIA = ("image-file", "images/separated", "plotly-file")  # what W&B's media panel shows
# Sections of images, tables and charts, and the prefixes of their keys.
REPORT_SECTIONS = (
    ("Learning-rate range test", ("find/",)),
    (
        "Correct and misclassified images",
        ("gallery/correct", "gallery/misclassified", "predictions/correct", "predictions/misclassified"),
    ),
    ("Grad-CAM", ("gallery/gradcam", "explain/")),
    ("Classes", ("predictions/",)),
    ("More", ("",)),
)


def save_report(target: str, draft: bool = False) -> str:
    """Save a new report in W&B and return its URL.

    Args:
        target: ENTITY/PROJECT/RUN_ID, PROJECT/RUN_ID, ENTITY/PROJECT/sweeps/ID, a URL, or a run directory.
        draft: only its author sees it.

    Raises:
        UsageError: the target is invalid, or W&B has no such run or sweep.
        TrackingError: wandb-workspaces is not installed, there is no API key, or W&B is unavailable.
    """
    requested = parse(target)
    reports()
    with wandb_api_errors():
        report = build(look_up(requested))
        try:
            report.save(draft=draft)
        except ValueError as error:
            raise UsageError(f"W&B does not accept the report: {reason(error)}") from error
        return str(report.url)


def reports() -> Any:
    """Return the module `wandb_workspaces.reports.v2`.

    Raises:
        TrackingError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses deprecated features of pydantic
            import wandb_workspaces.reports.v2 as module
    except ImportError as error:
        raise TrackingError(
            f"W&B reports need wandb-workspaces ({error}); pip install 'vision-harness[reports]'"
        ) from error
    return module


def build(facts: RunFacts | SweepFacts) -> Any:
    """Return the report of a run or a sweep, not saved yet; no network."""
    wr = reports()
    if isinstance(facts, SweepFacts):
        title, blocks = f"Sweep {facts.name}", _sweep_blocks(wr, facts)
    else:
        title, blocks = f"Run {facts.name}", _run_blocks(wr, facts)
    return wr.Report(
        entity=facts.entity,
        project=facts.project,
        title=title[:MAX_TITLE],
        description=facts.url,
        blocks=blocks,
        width="fluid",
    )


def _run_blocks(wr: Any, run: RunFacts) -> list[Any]:
    runs = _runset_of(wr, run)
    return [
        wr.MarkdownBlock(text=run_headline(run)),
        wr.TableOfContents(),
        *_section(wr, "Training", [runs], _lines(wr, run.summary)),
        *_media(wr, run, runs),
        *_section(wr, "Time and memory", [runs], _machine(wr, run.summary)),
        wr.H2(text="Settings"),
        wr.CodeBlock(code=yaml_io.dump_yaml(_settings(run.config)), language="yaml"),
    ]


def _sweep_blocks(wr: Any, sweep: SweepFacts) -> list[Any]:
    runs = wr.Runset(
        name="runs of the sweep", entity=sweep.entity, project=sweep.project, filters=f"Sweep == {sweep.sweep_id!r}"
    )
    metric, best = metric_of(sweep.config)[0], sweep.best
    parameters = swept_parameters(sweep.config)
    panels = [(_line(wr, metric, [metric], "epoch"), 12, 8)] if metric else []
    if best is not None:
        panels += _lines(wr, best.summary)
    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name), log=is_log) for name, is_log in parameters.items()
    ]
    objective = wr.SummaryMetric(metric)
    comparison = [
        (wr.ParallelCoordinatesPlot(columns=[*columns, wr.ParallelCoordinatesPlotColumn(metric=objective)]), 24, 9),
        (wr.ParameterImportancePlot(with_respect_to=metric), 12, 8),
        *([(_scatter(wr, parameters, objective), 12, 8)] if len(parameters) > 1 else []),
        (wr.ScalarChart(title=metric, metric=objective), 8, 6),
        (wr.RunComparer(diff_only="split"), 24, 12),
    ]
    blocks = [
        wr.MarkdownBlock(text=sweep_headline(sweep)),
        wr.TableOfContents(),
        *_section(wr, "Parameters", [runs], comparison if metric and parameters else comparison[-1:]),
        *_section(wr, "Training", [runs], panels),
    ]
    if best is not None:
        blocks += [wr.H1(text=markdown(f"Best run: {best.name}")), *_media(wr, best, _runset_of(wr, best))]
    return [
        *blocks,
        wr.H2(text="Sweep configuration"),
        wr.CodeBlock(code=yaml_io.dump_yaml(dict(sweep.config)), language="yaml"),
    ]


def run_headline(run: RunFacts) -> str:
    """Return the run's main settings, its results and how they were chosen, as Markdown."""
    config, summary = run.config, run.summary
    settings = ", ".join(
        f"{name.replace('_', ' ')} {config[name]}"
        for name in ("model", "data", "epochs", "batch_size", "optimizer", "schedule", "seed")
        if config.get(name) not in (None, "")
    )
    rows = [f"| {key.removeprefix('result/')} | {_number(key, value)} |" for key, value in _results(summary)]
    rates = ", ".join(
        f"{name.upper().replace('_', '')} {summary[name]:.3g}"
        for name in ("lr_min", "lr_max")
        if _is_number(summary.get(name))
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
        shown = _number(metric, value) if _is_number(value) else "?"
        parameters = ", ".join(f"{name} {markdown(_config_value(sweep.best.config, name))}" for name in names)
        lines.append(f"Best: [{markdown(sweep.best.name)}]({sweep.best.url}) with {metric} {shown}: {parameters}.")
    return "\n\n".join(lines)


def metric_of(sweep: Mapping[str, Any]) -> tuple[str, str]:
    """Return the metric of a sweep's configuration and its goal; an empty metric where it has none."""
    metric = sweep.get("metric") or {}
    return str(metric.get("name", "")), str(metric.get("goal", "minimize"))


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


def _config_value(config: Mapping[str, Any], name: str) -> Any:
    """Return a value of a run's config by its name, `model_args.width`; None where it has none."""
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _runset_of(wr: Any, run: RunFacts) -> Any:
    return wr.Runset(name=run.name, entity=run.entity, project=run.project, filters=f"ID == {run.run_id!r}")


def _media(wr: Any, run: RunFacts, runs: Any) -> list[Any]:
    """Return the sections with the images, tables and charts of one run, each shown once."""
    kinds = {
        key: str(value["_type"])
        for key, value in sorted(run.summary.items())
        if isinstance(value, Mapping) and "_type" in value
    }
    left = [key for key in kinds if not _belongs_to_chart(key, run.charts)] + sorted(run.charts)
    blocks: list[Any] = []
    for title, prefixes in REPORT_SECTIONS:
        keys = [key for key in left if key.startswith(prefixes)]
        left = [key for key in left if key not in keys]
        keys.sort(key=lambda key: (kinds.get(key) == "table-file", key in run.charts, key))  # the widest last
        panels = [panel for key in keys if (panel := _panel(wr, key, kinds, run.charts)) is not None]
        blocks += _section(wr, title, [runs], panels)
    return blocks


def _belongs_to_chart(key: str, charts: Mapping[str, Any]) -> bool:
    """Return whether a table is the data of a chart, or holds the points of one."""
    return key.removesuffix("_table") in charts or re.sub(r"/table$", "/chart", key) in charts


def _panel(wr: Any, key: str, kinds: Mapping[str, str], charts: Mapping[str, Any]) -> tuple[Any, int, int] | None:
    """Return a panel for what was logged under a key, with its width and height; None for what has no panel."""
    if key in charts:
        chart = charts[key]
        fields, strings = dict(chart.get("fieldSettings") or {}), dict(chart.get("stringSettings") or {})
        table = {"summaryTable": {"tableKey": f"{key}_table"}}
        panel = wr.CustomChart(
            query=table, chart_name=str(chart.get("panelDefId", "")), chart_fields=fields, chart_strings=strings
        )
        return panel, 12, 10
    if kinds[key] in MEDIA:
        return wr.MediaBrowser(title=key, media_keys=[key], num_columns=1), 12, 12
    if kinds[key] == "table-file":
        return wr.WeavePanelSummaryTable(table_name=key), 24, 12
    return None


def _lines(wr: Any, summary: Mapping[str, Any]) -> list[tuple[Any, int, int]]:
    """Return line plots of loss and accuracy by epoch, and of what was measured by step."""
    numbers = [key for key, value in sorted(summary.items()) if _is_number(value)]
    by_epoch = {
        what: [f"{split}/{what}" for split in SPLIT_NAMES if f"{split}/{what}" in numbers] for what in ("loss", "acc")
    }
    titles = {"loss": "loss by epoch", "acc": "accuracy by epoch"}
    panels = [(_line(wr, titles[what], keys, "epoch"), 12, 8) for what, keys in by_epoch.items() if keys]
    steps = [key for key in numbers if key == "lr" or re.fullmatch(r"\w+/step_\w+", key)]
    return panels + [(_line(wr, f"{key} by step", [key], "Step", log=key == "lr"), 12, 8) for key in steps]


def _machine(wr: Any, summary: Mapping[str, Any]) -> list[tuple[Any, int, int]]:
    keys = [key for key in sorted(summary) if key.startswith(("time/", "throughput", "memory/"))]
    return [(_line(wr, key, [key], "epoch"), 8, 6) for key in keys]


def _line(wr: Any, title: str, keys: Sequence[str], x: str, log: bool = False) -> Any:
    return wr.LinePlot(title=title, x=x, y=list(keys), log_y=log or None)


def _scatter(wr: Any, parameters: Mapping[str, bool], metric: Any) -> Any:
    """Return a scatter plot of LRMIN and LRMAX, or else of the first two parameters; the metric is the colour."""
    rates = [name for name in ("lr_min", "lr_max") if name in parameters]
    x, y, *_ = [*rates, *(name for name in parameters if name not in rates)]
    return wr.ScatterPlot(
        title=f"{x} and {y}",
        x=wr.Config(x),
        y=wr.Config(y),
        z=metric,
        log_x=parameters[x] or None,
        log_y=parameters[y] or None,
    )


def _section(wr: Any, title: str, runsets: Iterable[Any], panels: Sequence[tuple[Any, int, int]]) -> list[Any]:
    """Return a heading and its panels in rows from left to right; nothing where there are no panels."""
    if not panels:
        return []
    x = y = tallest = 0
    for panel, width, height in panels:
        if x + width > GRID_COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        panel.layout.x, panel.layout.y, panel.layout.w, panel.layout.h = x, y, width, height
        x, tallest = x + width, max(tallest, height)
    return [wr.H2(text=title), wr.PanelGrid(runsets=list(runsets), panels=[panel for panel, _, _ in panels])]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings sorted by name, the long sections of data and environment last."""
    long = ("dataset", "environment")
    return {key: config[key] for key in [*sorted(set(config) - set(long)), *(key for key in long if key in config)]}


def _results(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [
        (key, value)
        for key, value in sorted(summary.items())
        if key.startswith("result/") and key != "result/epoch" and _is_number(value)
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(key: str, value: Any) -> str:
    is_fraction = bool(re.search(r"(acc|ece)(\d|_tta)?$", key)) and 0 <= value <= 1
    return percent(value, 2) if is_fraction else f"{value:.4g}"
