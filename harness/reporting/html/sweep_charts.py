"""The charts of a sweep: where it looked, how it got there, which parameters mattered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
    plain,
)
from harness.reporting.html.sweep_data import ParameterAxis, SweepData, TrialData, as_number
from harness.utils.text import percent, truncate

STATES = {
    "complete": ("circle", BLUE),
    "pruned": ("triangle-down", SKY),
    "running": ("square", SOFT),
    "failed": ("diamond", VERMILLION),
}
SHOWN = {"pruned": "stopped early"}
SHADES = 12  # of the lines in the parallel coordinates


def charts(sweep: SweepData) -> list[Chart]:
    """The charts that these trials allow."""
    if not sweep.evaluated:
        return []
    drawn = [history(sweep)]
    if sweep.pair:
        drawn = [scatter(sweep), parallel(sweep), *drawn]
    if sweep.importance:
        drawn.append(importance(sweep))
    return drawn


def score(sweep: SweepData, value: float) -> str:
    """A value of the metric for a person."""
    if not math.isfinite(value):
        return "–"
    return percent(value) if is_share(sweep) else f"{value:.4g}"


def is_share(sweep: SweepData) -> bool:
    return sweep.metric.endswith("acc")


def limits(sweep: SweepData) -> tuple[float, float]:
    """From the worst that is still worth telling apart to the best: a diverged loss would flatten all others."""
    values = sorted(trial.value for trial in sweep.evaluated)
    low, high, middle = values[0], values[-1], values[len(values) // 2]
    if sweep.maximise and high > middle:
        low = max(low, middle - 3 * (high - middle))
    elif not sweep.maximise and middle > low:
        high = min(high, middle + 3 * (middle - low))
    return low, high if high > low else low + 1e-9


def scatter(sweep: SweepData) -> Chart:
    """Each trial at its place in the search space, coloured by the metric; the best one ringed."""
    across, *rest = sweep.pair
    up = rest[0] if rest else None
    low, high = limits(sweep)
    data: list[dict[str, Any]] = []
    for state, (symbol, _) in STATES.items():
        here = [trial for trial in sweep.evaluated if trial.state == state]
        if here:
            marker = {
                "symbol": symbol, "size": 12, "color": plain([trial.value for trial in here]), "colorscale": VIRIDIS,
                "cmin": low, "cmax": high, "reversescale": not sweep.maximise, "line": {"color": INK, "width": 1},
                "showscale": not data, "colorbar": _bar(sweep),
            }  # fmt: skip
            data.append(_points(sweep, here, across, up, f"{SHOWN.get(state, state)} ({len(here)})", marker))
    lost = [trial for trial in sweep.trials if not trial.evaluated and trial.state == "failed"]
    if lost and up is not None:
        marker = {"symbol": "x-thin", "size": 10, "line": {"color": VERMILLION, "width": 2}}
        data.append(_points(sweep, lost, across, up, f"failed without a value ({len(lost)})", marker))
    best = sweep.winner
    assert best is not None
    ring = {"symbol": "circle-open", "size": 24, "color": VERMILLION, "line": {"width": 3, "color": VERMILLION}}
    data.append(_points(sweep, [best], across, up, f"best: {score(sweep, best.value)}", ring))
    y = _axis(sweep, up) if up is not None else axis(sweep.metric, percent=is_share(sweep))
    where = " and ".join(f"{each.label} {short(best.parameters[each.name])}" for each in sweep.pair)
    says = f"Each of {len(sweep.evaluated)} trials at its parameters, coloured by {sweep.metric}. The best, {score(sweep, best.value)}, has {where}."
    title = f"{across.label} × {up.label}" if up is not None else f"{sweep.metric} over {across.label}"
    return Chart("scatter", title, says, data, layout(_axis(sweep, across), y), 460)


def _points(
    sweep: SweepData,
    trials: Sequence[TrialData],
    across: ParameterAxis,
    up: ParameterAxis | None,
    name: str,
    marker: dict[str, Any],
) -> dict[str, Any]:
    x = [across.place(trial.parameters[across.name]) for trial in trials]
    y = [trial.value if up is None else up.place(trial.parameters[up.name]) for trial in trials]
    return {
        "type": "scatter", "mode": "markers", "x": plain(x), "y": plain(y), "name": escape_text(name), "marker": marker,
        "text": [_about(sweep, trial) for trial in trials], "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _about(sweep: SweepData, trial: TrialData) -> str:
    own = [f"{name} {short(value)}" for name, value in trial.parameters.items()]
    return "<br>".join(
        escape_text(truncate(text, 60)) for text in [trial.name, f"{sweep.metric} {score(sweep, trial.value)}", *own]
    )


def _bar(sweep: SweepData) -> dict[str, Any]:
    return {
        "title": {"text": escape_text(sweep.metric), "side": "right"},
        "thickness": 12,
        **({"tickformat": ".1%"} if is_share(sweep) else {}),
    }


def _axis(sweep: SweepData, of: ParameterAxis) -> dict[str, Any]:
    if of.words:
        names = [escape_text(truncate(word, 18)) for word in of.words]
        return axis(of.label, tickmode="array", tickvals=list(range(len(names))), ticktext=names)
    if not of.logarithmic:
        return axis(of.label)
    known = [of.place(trial.parameters[of.name]) for trial in sweep.trials if trial.parameters.get(of.name)]
    return axis(of.label, log=True, **log_ticks(known))


def parallel(sweep: SweepData) -> Chart:
    """Every trial as a line over its parameters, coloured by the metric, the better ones in front."""
    axes, trials = sweep.varied, sweep.evaluated
    low, high = limits(sweep)
    units = {axis.name: _units(axis, trials) for axis in axes}
    marks = [min(max((trial.value - low) / (high - low), 0.0), 1.0) for trial in trials]
    order = sorted(range(len(trials)), key=lambda place: trials[place].value, reverse=not sweep.maximise)
    shades: dict[int, list[int]] = {}
    for place in order:
        good = marks[place] if sweep.maximise else 1 - marks[place]
        shades.setdefault(round(good * (SHADES - 1)), []).append(place)
    columns = [*axes]
    data: list[dict[str, Any]] = []
    for shade, places in shades.items():
        x: list[float | int | None] = []
        y: list[float | int | None] = []
        text: list[str | None] = []
        for place in places:
            x += [*range(len(columns) + 1), None]
            y += [*plain([units[axis.name][place] for axis in columns] + [marks[place]]), None]
            text += [*[_about(sweep, trials[place])] * (len(columns) + 1), None]
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": x, "y": y, "text": text, "hovertemplate": "%{text}<extra></extra>",
                "line": {"color": _shade(shade / (SHADES - 1)), "width": 1.5 + 1.5 * shade / SHADES}, "marker": {"size": 5},
                "showlegend": False, "opacity": 0.55 + 0.45 * shade / (SHADES - 1),
            }
        )  # fmt: skip
    names = [escape_text(axis.label) for axis in columns] + [escape_text(sweep.metric)]
    return Chart(
        "parallel",
        "Parallel coordinates",
        f"Each trial is one line from parameter to parameter to {sweep.metric}; yellow is best and in front, violet worst.",
        data,
        layout(
            axis(tickmode="array", tickvals=list(range(len(names))), ticktext=names, range=[-0.15, len(names) - 0.7]),
            axis(showticklabels=False, showgrid=False, zeroline=False, range=[-0.06, 1.06]),
            annotations=_heights(sweep, axes, units, low, high),
            hovermode="closest",
        ),
        400,
    )


def short(value: str) -> str:
    """A parameter's value in few letters."""
    number = as_number(value)
    return f"{number:.4g}" if math.isfinite(number) else value.strip('"')


