"""The pictures of a sweep: where it looked, what was good, how it got there, which parameters mattered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness.reporting.figures import style
from harness.sweep.distributions import Parameter, as_text
from harness.sweep.metric import Metric
from harness.sweep.schema import SweepSpec
from harness.sweep.study import TrialRecord
from harness.utils.text import percent, truncate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TICKS = 12  # of a parameter with a list of values
COLOURS = "viridis"


def draw(
    folder: Path, sweep: SweepSpec, rows: Sequence[TrialRecord], importances: Mapping[str, float], title: str
) -> list[Path]:
    """The pictures that these trials allow, as PNG files in `folder`."""
    judged = [row for row in rows if row.history]
    if not judged:
        return [style.save(style.message_figure("No trial has logged the metric yet."), folder / "history.png")]
    drawn = [history(folder / "history.png", sweep.metric, judged, title)]
    axes = [axis for axis in sweep.searched if len({as_text(row.values.get(axis.name)) for row in judged}) > 1]
    if axes:
        pair = _pair(axes, importances)
        drawn.append(scatter(folder / "scatter.png", sweep.metric, pair, rows, title))
        drawn.append(parallel(folder / "parallel.png", sweep.metric, axes, judged, title))
    if importances:
        drawn.append(importance(folder / "importance.png", importances, sweep.metric, title))
    return drawn


def _pair(axes: Sequence[Parameter], importances: Mapping[str, float]) -> list[Parameter]:
    """LRMIN and LRMAX where both were searched, else the two parameters that matter most."""
    by_name = {axis.name.lower().replace("-", "").replace("_", ""): axis for axis in axes}
    if "lrmin" in by_name and "lrmax" in by_name:
        return [by_name["lrmin"], by_name["lrmax"]]
    return sorted(axes, key=lambda axis: -importances.get(axis.name, 0.0))[:2]


def scatter(path: Path, metric: Metric, axes: Sequence[Parameter], rows: Sequence[TrialRecord], title: str) -> Path:
    """Each trial at its place in the search space, coloured by the metric; the best one ringed, failed ones crossed."""
    figure = style.figure(8.0, 6.0)
    plot = figure.add_subplot()
    judged, failed = (
        [row for row in rows if row.history],
        [row for row in rows if not row.history and row.state == "failed"],
    )
    scores = np.array([metric.best(row.history) for row in judged])
    across = _places(axes[0], judged)
    up = _places(axes[1], judged) if len(axes) > 1 else scores
    low, high = _range(scores, metric)
    for state, marker, size, name in (
        ("pruned", "v", 45, "stopped early"),
        ("complete", "o", 70, "complete"),
        ("running", "s", 45, "running"),
        ("failed", "D", 45, "failed late"),
    ):
        mask = np.array([row.state == state for row in judged])
        if mask.any():
            points = plot.scatter(
                across[mask],
                up[mask],
                c=np.clip(scores[mask], low, high),
                cmap=COLOURS,
                vmin=low,
                vmax=high,
                s=size,
                marker=marker,
                edgecolors=style.INK,
                linewidths=0.6,
                label=f"{name} ({mask.sum()})",
                zorder=3,
            )
    if failed and len(axes) > 1:
        plot.scatter(
            _places(axes[0], failed),
            _places(axes[1], failed),
            marker="x",
            c=style.WRONG,
            s=45,
            label=f"failed ({len(failed)})",
            zorder=3,
        )
    best = int(np.argmax(scores) if metric.maximise else np.argmin(scores))
    plot.scatter(
        [across[best]],
        [up[best]],
        s=260,
        facecolors="none",
        edgecolors=style.VERMILLION,
        linewidths=2,
        label=f"best: {_score(scores[best], metric)}",
        zorder=4,
    )
    style.style_axes(plot, x=_label(axes[0]), y=_label(axes[1]) if len(axes) > 1 else metric.name, title=title)
    _scale(plot, axes[0], "x", judged + failed)
    if len(axes) > 1:
        _scale(plot, axes[1], "y", judged + failed)
        bar = figure.colorbar(points, ax=plot, pad=0.02, extend=_beyond(scores, low, high))
        bar.set_label(style.plain(metric.name), color=style.INK, fontsize=11)
        bar.outline.set_visible(False)
        if _is_share(metric):
            bar.ax.yaxis.set_major_formatter(_percent())
    elif _is_share(metric):
        plot.yaxis.set_major_formatter(_percent())
    figure.legend(loc="outside lower center", ncols=4, fontsize=10, frameon=False, labelcolor=style.INK)
    return style.save(figure, path)


def history(path: Path, metric: Metric, rows: Sequence[TrialRecord], title: str) -> Path:
    """The metric of each trial in the order of their beginning, and the best so far."""
    from matplotlib.ticker import MaxNLocator

    figure = style.figure()
    plot = figure.add_subplot()
    scores = [metric.best(row.history) for row in rows]
    numbers = list(range(1, len(rows) + 1))
    for state, colour, marker in (
        ("complete", style.BLUE, "o"),
        ("pruned", style.SKY, "v"),
        ("running", style.SOFT, "s"),
        ("failed", style.WRONG, "x"),
    ):
        chosen = [
            (number, score) for number, score, row in zip(numbers, scores, rows, strict=True) if row.state == state
        ]
        if chosen:
            name = {"pruned": "stopped early"}.get(state, state)
            plot.scatter(
                [number for number, _ in chosen],
                [score for _, score in chosen],
                color=colour,
                marker=marker,
                s=36,
                label=f"{name} ({len(chosen)})",
                zorder=3,
            )
    fold = np.maximum if metric.maximise else np.minimum
    plot.step(numbers, fold.accumulate(scores), where="post", color=style.VERMILLION, linewidth=2, label="best so far")
    if not _is_share(metric):  # one diverged loss would flatten all others
        low, high = _range(np.array(scores), metric)
        margin = 0.08 * (high - low)
        plot.set_ylim(low - margin, high + margin)
    plot.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.style_axes(plot, x="trial", y=metric.name, title=title)
    if _is_share(metric):
        plot.yaxis.set_major_formatter(_percent())
    figure.legend(loc="outside lower center", ncols=5, fontsize=10, frameon=False, labelcolor=style.INK)
    return style.save(figure, path)


def parallel(path: Path, metric: Metric, axes: Sequence[Parameter], rows: Sequence[TrialRecord], title: str) -> Path:
    """Every trial as a line over its parameters, coloured by the metric, the better ones in front."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    figure = style.figure(max(8.0, 1.7 * (len(axes) + 1)), 5.0)
    plot = figure.add_subplot()
    scores = np.array([metric.best(row.history) for row in rows])
    low, high = _range(scores, metric)
    columns = [_unit(axis, rows) for axis in axes]
    columns.append((np.clip(scores, low, high) - low) / (high - low or 1.0))
    colour, norm = colormaps[COLOURS], Normalize(low, high)
    order = np.argsort(scores if metric.maximise else -scores, kind="stable")
    for rank, place in enumerate(order):
        share = (rank + 1) / len(order)
        line = [column[place] for column in columns]
        plot.plot(
            range(len(columns)),
            line,
            color=colour(norm(scores[place])),
            alpha=0.25 + 0.75 * share,
            linewidth=1 + 1.2 * share,
            zorder=2 + share,
        )
    style.style_axes(plot, title=title, grid=False)
    plot.set_yticks([])
    plot.spines[["left", "bottom"]].set_visible(False)
    plot.set_xticks(
        range(len(columns)), [style.plain(style.wrap(_label(axis), 18)) for axis in axes] + [style.plain(metric.name)]
    )
    plot.set_xlim(-0.2, len(columns) - 0.55)
    for place, ticks in enumerate([*(_unit_ticks(axis, rows) for axis in axes), _score_ticks(low, high, metric)]):
        plot.axvline(place, color=style.SOFT, linewidth=0.8, zorder=1)
        for height, text in ticks:
            plot.annotate(
                style.plain(text),
                (place, height),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=9,
                color=style.INK,
                va="center",
                zorder=9,
                bbox=dict(facecolor=style.PAPER, edgecolor="none", alpha=0.7, pad=0.5),
            )
    return style.save(figure, path)


