"""Grad-CAM maps equal those of captum, another implementation than the one that computes ours."""

import numpy as np
import pytest
import timm
import torch

from harness.evaluation import cam_layers, gradcam
from tests.support.tiny_net import random_images, tiny_net

captum_attr = pytest.importorskip("captum.attr", reason="needs captum (extra `peers`)")
pytestmark = pytest.mark.slow
TARGETS = [0, 1, 2, 3, 1]


def without_in_place(model):
    """Return the model with activations that keep their inputs, which captum's hooks need."""
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return model.eval()


def expected_maps(model, layer, images, targets):
    """Return captum's maps with their negative values, float [N, h, w]."""
    maps = captum_attr.LayerGradCam(model, layer).attribute(images, torch.tensor(targets), attr_dim_summation=True)
    return maps[:, 0].detach().numpy()


@pytest.mark.parametrize("pool", ["max", "average"])
def test_gradcam_of_a_small_network(pool):
    model, images = tiny_net(pool=pool), random_images()
    ours = gradcam.compute_maps(model, images, TARGETS, method="gradcam", layer="second")
    plain = without_in_place(gradcam.private_copy(model))
    theirs = expected_maps(plain, plain.second, images, TARGETS)
    np.testing.assert_allclose(ours.raw, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_gradcam_of_models_of_timm_at_the_layer_that_is_chosen(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4).eval()
    images = random_images(3, side=96)
    layer = gradcam.default_layer(model, images[:1])
    assert isinstance(cam_layers.find_layer(model, images[:1], layer).name, str)
    ours = gradcam.compute_maps(model, images, TARGETS[:3], method="gradcam", layer=layer)
    plain = without_in_place(gradcam.private_copy(model))
    theirs = expected_maps(plain, plain.get_submodule(layer), images, TARGETS[:3])
    np.testing.assert_allclose(ours.raw, theirs, atol=1e-4 * np.abs(theirs).max())
