"""Images of one channel and of others than three: readers, statistics, preprocessing and augmentation."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from harness.config.settings import Config
from harness.data.augment import Augment
from harness.data.dataset import ConvertedImages, Dataset, in_memory
from harness.data.image_io import ChannelsError, check_header, read_image, shown_as_rgb, to_channels
from harness.data.image_transforms import TimmTransform, seeded_rng
from harness.data.loaders import make_loaders
from harness.data.overview import examine, size_summary
from harness.data.own_datasets import item_picture, named_data
from harness.data.preprocess import Preprocess
from harness.data.registry import load_dataset
from harness.utils.errors import DataError, UsageError
from tests.data.test_decoded_cache import archive, assert_same  # noqa: F401 - a fixture
from tests.support.image_folders import load_folder, make_class_folders, random_image, refusal, save_image

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def encoded(image, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def luma(rgb):
    """ITU-R 601 in integers, uint8 [H, W], as Pillow rounds it."""
    red, green, blue = np.moveaxis(rgb.astype(np.int64), -1, 0)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)


def images_of_all_kinds():
    rgb = random_image((9, 7))
    colour, alpha = Image.fromarray(rgb), Image.fromarray(rgb[..., 0])
    turned = Image.Exif()
    turned[0x0112] = 6
    yield encoded(colour)
    yield encoded(colour.convert("L"))
    yield encoded(colour.convert("L"), exif=turned)
    yield encoded(colour, exif=turned)
    yield encoded(colour.quantize(16))
    yield encoded(colour.convert("L"), transparency=int(rgb[0, 0, 0]))
    yield encoded(Image.merge("RGBA", (*colour.split(), alpha)))
    yield encoded(Image.merge("LA", (alpha, alpha)))
    yield encoded(colour.convert("CMYK"), "TIFF")
    yield encoded(colour.convert("1"))
    yield encoded(Image.fromarray(rgb[..., 0].astype(np.uint16) * 200))


def test_one_channel_is_the_luma_of_the_image_in_rgb():
    for content in images_of_all_kinds():
        rgb, grey = read_image(content), read_image(content, channels=1)
        assert grey.shape == (*rgb.shape[:2], 1) and grey.dtype == np.uint8
        np.testing.assert_array_equal(grey[..., 0], np.asarray(Image.fromarray(rgb).convert("L")))
        np.testing.assert_array_equal(grey[..., 0], luma(rgb))


def test_a_grey_image_keeps_its_values():
    pixels = random_image((9, 7))[..., 0]
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(pixels)), channels=1)[..., 0], pixels)


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 4), ("CMYK", 4), ("LA", 2)])
def test_other_numbers_of_channels_are_those_of_the_file(mode, channels):
    pixels = np.concatenate([random_image((9, 7)), random_image((9, 7))], 2)[..., :channels]
    image = Image.merge(mode, [Image.fromarray(pixels[..., band]) for band in range(channels)])
    np.testing.assert_array_equal(read_image(encoded(image, "TIFF"), channels=channels), pixels)
    with pytest.raises(
        DataError,
        match=rf"^x: an image of {channels} channels \({mode}\), and in_chans=5; a run with --in-chans 3 or 1",
    ):
        read_image(encoded(image, "TIFF"), "x", channels=5)


def test_a_folder_of_images_with_another_number_of_channels_is_refused_in_a_line(tmp_path):
    make_class_folders(tmp_path)
    text = refusal(DataError, tmp_path, in_chans=4)
    assert "12 of 12 images" in text and "an image of 3 channels (RGB), and in_chans=4" in text
    assert "in_chans=2, but the images of digits are RGB; set --in-chans 3 or 1" in refusal(
        UsageError, "", load=lambda _, **more: load_dataset(Config(data="digits", **more)), in_chans=2
    )


def test_the_statistics_of_a_grey_folder_are_numpys(tmp_path):
    make_class_folders(tmp_path)
    data = load_folder(tmp_path, in_chans=1)
    files = sorted(tmp_path.rglob("train/*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file).convert("L")) for file in files])
    np.testing.assert_array_equal(data.train.pixels[..., 0], pixels)
    np.testing.assert_allclose((data.mean, data.std), ([pixels.mean() / 255], [pixels.std() / 255]), rtol=1e-12)


def test_the_digits_and_data_sets_of_torchvision_are_grey_too(digits):
    grey = load_dataset(Config(data="digits", val_fraction=0.1, in_chans=1))
    np.testing.assert_array_equal(grey.train.pixels, digits.train.pixels[..., :1])
    np.testing.assert_allclose(grey.mean, digits.mean[:1], rtol=1e-12)
    stored = random_image((8, 8))
    [(image, label)] = [ConvertedImages([(Image.fromarray(stored), 1)], np.ones(1, int), 1)[0]]
    np.testing.assert_array_equal(np.asarray(image), luma(stored))
    assert label == 1


class Arrays:
    """A data set of arrays of two classes."""

    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return self.pixels[index], index % 2


def load_arrays(pixels, **settings):
    with named_data({"train": Arrays(pixels), "test": Arrays([255 - image for image in pixels[:2]])}) as name:
        return load_dataset(Config(data=name, **settings))


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_arrays_keep_their_channels_in_memory_and_in_several_sizes(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 7, channels), dtype=np.uint8)
    pixels[..., 1] //= 4
    data = load_arrays(list(pixels), in_chans=channels)
    np.testing.assert_array_equal(data.train.pixels, pixels)
    flat = pixels.reshape(-1, channels) / 255
    np.testing.assert_allclose((data.mean, data.std), (flat.mean(0), flat.std(0)), rtol=1e-12)
    ragged = [image[: 9 - index % 2] for index, image in enumerate(pixels)]
    data = load_arrays(ragged, in_chans=channels)
    assert data.train.pixels is None
    np.testing.assert_array_equal(data.train.picture(1), ragged[1])
    flat = np.concatenate([image.reshape(-1, channels) for image in ragged]) / 255
    np.testing.assert_allclose((data.mean, data.std), (flat.mean(0), flat.std(0)), rtol=1e-12)


def test_arrays_and_tensors_of_both_layouts_are_one_image():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    for image in (pixels, first, torch.from_numpy(first), first / 255, Image.fromarray(pixels, "RGBA")):
        np.testing.assert_array_equal(np.asarray(item_picture(image, "x", channels=4)), pixels)
    for image in (pixels[..., :3], pixels[..., 0], first[:2]):
        with pytest.raises(DataError, match=r"x has the shape .*; need \[H, W, 4\] or \[4, H, W\], since in_chans=4"):
            item_picture(image, "x", channels=4)
    grey = item_picture(pixels[..., :3], "x", channels=1)
    np.testing.assert_array_equal(np.asarray(grey), luma(pixels[..., :3]))
    for image in (pixels[..., 0], pixels[..., :1], torch.from_numpy(first[:1])):
        np.testing.assert_array_equal(np.asarray(item_picture(image, "x", channels=1)), pixels[..., 0])


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("shape", [(32, 32), (20, 50), (70, 40)])
def test_channels_are_resized_as_those_of_an_rgb_image(mode, shape):
    rgb = random_image(shape)
    expected = Preprocess(32, MEAN, STD, 0.9, "bicubic", mode)
    twice = Preprocess(32, MEAN * 2, STD * 2, 0.9, "bicubic", mode)
    assert torch.equal(twice.image(np.concatenate([rgb, rgb], 2)), expected.image(rgb).repeat(2, 1, 1))
    grey = Preprocess(32, MEAN[:1], STD[:1], 0.9, "bicubic", mode)
    for image in (rgb[..., :1], Image.fromarray(rgb[..., 0])):
        assert torch.equal(grey.image(image), expected.image(rgb)[:1])
    images = grey.image(rgb[..., :1])[None]
    assert torch.equal((grey.denormalise(images) * 255).round().to(torch.uint8)[0], grey.pixels(rgb[..., :1]))


def split_of(name, pixels):
    return in_memory(name, pixels, np.arange(len(pixels)) % 2, [f"{name}/{index}" for index in range(len(pixels))])


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(
    "settings",
    [
        {"loader": "resident"},
        {"loader": "timm", "workers": 0, "vflip": 0.5},
        {"loader": "timm", "workers": 0, "crop": "resized"},
        {"loader": "timm", "workers": 2, "blur": 0.5, "crop": "none"},
        {"augment": "albumentations", "workers": 0, "vflip": 0.5},
    ],
    ids=["resident", "timm", "resized", "blur", "albumentations"],
)
def test_each_channel_is_augmented_as_those_of_rgb_images(channels, settings):
    rgb = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    config = Config(batch_size=5, erasing=0.5, erasing_mode="const", **settings)

    def batches(pixels, mean, std):
        data = Dataset("noise", ("a", "b"), split_of("train", pixels), None, split_of("test", pixels), mean, std, "")
        loaders = make_loaders(config, data, Preprocess(32, mean, std, 1.0, "bicubic"), "cpu")
        return [images.clone() for source in (loaders.train.epoch(1), loaders.test) for images, _ in source]

    chosen = [band % 3 for band in range(channels)]
    mean, std = (tuple(values[band] for band in chosen) for values in (MEAN, STD))
    for ours, theirs in zip(batches(rgb[..., chosen], mean, std), batches(rgb, MEAN, STD), strict=True):
        torch.testing.assert_close(ours, theirs[:, chosen], atol=2e-6, rtol=0)


def test_policies_and_jitter_of_grey_images_are_those_of_images_with_equal_channels():
    grey = random_image((32, 32))[..., 0]
    for more in ({"color_jitter": (0.4, 0.4)[:1]}, {"policy": "3a"}, {"policy": "original"}):
        augment = Augment("pad", 4, "constant", flip=True, cutout=0, **more)
        one = TimmTransform(augment, Preprocess(32, (0.5,), (0.2,), 1.0, "bicubic"))
        three = TimmTransform(augment, Preprocess(32, (0.5,) * 3, (0.2,) * 3, 1.0, "bicubic"))
        with seeded_rng(0, numpy=True):
            for seed in range(20):
                ours = one(Image.fromarray(grey), seed).astype(int)
                theirs = three(Image.fromarray(grey).convert("RGB"), seed).astype(int)
                assert np.abs(ours - theirs[1]).max() <= 1, more


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_chans": 1, "grayscale": 0.1}, "grayscale=0.1.*leave --grayscale out"),
        ({"in_chans": 4, "color_jitter": 0.4}, "color_jitter=0.4.*in_chans=4; leave --color-jitter out"),
        ({"in_chans": 2, "auto_augment": "3a"}, "auto_augment=3a.*set --auto-augment none"),
        ({"in_chans": 2, "grayscale": 0.5}, "grayscale=0.5"),
        ({"in_chans": 2, "loss": "jsd", "aug_splits": 3}, "aug_splits=3.*leave --aug-splits out"),
        ({"in_chans": 0}, "in_chans=0: need in_chans >= 1"),
        ({"in_chans": 65}, "in_chans=65"),
    ],
)
def test_what_does_not_fit_the_channels_is_refused_with_the_remedy(settings, message):
    with pytest.raises(UsageError, match=message):
        Config(**settings)
    if settings["in_chans"] in (1, 2, 4) and "aug_splits" not in settings:
        assert Config(augment="none", **settings).in_chans == settings["in_chans"]  # nothing of it is applied


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("loader", ["resident", "timm"])
def test_grey_images_make_a_convolution_choose_the_memory_order_of_the_settings(loader, channels_last):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 1), dtype=np.uint8)
    train, test = (in_memory(name, pixels, np.arange(8) % 2, list("abcdefgh")) for name in ("train", "test"))
    data = Dataset("noise", ("a", "b"), train, None, test, (0.5,), (0.3,), "")
    config = Config(loader=loader, in_chans=1, channels_last=channels_last, batch_size=4, workers=0)
    loaders = make_loaders(config, data, Preprocess(16, (0.5,), (0.3,), 1.0, "bilinear"), torch.device("cpu"))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    convolution = torch.nn.Conv2d(1, 4, 3).to(memory_format=layout)
    for images, _ in (next(loaders.train.epoch(0)), next(iter(loaders.test))):
        assert convolution(images).is_contiguous(memory_format=layout)


def test_an_image_is_shown_as_grey_or_by_its_first_three_channels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6), dtype=np.uint8)
    np.testing.assert_array_equal(shown_as_rgb(pixels), pixels[..., :3])
    np.testing.assert_array_equal(shown_as_rgb(pixels[..., :3]), pixels[..., :3])
    np.testing.assert_array_equal(shown_as_rgb(pixels[..., :1]), pixels[..., [0, 0, 0]])
    two = shown_as_rgb(pixels[..., :2])
    np.testing.assert_array_equal(two[..., :2], pixels[..., :2])
    assert not two[..., 2].any()


def test_a_folder_of_grey_images_is_told_from_one_of_colours(tmp_path):
    for index in range(6):
        save_image(tmp_path / "ab"[index % 2] / f"{index}.png", random_image()[..., 0])

    def advice(**settings):
        return [
            line
            for line in examine(Config(data="folder", data_dir=str(tmp_path), **settings), 0).advice
            if "--in-chans 1" in line
        ]

    save_image(tmp_path / "a" / "rgb.png", np.repeat(random_image()[..., :1], 3, 2))
    assert len(advice()) == 1 and not advice(in_chans=1)
    save_image(tmp_path / "a" / "colour.png")
    assert not advice()


def test_grey_images_of_an_archive_are_not_those_of_the_cache(archive):  # noqa: F811
    first = load_folder(archive)
    grey = load_folder(archive, in_chans=1)
    np.testing.assert_array_equal(grey.train.pixels[..., 0], np.stack([luma(image) for image in first.train.pixels]))
    assert grey.fingerprint != first.fingerprint
    assert_same(load_folder(archive), first)


def test_a_preprocessing_with_unequal_numbers_of_values_is_refused():
    sound = Preprocess(32, (0.5,) * 2, (0.2,) * 2, 1.0, "bicubic")
    sound.check()
    assert Preprocess(**sound.to_dict()) == sound and sound.channels == 2
    for other in ({"mean": ()}, {"std": (0.2,)}, {"mean": (0.5,) * 65, "std": (0.2,) * 65}):
        with pytest.raises(ValueError, match="makes no sense"):
            replace(sound, **other).check()


def test_headers_and_arrays_of_another_number_of_channels_are_refused(tmp_path):
    picture = save_image(tmp_path / "rgb.png")
    with pytest.raises(
        DataError, match=r"rgb\.png: an image of 3 channels \(RGB\), and in_chans=4; a run with --in-chans 3 or 1"
    ):
        check_header(picture, channels=4)
    save_image(tmp_path / "four.png", np.zeros((3, 4, 4), np.uint8))
    check_header(tmp_path / "four.png", channels=4)
    with pytest.raises(ChannelsError, match=r"the image has the shape \[3, 4, 5\], and in_chans=4"):
        to_channels(np.zeros((3, 4, 5), np.uint8), 4)


def test_an_overview_of_images_in_memory_has_their_pictures_and_sizes(digits):
    overview = examine(Config(data="digits"), 3)
    train = overview.splits["train"]
    np.testing.assert_array_equal(train.picture(5, None), train.source.pixels[5])
    assert size_summary(overview.facts)["width"] == {"min": 32, "median": 32, "max": 32} and size_summary([]) == {}