def _units(of: ParameterAxis, trials: Sequence[TrialData]) -> list[float]:
    """The trials' places on a parameter, 0..1."""
    places = [of.place(trial.parameters[of.name]) for trial in trials]
    if of.logarithmic:
        places = [math.log(place) if place > 0 else math.nan for place in places]
    known = [place for place in places if math.isfinite(place)]
    width = max(known) - min(known) if known else 0.0
    return [(place - min(known)) / width if width else 0.5 for place in places]


def _heights(
    sweep: SweepData, axes: Sequence[ParameterAxis], units: dict[str, list[float]], low: float, high: float
) -> list[dict[str, Any]]:
    """What stands at some heights of each axis."""
    told: list[tuple[int, float, str]] = []
    for place, of in enumerate(axes):
        known = {
            trial.parameters[of.name]: unit
            for trial, unit in zip(sweep.evaluated, units[of.name], strict=True)
            if math.isfinite(unit)
        }
        ranked = sorted(known.items(), key=lambda pair: pair[1])
        if len(ranked) > 6:
            ranked = [ranked[0], ranked[len(ranked) // 2], ranked[-1]]
        told += [(place, unit, truncate(short(value), 14)) for value, unit in ranked]
    told += [(len(axes), share, score(sweep, low + share * (high - low))) for share in (0.0, 0.5, 1.0)]
    return [
        {"x": x, "y": y, "text": escape_text(text), "showarrow": False, "xanchor": "left", "xshift": 6,
         "bgcolor": "var(--glass)", "font": {"size": 11}}
        for x, y, text in told
    ]  # fmt: skip


def _shade(share: float) -> str:
    """The colour at a place 0..1 of the scale."""
    place = min(int(share * (len(VIRIDIS) - 1)), len(VIRIDIS) - 2)
    low, high = VIRIDIS[place], VIRIDIS[place + 1]
    part = (share - float(low[0])) / (float(high[0]) - float(low[0]))
    ends = [[int(str(colour)[at : at + 2], 16) for at in (1, 3, 5)] for colour in (low[1], high[1])]
    return "#" + "".join(f"{round(one + part * (two - one)):02x}" for one, two in zip(*ends, strict=True))


def history(sweep: SweepData) -> Chart:
    """The metric of each trial in the order of their beginning, and the best so far."""
    numbers = {trial.name: place for place, trial in enumerate(sweep.evaluated, 1)}
    data = []
    for state, (symbol, colour) in STATES.items():
        here = [trial for trial in sweep.evaluated if trial.state == state]
        if here:
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": f"{SHOWN.get(state, state)} ({len(here)})",
                    "x": [numbers[trial.name] for trial in here], "y": plain([trial.value for trial in here]),
                    "marker": {"symbol": symbol, "size": 9, "color": colour},
                    "text": [_about(sweep, trial) for trial in here], "hovertemplate": "%{text}<extra></extra>",
                }
            )  # fmt: skip
    so_far = sweep.best_so_far()
    data.append(
        {
            "type": "scatter", "mode": "lines", "name": "best so far", "x": list(range(1, len(so_far) + 1)), "y": plain(so_far),
            "line": {"shape": "hv", "color": VERMILLION, "width": 2}, "hoverinfo": "skip",
        }
    )  # fmt: skip
    found = so_far.index(so_far[-1]) + 1
    says = f"The best value, {score(sweep, so_far[-1])}, came with trial {found} of {len(so_far)} that logged {sweep.metric}."
    low, high = limits(sweep)
    margin = 0.1 * (high - low)
    span: dict[str, Any] = {} if is_share(sweep) else {"range": [low - margin, high + margin]}
    y = axis(sweep.metric, percent=is_share(sweep), **span)
    ticks: dict[str, Any] = {"dtick": 1} if len(so_far) <= 12 else {}
    return Chart("history", "History", says, data, layout(axis("trial", tickformat="d", **ticks), y), 360)


def importance(sweep: SweepData) -> Chart:
    """How much of the metric's variance each parameter explains."""
    pairs = list(sweep.importance.items())[::-1]
    bar = {
        "type": "bar", "orientation": "h", "y": [escape_text(truncate(name, 28)) for name, _ in pairs],
        "x": plain([share for _, share in pairs]), "marker": {"color": BLUE},
        "text": [percent(share, 0) for _, share in pairs], "textposition": "auto", "hoverinfo": "skip",
    }  # fmt: skip
    name, share = pairs[-1]
    says = f"{name} explains {percent(share, 0)} of the variance of {sweep.metric} over the complete trials (fANOVA)."
    return Chart(
        "importance",
        "Importance",
        says,
        [bar],
        layout(axis("share of the variance", percent=True, rangemode="tozero"), axis(automargin=True)),
        150 + 40 * len(pairs),
    )
