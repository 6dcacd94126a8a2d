"""Prediction is a plain forward pass in evaluation mode, and leaves the model as it was."""

import numpy as np
import pytest
import torch
from torch import nn

from harness.evaluation.multilabel import predict_multilabel
from harness.evaluation.predict import predict_batches
from harness.utils.errors import DataError, DivergedError
from harness.utils.multilabel import best_thresholds


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, images):
        return self.head(self.drop(self.norm(self.convolution(images)).relu().mean((2, 3))))


def batches(sizes=(7, 7, 3)):
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 3, 8, 8, generator=draw), torch.randint(0, 5, (n,), generator=draw)) for n in sizes]


def test_predicting_equals_a_plain_forward_pass_in_evaluation_mode():
    model = Net().eval()
    predictions = predict_batches(model, batches(), "cpu", tta="mirror")
    images, labels = (torch.cat(part) for part in zip(*batches(), strict=True))
    with torch.no_grad():
        logits, mirrored = model(images), model(images.flip(3))
    np.testing.assert_allclose(predictions.probabilities, logits.softmax(1), atol=1e-6)
    np.testing.assert_allclose(
        predictions.losses, nn.functional.cross_entropy(logits, labels, reduction="none"), atol=1e-5
    )
    np.testing.assert_allclose(predictions.tta_probabilities, ((logits + mirrored) / 2).softmax(1), atol=1e-6)
    assert (predictions.labels == labels.numpy()).all() and predictions.labels.dtype == np.int64
    half = predict_batches(model, batches(), "cpu", autocast=torch.bfloat16)
    assert half.probabilities.dtype == half.losses.dtype == np.float32 and half.tta_probabilities is None
    np.testing.assert_allclose(half.probabilities, predictions.probabilities, atol=0.02)


@pytest.mark.parametrize("fails", [False, True])
def test_predicting_leaves_each_module_in_its_own_mode_and_no_statistic_moved(fails):
    model = Net().train()
    model.norm.eval()  # a frozen norm in a training model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if fails:
        with pytest.raises(RuntimeError):
            predict_batches(model, [(torch.zeros(2, 9, 8, 8), torch.zeros(2))], "cpu")
    else:
        predict_batches(model, batches(), "cpu")
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_can_be_trained_with_a_buffer_made_in_its_first_forward_pass():
    class Lazy(Net):
        table = None

        def forward(self, images):
            if self.table is None:
                self.table = torch.ones(5, device=images.device)
            return super().forward(images) * self.table

    model = Lazy()
    predict_batches(model, batches(), "cpu")
    model.train()(batches()[0][0]).sum().backward()
    assert model.head.weight.grad is not None


def test_no_images_and_predictions_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="no images"):
        predict_batches(Net(), [], "cpu")
    model = Net()
    nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(DivergedError, match="17 of 17 images"):
        predict_batches(model, batches(), "cpu")


def test_mirror_translate_is_the_weighted_mean_of_six_views():
    model = Net().eval()
    predictions = predict_batches(model, batches(), "cpu", tta="mirror-translate")
    images = np.concatenate([images.numpy() for images, _ in batches()])
    expected = 0
    for weight, (down, right) in ((0.5, (0, 0)), (0.25, (1, 1)), (0.25, (-1, -1))):
        rows, columns = (np.abs(np.arange(8) + by) for by in (down, right))  # -1 is reflected to 1
        rows, columns = (np.where(index > 7, 14 - index, index) for index in (rows, columns))
        moved = images[:, :, rows][:, :, :, columns]
        for view in (moved, moved[:, :, :, ::-1]):
            with torch.no_grad():
                expected = expected + weight / 2 * model(torch.from_numpy(view.copy()))
    np.testing.assert_allclose(predictions.tta_probabilities, expected.softmax(1), atol=1e-6)


def test_no_images_with_several_labels_and_predictions_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="no images"):
        predict_multilabel(Net(), [], torch.device("cpu"))
    model = Net()
    nn.init.constant_(model.head.bias, float("nan"))
    several = [(images, nn.functional.one_hot(labels, model.head.out_features)) for images, labels in batches()]
    with pytest.raises(DivergedError, match="17 of 17 images with NaN or infinite numbers; its training has diverged"):
        predict_multilabel(model, several, torch.device("cpu"))


def test_thresholds_are_chosen_by_the_predictions_of_the_images_where_that_is_asked_for():
    model = Net()
    several = [(images, nn.functional.one_hot(labels, model.head.out_features)) for images, labels in batches()]
    chosen = predict_multilabel(model, several, torch.device("cpu"), chooses_thresholds=True)
    fixed = predict_multilabel(model, several, torch.device("cpu"))
    np.testing.assert_array_equal(chosen.probabilities, fixed.probabilities)
    np.testing.assert_array_equal(chosen.thresholds, best_thresholds(fixed.labels, fixed.probabilities))
    assert (fixed.thresholds == 0.5).all() and (chosen.thresholds != 0.5).any()
