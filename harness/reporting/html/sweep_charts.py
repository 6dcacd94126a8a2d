"""The charts of a sweep's page: the search space, parallel coordinates, the trials in order, parameter importance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.config.names import TrialStatus
from harness.reporting.html.plotly import (
    BLUE,
    INK,
    SKY,
    SOFT,
    VERMILLION,
    VIRIDIS,
    Chart,
    axis,
    escape_text,
    layout,
    log_ticks,
    plain_numbers,
)
from harness.reporting.html.sweep_data import STATE_LABELS, ParameterAxis, SweepData, TrialData, value_text
from harness.utils.text import percent, truncate

# State -> symbol, colour in the history.
MARKERS = {
    TrialStatus.COMPLETE: ("circle", BLUE),
    TrialStatus.PRUNED: ("triangle-down", SKY),
    TrialStatus.RUNNING: ("square", SOFT),
    TrialStatus.FAILED: ("diamond", VERMILLION),
}
SHADES = 12  # of the lines in the parallel coordinates


def charts(sweep: SweepData) -> list[Chart]:
    """Return the charts that the trials of a sweep allow."""
    if not sweep.evaluated:
        return []
    made = [history(sweep)]
    if sweep.pair:
        made = [scatter(sweep), parallel(sweep), *made]
    if sweep.front:
        made = [pareto(sweep), *made]
    if sweep.importance:
        made.append(importance(sweep))
    return made


def pareto(sweep: SweepData) -> Chart:
    """Show the first two of several metrics of each trial, and the Pareto front, of two metrics as a staircase."""
    second = sweep.further[0]
    names = {trial.name for trial in sweep.front}
    others = [trial for trial in sweep.evaluated if trial.name not in names]
    front = sorted(sweep.front, key=lambda trial: trial.further[second])
    looks: list[tuple[str, Sequence[TrialData], dict[str, Any]]] = [
        (f"another is at least as good in every metric ({len(others)})", others, {"mode": "markers", "marker": {"size": 9, "color": SKY}}),
        (f"Pareto front ({len(front)})", front,
         {"mode": "lines+markers" if sweep.front_step else "markers", "marker": {"size": 12, "color": VERMILLION},
          "line": {"color": VERMILLION, "width": 2, "shape": "vh" if sweep.front_step == "pre" else "hv"}}),
    ]  # fmt: skip
    data = [
        {
            "type": "scatter", "name": escape_text(name), "x": plain_numbers([trial.further[second] for trial in trials]),
            "y": plain_numbers([trial.value for trial in trials]), "text": [_hover_text(sweep, trial) for trial in trials],
            "hovertemplate": "%{text}<extra></extra>", **look,
        }
        for name, trials, look in looks if trials
    ]  # fmt: skip
    caption = (
        f"Each trial by its {second} and its {sweep.metric}. No trial is better than one of the front in one metric and "
        f"at least as good in all. Hypervolume, from the worst value of each metric: {sweep.hypervolume:.4g}."
    )
    y = axis(sweep.metric, percent=sweep.is_fraction)
    return Chart("pareto", f"{sweep.metric} and {second}", caption, data, layout(axis(second), y), 460)


def scatter(sweep: SweepData) -> Chart:
    """Show each trial at its parameters, coloured by the metric; the best one is ringed."""
    x, *rest = sweep.pair
    y = rest[0] if rest else None
    low, high = sweep.limits
    data: list[dict[str, Any]] = []
    for state, (symbol, _) in MARKERS.items():
        trials = [trial for trial in sweep.evaluated if trial.state == state]
        if trials:
            marker = {
                "symbol": symbol, "size": 12, "color": plain_numbers([trial.value for trial in trials]), "colorscale": VIRIDIS,
                "cmin": low, "cmax": high, "reversescale": not sweep.maximise, "line": {"color": INK, "width": 1},
                "showscale": not data, "colorbar": _colour_bar(sweep),
            }  # fmt: skip
            data.append(_points(sweep, trials, x, y, f"{STATE_LABELS[state]} ({len(trials)})", marker))
    failed = sweep.failed_without_value
    if failed and y is not None:
        marker = {"symbol": "x-thin", "size": 10, "line": {"color": VERMILLION, "width": 2}}
        data.append(_points(sweep, failed, x, y, f"failed without a value ({len(failed)})", marker))
    best = sweep.winner
    assert best is not None
    ring = {"symbol": "circle-open", "size": 24, "color": VERMILLION, "line": {"width": 3, "color": VERMILLION}}
    data.append(_points(sweep, [best], x, y, f"best: {sweep.score_text(best.value)}", ring))
    y_axis = _parameter_axis(sweep, y) if y is not None else axis(sweep.metric, percent=sweep.is_fraction)
    at = " and ".join(f"{each.label} {value_text(best.parameters[each.name])}" for each in sweep.pair)
    caption = (
        f"Each of the {len(sweep.evaluated)} trials at its parameters, coloured by {sweep.metric}. "
        f"The best has {at}: {sweep.score_text(best.value)}."
    )
    title = f"{x.label} × {y.label}" if y is not None else f"{sweep.metric} over {x.label}"
    return Chart("scatter", title, caption, data, layout(_parameter_axis(sweep, x), y_axis), 460)


def _points(
    sweep: SweepData,
    trials: Sequence[TrialData],
    x: ParameterAxis,
    y: ParameterAxis | None,
    name: str,
    marker: dict[str, Any],
) -> dict[str, Any]:
    heights = [trial.value if y is None else y.position(trial) for trial in trials]
    return {
        "type": "scatter", "mode": "markers", "x": plain_numbers([x.position(trial) for trial in trials]), "y": plain_numbers(heights),
        "name": escape_text(name), "marker": marker,
        "text": [_hover_text(sweep, trial) for trial in trials], "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _hover_text(sweep: SweepData, trial: TrialData) -> str:
    lines = [trial.name, f"{sweep.metric} {sweep.score_text(trial.value)}"]
    lines += [f"{name} {value:.4g}" for name, value in trial.further.items()]
    lines += [f"{name} {value_text(value)}" for name, value in trial.parameters.items()]
    return "<br>".join(escape_text(truncate(line, 60)) for line in lines)


def _colour_bar(sweep: SweepData) -> dict[str, Any]:
    percent_ticks = {"tickformat": ".1%"} if sweep.is_fraction else {}
    return {"title": {"text": escape_text(sweep.metric), "side": "right"}, "thickness": 12, **percent_ticks}


def _parameter_axis(sweep: SweepData, parameter: ParameterAxis) -> dict[str, Any]:
    if parameter.categories:
        names = [escape_text(truncate(text, 18)) for text in parameter.categories]
        return axis(parameter.label, tickmode="array", tickvals=list(range(len(names))), ticktext=names)
    if not parameter.logarithmic:
        return axis(parameter.label)
    return axis(parameter.label, log=True, **log_ticks(parameter.position(trial) for trial in sweep.trials))


def parallel(sweep: SweepData) -> Chart:
    """Show every trial as a line over its parameters, coloured by the metric, the better ones in front."""
    axes, trials = sweep.varied, sweep.ranked
    scores = [sweep.score_unit(trial.value) for trial in trials]
    columns = [*(axis.units(trials) for axis in axes), scores]
    shades: dict[int, list[int]] = {}
    for index, score in enumerate(scores):
        goodness = score if sweep.maximise else 1 - score
        shades.setdefault(round(goodness * (SHADES - 1)), []).append(index)
    data: list[dict[str, Any]] = []
    for shade, indices in shades.items():
        x: list[float | int | None] = []
        y: list[float | int | None] = []
        text: list[str | None] = []
        for index in indices:  # None ends a line
            x += [*range(len(columns)), None]
            y += [*plain_numbers([column[index] for column in columns]), None]
            text += [*[_hover_text(sweep, trials[index])] * len(columns), None]
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": x, "y": y, "text": text, "hovertemplate": "%{text}<extra></extra>",
                "line": {"color": _shade(shade / (SHADES - 1)), "width": 1.5 + 1.5 * shade / SHADES}, "marker": {"size": 5},
                "showlegend": False, "opacity": 0.55 + 0.45 * shade / (SHADES - 1),
            }
        )  # fmt: skip
    data += _clipped_points(sweep, [(len(axes), sweep.score_unit(trial.value), trial) for trial in sweep.clipped])
    names = [escape_text(axis.label) for axis in axes] + [escape_text(sweep.metric)]
    ticks = [*(axis.ticks(trials) for axis in axes), sweep.score_ticks()]
    return Chart(
        "parallel",
        "Parallel coordinates",
        f"Each line is one trial, from its parameters to {sweep.metric}. Yellow is best and in front, violet is worst."
        f"{_about_clipped(sweep)}",
        data,
        layout(
            axis(tickmode="array", tickvals=list(range(len(names))), ticktext=names, range=[-0.15, len(names) - 0.7]),
            axis(showticklabels=False, showgrid=False, zeroline=False, range=[-0.06, 1.06]),
            annotations=[
                {"x": column, "y": height, "text": escape_text(text), "showarrow": False, "xanchor": "left",
                 "xshift": 6, "bgcolor": "var(--glass)", "font": {"size": 11}}
                for column, pairs in enumerate(ticks) for height, text in pairs
            ],
            hovermode="closest",
        ),
        400,
        min_width=150 * len(names),
    )  # fmt: skip


def _clipped_points(sweep: SweepData, points: Sequence[tuple[float, float, TrialData]]) -> list[dict[str, Any]]:
    """Return marks, at (x, y), of trials whose value lies beyond the end of an axis; nothing without any."""
    if not points:
        return []
    return [
        {
            "type": "scatter", "mode": "markers", "name": f"beyond the axis ({len(points)})",
            "x": [x for x, _, _ in points], "y": plain_numbers([y for _, y, _ in points]),
            "marker": {"symbol": f"triangle-{'down' if sweep.maximise else 'up'}-open", "size": 13, "color": VERMILLION,
                       "line": {"width": 2}},
            "text": [_hover_text(sweep, trial) for _, _, trial in points], "hovertemplate": "%{text}<extra></extra>",
            "showlegend": False,
        }
    ]  # fmt: skip


def _about_clipped(sweep: SweepData) -> str:
    """Return a sentence about trials whose value lies beyond the axis of the metric; empty without any."""
    clipped = [trial.value for trial in sweep.clipped]
    if not clipped:
        return ""
    end, worst = (sweep.limits[0], min(clipped)) if sweep.maximise else (sweep.limits[1], max(clipped))
    subject, verbs = ("1 trial", ("lies", "is")) if len(clipped) == 1 else (f"{len(clipped)} trials", ("lie", "are"))
    beyond, to = ("below", "down to") if sweep.maximise else ("above", "up to")
    return (
        f" {subject} {verbs[0]} {beyond} {sweep.score_text(end)}, where the axis ends ({to} {sweep.score_text(worst)}), "
        f"and {verbs[1]} marked there with a triangle."
    )


def _shade(position: float) -> str:
    """Return the colour at a position 0..1 of the scale, as hex."""
    index = min(int(position * (len(VIRIDIS) - 1)), len(VIRIDIS) - 2)
    low, high = VIRIDIS[index], VIRIDIS[index + 1]
    weight = (position - float(low[0])) / (float(high[0]) - float(low[0]))
    ends = [[int(str(colour)[at : at + 2], 16) for at in (1, 3, 5)] for colour in (low[1], high[1])]
    return "#" + "".join(f"{round(one + weight * (two - one)):02x}" for one, two in zip(*ends, strict=True))


def history(sweep: SweepData) -> Chart:
    """Show the metric of each trial in the order in which they started, and the best value so far."""
    numbers = {trial.name: number for number, trial in enumerate(sweep.evaluated, 1)}
    data = []
    for state, (symbol, colour) in MARKERS.items():
        trials = [trial for trial in sweep.evaluated if trial.state == state]
        if trials:
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": f"{STATE_LABELS[state]} ({len(trials)})",
                    "x": [numbers[trial.name] for trial in trials], "y": plain_numbers([trial.value for trial in trials]),
                    "marker": {"symbol": symbol, "size": 9, "color": colour},
                    "text": [_hover_text(sweep, trial) for trial in trials], "hovertemplate": "%{text}<extra></extra>",
                }
            )  # fmt: skip
    best = sweep.best_so_far()
    data.append(
        {
            "type": "scatter", "mode": "lines", "name": "best so far", "x": list(range(1, len(best) + 1)), "y": plain_numbers(best),
            "line": {"shape": "hv", "color": VERMILLION, "width": 2}, "hoverinfo": "skip",
        }
    )  # fmt: skip
    first = best.index(best[-1]) + 1
    caption = f"The best value, {sweep.score_text(best[-1])}, was first reached in trial {first} of {len(best)}."
    low, high = sweep.limits
    margin = 0.1 * (high - low)
    span: dict[str, Any] = {}
    if not sweep.is_fraction:
        span = {"range": [low - margin, high + margin]}
        ends = {trial.name: low if trial.value < low else high for trial in sweep.clipped}
        data += _clipped_points(sweep, [(numbers[trial.name], ends[trial.name], trial) for trial in sweep.clipped])
        caption += _about_clipped(sweep)
    y = axis(sweep.metric, percent=sweep.is_fraction, **span)
    ticks: dict[str, Any] = {"dtick": 1} if len(best) <= 12 else {}
    x = axis("trial", tickformat="d", **ticks)
    return Chart("history", "Optimization history", caption, data, layout(x, y), 360)


def importance(sweep: SweepData) -> Chart:
    """Show how much of the metric's variance each parameter explains."""
    pairs = list(sweep.importance.items())[::-1]
    bar = {
        "type": "bar", "orientation": "h", "y": [escape_text(truncate(name, 28)) for name, _ in pairs],
        "x": plain_numbers([share for _, share in pairs]), "marker": {"color": BLUE},
        "text": [percent(share, 0) for _, share in pairs], "textposition": "auto", "hoverinfo": "skip",
    }  # fmt: skip
    name, share = pairs[-1]
    caption = (
        f"{name} explains {percent(share, 0)} of the variance of {sweep.metric} over the complete trials (fANOVA)."
    )
    return Chart(
        "importance",
        "Parameter importance",
        caption,
        [bar],
        layout(axis("fraction of the variance", percent=True, rangemode="tozero"), axis(automargin=True)),
        150 + 40 * len(pairs),
    )
