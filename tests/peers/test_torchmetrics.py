"""Every metric equals that of torchmetrics, on predictions of several sizes, with classes that never occur."""

import numpy as np
import pytest
import torch

from harness.evaluation import metrics

peer = pytest.importorskip("torchmetrics.functional.classification", reason="needs torchmetrics (extra `peers`)")
pytestmark = pytest.mark.slow
SIZES = [(1, 2, 0), (50, 3, 1), (400, 10, 2), (2000, 100, 3), (300, 5, 4)]  # images, classes, seed


def random_predictions(images, classes, seed):
    """Return predictions of which about half are right, of all classes but, in larger sets, the last one."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes - (images > 10 * classes), images)
    logits = draw.normal(size=(images, classes)) + 2 * np.eye(classes)[labels] * draw.random((images, 1))
    probabilities = torch.from_numpy(logits).softmax(1).float().numpy()
    return metrics.Predictions(labels, probabilities, -np.log(probabilities[np.arange(images), labels]))


@pytest.fixture(params=SIZES, ids=str)
def case(request):
    predictions = random_predictions(*request.param)
    return predictions, torch.from_numpy(predictions.probabilities), torch.from_numpy(predictions.labels)


def test_accuracy_and_the_best_of_several_classes(case):
    predictions, probabilities, labels = case
    classes = predictions.num_classes
    for k in {1, 2, min(5, classes)}:
        expected = peer.multiclass_accuracy(probabilities, labels, classes, average="micro", top_k=k)
        assert metrics.accuracy(predictions, k) == pytest.approx(float(expected), abs=1e-6)


def test_confusion_matrix(case):
    predictions, probabilities, labels = case
    expected = peer.multiclass_confusion_matrix(probabilities, labels, predictions.num_classes)
    assert np.array_equal(metrics.confusion_matrix(predictions), expected.numpy())


def test_precision_recall_and_f1_of_each_class(case):
    predictions, probabilities, labels = case
    classes = predictions.num_classes
    measured = metrics.per_class(metrics.confusion_matrix(predictions))
    for name in ("precision", "recall", "f1_score"):
        function = getattr(peer, f"multiclass_{name}")
        expected = function(probabilities, labels, classes, average="none").numpy()
        ours = getattr(measured, name.removesuffix("_score"))
        defined = ~np.isnan(ours)
        np.testing.assert_allclose(ours[defined], expected[defined], atol=1e-6)
        # What is undefined is no number here, and 0 in torchmetrics.
        assert not expected[~defined].any()


def test_balanced_accuracy_and_macro_f1_over_the_classes_that_occur(case):
    predictions, probabilities, labels = case
    classes = predictions.num_classes
    measured = metrics.macro_metrics(metrics.confusion_matrix(predictions))
    matrix = peer.multiclass_confusion_matrix(probabilities, labels, classes)
    occurs = (matrix.sum(1) > 0).numpy()
    recalls = peer.multiclass_recall(probabilities, labels, classes, average="none").numpy()
    assert measured["balanced_acc"] == pytest.approx(float(recalls[occurs].mean()), abs=1e-6)
    f1 = peer.multiclass_f1_score(probabilities, labels, classes, average="none").numpy()
    counted = occurs | (matrix.sum(0) > 0).numpy()
    assert measured["f1_macro"] == pytest.approx(float(f1[counted].mean()), abs=1e-6)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error(case, bins):
    predictions, probabilities, labels = case
    expected = peer.multiclass_calibration_error(probabilities, labels, predictions.num_classes, n_bins=bins, norm="l1")
    assert metrics.reliability(predictions, bins).ece == pytest.approx(float(expected), abs=1e-6)
