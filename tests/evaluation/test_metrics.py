"""The metrics equal other ways of computing them, and `predictions.csv` holds what the reader reads back."""

import csv

import numpy as np
import pytest

from harness.evaluation import metrics
from harness.reporting.evaluation_report import table_text
from tests.support.predictions import CLASSES, random_predictions


def test_metrics_equal_those_of_scikit_learn():
    from sklearn import metrics as sklearn_metrics

    predictions = random_predictions()
    matrix = metrics.confusion_matrix(predictions)
    labels = range(5)
    assert (matrix == sklearn_metrics.confusion_matrix(predictions.labels, predictions.predicted, labels=labels)).all()
    assert metrics.accuracy(predictions) == pytest.approx(
        sklearn_metrics.accuracy_score(predictions.labels, predictions.predicted)
    )
    for k in (1, 2, 5, 9):
        expected = (
            sklearn_metrics.top_k_accuracy_score(
                predictions.labels, predictions.probabilities, k=min(k, 5), labels=labels
            )
            if k < 5
            else 1.0
        )
        assert metrics.accuracy(predictions, k) == pytest.approx(expected)
    ours = metrics.per_class(matrix)
    theirs = sklearn_metrics.precision_recall_fscore_support(
        predictions.labels, predictions.predicted, labels=labels, zero_division=np.nan
    )
    for mine, other in zip((ours.precision, ours.recall, ours.f1, ours.support), theirs, strict=True):
        np.testing.assert_allclose(mine, other)
    assert predictions.losses.mean() == pytest.approx(
        sklearn_metrics.log_loss(predictions.labels, predictions.probabilities, labels=labels), rel=1e-5
    )
    rest = [
        sklearn_metrics.accuracy_score(predictions.labels == label, predictions.predicted == label) for label in labels
    ]
    np.testing.assert_allclose(ours.accuracy[:4], rest[:4])
    assert ours.table(CLASSES).rows[4] == ("never", None, None, None, 0, None)


def test_undefined_figures_of_a_class_are_none_and_a_dash_for_a_reader():
    """Truth in rows: `absent` has no images and is predicted once, `unseen` is never predicted."""
    table = metrics.per_class(np.array([[3, 1, 0], [0, 0, 0], [2, 0, 0]])).table(["a", "absent", "unseen"])
    assert table.columns == ("class", "recall", "precision", "f1", "images", "accuracy")
    assert table.rows[1] == ("absent", None, 0.0, 0.0, 0, None)
    assert table.rows[2] == ("unseen", 0.0, None, 0.0, 2, pytest.approx(4 / 6))
    assert table_text(table).splitlines()[2].split() == ["absent", "–", "0.0000", "0.0000", "0", "–"]


def test_calibration_equals_a_loop_over_bins():
    predictions = random_predictions()
    measured = metrics.reliability(predictions)
    error = 0.0
    for number in range(15):
        inside = (predictions.confidence > number / 15) & (predictions.confidence <= (number + 1) / 15)
        assert inside.sum() == measured.counts[number]
        if inside.any():
            assert measured.accuracy[number] == pytest.approx(predictions.correct[inside].mean())
            assert measured.confidence[number] == pytest.approx(predictions.confidence[inside].mean(), rel=1e-5)
            error += inside.mean() * abs(predictions.correct[inside].mean() - predictions.confidence[inside].mean())
        else:
            assert np.isnan(measured.accuracy[number])
    assert measured.counts.sum() == len(predictions) and measured.ece == pytest.approx(error, rel=1e-5)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it():
    confidence = np.array([0.5, 0.5, 0.625, 0.75, 1.0, 1.0, 1.0], np.float32)  # of four bins: all but one on an edge
    probabilities = np.stack([confidence, 1 - confidence], 1)
    predictions = metrics.Predictions(np.zeros(7, np.int64), probabilities, np.zeros(7, np.float32))
    measured = metrics.reliability(predictions, bins=4)
    assert measured.counts.tolist() == [0, 2, 2, 3]  # Guo et al.: ((m - 1) / M, m / M]
    assert measured.confidence.tolist()[1:] == [0.5, 0.6875, 1.0]


def test_a_model_whose_accuracy_equals_its_confidence_has_no_calibration_error():
    probabilities = np.tile(np.array([0.8, 0.2], np.float32), (1000, 1))
    predictions = metrics.Predictions(np.repeat([0, 1], [800, 200]), probabilities, np.zeros(1000, np.float32))
    assert metrics.reliability(predictions).ece == pytest.approx(0, abs=1e-6)
    overconfident = metrics.Predictions(
        np.array([0, 1]), np.array([[1, 0], [1, 0]], np.float32), np.zeros(2, np.float32)
    )
    assert metrics.reliability(overconfident).ece == pytest.approx(0.5)


