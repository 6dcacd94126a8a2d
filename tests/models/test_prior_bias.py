"""The bias of a new classifier where images have several labels: at first each class is as probable as it is frequent."""

import json

import numpy as np
import pytest
import torch

from harness.config.recipe import make_config
from harness.data.balance import class_weights
from harness.data.dataset import Dataset, in_memory
from harness.models.factory import create_model, initialise_for
from harness.models.pretrained import classifier_names
from harness.training.losses import uninformed_loss
from tests.models.test_pretrained import save

SHARES = np.array([0.5, 0.2, 0.05, 0.0])
LABELS = (np.arange(100)[:, None] < 100 * SHARES).astype(np.uint8)
SPLIT = in_memory("train", np.zeros((100, 8, 8, 3), np.uint8), LABELS, [str(index) for index in range(100)])
DATA = Dataset("t", tuple("abcd"), SPLIT, None, None, (0.5,) * 3, (0.5,) * 3, "")


def multilabel_config(**settings):
    given = {"data": "table", "data_dir": "t.csv", "label_columns": "a,b,c,d", **settings}
    return make_config(given, "custom-resnet")


def initialised(model="custom_resnet", **settings):
    config = multilabel_config(model=model, **settings)
    torch.manual_seed(0)
    made = create_model(config, 4)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    initialise_for(made, config, DATA, None)
    return made.eval(), before


def probabilities(model):
    """Return the mean over images whose features are zero, which leaves the biases alone."""
    (name,) = classifier_names(model)
    layer = model.get_submodule(name)
    with torch.no_grad():
        logits = layer(torch.zeros(1, *layer.weight.shape[1:])) * getattr(model, "logit_scale", 1.0)
    return logits.flatten().sigmoid().numpy()


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("custom_resnet", "width=4"),
        ("custom_resnet", "width=4,logit_scale=0.125,head_bias=true"),
        ("resnet18_cifar", ""),
        ("test_vit", ""),
        ("test_convnext", ""),
    ],
)
def test_a_new_model_predicts_each_class_as_often_as_it_occurs(model, arguments):
    made, before = initialised(model, model_args=arguments)
    np.testing.assert_allclose(probabilities(made), [0.5, 0.2, 0.05, 0.005], rtol=1e-4)
    changed = [name for name, value in made.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == [f"{classifier_names(made)[0]}.bias"]


@pytest.mark.parametrize("weights", [{"class_weights": "balanced"}, {"loss_args": "pos_weight=4"}])
def test_weights_of_the_images_that_have_a_class_count(weights):
    shares = np.array([0.5, 0.2, 0.05])
    factor = 4.0 if "loss_args" in weights else (1 - shares) / shares  # balanced: as if half the images had it
    expected = factor * shares / (factor * shares + 1 - shares)
    made, _ = initialised(model_args="width=4", **weights)
    np.testing.assert_allclose(probabilities(made)[:3], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("weights", "without"),
    [({"class_weights": "b=0"}, [1]), ({"loss_args": "pos_weight=0"}, range(4)), ({"class_weights": "b=1e-9"}, [1])],
)
def test_classes_without_weight_begin_with_half_an_image_and_a_finite_loss(weights, without):
    made, config = initialised(model_args="width=4", **weights)[0], multilabel_config(model_args="width=4", **weights)
    odds = SHARES / (1 - SHARES)
    odds[3] = 0.005 / 0.995  # no image has it
    odds[list(without)] = (0.005 / (1 - SHARES.clip(0.005)))[list(without)]
    np.testing.assert_allclose(probabilities(made), odds / (1 + odds), rtol=1e-4)
    of_classes = class_weights(config, LABELS, DATA.classes, 4)
    loss = uninformed_loss(config, LABELS, of_classes)
    factor = np.zeros(4) if of_classes is None else of_classes.numpy()
    naive = np.log1p(odds) + SHARES * (factor * np.log1p(1 / odds) - np.log1p(odds))
    np.testing.assert_allclose(loss, naive.sum(), rtol=1e-4)


@pytest.mark.parametrize("names", ["dcba", "wxyz", ""])
def test_a_pretrained_classifier_keeps_its_biases_and_one_of_other_classes_begins_anew(tmp_path, names):
    """Without names it has as many outputs as the data has classes, and is kept as timm loads it."""
    original = save(tmp_path / "X", list(names) or list("abcd"))
    if not names:
        path = tmp_path / "X/config.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in content.items() if key != "label_names"}))
    made, _ = initialised(f"local-dir:{tmp_path / 'X'}", pretrained=True)
    if names == "wxyz":
        np.testing.assert_allclose(probabilities(made), [0.5, 0.2, 0.05, 0.005], rtol=1e-4)
    else:
        bias = original.get_classifier().bias
        assert torch.equal(made.get_classifier().bias, bias.flip(0) if names else bias) and bias.abs().max() > 0


@pytest.mark.parametrize("settings", [{"prior_bias": False}, {"model_args": "width=4,head_bias=false"}])
def test_the_setting_and_a_head_without_a_bias_leave_the_model_as_it_is(settings):
    made, before = initialised(**{"model_args": "width=4", **settings})
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_one_label_per_image_leaves_the_model_as_it_is():
    config = make_config({"data": "table", "data_dir": "t.csv", "model_args": "width=4"}, "custom-resnet")
    made = create_model(config, 4)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    initialise_for(made, config, DATA, None)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
