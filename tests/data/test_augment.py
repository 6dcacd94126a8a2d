"""Crop, flip and Cutout on the device, with timm and with albumentations equal a naive NumPy version."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from harness.config.settings import Config
from harness.data import augment as subject
from harness.data import image_transforms
from harness.data.dataset import Dataset, in_memory
from harness.data.device_loader import epoch_order
from harness.data.erasing import TimmCutout
from harness.data.loaders import make_loaders
from harness.data.preprocess import Preprocess
from harness.utils.errors import UsageError

SIZE = 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PREPROCESS = Preprocess(SIZE, MEAN, STD, 1.0, "bicubic")
BACK_ENDS = {
    "resident": {"loader": "resident"},
    "timm": {"loader": "timm", "workers": 0},
    "albumentations": {"augment": "albumentations", "workers": 0},
}

# An image whose pixels encode their position: red is the row, green the column; blue is never black.
CODED = np.stack(
    [*np.meshgrid(7 * np.arange(SIZE) + 8, 7 * np.arange(SIZE) + 8, indexing="ij"), np.full((SIZE, SIZE), 255)], 2
)
CODED = CODED.astype(np.uint8)


def coded_dataset(count):
    labels = np.arange(count) % 2
    pixels = np.broadcast_to(CODED, (count, SIZE, SIZE, 3))
    train = in_memory("train", pixels, labels, [f"train/{index}" for index in range(count)])
    return Dataset("coded", ("a", "b"), train, None, None, MEAN, STD, "")


def augmented(back_end, count, epoch=0, **settings):
    """Return the images [count, 3, 32, 32] of one epoch, all of the coded image."""
    config = Config(batch_size=min(count, 250), **{**BACK_ENDS[back_end], **settings})
    return torch.cat(
        [images for images, _ in make_loaders(config, coded_dataset(count), PREPROCESS, "cpu").train.epoch(epoch)]
    )


def naive(picture, padding, mode, top, left, flip, cutout=None, side=8):
    """Crop, flip, normalise and cut out one image step by step in float64; return [3, H, W]."""
    padded = np.pad(picture, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
    crop = padded[top : top + SIZE, left : left + SIZE]
    if flip:
        crop = crop[:, ::-1]
    image = ((crop / 255 - MEAN) / STD).transpose(2, 0, 1)
    if cutout is not None:
        image[:, cutout[0] : cutout[0] + side, cutout[1] : cutout[1] + side] = 0
    return image


def find_cutout(image):
    """Return (top, left) of the only 8x8 square of zeros; no other pixel of the coded image is zero."""
    zero = (image == 0).all(0)
    rows, columns = np.flatnonzero(zero.any(1)), np.flatnonzero(zero.any(0))
    assert zero.sum() == 64 and len(rows) == len(columns) == 8
    return int(rows[0]), int(columns[0])


def find_crop(image):
    """Return (top, left, flip) of a crop with padding 4, from two pixels of the coded image."""
    pixels = np.rint((image * np.reshape(STD, (3, 1, 1)) + np.reshape(MEAN, (3, 1, 1))) * 255).astype(int)
    usable = (pixels[2] == 255) & (image != 0).any(0)
    row = int(np.argmax(usable.sum(1)))
    first, last = np.flatnonzero(usable[row])[[0, -1]]
    source_row, source_first, source_last = (
        int(value - 8) // 7 for value in (pixels[0, row, first], pixels[1, row, first], pixels[1, row, last])
    )
    flip = source_last < source_first
    return source_row + 4 - row, source_first + 4 - (SIZE - 1 - first if flip else first), flip


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_each_back_end_equals_naive_numpy_with_the_same_parameters(back_end, mode):
    for image in augmented(back_end, 12, padding_mode=mode).numpy():
        cutout = find_cutout(image)
        candidates = [
            naive(CODED, 4, mode, top, left, flip, cutout)
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
        ]
        assert min(np.abs(candidate - image).max() for candidate in candidates) < 2e-6


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_crops_flips_and_cutouts_are_uniform_in_each_back_end(back_end):
    count = 1500
    images = augmented(back_end, count).numpy()
    parameters = []
    for image in images:
        top, left, flip = find_crop(image)
        cutout = find_cutout(image)
        np.testing.assert_allclose(image, naive(CODED, 4, "constant", top, left, flip, cutout), atol=2e-6)
        parameters.append((top, left, flip, *cutout))
    tops, lefts, flips, rows, columns = np.array(parameters).T
    for values, choices in ((tops, 9), (lefts, 9), (flips, 2), (rows, 25), (columns, 25)):
        share = 1 / choices
        counts = np.bincount(values, minlength=choices)
        assert len(counts) == choices
        assert np.abs(counts - count * share).max() < 4.5 * np.sqrt(count * share * (1 - share))
    # The parameters are independent of each other.
    correlation = np.corrcoef(np.array(parameters).T.astype(float)) - np.eye(5)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(count)


def test_the_batched_version_equals_naive_numpy_for_random_images_and_given_parameters():
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (20, SIZE, SIZE, 3), dtype=np.uint8)
    for mode, padding in (("constant", 4), ("reflect", 4), ("edge", 4), ("reflect", 31), ("constant", 0)):
        for side in (0, 1, 8, 31):
            augment = subject.Augment("pad", padding, mode, True, side)
            drawn = subject.draw_parameters(augment, SIZE, 20, seed=3, epoch=padding)
            index = torch.from_numpy(rng.permutation(20))
            store = subject.pad(torch.from_numpy(pixels), padding, mode)
            images = subject.apply_augment(store, index, drawn[index], SIZE, side, PREPROCESS.constants("cpu"))
            for image, position in zip(images.numpy(), index.tolist(), strict=True):
                top, left, flip, row, column = (value[position].item() for value in vars(drawn).values())
                expected = naive(
                    pixels[position], padding, mode, top, left, flip, (row, column) if side else None, side
                )
                np.testing.assert_allclose(image, expected, atol=2e-6)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_padding_is_numpys(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    padded = subject.pad(torch.from_numpy(pixels), 4, mode)
    np.testing.assert_array_equal(padded, np.pad(pixels, ((0, 0), (4, 4), (4, 4), (0, 0)), mode=mode))
    assert padded.is_contiguous()


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_the_cutout_has_the_mean_colour(back_end):
    image = augmented(back_end, 2)[0]
    row, column = find_cutout(image.numpy())
    pixels = PREPROCESS.denormalise(image)[:, row : row + 8, column : column + 8]
    torch.testing.assert_close(pixels, torch.tensor(MEAN).view(3, 1, 1).expand(3, 8, 8))


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_each_augmentation_can_be_disabled(back_end):
    plain = PREPROCESS.image(CODED)
    off = {"crop": "none", "flip": False, "cutout": 0}
    torch.testing.assert_close(augmented(back_end, 4, **off), plain.expand(4, 3, SIZE, SIZE), atol=2e-6, rtol=0)
    only_flip = augmented(back_end, 40, **{**off, "flip": True})
    flipped = [bool((image - plain.flip(2)).abs().max() < 2e-6) for image in only_flip]
    assert 5 < sum(flipped) < 35
    for image, mirrored in zip(only_flip, flipped, strict=True):
        torch.testing.assert_close(image, plain.flip(2) if mirrored else plain, atol=2e-6, rtol=0)
    cutouts = augmented(back_end, 4, **{**off, "cutout": 8})
    assert all(find_cutout(image.numpy()) for image in cutouts)
    crops = augmented(back_end, 30, **{**off, "crop": "pad", "crop_padding": 4}).numpy()
    assert len({find_crop(image)[:2] for image in crops}) > 15 and not any(find_crop(image)[2] for image in crops)


def test_augment_none_gives_training_images_the_evaluation_transform():
    images = augmented("resident", 4, augment="none")
    torch.testing.assert_close(images, PREPROCESS.image(CODED).expand(4, 3, SIZE, SIZE), atol=0, rtol=0)


def test_the_kind_of_crop_depends_on_the_size_of_the_images():
    large = Preprocess(224, MEAN, STD, 0.875, "bicubic")
    assert subject.make_augment(Config(), PREPROCESS).crop == "pad"
    assert subject.make_augment(Config(), large) == subject.Augment("resized", 0, "constant", True, 8)
    assert subject.make_augment(Config(crop="pad"), large).padding == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"cutout": 32}, "cutout=32"), ({"padding_mode": "reflect", "crop_padding": 32}, "crop_padding=32")],
)
def test_a_cutout_or_padding_that_does_not_fit_the_image_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        subject.make_augment(Config(**settings), PREPROCESS)
    subject.make_augment(Config(augment="none", **settings), PREPROCESS)


@pytest.mark.parametrize("kind", [image_transforms.TimmTransform, image_transforms.AlbumentationsTransform])
@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
def test_a_transform_of_one_image_is_a_function_of_its_seed(kind, crop):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    augment = subject.Augment(crop, 4 if crop == "pad" else 0, "constant", True, 8)

    def run(transform, seed):
        with image_transforms.seeded_rng(0):
            return transform(image, seed)

    transform = kind(augment, PREPROCESS)
    first = [run(transform, seed) for seed in range(12)]
    random.random(), torch.rand(3), np.random.random()
    same_transform = kind(augment, PREPROCESS)
    for seed in reversed(range(12)):
        np.testing.assert_array_equal(run(same_transform, seed), first[seed])
    assert len({image.tobytes() for image in first}) >= (2 if crop == "none" else 8)
    assert all(image.shape == (3, SIZE, SIZE) for image in first)
    assert first[0].dtype == (np.float32 if kind.normalised else np.uint8)


def test_the_resized_crop_takes_a_random_part_of_a_large_image():
    rows = np.repeat(np.arange(200, dtype=np.uint8)[:, None, None], 300, 1).repeat(3, 2)
    augment = subject.Augment("resized", 0, "constant", False, 0)
    for kind in (image_transforms.TimmTransform, image_transforms.AlbumentationsTransform):
        transform = kind(augment, PREPROCESS)
        spans = []
        with image_transforms.seeded_rng(0):
            for seed in range(60):
                image = transform(Image.fromarray(rows), seed).astype(float)
                values = (image * STD[0] + MEAN[0]) * 255 if kind.normalised else image
                spans.append(np.ptp(values[0, :, 0]))
        assert min(spans) < 90 and max(spans) > 150, kind


def test_timms_cutout_is_a_function_of_seed_epoch_and_batch_and_leaves_python_random_alone():
    def cut(seed, epoch, batch):
        cutout = TimmCutout(8, SIZE, seed, torch.device("cpu"))
        cutout.start(epoch, batch)
        return cutout(torch.ones(4, 3, SIZE, SIZE))

    random.seed(5)
    state = random.getstate()
    first = cut(0, 1, 2)
    assert random.getstate() == state
    random.random()
    assert torch.equal(cut(0, 1, 2), first)
    assert all(not torch.equal(cut(*other), first) for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)))
    next_cutout = TimmCutout(8, SIZE, 0, torch.device("cpu"))
    next_cutout.start(1, 1)
    next_cutout(torch.ones(4, 3, SIZE, SIZE))
    assert torch.equal(next_cutout(torch.ones(4, 3, SIZE, SIZE)), first)


def test_seeded_rng_seeds_inside_and_restores_outside():
    random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), torch.rand(1).item()
    random.seed(1)
    torch.manual_seed(1)
    draws = []
    for _ in range(2):
        with image_transforms.seeded_rng(9):
            draws.append((random.random(), torch.rand(1).item()))
    assert draws[0] == draws[1] and (random.random(), torch.rand(1).item()) == expected


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_alternating_flip_shows_both_views_of_every_image_in_two_epochs(back_end):
    plain = PREPROCESS.image(CODED)
    settings = {"crop": "none", "cutout": 0, "flip": True, "alternating_flip": True}
    mirrored = [
        [bool((image - plain.flip(2)).abs().max() < 2e-6) for image in augmented(back_end, 40, epoch, **settings)]
        for epoch in range(3)
    ]
    orders = [epoch_order(40, 0, epoch).tolist() for epoch in range(3)]
    by_image = [dict(zip(order, row, strict=True)) for order, row in zip(orders, mirrored, strict=True)]
    assert 5 < sum(by_image[0].values()) < 35
    assert all(by_image[1][image] != flipped for image, flipped in by_image[0].items())
    assert by_image[2] == by_image[0]
    assert by_image[0] == dict(enumerate(subject.alternating_flips(40, 0, 0).tolist()))
