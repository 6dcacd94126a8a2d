"""Settings that change nothing are named, and no others: compared with the learning rates and the augmentation that they give."""

import dataclasses
import itertools

import pytest

import harness
from harness.config.names import SCHEDULES
from harness.config.settings import Config
from harness.config.unused_settings import unused_settings
from harness.data.augment import make_augment
from harness.data.preprocess import Preprocess
from harness.training.schedule import make_schedule
from tests.support.commands import command

PREPROCESS = Preprocess(32, (0.5,) * 3, (0.5,) * 3, 1.0, "bicubic")
LOSSES = [1.0] * 12  # so that plateau lowers the rate
# Two values each, of which one at least differs from the default.
OF_SCHEDULES = {
    "peak_epoch": (3.0, 7.0), "cycles": (2, 4), "step_epochs": (2.0, 5.0), "milestones": ((4.0,), (6.0, 8.0)), "step_factor": (0.5, 0.2),
    "poly_power": (2.0, 0.5), "plateau_patience": (1, 3), "plateau_factor": (0.5, 0.2), "lr_min": (0.01, 0.02), "lr_min_ratio": (0.1, 0.2),
    "warmup_factor": (0.1, 0.5),
}  # fmt: skip
OF_AUGMENTATION = {
    "crop": ("pad", "resized"), "crop_padding": (2, 6), "padding_mode": ("edge", "reflect"), "cutout": (4, 6), "vflip": (0.25, 0.5),
    "alternating_flip": (True, False), "grayscale": (0.1, 0.2), "blur": (0.1, 0.2), "auto_augment": ("v0", "original"), "erasing": (0.1, 0.2),
    "erasing_mode": ("const", "rand"), "erasing_count": (2, 3), "erasing_area": ((0.1, 0.2), (0.2, 0.3)), "color_jitter": ((0.4,), (0.2,)),
    "color_jitter_prob": (0.5, 0.25),
}  # fmt: skip


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
        curves.append([rates.lr(step, LOSSES[: step // 10]) for step in range(120)])
    sentences = unused_settings(config, {name})
    assert bool(sentences) == (curves[0] == curves[1]), sentences
    assert all(sentence.startswith(f"{name}=") and " has no effect " in sentence for sentence in sentences)


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"augment": "none"},
        {"crop": "none"},
        {"crop": "resized"},
        {"crop": "pad", "crop_padding": 0},
        {"erasing": 0.3},
        {"color_jitter": (0.3,)},
    ],
)
@pytest.mark.parametrize("name", OF_AUGMENTATION)
def test_a_setting_of_the_augmentation_is_named_where_the_augmentation_does_not_depend_on_it(name, others):
    if name in others:
        return
    made = []
    for value in OF_AUGMENTATION[name]:
        config = Config(**{**others, name: value})
        augment = make_augment(config, PREPROCESS)
        parts = {field.name: getattr(augment, field.name) for field in dataclasses.fields(augment)}
        if not augment.padding:
            parts.pop("padding_mode")
        if not augment.color_jitter:
            parts.pop("color_jitter_prob")
        made.append(parts)
    config = Config(**{**others, name: OF_AUGMENTATION[name][0]})
    assert bool(unused_settings(config, {name})) == (made[0] == made[1])


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
        ({"gallery": 0, "gallery_rule": "random"}, "gallery_rule=random has no effect with gallery=0"),
        ({"cam": "none", "cam_layer": "layer3"}, "cam_layer=layer3 has no effect with gallery=25 and cam=none"),
        ({"model_ttl": 3}, "model_ttl=3 has no effect with log_model=auto; set --log-model best"),
        ({"erasing_area": (0.1, 0.2)}, "erasing_area=0.1,0.2 has no effect without erasing; set --erasing 0.25"),
    ],
)
def test_the_reason_and_the_remedy_are_named(settings, sentence):
    assert unused_settings(Config(**settings), settings) == [sentence]
    used = {"ema": 0.9, "weight_decay": 0.1, "gallery": 4, "cam": "gradcam", "log_model": "best", "erasing": 0.1}
    assert unused_settings(Config(**{**settings, **used}), settings) == []


def test_what_is_chosen_from_the_data_and_schedules_of_plug_ins_use_every_setting():
    assert unused_settings(Config(recipe="auto", augment="none", flip="auto"), {"flip"}) == []
    config = Config(schedule="of_a_plug_in")
    assert unused_settings(config, set(OF_SCHEDULES) - {"warmup_factor"}) == []


def test_the_command_and_the_function_warn_and_a_recipe_does_not(tmp_path):
    words = ["run", "--recipe", "digits", "--dry-run", "--schedule", "step", "--model-args", "width=4"]
    ended = command(*words, "PEAK_EPOCH=3", "--erasing-count", 3, cwd=tmp_path)
    warnings = [line for line in ended.err.splitlines() if line.startswith("Warning: ")]
    assert warnings == [
        "Warning: peak_epoch=3 has no effect with schedule=step",
        "Warning: erasing_count=3 has no effect without erasing; set --erasing 0.25",
    ]
    assert "has no effect" not in command(*words, cwd=tmp_path).err  # its recipe has a peak
    lines = []

    class Lines:
        def message(self, text):
            lines.append(text)

        def __getattr__(self, name):
            return lambda *arguments, **settings: None

    quick = {
        "model_args": {"width": 4},
        "epochs": 1,
        "image_size": 16,
        "wandb": "disabled",
        "gallery": 0,
        "threads": 1,
        "output": tmp_path,
    }
    for given in ({}, {"schedule": "step", "peak_epoch": 1, "precision": "fp32"}):
        harness.run({"recipe": "digits", **quick, **given}, Lines(), gallery_rule="random", report=False)
    named = [line for line in lines if "has no effect" in line]
    assert named == [
        "Warning: gallery_rule=random has no effect with gallery=0",
        "Warning: peak_epoch=1 has no effect with schedule=step",
        "Warning: gallery_rule=random has no effect with gallery=0",
    ]
    assert list(itertools.chain(tmp_path.glob("digits-*")))
