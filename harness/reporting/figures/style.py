"""The style of every figure: one light theme, drawn without a display and without pyplot's global state."""

from __future__ import annotations

import textwrap
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.tracking.records import encode_png
from harness.utils.errors import UsageError
from harness.utils.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which people with any common colour blindness can tell apart.
BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, YELLOW, BLACK = "#56B4E9", "#CC79A7", "#F0E442", "#000000"
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)

PAPER, INK, SOFT, GRID = "#FFFFFF", "#222222", "#666666", "#E4E4E4"
RIGHT, WRONG = BLUE, VERMILLION  # always with a sign beside the colour
RIGHT_SIGN, WRONG_SIGN = "✓", "✗"

DPI = 150
SUFFIXES = (".png", ".svg")
# The first has Latin, Greek and Cyrillic and comes with matplotlib; the others are used where they are installed.
_FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Noto Sans", "Arial Unicode MS")
_NO_GLYPH = "□"


def figure(width: float = 8.0, height: float = 4.5) -> Figure:
    """Return an empty figure of `width` x `height` inches, with constrained layout."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER, layout="constrained")


def style_axes(axes: Axes, *, x: str = "", y: str = "", title: str = "", grid: bool = True) -> Axes:
    """Apply the style to `axes`, with axis labels and a title aligned to the left."""
    axes.set_facecolor(PAPER)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=SOFT, linewidth=0.8)
    axes.tick_params(colors=SOFT, labelcolor=INK, labelsize=10, width=0.8, length=3)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(color=GRID, linewidth=0.7)
    axes.set_xlabel(drawable_text(x), fontsize=11, color=INK)
    axes.set_ylabel(drawable_text(y), fontsize=11, color=INK)
    if title:
        axes.set_title(drawable_text(title), fontsize=13, color=INK, loc="left", pad=10, fontweight="bold")
    return axes


def legend(axes: Axes, **options: Any) -> None:
    """Add a legend to `axes` if any artist has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            **{"fontsize": 10, "frameon": True, "framealpha": 0.9, "edgecolor": GRID, "labelcolor": INK, **options}
        )


def drawable_text(text: object) -> str:
    """Return `text` so that matplotlib draws it literally.

    A dollar sign starts no formula; a control character, and a letter that no installed font has, becomes a box.
    """
    letters = _letters()
    shown = "".join(
        letter if letter == "\n" or (letter.isprintable() and ord(letter) in letters) else _NO_GLYPH
        for letter in str(text)
    )
    return shown.replace("$", r"\$")


def wrap(text: object, width: int, lines: int = 2) -> str:
    """Return `text` on at most `lines` lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(str(text), width, max_lines=lines, placeholder=" …")) or ""


def message_figure(text: str, *, width: float = 8.0, height: float = 3.0) -> Figure:
    """Return a figure that holds only a message, for where there is nothing to draw."""
    empty = figure(width, height)
    empty.text(0.5, 0.5, drawable_text(wrap(text, 60, lines=4)), ha="center", va="center", fontsize=13, color=SOFT)
    return empty


def figure_kind(path: Path) -> str:
    """Return the suffix of a figure's name in lower case.

    Raises:
        UsageError: it is neither `.png` nor `.svg`.
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise UsageError(f"cannot draw {path.name!r}: the name must end in .png or .svg")
    return kind


def save_figure(drawn: Figure, path: Path | str) -> Path:
    """Write a figure to `path`, PNG or SVG by its suffix, in one atomic step; missing folders are created.

    Raises:
        UsageError: the path has another suffix.
    """
    path = Path(path)
    kind = figure_kind(path)
    _set_fonts(drawn)
    with warnings.catch_warnings():
        # A tiny or crowded figure is still drawn, only laid out less well: no reason to stop a run.
        warnings.filterwarnings("ignore", message=".*constrained_layout not applied.*")
        if kind == ".svg":
            write_atomically(path, lambda file: drawn.savefig(file, format="svg", dpi=DPI, metadata={"Date": None}))
        else:
            write_atomically(path, encode_png(_draw(drawn), DPI))
    return path


def _draw(drawn: Figure) -> np.ndarray:
    """Return a figure as pixels, uint8 [H, W, 3]. It is drawn once; `savefig` draws twice, the first time for the layout."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]  # the paper is opaque


def warm_up() -> None:
    """Find the fonts and draw once into memory, so that the next figure of this process is fast."""
    drawn = figure(2, 2)
    style_axes(drawn.add_subplot(), x=drawable_text("x"), y="y", title="title")
    _set_fonts(drawn)
    encode_png(_draw(drawn), DPI)


def _set_fonts(drawn: Figure) -> None:
    """Set the fonts of every text, whatever the user's matplotlibrc says."""
    from matplotlib.text import Text

    for text in drawn.findobj(Text):
        text.set_fontfamily(list(_families()))


@cache
def _families() -> tuple[str, ...]:
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in _FONTS if name in installed)


@cache
def _letters() -> frozenset[int]:
    """Return the code points that can be drawn."""
    from matplotlib import font_manager

    letters: set[int] = set()
    for name in _families():
        letters |= set(font_manager.get_font(font_manager.findfont(name)).get_charmap())
    return frozenset(letters)
