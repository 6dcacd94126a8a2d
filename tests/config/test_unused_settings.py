"""Settings that have no effect are named, and no others: compared with learning rates, momenta and augmented images."""

import random
import re

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import augment_and_mix_transform, rand_augment_transform

import harness
from harness.config.names import SCHEDULES
from harness.config.settings import Config
from harness.config.unused_settings import unused_settings
from harness.data.dataset import Dataset, in_memory
from harness.data.image_transforms import allow_black_posterize
from harness.data.loaders import make_loaders
from harness.data.preprocess import Preprocess
from harness.training.schedule import make_schedule
from harness.utils.errors import UsageError
from tests.support.commands import QUICK, command

PREPROCESS = Preprocess(32, (0.5,) * 3, (0.5,) * 3, 1.0, "bicubic")
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
TRAIN = in_memory("train", PIXELS, np.arange(12) % 2, [f"train/{index}" for index in range(12)])
DATA = Dataset("blocks", ("a", "b"), TRAIN, None, TRAIN.subset(np.arange(4), "test"), (0.5,) * 3, (0.5,) * 3, "")
LOSSES = [1.0] * 12  # so that plateau lowers the rate
# Two values each, of which one at least differs from the default.
OF_SCHEDULES = {
    "peak_epoch": (3.0, 7.0), "cycles": (2, 4), "step_epochs": (2.0, 5.0), "milestones": ((4.0,), (6.0, 8.0)), "step_factor": (0.5, 0.2),
    "poly_power": (2.0, 0.5), "plateau_patience": (1, 3), "plateau_factor": (0.5, 0.2), "lr_min": (0.01, 0.02), "lr_min_ratio": (0.1, 0.2),
    "warmup_factor": (0.1, 0.5), "momentum_min": (0.8, 0.7),
}  # fmt: skip


def pipeline(p):
    flips = [{"__class_fullname__": "VerticalFlip", "p": p}]
    return {"__version__": "2.0.8", "transform": {"__class_fullname__": "Compose", "p": 1.0, "transforms": flips}}


OF_AUGMENTATION = {
    "crop": ("pad", "resized"), "crop_padding": (2, 6), "padding_mode": ("edge", "reflect"), "flip": (True, False), "cutout": (4, 6),
    "vflip": (0.1, 0.9), "crop_scale": ((0.1, 0.2), (0.5, 0.6)), "grayscale": (0.1, 0.9), "blur": (0.1, 0.9),
    "auto_augment": ("rand-m9", "original"), "erasing": (0.1, 0.9), "erasing_mode": ("const", "rand"), "erasing_count": (2, 5),
    "erasing_area": ((0.1, 0.2), (0.3, 0.4)), "color_jitter": ((0.4,), (0.2,)), "color_jitter_prob": (0.9, 0.1), "aug_repeats": (2.0, 3.0),
    "augment_pipeline": (pipeline(0.1), pipeline(0.9)),
}  # fmt: skip
SITUATIONS = [
    {},
    {"augment": "none"},
    {"augment": "albumentations"},
    {"augment": "albumentations", "augment_pipeline": pipeline(0.5)},
    {"crop": "none"},
    {"crop": "resized"},
    {"crop": "pad", "crop_padding": 0},
    {"crop_ratio": (0.5, 0.6)},
    {"erasing": 0.9},
    {"color_jitter": (0.3,)},
]


