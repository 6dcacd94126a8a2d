"""Metrics of several labels per image, compared with scikit-learn and with loops over images and thresholds."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from harness.utils.multilabel import average_precisions, best_thresholds, f1_scores, multilabel_metrics


def sample(seed, images=80, classes=5, levels=0):
    """Return labels and scores; with `levels`, many scores are equal."""
    random = np.random.default_rng(seed)
    labels = (random.random((images, classes)) < np.linspace(0.05, 0.7, classes)).astype(np.uint8)
    scores = np.clip(random.random((images, classes)) * 0.7 + 0.3 * labels, 0, 1)
    scores = np.round(scores * levels) / levels if levels else scores
    return labels, scores.astype(np.float32)


def naive_average_precision(is_class, scores):
    """Return the area under precision over recall, threshold by threshold."""
    area = recall = 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        hits = int((chosen & is_class).sum())
        area += (hits / is_class.sum() - recall) * hits / chosen.sum()
        recall = hits / is_class.sum()
    return area


@pytest.mark.parametrize("levels", [0, 20, 4, 1])
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_scikit_learn_and_of_a_loop_over_thresholds(seed, levels):
    labels, scores = sample(seed, levels=levels)
    values = average_precisions(labels, scores)
    for column, value in enumerate(values):
        is_class = labels[:, column] > 0
        assert value == pytest.approx(average_precision_score(is_class, scores[:, column]), abs=1e-12)
        assert value == pytest.approx(naive_average_precision(is_class, scores[:, column]), abs=1e-12)
    assert multilabel_metrics(labels, scores, np.full(5, 0.5))["map"] == pytest.approx(
        average_precision_score(labels, scores, average="macro"), abs=1e-12
    )


@pytest.mark.parametrize("levels", [0, 10, 3])
def test_f1_and_exact_match_are_those_of_scikit_learn(levels):
    labels, scores = sample(7, levels=levels)
    thresholds = np.linspace(0.2, 0.8, 5)
    predicted = scores >= thresholds
    metrics = multilabel_metrics(labels, scores, thresholds)
    assert metrics["f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=np.nan))
    assert metrics["exact_match"] == accuracy_score(labels, predicted)


@pytest.mark.parametrize("levels", [0, 10, 2])
@pytest.mark.parametrize("seed", range(3))
def test_no_threshold_gives_a_class_a_greater_f1_than_the_chosen_one(seed, levels):
    labels, scores = sample(seed, levels=levels)
    reached = f1_scores(labels, scores >= best_thresholds(labels, scores))
    for threshold in np.linspace(0, 1, 201):
        assert (f1_scores(labels, scores >= threshold) <= reached + 1e-12).all()


def test_a_threshold_lies_between_the_scores_that_it_divides():
    labels = np.array([[1], [1], [0], [0]], np.uint8)
    scores = np.array([[0.9], [0.6], [0.2], [0.1]], np.float32)
    assert best_thresholds(labels, scores)[0] == pytest.approx(0.4)


def test_a_class_without_images_has_no_average_precision_and_the_threshold_of_one_half():
    labels, scores = sample(1)
    labels[:, 2] = 0
    assert np.isnan(average_precisions(labels, scores)).tolist() == [False, False, True, False, False]
    assert best_thresholds(labels, scores)[2] == 0.5
    known = np.delete(labels, 2, 1), np.delete(scores, 2, 1)
    expected = average_precision_score(*known, average="macro")
    assert multilabel_metrics(labels, scores, np.full(5, 0.5))["map"] == pytest.approx(expected)


def test_a_class_that_is_absent_and_never_predicted_counts_in_no_f1():
    labels, scores = np.array([[1, 0], [0, 0]], np.uint8), np.array([[0.9, 0.1], [0.8, 0.2]], np.float32)
    assert multilabel_metrics(labels, scores, np.array([0.5, 0.5]))["f1_macro"] == pytest.approx(2 / 3)


def test_there_is_no_metric_of_no_images_or_without_any_label():
    nothing = multilabel_metrics(np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.float32), np.full(3, 0.5))
    assert np.isnan(list(nothing.values())).all()
    assert np.isnan(multilabel_metrics(np.zeros((4, 2), np.uint8), np.full((4, 2), 0.1), np.full(2, 0.5))["map"])
