"""The whitening filters against NumPy's covariance, and the layer that gets them."""

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import harness.models.cifar_resnet
import harness.models.speedrun_cnn  # noqa: F401 - registers its model
from harness.config.settings import Config
from harness.data.dataset import Dataset, in_memory
from harness.data.preprocess import Preprocess
from harness.models.factory import initialise_for
from harness.models.whitening import whiten_first_layer, whitening_filters
from harness.utils.errors import UsageError


def correlated_images(count=600, side=9):
    """Return images whose neighbouring pixels are alike, as in photographs, float32 [count, 3, side, side]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 3, side, side, generator=generator)
    return F.avg_pool2d(noise, 3, stride=1, padding=1) + 0.3 * noise + 0.2 * noise.mean(1, keepdim=True)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (1, 3)])
def test_the_outputs_of_the_filters_are_uncorrelated_with_unit_variance(kernel):
    images = correlated_images()
    filters = whitening_filters(images, kernel)
    assert filters.shape == (3 * kernel[0] * kernel[1], 3, *kernel)
    outputs = F.conv2d(images, filters).transpose(0, 1).flatten(1).double().numpy()
    covariance = outputs @ outputs.T / outputs.shape[1]
    np.testing.assert_allclose(covariance, np.eye(len(filters)), atol=0.02)


def test_the_filters_are_the_eigenvectors_of_the_patches_from_the_largest_variance_on():
    images = correlated_images(20, 5)
    patches = np.array(
        [
            image[:, row : row + 2, column : column + 2].ravel()
            for image in images.numpy()
            for row in range(4)
            for column in range(4)
        ],
        dtype=np.float64,
    )
    values, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
    filters = whitening_filters(images, (2, 2)).flatten(1).double().numpy()
    norms = np.linalg.norm(filters, axis=1)
    np.testing.assert_allclose(norms, 1 / np.sqrt(values[::-1] + 5e-4), rtol=1e-4)
    cosines = np.abs((filters / norms[:, None] * vectors.T[::-1]).sum(1))
    np.testing.assert_allclose(cosines, 1, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "filled"),
    [("speedrun_cnn", {"width": 4}, 24), ("custom_resnet", {"width": 64}, 54), ("custom_resnet", {"width": 10}, 10)],
)
def test_the_first_layer_gets_the_filters_and_their_negatives_and_is_not_trained(name, arguments, filled):
    model = timm.create_model(name, **arguments)
    layer = model.stem.conv if name == "speedrun_cnn" else model.prep.conv
    before, images = layer.weight.clone(), correlated_images(50)
    whiten_first_layer(model, images)
    filters = whitening_filters(images, layer.kernel_size)[: filled // 2]
    assert torch.equal(layer.weight[: filled // 2], filters)
    assert torch.equal(layer.weight[filled // 2 : filled], -filters)
    assert torch.equal(layer.weight[filled:], before[filled:])
    assert not layer.weight.requires_grad
    assert layer.bias is None or (layer.bias.requires_grad and not layer.bias.any())


def test_a_model_without_a_convolution_of_rgb_images_is_refused():
    for model in (nn.Linear(3, 2), nn.Conv2d(1, 4, 3), nn.Conv2d(3, 6, 3, groups=3)):
        with pytest.raises(UsageError, match="whitening"):
            whiten_first_layer(model, correlated_images(2))


def test_the_setting_whitens_the_first_layer_by_the_training_images():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    train = in_memory("train", pixels, np.arange(50) % 2, list(map(str, range(50))))
    data = Dataset("noise", ("a", "b"), train, None, None, (0.5,) * 3, (0.25,) * 3, "")
    preprocess = Preprocess(32, (0.5,) * 3, (0.25,) * 3, 1.0, "bilinear")
    model, twin = (timm.create_model("speedrun_cnn", width=4) for _ in range(2))
    initialise_for(model, Config(whitening=True), data, preprocess)
    whiten_first_layer(twin, (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)
    torch.testing.assert_close(model.stem.conv.weight, twin.stem.conv.weight, atol=1e-4, rtol=1e-3)
    assert not model.stem.conv.weight.requires_grad
