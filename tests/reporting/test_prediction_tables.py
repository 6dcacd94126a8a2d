"""The table and the charts of predictions hold what the predictions hold, in a bounded size."""

import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from harness.evaluation import metrics
from harness.evaluation.gradcam import make_maps
from harness.reporting import gradcam_images, prediction_tables
from harness.reporting.figures.gallery import Tile
from harness.reporting.prediction_tables import CHART_CLASSES, prediction_charts, predictions_table
from harness.utils.curves import FALSE_POSITIVE_RATES, RECALLS
from tests.support.predictions import CLASSES, random_predictions


def cells_of(table):
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def charts_of(predictions, classes):
    matrix = metrics.confusion_matrix(predictions)
    return prediction_charts(predictions, matrix, metrics.reliability(predictions), classes, "test")


def test_a_row_of_the_table_says_what_the_predictions_say_of_its_image():
    predictions = random_predictions(30)
    pictures = {4: np.full((4, 4, 3), 9, np.uint8)}
    table = predictions_table(predictions, [f"test/{i}" for i in range(30)], CLASSES, pictures=pictures)
    assert len(table.rows) == 30 and table.columns[0] == "id"
    for index, cells in enumerate(cells_of(table)):
        order = np.argsort(-predictions.probabilities[index], kind="stable")
        guesses = [cells["prediction"], *(cells[f"guess {rank}"] for rank in range(2, 6))]
        scores = [cells["confidence"], *(cells[f"score {rank}"] for rank in range(2, 6))]
        assert guesses == [CLASSES[number] for number in order]
        assert scores == pytest.approx(predictions.probabilities[index][order].tolist(), abs=1e-6)
        assert (cells["id"], cells["truth"]) == (f"test/{index}", CLASSES[predictions.labels[index]])
        assert cells["correct"] == (cells["truth"] == cells["prediction"]) == (cells["margin"] > 0)
        assert cells["loss"] == pytest.approx(
            -np.log(predictions.probabilities[index][predictions.labels[index]]), abs=1e-5
        )
        assert (cells["image"] is not None) == (index == 4)


def test_a_thousand_classes_have_the_columns_of_five():
    names = tuple(f"class {number}" for number in range(1000))
    few = predictions_table(random_predictions(20), [str(i) for i in range(20)], CLASSES)
    many = predictions_table(random_predictions(20, 1000), [str(i) for i in range(20)], names)
    assert many.columns == few.columns
    assert len(many.columns) == 16


def test_the_table_of_a_large_split_is_bounded_and_has_the_same_images_in_each_run(monkeypatch):
    monkeypatch.setattr(prediction_tables, "MAX_ROWS", 100)
    ids = [f"test/{i}" for i in range(250)]
    tables = [predictions_table(random_predictions(250, seed=seed), ids, CLASSES) for seed in (0, 1)]
    first, second = ([row[0] for row in table.rows] for table in tables)
    assert first == second == ids[::3]


def test_rows_of_several_runs_join_on_the_id():
    ids = [f"test/{i}" for i in range(50)]
    left, right = (cells_of(predictions_table(random_predictions(50, seed=0), ids, CLASSES)) for _ in range(2))
    right = {cells["id"]: cells for cells in right}
    assert all(cells["truth"] == right[cells["id"]]["truth"] for cells in left) and len(right) == 50


def test_charts_of_few_classes_equal_scikit_learns_confusion_matrix_and_name_every_class():
    predictions = random_predictions()
    charts = charts_of(predictions, CLASSES)
    rows = charts["predictions/confusion_matrix"].table.rows
    counts = np.array([row[2] for row in rows]).reshape(5, 5)
    expected = sklearn_metrics.confusion_matrix(predictions.labels, predictions.predicted, labels=range(5))
    assert (counts == expected).all() and [row[1] for row in rows[:5]] == list(CLASSES)
    assert {row[2] for row in charts["predictions/precision_recall"].table.rows} == set(
        CLASSES[:4]
    )  # the last has no images
    titles = [chart.title for chart in charts.values()]
    assert len(set(titles)) == 4 and all("test set" in title for title in titles)


def test_charts_of_a_thousand_classes_show_the_most_confused_ones_in_a_bounded_size():
    generator = np.random.default_rng(0)
    predictions = random_predictions(5000, 1000)
    labels = predictions.labels.copy()
    pair = generator.random(5000) < 0.3
    labels[pair] = 700  # many images of class 700 are predicted as class 3
    probabilities = predictions.probabilities.copy()
    probabilities[pair, 3] = 2.0
    predictions = metrics.Predictions(labels, probabilities / probabilities.sum(1, keepdims=True), predictions.losses)
    names = tuple(f"class {number}" for number in range(1000))
    charts = charts_of(predictions, names)
    shown = {row[0] for row in charts["predictions/confusion_matrix"].table.rows}
    assert {"class 3", "class 700"} <= shown and len(shown) == CHART_CLASSES
    assert "the 20 most confused of 1,000 classes" in charts["predictions/confusion_matrix"].title
    lengths = {key: len(chart.table.rows) for key, chart in charts.items()}
    assert lengths["predictions/confusion_matrix"] == CHART_CLASSES**2
    assert lengths["predictions/precision_recall"] <= CHART_CLASSES * len(RECALLS)
    assert lengths["predictions/roc"] <= CHART_CLASSES * len(FALSE_POSITIVE_RATES)
    assert lengths["predictions/calibration"] <= metrics.BINS + 2
    assert sum(len(json.dumps(chart.table.rows)) for chart in charts.values()) < 60_000


def test_charts_of_a_model_without_errors_show_the_first_classes():
    matrix = np.diag(np.full(50, 3))
    assert metrics.most_confused_classes(matrix, 20).tolist() == list(range(20))


def test_the_calibration_curve_has_the_bins_of_the_reliability_diagram():
    predictions = random_predictions()
    rows = charts_of(predictions, CLASSES)["predictions/calibration"].table.rows
    bins = metrics.reliability(predictions).bins
    points = np.array([row[:2] for row in rows if row[2] == "model"])
    np.testing.assert_allclose(points, [(each.confidence, each.accuracy) for each in bins], atol=1e-6)


def test_the_levels_of_a_layer_are_fifths_of_the_higher_peak_and_an_empty_map_shows_nothing():
    raw = np.array([[[4.0, 3.0], [2.0, -1.0]], [[0.0, 0.0], [0.0, 0.0]]], np.float32)
    scaled = np.maximum(raw, 0) / 4
    strong, weak = make_maps("hirescam", "x", raw, scaled), make_maps("hirescam", "x", raw / 2, scaled)
    tiles = [Tile(np.zeros((2, 2, 3), np.uint8), "cat", "dog", 0.75, False)] * 2
    images = gradcam_images.layered_images(tiles, ["test/1", "test/2"], strong, weak)
    prediction, truth = (images[0].masks[name].levels for name in ("prediction", "truth"))
    assert prediction.shape == images[0].image.pixels.shape[:2] == (128, 128)
    assert [prediction[0, 0], prediction[0, -1], prediction[-1, 0], prediction[-1, -1]] == [4, 3, 2, 0]
    assert [truth[0, 0], truth[0, -1], truth[-1, 0], truth[-1, -1]] == [2, 1, 1, 0]
    assert not images[1].masks["prediction"].levels.any()
    assert images[0].image.caption == f"test/1: cat predicted as dog (75.0 %); {strong.resolution}"
    assert "empty map of the prediction and of the truth" in images[1].image.caption
