"""The evaluation transform against torchvision's, and the preprocessing that a model needs."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from harness.config.settings import Config
from harness.data.preprocess import Preprocess, make_preprocess
from tests.support.image_folders import random_image

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@pytest.mark.parametrize("shape", [(32, 32), (20, 50), (300, 40), (1, 1), (3, 2000)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_the_evaluation_transform_is_torchvisions(shape, crop_pct):
    rgb = random_image(shape)
    preprocess = Preprocess(32, MEAN, STD, crop_pct, "bicubic")
    short = int(32 / crop_pct)
    torchvisions = transforms.Compose(
        [
            transforms.Resize(short, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    expected = torchvisions(Image.fromarray(rgb))
    for image in (preprocess.image(rgb), preprocess.image(Image.fromarray(rgb))):
        if max(shape) <= 4 * min(shape):  # otherwise torchvision enlarges parts that it then crops away
            torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)
        assert image.shape == (3, 32, 32) and image.dtype == torch.float32


def test_a_very_long_image_is_not_enlarged():
    image = Preprocess(224, MEAN, STD, 0.875, "bilinear").image(np.zeros((1, 200_000, 3), np.uint8))
    assert image.shape == (3, 224, 224)


def test_denormalising_restores_the_pixels():
    rgb = random_image((32, 32))
    preprocess = Preprocess(32, MEAN, STD, 1.0, "bicubic")
    images = torch.stack([preprocess.image(rgb), torch.zeros(3, 32, 32)])
    restored = preprocess.denormalise(images)
    np.testing.assert_allclose(restored[0].permute(1, 2, 0).numpy() * 255, rgb, atol=1e-4)
    torch.testing.assert_close(restored[1], torch.tensor(MEAN).view(3, 1, 1).expand(3, 32, 32))
    assert restored.min() >= 0 and restored.max() <= 1
    assert Preprocess(**preprocess.to_dict()) == preprocess


def test_built_in_models_use_the_statistics_of_the_data_and_timm_models_their_own(digits):
    import timm

    from harness.models import cifar_resnet  # noqa: F401  registers the built-in models

    custom_resnet = timm.create_model("custom_resnet", num_classes=10)
    assert make_preprocess(Config(data="digits"), custom_resnet, digits) == Preprocess(
        32, digits.mean, digits.std, 1.0, "bicubic"
    )
    timm_model = timm.create_model("test_resnet", num_classes=10)
    preprocess = make_preprocess(Config(data="digits", model="test_resnet"), timm_model, digits)
    cfg = timm_model.pretrained_cfg
    assert (preprocess.size, preprocess.mean, preprocess.std) == (cfg["input_size"][-1], cfg["mean"], cfg["std"])
    assert preprocess.crop_pct == cfg["crop_pct"]
    assert (
        make_preprocess(Config(data="digits", model="test_resnet", image_size=32), timm_model, digits).crop_pct == 1.0
    )
    preprocess = make_preprocess(Config(data="digits"), nn.Linear(1, 1), digits)
    assert (preprocess.size, preprocess.mean) == (32, digits.mean)
