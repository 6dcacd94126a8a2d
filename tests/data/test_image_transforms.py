"""The richer augmentation equals timm's, albumentations' and torchvision's own, and is a function of seed, epoch and image."""

import dataclasses
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.random_erasing import RandomErasing
from torchvision import transforms

from harness.config.settings import Config
from harness.data.augment import make_augment
from harness.data.dataset import Dataset, in_memory
from harness.data.device_loader import epoch_order
from harness.data.image_transforms import TimmTransform, albumentations_compose, seeded_rng
from harness.data.loaders import make_loaders
from harness.data.preprocess import Preprocess
from harness.data.worker_loader import repeat_images
from harness.utils.errors import DataError, UsageError
from harness.utils.seeding import seed_for

SIZE, COUNT = 32, 40
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PREPROCESS = Preprocess(SIZE, MEAN, STD, 1.0, "bicubic")
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
TRAIN = in_memory("train", PIXELS, np.arange(COUNT) % 10, [f"train/{index}" for index in range(COUNT)])
DATA = Dataset("blocks", tuple("abcdefghij"), TRAIN, None, TRAIN.subset(np.arange(8), "test"), MEAN, STD, "")
PIPELINE = {
    "__version__": "2.0.8",
    "transform": {
        "__class_fullname__": "Compose",
        "p": 1.0,
        "transforms": [
            {"__class_fullname__": "RandomCrop", "height": 28, "width": 28, "p": 1.0},
            {"__class_fullname__": "HueSaturationValue", "p": 0.7},
            {"__class_fullname__": "Rotate", "limit": [-30, 30], "p": 0.8},
        ],
    },
}
RICH = {
    "RandAugment": {"auto_augment": "rand-m9-mstd0.5-inc1"},
    "AugMix": {"auto_augment": "augmix-m5-w2", "crop": "resized"},
    "colours": {"color_jitter": (0.4, 0.3, 0.2, 0.1), "color_jitter_prob": 0.8, "grayscale": 0.2, "blur": 0.3},
    "erasing": {"erasing": 0.7, "erasing_mode": "pixel", "erasing_count": 3, "vflip": 0.3},
    "repeated": {"aug_repeats": 2.5, "crop_scale": (0.3, 0.9)},
    "pipeline": {"augment": "albumentations", "augment_pipeline": PIPELINE, "erasing": 0.5},
}


def loaders(sharder=None, **settings):
    config = Config(**{"batch_size": 8, "workers": 0, **settings})
    return make_loaders(config, DATA, PREPROCESS, "cpu", *([sharder] if sharder else []))


def to_list(stream):
    return [(images.clone(), labels.clone()) for images, labels in stream]


def equal(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(batches, others, strict=True)
    )


def seed_all(seed):
    random.seed(seed)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"auto_augment": "rand-m9-mstd0.5-inc1"}, {"auto_augment": "rand-m9-mstd0.5-inc1"}),
        ({"auto_augment": "rand-m7-n3-p0.8-tweights"}, {"auto_augment": "rand-m7-n3-p0.8-tweights"}),
        ({"auto_augment": "original-mstd0.5"}, {"auto_augment": "original-mstd0.5"}),
        ({"auto_augment": "3a"}, {"auto_augment": "3a"}),
        ({"auto_augment": "augmix-m5-w4-d2"}, {"auto_augment": "augmix-m5-w4-d2"}),
        ({"auto_augment": "3a", "color_jitter": "0.3"}, {"auto_augment": "3a", "color_jitter": 0.3}),
        ({"color_jitter": 0.4}, {"color_jitter": 0.4}),
        (
            {"color_jitter": (0.4, 0.3, 0.2, 0.1), "color_jitter_prob": 0.5, "grayscale": 0.2, "blur": 0.5},
            {"color_jitter": (0.4, 0.3, 0.2, 0.1), "color_jitter_prob": 0.5, "grayscale_prob": 0.2, "gaussian_blur_prob": 0.5},
        ),
        ({"vflip": 0.7, "flip": False}, {"vflip": 0.7, "hflip": 0.0}),
        ({"crop_scale": "0.35,0.9", "crop_ratio": "0.5,2"}, {"scale": (0.35, 0.9), "ratio": (0.5, 2.0)}),
    ],
)  # fmt: skip
def test_each_setting_gives_the_pixels_of_timms_own_transform_under_the_same_random_state(settings, options):
    options = {"color_jitter": None, "interpolation": "bicubic", "mean": MEAN, **options}
    theirs = create_transform(SIZE, is_training=True, normalize=False, **options)
    config = Config(**{"crop": "resized", **settings})
    ours = TimmTransform(make_augment(config, PREPROCESS), PREPROCESS)
    differing = set()
    for index in range(COUNT):
        image = Image.fromarray(PIXELS[index]).resize((50, 40))
        with seeded_rng(0, numpy=True):
            seed_all(2**40 + index)
            expected = np.asarray(theirs(image))
            result = ours(image, 2**40 + index)
        np.testing.assert_array_equal(result, expected)
        differing.add(result.tobytes())
    assert len(differing) > COUNT / 2


