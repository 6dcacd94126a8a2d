"""Sampled precision-recall and ROC curves equal scikit-learn's at the sampled points."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from harness.utils.curves import FALSE_POSITIVE_RATES, RECALLS, precision_at_recalls, recall_at_false_positive_rates


@pytest.mark.parametrize("decimals", [1, 3, 9])  # scores with many ties, few, none
@pytest.mark.parametrize("seed", range(4))
def test_curves_equal_those_of_scikit_learn(seed, decimals):
    generator = np.random.default_rng(seed)
    is_class = generator.random(300) < 0.2
    scores = (generator.random(300) + 0.4 * is_class).round(decimals)
    precisions, recalls, _ = precision_recall_curve(is_class, scores)
    for recall, precision in zip(RECALLS, precision_at_recalls(is_class, scores), strict=True):
        assert precision == pytest.approx(precisions[:-1][recalls[:-1] >= recall - 1e-9].max())
    rates, hits, _ = roc_curve(is_class, scores, drop_intermediate=False)
    for rate, recall in zip(FALSE_POSITIVE_RATES, recall_at_false_positive_rates(is_class, scores), strict=True):
        below, above = hits[rates <= rate].max(), hits[rates >= rate].min()
        if rate in rates:
            assert recall == pytest.approx(below)
        else:
            left, right = rates[rates <= rate].max(), rates[rates >= rate].min()
            assert recall == pytest.approx(below + (above - below) * (rate - left) / (right - left))
