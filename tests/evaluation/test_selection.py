"""Each rule chooses the images that it says, in the order that it says."""

import numpy as np
import pytest

from harness.evaluation import metrics
from harness.evaluation.selection import RIGHT_RULES, WRONG_RULES, choose_images
from harness.utils.errors import UsageError
from tests.support.predictions import random_predictions


@pytest.mark.parametrize(
    ("wrong", "rule"), [(True, rule) for rule in WRONG_RULES] + [(False, rule) for rule in RIGHT_RULES]
)
def test_each_rule_chooses_distinct_images_of_its_kind_and_the_same_for_the_same_seed(wrong, rule):
    predictions = random_predictions()
    chosen = choose_images(predictions, wrong=wrong, rule=rule, count=25, seed=3)
    assert len(set(chosen.tolist())) == 25 and (predictions.correct[chosen] != wrong).all() and chosen.dtype == np.int64
    assert (chosen == choose_images(predictions, wrong=wrong, rule=rule, count=25, seed=3)).all()
    assert len(choose_images(predictions, wrong=wrong, rule=rule, count=10_000)) == (predictions.correct != wrong).sum()
    assert len(choose_images(predictions, wrong=wrong, rule=rule, count=0)) == 0
    assert (chosen == choose_images(predictions, wrong=wrong, rule=rule, count=25, seed=4)).all() == (rule != "random")


def test_rules_order_as_they_say():
    predictions = random_predictions()
    errors = np.flatnonzero(~predictions.correct)
    confident = choose_images(predictions, wrong=True)
    assert confident.tolist() == sorted(errors, key=lambda i: -predictions.confidence[i])[:25]
    assert predictions.labels[choose_images(predictions, wrong=True, rule="per-class", count=4)].tolist() == [
        0,
        1,
        2,
        3,
    ]
    matrix = metrics.confusion_matrix(predictions) * (1 - np.eye(5, dtype=int))
    first = choose_images(predictions, wrong=True, rule="confusion", count=1)[0]
    assert matrix[predictions.labels[first], predictions.predicted[first]] == matrix.max()
    mixed = choose_images(predictions, wrong=False, count=8)
    for label in range(4):
        of_class = np.flatnonzero(predictions.correct & (predictions.labels == label))
        assert mixed[label] == max(of_class, key=lambda i: predictions.confidence[i])
        assert mixed[4 + label] == min(of_class, key=lambda i: predictions.confidence[i])
    everything = metrics.Predictions(np.zeros(3, int), np.array([[1, 0]] * 3, np.float32), np.zeros(3, np.float32))
    assert choose_images(everything, wrong=True).shape == (0,)
    with pytest.raises(UsageError, match="did you mean 'confident'"):
        choose_images(predictions, wrong=True, rule="confidnt")
