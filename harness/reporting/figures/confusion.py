"""Figures of all predictions of a split: the confusion matrix and the reliability diagram."""

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

_MAX_NUMBERS, _MAX_NAMES = 20, 60  # classes up to which cells have numbers, and every class has its name


def confusion_figure(
    matrix: np.ndarray, classes: Sequence[str], path: Path | str, *, title: str = "Confusion matrix"
) -> Path:
    """Draw a confusion matrix, true classes in rows and predicted classes in columns.

    The colour of a cell is its fraction of the row; up to 20 classes the number of images is written in it, up to 60
    classes every class is named.
    """
    count = len(classes)
    if not matrix.sum():
        return style.save_figure(style.message_figure("No confusion matrix: there are no predictions."), path)
    rows = matrix.sum(1, keepdims=True)
    share = np.divide(matrix, rows, out=np.zeros(matrix.shape), where=rows > 0)
    side = float(np.clip(2.2 + 0.6 * count, 5.0, 8.2 if count <= 12 else 10.0))
    figure = style.figure(side + 1.0, side + 0.4)
    axes = figure.subplots()
    visible = np.where(matrix > 0, share, np.nan)  # an empty cell stays white
    image = axes.imshow(visible, cmap=_blues(), norm=_square_root_norm(), interpolation="nearest")
    accuracy, images = matrix.trace() / matrix.sum(), int(matrix.sum())
    text = f"{title}: accuracy {percent(accuracy, 2)} on {images:,} images"
    style.style_axes(axes, x="predicted class", y="true class", title=text, grid=False)
    _ticks(axes, classes)
    if count <= _MAX_NUMBERS:
        _numbers(axes, matrix, share)
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=style.GRID, linewidth=0.7)
        axes.tick_params(which="minor", length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.02)
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1], labels=["0 %", "1 %", "5 %", "20 %", "50 %", "100 %"])
    bar.ax.minorticks_off()
    bar.set_label("fraction of the true class", fontsize=10, color=style.INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, colors=style.SOFT, labelcolor=style.INK)
    return style.save_figure(figure, path)


def reliability_figure(measured: Reliability, path: Path | str, *, title: str = "Reliability diagram") -> Path:
    """Draw the accuracy by confidence, and below it the number of images in each bin."""
    if not measured.counts.sum():
        return style.save_figure(style.message_figure("No reliability diagram: there are no predictions."), path)
    figure = style.figure(6.4, 6.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = measured.counts > 0
    width = np.diff(measured.edges)[filled]
    middle = (measured.edges[:-1] + measured.edges[1:])[filled] / 2
    accuracy, confidence = measured.accuracy[filled], measured.confidence[filled]
    upper.bar(middle, accuracy, width, color=style.BLUE, edgecolor=style.PAPER, linewidth=1, label="accuracy")
    upper.bar(
        middle, confidence - accuracy, width, bottom=accuracy, color="none", edgecolor=style.VERMILLION, hatch="////", linewidth=0.8,
        label="gap to the mean confidence",
    )  # fmt: skip
    upper.plot([0, 1], [0, 1], color=style.INK, linewidth=1.2, linestyle=(0, (5, 3)), label="perfectly calibrated")
    style.style_axes(upper, y="accuracy", title=f"{title}: ECE {percent(measured.ece, 2)}")
    _percent_axis(upper.yaxis)
    style.legend(upper, loc="upper left")
    lower.bar(middle, measured.counts[filled], width, color=style.SOFT, edgecolor=style.PAPER, linewidth=1)
    style.style_axes(lower, x="confidence: probability of the predicted class", y="images")
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    _percent_axis(lower.xaxis)
    lower.yaxis.set_major_locator(_few_integers())
    return style.save_figure(figure, path)


def _blues() -> Colormap:
    """Return a map from white over the palette's blue to a dark one, of evenly falling lightness."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("harness", ["#F4F8FB", "#9CC6E0", style.BLUE, "#06324E"])


def _square_root_norm() -> Normalize:
    """Return a scale by the square root, on which an error of one percent is visible."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=1)


def _ticks(axes: Axes, classes: Sequence[str]) -> None:
    count = len(classes)
    axes.tick_params(length=0)
    if count > _MAX_NAMES:
        every = max(1, round(count / 20))
        indices = range(0, count, every)
        size, names = 8, [style.drawable_text(f"{i} {truncate(classes[i], 14)}") for i in indices]
    else:
        indices, size = range(count), 10 if count <= _MAX_NUMBERS else 8
        names = [style.drawable_text(truncate(name, 16)) for name in classes]
    slanted = count > 6
    axes.set_xticks(list(indices), names, rotation=45 if slanted else 0, ha="right" if slanted else "center", fontsize=size,
                    rotation_mode="anchor" if slanted else None)  # fmt: skip
    axes.set_yticks(list(indices), names, fontsize=size)


def _numbers(axes: Axes, matrix: np.ndarray, share: np.ndarray) -> None:
    longest = len(f"{matrix.max()}")
    size = (10 if longest <= 3 else 8.5) if len(matrix) <= 12 else (7.5 if longest <= 3 else 6)
    for (row, column), number in np.ndenumerate(matrix):
        if number:
            colour = style.PAPER if share[row, column] > 0.25 else style.INK
            text = axes.text(column, row, f"{number}", ha="center", va="center", fontsize=size, color=colour,
                             fontweight="bold" if row == column else "normal")  # fmt: skip
            text.set_in_layout(False)  # it lies inside the axes; the layout would measure each of them


def _percent_axis(axis: Axis) -> None:
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    axis.set_major_locator(MultipleLocator(0.2))
    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def _few_integers() -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(3, integer=True)
