"""The confusion matrix and the reliability diagram of predictions."""

import numpy as np
import pytest

from harness.evaluation import metrics
from harness.reporting.figures.confusion import confusion_figure, reliability_figure
from tests.support.predictions import random_predictions


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [2, 10, 30, 100])
def test_confusion_and_reliability_are_drawn_for_any_number_of_classes(tmp_path, count):
    predictions = random_predictions(3000, count)
    names = [f"$class_{i}$ with a long name" for i in range(count)]
    assert (
        confusion_figure(metrics.confusion_matrix(predictions), names, tmp_path / "confusion.png").stat().st_size
        > 10_000
    )
    assert reliability_figure(metrics.reliability(predictions), tmp_path / "reliability.png").stat().st_size > 10_000
    confusion_figure(np.zeros((count, count), int), names, tmp_path / "none.png")
