"""The evaluation transform against torchvision's, and the preprocessing that a model needs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn
from torchvision import transforms

from harness.config.settings import Config
from harness.data.dataset import in_memory
from harness.data.preprocess import Preprocess, make_preprocess, preprocess_notes, sample_images
from harness.utils.errors import UsageError
from tests.support.image_folders import load_folder, make_class_folders, random_image

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


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize("shape", [(32, 32), (20, 50), (50, 20), (64, 48)])
def test_the_evaluation_transform_is_timms_in_every_crop_mode(crop_mode, crop_pct, shape):
    rgb = random_image(shape)
    timms = create_transform(
        32, is_training=False, mean=MEAN, std=STD, crop_pct=crop_pct, crop_mode=crop_mode, interpolation="bilinear"
    )
    image = Preprocess(32, MEAN, STD, crop_pct, "bilinear", crop_mode).image(rgb)
    torch.testing.assert_close(image, timms(Image.fromarray(rgb)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1), (3, 200)])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_an_image_of_any_aspect_gives_an_input(shape, crop_mode):
    assert Preprocess(32, MEAN, STD, 0.9, "bicubic", crop_mode).image(random_image(shape)).shape == (3, 32, 32)


@pytest.mark.parametrize(("resize", "kept"), [("crop", 0), ("squash", 8), ("letterbox", 8)])
def test_squash_and_letterbox_keep_the_objects_at_the_ends_of_a_long_image(resize, kept):
    """Two white squares of 8 x 8 pixels at the ends of a black image of 8 x 32."""
    picture = np.zeros((8, 32, 3), np.uint8)
    picture[:, :4] = picture[:, -4:] = 255
    model = nn.Linear(1, 1)
    data = SimpleNamespace(train=SimpleNamespace(pixels=None), mean=(0.0,) * 3, std=(1.0,) * 3)
    preprocess = make_preprocess(Config(resize=resize, image_size=32), model, data)
    pixels = preprocess.pixels(picture)[0]
    assert int((pixels > 128).any(0).sum()) == kept


def test_the_crop_mode_of_the_model_is_used_unless_another_is_set(digits):
    model = nn.Linear(1, 1)
    model.pretrained_cfg = {"input_size": (3, 64, 64), "mean": MEAN, "std": STD, "crop_mode": "squash", "crop_pct": 0.9}
    assert make_preprocess(Config(), model, digits).crop_mode == "squash"
    assert make_preprocess(Config(), model, digits).crop_pct == 0.9
    assert make_preprocess(Config(resize="letterbox"), model, digits).crop_mode == "border"
    assert make_preprocess(Config(resize="letterbox"), model, digits).crop_pct == 1
    assert make_preprocess(Config(resize="crop"), model, digits).crop_mode == "center"
    model.pretrained_cfg["crop_mode"] = "other"
    with pytest.raises(UsageError, match="crop_mode='other'"):
        make_preprocess(Config(), model, digits)


def test_what_the_centre_crop_cuts_away_is_named(tmp_path):
    data = load_folder(make_class_folders(tmp_path, size=(8, 16)))
    model = nn.Linear(1, 1)
    model.pretrained_cfg = {"input_size": (3, 16, 8)}
    notes = {}
    for resize in ("crop", "squash"):
        config = Config(resize=resize, image_size=8, model="test_resnet")
        notes[resize] = preprocess_notes(config, model, data, make_preprocess(config, model, data))
    configured = "test_resnet is configured for images of 8 x 16 pixels; it is given 8 x 8"
    assert notes["squash"] == [configured]
    assert (
        notes["crop"][0] == configured
        and "the centre crop cuts 50% off the area of the training images (mean of all" in notes["crop"][1]
    )


@pytest.mark.parametrize(("size", "crop_pct"), [((8, 8), 1.0), ((8, 8), 0.875), ((9, 12), 1.0)])
def test_a_sample_of_a_split_is_the_input_of_the_network_for_evenly_spaced_images(size, crop_pct):
    pixels = np.stack([random_image(size) for _ in range(10)])
    split = in_memory("train", pixels, np.arange(10) % 2, list("abcdefghij"))
    preprocess = Preprocess(8, MEAN, STD, crop_pct, "bilinear")
    sample = sample_images(split, preprocess, 4)
    expected = torch.stack([preprocess.image(pixels[index]) for index in (0, 3, 6, 9)])
    torch.testing.assert_close(sample, expected, atol=1e-6, rtol=0)
    assert len(sample_images(split, preprocess)) == 10
