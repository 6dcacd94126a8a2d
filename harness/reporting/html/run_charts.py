"""The charts of runs: curves by epoch and by step, LR range test, confusion matrix, calibration, time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.config.names import REPORTED_SPLITS, SPLIT_LABELS
from harness.evaluation.metrics import Reliability, SavedPredictions, class_shares, confusion_matrix
from harness.lr_finder.measure import measure_of
from harness.reporting.html.plotly import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SCALE,
    SKY,
    SOFT,
    VERMILLION,
    Chart,
    axis,
    escape_text,
    layout,
    line,
    log_ticks,
    plain_numbers,
    thin,
)
from harness.reporting.html.run_data import RunData
from harness.tracking.records import Curve
from harness.utils.plain import number, sub_mapping
from harness.utils.stats import moving_average
from harness.utils.text import percent, truncate

SPLIT_STYLES = {"train": (BLUE, "dash"), "val": (GREEN, "solid"), "test": (VERMILLION, "solid")}
MAX_CLASSES, MAX_NUMBERS = 200, 12  # up to which a confusion matrix is drawn, and has numbers in its cells
MAX_NAMES = 40  # classes up to which each is named beside the matrix


def integer_ticks(epochs: Sequence[int]) -> dict[str, Any]:
    """Return options of an axis of epochs that put its ticks at integers."""
    return {"dtick": max(1, math.ceil((max(epochs, default=1) - min(epochs, default=1)) / 8))}


def by_epoch(run: RunData) -> list[Chart]:
    """Return loss, accuracy and learning rate by epoch."""
    if not run.epochs:
        return []
    if run.is_multilabel:
        return [*_multilabel_curves(run), _lr_by_epoch(run)]
    loss = _splits(run, "loss", "Loss", "cross entropy (nats)", min)
    if kind := training_loss(run.config):
        loss = replace(
            loss, caption=f"{loss.caption} The training loss is {kind}; that of the other splits is the cross entropy."
        )
    acc = _splits(run, "acc", "Accuracy", "accuracy", max)
    return [loss, acc, _lr_by_epoch(run)]


def _multilabel_curves(run: RunData) -> list[Chart]:
    """Return loss, mAP, macro F1 and exact matches by epoch, of images with several labels."""
    loss = _splits(run, "loss", "Loss", "binary cross entropy (nats)", min)
    if text := multilabel_training_loss(run.config):
        caption = (
            f"{loss.caption} The training loss is {text}; that of the other splits is the plain sum over the classes."
        )
        loss = replace(loss, caption=caption)
    return [
        loss,
        _splits(run, "map", "Mean average precision", "mAP", max),
        _splits(run, "f1_macro", "Macro F1", "F1", max),
        _splits(run, "exact_match", "Images of which every class is predicted correctly", "exact match", max),
    ]


def multilabel_training_loss(config: Mapping[str, Any]) -> str:
    """Return what a run on images with several labels trains with in place of the plain sum over the classes; empty for that."""
    arguments = sub_mapping(config, "loss_args")
    is_weighted = config.get("class_weights") or "pos_weight" in arguments
    changes = [*(["weights"] if is_weighted else []), *_softened(config)]
    name = "the binary cross entropy" if arguments.get("sum_classes", True) else "the mean over the classes"
    return f"{name} with {' and '.join(changes)}" if changes else name * (not arguments.get("sum_classes", True))


def _softened(config: Mapping[str, Any]) -> list[str]:
    """Return what makes the targets of training others than the labels."""
    smoothing, mixing = number(config.get("label_smoothing")), ("mixup", "cutmix")
    return [
        *([f"label smoothing {smoothing:g}"] if smoothing > 0 else []),
        *(["mixed images"] if any(number(config.get(name)) > 0 for name in mixing) else []),
    ]


def _lr_by_epoch(run: RunData) -> Chart:
    """Return the learning rate at the end of each epoch."""
    x, lrs = run.line("lr")
    caption = f"At the end of each epoch, from {lrs[0]:.3g} to {lrs[-1]:.3g}." if lrs else "Not recorded."
    return Chart(
        "epoch-lr",
        "Learning rate",
        caption,
        [line(x, lrs, "learning rate", PURPLE, showlegend=False)],
        layout(axis("epoch", **integer_ticks(x)), axis("learning rate", rangemode="tozero")),
        260,
        has_log_switch=True,
    )


def training_loss(config: Mapping[str, Any]) -> str:
    """Return what a run trains with in place of the cross entropy of all images alike, by its settings; empty for that."""
    names = {
        "bce": "the binary cross entropy",
        "focal": "the focal loss",
        "jsd": "the cross entropy of the first views and the divergence between views",
    }
    changes = [*(["weights of the classes"] if config.get("class_weights") else []), *_softened(config)]
    name, loss = "the cross entropy" if changes else "", config.get("loss")
    if loss not in (None, "cross_entropy"):
        name = names.get(str(loss), f"the loss {loss}")
    return f"{name} with {' and '.join(changes)}" if changes else name


def _splits(run: RunData, metric: str, title: str, y: str, pick: Callable[..., Any]) -> Chart:
    data, parts = [], []
    epochs: list[int] = []
    lines = [(f"{split}/{metric}", SPLIT_LABELS[split], *SPLIT_STYLES[split]) for split in SPLIT_STYLES]
    lines += [
        (f"{split}/{metric}_plain", f"{SPLIT_LABELS[split]} without EMA", SPLIT_STYLES[split][0], "dot")
        for split in REPORTED_SPLITS
    ]
    for key, name, colour, dash in lines:
        x, values = run.line(key)
        known = [(value, epoch) for epoch, value in zip(x, values, strict=True) if math.isfinite(value)]
        if not known:
            continue
        epochs += x
        data.append(line(x, values, name, colour, dash=dash))
        best, epoch = pick(known, key=lambda pair: pair[0])
        show = percent if metric != "loss" else lambda value: f"{value:.4g}"
        parts.append(f"{name}: last {show(known[-1][0])}, best {show(best)} (epoch {epoch})")
    text = "; ".join(parts) or "not recorded"
    return Chart(
        f"epoch-{metric}", title, f"{text[0].upper()}{text[1:]}.", data,
        layout(axis("epoch", **integer_ticks(epochs)), axis(y, percent=metric != "loss")), has_log_switch=metric == "loss",
    )  # fmt: skip


def by_step(run: RunData) -> list[Chart]:
    """Return training loss and learning rate by step."""
    charts = []
    x, losses = run.steps("train/step_loss")
    if x:
        raw, smoothed = thin(x, losses), thin(x, moving_average(losses, 0.9, skip_non_finite=True))
        data = [
            {**line(*raw, "each step", SKY, width=1), "mode": "lines"},
            {**line(*smoothed, "smoothed", BLUE), "mode": "lines"},
        ]
        caption = f"Loss of each of {len(x):,} batches, and its exponential moving average (about 10 steps)."
        if kind := training_loss(run.config):
            caption += f" It is {kind}."
        charts.append(
            Chart(
                "step-loss",
                "Training loss",
                caption,
                data,
                layout(axis("step (optimizer updates)"), axis("loss (nats)")),
                has_log_switch=True,
            )
        )
    x, lrs = run.steps("lr")
    if x:
        low, high = min(lrs), max(lrs)
        peak = int(x[lrs.index(high)])
        caption = f"From {low:.3g} to {high:.3g}; highest at step {peak:,} of {int(x[-1]):,}."
        data = [{**line(*thin(x, lrs), "learning rate", PURPLE, showlegend=False), "mode": "lines"}]
        charts.append(
            Chart(
                "step-lr", "Learning rate", caption, data,
                layout(axis("step (optimizer updates)"), axis("learning rate", rangemode="tozero")), 260,
                has_log_switch=True,
            )
        )  # fmt: skip
    return charts


def range_test_charts(run: RunData) -> list[Chart]:
    """Return loss and accuracy over the learning rate, with the chosen rates marked."""
    charts, measure = [], measure_of(run.is_multilabel)
    for key, title, y, colour in (
        ("loss", "Loss over the learning rate", "smoothed loss (nats)", BLUE),
        (measure.key, f"B{measure.name[1:]} over the learning rate", measure.short_name, GREEN),
    ):
        curve = run.value(f"find/{key}")
        if not isinstance(curve, Curve) or not len(curve.x):
            continue
        chosen = {name: lr for name, lr in curve.marks.items() if name in ("LRMIN", "LRMAX")}
        rates = ", ".join(f"{name} {lr:.3g}" for name, lr in chosen.items()) or "No learning rate was chosen"
        marks = {"shapes": _vertical_lines(chosen), "annotations": _names(chosen)}
        scale = axis("learning rate", log=True, **log_ticks(curve.x))
        limits: dict[str, Any] = {"range": loss_limits(curve)} if key == "loss" and loss_limits(curve) else {}
        charts.append(
            Chart(
                f"find-{key}", title, f"Median over the seeds, and their range. {rates}.", _band(curve, colour),
                layout(scale, axis(y, percent=key == measure.key, **limits), **marks),
            )
        )  # fmt: skip
    return charts


def _band(curve: Curve, colour: str) -> list[dict]:
    """Return the median and the range over the seeds."""
    edge = {"type": "scatter", "mode": "lines", "x": plain_numbers(curve.x), "line": {"width": 0, "color": colour}}
    data: list[dict] = []
    if "low" in curve.lines and "high" in curve.lines:
        hidden = {"hoverinfo": "skip", "showlegend": False}
        data.append({**edge, "y": plain_numbers(curve.lines["low"]), **hidden})
        data.append(
            {**edge, "y": plain_numbers(curve.lines["high"]), "fill": "tonexty", "name": "range over the seeds", "hoverinfo": "skip", "opacity": 0.5}
        )  # fmt: skip
    for name, values in curve.lines.items():
        if name not in ("low", "high"):
            data.append({**line(curve.x, values, name, colour), "mode": "lines"})
    return data


def loss_limits(curve: Curve) -> list[float] | None:
    """Return limits of the loss before it diverges, so that its decrease stays visible."""
    values = [value for value in curve.lines.get("median", ()) if math.isfinite(value)]
    if not values:
        return None
    low, start = min(values), max(values[: max(1, len(values) // 10)])
    decrease = max(start - low, 0.1 * abs(start), 1e-3)
    return [low - 0.2 * decrease, min(max(values), start + 0.6 * decrease) + 0.15 * decrease]


def _vertical_lines(marks: Mapping[str, float]) -> list[dict]:
    return [
        {"type": "line", "x0": lr, "x1": lr, "y0": 0, "y1": 1, "yref": "paper",
         "line": {"color": VERMILLION, "width": 2, "dash": "dash"}}
        for lr in marks.values()
    ]  # fmt: skip


def _names(marks: Mapping[str, float]) -> list[dict]:
    return [
        {"x": math.log10(lr), "y": 1, "yref": "paper", "yanchor": "top", "xanchor": "right", "showarrow": False,
         "text": escape_text(f"{name} {lr:.2g}"), "textangle": -90, "font": {"color": VERMILLION}}
        for name, lr in marks.items() if lr > 0
    ]  # fmt: skip


def confusion(predictions: SavedPredictions) -> Chart | None:
    """Return the confusion matrix; None for more classes than labels fit."""
    size = len(predictions.classes)
    if size > MAX_CLASSES:
        return None
    matrix = confusion_matrix(predictions)
    shares = class_shares(matrix).tolist()
    names = [escape_text(truncate(name, 22)) for name in predictions.classes]
    indices = list(range(size))
    heat = {
        "type": "heatmap", "x": indices, "y": indices, "z": [plain_numbers(row) for row in shares], "colorscale": SCALE, "zmin": 0, "zmax": 1,
        "customdata": [[[names[row], names[column], int(matrix[row, column])] for column in indices] for row in indices],
        "hovertemplate": "%{customdata[0]}<br>predicted as %{customdata[1]}<br>%{customdata[2]} images, %{z:.1%}<extra></extra>",
        "xgap": 1, "ygap": 1, "showscale": size > MAX_NUMBERS, "colorbar": {"tickformat": ".0%", "title": {"text": "fraction"}},
    }  # fmt: skip
    if size <= MAX_NUMBERS:
        heat |= {"text": matrix.tolist(), "texttemplate": "%{text}"}
    numbers = "; the number counts images" if size <= MAX_NUMBERS else ""
    caption = (
        f"{int(matrix.trace()):,} of {int(matrix.sum()):,} images are correctly classified (the diagonal). "
        f"The colour is the fraction of the true class{numbers}."
    )
    return Chart("confusion", "Confusion matrix", caption, [heat], layout(*class_axes(names)), *class_chart_size(size))


def class_axes(names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the axes of predicted and of true classes; the names of more than 40 would touch, and are left out."""
    size = len(names)
    ticks: dict[str, Any] = {"showticklabels": False}
    if size <= MAX_NAMES:
        font = {"tickfont": {"size": 10}} if size > MAX_NUMBERS else {}
        ticks = {"tickmode": "array", "tickvals": list(range(size)), "ticktext": list(names), **font}
    grid: dict[str, Any] = {"showgrid": False, "zeroline": False, **ticks}
    x = axis("predicted class", **grid, tickangle=-45 if size <= MAX_NUMBERS else -90)
    return x, axis("true class", **grid, autorange="reversed")


