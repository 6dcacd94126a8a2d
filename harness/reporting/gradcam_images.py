"""Class-activation maps as values to track: images with a layer for each class, and the overlays of a page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.evaluation.gradcam import Maps
from harness.reporting.figures import gradcam as cam_figure
from harness.reporting.figures.gallery import MapLabel, Tile, fit_to_side
from harness.tracking.records import Cell, Image, LayeredImage, Mask, Table
from harness.utils.text import percent

SIDE = 128  # pixels: a smaller image is enlarged to it, so that a map over it is smooth
STEPS = 5  # equal parts of the scale; the lowest shows nothing
LABELS = {level: f"{100 * level // STEPS} to {100 * (level + 1) // STEPS} % of the peak" for level in range(1, STEPS)}
CLASSES = ("prediction", "truth")  # names of the layers, and of the columns


def layered_images(tiles: Sequence[Tile], ids: Sequence[str], predicted: Maps, true: Maps) -> tuple[LayeredImage, ...]:
    """Return each image with the maps of its predicted and of its true class as layers, each of four levels.

    Both layers share one scale, the higher of their two peaks. An empty map is a layer that shows nothing. Where images have several
    labels, the layers are those of the class predicted wrongly and of the class missed, and one that there is not has none.

    Args:
        ids: of the images of the tiles.
    """
    images = []
    for number, (tile, id, *heats) in enumerate(
        zip(tiles, ids, *cam_figure.shared_scale(predicted, true), strict=True)
    ):
        large = enlarge(tile.picture)
        shown = dict(zip(CLASSES, has_class(tile), strict=True))
        masks = {
            name: Mask.of(evidence_levels(heat, large.shape), LABELS)
            for name, heat in zip(CLASSES, heats, strict=True)
            if shown[name]
        }
        empty = [
            name for name, maps in zip(CLASSES, (predicted, true), strict=True) if shown[name] and maps.empty[number]
        ]
        remark = f"; empty map of the {' and of the '.join(empty)}" if empty else ""
        caption = f"{id}: {_caption(tile)}{remark}; {predicted.resolution}"
        images.append(LayeredImage(Image(large, caption), masks))
    return tuple(images)


def has_class(tile: Tile) -> tuple[bool, bool]:
    """Return whether there is a class for each of the two maps; of one label per image there always is."""
    if tile.explained is None:
        return True, True
    wrong, missed = tile.explained
    return wrong is not None, missed is not None


def _caption(tile: Tile) -> str:
    if tile.explained is None:
        return f"{tile.truth} predicted as {tile.prediction} ({percent(tile.confidence)})"
    pairs = zip(("predicted wrongly", "missed"), tile.explained, strict=True)
    classes = [f"{word}: {label.name} ({label.note})" for word, label in pairs if label is not None]
    return "; ".join([f"truth: {tile.truth}; predicted: {tile.prediction}", *classes])


def evidence_levels(heat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the level of evidence of each pixel, uint8 [H, W] for `shape` [H, W, ...]: 0 to 4.

    Args:
        heat: float [h, w], 0..1.
    """
    strength = cam_figure.resize_map(np.clip(np.nan_to_num(heat), 0, 1), shape[:2])
    return np.minimum(strength * STEPS, STEPS - 1).astype(np.uint8)


def overlay_table(tiles: Sequence[Tile], ids: Sequence[str], predicted: Maps, true: Maps) -> Table:
    """Return one row per image: the image, its classes, and for each class the overlay and the share of the evidence.

    An empty map has no overlay. The last column has the cells of a map and the pixels of its image. Where images have several
    labels, the two classes are columns too, with probability and threshold as text; one that there is not has empty cells.
    """
    rows: list[tuple[Cell, ...]] = []
    heats = zip(*cam_figure.shared_scale(predicted, true), strict=True)
    for row, (tile, id, pair) in enumerate(zip(tiles, ids, heats, strict=True)):
        large = enlarge(tile.picture)
        cells: list[Cell] = [Image(large), id, tile.truth, tile.prediction, tile.confidence]
        for maps, heat, has in zip((predicted, true), pair, has_class(tile), strict=True):
            overlay = None if maps.empty[row] else Image(cam_figure.overlay(large, heat))
            cells += [overlay, float(maps.share[row]) if has else None]
        if tile.explained is not None:
            labels = [label or MapLabel("", "") for label in tile.explained]
            cells += [text for label in labels for text in (label.name, label.note)]
        cells.append(str(predicted.resolution))
        rows.append(tuple(cells))
    columns = [f"{name} for {label}" for label in CLASSES for name in ("overlay", "share")]
    if any(tile.explained is not None for tile in tiles):
        columns += [f"{name} for {label}" for label in CLASSES for name in ("class", "threshold")]
    return Table(("image", "id", "truth", "prediction", "confidence", *columns, "resolution"), rows)


def enlarge(pixels: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Return a small image with each pixel repeated, so that its longer side is about `side`."""
    return fit_to_side(pixels, max(side, *pixels.shape[:2]))  # never reduced here
