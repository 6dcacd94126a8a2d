"""The charts of runs: curves by epoch and by step, range test, confusion, calibration, time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.evaluation.metrics import Reliability, SavedPredictions, confusion_matrix
from harness.reporting.html.groups import RunGroup
from harness.reporting.html.plotly import (
    BLUE,
    DASHES,
    GREEN,
    INK,
    ORANGE,
    PALETTE,
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
    plain,
    thin,
)
from harness.reporting.html.run_data import RunData
from harness.tracking.records import Curve
from harness.utils.stats import moving_average
from harness.utils.text import percent, truncate

LOOKS = {"train": (BLUE, "dash"), "val": (GREEN, "solid"), "test": (VERMILLION, "solid")}
NAMES = {"train": "training", "val": "validation", "test": "test"}
MOST_CLASSES, MOST_NUMBERS = 200, 12  # of a confusion matrix: drawn at all, with its numbers in the cells


def whole(epochs: Sequence[int]) -> dict[str, Any]:
    """Whole epochs at the ticks of an axis."""
    return {"dtick": max(1, math.ceil((max(epochs, default=1) - min(epochs, default=1)) / 8))}


def by_epoch(run: RunData) -> list[Chart]:
    """Loss, accuracy and learning rate of every epoch."""
    if not run.epochs:
        return []
    loss = _splits(run, "loss", "Loss", "cross entropy (nats)", min)
    acc = _splits(run, "acc", "Accuracy", "images classified rightly", max)
    x, rates = run.line("lr")
    says = f"At the end of each epoch, from {rates[0]:.3g} to {rates[-1]:.3g}." if rates else "Not recorded."
    rate = Chart(
        "epoch-lr",
        "Learning rate",
        says,
        [line(x, rates, "learning rate", PURPLE, showlegend=False)],
        layout(axis("epoch", **whole(x)), axis("learning rate", rangemode="tozero")),
        260,
    )
    return [loss, acc, rate]


def _splits(run: RunData, what: str, title: str, y: str, pick: Callable[..., Any]) -> Chart:
    data, told = [], []
    x: list[int] = []
    for split, (colour, dash) in LOOKS.items():
        x, values = run.line(f"{split}/{what}")
        known = [(value, epoch) for epoch, value in zip(x, values, strict=True) if math.isfinite(value)]
        if not known:
            continue
        data.append(line(x, values, NAMES[split], colour, dash=dash))
        best, epoch = pick(known, key=lambda pair: pair[0])
        show = percent if what == "acc" else lambda value: f"{value:.4g}"
        told.append(f"{NAMES[split]} {show(known[-1][0])} at the end, best {show(best)} in epoch {epoch}")
    says = "; ".join(told).capitalize() + "." if told else "Nothing was recorded."
    return Chart(f"epoch-{what}", title, says, data, layout(axis("epoch", **whole(x)), axis(y, percent=what == "acc")))


def by_step(run: RunData) -> list[Chart]:
    """Training loss and learning rate of every step."""
    charts = []
    x, losses = run.steps("train/step_loss")
    if x:
        raw, smoothed = thin(x, losses), thin(x, moving_average(losses, 0.9, skip_non_finite=True))
        data = [
            {**line(*raw, "each step", SKY, width=1), "mode": "lines"},
            {**line(*smoothed, "smoothed", BLUE), "mode": "lines"},
        ]
        says = f"The loss of each of {len(x):,} batches, and its moving average (about 10 steps)."
        charts.append(
            Chart(
                "step-loss", "Training loss", says, data, layout(axis("step (optimizer updates)"), axis("loss (nats)"))
            )
        )
    x, rates = run.steps("lr")
    if x:
        low, high = min(rates), max(rates)
        peak = int(x[rates.index(high)])
        says = f"Between {low:.3g} and {high:.3g}; highest at step {peak:,} of {int(x[-1]):,}."
        data = [{**line(*thin(x, rates), "learning rate", PURPLE, showlegend=False), "mode": "lines"}]
        charts.append(
            Chart(
                "step-lr", "Learning rate", says, data,
                layout(axis("step (optimizer updates)"), axis("learning rate", rangemode="tozero")), 260,
            )
        )  # fmt: skip
    return charts


def range_test(run: RunData) -> list[Chart]:
    """Loss and accuracy over the learning rate, with the chosen rates marked."""
    charts = []
    for key, title, y, colour in (
        ("loss", "Loss over the learning rate", "smoothed loss (nats)", BLUE),
        ("acc", "Batch accuracy over the learning rate", "images classified rightly", GREEN),
    ):
        curve = run.value(f"find/{key}")
        if not isinstance(curve, Curve) or not len(curve.x):
            continue
        chosen = {name: place for name, place in curve.marks.items() if name in ("LRMIN", "LRMAX")}
        says = "; ".join(f"{name} {place:.3g}" for name, place in chosen.items()) or "No rate was chosen"
        more = {"shapes": _uprights(chosen), "annotations": _names(chosen)}
        scale = axis("learning rate", log=True, **log_ticks(curve.x))
        limits: dict[str, Any] = {"range": _fall(curve)} if key == "loss" and _fall(curve) else {}
        charts.append(
            Chart(
                f"find-{key}", title, f"Median over the seeds and their range. {says}.", _band(curve, colour),
                layout(scale, axis(y, percent=key == "acc", **limits), **more),
            )
        )  # fmt: skip
    return charts


def _band(curve: Curve, colour: str) -> list[dict]:
    edge = {"type": "scatter", "mode": "lines", "x": plain(curve.x), "line": {"width": 0, "color": colour}}
    data: list[dict] = []
    if "low" in curve.lines and "high" in curve.lines:
        hidden = {"hoverinfo": "skip", "showlegend": False}
        data.append({**edge, "y": plain(curve.lines["low"]), **hidden})
        data.append(
            {**edge, "y": plain(curve.lines["high"]), "fill": "tonexty", "name": "range over the seeds", "hoverinfo": "skip", "opacity": 0.5}
        )  # fmt: skip
    for name, values in curve.lines.items():
        if name not in ("low", "high"):
            data.append({**line(curve.x, values, name, colour), "mode": "lines"})
    return data


def _fall(curve: Curve) -> list[float] | None:
    """Limits of the loss before it explodes, so that its fall stays to be seen."""
    values = [value for value in curve.lines.get("median", ()) if math.isfinite(value)]
    if not values:
        return None
    low, start = min(values), max(values[: max(1, len(values) // 10)])
    fall = max(start - low, 0.1 * abs(start), 1e-3)
    return [low - 0.2 * fall, min(max(values), start + 0.6 * fall) + 0.15 * fall]


def _uprights(marks: Mapping[str, float]) -> list[dict]:
    return [
        {"type": "line", "x0": place, "x1": place, "y0": 0, "y1": 1, "yref": "paper",
         "line": {"color": VERMILLION, "width": 2, "dash": "dash"}}
        for place in marks.values()
    ]  # fmt: skip


def _names(marks: Mapping[str, float]) -> list[dict]:
    return [
        {"x": math.log10(place), "y": 1, "yref": "paper", "yanchor": "top", "xanchor": "right", "showarrow": False,
         "text": escape_text(f"{name} {place:.2g}"), "textangle": -90, "font": {"color": VERMILLION}}
        for name, place in marks.items() if place > 0
    ]  # fmt: skip


def confusion(said: SavedPredictions) -> Chart | None:
    """How many images of each class were given each class; None for more classes than can be seen."""
    size = len(said.classes)
    if size > MOST_CLASSES:
        return None
    matrix = confusion_matrix(said)
    own = matrix.sum(1, keepdims=True)
    shares = (matrix / own.clip(min=1)).tolist()
    names = [escape_text(truncate(name, 22)) for name in said.classes]
    places = list(range(size))
    ticks: dict[str, Any] = (
        {"tickmode": "array", "tickvals": places, "ticktext": names} if size <= 40 else {"showticklabels": False}
    )
    heat = {
        "type": "heatmap", "x": places, "y": places, "z": [plain(row) for row in shares], "colorscale": SCALE, "zmin": 0, "zmax": 1,
        "customdata": [[[names[row], names[column], int(matrix[row, column])] for column in places] for row in places],
        "hovertemplate": "truth %{customdata[0]}<br>prediction %{customdata[1]}<br>%{customdata[2]} images, %{z:.1%}<extra></extra>",
        "xgap": 1, "ygap": 1, "showscale": size > MOST_NUMBERS, "colorbar": {"tickformat": ".0%", "title": {"text": "share"}},
    }  # fmt: skip
    if size <= MOST_NUMBERS:
        heat |= {"text": matrix.tolist(), "texttemplate": "%{text}"}
    right = int(matrix.trace())
    says = (
        f"{right:,} of {int(matrix.sum()):,} images are on the diagonal. Rows are the truth, columns the prediction; the colour is "
        "the share of the row" + (", the number counts images." if size <= MOST_NUMBERS else ".")
    )
    grid: dict[str, Any] = {"showgrid": False, "zeroline": False, **ticks}
    return Chart(
        "confusion",
        "Confusion matrix",
        says,
        [heat],
        layout(axis("prediction", **grid, tickangle=-45), axis("truth", **grid, autorange="reversed")),
        max(360, min(680, 220 + 34 * size)),
    )


def calibration(measured: Reliability) -> Chart:
    """Share right over confidence, and how many images have it."""
    bins = measured.bins
    middles = [(each.low + each.high) / 2 for each in bins]
    width = bins[0].high - bins[0].low if bins else 1.0
    about = [[each.images, each.confidence] for each in bins]
    data: list[dict[str, Any]] = [
        {
            "type": "bar", "x": plain(middles), "y": plain([each.accuracy for each in bins]), "width": width * 0.92,
            "name": "share right", "marker": {"color": BLUE}, "customdata": about,
            "hovertemplate": "confidence %{customdata[1]:.1%}<br>right %{y:.1%}<br>%{customdata[0]} images<extra></extra>",
        },
        {
            "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "name": "as right as sure",
            "line": {"color": INK, "dash": "dash", "width": 1.5}, "hoverinfo": "skip",
        },
        {
            "type": "bar", "x": plain(middles), "y": [each.images for each in bins], "width": width * 0.92,
            "name": "images", "marker": {"color": SOFT}, "yaxis": "y2", "showlegend": False,
            "hovertemplate": "%{y} images<extra></extra>",
        },
    ]  # fmt: skip
    sure = sum(each.images * each.confidence for each in bins) / max(sum(each.images for each in bins), 1)
    right = sum(each.images * each.accuracy for each in bins) / max(sum(each.images for each in bins), 1)
    too = "too sure" if sure > right else "not sure enough"
    says = (
        f"It says {percent(sure)} on average and is right in {percent(right)}: {too} by {100 * abs(sure - right):.1f} points on the "
        f"whole, off by {100 * measured.ece:.1f} points bin by bin (ECE). Below: how many images have such a confidence."
    )
    return Chart(
        "calibration",
        "Calibration",
        says,
        data,
        layout(
            axis("confidence", percent=True, range=[0, 1], anchor="y2"),
            axis("share right", percent=True, range=[0, 1], domain=[0.32, 1]),
            yaxis2=axis("images", domain=[0, 0.22], nticks=3),
        ),
        420,
    )


def time(parts: Mapping[str, float]) -> Chart:
    """Seconds of each part of the run in one bar."""
    colours = (BLUE, GREEN, SOFT, ORANGE, PURPLE)
    whole = sum(parts.values()) or 1.0
    data = [
        {"type": "bar", "orientation": "h", "y": [""], "x": plain([seconds]), "name": escape_text(name), "marker": {"color": colour},
         "hovertemplate": f"{escape_text(name)}: %{{x:.1f}} s ({percent(seconds / whole, 0)})<extra></extra>"}
        for (name, seconds), colour in zip(parts.items(), colours, strict=False)
    ]  # fmt: skip
    first = max(parts, key=lambda name: parts[name])
    says = f"{whole:.1f} s in all, most of it {first} ({percent(parts[first] / whole, 0)})."
    return Chart(
        "time",
        "Time by part",
        says,
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


def overlaid(groups: Sequence[RunGroup]) -> list[Chart]:
    """Accuracy, losses and learning rate of several runs; one colour a group, one dash a seed."""
    runs = [run for group in groups for run in group.runs]
    splits = {run.watched for run in runs}
    wanted = [
        *((f"{split}/{what}", f"{NAMES[split].capitalize()} {title}", y, what == "acc")
          for what, title, y in (("acc", "accuracy", "images classified rightly"), ("loss", "loss", "loss (nats)"))
          for split in ("val", "test") if split in splits),
        ("train/loss", "Training loss", "loss (nats)", False),
        ("lr", "Learning rate", "learning rate", False),
    ]  # fmt: skip
    charts = []
    for key, title, y, share in wanted:
        data = []
        x: list[int] = []
        for number, group in enumerate(groups):
            for place, run in enumerate(group.runs):
                x, values = run.line(key)
                dash = DASHES[place % len(DASHES)]
                if x:
                    data.append(line(x, values, run.name, PALETTE[number % len(PALETTE)], dash=dash))
        if data:
            says = f"{len(data)} of {len(runs)} runs by epoch; one colour for runs that differ in nothing but the seed."
            charts.append(
                Chart(
                    f"all-{key.replace('/', '-')}", title, says, data,
                    layout(axis("epoch", **whole(x)), axis(y, percent=share), showlegend=len(runs) <= 20), 360,
                )
            )  # fmt: skip
    return charts