def importance(path: Path, importances: Mapping[str, float], metric: Metric, title: str) -> Path:
    """How much of the metric's variance each parameter explains."""
    figure = style.figure(8.0, max(2.2, 0.5 * len(importances) + 1.4))
    plot = figure.add_subplot()
    pairs = sorted(importances.items(), key=lambda pair: pair[1])
    bars = plot.barh(
        [style.plain(truncate(name, 32)) for name, _ in pairs], [share for _, share in pairs], color=style.BLUE
    )
    plot.bar_label(bars, [percent(share, 0) for _, share in pairs], padding=4, color=style.INK)
    plot.set_xlim(0, max(share for _, share in pairs) * 1.15 or 1)
    plot.xaxis.set_major_formatter(_percent())
    style.style_axes(plot, x=f"share of the variance of {metric.name} over complete trials (fANOVA)", title=title)
    plot.grid(visible=False, axis="y")
    return style.save(figure, path)


def _places(axis: Parameter, rows: Sequence[TrialRecord]) -> np.ndarray:
    """Where the trials stand on a parameter: its number, or the place of its value in the list."""
    values = [row.values.get(axis.name) for row in rows]
    if _is_numeric(axis, values):
        return np.array(values, dtype=float)
    words = _words(axis)
    return np.array([words.index(as_text(value)) for value in values], dtype=float)


