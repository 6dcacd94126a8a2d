"""Charts as plain data in Plotly's JSON format, which the page's script passes to plotly.js.

Colours are names of the page's CSS variables (`var(--blue)`), so that a chart follows the light, dark and print themes.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

# Okabe and Ito's palette, as variables of `page.css`, which has a dark and a light variant of each.
BLUE, VERMILLION, GREEN, ORANGE = "var(--blue)", "var(--vermillion)", "var(--green)", "var(--orange)"
PURPLE, SKY, INK, SOFT, GRID, PAPER = (
    "var(--purple)",
    "var(--sky)",
    "var(--ink)",
    "var(--soft)",
    "var(--grid)",
    "var(--paper)",
)
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, INK)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SCALE: list[list[Any]] = [[0.0, PAPER], [1.0, BLUE]]
VIRIDIS: list[list[Any]] = [[0.0, "#440154"], [0.25, "#3b528b"], [0.5, "#21918c"], [0.75, "#5ec962"], [1.0, "#fde725"]]
MAX_POINTS = 3000


@dataclass(frozen=True)
class Chart:
    """One chart of a page.

    Attributes:
        key: its id in the page. title: above it. caption: below the title, and the text for screen readers.
        data, layout: Plotly's traces and layout. height: pixels.
        min_width: pixels; on a narrower screen the chart scrolls sideways in its own box.
        has_log_switch: whether a button switches its vertical axis between a linear and a logarithmic one.
    """

    key: str
    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)
    height: int = 340
    min_width: int = 0
    has_log_switch: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"data": self.data, "layout": self.layout}


def escape_text(text: object) -> str:
    """Escape a text for Plotly, which interprets some HTML tags."""
    return html.escape(str(text), quote=False)


def line(
    x: Sequence[float],
    y: Sequence[float],
    name: str,
    colour: str,
    *,
    dash: str = "solid",
    width: float = 2,
    **options: Any,
) -> dict[str, Any]:
    """Return a line; points that are not finite are gaps."""
    few = len(x) <= 40
    return {
        "type": "scatter", "mode": "lines+markers" if few else "lines", "name": escape_text(name),
        "x": plain_numbers(x), "y": plain_numbers(y), "line": {"color": colour, "dash": dash, "width": width}, "marker": {"size": 5}, **options,
    }  # fmt: skip


def axis(title: str = "", *, log: bool = False, percent: bool = False, **options: Any) -> dict[str, Any]:
    """Return an axis with its title."""
    kind = {"type": "log"} if log else {}
    return {
        "title": {"text": escape_text(title), "standoff": 10},
        **kind,
        **({"tickformat": ".1~%"} if percent else {}),
        **({"exponentformat": "e"} if title == "learning rate" else {}),  # 4e-5, where Plotly writes 40µ
        **options,
    }


def log_ticks(values: Iterable[float]) -> dict[str, Any]:
    """Return ticks at 1, 2, 5, 10, ... over the range of the values; only powers of ten where it is wide."""
    known = [value for value in values if math.isfinite(value) and value > 0]
    if not known:
        return {}
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    steps = (1, 2, 5) if high - low <= 2 else (1, 3) if high - low <= 4 else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    return {"tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def layout(x: dict[str, Any], y: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return a layout with two axes."""
    return {"xaxis": x, "yaxis": y, **options}


def plain_numbers(values: Iterable[float]) -> list[float | int | None]:
    """Return numbers for JSON: six significant digits, None where not finite."""
    return [_short(value) for value in values]


def _short(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    if not math.isfinite(value):
        return None
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def thin(x: Sequence[float], y: Sequence[float], limit: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """Return about `limit` points of a long line: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(x) <= limit:
        return list(x), list(y)
    stretch = math.ceil(2 * len(x) / limit)
    kept: list[int] = []
    for start in range(0, len(x), stretch):
        inside = [index for index in range(start, min(start + stretch, len(x))) if not math.isnan(y[index])]
        if inside:
            low, high = min(inside, key=lambda index: y[index]), max(inside, key=lambda index: y[index])
            kept += sorted({low, high})
    return [x[index] for index in kept], [y[index] for index in kept]
