"""The gallery of images with truth, prediction and confidence, as a figure and as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.reporting.figures import style
from harness.reporting.figures.sheet import Sheet, enlarge
from harness.tracking.records import Cell, Image, Table
from harness.utils.text import percent, truncate

if TYPE_CHECKING:
    from harness.evaluation.metrics import Predictions

# Inches: a picture's side, the room between two, and what a tile takes with its words and that room.
_SIDE, _APART, _EDGE = 1.85, 0.16, 0.16
_COLUMN, _ROW = _SIDE + _APART, _SIDE + 0.68


@dataclass(frozen=True)
class Tile:
    """One picture and what the model said of it.

    Attributes:
        picture: uint8 [H, W, 3], as a person sees it.
        confidence: probability of the predicted class, 0..1.
    """

    picture: np.ndarray
    truth: str
    prediction: str
    confidence: float
    right: bool

    @property
    def verdict(self) -> str:
        """The prediction with a sign that says whether it is right, and its confidence."""
        sign = style.RIGHT_SIGN if self.right else style.WRONG_SIGN
        return f"{sign} {truncate(self.prediction, 17)}  {percent(self.confidence)}"

    @property
    def colour(self) -> str:
        return style.RIGHT if self.right else style.WRONG


def gallery(
    tiles: Sequence[Tile], path: Path | str, *, title: str = "", columns: int = 5, empty: str = "Nothing to show."
) -> Path:
    """The picture of tiles in a grid, each under its truth, its prediction and the confidence.

    Args:
        empty: what the picture says when there are no tiles.
    """
    if not tiles:
        return style.save(style.message_figure(empty), path)
    columns = max(1, min(columns, len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width = max(columns * _COLUMN + _EDGE, 4.2)
    words = style.wrap(title, int(width * 7.5))
    head = 0.15 + 0.26 * len(words.splitlines())
    sheet = Sheet(width, head + rows * _ROW)
    sheet.write(width / 2, 0.12, words, ha="center", fontsize=13, fontweight="bold")
    start = (width - columns * _COLUMN + _APART) / 2
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        _draw(sheet, start + column * _COLUMN, head + row * _ROW, tile)
    return sheet.save(path)


def table(
    predictions: Predictions,
    positions: Sequence[int] | np.ndarray,
    pictures: Sequence[np.ndarray],
    ids: Sequence[str],
    classes: Sequence[str],
) -> Table:
    """The same images as rows: picture, id, truth, prediction, confidence, loss, margin and a column of scores a class.

    Args:
        pictures: uint8 [H, W, 3], one for each of `positions`.
        ids: of all images.
    """
    columns = (
        "image",
        "id",
        "truth",
        "prediction",
        "confidence",
        "loss",
        "margin",
        *(f"score/{name}" for name in classes),
    )
    confidence, margin, said = predictions.confidence, predictions.margin, predictions.predicted
    rows: list[tuple[Cell, ...]] = []
    for index, picture in zip(positions, pictures, strict=True):
        numbers = (confidence[index], predictions.losses[index], margin[index], *predictions.probabilities[index])
        names = (str(ids[index]), classes[predictions.labels[index]], classes[said[index]])
        rows.append((Image(picture), *names, *map(float, numbers)))
    return Table(columns, rows)


def _draw(sheet: Sheet, left: float, top: float, tile: Tile) -> None:
    """The verdict above the picture, the truth below it."""
    middle = left + _SIDE / 2
    sheet.write(
        middle, top + 0.2, tile.verdict, ha="center", va="bottom", fontsize=10, color=tile.colour, fontweight="bold"
    )
    sheet.picture(
        left, top + 0.25, _SIDE, _SIDE, enlarge(tile.picture), colour=tile.colour, thick=2.2, dashed=not tile.right
    )
    sheet.write(middle, top + _SIDE + 0.3, f"truth: {truncate(tile.truth, 20)}", ha="center", fontsize=10)
