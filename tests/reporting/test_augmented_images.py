"""The grid of training images: it shows what the first update trains on."""

import numpy as np
import pytest
import torch

from harness.config.settings import Config
from harness.data.augment import make_augment
from harness.data.dataset import Dataset, in_memory
from harness.data.loaders import make_loaders
from harness.data.mixup import make_mixup
from harness.data.preprocess import Preprocess
from harness.reporting.augmented_images import draw_augmented, target_text

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PREPROCESS = Preprocess(32, MEAN, STD, 1.0, "bicubic")
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
SPLIT = in_memory("train", PIXELS, np.arange(30) % 3, [str(index) for index in range(30)])
DATA = Dataset("noise", ("a", "b", "c"), SPLIT, None, None, MEAN, STD, "")
PIPELINE = {"transform": {"__class_fullname__": "RandomBrightnessContrast", "p": 1.0}}
KINDS = {
    "resident": {"loader": "resident"},
    "resident, erased": {"loader": "resident", "erasing": 0.9},
    "timm": {"loader": "timm", "erasing": 0.9, "auto_augment": "rand-m9", "aug_repeats": 2},
    "albumentations": {"augment": "albumentations", "erasing": 0.9, "augment_pipeline": PIPELINE},
}


class SecondOfTwo:
    world_size = 2

    def shard(self, num_items):
        return slice((num_items + 1) // 2, num_items)

    def broadcast(self, value):
        return value


@pytest.mark.parametrize("sharder", [[], [SecondOfTwo()]])
@pytest.mark.parametrize("mixed", [{}, {"mixup": 0.8, "cutmix": 1.0}])
@pytest.mark.parametrize("batch_size", [20, 15, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_the_images_are_those_of_the_first_update(kind, batch_size, mixed, sharder):
    for seed in range(3):
        config = Config(batch_size=batch_size, workers=0, seed=seed, **KINDS[kind], **mixed)
        train = make_loaders(config, DATA, PREPROCESS, "cpu", *sharder).train
        mix = make_mixup(config, 3)
        images, targets = next(train.epoch(0))
        shown, labels = train.preview(4, with_partners=mix is not None)
        if mix is not None:
            images, targets = mix(images, targets, 0)
            shown, labels = mix(shown, labels, 0)
        assert torch.equal(shown[:4], images[:4]) and torch.equal(labels[:4], targets[:4])


def test_a_preview_changes_nothing_of_what_is_trained_on():
    config = Config(batch_size=6, workers=0, loader="timm", auto_augment="3a", erasing=0.5)
    train, untouched = (make_loaders(config, DATA, PREPROCESS, "cpu").train for _ in range(2))
    epoch = train.epoch(1)
    batches = [next(epoch)[0].clone()]
    train.preview(5)
    batches += [images for images, _ in epoch]
    assert all(torch.equal(a, b) for a, (b, _) in zip(batches, untouched.epoch(1), strict=True))


def test_the_figure_shows_at_most_as_many_images_as_there_are_and_names_the_steps(tmp_path):
    config = Config(batch_size=3, gallery=25, loader="resident", erasing=0.25, mixup=0.2)
    train = make_loaders(config, DATA, PREPROCESS, "cpu").train
    image = draw_augmented(train, make_mixup(config, 3), config, PREPROCESS, DATA.classes, tmp_path / "augmented.png")
    assert image.pixels.shape[1] > 300
    assert image.caption == (
        "First batch of the first epoch. Augmentation: crop after padding by 4, flip, cutout 8, "
        "erasing (pixel) in 25%, mixup 0.2."
    )
    assert make_augment(Config(augment="none"), PREPROCESS).describe() == []


def test_the_steps_name_every_strength_that_is_not_the_default():
    config = Config(
        crop="resized", crop_scale=(0.5, 1.0), crop_ratio=(0.5, 2.0), flip=False, cutout=0,
        erasing=0.5, erasing_mode="const", erasing_count=3, erasing_area=(0.1, 0.2),
    )  # fmt: skip
    assert make_augment(config, PREPROCESS).describe() == [
        "resized crop 0.5 to 1, width / height 0.5 to 2",
        "erasing (const, at most 3 rectangles, area 0.1 to 0.2) in 50%",
    ]


def test_the_label_of_a_mixed_image_has_both_classes_with_their_shares():
    assert target_text(torch.tensor(2), "abc") == "c"
    assert target_text(torch.tensor([0.0, 1.0, 0.0]), "abc") == "b"
    assert target_text(torch.tensor([0.3, 0.0, 0.7]), "abc") == "c 70 %\na 30 %"
    smoothed = 0.9 * torch.tensor([0.3, 0.0, 0.7]) + 0.1 / 3
    assert target_text(smoothed, "abc", 0.1) == "c 70 %\na 30 %"
    assert target_text(torch.tensor([0.5, 0.5]), "ab") == "a 50 %\nb 50 %"
    assert target_text(0.8 * torch.tensor([0.3, 0.7]) + 0.2 / 2, "ab", 0.2) == "b 70 %\na 30 %"
    assert target_text(torch.tensor([1.0]), "a") == "a"
