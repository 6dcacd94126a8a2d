"""Classification metrics in NumPy: accuracy, confusion, per-class figures, calibration; `predictions.csv` out and in."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from harness.config.names import MACRO_METRICS
from harness.tracking.records import Table
from harness.utils.stats import macro_scores
from harness.utils.text import csv_cell, write_csv

ROWS = 4096  # predictions that are sorted at a time, which bounds the memory
BINS = 15  # of the calibration error: equally wide, the usual number
COLUMNS = ("index", "id", "label", "prediction", "confidence", "loss", "margin")


@dataclass(frozen=True)
class Predictions:
    """The class probabilities that a model gives to N labelled images of C classes, in the order of the data.

    Attributes:
        labels: int64 [N], the true classes.
        probabilities: float32 [N, C], of the image as it is.
        losses: float32 [N], cross entropy, nats; without label smoothing.
        tta_probabilities: float32 [N, C], of the mean of the logits over the views of test-time augmentation.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray
    tta_probabilities: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return self.probabilities.shape[1]

    @property
    def predicted(self) -> np.ndarray:
        """int64 [N], the class with the greatest probability."""
        return self.probabilities.argmax(1)

    @property
    def confidence(self) -> np.ndarray:
        """float32 [N], the probability of the predicted class."""
        return self.probabilities.max(1)

    @property
    def correct(self) -> np.ndarray:
        """bool [N], whether the predicted class is the true one."""
        return self.predicted == self.labels

    @property
    def margin(self) -> np.ndarray:
        """float32 [N], probability of the true class less the greatest other one: -1..1, negative where wrong."""
        rows = np.arange(len(self))
        others = self.probabilities.copy()
        others[rows, self.labels] = -1.0
        runner_up = others.max(1) if others.shape[1] > 1 else np.zeros(len(self), np.float32)
        return self.probabilities[rows, self.labels] - runner_up


@dataclass(frozen=True)
class SavedPredictions:
    """What `predictions.csv` keeps of the predictions: everything but the probabilities of the other classes.

    Attributes:
        classes: names, in the order of the model's logits.
        labels, predicted: int64 [N], index into `classes`.
        confidence: float64 [N], probability of the predicted class.
        losses: float64 [N], nats.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    losses: np.ndarray

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def correct(self) -> np.ndarray:
        """bool [N], whether the predicted class is the true one."""
        return self.predicted == self.labels


AnyPredictions: TypeAlias = Predictions | SavedPredictions


class ClassMetrics(NamedTuple):
    """The figures of one class; fractions 0..1, None where undefined.

    The accuracy is last: it is that of the class against the rest, to which every image that is correctly called another
    class adds, so that it is above the accuracy of the model for nearly every class.
    """

    name: str
    recall: float | None
    precision: float | None
    f1: float | None
    images: int
    accuracy: float | None


@dataclass(frozen=True)
class PerClass:
    """One figure per class; NaN where it is undefined: the precision of a class that is never predicted, and every other
    figure of a class without images.

    Attributes:
        accuracy: float64 [C], fraction of all images that are correctly classified as the class or as another.
        precision, recall, f1: float64 [C], 0..1.
        support: int64 [C], images of the class.
    """

    accuracy: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray

    def rows(self, classes: Sequence[str]) -> list[ClassMetrics]:
        """Return the figures class by class."""
        recall, precision, f1, accuracy = (
            [None if np.isnan(value) else value for value in column.tolist()]
            for column in (self.recall, self.precision, self.f1, self.accuracy)
        )
        rows = zip(classes, recall, precision, f1, self.support.tolist(), accuracy, strict=True)
        return [ClassMetrics(*row) for row in rows]

    def table(self, classes: Sequence[str]) -> Table:
        """Return a table with one row per class."""
        return Table(("class", *ClassMetrics._fields[1:]), [tuple(row) for row in self.rows(classes)])


class ConfusedPair(NamedTuple):
    """How often the images of one class are predicted as another.

    Attributes:
        share: fraction of the images of the true class, 0..1.
    """

    truth: str
    prediction: str
    images: int
    share: float


class ConfidenceBin(NamedTuple):
    """The images whose confidence lies in `low` < confidence <= `high`: how many, their mean confidence, their accuracy."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """Accuracy as a function of confidence, in equally wide bins.

    Attributes:
        edges: float64 [bins + 1]; a confidence belongs to the bin with `low < confidence <= high`.
        counts: int64 [bins], images.
        confidence: float64 [bins], mean in the bin; NaN in an empty one.
        accuracy: float64 [bins], in the bin; NaN in an empty one.
        ece: expected calibration error: mean of |accuracy - confidence| over the images.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float

    @property
    def bins(self) -> list[ConfidenceBin]:
        """The bins that hold images."""
        columns = (self.edges[:-1], self.edges[1:], self.counts, self.confidence, self.accuracy)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [each for each in map(ConfidenceBin._make, rows) if each.images]


