"""The confusion matrix and the reliability diagram of predictions."""

import math

import numpy as np
import pytest

from harness.evaluation import metrics
from harness.reporting.figures import style
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


NAMES = (
    "cat",
    "strawberry jam on toast with butter",
    "W" * 30,
    "кошка серая",
    "قطة سوداء",
    "猫の写真",
    "🧿 amulet",
    "$x_1$",
)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "count", [2, 3, 6, 7, 12, 13, 21, 100, *(pytest.param(n, marks=pytest.mark.slow) for n in (20, 60, 1000))]
)
def test_no_two_names_of_a_confusion_matrix_touch(tmp_path, monkeypatch, count):
    drawn = []
    save = style.save_figure
    monkeypatch.setattr(style, "save_figure", lambda figure, path: (drawn.append(figure), save(figure, path))[1])
    matrix = np.eye(count, dtype=int) * 12345
    confusion_figure(matrix, [f"{NAMES[i % len(NAMES)]} {i}" for i in range(count)], tmp_path / "confusion.png")
    (figure,) = drawn
    axes, bounds = figure.axes[0], figure.bbox
    heading = figure.texts[0].get_window_extent()
    assert bounds.x0 <= heading.x0 and heading.x1 <= bounds.x1
    for axis, along in ((axes.xaxis, 0), (axes.yaxis, 1)):
        labels = [label for label in axis.get_ticklabels() if label.get_text()]
        assert labels[0].get_text().startswith(("cat", "0 cat")) and len(labels) >= min(count, 40)
        for label in labels:
            extent = label.get_window_extent()
            assert bounds.x0 - 1 <= extent.x0 and bounds.y0 - 1 <= extent.y0
        places = [axes.transData.transform((place, place))[along] for place in axis.get_ticklocs()]
        spacing = np.abs(np.diff(places)).min()
        angle = labels[0].get_rotation() if along == 0 else 90
        sizes = []
        for label in labels:  # as they are when they are level
            label.set_rotation(0)
            sizes.append(label.get_window_extent())
        if angle == 0:
            assert max(size.width for size in sizes) < spacing
        else:  # parallel lines
            assert max(size.height for size in sizes) <= spacing * math.sin(math.radians(angle)) * 1.05
        assert labels[0].get_fontsize() >= 5.9
