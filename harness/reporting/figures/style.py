"""The style of every figure: one light theme, drawn without a display and without pyplot's global state."""

from __future__ import annotations

import logging
import textwrap
import unicodedata
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.tracking.records import encode_png
from harness.utils.errors import UsageError
from harness.utils.files import write_atomically
from harness.utils.text import cut_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# Okabe and Ito's palette, which people with any common colour blindness can tell apart.
BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, YELLOW, BLACK = "#56B4E9", "#CC79A7", "#F0E442", "#000000"
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)

PAPER, INK, SOFT, GRID = "#FFFFFF", "#222222", "#666666", "#E4E4E4"
RIGHT, WRONG = BLUE, VERMILLION  # always with a sign beside the colour
RIGHT_SIGN, WRONG_SIGN = "✓", "✗"

DPI = 150
BREAKS = " _-/,."  # letters after which a line may end
SUFFIXES = (".png", ".svg")
# The first has Latin, Greek, Cyrillic, Hebrew and Arabic and comes with matplotlib; the others are used where they are
# installed. For a letter that none of them has, every other font is asked that is installed.
_FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Noto Sans", "Arial Unicode MS")
_WITHOUT_OUTLINES = (
    "color emoji",
    "last resort",
    "lastresort",
    "blank",
)  # parts of the names of fonts that draw no letters
log = logging.getLogger(__name__)


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
    """Return `text` so that matplotlib draws it literally: see `with_glyphs`; and a dollar sign starts no formula."""
    return with_glyphs(text).replace("$", r"\$")


def with_glyphs(text: object) -> str:
    """Return `text` with an escape such as `\\u6c49` for each letter that no installed font has, and for control characters.

    Selectors of variants and joiners, which only say how their neighbours look, are left out.
    """
    letters = str(text)
    if letters.isascii() and letters.isprintable():
        return letters
    return "".join(letter if letter == "\n" else _drawable(letter) for letter in letters)


def _drawable(letter: str) -> str:
    if letter.isspace():
        return " "
    if unicodedata.category(letter) == "Cf" or "\ufe00" <= letter <= "\ufe0f":
        return ""
    return letter if letter.isprintable() and _has_glyph(letter) else letter.encode("unicode_escape").decode()


def shorten(text: object, width: int) -> str:
    """Return `text` on one line of at most `width` narrow letters, as it is drawn, with an ellipsis in place of the middle."""
    letters = [with_glyphs(letter) for letter in " ".join(str(text).split())]  # an escape stays whole
    return cut_middle(letters, max(2, int(width / _letter_width("".join(letters)))))


def wrap(text: object, width: int, lines: int = 2) -> str:
    """Return `text` on at most `lines` lines of at most `width` narrow letters, as it is drawn."""
    shown = with_glyphs(text)
    columns = max(2, int(width / _letter_width(shown)))
    return "\n".join(textwrap.wrap(shown, columns, max_lines=lines, placeholder=" …")) or ""


