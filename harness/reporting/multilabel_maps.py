"""Class-activation maps of images with several labels: the class that is predicted wrongly, and the one that is missed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from harness.evaluation import gradcam
from harness.evaluation.gradcam import Maps
from harness.evaluation.multilabel import MultilabelPredictions
from harness.reporting.figures.gallery import MapLabel
from harness.utils.text import percent

NO_CLASS = -1


def explained_classes(predictions: MultilabelPredictions, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each image the class that is predicted wrongly and the class that is missed, int64 [n] twice.

    Of several it is the one with the greatest loss: the most probable of those that are predicted wrongly, the least probable of
    those that are missed. `NO_CLASS` where there is none.

    Args:
        chosen: positions of the images, int64 [n].
    """
    probabilities, truth = predictions.probabilities[chosen], predictions.labels[chosen] > 0
    predicted = predictions.predicted[chosen]
    found = []
    for wrong, losses in ((predicted & ~truth, probabilities), (~predicted & truth, 1 - probabilities)):
        greatest = np.where(wrong, losses, -1.0).argmax(1)
        found.append(np.where(wrong.any(1), greatest, NO_CLASS))
    return found[0], found[1]


def map_label(predictions: MultilabelPredictions, image: int, number: int, classes: Sequence[str]) -> MapLabel | None:
    """Return the name of a class with its probability and its threshold; None for `NO_CLASS`.

    Args:
        image: its position in the split.
        number: of the class.
    """
    if number == NO_CLASS:
        return None
    return MapLabel(
        classes[number], threshold_text(predictions.probabilities[image, number], predictions.thresholds[number])
    )


def threshold_text(probability: float, threshold: float) -> str:
    """Return a probability beside the threshold from which on its class is predicted: `12 % < 64 %`."""
    pairs = [(percent(probability, digits), percent(threshold, digits)) for digits in range(4)]
    first, second = next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])  # which one is greater is to be seen
    return f"{first} {'≥' if probability >= threshold else '<'} {second}"


def maps_where_known(
    model: nn.Module, images: Tensor, targets: Sequence[np.ndarray], *, method: str, layer: str
) -> list[Maps]:
    """Return maps of the images for each of some arrays of classes, int64 [N]; a map of `NO_CLASS` is empty.

    Args:
        images: float [N, 3, H, W], normalised.
        targets: at least one of them has a class.
    """
    places = [np.flatnonzero(classes != NO_CLASS) for classes in targets]
    known = [
        gradcam.compute_maps(model, images[where], classes[where], method=method, layer=layer) if len(where) else None
        for classes, where in zip(targets, places, strict=True)
    ]
    pattern = next(maps for maps in known if maps is not None)
    return [_spread(maps or pattern, where, len(images)) for maps, where in zip(known, places, strict=True)]


def _spread(maps: Maps, places: np.ndarray, count: int) -> Maps:
    """Return `count` maps: those given, as many as there are places, at these, and empty ones elsewhere."""
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(maps):
        values = getattr(maps, field.name)
        if isinstance(values, np.ndarray):
            columns[field.name] = np.full((count, *values.shape[1:]), field.name == "empty", values.dtype)
            columns[field.name][places] = values[: len(places)]
    return dataclasses.replace(maps, **columns)
