"""The figures of a sweep: the search space, the trials in order, parallel coordinates, parameter importance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness.config.names import TrialStatus
from harness.reporting.figures import style
from harness.reporting.html.sweep_data import STATE_LABELS, ParameterAxis, SweepData, TrialData
from harness.utils.text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_TICKS = 12  # of a categorical parameter
# State -> marker, size in the scatter plot, colour in the history.
MARKERS = {
    TrialStatus.PRUNED: ("v", 45, style.SKY),
    TrialStatus.COMPLETE: ("o", 70, style.BLUE),
    TrialStatus.RUNNING: ("s", 45, style.SOFT),
    TrialStatus.FAILED: ("D", 45, style.WRONG),
}


def draw_sweep(sweep: SweepData, folder: Path) -> list[Path]:
    """Write the figures that the trials of a sweep allow into `folder`, as PNG, and return their paths."""
    if not sweep.evaluated:
        return [style.save_figure(style.message_figure("No trial has logged the metric yet."), folder / "history.png")]
    paths = [draw_history(sweep, folder / "history.png")]
    if sweep.varied:
        paths.append(draw_scatter(sweep, folder / "scatter.png"))
        paths.append(draw_parallel(sweep, folder / "parallel.png"))
    if sweep.front:
        paths.append(draw_front(sweep, folder / "pareto.png"))
    if sweep.importance:
        paths.append(draw_importance(sweep, folder / "importance.png"))
    return paths


def draw_scatter(sweep: SweepData, path: Path) -> Path:
    """Draw each trial at its parameters, coloured by the metric; the best is ringed, failed ones are crosses."""
    figure = style.figure(8.0, 6.0)
    plot = figure.add_subplot()
    x, y = [*sweep.pair, None][:2]
    assert x is not None  # the caller draws this only where a parameter was varied
    low, high = sweep.limits
    look: dict[str, Any] = dict(cmap=_colours(sweep), vmin=low, vmax=high, edgecolors=style.INK, linewidths=0.6)
    for state, (marker, size, _) in MARKERS.items():
        trials = [trial for trial in sweep.evaluated if trial.state == state]
        if trials:
            scores = np.clip([trial.value for trial in trials], low, high)
            label = f"{STATE_LABELS[state]} ({len(trials)})"
            points = plot.scatter(
                *_points(trials, x, y), c=scores, s=size, marker=marker, label=label, zorder=3, **look
            )
    failed = sweep.failed_without_value
    if failed and y is not None:
        label = f"failed without a value ({len(failed)})"
        plot.scatter(*_points(failed, x, y), marker="x", c=style.WRONG, s=45, label=label, zorder=3)
    if best := sweep.winner:
        plot.scatter(
            *_points([best], x, y), s=260, facecolors="none", edgecolors=style.VERMILLION, linewidths=2,
            label=f"best: {sweep.score_text(best.value)}", zorder=4,
        )  # fmt: skip
    style.style_axes(plot, x=x.label, y=sweep.metric if y is None else y.label, title=_title(sweep))
    _scale(plot, "x", x)
    if y is None:
        _score_axis(plot.yaxis, sweep)
    else:
        _scale(plot, "y", y)
        bar = figure.colorbar(points, ax=plot, pad=0.02, extend=_beyond_limits(sweep))
        bar.set_label(style.drawable_text(sweep.metric), color=style.INK, fontsize=11)
        bar.outline.set_visible(False)
        _score_axis(bar.ax.yaxis, sweep)
    figure.legend(loc="outside lower center", ncols=4, fontsize=10, frameon=False, labelcolor=style.INK)
    return style.save_figure(figure, path)


def draw_front(sweep: SweepData, path: Path) -> Path:
    """Draw the first two of several metrics of each trial, and the Pareto front, of two metrics as a staircase."""
    figure = style.figure(8.0, 6.0)
    plot = figure.add_subplot()
    second = sweep.further[0]
    names = {trial.name for trial in sweep.front}
    others = [trial for trial in sweep.evaluated if trial.name not in names]
    plot.scatter(
        [trial.further[second] for trial in others], [trial.value for trial in others], s=45, color=style.SKY,
        label=f"another is at least as good in every metric ({len(others)})", zorder=2,
    )  # fmt: skip
    front = sorted(sweep.front, key=lambda trial: trial.further[second])
    x, y = [trial.further[second] for trial in front], [trial.value for trial in front]
    plot.scatter(x, y, s=70, color=style.VERMILLION, label=f"Pareto front ({len(front)})", zorder=3)
    if sweep.front_step:
        plot.step(x, y, where=sweep.front_step, color=style.VERMILLION, zorder=2)
    style.style_axes(plot, x=second, y=sweep.metric, title=_title(sweep))
    _score_axis(plot.yaxis, sweep)
    figure.legend(loc="outside lower center", ncols=2, fontsize=10, frameon=False, labelcolor=style.INK)
    return style.save_figure(figure, path)


def draw_history(sweep: SweepData, path: Path) -> Path:
    """Draw the metric of each trial in the order in which they started, and the best value so far."""
    from matplotlib.ticker import MaxNLocator

    figure = style.figure()
    plot = figure.add_subplot()
    for state, (marker, _, colour) in MARKERS.items():
        chosen = [(number, trial.value) for number, trial in enumerate(sweep.evaluated, 1) if trial.state == state]
        if chosen:
            label = f"{STATE_LABELS[state]} ({len(chosen)})"
            numbers, scores = zip(*chosen, strict=True)
            plot.scatter(numbers, scores, color=colour, marker=marker, s=36, label=label, zorder=3)
    best = sweep.best_so_far()
    plot.step(range(1, len(best) + 1), best, where="post", color=style.VERMILLION, linewidth=2, label="best so far")
    if not sweep.is_fraction:  # one diverged loss would flatten all others
        low, high = sweep.limits
        margin = 0.08 * (high - low)
        plot.set_ylim(low - margin, high + margin)
        numbered = {trial.name: number for number, trial in enumerate(sweep.evaluated, 1)}
        _mark_clipped(plot, sweep, [(numbered[t.name], low if t.value < low else high) for t in sweep.clipped])
    plot.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.style_axes(plot, x="trial", y=sweep.metric, title=_title(sweep))
    _score_axis(plot.yaxis, sweep)
    figure.legend(loc="outside lower center", ncols=5, fontsize=10, frameon=False, labelcolor=style.INK)
    return style.save_figure(figure, path)


def draw_parallel(sweep: SweepData, path: Path) -> Path:
    """Draw every trial as a line over its parameters, coloured by the metric, the better ones in front."""
    axes, trials = sweep.varied, sweep.ranked
    figure = style.figure(max(8.0, 1.7 * (len(axes) + 1)), 5.0)
    plot = figure.add_subplot()
    scores = [sweep.score_unit(trial.value) for trial in trials]
    columns = [*(axis.units(trials) for axis in axes), scores]
    colours = _colours(sweep)
    for index, score in enumerate(scores):
        rank = (index + 1) / len(trials)
        plot.plot(
            range(len(columns)), [column[index] for column in columns], color=colours(score),
            alpha=0.25 + 0.75 * rank, linewidth=1 + 1.2 * rank, zorder=2 + rank,
        )  # fmt: skip
    if sweep.clipped:
        _mark_clipped(plot, sweep, [(len(axes), sweep.score_unit(trial.value)) for trial in sweep.clipped])
        figure.legend(loc="outside lower right", fontsize=10, frameon=False, labelcolor=style.INK)
    style.style_axes(plot, title=_title(sweep), grid=False)
    plot.set_yticks([])
    plot.spines[["left", "bottom"]].set_visible(False)
    names = [style.drawable_text(style.wrap(axis.label, 18)) for axis in axes] + [style.drawable_text(sweep.metric)]
    plot.set_xticks(range(len(names)), names)
    plot.set_xlim(-0.2, len(names) - 0.55)
    for column, ticks in enumerate([*(axis.ticks(trials) for axis in axes), sweep.score_ticks()]):
        plot.axvline(column, color=style.SOFT, linewidth=0.8, zorder=1)
        for height, text in ticks:
            plot.annotate(
                style.drawable_text(text), (column, height), (4, 0), textcoords="offset points", fontsize=9, color=style.INK,
                va="center", zorder=9, bbox=dict(facecolor=style.PAPER, edgecolor="none", alpha=0.7, pad=0.5),
            )  # fmt: skip
    return style.save_figure(figure, path)


def draw_importance(sweep: SweepData, path: Path) -> Path:
    """Draw how much of the metric's variance each parameter explains."""
    pairs = list(sweep.importance.items())[::-1]
    figure = style.figure(8.0, max(2.2, 0.5 * len(pairs) + 1.4))
    plot = figure.add_subplot()
    names, shares = [style.drawable_text(style.shorten(name, 32)) for name, _ in pairs], [share for _, share in pairs]
    bars = plot.barh(names, shares, color=style.BLUE)
    plot.bar_label(bars, [percent(share, 0) for share in shares], padding=4, color=style.INK)
    plot.set_xlim(0, max(shares) * 1.15 or 1)
    plot.xaxis.set_major_formatter(_percent_formatter())
    x = f"fraction of the variance of {sweep.metric} over complete trials (fANOVA)"
    style.style_axes(plot, x=x, title=_title(sweep))
    plot.grid(visible=False, axis="y")
    return style.save_figure(figure, path)