def fit_text(text: object, width: float, fontsize: float, lines: int = 1, bold: bool = False) -> str:
    """Return `text` on at most `lines` lines of `width` inches, as it is drawn; what is too long has an ellipsis in place of the middle.

    A line ends after a space, a dash or the like where there is one in its second half, else between two letters.
    """
    rest = [with_glyphs(letter) for letter in " ".join(str(text).split())]  # an escape stays whole
    most = most_letters("".join(rest), width, fontsize, bold)
    made: list[str] = []

    def fits(part: str) -> bool:
        return text_width(part, fontsize, bold) <= width

    while len(made) < lines - 1 and not fits("".join(rest)):
        count = next((count for count in range(min(len(rest), most), 1, -1) if fits("".join(rest[:count]).rstrip())), 1)
        count = next((end for end in range(count, count // 2, -1) if rest[end - 1] in BREAKS), count)
        made.append("".join(rest[:count]).strip())
        rest = rest[count:]
        del rest[: next((index for index, letter in enumerate(rest) if letter != " "), len(rest))]
    shortened = (cut_middle(rest, letters) for letters in range(min(sum(map(len, rest)), most), 1, -1))
    return "\n".join([*made, next((part for part in shortened if fits(part)), cut_middle(rest, 2))])


def most_letters(text: str, width: float, fontsize: float, bold: bool = False) -> int:
    """Return a number of letters of `text` above which no choice of them fits into `width` inches.

    The names of many classes are thousands of letters, of which there is no need to try more.
    """
    narrowest = min((text_width(letter, fontsize, bold) for letter in set(text)), default=0.0)
    return int(width / narrowest) + 2 if narrowest else len(text)  # an ellipsis, and a space at the end of a line


def text_width(text: str, fontsize: float, bold: bool = False) -> float:
    """Return the width of a line in inches, as it is drawn, but for kerning.

    Args:
        fontsize: points.
    """
    families = (*_families(), *_further_families)
    return sum(_advance(letter, families, bold) for letter in text) * fontsize / 72


@cache
def _advance(letter: str, families: tuple[str, ...], bold: bool) -> float:
    """Return the width of a letter where the font has a size of 1."""
    from matplotlib import font_manager

    weight, size = "bold" if bold else "normal", 100
    files = [font_manager.findfont(font_manager.FontProperties(family=name, weight=weight)) for name in families]
    font = font_manager.get_font(list(dict.fromkeys(files)))
    font.set_size(size, 72)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a letter that no font has; `drawable_text` reports it
        font.set_text(f"|{letter}|")  # of a space alone the width is 0
        width = font.get_width_height()[0]
        font.set_text("||")
    return float(width - font.get_width_height()[0]) / 64 / size


def _letter_width(text: str) -> float:
    """Return the mean width of the letters of a text, where a Latin letter has 1 and a Chinese one 2."""
    if not text or text.isascii():
        return 1.0
    return 1 + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text) / len(text)


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
        set_fonts(text)


def set_fonts(text: Text) -> None:
    """Set the fonts of a text, for measuring it before the figure is saved."""
    text.set_fontfamily([*_families(), *_further_families])


@cache
def _families() -> tuple[str, ...]:
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in _FONTS if name in installed)


@cache
def _letters() -> frozenset[int]:
    """Return the code points that the usual fonts have."""
    from matplotlib import font_manager

    letters: set[int] = set()
    for name in _families():
        letters |= set(font_manager.get_font(font_manager.findfont(name)).get_charmap())
    return frozenset(letters)


# The fonts that were found to have a letter which the usual ones do not have, in the order in which they were needed.
_further_families: dict[str, None] = {}


@cache
def _has_glyph(letter: str) -> bool:
    """Return whether an installed font has a letter; the font is used from then on. What no font has is reported once."""
    if ord(letter) in _letters():
        return True
    family = next((name for name, letters in _other_fonts() if ord(letter) in letters), "")
    if family:
        _further_families[family] = None
    else:
        _warn_once()
    return bool(family)


@cache
def _other_fonts() -> tuple[tuple[str, frozenset[int]], ...]:
    """Return (family, code points) of the installed fonts with outlines, except the usual ones; upright and regular only."""
    from matplotlib import font_manager

    files: dict[str, str] = {}
    for entry in font_manager.fontManager.ttflist:
        is_regular = entry.style == "normal" and entry.weight in (400, "normal", "regular", "book")
        draws = not any(part in entry.name.lower() for part in _WITHOUT_OUTLINES)
        if is_regular and draws and entry.name not in _families():
            files.setdefault(entry.name, entry.fname)
    fonts = []
    for name, file in sorted(files.items()):
        try:
            font = font_manager.get_font(file)
            if font.scalable:
                fonts.append((name, frozenset(font.get_charmap())))
        except (OSError, RuntimeError, ValueError):  # a font that FreeType cannot read
            continue
    return tuple(fonts)


@cache
def _warn_once() -> None:
    log.warning(
        "No installed font has some letters of the names in the figures, which are drawn as escapes such as \\u6c49. "
        "Install one that has them, for example Noto Sans CJK (Debian: fonts-noto-cjk)."
    )
