"""Figures of all predictions of a split: the confusion matrix and the reliability diagram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harness.evaluation.metrics import Reliability, class_shares
from harness.reporting.figures import style
from harness.utils.text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

_MAX_NUMBERS = 20  # classes up to which cells have numbers
_SMALLEST, _LINE = 6.0, 1.3  # the smallest letters of names, points; height of a line in sizes of its letters


def confusion_figure(
    matrix: np.ndarray, classes: Sequence[str], path: Path | str, *, title: str = "Confusion matrix"
) -> Path:
    """Draw a confusion matrix, true classes in rows and predicted classes in columns.

    The colour of a cell is its fraction of the row; up to 20 classes the number of images is written in it. Where not
    every class has room for its name, every second one is named, every third one, ...
    """
    count = len(classes)
    if not matrix.sum():
        return style.save_figure(style.message_figure("No confusion matrix: there are no predictions."), path)
    share = class_shares(matrix)
    side = float(np.clip(2.2 + 0.6 * count, 5.0, 8.2 if count <= 12 else 10.0))
    figure = style.figure(side + 1.0, side + 0.4)
    axes = figure.subplots()
    visible = np.where(matrix > 0, share, np.nan)  # an empty cell stays white
    image = axes.imshow(visible, cmap=_blues(), norm=_square_root_norm(), interpolation="nearest")
    accuracy, images = matrix.trace() / matrix.sum(), int(matrix.sum())
    text = f"{title}: accuracy {percent(accuracy, 2)} on {images:,} images"
    style.style_axes(axes, x="predicted class", y="true class", grid=False)
    heading = style.drawable_text(style.wrap(text, int(8.5 * figure.get_figwidth())))  # above the names too
    figure.suptitle(heading, x=0.01, ha="left", fontsize=13, fontweight="bold", color=style.INK)
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
    _label_axes(figure, axes, classes)
    return style.save_figure(figure, path)


def reliability_figure(measured: Reliability, path: Path | str, *, title: str = "Reliability diagram") -> Path:
    """Draw the accuracy by confidence, and below it the number of images in each bin."""
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


def _label_axes(figure: Figure, axes: Axes, classes: Sequence[str]) -> None:
    """Name the classes on both axes, in letters so small, turned so far, and so many of them, that no two names touch.

    How much room a name has depends on the layout, which depends on the names: both are repeated until they agree.
    """
    axes.tick_params(length=0)
    has_numbers = len(classes) > _MAX_NUMBERS  # with these the classes between two names can be counted
    names = [style.drawable_text(style.shorten(f"{i} {name}" if has_numbers else name, 16)) for i, name in enumerate(classes)]  # fmt: skip
    most = figure.get_figwidth() * 72 / (_SMALLEST * _LINE)  # names in the smallest letters along the whole figure
    labels = _Labels(size=10.0, step=math.ceil(len(classes) / most), rotation=0 if len(classes) <= 12 else 90)
    is_settled = False
    while not is_settled:  # three times at most: names that are turned need more room, smaller ones less
        _set_labels(axes, names, labels)
        fitting = _fitting_labels(figure, axes, len(classes), labels)
        is_settled, labels = fitting.rotation == labels.rotation, fitting
    _set_labels(axes, names, labels)


class _Labels(NamedTuple):
    """How the names of classes are drawn: size in points, every how many-th, and the rotation of those below."""

    size: float
    step: int
    rotation: int


def _set_labels(axes: Axes, names: Sequence[str], labels: _Labels) -> None:
    indices = range(0, len(names), labels.step)
    shown, size = [names[index] for index in indices], labels.size
    alignment: dict[str, Any] = {
        0: {"ha": "center", "va": "top", "rotation_mode": "default"},
        45: {"ha": "right", "va": "top", "rotation_mode": "anchor"},
        90: {"ha": "right", "va": "center", "rotation_mode": "anchor"},
    }[labels.rotation]
    axes.set_xticks(list(indices), shown, rotation=labels.rotation, fontsize=size, **alignment)
    axes.set_yticks(list(indices), shown, fontsize=size)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        style.set_fonts(text)


def _fitting_labels(figure: Figure, axes: Axes, classes: int, former: _Labels) -> _Labels:
    """Return labels that have room in the layout with the former ones; never larger, or more, or less turned than those."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    axes.apply_aspect()
    cell = axes.get_window_extent().width / classes * 72 / figure.dpi  # points
    step = max(former.step, math.ceil(_LINE * _SMALLEST / cell))
    size = min(former.size, step * cell / _LINE)
    widest = max(text.get_window_extent().width if former.rotation == 0 else 0.0 for text in axes.get_xticklabels())
    fits_level = former.rotation == 0 and widest * 72 / figure.dpi * size / former.size + size < step * cell
    fits_slanted = former.rotation <= 45 and step * cell * math.sin(math.radians(45)) >= _LINE * size
    return _Labels(size, step, 0 if fits_level else 45 if fits_slanted else 90)


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
