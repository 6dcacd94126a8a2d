"""The predictions of a split as values to track: a table with a row per image, and charts of a bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from harness.evaluation.metrics import Predictions, Reliability, most_confused_classes, top_classes
from harness.tracking.records import Cell, ChartKind, Image, Table, TableChart
from harness.utils.curves import FALSE_POSITIVE_RATES, RECALLS, precision_at_recalls, recall_at_false_positive_rates

MAX_ROWS = 50_000  # of the table; of a larger split every second image, every third, ...
GUESSES = 5  # classes of a row, with their scores
CHART_CLASSES = 20  # of a chart: those that are confused most


def table_rows(count: int, positions: Sequence[int] | np.ndarray | None) -> np.ndarray:
    """Return the positions of the images that a table has rows of, int64 [rows]; of None at most `MAX_ROWS`, evenly spaced."""
    return np.arange(0, count, -(-count // MAX_ROWS)) if positions is None else np.asarray(positions, np.int64)


def image_cells(positions: np.ndarray, pictures: Mapping[int, np.ndarray] | None) -> list[Image | None]:
    """Return the cells with the images, uint8 [H, W, 3] by position; None where there is none."""
    known = pictures or {}
    return [Image(known[index]) if index in known else None for index in positions.tolist()]


def predictions_table(
    predictions: Predictions,
    ids: Sequence[str],
    classes: Sequence[str],
    *,
    positions: Sequence[int] | np.ndarray | None = None,
    pictures: Mapping[int, np.ndarray] | None = None,
) -> Table:
    """Return a row per image, with the same columns for any number of classes from five on.

    The id is the same in every run on the data, so that tables of several runs can be joined on it.

    Args:
        ids: of all images of the split.
        positions: of the images in the split, in the order of the rows; None: all, at most `MAX_ROWS` evenly spaced.
        pictures: position -> image, uint8 [H, W, 3]; the others have none.
    """
    positions = table_rows(len(predictions), positions)
    chosen = Predictions(
        *(column[positions] for column in (predictions.labels, predictions.probabilities, predictions.losses))
    )
    best = top_classes(chosen, GUESSES)  # [N, k]
    scores = _rounded(np.take_along_axis(chosen.probabilities, best, 1))
    images = image_cells(positions, pictures)
    columns: dict[str, Sequence[Cell]] = {
        "id": [str(ids[index]) for index in positions.tolist()],
        "image": images,
        "truth": _names(classes, chosen.labels),
        "prediction": _names(classes, best[:, 0]),
        "confidence": scores[:, 0].tolist(),
        "correct": (best[:, 0] == chosen.labels).tolist(),
        "loss": _rounded(chosen.losses).tolist(),
        "margin": _rounded(chosen.margin).tolist(),
    }
    for rank in range(1, best.shape[1]):
        columns[f"guess {rank + 1}"] = _names(classes, best[:, rank])
        columns[f"score {rank + 1}"] = scores[:, rank].tolist()
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)))


def prediction_charts(
    predictions: Predictions, matrix: np.ndarray, calibration: Reliability, classes: Sequence[str], split: str
) -> dict[str, TableChart]:
    """Return the confusion matrix, precision over recall, the ROC curve and the calibration curve.

    Args:
        matrix: int64 [C, C], the confusion matrix.
        split: its name, for the titles.
    """
    chosen = most_confused_classes(matrix, CHART_CLASSES)
    names = _names(classes, chosen)
    which = (
        f"{split} set"
        if len(chosen) == len(classes)
        else f"{split} set, the {len(chosen)} most confused of {len(classes):,} classes"
    )
    counts = matrix[np.ix_(chosen, chosen)].tolist()
    cells: list[tuple[Cell, ...]] = [
        (truth, name, count)
        for truth, row in zip(names, counts, strict=True)
        for name, count in zip(names, row, strict=True)
    ]
    curves = [
        (name, predictions.labels == number, predictions.probabilities[:, number])
        for number, name in zip(chosen.tolist(), names, strict=True)
    ]
    bins = calibration.bins
    points = _points([each.confidence for each in bins], [each.accuracy for each in bins], "model")
    points += _points([0.0, 1.0], [0.0, 1.0], "perfectly calibrated")
    return {
        "predictions/confusion_matrix": _chart("confusion", f"Confusion matrix ({which})", ("Actual", "Predicted", "nPredictions"), cells),
        **curve_charts(curves, which),
        "predictions/calibration": _chart("lines", f"Calibration: accuracy over confidence ({split} set)", ("confidence", "accuracy", "line"), points),
    }  # fmt: skip


def curve_charts(curves: Iterable[tuple[str, np.ndarray, np.ndarray]], which: str) -> dict[str, TableChart]:
    """Return precision over recall and the ROC curve of classes.

    Args:
        curves: name of a class, bool [N] whether an image has it, float [N] its score.
        which: the images and classes, for the titles.
    """
    precisions: list[tuple[Cell, ...]] = []
    rates: list[tuple[Cell, ...]] = []
    for name, is_class, score in curves:
        if is_class.any():
            precisions += _points(RECALLS, precision_at_recalls(is_class, score), name)
        if is_class.any() and not is_class.all():
            rates += _points(FALSE_POSITIVE_RATES, recall_at_false_positive_rates(is_class, score), name)
    return {
        "predictions/precision_recall": _chart("rates", f"Precision and recall of each class ({which})", ("recall", "precision", "class"), precisions),
        "predictions/roc": _chart("rates", f"ROC of each class against the rest ({which})", ("false positive rate", "true positive rate", "class"), rates),
    }  # fmt: skip


def _chart(kind: ChartKind, title: str, columns: tuple[str, ...], rows: list[tuple[Cell, ...]]) -> TableChart:
    return TableChart(kind, title, Table(columns, rows))


def _points(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, name: str) -> list[tuple[Cell, ...]]:
    return [(a, b, name) for a, b in zip(_rounded(x).tolist(), _rounded(y).tolist(), strict=True)]


def _names(classes: Sequence[str], indices: np.ndarray) -> list[str]:
    return [classes[index] for index in indices.tolist()]


def _rounded(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return six decimals: more would only lengthen the files."""
    return np.asarray(values, np.float64).round(6)
