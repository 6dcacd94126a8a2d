"""Pictures of a model's answers as a whole: the confusion matrix and the reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.evaluation.metrics import Reliability
from harness.reporting.figures import style
from harness.utils.text import percent, truncate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.ticker import Locator

_NUMBERS_UP_TO, _NAMES_UP_TO = 20, 60


def confusion_figure(
    matrix: np.ndarray, classes: Sequence[str], path: Path | str, *, title: str = "Confusion matrix"
) -> Path:
    """The picture of a confusion matrix: of the images of a class (row), the share given each class (column).

    The share colours a cell; up to 20 classes the number of images is written in it; up to 60 every class is named.
    """
    count = len(classes)
    if not matrix.sum():
        return style.save(style.message_figure("No predictions: there is no confusion matrix to draw."), path)
    rows = matrix.sum(1, keepdims=True)
    share = np.divide(matrix, rows, out=np.zeros(matrix.shape), where=rows > 0)
    side = float(np.clip(2.2 + 0.6 * count, 5.0, 8.2 if count <= 12 else 10.0))
    figure = style.figure(side + 1.0, side + 0.4)
    axes = figure.subplots()
    shown = np.where(matrix > 0, share, np.nan)  # an empty cell stays paper-white
    drawn = axes.imshow(shown, cmap=_blues(), norm=_roots(), interpolation="nearest")
    right = matrix.trace() / matrix.sum()
    text = f"{title}: {percent(right, 2)} of {int(matrix.sum()):,} right"
    style.style_axes(axes, x="predicted class", y="true class", title=text, grid=False)
    _ticks(axes, classes)
    if count <= _NUMBERS_UP_TO:
        _numbers(axes, matrix, share)
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=style.GRID, linewidth=0.7)
        axes.tick_params(which="minor", length=0)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.6, aspect=30, pad=0.02)
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1], labels=["0 %", "1 %", "5 %", "20 %", "50 %", "100 %"])
    bar.ax.minorticks_off()
    bar.set_label("share of the true class", fontsize=10, color=style.INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, colors=style.SOFT, labelcolor=style.INK)
    return style.save(figure, path)


def reliability_figure(measured: Reliability, path: Path | str, *, title: str = "Reliability") -> Path:
    """The picture of a model's calibration: share right over confidence, and below it how many images there are."""
    if not measured.counts.sum():
        return style.save(style.message_figure("No predictions: there is no reliability to draw."), path)
    figure = style.figure(6.4, 6.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    some = measured.counts > 0
    width = np.diff(measured.edges)[some]
    middle = (measured.edges[:-1] + measured.edges[1:])[some] / 2
    share, sure = measured.accuracy[some], measured.confidence[some]
    upper.bar(middle, share, width, color=style.BLUE, edgecolor=style.PAPER, linewidth=1, label="images right")
    upper.bar(
        middle, sure - share, width, bottom=share, color="none", edgecolor=style.VERMILLION, hatch="////", linewidth=0.8,
        label="gap to the confidence",
    )  # fmt: skip
    upper.plot([0, 1], [0, 1], color=style.INK, linewidth=1.2, linestyle=(0, (5, 3)), label="perfectly calibrated")
    style.style_axes(upper, y="images right", title=f"{title}: calibration error {percent(measured.ece, 2)}")
    _percent_axis(upper.yaxis)
    style.legend(upper, loc="upper left")
    lower.bar(middle, measured.counts[some], width, color=style.SOFT, edgecolor=style.PAPER, linewidth=1)
    style.style_axes(lower, x="confidence: probability of the predicted class", y="images")
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    _percent_axis(lower.xaxis)
    lower.yaxis.set_major_locator(_few_whole())
    return style.save(figure, path)


def _blues() -> Colormap:
    """White to the palette's blue and on to a dark one: lightness falls evenly."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("harness", ["#F4F8FB", "#9CC6E0", style.BLUE, "#06324E"])


def _roots() -> Normalize:
    """The square root of the share decides the colour, so that an error of one percent can be seen."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=1)


def _ticks(axes: Axes, classes: Sequence[str]) -> None:
    count = len(classes)
    axes.tick_params(length=0)
    if count > _NAMES_UP_TO:
        every = max(1, round(count / 20))
        places = range(0, count, every)
        size, names = 8, [style.plain(f"{i} {truncate(classes[i], 14)}") for i in places]
    else:
        places, size = range(count), 10 if count <= _NUMBERS_UP_TO else 8
        names = [style.plain(truncate(name, 16)) for name in classes]
    upright = count > 6
    axes.set_xticks(list(places), names, rotation=45 if upright else 0, ha="right" if upright else "center", fontsize=size,
                    rotation_mode="anchor" if upright else None)  # fmt: skip
    axes.set_yticks(list(places), names, fontsize=size)


def _numbers(axes: Axes, matrix: np.ndarray, share: np.ndarray) -> None:
    longest = len(f"{matrix.max()}")
    size = (10 if longest <= 3 else 8.5) if len(matrix) <= 12 else (7.5 if longest <= 3 else 6)
    for (row, column), number in np.ndenumerate(matrix):
        if number:
            colour = style.PAPER if share[row, column] > 0.25 else style.INK
            axes.text(column, row, f"{number}", ha="center", va="center", fontsize=size, color=colour,
                      fontweight="bold" if row == column else "normal")  # fmt: skip


def _percent_axis(axis: Axis) -> None:
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    axis.set_major_locator(MultipleLocator(0.2))
    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def _few_whole() -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(3, integer=True)
