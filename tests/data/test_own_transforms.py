"""Transforms that a plug-in registers: their pixels, their random numbers, and what is refused."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision import transforms as torchvision_transforms

from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.data.augment import make_augment
from harness.data.device_loader import epoch_order
from harness.data.image_transforms import TimmTransform, seeded_rng
from harness.data.loaders import make_loaders
from harness.data.own_transforms import find_transforms, register_transform
from harness.utils import registry
from harness.utils.errors import DataError, UsageError
from harness.utils.seeding import seed_for
from tests.data.test_image_transforms import COUNT, DATA, PIXELS, PREPROCESS, TRAIN, Rank, equal, loaders, to_list

JITTER = torchvision_transforms.ColorJitter(0.5, 0.5, 0.5)
PLAIN = {"crop": "none", "flip": False, "cutout": 0}


def noise(image, generator, sigma=8.0):
    """Add normal noise."""
    return np.clip(image + generator.normal(0, sigma, image.shape), 0, 255).astype(np.uint8)


def shifted(image, generator, most=6):
    """Shift the image in place."""
    image[:] = np.roll(image, generator.integers(1, most + 1), 1)
    return image


def jittered(image, generator):
    """Apply torchvision's jitter, which draws from torch's global generator, and more from the others."""
    image = np.asarray(JITTER(Image.fromarray(image))) // 2
    return image + np.uint8(random.randrange(64)) + np.uint8(np.random.randint(64))


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    for function in (noise, shifted, jittered):
        register_transform(function)


def test_images_are_those_of_the_function_with_the_generator_of_seed_epoch_and_image():
    settings = {**PLAIN, "transforms": ("shifted", "noise"), "transform_args": {"sigma": 3, "shifted.most": 2}}
    images = torch.cat([images for images, _ in loaders(**settings).train.epoch(2)])
    for place, index in enumerate(epoch_order(COUNT, 0, 2).tolist()):
        generator = np.random.default_rng(seed_for(0, "augment", 2, index))
        expected = noise(shifted(PIXELS[index].copy(), generator, 2), generator, 3)
        torch.testing.assert_close(images[place], PREPROCESS.image(expected), atol=0, rtol=0)
        assert not np.array_equal(expected, PIXELS[index])


def test_they_follow_all_other_transforms_of_single_images_and_leave_those_as_they_were():
    settings = {"auto_augment": "rand-m9-mstd0.5-inc1", "vflip": 0.4, "crop": "resized"}
    with_own = Config(**settings, transforms=("inverted", "blurred"))
    register_transform(lambda image, generator: 255 - image, name="inverted")
    register_transform(lambda image, generator: Image.fromarray(image).filter(ImageFilter.BoxBlur(1)), name="blurred")
    plain = TimmTransform(make_augment(Config(**settings), PREPROCESS), PREPROCESS)
    own = TimmTransform(make_augment(with_own, PREPROCESS), PREPROCESS, find_transforms(with_own))
    for index in range(COUNT):
        with seeded_rng(0, numpy=True):
            image = Image.fromarray(PIXELS[index])
            inverted = Image.fromarray(255 - plain(image, index).transpose(1, 2, 0))
            expected = np.asarray(inverted.filter(ImageFilter.BoxBlur(1))).transpose(2, 0, 1)
            np.testing.assert_array_equal(own(image, index), expected)


def test_batches_are_a_function_of_seed_epoch_and_batch_and_leave_the_global_generators_alone():
    settings = {"transforms": ("shifted", "jittered", "noise"), "aug_repeats": 2}
    train = loaders(**settings).train
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    first = to_list(train.epoch(1))
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tobytes() == before[2]
    random.seed(4), torch.manual_seed(4), np.random.seed(4)
    next(train.epoch(0))
    assert equal(to_list(train.epoch(1, start=3)), first[3:])
    assert equal(to_list(loaders(**settings).train.epoch(1)), first)
    for other in (train.epoch(2), loaders(**settings, seed=1).train.epoch(1)):
        assert not torch.equal(to_list(other)[0][0], first[0][0])
    assert len({image.numpy().tobytes() for images, _ in first for image in images}) == COUNT


@pytest.mark.slow
def test_none_one_and_two_workers_give_the_same_pixels_also_from_the_middle_of_an_epoch():
    settings = {"transforms": ("shifted", "jittered", "noise")}
    none, one, two = (loaders(**settings, workers=workers).train for workers in range(3))
    for epoch in range(2):
        expected = to_list(none.epoch(epoch))
        assert equal(to_list(one.epoch(epoch)), expected) and equal(to_list(two.epoch(epoch)), expected)
    assert equal(to_list(two.epoch(1, start=2)), expected[2:])


def test_the_parts_of_two_processes_are_the_batches_of_one():
    whole = to_list(loaders(transforms=("noise",)).train.epoch(0))
    parts = [to_list(loaders(Rank(rank), transforms=("noise",)).train.epoch(0)) for rank in range(2)]
    assert equal([tuple(map(torch.cat, zip(*pair, strict=True))) for pair in zip(*parts, strict=True)], whole)


def test_the_preview_of_training_images_has_them_and_evaluation_has_not():
    made, plain = loaders(transforms=("noise",)), loaders(loader="timm")
    images, _ = made.train.preview(6)
    assert torch.equal(images, next(made.train.epoch(0))[0][:6])
    assert not torch.equal(images, plain.train.preview(6)[0])
    assert equal(to_list(made.test), to_list(plain.test))
    assert "noise" in make_augment(Config(transforms=("noise",)), PREPROCESS).describe()


def test_without_augmentation_they_are_not_applied():
    made = loaders(transforms=("noise",), augment="none")
    assert made.kind == "resident" and find_transforms(Config(transforms=("noise",), augment="none")) == ()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda image, generator: image[:-2], "returned 30 x 32 x 3 uint8; need 32 x 32 x 3 uint8"),
        (lambda image, generator: image[..., 0], "returned 32 x 32 uint8; need"),
        (lambda image, generator: Image.fromarray(image).convert("L"), "returned 32 x 32 uint8; need"),
        (lambda image, generator: image / 255, "returned 32 x 32 x 3 float64; need"),
        (lambda image, generator: None, "returned NoneType; need a NumPy array or a PIL image"),
        (lambda image, generator: image[99], "raised IndexError on an image of 32 x 32 x 3 uint8: index 99 is out"),
    ],
)
def test_a_transform_that_gives_no_such_image_is_refused_before_training_with_its_name(function, message):
    register_transform(function, name="mine")
    with pytest.raises(UsageError, match=f"^transforms=mine {message}.*train/0") as refused:
        loaders(transforms=("noise", "mine"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_that_fails_on_a_later_image_ends_in_one_line_with_its_name(workers):
    register_transform(lambda image, generator: image if image.any() else image[:9], name="mine")
    train = dataclasses.replace(
        TRAIN, source=[(Image.fromarray(PIXELS[0]), 0), *[(Image.new("RGB", (32, 32)), 1)] * 39]
    )
    config = Config(transforms=("mine",), batch_size=8, workers=workers, **PLAIN)
    made = make_loaders(config, dataclasses.replace(DATA, train=train), PREPROCESS, "cpu")
    with pytest.raises(DataError, match=r"^transforms=mine returned 9 x 32 x 3 uint8; need 32 x 32 x 3") as failed:
        list(made.train.epoch(0))
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transforms": ("nois",)}, "transforms='nois': no plug-in registers it .did you mean 'noise'"),
        ({"transforms": ("noise",), "transform_args": {"sigm": 1}}, "transforms=noise has only sigma .did you mean"),
        ({"transforms": ("noise", "shifted"), "transform_args": {"sgma": 1}}, "sgma=1: none of noise, shifted has it"),
        ({"transforms": ("noise",), "transform_args": {"noise.most": 1}}, "most=1: transforms=noise has only sigma"),
        (
            {"transforms": ("noise",), "transform_args": {"shifted.most": 1}},
            "shifted.most=1: transforms=noise has only",
        ),
        ({"transform_args": {"sigma": 1}}, "there are no --transforms"),
        ({"transforms": ("single",)}, r"is a function of \(image\); it must take 2 arguments"),
    ],
)
def test_a_transform_or_an_argument_that_does_not_exist_is_refused(settings, message):
    register_transform(lambda image: image, name="single")
    with pytest.raises(UsageError, match=message):
        find_transforms(Config(**settings))


def test_the_resident_loader_and_albumentations_are_refused_in_one_line():
    assert loaders(transforms=("noise",)).kind == "timm"
    with pytest.raises(UsageError, match="loader=resident is not possible: transforms=noise transforms single images"):
        loaders(transforms=("noise",), loader="resident")
    with pytest.raises(UsageError, match=r"transforms=noise follow timm's transforms of an image.*set --augment timm"):
        Config(transforms=("noise",), augment="albumentations")
    with pytest.raises(UsageError, match="transform 'none' cannot be registered"):
        register_transform(noise, name="none")


def test_the_arguments_of_a_recipes_transforms_join_those_given_and_go_with_them(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("transforms: [noise]\nplugin: [module]\ntransform_args: {sigma: 2}\n")
    given = {"recipe": str(recipe), "transform_args": "noise.sigma=1"}
    assert make_config(given).transform_args == {"sigma": 2, "noise.sigma": 1}
    assert make_config({"recipe": str(recipe), "transforms": "noise"}).transform_args == {"sigma": 2}
    assert make_config({"recipe": str(recipe), "transforms": ""}).transform_args == {}
    assert not {"transforms", "transform_args"} & Config().affecting_results().keys()