def class_chart_size(size: int) -> tuple[int, int]:
    """Return height and least width of a chart of class by class, in pixels: a row for each name that is shown."""
    if size > MAX_NAMES:
        return 680, 0
    return max(360, 230 + (34 if size <= MAX_NUMBERS else 16) * size), 180 + (26 if size <= MAX_NUMBERS else 15) * size


def calibration(measured: Reliability) -> Chart:
    """Return a reliability diagram: accuracy by confidence, and the number of images in each bin."""
    bins = measured.bins
    middles = [(each.low + each.high) / 2 for each in bins]
    width = bins[0].high - bins[0].low if bins else 1.0
    hover = [[each.images, each.confidence] for each in bins]
    data: list[dict[str, Any]] = [
        {
            "type": "bar", "x": plain_numbers(middles), "y": plain_numbers([each.accuracy for each in bins]), "width": width * 0.92,
            "name": "accuracy", "marker": {"color": BLUE}, "customdata": hover,
            "hovertemplate": "confidence %{customdata[1]:.1%}<br>accuracy %{y:.1%}<br>%{customdata[0]} images<extra></extra>",
        },
        {
            "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "name": "perfectly calibrated",
            "line": {"color": INK, "dash": "dash", "width": 1.5}, "hoverinfo": "skip",
        },
        {
            "type": "bar", "x": plain_numbers(middles), "y": [each.images for each in bins], "width": width * 0.92,
            "name": "images", "marker": {"color": SOFT}, "yaxis": "y2", "showlegend": False,
            "hovertemplate": "%{y} images<extra></extra>",
        },
    ]  # fmt: skip
    images = max(sum(each.images for each in bins), 1)
    confidence = sum(each.images * each.confidence for each in bins) / images
    accuracy = sum(each.images * each.accuracy for each in bins) / images
    direction = "overconfident" if confidence > accuracy else "underconfident"
    caption = (
        f"Mean confidence {percent(confidence)}, accuracy {percent(accuracy)}: {direction} by "
        f"{100 * abs(confidence - accuracy):.1f} percentage points on average. Expected calibration error (ECE): "
        f"{100 * measured.ece:.1f} %. Below: number of images per bin."
    )
    return Chart(
        "calibration",
        "Reliability diagram",
        caption,
        data,
        layout(
            axis("confidence", percent=True, range=[0, 1], anchor="y2"),
            axis("accuracy", percent=True, range=[0, 1], domain=[0.32, 1]),
            yaxis2=axis("images", domain=[0, 0.22], nticks=3),
        ),
        420,
    )


def time(parts: Mapping[str, float]) -> Chart:
    """Return the seconds of each phase of a run in one bar."""
    colours = (BLUE, GREEN, SOFT, ORANGE, PURPLE)
    total = sum(parts.values()) or 1.0
    data = [
        {"type": "bar", "orientation": "h", "y": [""], "x": plain_numbers([seconds]), "name": escape_text(name), "marker": {"color": colour},
         "hovertemplate": f"{escape_text(name)}: %{{x:.1f}} s ({percent(seconds / total, 0)})<extra></extra>"}
        for (name, seconds), colour in zip(parts.items(), colours, strict=False)
    ]  # fmt: skip
    longest = max(parts, key=lambda name: parts[name])
    caption = f"{total:.1f} s in total, most of it {longest} ({percent(parts[longest] / total, 0)})."
    return Chart(
        "time",
        "Time by phase",
        caption,
        data,
        layout(
            axis("seconds"),
            axis(),
            barmode="stack",
            legend={
                "traceorder": "normal",
                "orientation": "h",
                "yref": "container",
                "y": 0,
                "yanchor": "bottom",
                "x": 0,
            },
        ),
        200,
    )
