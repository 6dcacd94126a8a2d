"""Class-activation maps as images: one laid over its image, and the figure of misclassified images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from harness.evaluation.gradcam import METHODS, Maps
from harness.reporting.figures import style
from harness.reporting.figures.gallery import Canvas, Tile, fit_to_box
from harness.utils.text import percent

_COLOURS = "inferno"  # perceptually uniform, also in grey
_OPACITY = 0.85  # of the colour at the peak of the evidence
# Inches: side of a panel, between panels, between cards, margin; height of the figure's heading, a card's heading, captions.
_SIDE, _GAP, _APART, _EDGE, _TOP, _HEADING, _CAPTION = 1.14, 0.05, 0.26, 0.18, 1.15, 0.25, 0.42
_CARD = 3 * _SIDE + 2 * _GAP
_NAMES = 29  # characters of both class names that fit in the heading of a card


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return the image with the map laid over it, uint8 [H, W, 3].

    Without evidence the image is grey and dim; evidence is drawn in a perceptually uniform colour whose opacity grows
    with it. The values are not rescaled, so that equal values look alike in every panel.

    Args:
        picture: uint8 [H, W, 3], the input of the model.
        heat: float [h, w], 0..1; resized to the image's size.
    """
    strength = resize_map(np.clip(np.nan_to_num(heat), 0, 1), picture.shape[:2])[..., None]
    grey = picture @ np.array([0.299, 0.587, 0.114])  # luma, ITU-R BT.601
    background = 0.72 * np.repeat(grey[..., None], 3, 2) + 0.08 * picture
    colour = _colours(0.15 + 0.85 * strength[..., 0])
    opacity = _OPACITY * strength**0.75
    return np.clip((1 - opacity) * background + opacity * colour, 0, 255).round().astype(np.uint8)


