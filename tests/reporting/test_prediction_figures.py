"""The gallery's table, the confusion matrix and the reliability diagram of predictions."""

import numpy as np
import pytest

from harness.evaluation import metrics
from harness.evaluation.selection import choose_images
from harness.reporting.figures.confusion import confusion_figure, reliability_figure
from harness.reporting.figures.gallery import gallery_table
from tests.support.predictions import CLASSES, random_predictions


def test_the_table_of_a_gallery_says_what_the_predictions_say():
    predictions = random_predictions(30)
    chosen = choose_images(predictions, wrong=True, count=4)
    pictures = [np.full((4, 4, 3), i, np.uint8) for i in range(len(chosen))]
    made = gallery_table(predictions, chosen, pictures, [f"test/{i}" for i in range(30)], CLASSES)
    for row, index in zip(made.rows, chosen, strict=True):
        cells = dict(zip(made.columns, row, strict=True))
        assert cells["id"] == f"test/{index}" and cells["truth"] == CLASSES[predictions.labels[index]]
        assert (
            cells["confidence"]
            == cells[f"score/{cells['prediction']}"]
            == pytest.approx(predictions.probabilities[index].max())
        )


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
