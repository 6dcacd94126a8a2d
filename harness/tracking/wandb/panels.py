"""Panels of W&B reports and workspaces, from the keys that runs logged."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.config.names import SPLIT_NAMES
from harness.tracking.wandb.api import RunFacts
from harness.utils.errors import TrackingError
from harness.utils.text import percent

GRID_COLUMNS = 24  # of a W&B panel grid
MEDIA = ("image-file", "images/separated", "plotly-file")  # what W&B's media panel shows
# Sections of images, tables and charts, and the prefixes of their keys.
REPORT_SECTIONS = (
    ("Learning-rate range test", ("find/",)),
    ("Training images as augmented", ("gallery/augmented",)),
    (
        "Correct and misclassified images",
        ("gallery/correct", "gallery/misclassified", "predictions/correct", "predictions/misclassified"),
    ),
    ("Grad-CAM", ("gallery/gradcam", "explain/")),
    ("Classes", ("predictions/",)),
    ("More", ("",)),
)


def report_module() -> Any:
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


def runset_of(wr: Any, run: RunFacts) -> Any:
    return wr.Runset(name=run.name, entity=run.entity, project=run.project, filters=f"ID == {run.run_id!r}")


def media_sections(wr: Any, run: RunFacts, runsets: Sequence[Any]) -> list[Any]:
    """Return the sections of a report with the images, tables and charts of a run, each shown once."""
    return [block for title, panels in media_panels(wr, run) for block in grid_section(wr, title, runsets, panels)]


def media_panels(wr: Any, run: RunFacts) -> list[tuple[str, list[tuple[Any, int, int]]]]:
    """Return (title, panels with width and height) of the images, tables and charts of a run, each shown once."""
    kinds = {
        key: str(value["_type"])
        for key, value in sorted(run.summary.items())
        if isinstance(value, Mapping) and "_type" in value
    }
    left = [key for key in kinds if not _belongs_to_chart(key, run.charts)] + sorted(run.charts)
    sections: list[tuple[str, list[tuple[Any, int, int]]]] = []
    for title, prefixes in REPORT_SECTIONS:
        keys = [key for key in left if key.startswith(prefixes)]
        left = [key for key in left if key not in keys]
        keys.sort(key=lambda key: (kinds.get(key) == "table-file", key in run.charts, key))  # the widest last
        panels = [panel for key in keys if (panel := _panel(wr, key, kinds, run.charts)) is not None]
        sections += [(title, panels)] if panels else []
    return sections


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


def line_panels(wr: Any, summary: Mapping[str, Any], **options: Any) -> list[tuple[Any, int, int]]:
    """Return line plots of loss and accuracy by epoch, and of what was measured by step.

    Args:
        options: of each plot, such as the grouping of its runs.
    """
    numbers = [key for key, value in sorted(summary.items()) if is_number(value)]
    by_epoch = {
        what: [f"{split}/{what}" for split in SPLIT_NAMES if f"{split}/{what}" in numbers]
        for what in ("loss", "acc", "map")
    }
    titles = {"loss": "loss by epoch", "acc": "accuracy by epoch", "map": "mAP by epoch"}
    panels = [
        (line_panel(wr, titles[what], keys, "epoch", **options), 12, 8) for what, keys in by_epoch.items() if keys
    ]
    steps = [key for key in numbers if key == "lr" or re.fullmatch(r"\w+/step_\w+", key)]
    return panels + [
        (line_panel(wr, f"{key} by step", [key], "Step", log=key == "lr", **options), 12, 8) for key in steps
    ]


def machine_panels(wr: Any, summary: Mapping[str, Any]) -> list[tuple[Any, int, int]]:
    keys = [key for key in sorted(summary) if key.startswith(("time/", "throughput", "memory/"))]
    return [(line_panel(wr, key, [key], "epoch"), 8, 6) for key in keys]


def line_panel(wr: Any, title: str, keys: Sequence[str], x: str, log: bool = False, **options: Any) -> Any:
    return wr.LinePlot(title=title, x=x, y=list(keys), log_y=log or None, **options)


def scatter_panel(wr: Any, parameters: Mapping[str, bool], metric: Any) -> Any:
    """Return a scatter plot of LRMIN and LRMAX, or else of the first two parameters; the metric is the colour."""
    rates = [name for name in ("lr_min", "lr_min_ratio", "lr_max") if name in parameters]
    x, y, *_ = [*rates, *(name for name in parameters if name not in rates)]
    return wr.ScatterPlot(
        title=f"{x} and {y}",
        x=wr.Config(x),
        y=wr.Config(y),
        z=metric,
        log_x=parameters[x] or None,
        log_y=parameters[y] or None,
    )


def grid_section(wr: Any, title: str, runsets: Iterable[Any], panels: Sequence[tuple[Any, int, int]]) -> list[Any]:
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


def result_numbers(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return (key, value) of the metrics of a run's result."""
    return [
        (key, value)
        for key, value in sorted(summary.items())
        if key.startswith("result/") and key != "result/epoch" and is_number(value)
    ]


def joined_facts(runs: Sequence[RunFacts]) -> RunFacts:
    """Return a run that logged what any of these did; the first is the one that it is named after."""
    summary: dict[str, Any] = {}
    charts: dict[str, Any] = {}
    for run in reversed(runs):
        summary |= run.summary
        charts |= run.charts
    return dataclasses.replace(runs[0], summary=summary, charts=charts)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number_text(key: str, value: Any) -> str:
    is_fraction = bool(re.search(r"((acc|ece)(\d|_tta)?|\b(map|exact_match))$", key)) and 0 <= value <= 1
    return percent(value, 2) if is_fraction else f"{value:.4g}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
