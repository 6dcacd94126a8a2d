"""Metrics of images with several labels: average precision, thresholds of the classes, F1 and exact matches."""

from __future__ import annotations

import numpy as np

from harness.utils.curves import threshold_counts

FIXED_THRESHOLD = 0.5  # of a class for which none was chosen


def average_precisions(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the average precision of each class, float64 [C], as scikit-learn does; NaN for a class without images.

    It is the mean of the precisions at all thresholds, each weighted with the recall that is gained there.

    Args:
        labels: [N, C] of 0 and 1.
        scores: float [N, C].
    """
    values = np.full(labels.shape[1], np.nan)
    for column in np.flatnonzero(labels.any(0)):
        hits, misses = threshold_counts(labels[:, column] > 0, scores[:, column])[:2]
        values[column] = (np.diff(hits, prepend=0) * hits / (hits + misses)).sum() / hits[-1]
    return values


def best_thresholds(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the threshold of each class that gives it the greatest F1 on these images, float64 [C].

    It lies in the middle between two scores that occur; of equally good ones it is the highest. A class without images has 0.5.

    Args:
        labels: [N, C] of 0 and 1.
        scores: float [N, C], 0..1.
    """
    thresholds = np.full(labels.shape[1], FIXED_THRESHOLD)
    for column in np.flatnonzero(labels.any(0)):
        hits, misses, score = threshold_counts(labels[:, column] > 0, scores[:, column])
        best = int((2 * hits / (hits + misses + hits[-1])).argmax())
        below = score[best + 1] if best + 1 < len(score) else 0.0
        thresholds[column] = (float(score[best]) + float(below)) / 2
    return thresholds


def f1_scores(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the F1 of each class, float64 [C]; NaN for a class without images and predictions.

    Args:
        labels, predicted: [N, C] of 0 and 1, or of false and true.
    """
    truth, positive = labels > 0, predicted > 0
    total = truth.sum(0) + positive.sum(0)
    return np.divide(2.0 * (truth & positive).sum(0), total, out=np.full(len(total), np.nan), where=total > 0)


def multilabel_metrics(labels: np.ndarray, scores: np.ndarray, thresholds: np.ndarray) -> dict[str, float]:
    """Return `map`, `f1_macro` and `exact_match` of some images, fractions 0..1; NaN where no class is defined.

    Args:
        labels: [N, C] of 0 and 1.
        scores: float [N, C], 0..1.
        thresholds: float [C]; a class is predicted where its score is at least that.
    """
    predicted = scores >= thresholds
    return {
        "map": _mean_of_known(average_precisions(labels, scores)),
        "f1_macro": _mean_of_known(f1_scores(labels, predicted)),
        "exact_match": float((predicted == (labels > 0)).all(1).mean()) if len(labels) else float("nan"),
    }


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
