"""A contact sheet: some images of each class as they are stored, and below each what a network sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.reporting.figures import style
from harness.reporting.figures.gallery import Canvas

# Inches: side of a box, between two, between classes, margin, width of the names, height of the heading.
_SIDE, _GAP, _APART, _EDGE, _NAMES, _TOP = 0.95, 0.06, 0.22, 0.15, 1.5, 0.62


@dataclass(frozen=True)
class ClassRow:
    """The images of one class.

    Attributes:
        about: a line below its name, such as the number of its images.
        pictures: each as stored and as the network sees it, uint8 [H, W, 3] twice.
    """

    name: str
    about: str
    pictures: Sequence[tuple[np.ndarray, np.ndarray]]


def contact_sheet(rows: Sequence[ClassRow], path: Path | str, *, title: str, subtitle: str) -> Path:
    """Draw the classes below each other, each with a row of its images and a row of what the network sees of them."""
    if not rows:
        return style.save_figure(style.message_figure("No images."), path)
    columns = max(len(row.pictures) for row in rows)
    height = 2 * _SIDE + _GAP
    width = max(2 * _EDGE + _NAMES + columns * (_SIDE + _GAP), 6.0)
    canvas = Canvas(width, _TOP + len(rows) * (height + _APART) + _EDGE)
    canvas.write(_EDGE, 0.1, style.shorten(title, int(width * 9)), fontsize=13, fontweight="bold")
    canvas.write(_EDGE, 0.38, style.shorten(subtitle, int(width * 14)), fontsize=9, color=style.SOFT)
    for number, row in enumerate(rows):
        top = _TOP + number * (height + _APART)
        canvas.write(_EDGE, top + 0.05, style.shorten(row.name, 20), fontsize=10, fontweight="bold")
        canvas.write(_EDGE, top + 0.28, style.shorten(row.about, 26), fontsize=8.5, color=style.SOFT)
        for column, (stored, seen) in enumerate(row.pictures):
            left = _EDGE + _NAMES + column * (_SIDE + _GAP)
            canvas.picture(left, top, _SIDE, _SIDE, stored, colour=style.GRID, linewidth=0.7)
            canvas.picture(left, top + _SIDE + _GAP, _SIDE, _SIDE, seen, colour=style.SKY, linewidth=0.9)
    return canvas.save(path)
