"""Several labels per image as rows of 0 and 1: made, counted, and divided between splits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np


def multi_hot(labels: Sequence[Collection[str]], class_index: Mapping[str, int]) -> np.ndarray:
    """Return uint8 [N, C]: 1 where the image of the row has the class of the column."""
    rows = np.zeros((len(labels), len(class_index)), np.uint8)
    for row, names in zip(rows, labels, strict=True):
        row[[class_index[name] for name in names]] = 1
    return rows


def class_counts(labels: np.ndarray, num_classes: int = 0) -> np.ndarray:
    """Return the number of images of each class, int64 [C].

    Args:
        labels: int64 [N], or uint8 [N, C] of images with several labels.
        num_classes: the least length of the result.
    """
    if labels.ndim == 2:
        return labels.sum(0, dtype=np.int64)
    return np.bincount(labels, minlength=num_classes)


def prior_logits(labels: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """Return the logits of a model that knows how frequent each class is, and nothing of the images, float64 [C].

    They are those with the least binary cross-entropy. A class that no image has, or all have, counts as if half an image differed;
    one whose images have no weight, or hardly any, as if half an image had it. So all of them are finite.

    Args:
        labels: uint8 [N, C].
        weights: of the images that have a class, in the loss; [C] or one for all.
    """
    half = 0.5 / len(labels)
    share = labels.mean(0, dtype=np.float64).clip(half, 1 - half)
    return np.asarray(np.log(np.maximum(weights * share, half) / (1 - share)))


def multilabel_indices(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return sorted indices of about `fraction` of the images of every class, and of those without any.

    The rarest class is divided first, then the rarest of the images that are left, as in iterative stratification
    (Sechidis et al., "On the Stratification of Multi-Label Data", 2011).

    Args:
        labels: uint8 [N, C].
    """
    random = np.random.RandomState(seed % 2**32)  # as for one label per image: its stream never changes
    left, held_out = np.ones(len(labels), bool), np.zeros(len(labels), bool)
    remaining = labels.sum(0, dtype=np.int64)
    wanted = fraction * remaining
    while remaining.any():
        rarest = int(np.where(remaining > 0, remaining, np.iinfo(np.int64).max).argmin())
        images = np.flatnonzero(left & (labels[:, rarest] > 0))
        count = int(np.clip(round(wanted[rarest]), 0, len(images)))
        chosen = random.permutation(images)[:count]
        held_out[chosen], left[images] = True, False
        wanted = wanted - labels[chosen].sum(0, dtype=np.int64)
        remaining = remaining - labels[images].sum(0, dtype=np.int64)
    unlabelled = random.permutation(np.flatnonzero(left))
    held_out[unlabelled[: round(fraction * len(unlabelled))]] = True
    missing = round(fraction * len(labels)) - int(held_out.sum())  # the counts of rare classes were rounded down
    kept = labels[~held_out].sum(0, dtype=np.int64)
    for index in random.permutation(np.flatnonzero(~held_out)).tolist() if missing > 0 else ():
        if missing > 0 and (kept - labels[index] > 0)[labels[index] > 0].all():
            held_out[index], kept, missing = True, kept - labels[index], missing - 1
    return np.flatnonzero(held_out)


def with_known_classes(labels: np.ndarray, names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return uint8 [N, C] with the columns of `names` at the places of the same names in `classes`."""
    places = {name: index for index, name in enumerate(classes)}
    moved = np.zeros((len(labels), len(classes)), np.uint8)
    for column, name in enumerate(names):
        if name in places:
            moved[:, places[name]] = labels[:, column]
    return moved