def test_the_margin_is_negative_exactly_where_the_model_is_wrong():
    predictions = random_predictions()
    for margin, label, row in zip(predictions.margin, predictions.labels, predictions.probabilities, strict=True):
        assert margin == pytest.approx(row[label] - max(v for k, v in enumerate(row) if k != label))
    assert ((predictions.margin < 0) == ~predictions.correct).all()
    assert metrics.Predictions(np.zeros(2, int), np.ones((2, 1), np.float32), np.zeros(2)).margin.tolist() == [1, 1]


def test_the_csv_holds_every_image_and_no_formula(tmp_path):
    predictions = random_predictions(50)
    ids = [f"=cmd({i}).png" if i % 2 else f'test/a "quoted", name\n{i}' for i in range(49)] + ["broken\udcff"]
    path = metrics.write_predictions_csv(predictions, ids, CLASSES, tmp_path / "out" / "predictions.csv")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == metrics.COLUMNS and len(rows) == 50
    for index, row in enumerate(rows[:-1]):
        assert int(row["index"]) == index
        assert row["id"] == ("'" if index % 2 else "") + ids[index]
        assert row["label"].removeprefix("'") == CLASSES[predictions.labels[index]]
        assert row["prediction"].removeprefix("'") == CLASSES[predictions.predicted[index]]
        assert not any(row[key].startswith(("=", "+", "-", "@")) for key in ("id", "label", "prediction"))
        for key, numbers in (
            ("confidence", predictions.confidence),
            ("loss", predictions.losses),
            ("margin", predictions.margin),
        ):
            assert float(row[key]) == pytest.approx(numbers[index], rel=1e-5)
    assert rows[-1]["id"] == r"broken\udcff"


def test_what_is_written_is_read_back(tmp_path):
    predictions, classes = random_predictions(50), ("\ncat", "dog\udcff", "=ship()", "-3", "never")
    path = metrics.write_predictions_csv(predictions, list(map(str, range(50))), classes, tmp_path / "predictions.csv")
    read, problem = metrics.read_predictions_csv(path, classes)
    assert problem == ""
    assert read.classes == classes
    assert read.labels.tolist() == predictions.labels.tolist()
    assert read.predicted.tolist() == predictions.predicted.tolist()
    assert (metrics.confusion_matrix(read) == metrics.confusion_matrix(predictions)).all()
    assert metrics.reliability(read).ece == pytest.approx(metrics.reliability(predictions).ece, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "No such file"),
        ("index,id\n1,a\n", "damaged"),
        ("label,prediction,confidence,loss\na,b,high,0\n", "damaged"),
        ("label,prediction,confidence,loss\na,other,1,0\n", "damaged"),
        ("label,prediction,confidence,loss\n", "empty"),
    ],
)
def test_a_file_that_can_not_be_read_back_is_no_predictions_and_a_reason(tmp_path, text, problem):
    path = tmp_path / "predictions.csv"
    if text is not None:
        path.write_text(text)
    predictions, reason = metrics.read_predictions_csv(path, ["a", "b"])
    assert predictions is None
    assert problem in reason


def test_the_most_confused_pairs_are_the_largest_cells_off_the_diagonal():
    matrix = np.array([[9, 2, 0], [5, 1, 4], [0, 0, 0]])
    pairs = metrics.most_confused(matrix, "abc", limit=2)
    assert [tuple(pair) for pair in pairs] == [("b", "a", 5, 0.5), ("b", "c", 4, 0.4)]
    assert len(metrics.most_confused(matrix, "abc")) == 3


def test_the_most_probable_classes_are_five_unless_another_number_is_asked_for():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(8), 20).astype(np.float32)
    predictions = metrics.Predictions(np.zeros(20, np.int64), probabilities, np.zeros(20, np.float32))
    np.testing.assert_array_equal(metrics.top_classes(predictions), np.argsort(-probabilities, axis=1)[:, :5])


def test_the_most_probable_classes_of_more_images_than_are_sorted_at_a_time():
    images = 2 * metrics.ROWS + 5
    probabilities = np.random.default_rng(1).dirichlet(np.ones(3), images).astype(np.float32)
    predictions = metrics.Predictions(np.zeros(images, np.int64), probabilities, np.zeros(images, np.float32))
    np.testing.assert_array_equal(metrics.top_classes(predictions, 2), np.argsort(-probabilities, axis=1)[:, :2])
