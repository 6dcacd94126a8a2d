"""Curves of a run: loss and accuracy by epoch, the learning rate by step, a schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from harness.reporting.figures import style
from harness.tracking.records import Image, Record, StoredImage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points: TypeAlias = Sequence[float] | np.ndarray

_STYLES = {
    "train": (style.BLUE, "--"),
    "val": (style.GREEN, "-"),
    "test": (style.VERMILLION, "-"),
    "val, without EMA": (style.GREEN, ":"),
    "test, without EMA": (style.VERMILLION, ":"),
}
_MAX_MARKERS = 40  # more of them would hide the line


def draw_losses(
    records: Sequence[Record], path: Path | str, training_loss: str = "", name: str = "cross entropy (nats)"
) -> Path:
    """Draw every `*/loss` by epoch; the lowest and the last value of each are marked.

    Args:
        training_loss: what it is where it is not that of the other splits.
        name: the loss of the other splits.
    """
    note = f"training: {training_loss}" if training_loss else ""
    return _by_epoch(records, path, "loss", "Loss", name, lowest=True, note=note)


def draw_average_precision(records: Sequence[Record], path: Path | str) -> Path:
    """Draw every `*/map` by epoch, in percent; the highest and the last value of each are marked."""
    return _by_epoch(records, path, "map", "Mean average precision", "mAP (%)", lowest=False)


def draw_accuracy(records: Sequence[Record], path: Path | str) -> Path:
    """Draw every `*/acc` by epoch, in percent; the highest and the last value of each are marked."""
    return _by_epoch(records, path, "acc", "Accuracy", "accuracy (%)", lowest=False)


def draw_learning_rate(
    steps: Sequence[float],
    lrs: Sequence[float],
    path: Path | str,
    *,
    momentum: Sequence[float] | None = None,
    steps_per_epoch: float | None = None,
    marks: Mapping[str, float] | None = None,
    title: str = "Learning rate",
) -> Path:
    """Draw the learning rate at every step, with its minimum and maximum labelled.

    Args:
        momentum: drawn in a second panel below.
        steps_per_epoch: adds a second axis in epochs.
        marks: name -> step, drawn as vertical lines.
    """
    if not len(steps):
        return style.save_figure(style.message_figure("No learning rate was recorded."), path)
    figure = style.figure(8.0, 4.5 if momentum is None else 6.0)
    upper, lower = _panels(figure, momentum is not None)
    _line(upper, steps, lrs, style.BLUE)
    style.style_axes(upper, x="" if lower else "step (optimizer updates)", y="learning rate", title=title)
    _name_extremes(upper, steps, lrs)
    for name, step in (marks or {}).items():
        _mark(upper, name, step)
    if steps_per_epoch:
        _epoch_axis(upper, steps_per_epoch)
    if lower is not None and momentum is not None:
        _line(lower, steps, momentum, style.ORANGE)
        style.style_axes(lower, x="step (optimizer updates)", y="momentum")
    return style.save_figure(figure, path)


def draw_schedule_curve(
    x: Sequence[float],
    lr: Sequence[float],
    path: Path | str,
    *,
    lr_min: float,
    lr_max: float,
    momentum: Sequence[float] | None = None,
    title: str = "Learning rate schedule",
    x_name: str = "iteration",
) -> Path:
    """Draw a schedule between two lines at its minimum and its maximum learning rate."""
    if not len(x):
        return style.save_figure(style.message_figure("The schedule has no steps."), path)
    figure = style.figure(8.0, 4.5 if momentum is None else 6.0)
    upper, lower = _panels(figure, momentum is not None)
    for name, height, side in (("lr_max", lr_max, "bottom"), ("lr_min", lr_min, "top")):
        upper.axhline(height, color=style.VERMILLION, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1.5)
        offset = 4 if side == "bottom" else -4
        upper.annotate(
            style.drawable_text(f"{name} = {height:g}"), (1.0, height), (-4, offset), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", va=side, fontsize=10, color=style.VERMILLION,
        )  # fmt: skip
    _line(upper, x, lr, style.BLUE)
    style.style_axes(upper, x="" if lower else x_name, y="learning rate", title=title)
    margin = 0.12 * (max(lr_max, *lr) - min(lr_min, *lr)) or 0.1 * abs(lr_max) or 0.1
    upper.set_ylim(min(lr_min, *lr) - margin, max(lr_max, *lr) + margin)
    if lower is not None and momentum is not None:
        _line(lower, x, momentum, style.ORANGE)
        style.style_axes(lower, x=x_name, y="momentum")
    return style.save_figure(figure, path)


def as_image(path: Path | str, caption: str = "") -> Image:
    """Return a PNG file as a value that a tracker can write; the file must stay."""
    return StoredImage(Path(path).absolute(), caption)


def _by_epoch(
    records: Sequence[Record], path: Path | str, metric: str, title: str, y: str, *, lowest: bool, note: str = ""
) -> Path:
    from matplotlib.ticker import MaxNLocator

    lines, final = values_by_epoch(records, metric)
    if not lines and not final:
        return style.save_figure(style.message_figure(f"No {title.lower()} was recorded."), path)
    figure = style.figure()
    axes = figure.subplots()
    scale = 1.0 if lowest else 100.0
    for index, (split, points) in enumerate(lines.items()):
        colour, dash = _STYLES.get(split, (style.PALETTE[(3 + index) % len(style.PALETTE)], "-."))
        epochs, values = np.array(list(points)), scale * np.array(list(points.values()))
        _line(axes, epochs, values, colour, dash=dash, name=_summary(split, epochs, values, lowest))
        _mark_best_and_last(axes, epochs, values, colour, lowest)
    for split, (epoch, value) in final.items():
        colour = _STYLES.get(split, (style.PURPLE, ""))[0]
        label = f"{split}, final: {_number(scale * value, lowest)}"
        axes.plot(
            [epoch],
            [scale * value],
            marker="*",
            markersize=13,
            linestyle="",
            color=colour,
            label=style.drawable_text(label),
        )
    style.style_axes(axes, x=f"epoch\n{style.wrap(note, 90)}" if note else "epoch", y=y, title=title)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    axes.margins(x=0.03, y=0.08)
    epochs_drawn = {epoch for points in lines.values() for epoch in points} | {epoch for epoch, _ in final.values()}
    if len(epochs_drawn) == 1:  # one point has no extent that an axis could be fitted to
        (only,) = epochs_drawn
        axes.set_xlim(only - 1, only + 1)
    style.legend(axes, loc="best", title="ring: best, dot: last", title_fontsize=9)
    return style.save_figure(figure, path)


def values_by_epoch(
    records: Sequence[Record], metric: str
) -> tuple[dict[str, dict[int, float]], dict[str, tuple[int, float]]]:
    """Return split -> {epoch: value} of the epochs, and split -> (epoch, value) of what was measured only at the end.

    A value that is not finite is a gap; of an epoch that was repeated after a resume the last value counts.
    """
    lines: dict[str, dict[int, float]] = {}
    final: dict[str, tuple[int, float]] = {}
    for record in records:
        for key, value in record.scalars().items():
            split, _, name = key.rpartition("/")
            if name not in (metric, f"{metric}_plain") or not split or isinstance(value, str | bool):
                continue
            if name != metric:  # of the weights whose moving average `metric` is of; the final one is that of its epoch
                if record.kind != "epoch":
                    continue
                split = f"{split}, without EMA"
            if record.kind == "epoch":
                lines.setdefault(split, {})[record.epoch] = float(value) if math.isfinite(value) else math.nan
            elif record.kind == "final" and math.isfinite(value):
                final[split] = (record.epoch, float(value))
    lines = {split: points for split, points in lines.items() if not all(map(math.isnan, points.values()))}
    order = [*(split for split in _STYLES if split in lines), *sorted(set(lines) - set(_STYLES))]
    return {split: dict(sorted(lines[split].items())) for split in order}, {
        s: p for s, p in final.items() if s not in lines
    }


def _summary(split: str, epochs: np.ndarray, values: np.ndarray, lowest: bool) -> str:
    best = int(np.nanargmin(values) if lowest else np.nanargmax(values))
    last = "none" if math.isnan(values[-1]) else _number(values[-1], lowest)
    return f"{split}   last {last},  best {_number(values[best], lowest)} (epoch {epochs[best]})"


def _number(value: float, loss: bool) -> str:
    return f"{value:.4g}" if loss else f"{value:.2f} %"


def _mark_best_and_last(axes: Axes, epochs: np.ndarray, values: np.ndarray, colour: str, lowest: bool) -> None:
    best = int(np.nanargmin(values) if lowest else np.nanargmax(values))
    axes.plot(epochs[-1:], values[-1:], marker="o", markersize=6, color=colour, linestyle="")
    axes.plot(
        epochs[best], values[best], marker="o", markersize=11, markerfacecolor="none", markeredgewidth=1.4,
        color=colour, linestyle="",
    )  # fmt: skip


def _panels(figure: Figure, two: bool) -> tuple[Axes, Axes | None]:
    if not two:
        return figure.subplots(), None
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    return upper, lower


def _line(axes: Axes, x: Points, y: Points, colour: str, *, dash: str = "-", name: str = "") -> None:
    few = len(x) <= _MAX_MARKERS
    axes.plot(
        x, y, color=colour, linestyle=dash, linewidth=1.8, marker="o" if few else "", markersize=3 if len(x) > 1 else 6,
        solid_joinstyle="round", label=style.drawable_text(name) if name else None,
    )  # fmt: skip


def _name_extremes(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Write the greatest and the least value beside their points."""
    greatest, least = int(np.argmax(y)), int(len(y) - 1 - np.argmin(np.asarray(y)[::-1]))
    axes.margins(y=0.14)
    for index, name, offset in ((greatest, "max", 7), (least, "min", -7)):
        if index == least and y[greatest] == y[least] and name == "min":
            return
        late = x[index] > (x[0] + x[-1]) / 2
        axes.annotate(
            f"{name} {y[index]:.4g}", (x[index], y[index]), (-6 if late else 6, offset), textcoords="offset points",
            ha="right" if late else "left", va="bottom" if offset > 0 else "top", fontsize=10, color=style.INK,
        )  # fmt: skip
        axes.plot(x[index], y[index], marker="o", markersize=5, color=style.BLUE)


def _mark(axes: Axes, name: str, step: float) -> None:
    axes.axvline(step, color=style.VERMILLION, linewidth=1.2, linestyle=(0, (5, 3)))
    axes.annotate(
        style.drawable_text(style.shorten(name, 40)), (step, 0.98), (4, 0), xycoords=("data", "axes fraction"), rotation=90,
        textcoords="offset points", ha="left", va="top", fontsize=10, color=style.VERMILLION,
        bbox={"facecolor": style.PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )  # fmt: skip


def _epoch_axis(axes: Axes, steps_per_epoch: float) -> None:
    def to_epochs(step: Any) -> Any:
        return step / steps_per_epoch

    def to_steps(epoch: Any) -> Any:
        return epoch * steps_per_epoch

    above = axes.secondary_xaxis("top", functions=(to_epochs, to_steps))
    above.set_xlabel("epoch", fontsize=10, color=style.SOFT)
    above.tick_params(colors=style.SOFT, labelsize=9, width=0.8, length=3)
    above.spines["top"].set(color=style.GRID)
