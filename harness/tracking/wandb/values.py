"""Values of records as W&B's own types. The `wandb` module is passed in, so that importing this stays cheap."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from harness.tracking.records import (
    Artifact,
    Curve,
    Histogram,
    Image,
    LayeredImage,
    PlotlyFigure,
    Scores,
    StoredImage,
    Table,
    TableChart,
    Value,
)
from harness.tracking.serialization import stored_image
from harness.tracking.wandb import rows
from harness.utils.text import dashed

MAX_IMAGES = 108  # W&B drops the rest of a longer list
# W&B's preset of each kind of chart, what the preset calls the three columns of its table, and its titles of the axes.
PRESETS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "confusion": ("wandb/confusion_matrix/v1", ("Actual", "Predicted", "nPredictions"), ()),
    "rates": ("wandb/area-under-curve/v0", ("x", "y", "class"), ("x-axis-title", "y-axis-title")),
    "lines": ("wandb/lineseries/v0", ("step", "lineVal", "lineKey"), ("xname",)),
}


def artifact_name(artifact: Artifact) -> str:
    """Return the name of an artifact with the characters that W&B accepts."""
    return dashed(artifact.name)[:128]


def to_wandb(wandb: Any, key: str, value: Value, folder: Path) -> dict[str, Any]:
    """Return what to log for one value: under its own key, or a chart and its table under keys that begin with it.

    Args:
        folder: the run directory, whose journal may have the images as files.
    """
    match value:
        case Image() | LayeredImage():
            return {key: _image(wandb, value, folder)}
        case tuple():
            parts = [value[start : start + MAX_IMAGES] for start in range(0, len(value), MAX_IMAGES)]
            return {
                key if number == 0 else f"{key}_{number + 1}": [_image(wandb, image, folder) for image in part]
                for number, part in enumerate(parts)
            }
        case Table():
            return {key: _table(wandb, value, folder)}
        case TableChart():
            return {key: _chart(wandb, value, folder)}
        case PlotlyFigure():
            return {key: _plotly(wandb, value)}
        case Curve():
            return _curve(wandb, key, value)
        case Histogram():
            return {key: wandb.Histogram(np_histogram=(list(value.counts), list(value.edges)))}
        case Scores():
            return _scores(wandb, key, value)
    return {key: value.item() if isinstance(value, np.generic) else value}


def _image(wandb: Any, image: Image | LayeredImage, folder: Path) -> Any:
    """Return W&B's image, of a file where there is one: W&B would spend a second on encoding the images of a run again."""
    masks: dict[str, Any] | None = None
    if isinstance(image, LayeredImage):
        # Of their pixels: W&B keeps no labels of a mask that it is given as a file.
        masks = {
            name: {"mask_data": mask.levels, "class_labels": dict(mask.labels)} for name, mask in image.masks.items()
        }
        image = image.image
    if isinstance(image, StoredImage):
        os.close(image.open())  # it is there, and no link
        return wandb.Image(str(image.path), caption=image.caption or None, masks=masks)
    path = stored_image(image, folder)
    return wandb.Image(str(path) if path.is_file() else image.pixels, caption=image.caption or None, masks=masks)


def _table(wandb: Any, value: Table, folder: Path) -> Any:
    cells = [[_image(wandb, cell, folder) if isinstance(cell, Image) else cell for cell in row] for row in value.rows]
    # W&B infers the types of the columns row by row, for 0.15 ms each: one row of each kind is enough.
    kinds = {tuple(map(type, row)): row for row in reversed(cells)}
    rows = list(kinds.values())
    try:
        table = wandb.Table(columns=list(value.columns), data=rows)
    except TypeError:  # a column of, say, text and numbers
        table = wandb.Table(columns=list(value.columns), data=rows, allow_mixed_types=True)
    table.data = cells
    return table


def _chart(wandb: Any, chart: TableChart, folder: Path) -> Any:
    """Return a chart of W&B's own preset, which draws the tables of several runs into one."""
    preset, fields, titles = PRESETS[chart.kind]
    columns = dict(zip(fields, chart.table.columns, strict=True))
    texts = {"title": chart.title, **dict(zip(titles, chart.table.columns, strict=False))}
    return wandb.plot_table(preset, _table(wandb, chart.table, folder), columns, texts)


def _plotly(wandb: Any, figure: PlotlyFigure) -> Any:
    """Return W&B's chart of a figure.

    Raises:
        ValueError: it is no figure of Plotly's.
    """
    from plotly.graph_objects import Figure

    return wandb.Plotly(Figure({"data": list(figure.data), "layout": figure.layout}))


def _curve(wandb: Any, key: str, curve: Curve) -> dict[str, Any]:
    columns, cells = rows.curve_rows(curve)
    stride = rows.chart_stride(curve)
    chart = wandb.plot.line_series(
        xs=[float(x) for x in curve.x[::stride]],
        ys=[[float(y) for y in line[::stride]] for line in curve.lines.values()],
        keys=list(curve.lines),
        title=rows.curve_title(curve, stride),
        xname=curve.x_name,
    )
    return {f"{key}/table": wandb.Table(columns=columns, data=cells), f"{key}/chart": chart}


def _scores(wandb: Any, key: str, scores: Scores) -> dict[str, Any]:
    """Return the confusion matrix and the precision-recall curves.

    Raises:
        ValueError: there are more classes than a chart can show.
    """
    if len(scores.classes) > rows.MAX_CHART_CLASSES:
        raise ValueError(f"its charts show {rows.MAX_CHART_CLASSES} classes at most, got {len(scores.classes)}")
    confusion = wandb.plot.confusion_matrix(
        y_true=scores.labels.tolist(),
        preds=scores.probabilities.argmax(axis=1).tolist(),
        class_names=list(scores.classes),
    )
    # Not wandb.plot.pr_curve: it needs pandas, and takes the wrong column when a class has no images.
    curves = wandb.plot_table(
        "wandb/area-under-curve/v0",
        wandb.Table(columns=["class", "recall", "precision"], data=rows.precision_recall(scores)),
        {"x": "recall", "y": "precision", "class": "class"},
        {"title": "Precision v. recall", "x-axis-title": "Recall", "y-axis-title": "Precision"},
    )
    return {f"{key}/confusion": confusion, f"{key}/pr": curves}