def test_colour_jitter_beside_a_policy_is_applied_after_it():
    config = Config(crop="none", flip=False, auto_augment="rand-m5-inc1", color_jitter=0.4)
    ours = TimmTransform(make_augment(config, PREPROCESS), PREPROCESS)
    policy = create_transform(
        SIZE, is_training=True, auto_augment="rand-m5-inc1", separate=True, mean=MEAN, interpolation="bicubic"
    )[1]
    theirs = transforms.Compose([policy, transforms.ColorJitter(0.4, 0.4, 0.4)])
    for index in range(10):
        image = Image.fromarray(PIXELS[index])
        with seeded_rng(0, numpy=True):
            seed_all(index)
            expected = np.asarray(theirs(image)).transpose(2, 0, 1)
            np.testing.assert_array_equal(ours(image, index), expected)


@pytest.mark.parametrize("policy", ["v0", "rand-m10-inc1-n4-p1"])
def test_a_policy_that_posterizes_to_no_bits_makes_a_black_image_and_does_not_fail(policy):
    ours = TimmTransform(make_augment(Config(crop="none", auto_augment=policy), PREPROCESS), PREPROCESS)
    with seeded_rng(0, numpy=True):
        images = [ours(Image.fromarray(PIXELS[0]), seed) for seed in range(100)]
    is_black = [not image.any() for image in images]
    assert 0 < sum(is_black) < 50


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
@pytest.mark.parametrize("loader", ["resident", "timm"])
def test_erasing_is_timms_on_the_normalised_batch_in_every_loader(loader, mode):
    settings = {"loader": loader, "cutout": 0, "crop": "none", "flip": False}
    erased = {"erasing": 0.8, "erasing_mode": mode, "erasing_count": 3, "erasing_area": "0.05,0.3"}
    plain, ours = (to_list(loaders(**settings, **more).train.epoch(1)) for more in ({}, erased))
    theirs = RandomErasing(0.8, 0.05, 0.3, mode=mode, max_count=3, device="cpu")
    for batch, (images, labels) in enumerate(plain):
        with seeded_rng(seed_for(0, "erase", 1, batch)):
            expected = theirs(images.clone())
        assert torch.equal(ours[batch][0], expected) and torch.equal(ours[batch][1], labels)
        assert not torch.equal(expected, images)