def _words(axis: Parameter) -> list[str]:
    return [as_text(value) for value in axis.choices or []]


def _is_numeric(axis: Parameter, values: Sequence[Any]) -> bool:
    numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in [*values, *(axis.choices or [])]
    )
    return numbers and (axis.choices is None or len(axis.choices) > 3)


def _is_log(axis: Parameter, rows: Sequence[TrialRecord]) -> bool:
    values = [row.values.get(axis.name) for row in rows]
    if not values or not _is_numeric(axis, values):
        return False
    numbers = np.array(values, dtype=float)
    if numbers.min() <= 0:
        return False
    return axis.logarithmic or (axis.choices is not None and bool(numbers.max() / numbers.min() >= 20))


def _scale(plot: Axes, axis: Parameter, which: str, rows: Sequence[TrialRecord]) -> None:
    if _is_log(axis, rows):
        getattr(plot, f"set_{which}scale")("log")
        _log_ticks(plot.xaxis if which == "x" else plot.yaxis)
    elif not _is_numeric(axis, [row.values.get(axis.name) for row in rows]):
        words = _words(axis)[:MOST_TICKS]
        getattr(plot, f"set_{which}ticks")(
            range(len(words)), [style.plain(truncate(word.strip('"'), 18)) for word in words]
        )
        getattr(plot, f"set_{which}lim")(-0.5, len(_words(axis)) - 0.5)


def _log_ticks(axis: Any) -> None:
    """Plain numbers on a logarithmic axis, also where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())


def _unit(axis: Parameter, rows: Sequence[TrialRecord]) -> np.ndarray:
    """The trials' places on a parameter, 0..1."""
    places = _places(axis, rows)
    places = np.log(places) if _is_log(axis, rows) else places
    width = float(np.ptp(places))
    return (places - places.min()) / width if width else np.full(len(places), 0.5)


def _unit_ticks(axis: Parameter, rows: Sequence[TrialRecord]) -> list[tuple[float, str]]:
    """(height, text) at both ends of a parameter, or at each value of a short list."""
    units, values = _unit(axis, rows), [row.values.get(axis.name) for row in rows]
    told = {as_text(value): float(unit) for value, unit in zip(values, units, strict=True)}
    if len(told) > 8 or _is_numeric(axis, values):
        order = np.argsort(units)
        ends = [order[0], order[len(order) // 2], order[-1]]
        return [(float(units[place]), _text(values[place])) for place in dict.fromkeys(int(end) for end in ends)]
    return [(unit, truncate(text.strip('"'), 18)) for text, unit in told.items()]


def _score_ticks(low: float, high: float, metric: Metric) -> list[tuple[float, str]]:
    return [(share, _score(low + share * (high - low), metric)) for share in (0.0, 0.5, 1.0)]


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else as_text(value).strip('"')


def _range(scores: np.ndarray, metric: Metric) -> tuple[float, float]:
    """From the worst that is still worth telling apart to the best: a diverged loss would flatten all others."""
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    middle = float(np.median(finite))
    if metric.maximise and high > middle:
        low = max(low, middle - 3 * (high - middle))
    elif not metric.maximise and middle > low:
        high = min(high, middle + 3 * (middle - low))
    return low, high if high > low else low + 1e-9


def _beyond(scores: np.ndarray, low: float, high: float) -> Literal["neither", "min", "max", "both"]:
    """On which side of the colours there are scores that are shown in the last one."""
    below, above = bool((scores < low).any()), bool((scores > high).any())
    return "both" if below and above else "min" if below else "max" if above else "neither"


def _is_share(metric: Metric) -> bool:
    return metric.name.endswith("acc")


def _score(score: float, metric: Metric) -> str:
    if not math.isfinite(score):
        return str(score)
    return percent(float(score)) if _is_share(metric) else f"{score:.4g}"


def _label(axis: Parameter) -> str:
    return {"lrmax": "LRMAX", "lrmin": "LRMIN"}.get(axis.name.lower().replace("-", "").replace("_", ""), axis.name)


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, symbol=" %")
