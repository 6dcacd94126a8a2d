"""Pictures of class-activation maps: one laid over its image, and the panel of misclassified images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.evaluation.gradcam import METHODS, Maps
from harness.reporting.figures import style
from harness.reporting.figures.gallery import Tile
from harness.reporting.figures.sheet import Sheet, enlarge
from harness.utils.text import percent, truncate

_COLOURS = "inferno"  # perceptually uniform: equal steps of evidence look equally large, also in grey
_PIXELS = 224  # side of what a panel is drawn from, about
_OPAQUE = 0.85  # of the colour, where the evidence is at its peak
# Inches: a panel's side, between panels, between cards, at the margin; the sheet's heading; a card's heading and captions.
_SIDE, _GAP, _APART, _EDGE, _HEAD, _ABOVE, _BELOW = 1.14, 0.05, 0.26, 0.18, 0.95, 0.25, 0.42
_CARD = 3 * _SIDE + 2 * _GAP


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The picture with the map laid over it, uint8 [H, W, 3].

    Where there is no evidence the picture is grey and dim; evidence is drawn in a perceptually uniform colour that
    hides the more of the picture the stronger it is. Nothing is stretched: equal values look alike in every panel.

    Args:
        picture: uint8 [H, W, 3], what the model saw.
        heat: float [h, w], 0..1; resized to the picture's size.
    """
    import matplotlib

    strength = _resize(np.clip(np.nan_to_num(heat), 0, 1), picture.shape[:2])[..., None]
    grey = picture @ np.array([0.299, 0.587, 0.114])  # luma, ITU-R BT.601
    ground = 0.72 * np.repeat(grey[..., None], 3, 2) + 0.08 * picture
    colour = 255 * matplotlib.colormaps[_COLOURS](0.15 + 0.85 * strength[..., 0])[..., :3]
    opacity = _OPAQUE * strength**0.75
    return np.clip((1 - opacity) * ground + opacity * colour, 0, 255).round().astype(np.uint8)