@pytest.mark.parametrize("kind", RICH)
def test_batches_are_a_function_of_seed_epoch_and_batch_and_leave_the_global_generators_alone(kind):
    train = loaders(**RICH[kind]).train
    seed_all(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    first = to_list(train.epoch(1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1] and np.random.get_state()[1].tobytes() == before[2]
    seed_all(4)
    next(train.epoch(0))
    assert equal(to_list(train.epoch(1, start=3)), first[3:])
    assert equal(to_list(loaders(**RICH[kind]).train.epoch(1)), first)
    for other in (train.epoch(2), loaders(**RICH[kind], seed=1).train.epoch(1)):
        assert not torch.equal(to_list(other)[0][0], first[0][0])
    images = torch.cat([images for images, _ in first])
    assert len({image.numpy().tobytes() for image in images}) == len(images) == COUNT


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["RandAugment", "erasing", "repeated", "pipeline"])
def test_the_number_of_workers_changes_nothing(kind):
    single, parallel = loaders(**RICH[kind]).train, loaders(**RICH[kind], workers=2).train
    for epoch in range(2):
        assert equal(to_list(single.epoch(epoch)), to_list(parallel.epoch(epoch)))


class Rank:
    """The division of a batch among two processes."""

    world_size = 2

    def __init__(self, rank):
        self.rank = rank

    def shard(self, num_items):
        half = (num_items + 1) // 2
        return slice(half * self.rank, min(num_items, half * (self.rank + 1)))

    def broadcast(self, value):
        return value


@pytest.mark.parametrize(("kind", "loader"), [*((kind, "timm") for kind in RICH), ("erasing", "resident")])
def test_the_parts_of_two_processes_are_the_batches_of_one(kind, loader):
    settings = {**RICH[kind], "loader": loader, **({"vflip": 0} if loader == "resident" else {})}
    whole = to_list(loaders(**settings).train.epoch(0))
    parts = [to_list(loaders(Rank(rank), **settings).train.epoch(0)) for rank in range(2)]
    joined = [tuple(torch.cat(items) for items in zip(*pair, strict=True)) for pair in zip(*parts, strict=True)]
    assert equal(joined, whole)


@pytest.mark.parametrize("repeats", [1, 2, 3, 2.5, 1.5])
def test_repeated_images_come_in_the_order_of_timms_sampler(repeats):
    repeats = int(repeats) if repeats == int(repeats) else repeats
    sampler = RepeatAugSampler(range(COUNT), 1, 0, shuffle=False, num_repeats=repeats, selected_round=0)
    order = epoch_order(COUNT, 0, 0).tolist()
    repeated = repeat_images(order, repeats)
    assert [image for image, _ in repeated] == [order[place] for place in sampler]
    assert len(set(repeated)) == len(repeated) == COUNT


def test_an_epoch_of_repeated_augmentation_shows_fewer_images_each_several_times_and_augmented_anew():
    repeated, plain = (
        to_list(loaders(loader="timm", **settings).train.epoch(0)) for settings in ({"aug_repeats": 4}, {})
    )
    labels = torch.cat([labels for _, labels in repeated])
    expected = epoch_order(COUNT, 0, 0)[: COUNT // 4].repeat_interleave(4) % 10
    assert labels.tolist() == expected.tolist() and len(repeated) == len(plain)
    # The first time that an image is shown it is augmented as without repetitions.
    torch.testing.assert_close(
        loaders(loader="timm", aug_repeats=4, cutout=0).train.preview(8)[0][[0, 4]],
        loaders(loader="timm", cutout=0).train.preview(8)[0][[0, 1]],
        atol=0, rtol=0,
    )  # fmt: skip


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_pipeline_from_a_file_of_albumentations_gives_what_albumentations_gives(tmp_path, suffix):
    import albumentations

    pipeline = albumentations.Compose(
        [
            albumentations.RandomResizedCrop((SIZE, SIZE), scale=(0.5, 1.0), p=1),
            albumentations.OneOf([albumentations.GaussNoise(p=1), albumentations.CLAHE(p=1)], p=0.9),
            albumentations.Normalize(MEAN, STD, p=1),
            albumentations.CoarseDropout((1, 3), (4, 8), (4, 8), p=0.5),
        ]
    )
    file = tmp_path / f"mine.{suffix}"
    albumentations.save(pipeline, file, data_format=suffix)
    config = Config(augment="albumentations", augment_pipeline=str(file), workers=0, batch_size=8)
    file.unlink()  # the settings have its content
    assert Config(**config.to_dict()) == config
    ours = to_list(make_loaders(config, DATA, PREPROCESS, "cpu").train.epoch(0))
    order, changed = epoch_order(COUNT, 0, 0).tolist(), 0
    for place, image in enumerate(torch.cat([images for images, _ in ours])):
        seed = seed_for(0, "augment", 0, order[place])
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        expected = pipeline(image=PIXELS[order[place]])["image"].transpose(2, 0, 1)
        np.testing.assert_array_equal(image.numpy(), expected)
        changed += not np.array_equal(image.numpy(), PREPROCESS.image(PIXELS[order[place]]).numpy())
    assert changed > COUNT / 2


def test_bytes_of_a_pipeline_are_resized_and_normalised_as_in_evaluation():
    transform = {"__class_fullname__": "CenterCrop", "height": 20, "width": 24, "p": 1.0}
    settings = {"augment": "albumentations", "augment_pipeline": {"transform": transform}}
    images = torch.cat([images for images, _ in loaders(**settings).train.epoch(0)])
    for place, index in enumerate(epoch_order(COUNT, 0, 0).tolist()):
        torch.testing.assert_close(images[place], PREPROCESS.image(PIXELS[index][6:26, 4:28].copy()), atol=0, rtol=0)


def test_bytes_of_the_size_of_the_input_are_not_cropped_again():
    preprocess = dataclasses.replace(PREPROCESS, crop_pct=0.875)
    flip = {"transform": {"__class_fullname__": "NoOp", "p": 1.0}}
    config = Config(augment="albumentations", augment_pipeline=flip, batch_size=8, workers=0)
    images = torch.cat([images for images, _ in make_loaders(config, DATA, preprocess, "cpu").train.epoch(0)])
    for place, index in enumerate(epoch_order(COUNT, 0, 0).tolist()):
        expected = (PIXELS[index] / 255 - np.array(MEAN)) / np.array(STD)
        np.testing.assert_allclose(images[place].numpy(), expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_pipeline_that_fails_on_a_later_image_ends_in_one_line(workers):
    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return COUNT

        def __getitem__(self, index):
            side = 48 if index < COUNT - 1 else 30
            return Image.fromarray(np.zeros((side, side, 3), np.uint8)), index % 10

    train = dataclasses.replace(TRAIN, pixels=None, source=Images())
    crop = {"transform": {"__class_fullname__": "RandomCrop", "height": 40, "width": 40, "p": 1.0}}
    config = Config(augment="albumentations", augment_pipeline=crop, batch_size=8, workers=workers, loader="timm")
    made = make_loaders(config, dataclasses.replace(DATA, train=train), PREPROCESS, "cpu")
    with pytest.raises(DataError, match="augment_pipeline fails on an image of 30 x 30: ") as failed:
        list(made.train.epoch(0))
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    ("transforms_", "message"),
    [
        ([{"__class_fullname__": "NoSuchThing", "p": 1}], "no transform 'NoSuchThing'"),
        ([{"__class_fullname__": "Rotate", "limits": 3, "p": 1}], "limits"),
        ([{"__class_fullname__": "Rotate", "limit": "far", "p": 1}], "augment_pipeline: "),
        ([{"__class_fullname__": "ToGray", "num_output_channels": 1, "p": 1}], "gives 32 x 32 uint8; need 32 x 32 x 3"),
        ([{"__class_fullname__": "Resize", "height": 9, "width": 9, "p": 1}, {"__class_fullname__": "Normalize", "p": 1}], "9 x 9 x 3 float32.*end it with Resize"),
        ([{"__class_fullname__": "RandomCrop", "height": 99, "width": 99, "p": 1}], "fails on an image of 32 x 32: .*train/0"),
        ([{"__class_fullname__": "DualTransform", "p": 1}], "NotImplementedError"),
        ([{"__class_fullname__": "OneOf", "p": 1, "transforms": [{"__class_fullname__": "Blur", "p": 0}]}], "augment_pipeline: "),
    ],
)  # fmt: skip
def test_a_pipeline_that_does_not_work_is_refused_before_training_in_one_line(transforms_, message):
    compose = {"transform": {"__class_fullname__": "Compose", "p": 1.0, "transforms": transforms_}}
    with pytest.raises(UsageError, match=message) as refused:
        loaders(augment="albumentations", augment_pipeline=compose)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"auto_augment": "3a"}, "auto_augment=3a"),
        ({"color_jitter": (0.4, 0.2, 0.1)}, "color_jitter=0.4,0.2,0.1"),
        ({"grayscale": 0.1}, "grayscale=0.1"),
        ({"blur": 0.1}, "blur=0.1"),
        ({"vflip": 0.5}, "vflip=0.5"),
        ({"aug_repeats": 3}, "aug_repeats=3"),
        ({"crop_scale": (0.5, 1)}, "crop=resized"),
        ({"augment": "albumentations", "augment_pipeline": PIPELINE}, "augment=albumentations"),
    ],
)
def test_auto_chooses_the_loader_that_can_and_resident_is_refused_with_the_setting_and_the_remedy(settings, reason):
    assert loaders(**settings).kind == "timm"
    with pytest.raises(UsageError, match=f"loader=resident is not possible: {reason}.*; set --loader auto"):
        loaders(loader="resident", **settings)
    if settings.get("augment") != "albumentations":
        assert loaders(augment="none", **settings).kind == "resident"  # nothing is augmented


