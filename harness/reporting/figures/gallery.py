"""The gallery of images with truth, prediction and confidence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.reporting.figures import style
from harness.utils.text import percent

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.backend_bases import RendererBase

# Inches: side of an image, between two, margin; a tile with its texts and the gap to the next one; a further line of text.
_SIDE, _GAP, _EDGE = 1.85, 0.16, 0.16
_COLUMN, _ROW, _LINE = _SIDE + _GAP, _SIDE + 0.68, 0.17


@dataclass(frozen=True)
class MapLabel:
    """The class of a class-activation map of an image with several labels.

    Attributes:
        note: stands below the name: its probability and its threshold.
    """

    name: str
    note: str


@dataclass(frozen=True)
class Tile:
    """One image with its true and its predicted class.

    Attributes:
        picture: uint8 [H, W, 3].
        confidence: probability of the predicted class, 0..1; NaN where several classes may be predicted.
        explained: where several may be: the class that is predicted wrongly and the one that is missed, whose maps are
            drawn; None where there is no such class.
    """

    picture: np.ndarray
    truth: str
    prediction: str
    confidence: float
    correct: bool
    explained: tuple[MapLabel | None, MapLabel | None] | None = None

    @property
    def has_several(self) -> bool:
        """Whether the truth and the prediction are sets of classes, as text."""
        return math.isnan(self.confidence)

    @property
    def verdict(self) -> str:
        """The prediction and its confidence, after a sign for correct or wrong."""
        sign = style.RIGHT_SIGN if self.correct else style.WRONG_SIGN
        if self.has_several:
            return style.fit_text(f"{sign} {self.prediction}", _COLUMN - 0.1, 10, lines=2, bold=True)
        return f"{sign} {style.shorten(self.prediction, 17)}  {percent(self.confidence)}"

    @property
    def truth_line(self) -> str:
        """The truth, after a word that says so."""
        if self.has_several:
            return style.fit_text(f"truth: {self.truth}", _COLUMN - 0.1, 10, lines=2)
        return f"truth: {style.shorten(self.truth, 20)}"

    @property
    def colour(self) -> str:
        return style.RIGHT if self.correct else style.WRONG


def gallery(
    tiles: Sequence[Tile], path: Path | str, *, title: str = "", columns: int = 5, empty: str = "No images."
) -> Path:
    """Draw tiles in a grid, each with its prediction, its confidence and its true class.

    Args:
        empty: the message of the figure when there are no tiles.
    """
    if not tiles:
        return style.save_figure(style.message_figure(empty), path)
    columns = max(1, min(columns, len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width = max(columns * _COLUMN + _EDGE, 4.2)
    heading = style.wrap(title, int(width * 7.5))
    top = 0.15 + 0.26 * len(heading.splitlines())
    above = _further_lines(tile.verdict for tile in tiles)
    height = _ROW + above + _further_lines(tile.truth_line for tile in tiles)
    canvas = Canvas(width, top + rows * height)
    canvas.write(width / 2, 0.12, heading, ha="center", fontsize=13, fontweight="bold")
    start = (width - columns * _COLUMN + _GAP) / 2
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        _draw_tile(canvas, start + column * _COLUMN, top + above + row * height, tile)
    return canvas.save(path)


def _further_lines(texts: Iterable[str]) -> float:
    """Return the height of the lines after the first one of the longest of some texts, inches."""
    return _LINE * max(text.count("\n") for text in texts)


def _draw_tile(canvas: Canvas, left: float, top: float, tile: Tile) -> None:
    """Draw an image with its verdict above and its true class below, at most two lines each."""
    middle, colour, box = left + _SIDE / 2, tile.colour, (left, top + 0.25, _SIDE, _SIDE)
    canvas.write(
        middle, top + 0.2, tile.verdict, ha="center", va="bottom", fontsize=10, color=colour, fontweight="bold"
    )
    canvas.picture(*box, tile.picture, colour=colour, linewidth=2.2, dashed=not tile.correct)
    canvas.write(middle, top + _SIDE + 0.3, tile.truth_line, ha="center", fontsize=10)


class Canvas:
    """A figure of `width` x `height` inches to place images and texts on, measured from its top left corner.

    One pair of axes holds everything, and images are copied into it pixel by pixel: with axes for each image, or with
    images that matplotlib has to resample, a gallery takes several times as long to draw.
    """

    def __init__(self, width: float, height: float) -> None:
        width, height = _whole_pixels(width), _whole_pixels(height)
        self.figure = style.figure(width, height)
        self.figure.set_layout_engine("none")  # every artist has its position
        self._axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self._axes.axis("off")
        self._axes.set_autoscale_on(False)
        self._pictures: list[tuple[np.ndarray, float, float]] = []  # pixels, left, bottom

    def write(self, left: float, top: float, text: str, **options: Any) -> None:
        """Write `text` from that point to the right and down, unless `options` align it otherwise."""
        self._axes.text(
            left, top, style.drawable_text(text), **{"color": style.INK, "ha": "left", "va": "top", **options}
        )

    def picture(
        self,
        left: float,
        top: float,
        width: float,
        height: float,
        pixels: np.ndarray,
        *,
        colour: str,
        linewidth: float = 1.4,
        dashed: bool = False,
    ) -> None:
        """Draw an image in the middle of the box, as large as fits, in a frame.

        Args:
            pixels: uint8 [H, W, 3].
        """
        fitted = fit_to_box(pixels, width, height)
        inner_height, inner_width = (side / style.DPI for side in fitted.shape[:2])
        left = _whole_pixels(left + (width - inner_width) / 2)
        top = _whole_pixels(top + (height - inner_height) / 2)
        self._pictures.append((fitted, left, top + inner_height))
        self._frame((left, left + inner_width, top + inner_height, top), colour, linewidth, dashed)

    def hatched(self, left: float, top: float, width: float, height: float, text: str, *, colour: str) -> None:
        """Draw a grey, hatched box with a text, where there is no image."""
        extent = (left, left + width, top + height, top)
        self._rectangle(extent, facecolor="#F0F0F0", edgecolor="#BDBDBD", hatch="////", linewidth=0)
        background = {"facecolor": style.PAPER, "edgecolor": "none", "pad": 2}
        self.write(left + width / 2, top + height / 2, text, ha="center", va="center", fontsize=9, bbox=background)
        self._frame(extent, colour, 1.4, False)

    def save(self, path: Path | str) -> Path:
        """Write the figure as `style.save_figure` does."""
        self._axes.add_artist(_pictures_artist(self._pictures))
        self._pictures = []
        return style.save_figure(self.figure, path)

    def _frame(self, extent: tuple[float, ...], colour: str, linewidth: float, dashed: bool) -> None:
        dashes: Any = (0, (3, 1.5)) if dashed else "-"
        self._rectangle(extent, facecolor="none", edgecolor=colour, linewidth=linewidth, linestyle=dashes)

    def _rectangle(self, extent: tuple[float, ...], **options: Any) -> None:
        from matplotlib.patches import Rectangle

        left, right, bottom, top = extent
        self._axes.add_artist(Rectangle((left, top), right - left, bottom - top, **options))


def fit_to_box(pixels: np.ndarray, width: float, height: float) -> np.ndarray:
    """Return an image, uint8 [h, w, 3], at the pixels that it has in a box of `width` x `height` inches, as large as fits.

    An enlarged image shows its pixels as squares; one that is reduced or enlarged by less than half is interpolated.
    """
    from PIL import Image as Pillow

    rows, columns = pixels.shape[:2]
    scale = style.DPI * min(width / columns, height / rows)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    if size == (columns, rows):
        return pixels
    filter = Pillow.Resampling.NEAREST if scale >= 1.5 else Pillow.Resampling.LANCZOS
    return np.asarray(Pillow.fromarray(pixels).resize(size, filter))


def _whole_pixels(length: float) -> float:
    """Return a length or position in inches, rounded to whole pixels."""
    return round(length * style.DPI) / style.DPI


def _pictures_artist(pictures: Sequence[tuple[np.ndarray, float, float]]) -> Artist:
    """Return an artist that copies images, uint8 [h, w, 3], into a figure, each with its lower left corner at (x, y)."""
    from matplotlib.artist import Artist, allow_rasterization

    class Pictures(Artist):
        @allow_rasterization
        def draw(self, renderer: RendererBase) -> None:
            context = renderer.new_gc()
            for pixels, left, bottom in pictures:
                x, y = self.get_transform().transform((left, bottom))
                opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
                renderer.draw_image(context, x, y, opaque[::-1])  # their first row is the lowest
            context.restore()

    artist = Pictures()
    artist.set_zorder(0)  # below frames and texts
    return artist


def fit_to_side(picture: np.ndarray, side: int) -> np.ndarray:
    """Return the image, uint8 [h, w, 3], at about `side` pixels: a small one by repeating pixels, a large one reduced."""
    from PIL import Image as Pillow

    height, width = picture.shape[:2]
    longest = max(height, width)
    if longest <= side:
        factor = max(1, side // longest)
        return picture.repeat(factor, axis=0).repeat(factor, axis=1)
    size = (max(1, round(width * side / longest)), max(1, round(height * side / longest)))
    return np.asarray(Pillow.fromarray(picture).resize(size, Pillow.Resampling.LANCZOS))