def bare(heat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The map alone in the overlay's colours, uint8 [H, W, 3], for `shape` [H, W, ...]; `heat` is float [h, w], 0..1."""
    import matplotlib

    colour = matplotlib.colormaps[_COLOURS](_resize(np.clip(np.nan_to_num(heat), 0, 1), shape[:2]))
    return (255 * colour[..., :3]).round().astype(np.uint8)


def hatched(shape: tuple[int, ...]) -> np.ndarray:
    """What stands for a map with nothing in it: grey stripes, uint8 [H, W, 3], for `shape` [H, W, ...]."""
    rows, columns = np.indices(shape[:2])
    stripes = np.where((rows + columns) // 6 % 2, 235, 205).astype(np.uint8)
    return np.repeat(stripes[..., None], 3, 2)


def shared_scale(first: Maps, second: Maps) -> tuple[np.ndarray, np.ndarray]:
    """Both maps of each image, float32 [N, H, W] twice, such that 1 is the stronger peak of the two."""
    peak = np.maximum(np.maximum(first.peak, second.peak), np.finfo(np.float32).tiny)
    return first.scaled * (first.peak / peak)[:, None, None], second.scaled * (second.peak / peak)[:, None, None]


def gradcam_figure(
    tiles: Sequence[Tile], predicted: Maps, true: Maps, path: Path | str, *, title: str = "", columns: int = 5,
    empty: str = "No misclassified images: there is nothing to explain.",
) -> Path:  # fmt: skip
    """The panel of misclassified images: each beside the evidence for the predicted and for the true class.

    The two maps of an image share one scale, the peak of the stronger, so that they can be compared. A map with
    nothing in it is a hatched panel that says so.

    Args:
        tiles: pictures as the model saw them (of the maps' aspect), with truth, prediction and confidence.
        predicted, true: maps of the same images for the two classes.
        empty: what the picture says when there are no tiles.

    Raises:
        ValueError: the maps are not of as many images as there are tiles.
    """
    if not tiles:
        return style.save(style.message_figure(empty), path)
    if not len(tiles) == len(predicted) == len(true):
        raise ValueError(
            f"need a map of each kind for each image, got {len(tiles)} images, {len(predicted)} and {len(true)} maps"
        )
    columns = max(1, min(columns, len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    aspect = float(np.median([tile.picture.shape[0] / tile.picture.shape[1] for tile in tiles]))
    tall = _SIDE * min(max(aspect, 0.5), 1.6)
    row_height = _ABOVE + tall + _BELOW
    sheet = Sheet(max(2 * _EDGE + columns * _CARD + (columns - 1) * _APART, 7.6), _HEAD + rows * row_height)
    _head(sheet, title, predicted)
    for index, (tile, *heats) in enumerate(zip(tiles, *shared_scale(predicted, true), strict=True)):
        row, column = divmod(index, columns)
        empties = (bool(predicted.empty[index]), bool(true.empty[index]))
        _card(sheet, _EDGE + column * (_CARD + _APART), _HEAD + row * row_height, tall, tile, heats, empties)
    return sheet.save(path)


def _head(sheet: Sheet, title: str, maps: Maps) -> None:
    method = METHODS[maps.method]
    name = method.class_name.replace("PlusPlus", "++")
    letters = int(sheet.figure.get_figwidth() * 11)
    sheet.write(_EDGE, 0.1, truncate(title, int(letters * 0.7)), fontsize=14, fontweight="bold")
    how = f"{name} at {truncate(maps.layer, 24)}: the image, evidence for the predicted ({style.WRONG_SIGN}), for the true class ({style.RIGHT_SIGN})"
    sheet.write(_EDGE, 0.42, truncate(how, letters), fontsize=10)
    ramp = overlay(np.full((12, 240, 3), 150, np.uint8), np.tile(np.linspace(0, 1, 240), (12, 1)))
    sheet.write(_EDGE, 0.66, "no evidence", fontsize=9, color=style.SOFT)
    sheet.picture(_EDGE + 0.85, 0.66, 1.5, 0.13, ramp, colour=style.GRID, thick=0.5)
    meaning = (
        "peak of the stronger map" if method.is_class_specific else "peak (this method gives one map for all classes)"
    )
    sheet.write(_EDGE + 2.45, 0.66, meaning, fontsize=9, color=style.SOFT)


def _card(
    sheet: Sheet,
    left: float,
    top: float,
    tall: float,
    tile: Tile,
    heats: Sequence[np.ndarray],
    empties: tuple[bool, bool],
) -> None:
    heading = f"{truncate(tile.truth, 16)}, taken for {truncate(tile.prediction, 16)}  {percent(tile.confidence)}"
    sheet.write(left, top, heading, fontsize=10, fontweight="bold")
    picture, top = enlarge(tile.picture, _PIXELS), top + _ABOVE
    sheet.picture(left, top, _SIDE, tall, picture, colour=style.SOFT)
    _caption(sheet, left, top + tall, "image", style.SOFT)
    words = ((tile.prediction, style.WRONG_SIGN, style.WRONG), (tile.truth, style.RIGHT_SIGN, style.RIGHT))
    for (name, sign, colour), heat, empty in zip(words, heats, empties, strict=True):
        left += _SIDE + _GAP
        if empty:
            sheet.hatched(left, top, _SIDE, tall, "empty\nmap", colour=colour)
        else:
            sheet.picture(left, top, _SIDE, tall, overlay(picture, heat), colour=colour)
        _caption(sheet, left, top + tall, f"{sign} {truncate(name, 13)}", colour)


def _caption(sheet: Sheet, left: float, bottom: float, text: str, colour: str) -> None:
    sheet.write(left + _SIDE / 2, bottom + 0.05, text, ha="center", fontsize=9, color=colour)


def _resize(heat: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """float64 [H, W], between the cells' centres linearly."""
    import torch

    if heat.shape == tuple(size):
        return heat.astype(float)
    given = torch.as_tensor(np.asarray(heat, np.float64))[None, None]
    return torch.nn.functional.interpolate(given, size=tuple(size), mode="bilinear", align_corners=False)[0, 0].numpy()
