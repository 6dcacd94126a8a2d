"""The grid of augmented training images, each with its class, or the two classes that it is mixed of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.reporting.figures import style
from harness.reporting.figures.gallery import Canvas

_SIDE, _GAP, _EDGE, _LINE = 1.5, 0.12, 0.15, 0.17  # inches: side of an image, between two, margin, line of a text
COLUMNS = 5


def augmented_grid(
    pictures: Sequence[np.ndarray], labels: Sequence[str], path: Path | str, *, title: str, subtitle: str
) -> Path:
    """Draw images, uint8 [H, W, 3], in rows of five, each with its label below.

    Args:
        labels: each of one or more lines.
        subtitle: how the images were augmented, in at most three lines.
    """
    columns = min(COLUMNS, len(pictures))
    width = max(2 * _EDGE + columns * (_SIDE + _GAP) - _GAP, 5.0)
    lines = style.wrap(subtitle, int(width * 13), lines=3).splitlines()
    top = 0.5 + _LINE * len(lines)
    below = 0.12 + _LINE * max(len(label.splitlines()) for label in labels)
    canvas = Canvas(width, top + math.ceil(len(pictures) / columns) * (_SIDE + below) + _EDGE)
    canvas.write(_EDGE, 0.12, style.shorten(title, int(width * 9)), fontsize=13, fontweight="bold")
    for number, line in enumerate(lines):
        canvas.write(_EDGE, 0.42 + _LINE * number, line, fontsize=9, color=style.SOFT)
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        row, column = divmod(number, columns)
        left, upper = _EDGE + column * (_SIDE + _GAP), top + row * (_SIDE + below)
        canvas.picture(left, upper, _SIDE, _SIDE, picture, colour=style.GRID, linewidth=0.7)
        for place, line in enumerate(label.splitlines()):
            height = upper + _SIDE + 0.05 + _LINE * place
            canvas.write(left + _SIDE / 2, height, style.shorten(line, 22), ha="center", fontsize=8.5)
    return canvas.save(path)