@pytest.mark.parametrize("augment", ["timm", "albumentations"])
def test_vertical_flip_and_the_scale_of_the_crop_have_the_same_distribution_in_both_back_ends(augment):
    rows = np.broadcast_to(np.arange(SIZE, dtype=np.uint8)[:, None, None] * 7, (1000, SIZE, SIZE, 3))
    train = in_memory("train", rows, np.arange(1000) % 2, ["x"] * 1000)
    data = Dataset("rows", ("a", "b"), train, None, None, MEAN, STD, "")
    settings = {"augment": augment, "cutout": 0, "vflip": 0.3, "workers": 0, "batch_size": 500}
    config = Config(**settings, crop_scale="0.25,0.25", crop_ratio="1,1")
    images = torch.cat([images for images, _ in make_loaders(config, data, PREPROCESS, "cpu").train.epoch(0)])
    levels = PREPROCESS.denormalise(images)[:, 0, :, 0] * 255 / 7  # the row that each pixel comes from
    heights = (levels[:, -1] - levels[:, 0]).abs()
    assert (heights - 15).abs().max() < 1.6  # half of the side, from the middle of the first row to that of the last
    share = float((levels[:, -1] < levels[:, 0]).float().mean())
    assert abs(share - 0.3) < 4.5 * (0.3 * 0.7 / 1000) ** 0.5


