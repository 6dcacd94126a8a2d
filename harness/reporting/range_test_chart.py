"""The chart of an LR range test for a tracker: all seeds over a logarithmic axis, LRMIN and LRMAX marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness.lr_finder.analysis import LRCurve
from harness.lr_finder.range_test import median_curve
from harness.lr_finder.result import LRFinderResult
from harness.reporting.figures.style import GREEN, INK, ORANGE, PALETTE, SOFT, VERMILLION
from harness.reporting.html.plotly import axis, escape_text, layout, line, log_ticks, plain_numbers, thin
from harness.reporting.html.run_charts import loss_limits
from harness.tracking.records import PlotlyFigure
from harness.utils.text import counted

MAX_POINTS = 10_000  # of all lines together
LOWER, UPPER = [0.0, 0.36], [0.44, 1.0]  # parts of the height: accuracy, loss


def range_test_chart(result: LRFinderResult) -> PlotlyFigure:
    """Return loss and accuracy (or what else was measured) of each seed and their medians over the learning rate.

    What each rule suggests and the short runs are lines and points that the legend switches on and off.
    """
    loss, acc = median_curve(result.curves, "level"), median_curve(result.curves, "acc_level")
    limit = MAX_POINTS // (3 * len(result.curves) + 2)
    limits = loss_limits(loss) or [0.0, 1.0]
    data: list[dict[str, Any]] = []
    for number, curve in enumerate(result.curves):
        data += _seed_lines(curve, PALETTE[number % len(PALETTE)], limit)
    for median, name, y in ((loss, "median loss", "y"), (acc, f"median {result.measure.short_name}", "y2")):
        data.append(_line(median.x, median.lines["median"], name, INK, limit, width=3, yaxis=y))
    for rule, lr in result.estimates().items():
        data.append(_line([lr, lr], limits, f"{rule} {lr:.2g}", SOFT, limit, dash="dot", visible="legendonly"))
    if result.short_runs:
        runs = sorted((run.lr_max, run.acc) for run in result.short_runs)
        lrs, accs = zip(*runs, strict=True)
        trials = _line(
            lrs,
            accs,
            f"short runs: held-out {result.measure.held_out_name} at LRMAX",
            GREEN,
            limit,
            dash="dot",
            yaxis="y2",
        )
        data.append({**trials, "mode": "lines+markers", "marker": {"size": 8}})
    return PlotlyFigure(data, _layout(result, [float(lr) for curve in result.curves for lr in curve.lrs], limits))


def _seed_lines(curve: LRCurve, colour: str, limit: int) -> list[dict[str, Any]]:
    """Return the losses of a seed as measured and smoothed, and its smoothed accuracy; one click hides all of them."""
    lrs, group = curve.lrs[: curve.finite].tolist(), dict[str, Any](legendgroup=f"seed {curve.seed}")
    hidden = dict[str, Any](group, showlegend=False)
    return [
        _line(lrs, curve.losses[: curve.finite].tolist(), f"seed {curve.seed}, each step", colour, limit, width=0.6, opacity=0.5, **hidden),
        _line(lrs, curve.level.tolist(), f"seed {curve.seed}", colour, limit, **group),
        _line(lrs, curve.acc_level.tolist(), f"seed {curve.seed}", colour, limit, yaxis="y2", **hidden),
    ]  # fmt: skip


def _line(
    x: Sequence[float], y: Sequence[float], name: str, colour: str, limit: int, *, width: float = 1.5, **options: Any
) -> dict[str, Any]:
    return {**line(*thin(x, y, limit), name, colour, width=width, **options), "mode": "lines"}


def _layout(result: LRFinderResult, lrs: Sequence[float], limits: Sequence[float]) -> dict[str, Any]:
    marks = result.chosen()
    shapes: list[dict[str, Any]] = [
        {"type": "line", "x0": lr, "x1": lr, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": VERMILLION, "width": 2}}
        for lr in marks.values()
    ]  # fmt: skip
    if (interval := result.suggestion.interval) is not None:
        box = {"type": "rect", "x0": interval[0], "x1": interval[1], "y0": 0, "y1": 1, "yref": "paper"}
        shapes.append({**box, "fillcolor": ORANGE, "opacity": 0.12, "line": {"width": 0}, "layer": "below"})
    annotations = [
        {"x": math.log10(lr), "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False,
         "text": escape_text(f"{name} {lr:.3g}"), "font": {"color": VERMILLION}}
        for name, lr in marks.items()
    ]  # fmt: skip
    confidence = escape_text(result.suggestion.confidence)
    x = axis("learning rate", log=True, anchor="y2", **log_ticks(lrs))
    low, high = plain_numbers(limits)
    return layout(
        x,
        axis("loss (nats)", domain=UPPER, range=[low, high]),
        yaxis2=axis(result.measure.name, percent=True, domain=LOWER),
        title={
            "text": f"LR range test, {counted(len(result.curves), 'seed', 'seeds')}: {confidence}",
            "font": {"size": 14},
        },
        shapes=shapes,
        annotations=annotations,
        hovermode="closest",
        template="plotly_white",
    )
