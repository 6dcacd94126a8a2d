"""What a model said of every image of a split, read back from `predictions.csv`, and the figures made of it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BINS = 15
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # a text that starts so was written with a leading '


@dataclass(frozen=True)
class Predictions:
    """One entry an image.

    Attributes:
        labels, predicted: int64 [N], the place of a class in `classes`.
        confidence: float64 [N], probability of the predicted class. losses: float64 [N], nats.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    losses: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """int64 [C, C]: how many images of the class of the row were given the class of the column."""
        size = len(self.classes)
        return np.bincount(self.labels * size + self.predicted, minlength=size * size).reshape(size, size)


@dataclass(frozen=True)
class ClassRow:
    """One class' figures; shares 0..1."""

    name: str
    images: int
    recall: float
    precision: float
    f1: float
    accuracy: float


@dataclass(frozen=True)
class Confusion:
    """A pair of classes that were taken for each other, one way."""

    truth: str
    prediction: str
    images: int
    share: float  # of the images of the true class


@dataclass(frozen=True)
class Bin:
    """The images whose confidence is in `low` < confidence <= `high`."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def read_predictions(path: Path, classes: Sequence[str]) -> tuple[Predictions | None, str]:
    """The predictions in a CSV file, and why there are none.

    Args:
        classes: in the order of the model's logits; those that the file names, sorted, where it is empty.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            rows = list(csv.DictReader(file))
        labels, predicted = [row["label"] for row in rows], [row["prediction"] for row in rows]
        numbers = np.array([(float(row["confidence"]), float(row["loss"])) for row in rows], dtype=float)
        names = list(classes) or sorted(set(labels) | set(predicted))
        places = {unescape_cell(name): place for place, name in enumerate(names)} | {
            name: place for place, name in enumerate(names)
        }
        truth = np.array([places[name] for name in labels], dtype=np.int64)
        said = np.array([places[name] for name in predicted], dtype=np.int64)
    except OSError as error:
        return None, error.strerror or str(error)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        return None, f"it is damaged: {error}"
    if not len(rows):
        return None, "it is empty"
    return Predictions(tuple(names), truth, said, numbers[:, 0], numbers[:, 1]), ""


def unescape_cell(name: str) -> str:
    """A class name as the file has it: safe for a spreadsheet and valid Unicode."""
    safe = "'" + name if name.startswith(_FORMULA) else name
    return safe.encode("utf-8", "backslashreplace").decode()


def per_class(said: Predictions) -> list[ClassRow]:
    """A row a class; a figure that is not defined is 0."""
    matrix = said.matrix
    hits, guessed, true = matrix.diagonal().astype(float), matrix.sum(0), matrix.sum(1)
    total = max(int(matrix.sum()), 1)
    rows = []
    for place, name in enumerate(said.classes):
        hit, own, given = float(hits[place]), int(true[place]), int(guessed[place])
        rows.append(
            ClassRow(
                name=name,
                images=own,
                recall=hit / own if own else 0.0,
                precision=hit / given if given else 0.0,
                f1=2 * hit / (own + given) if own + given else 0.0,
                accuracy=1 - (own + given - 2 * hit) / total,
            )
        )
    return rows


def confusions(said: Predictions, most: int = 20) -> list[Confusion]:
    """The most frequent errors, by pair of truth and prediction."""
    matrix = said.matrix.copy()
    own = matrix.sum(1)
    np.fill_diagonal(matrix, 0)
    found = []
    for place in np.argsort(-matrix, axis=None, kind="stable")[:most].tolist():
        truth, prediction = divmod(place, len(said.classes))
        images = int(matrix[truth, prediction])
        if images:
            found.append(
                Confusion(said.classes[truth], said.classes[prediction], images, images / max(int(own[truth]), 1))
            )
    return found


def reliability(said: Predictions, bins: int = BINS) -> list[Bin]:
    """How often the model is right by how sure it says it is, in equally wide bins that have images.

    Source: Guo et al., "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, eq. 2-3.
    """
    edges = np.linspace(0, 1, bins + 1)
    where = np.clip(np.searchsorted(edges, said.confidence, side="left") - 1, 0, bins - 1)
    right = said.labels == said.predicted
    found = []
    for place in range(bins):
        inside = where == place
        if inside.any():
            low, high = float(edges[place]), float(edges[place + 1])
            sure, share = float(said.confidence[inside].mean()), float(right[inside].mean())
            found.append(Bin(low, high, int(inside.sum()), sure, share))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: mean of |accuracy - confidence| over the images."""
    images = sum(each.images for each in bins)
    return sum(each.images * abs(each.accuracy - each.confidence) for each in bins) / max(images, 1)
