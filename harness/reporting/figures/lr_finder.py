"""The figure of an LR range test: loss and accuracy over the learning rate, the chosen rates and the alternatives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.lr_finder.measure import ACCURACY, Measure
from harness.reporting.figures import style
from harness.tracking.records import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OTHERS = (style.PURPLE, style.ORANGE, style.SKY, style.SOFT, style.BLACK)


def draw_range_test(
    path: Path | str,
    *,
    seeds: Sequence[Curve],
    loss: Curve,
    acc: Curve,
    chosen: Mapping[str, float],
    others: Mapping[str, float],
    interval: tuple[float, float] | None = None,
    trials: Sequence[tuple[float, float]] = (),
    title: str = "LR range test",
    note: str = "",
    measure: Measure = ACCURACY,
) -> Path:
    """Draw a range test, PNG or SVG by the suffix of `path`.

    Args:
        seeds: for each seed a curve of its unsmoothed `loss`, drawn thin.
        loss, acc: `median`, `low` and `high` over the seeds; loss (nats) and batch accuracy, or what `measure` says (0..1).
        chosen: the suggested rates, name -> rate. others: the suggestions of other rules.
        interval: least and greatest LRMAX over the seeds.
        trials: (LRMAX, held-out accuracy) of short training runs.
        note: small print under the title.
        measure: what `acc` is, and the second number of `trials`.
    """
    if not any(math.isfinite(value) for value in loss.lines.get("median", ())):
        return style.save_figure(style.message_figure("No loss of the LR range test is finite."), path)
    figure = style.figure(9.0, 7.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for number, curve in enumerate(seeds):
        name = "loss of each seed, unsmoothed" if number == 0 else None
        upper.plot(curve.x, curve.lines["loss"], color=style.SKY, linewidth=0.7, alpha=0.6, label=name)
    _band(upper, loss, 1.0, style.BLUE, "smoothed loss, median over seeds")
    _band(lower, acc, 100.0, style.GREEN, f"{measure.name}, median over seeds")
    if trials:
        lrs, scores = zip(*sorted(trials), strict=True)
        lower.plot(
            lrs, [100 * score for score in scores], color=style.VERMILLION, marker="D", markersize=5, linewidth=1,
            linestyle=":", label=f"short training runs: held-out {measure.held_out_name} at LRMAX",
        )  # fmt: skip
    upper.set_xscale("log")
    style.style_axes(upper, y="loss (nats)", title=title)
    style.style_axes(lower, x="learning rate", y=f"{measure.short_name} (%)")
    if note:
        upper.set_title(style.drawable_text(style.shorten(note, 100)), fontsize=9, color=style.SOFT, loc="right")
    _fit(upper, loss)
    _mark_all(upper, lower, chosen, others, interval)
    handles = [handle for axes in (upper, lower) for handle in axes.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False, labelcolor=style.INK)
    return style.save_figure(figure, path)


def _band(axes: Axes, curve: Curve, scale: float, colour: str, name: str) -> None:
    """Draw the median and the range over the seeds."""
    x, low, middle, high = (
        np.asarray(part, dtype=float) for part in (curve.x, *(curve.lines[key] for key in ("low", "median", "high")))
    )
    axes.fill_between(x, scale * low, scale * high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, scale * middle, color=colour, linewidth=2, label=name)


def _mark_all(
    upper: Axes,
    lower: Axes,
    chosen: Mapping[str, float],
    others: Mapping[str, float],
    interval: tuple[float, float] | None,
) -> None:
    for axes in (upper, lower):
        if interval is not None and interval[1] > interval[0]:
            axes.axvspan(*interval, color=style.VERMILLION, alpha=0.10, linewidth=0)
        for lr in chosen.values():
            axes.axvline(lr, color=style.VERMILLION, linewidth=1.8)
    for name, lr in chosen.items():
        upper.annotate(
            style.drawable_text(f"{name} = {lr:.2g}"), (lr, 0.99), (-3, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", rotation=90, ha="right", va="top", fontsize=11, color=style.VERMILLION,
            fontweight="bold", bbox={"facecolor": style.PAPER, "edgecolor": "none", "alpha": 0.7, "pad": 1},
        )  # fmt: skip
    for number, (name, lr) in enumerate(others.items()):
        colour = _OTHERS[number % len(_OTHERS)]
        label = style.drawable_text(f"{name} {lr:.2g}")
        upper.axvline(lr, color=colour, linewidth=1, linestyle=(0, (4, 3)), label=label, zorder=1.5)


def _fit(axes: Axes, loss: Curve) -> None:
    """Limit the loss axis to the values before divergence, so that the decrease stays visible."""
    values = np.asarray(loss.lines["median"], dtype=float)
    values = values[np.isfinite(values)]
    low, start = float(values.min()), float(values[: max(1, len(values) // 10)].max())
    decrease = max(start - low, 0.1 * abs(start), 1e-3)
    axes.set_ylim(low - 0.2 * decrease, min(float(values.max()), start + 0.6 * decrease) + 0.15 * decrease)