@pytest.mark.parametrize("warmup_steps", [0, 10])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OF_SCHEDULES)
def test_a_setting_of_the_schedule_is_named_where_the_learning_rates_do_not_depend_on_it(name, schedule, warmup_steps):
    settings = {"schedule": schedule, "epochs": 12, "lr_max": 1.0, "lr_min": 0.001, "warmup_steps": warmup_steps}
    settings |= {"val_fraction": 0.5, "plateau_patience": 2}
    curves = []
    for value in OF_SCHEDULES[name]:
        config = Config(**{**settings, name: value})
        rates = make_schedule(config, 10)
        curves.append([(rates.lr(step, LOSSES[: step // 10]), rates.momentum_at(step)) for step in range(120)])
    sentences = unused_settings(config, {name})
    assert bool(sentences) == (curves[0] == curves[1]), sentences
    assert all(sentence.startswith(f"{name}=") and " has no effect " in sentence for sentence in sentences)


@pytest.mark.parametrize("others", SITUATIONS, ids=lambda others: ",".join(others) or "defaults")
@pytest.mark.parametrize("name", OF_AUGMENTATION)
def test_a_setting_of_the_augmentation_is_named_where_training_images_do_not_depend_on_it(name, others):
    made = []
    for value in OF_AUGMENTATION[name]:
        try:
            config = Config(**{"batch_size": 12, "workers": 0, **others, name: value})
        except UsageError:
            return  # not to be combined
        made.append(torch.cat([images for images, _ in make_loaders(config, DATA, PREPROCESS, "cpu").train.epoch(0)]))
    config = Config(**{**others, name: OF_AUGMENTATION[name][0]})
    assert bool(unused_settings(config, {name})) == torch.equal(*made)


def test_only_settings_that_were_given_and_are_on_are_named():
    config = Config(schedule="step", peak_epoch=3, augment="none", erasing_mode="const")
    assert unused_settings(config, set()) == []
    assert unused_settings(config, {"flip", "cutout"}) == [
        "flip=True has no effect with augment=none",
        "cutout=8 has no effect with augment=none",
    ]
    off = Config(augment="none", flip=False, cutout=0, crop="none", milestones=(), step_epochs=0)
    assert unused_settings(off, {"flip", "cutout", "crop", "milestones", "step_epochs"}) == []
    both = unused_settings(config, {"peak_epoch", "erasing_mode", "schedule"})
    assert both == [
        "peak_epoch=3 has no effect with schedule=step",
        "erasing_mode=const has no effect with augment=none",
    ]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"ema_warmup": True}, "ema_warmup=True has no effect without ema; set --ema 0.999"),
        ({"bias_decay": True, "weight_decay": 0}, "bias_decay=True has no effect with weight_decay=0"),
        ({"crop_ratio": (0.5, 1), "padding_mode": "edge"}, "padding_mode=edge has no effect with a resized crop"),
        ({"erasing_area": (0.1, 0.2)}, "erasing_area=0.1,0.2 has no effect without erasing; set --erasing 0.25"),
    ],
)
def test_the_reason_and_the_remedy_are_named(settings, sentence):
    assert unused_settings(Config(**settings), settings) == [sentence]
    used = {"ema": 0.9, "weight_decay": 0.1, "erasing": 0.1, "crop": "pad" if "crop_ratio" not in settings else "auto"}
    named = unused_settings(Config(**{**settings, **used}), settings)
    assert named == ([sentence] if "crop_ratio" in settings else [])


def test_what_is_chosen_from_the_data_and_schedules_of_plug_ins_use_every_setting():
    assert unused_settings(Config(recipe="auto", augment="none", flip="auto"), {"flip"}) == []
    config = Config(schedule="of_a_plug_in")
    assert unused_settings(config, set(OF_SCHEDULES) - {"warmup_factor"}) == []


def test_a_warm_up_that_may_have_no_update_leaves_the_peak_of_cosine():
    assert unused_settings(Config(schedule="cosine", warmup_epochs=0.01), {"peak_epoch"}) == []
    sentence = "peak_epoch=5 has no effect because warmup_epochs replaces it"
    assert unused_settings(Config(schedule="cosine", warmup_epochs=1), {"peak_epoch"}) == [sentence]


def test_the_command_warns_in_the_log_too_and_a_recipe_does_not(tmp_path):
    words = ["run", *QUICK, "--epochs", 1, "--gallery", 0, "--wandb", "disabled", "--name", "r", "--schedule", "step"]
    ended = command(*words, "PEAK_EPOCH=1", "--erasing-count", 3, "--report", "False", cwd=tmp_path, check=0)
    warnings = [line for line in ended.err.splitlines() if "has no effect" in line]
    assert warnings == [
        "Warning: peak_epoch=1 has no effect with schedule=step",
        "Warning: erasing_count=3 has no effect without erasing; set --erasing 0.25",
    ]
    assert all(f"{line}\n" in (tmp_path / "runs/r/console.log").read_text() for line in warnings)
    shown = command("run", *QUICK, "--dry-run", "--schedule", "step", "--peak-epoch", 3, cwd=tmp_path, check=0).err
    assert "has no effect with schedule=step" in shown


def test_a_function_warns_of_what_it_was_given_in_any_spelling(tmp_path):
    """The same setting in the dictionary and by keyword is no error: the keyword wins."""
    lines = []

    class Lines:
        def message(self, text):
            lines.append(text)

        def __getattr__(self, name):
            return lambda *arguments, **settings: None

    quick = {"recipe": "digits", "wandb": "disabled", "output": str(tmp_path), "device": "none"}
    for given in ({}, {"schedule": "step", "PEAK-EPOCH": 1}):
        with pytest.raises(UsageError, match="device='none'"):
            harness.run({**quick, **given}, Lines(), peak_epoch=2.0)
    assert [line for line in lines if "has no effect" in line] == [
        "Warning: peak_epoch=2 has no effect with schedule=step"
    ]


@pytest.mark.parametrize(
    ("policy", "capped", "remedy"),
    [
        ("rand-m15-n2", "rand-m10-n2", "m10, or a higher limit such as mmax20"),
        ("rand-n2-m99-inc1", "rand-n2-m10-inc1", "m10, or a higher limit such as mmax20"),
        ("rand-m15-mmax12", "rand-m12-mmax12", "m12, or a higher limit such as mmax20"),
        ("augmix-m99-mstd0", "augmix-m10-mstd0", "m10"),
        ("rand-m15-mmax20", "rand-m10", ""),
        ("rand-m9-mstd0.5", "rand-m10-mstd0.5", ""),
        ("rand-m11-mstd2", "rand-m10-mstd2", ""),
        ("rand-m12-mstd0", "rand-m10", "m10, or a higher limit such as mmax20"),
        ("augmix-m15", "augmix-m10", ""),
        ("rand-m10", "rand-m9", ""),
    ],
)
def test_a_magnitude_that_timm_lowers_is_named(policy, capped, remedy):
    made = []
    for name in (policy, capped):
        make = augment_and_mix_transform if name.startswith("augmix") else rand_augment_transform
        transform = make(name, {"translate_const": 10, "img_mean": (128, 128, 128)})
        allow_black_posterize(transform)
        random.seed(1)
        np.random.seed(1)
        made += [[np.asarray(transform(Image.fromarray(picture))) for picture in PIXELS] * 3]
    assert np.array_equal(*made) == bool(remedy)
    sentences = unused_settings(Config(auto_augment=policy), {"auto_augment"})
    assert sentences == (
        [
            f"auto_augment={policy} has no effect beyond magnitude {capped_at(capped)}, up to which timm goes; set {remedy}"
        ]
        if remedy
        else []
    )


def capped_at(policy):
    return re.search(r"-m(\d+)", policy).group(1)