def accuracy(predictions: Predictions, k: int = 1) -> float:
    """Return the fraction 0..1 of the images whose true class is among the `k` most probable."""
    if k == 1:
        return float(predictions.correct.mean())
    return float((top_classes(predictions, k) == predictions.labels[:, None]).any(1).mean())


def top_classes(predictions: Predictions, k: int = 5) -> np.ndarray:
    """Return the `k` most probable classes of each image, int64 [N, min(k, C)], the most probable first.

    Of equally probable classes the first comes first. Each rank takes one pass, which is faster than sorting all classes.
    """
    best = np.empty((len(predictions), min(k, predictions.num_classes)), np.int64)
    for start in range(0, len(best), ROWS):
        left = predictions.probabilities[start : start + ROWS].copy()
        rows = np.arange(len(left))
        for rank in range(best.shape[1]):
            best[start : start + ROWS, rank] = left.argmax(1)
            left[rows, best[start : start + ROWS, rank]] = -1
    return best


def confusion_matrix(predictions: AnyPredictions) -> np.ndarray:
    """Return int64 [C, C]: how many images of the class of the row are predicted as the class of the column."""
    classes = predictions.num_classes
    pairs = predictions.labels * classes + predictions.predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_shares(matrix: np.ndarray) -> np.ndarray:
    """Return the fraction of its true class in each cell of a confusion matrix, float64 [C, C]; 0 in rows without images."""
    return np.asarray(matrix / matrix.sum(1, keepdims=True).clip(min=1))


def per_class(matrix: np.ndarray) -> PerClass:
    """Return one-against-the-rest accuracy, precision, recall, F1 and support of each class of a confusion matrix."""
    hits, predicted, true = matrix.diagonal().astype(float), matrix.sum(0), matrix.sum(1)
    total, has_images = max(int(matrix.sum()), 1), true > 0
    undefined = np.full_like(hits, np.nan)
    return PerClass(
        accuracy=np.where(has_images, 1 - (predicted + true - 2 * hits) / total, np.nan),
        precision=np.divide(hits, predicted, out=undefined.copy(), where=predicted > 0),
        recall=np.divide(hits, true, out=undefined.copy(), where=has_images),
        f1=np.divide(2 * hits, predicted + true, out=undefined.copy(), where=predicted + true > 0),
        support=true,
    )


def macro_metrics(matrix: np.ndarray) -> dict[str, float]:
    """Return `balanced_acc` and `f1_macro` of a confusion matrix, fractions 0..1."""
    columns = (matrix.diagonal().tolist(), matrix.sum(1).tolist(), matrix.sum(0).tolist())
    return dict(zip(MACRO_METRICS, macro_scores(*columns), strict=True))


def most_confused(matrix: np.ndarray, classes: Sequence[str], limit: int = 20) -> list[ConfusedPair]:
    """Return the most frequent errors of a confusion matrix, by pair of truth and prediction."""
    support = matrix.sum(1)
    return [
        ConfusedPair(classes[truth], classes[prediction], images, images / max(int(support[truth]), 1))
        for truth, prediction, images in _errors(matrix)[:limit].tolist()
    ]