def _mark_clipped(plot: Axes, sweep: SweepData, points: Sequence[tuple[float, float]]) -> None:
    """Mark trials whose value lies beyond the end of the axis, where they are drawn."""
    if not points:
        return
    end = sweep.limits[0] if sweep.maximise else sweep.limits[1]
    label = f"{'below' if sweep.maximise else 'above'} {sweep.score_text(end)} ({len(points)})"
    x, y = zip(*points, strict=True)
    plot.scatter(x, y, marker="v" if sweep.maximise else "^", s=90, facecolors="none", edgecolors=style.VERMILLION,
                 linewidths=1.8, label=label, zorder=10, clip_on=False)  # fmt: skip


def _title(sweep: SweepData) -> str:
    return f"{sweep.name}: {len(sweep.trials)} trial{'' if len(sweep.trials) == 1 else 's'}"


def _points(trials: Sequence[TrialData], x: ParameterAxis, y: ParameterAxis | None) -> tuple[list[float], list[float]]:
    """Return the trials' coordinates; the metric is the height where there is no second parameter."""
    heights = [trial.value if y is None else y.position(trial) for trial in trials]
    return [x.position(trial) for trial in trials], heights


def _scale(plot: Axes, which: Literal["x", "y"], axis: ParameterAxis) -> None:
    if axis.logarithmic:
        getattr(plot, f"set_{which}scale")("log")
        _log_ticks(plot.xaxis if which == "x" else plot.yaxis)
    elif axis.categories:
        names = [style.drawable_text(style.shorten(text.strip('"'), 18)) for text in axis.categories[:MAX_TICKS]]
        getattr(plot, f"set_{which}ticks")(range(len(names)), names)
        getattr(plot, f"set_{which}lim")(-0.5, len(axis.categories) - 0.5)


def _log_ticks(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers, also where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())


def _score_axis(axis: Any, sweep: SweepData) -> None:
    if sweep.is_fraction:
        axis.set_major_formatter(_percent_formatter())


def _colours(sweep: SweepData) -> Any:
    """Return the colour map in which the best value is yellow, whichever way the metric goes."""
    from matplotlib import colormaps

    return colormaps["viridis" if sweep.maximise else "viridis_r"]


def _beyond_limits(sweep: SweepData) -> Literal["neither", "min", "max", "both"]:
    """Return on which side of the colour bar there are scores that are clipped to its end."""
    low, high = sweep.limits
    values = [trial.value for trial in sweep.evaluated]
    below, above = min(values) < low, max(values) > high
    return "both" if below and above else "min" if below else "max" if above else "neither"


def _percent_formatter() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, symbol=" %")
