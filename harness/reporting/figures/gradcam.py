"""Class-activation maps as images: one laid over its image, and the figure of misclassified images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from harness.evaluation.gradcam import METHODS, Maps
from harness.reporting.figures import style
from harness.reporting.figures.gallery import Canvas, MapLabel, Tile, fit_to_box
from harness.utils.text import percent

_COLOURS = "inferno"  # perceptually uniform, also in grey
_OPACITY = 0.85  # of the colour at the peak of the evidence
# Inches: side of a panel, between panels, between cards, margin; height of the figure's heading, a card's heading, captions.
_SIDE, _GAP, _APART, _EDGE, _TOP, _HEADING, _CAPTION = 1.14, 0.05, 0.26, 0.18, 1.15, 0.25, 0.42
_CARD = 3 * _SIDE + 2 * _GAP
_LINE, _SMALL = 0.16, 9  # inches of a further line of text; points of a caption
_LARGE = 1.7  # inches: the longer side of an image with the maps of its labels


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
    a hatched panel. Of an image with several labels the maps are those of `Tile.explained`.

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
    width = max(2 * _EDGE + columns * _CARD + (columns - 1) * _APART, 7.6)
    room = _CARD if columns > 1 else width - 2 * _EDGE
    headings, captions = [_card_heading(tile, room) for tile in tiles], [_captions(tile) for tile in tiles]
    heading = _HEADING + _LINE * max(text.count("\n") for text in headings)
    below = _LINE * max(caption.count("\n") for pair in captions for caption in pair)
    row_height = heading + height + _CAPTION + below
    subtitle = _subtitle(predicted, tiles[0].explained is not None, width - 2 * _EDGE)
    start = _TOP + _LINE * subtitle.count("\n")
    canvas = Canvas(width, start + rows * row_height)
    _write_heading(canvas, title, subtitle, predicted)
    for index, heats in enumerate(zip(*shared_scale(predicted, true), strict=True)):
        row, column = divmod(index, columns)
        left, top = _EDGE + column * (_CARD + _APART), start + row * row_height
        canvas.write(left, top, headings[index], fontsize=10, fontweight="bold")
        empties = (bool(predicted.empty[index]), bool(true.empty[index]))
        _draw_card(canvas, left, top + heading, height, tiles[index].picture, heats, empties, captions[index])
    return canvas.save(path)


def labels_figure(picture: np.ndarray, maps: Maps, labels: Sequence[MapLabel], path: Path | str) -> Path:
    """Draw an image as the model saw it beside its map for each of some classes, each stretched to its own peak.

    Args:
        picture: uint8 [H, W, 3].
        maps: of this image, one for each of the labels.
        labels: the classes, whose names and notes stand below the maps.
    """
    side = (
        _LARGE * min(1.0, picture.shape[0] / picture.shape[1]),
        _LARGE * min(1.0, picture.shape[1] / picture.shape[0]),
    )
    height, width = side
    captions = [f"{style.fit_text(label.name, width, _SMALL, lines=2)}\n{label.note}" for label in labels]
    below = 0.25 + _LINE * max(caption.count("\n") for caption in captions)
    canvas = Canvas(2 * _GAP + (len(labels) + 1) * (width + _GAP), 2 * _GAP + height + below)
    fitted = fit_to_box(picture, width, height)
    panels = [
        fitted,
        *(
            hatched(fitted.shape) if empty else overlay(fitted, heat)
            for heat, empty in zip(maps.scaled, maps.empty, strict=True)
        ),
    ]
    for index, (pixels, caption) in enumerate(zip(panels, ["image", *captions], strict=True)):
        left = _GAP + index * (width + _GAP)
        canvas.picture(left, _GAP, width, height, pixels, colour=style.SOFT)
        canvas.write(left + width / 2, 2 * _GAP + height, caption, ha="center", fontsize=_SMALL)
    return canvas.save(path)


def _subtitle(maps: Maps, has_several: bool, width: float) -> str:
    """Return what the panels of a card are, on at most two lines of `width` inches."""
    name = METHODS[maps.method].class_name.replace("PlusPlus", "++")
    shown = f"true → predicted class: image, map of the predicted class ({style.WRONG_SIGN}), map of the true class ({style.RIGHT_SIGN})"
    if has_several:
        shown = f"image, map of the class predicted wrongly ({style.WRONG_SIGN}) and of the class missed ({style.RIGHT_SIGN}) with the highest loss; probability and threshold"
    return style.fit_text(f"{name}, layer {style.shorten(maps.layer, 24)}; {shown}", width, 10, lines=2)


def _write_heading(canvas: Canvas, title: str, subtitle: str, maps: Maps) -> None:
    method = METHODS[maps.method]
    width, below = canvas.figure.get_figwidth() - 2 * _EDGE, _LINE * subtitle.count("\n")
    canvas.write(_EDGE, 0.1, style.fit_text(title, width, 14, bold=True), fontsize=14, fontweight="bold")
    canvas.write(_EDGE, 0.42, subtitle, fontsize=10)
    ramp = overlay(np.full((12, 240, 3), 150, np.uint8), np.tile(np.linspace(0, 1, 240), (12, 1)))
    canvas.write(_EDGE, 0.66 + below, "no evidence", fontsize=9, color=style.SOFT)
    canvas.picture(_EDGE + 0.85, 0.66 + below, 1.5, 0.13, ramp, colour=style.GRID, linewidth=0.5)
    meaning = (
        "higher peak of the two maps" if method.is_class_specific else "peak (this method has one map for all classes)"
    )
    canvas.write(_EDGE + 2.45, 0.66 + below, meaning, fontsize=9, color=style.SOFT)
    colour = style.WRONG if maps.resolution.is_coarse else style.SOFT
    canvas.write(_EDGE, 0.87 + below, f"a map has {maps.resolution}", fontsize=9, color=colour)


def _card_heading(tile: Tile, room: float) -> str:
    """Return what stands above an image, of at most `room` inches: its true and its predicted class, or classes."""
    if tile.has_several:
        lines = (f"truth: {tile.truth}", f"predicted: {tile.prediction}")
        return "\n".join(style.fit_text(line, room, 10, bold=True) for line in lines)
    most = style.most_letters(tile.truth + tile.prediction, room, 10, bold=True)
    names = min(len(tile.truth) + len(tile.prediction), most)
    headings = (_pair(tile, letters) for letters in range(names, 7, -1))
    return next((text for text in headings if style.text_width(text, 10, bold=True) <= room), _pair(tile, 8))


def _pair(tile: Tile, letters: int) -> str:
    """Return the true and the predicted class, shortened to so many letters together, and the confidence."""
    truth = style.shorten(tile.truth, max(letters // 2, letters - len(tile.prediction)))
    return f"{truth} → {style.shorten(tile.prediction, letters - len(truth))} ({percent(tile.confidence)})"


def _captions(tile: Tile) -> tuple[str, str]:
    """Return what stands below the maps of an image; empty where there is no map."""
    if tile.explained is None:
        return _fit_caption(tile.prediction, style.WRONG_SIGN), _fit_caption(tile.truth, style.RIGHT_SIGN)
    wrong, missed = (
        "" if label is None else f"{_fit_caption(label.name, sign)}\n{label.note}"
        for label, sign in zip(tile.explained, (style.WRONG_SIGN, style.RIGHT_SIGN), strict=True)
    )
    return wrong, missed


def _fit_caption(name: str, sign: str) -> str:
    return style.fit_text(f"{sign} {name}", _SIDE, _SMALL, lines=2)


def _draw_card(
    canvas: Canvas,
    left: float,
    top: float,
    height: float,
    pixels: np.ndarray,
    heats: Sequence[np.ndarray],
    empties: tuple[bool, bool],
    captions: tuple[str, str],
) -> None:
    picture = fit_to_box(pixels, _SIDE, height)
    canvas.picture(left, top, _SIDE, height, picture, colour=style.SOFT)
    _caption(canvas, left, top + height, "image", style.SOFT)
    kinds = ((style.WRONG, "no class\nis predicted\nwrongly"), (style.RIGHT, "no class\nis missed"))
    for (colour, absent), heat, empty, caption in zip(kinds, heats, empties, captions, strict=True):
        left += _SIDE + _GAP
        if not caption:
            canvas.write(
                left + _SIDE / 2, top + height / 2, absent, ha="center", va="center", fontsize=_SMALL, color=style.SOFT
            )
        elif empty:
            canvas.hatched(left, top, _SIDE, height, "empty\nmap", colour=colour)
        else:
            canvas.picture(left, top, _SIDE, height, overlay(picture, heat), colour=colour)
        _caption(canvas, left, top + height, caption, colour)


def _caption(canvas: Canvas, left: float, bottom: float, text: str, colour: str) -> None:
    canvas.write(left + _SIDE / 2, bottom + 0.05, text, ha="center", fontsize=_SMALL, color=colour)


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