def most_confused_classes(matrix: np.ndarray, limit: int) -> np.ndarray:
    """Return `limit` classes in their order, int64: those of the most frequent errors, pair by pair; then the first ones."""
    pairs = _errors(matrix)[:, :2].ravel().tolist()
    chosen = list(dict.fromkeys([*pairs, *range(len(matrix))]))[:limit]
    return np.array(sorted(chosen), np.int64)


def _errors(matrix: np.ndarray) -> np.ndarray:
    """Return int64 [pairs, 3] of truth, prediction and images, the most frequent first."""
    truths, predictions = np.nonzero(matrix)
    is_error = truths != predictions
    truths, predictions = truths[is_error], predictions[is_error]
    images = matrix[truths, predictions]
    return np.stack([truths, predictions, images], 1)[np.argsort(-images, kind="stable")]


def reliability(predictions: AnyPredictions, bins: int = BINS) -> Reliability:
    """Return the calibration of the predicted class's probability, in `bins` equally wide bins.

    Source: Guo et al., "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, eq. 2-3.
    """
    confidences = predictions.confidence.astype(float)
    edges = np.linspace(0, 1, bins + 1)
    bin_of_image = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, bins - 1)
    counts = np.bincount(bin_of_image, minlength=bins)
    filled = counts > 0
    empty = np.full(bins, np.nan)
    confidence = np.divide(np.bincount(bin_of_image, confidences, bins), counts, out=empty.copy(), where=filled)
    accuracy = np.divide(np.bincount(bin_of_image, predictions.correct, bins), counts, out=empty.copy(), where=filled)
    ece = float((counts[filled] * np.abs(accuracy - confidence)[filled]).sum() / max(counts.sum(), 1))
    return Reliability(edges, counts, confidence, accuracy, ece)


def write_predictions_csv(
    predictions: Predictions, ids: Sequence[str], classes: Sequence[str], path: Path | str
) -> Path:
    """Write `predictions.csv`: one row per image, in the order of the data; label and prediction are class names."""
    names = [csv_cell(name) for name in classes]
    columns = (
        predictions.labels,
        predictions.predicted,
        predictions.confidence,
        predictions.losses,
        predictions.margin,
    )
    rows = (
        (index, csv_cell(id), names[label], names[predicted], f"{confidence:.6g}", f"{loss:.6g}", f"{margin:.6g}")
        for index, (id, label, predicted, confidence, loss, margin) in enumerate(zip(ids, *columns, strict=True))
    )
    write_csv(Path(path), COLUMNS, rows, escape=False)
    return Path(path)


def read_predictions_csv(path: Path, classes: Sequence[str]) -> tuple[SavedPredictions | None, str]:
    """Return the predictions in a CSV file and an empty text, or None and why they cannot be read.

    Args:
        classes: in the order of the model's logits; where it is empty, the names in the file, sorted.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            rows = list(csv.DictReader(file))
        labels, predicted = [row["label"] for row in rows], [row["prediction"] for row in rows]
        numbers = np.array([(float(row["confidence"]), float(row["loss"])) for row in rows], dtype=float)
        names = list(classes) or sorted(set(labels) | set(predicted))
        indices = {_name_in_csv(name): index for index, name in enumerate(names)}
        indices |= {name: index for index, name in enumerate(names)}
        label_indices = np.array([indices[name] for name in labels], dtype=np.int64)
        predicted_indices = np.array([indices[name] for name in predicted], dtype=np.int64)
    except OSError as error:
        return None, error.strerror or str(error)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        return None, f"it is damaged: {error}"
    if not rows:
        return None, "it is empty"
    return SavedPredictions(tuple(names), label_indices, predicted_indices, numbers[:, 0], numbers[:, 1]), ""


def _name_in_csv(name: str) -> str:
    """Return a class name as `write_predictions` writes it: safe for a spreadsheet and valid Unicode."""
    return str(csv_cell(name)).encode("utf-8", "backslashreplace").decode()