def test_a_blur_that_is_larger_than_the_image_is_refused():
    with pytest.raises(UsageError, match=r"blur=0\.5 needs images of at least 12 x 12 pixels, got 8 x 8"):
        make_augment(Config(blur=0.5, cutout=0), Preprocess(8, MEAN, STD, 1.0, "bicubic"))
    small = Preprocess(12, MEAN, STD, 1.0, "bicubic")
    config = Config(blur=1, crop="none", flip=False)
    with seeded_rng(0):
        blurred = TimmTransform(make_augment(config, small), small)(Image.fromarray(PIXELS[0]), 0)
    assert blurred.shape == (3, 12, 12)


def test_a_tensor_of_albumentations_is_the_array_that_it_was_made_of():
    normalize = {"__class_fullname__": "Normalize", "mean": MEAN, "std": STD, "p": 1.0}
    images = []
    for end in ([], [{"__class_fullname__": "ToTensorV2", "p": 1.0}]):
        compose = {"transform": {"__class_fullname__": "Compose", "p": 1.0, "transforms": [normalize, *end]}}
        made = loaders(augment="albumentations", augment_pipeline=compose)
        images.append(torch.cat([batch for batch, _ in made.train.epoch(0)]))
    assert torch.equal(*images)


def test_albumentations_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(
        UsageError, match="needs the package albumentations; run pip install albumentations, or set --augment timm"
    ):
        list(loaders(augment="albumentations").train.epoch(0))


@pytest.mark.parametrize(
    ("name", "code"), [("nearest", "NEAREST"), ("bilinear", "LINEAR"), ("bicubic", "CUBIC"), ("lanczos", "LANCZOS4")]
)
def test_albumentations_crops_with_the_interpolation_of_the_model(name, code):
    cv2 = pytest.importorskip("cv2")
    preprocess = dataclasses.replace(PREPROCESS, interpolation=name)
    pipeline = albumentations_compose(
        make_augment(Config(crop="resized", flip=False, cutout=0), preprocess), preprocess
    )
    [crop, _] = pipeline.transforms
    assert crop.interpolation == getattr(cv2, f"INTER_{code}") and tuple(crop.size) == (SIZE, SIZE)