def resize_map(heat: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return a map, float [h, w], as float64 [H, W] of `size`, interpolated bilinearly."""
    import torch

    if heat.shape == tuple(size):
        return heat.astype(float)
    cells = torch.as_tensor(np.asarray(heat, np.float64))[None, None]
    return torch.nn.functional.interpolate(cells, size=tuple(size), mode="bilinear", align_corners=False)[0, 0].numpy()


def hatched(shape: tuple[int, ...]) -> np.ndarray:
    """Return grey stripes, uint8 [H, W, 3] for `shape` [H, W, ...], as the image of an empty map."""
    rows, columns = np.indices(shape[:2])
    stripes = np.where((rows + columns) // 6 % 2, 235, 205).astype(np.uint8)
    return np.repeat(stripes[..., None], 3, 2)


def shared_scale(first: Maps, second: Maps) -> tuple[np.ndarray, np.ndarray]:
    """Return both maps of each image, float32 [N, H, W] twice, scaled so that the higher of their two peaks is 1."""
    peak = np.maximum(np.maximum(first.peak, second.peak), np.finfo(np.float32).tiny)
    return first.scaled * (first.peak / peak)[:, None, None], second.scaled * (second.peak / peak)[:, None, None]


def gradcam_figure(
    tiles: Sequence[Tile], predicted: Maps, true: Maps, path: Path | str, *, title: str = "", columns: int = 5,
    empty: str = "No misclassified images.",
) -> Path:  # fmt: skip
    """Draw misclassified images, each beside its maps for the predicted and for the true class.

    The two maps of an image share one scale, the higher of their peaks, so that they can be compared. An empty map is
    a hatched panel.

    Args:
        tiles: the model's inputs (of the maps' aspect ratio), with truth, prediction and confidence.
        predicted, true: maps of the same images for the two classes.
        empty: the message of the figure when there are no tiles.

    Raises:
        ValueError: the numbers of tiles and of maps differ.
    """
    if not tiles:
        return style.save_figure(style.message_figure(empty), path)
    if not len(tiles) == len(predicted) == len(true):
        raise ValueError(
            f"need a map of each kind for each image, got {len(tiles)} images, {len(predicted)} and {len(true)} maps"
        )
    columns = max(1, min(columns, len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    aspect = float(np.median([tile.picture.shape[0] / tile.picture.shape[1] for tile in tiles]))
    height = _SIDE * min(max(aspect, 0.5), 1.6)
    row_height = _HEADING + height + _CAPTION
    canvas = Canvas(max(2 * _EDGE + columns * _CARD + (columns - 1) * _APART, 7.6), _TOP + rows * row_height)
    _write_heading(canvas, title, predicted)
    for index, (tile, *heats) in enumerate(zip(tiles, *shared_scale(predicted, true), strict=True)):
        row, column = divmod(index, columns)
        empties = (bool(predicted.empty[index]), bool(true.empty[index]))
        _draw_card(canvas, _EDGE + column * (_CARD + _APART), _TOP + row * row_height, height, tile, heats, empties)
    return canvas.save(path)


def _write_heading(canvas: Canvas, title: str, maps: Maps) -> None:
    method = METHODS[maps.method]
    name = method.class_name.replace("PlusPlus", "++")
    characters = int(canvas.figure.get_figwidth() * 11)
    canvas.write(_EDGE, 0.1, style.shorten(title, int(characters * 0.7)), fontsize=14, fontweight="bold")
    subtitle = f"{name}, layer {style.shorten(maps.layer, 24)}; true → predicted class: image, map of the predicted class ({style.WRONG_SIGN}), map of the true class ({style.RIGHT_SIGN})"
    canvas.write(_EDGE, 0.42, style.shorten(subtitle, characters), fontsize=10)
    ramp = overlay(np.full((12, 240, 3), 150, np.uint8), np.tile(np.linspace(0, 1, 240), (12, 1)))
    canvas.write(_EDGE, 0.66, "no evidence", fontsize=9, color=style.SOFT)
    canvas.picture(_EDGE + 0.85, 0.66, 1.5, 0.13, ramp, colour=style.GRID, linewidth=0.5)
    meaning = (
        "higher peak of the two maps" if method.is_class_specific else "peak (this method has one map for all classes)"
    )
    canvas.write(_EDGE + 2.45, 0.66, meaning, fontsize=9, color=style.SOFT)
    colour = style.WRONG if maps.resolution.is_coarse else style.SOFT
    canvas.write(_EDGE, 0.87, f"a map has {maps.resolution}", fontsize=9, color=colour)


def _draw_card(
    canvas: Canvas,
    left: float,
    top: float,
    height: float,
    tile: Tile,
    heats: Sequence[np.ndarray],
    empties: tuple[bool, bool],
) -> None:
    truth = style.shorten(tile.truth, max(_NAMES // 2, _NAMES - len(tile.prediction)))
    prediction = style.shorten(tile.prediction, _NAMES - len(truth))
    heading = f"{truth} → {prediction} ({percent(tile.confidence)})"
    canvas.write(left, top, heading, fontsize=10, fontweight="bold")
    picture, top = fit_to_box(tile.picture, _SIDE, height), top + _HEADING
    canvas.picture(left, top, _SIDE, height, picture, colour=style.SOFT)
    _caption(canvas, left, top + height, "image", style.SOFT)
    panels = ((tile.prediction, style.WRONG_SIGN, style.WRONG), (tile.truth, style.RIGHT_SIGN, style.RIGHT))
    for (name, sign, colour), heat, empty in zip(panels, heats, empties, strict=True):
        left += _SIDE + _GAP
        if empty:
            canvas.hatched(left, top, _SIDE, height, "empty\nmap", colour=colour)
        else:
            canvas.picture(left, top, _SIDE, height, overlay(picture, heat), colour=colour)
        _caption(canvas, left, top + height, f"{sign} {style.shorten(name, 13)}", colour)


def _caption(canvas: Canvas, left: float, bottom: float, text: str, colour: str) -> None:
    canvas.write(left + _SIDE / 2, bottom + 0.05, text, ha="center", fontsize=9, color=colour)


def _colours(values: np.ndarray) -> np.ndarray:
    """Return the colour of each value in 0..1, float64 [..., 3] in 0..255."""
    table = _colour_table()
    return table[np.minimum((values * len(table)).astype(np.intp), len(table) - 1)]


@cache
def _colour_table() -> np.ndarray:
    """Return the colours of the map, float64 [256, 3] in 0..255, as matplotlib looks them up."""
    import matplotlib

    colours = matplotlib.colormaps[_COLOURS]
    return 255 * colours(np.arange(colours.N))[:, :3]
