"""A sheet of paper to lay pictures and words on, measured in inches from its top left corner.

One pair of axes holds everything: with axes of its own for each picture, a gallery takes several times as long to draw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harness.reporting.figures import style

_PIXELS = 320  # side that a shown picture is enlarged or reduced to, about


class Sheet:
    """An empty sheet of `width` x `height` inches."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = style.figure(width, height)
        self.figure.set_layout_engine("none")  # every part has its place
        self._axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self._axes.axis("off")
        self._axes.set_autoscale_on(False)

    def write(self, left: float, top: float, text: str, **look: Any) -> None:
        """`text` from that point to the right and down, unless `look` aligns it otherwise."""
        self._axes.text(left, top, style.plain(text), **{"color": style.INK, "ha": "left", "va": "top", **look})

    def picture(
        self,
        left: float,
        top: float,
        width: float,
        height: float,
        pixels: np.ndarray,
        *,
        colour: str,
        thick: float = 1.4,
        dashed: bool = False,
    ) -> None:
        """A picture in the middle of the box, as large as fits, in a frame.

        Args:
            pixels: uint8 [H, W, 3].
        """
        tall, wide = pixels.shape[:2]
        scale = min(width / wide, height / tall)
        wide, tall = wide * scale, tall * scale
        left, top = left + (width - wide) / 2, top + (height - tall) / 2
        extent = (left, left + wide, top + tall, top)
        self._axes.imshow(pixels, extent=extent, aspect="auto", interpolation="nearest", resample=False)
        self._frame(extent, colour, thick, dashed)

    def hatched(self, left: float, top: float, width: float, height: float, text: str, *, colour: str) -> None:
        """A grey, hatched box that says `text`: where there is no picture."""
        extent = (left, left + width, top + height, top)
        self._rectangle(extent, facecolor="#F0F0F0", edgecolor="#BDBDBD", hatch="////", linewidth=0)
        paper = {"facecolor": style.PAPER, "edgecolor": "none", "pad": 2}
        self.write(left + width / 2, top + height / 2, text, ha="center", va="center", fontsize=9, bbox=paper)
        self._frame(extent, colour, 1.4, False)

    def save(self, path: Path | str) -> Path:
        """Written as `style.save` does."""
        return style.save(self.figure, path)

    def _frame(self, extent: tuple[float, ...], colour: str, thick: float, dashed: bool) -> None:
        dashes: Any = (0, (3, 1.5)) if dashed else "-"
        self._rectangle(extent, facecolor="none", edgecolor=colour, linewidth=thick, linestyle=dashes)

    def _rectangle(self, extent: tuple[float, ...], **look: Any) -> None:
        from matplotlib.patches import Rectangle

        left, right, bottom, top = extent
        self._axes.add_patch(Rectangle((left, top), right - left, bottom - top, **look))


def enlarge(picture: np.ndarray, side: int = _PIXELS) -> np.ndarray:
    """uint8 [h, w, 3] of about `side` pixels: a small picture by whole, sharp pixels, a large one reduced."""
    from PIL import Image as Pillow

    height, width = picture.shape[:2]
    longest = max(height, width)
    if longest <= side:
        times = max(1, side // longest)
        return picture.repeat(times, axis=0).repeat(times, axis=1)
    size = (max(1, round(width * side / longest)), max(1, round(height * side / longest)))
    return np.asarray(Pillow.fromarray(picture).resize(size, Pillow.Resampling.LANCZOS))
