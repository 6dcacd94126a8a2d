"""Precision-recall and ROC curves of one class against the rest, sampled at fixed points so that their size is bounded."""

from __future__ import annotations

import numpy as np

RECALLS = np.linspace(0, 1, 21)
# Denser where a useful classifier has its threshold.
FALSE_POSITIVE_RATES = np.array([0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *np.linspace(0.1, 1, 10)])


def precision_at_recalls(is_class: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the precision at each of `RECALLS`, float64: the best one at that recall or a higher one (interpolated).

    Args:
        is_class: bool [N], at least one of them true.
        scores: float [N], of the class.
    """
    hits, misses, _ = threshold_counts(is_class, scores)
    precision = hits / (hits + misses)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return np.asarray(best[np.searchsorted(hits / hits[-1], RECALLS - 1e-12)])


def recall_at_false_positive_rates(is_class: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the recall (true positive rate) at each of `FALSE_POSITIVE_RATES`, float64, linear between thresholds.

    Args:
        is_class: bool [N], neither all true nor all false.
        scores: float [N], of the class.
    """
    hits, misses, _ = threshold_counts(is_class, scores)
    recall, rate = np.append(0, hits / hits[-1]), np.append(0, misses / misses[-1])
    return np.interp(
        FALSE_POSITIVE_RATES, rate, recall
    )  # of several recalls at one rate the last, which is the highest


def threshold_counts(is_class: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how many of the class, and how many others, have at least the score of each threshold, and the thresholds.

    The thresholds are the scores that occur, the highest first.

    Args:
        is_class: bool [N].
        scores: float [N], of the class.
    """
    order = np.argsort(-scores, kind="stable")
    score, is_hit = scores[order], is_class[order]
    last = np.append(score[1:] != score[:-1], True)  # equal scores are one threshold
    return np.cumsum(is_hit)[last], np.cumsum(~is_hit)[last], score[last]
