"""Settings of augmentation: policies that timm reads, numbers in their bounds, and settings that go together."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from harness.config.recipe import make_config
from harness.config.settings import Config, coerce
from harness.sweep.command import START_RUN
from harness.sweep.schema import parse_sweep
from harness.utils.errors import UsageError

NUMBER = st.integers(0, 12).map(str) | st.floats(0, 3).map(lambda value: f"{value:.2f}")
SECTIONS = {
    "rand": st.sampled_from(["m9", "m12", "n1", "n3", "p0.7", "inc1", "inc0", "mmax12", "tweights", "t3a", "t3aw"])
    | NUMBER.map("mstd{}".format),
    "augmix": st.sampled_from(["m5", "w2", "d1", "d3", "b1", "a0.5"]) | NUMBER.map("mstd{}".format),
    "v0": NUMBER.map("mstd{}".format),
    "3a": NUMBER.map("mstd{}".format),
}
PIPELINE = {"transform": {"__class_fullname__": "HorizontalFlip", "p": 0.5}}


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(SECTIONS)).flatmap(
        lambda name: st.tuples(st.just(name), st.lists(SECTIONS[name], max_size=3))
    )
)
def test_every_policy_that_is_accepted_is_one_that_timm_makes_and_applies(drawn):  # fmt: skip
    from PIL import Image
    from timm.data.transforms_factory import transforms_imagenet_train

    from harness.data.image_transforms import allow_black_posterize

    name, sections = drawn
    policy = Config(auto_augment="-".join([name, *sections])).auto_augment
    transform = transforms_imagenet_train(16, auto_augment=policy, separate=True)[1].transforms[0]
    allow_black_posterize(transform)
    random.seed(0), np.random.seed(0)
    assert transform(Image.new("RGB", (16, 16), (200, 100, 50))).size == (16, 16)


@pytest.mark.parametrize(
    "policy",
    ["rand9", "randaugment", "rand-m", "rand-x3", "rand-m9-n0", "rand-n99", "rand-p2", "rand-twide", "augmix-a0", "augmix-a0.0", "augmix-q1", "v1", "v0-m9", "3a-mstd", "", "rand-m9 ", "original-mstd0.5-"],
)  # fmt: skip
def test_a_policy_that_timm_would_misread_is_refused_with_an_example(policy):
    with pytest.raises(UsageError, match="auto_augment='") as refused:
        Config(auto_augment=policy)
    assert "need" in str(refused.value) and policy in str(refused.value)


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        ("0.4", (0.4,)),
        (0.4, (0.4,)),
        ("0.4,0.3,0.2", (0.4, 0.3, 0.2)),
        ("[0.4, 0.3, 0.2, 0.1]", (0.4, 0.3, 0.2, 0.1)),
        ([0.4, 0.3, 1], (0.4, 0.3, 1.0)),
        ("none", ()),
        ("", ()),
        ([], ()),
    ],
)
def test_a_list_of_numbers_is_read_from_text_from_a_list_and_from_one_number(value, numbers):
    assert coerce("color_jitter", value) == numbers
    assert Config(**Config(color_jitter=value).to_dict()).color_jitter == numbers


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"color_jitter": "0.4,0.2"}, "color_jitter=0.4,0.2: need one number, three"),
        ({"color_jitter": "-1"}, "need numbers from 0 to 100"),
        ({"color_jitter": "a lot"}, "numbers with commas"),
        ({"color_jitter": True}, "numbers with commas"),
        ({"color_jitter": (1, 1, 1, 0.6)}, "a hue, the fourth number, of at most 0.5"),
        ({"crop_scale": "0.5"}, "crop_scale=0.5: need two numbers in increasing order"),
        ({"crop_scale": "0.5,1.5"}, "crop_scale=0.5,1.5"),
        ({"crop_ratio": "2,1"}, "crop_ratio=2,1"),
        ({"erasing_area": "0,0.3"}, "erasing_area=0,0.3"),
        ({"erasing": 1.2}, "erasing <= 1"),
        ({"erasing_mode": "noise"}, "one of const, rand, pixel"),
        ({"vflip": True}, "a number"),
        ({"aug_repeats": 0}, "aug_repeats >= 1"),
        ({"crop_scale": "0.5,1", "crop": "pad"}, "crop=pad; set --crop resized"),
        ({"auto_augment": "3a", "augment": "albumentations"}, "auto_augment=3a is timm's.*--augment timm, or"),
        ({"grayscale": 0.1, "augment": "albumentations"}, "grayscale=0.1 is timm's"),
        ({"augment_pipeline": PIPELINE}, "augment=timm; set --augment albumentations"),
        ({"augment_pipeline": {"a": 1}, "augment": "albumentations"}, "the key 'transform'"),
        ({"augment_pipeline": PIPELINE, "augment": "albumentations", "vflip": 0.5}, "takes the place of vflip"),
        ({"augment_pipeline": "no.yaml"}, "no.yaml"),
        ({"augment_pipeline": "mine"}, "augment_pipeline='mine': need the name of a .yaml or .json file"),
        ({"augment_pipeline": "~nobody-here/x.json"}, "augment_pipeline='~nobody-here/x.json': "),
        ({"augment_pipeline": "a\0b.json"}, "need the name of a .yaml or .json file"),
        ({"model_args": {"a": {1: 2, "b": 3}}}, "a mapping of plain, finite values"),
        ({"color_jitter": 1e300}, "numbers from 0 to 100"),
        *(({"auto_augment": policy}, "cannot have") for policy in ("rand-m9-p.5", "augmix-a.5", "3a-mstd.5")),
        ({"aug_repeats": 3, "sampling": "balanced"}, "aug_repeats=3 both repeat images"),
    ],
)
def test_values_that_no_augmentation_has_are_refused_with_what_is_needed(values, message):
    with pytest.raises(UsageError, match=message):
        Config(**values)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"__class_fullname__": "HistogramMatching", "reference_images": ["/etc/passwd"]},
            "reference_images opens files",
        ),
        ({"__class_fullname__": "core.ReplayCompose", "transforms": []}, "ReplayCompose opens files"),
        ({"__class_fullname__": "Mosaic", "metadata_key": "image"}, "metadata_key opens files"),
        ({"__class_fullname__": "Resize", "height": 100_000, "width": 8}, "height=100000: need at most 4096 pixels"),
    ],
)
def test_a_pipeline_that_opens_files_or_makes_huge_images_is_refused(part, message):
    nested = {
        "transform": {
            "__class_fullname__": "Compose",
            "transforms": [{"__class_fullname__": "OneOf", "transforms": [part]}],
        }
    }
    with pytest.raises(UsageError, match=message):
        Config(augment="albumentations", augment_pipeline=nested)


def test_transforms_that_are_nested_deeper_than_a_stored_configuration_may_be_are_refused():
    part = {"__class_fullname__": "HorizontalFlip"}
    for _ in range(40):
        part = {"__class_fullname__": "Compose", "transforms": [part]}
    with pytest.raises(UsageError, match="nested deeper"):
        Config(augment="albumentations", augment_pipeline={"transform": part})


@pytest.mark.parametrize("augment", ["none", "timm", "albumentations"])
def test_no_other_file_becomes_a_part_of_the_settings(tmp_path, augment):
    """A recipe of somebody else may name any file, and settings are uploaded."""
    for number, content in enumerate(({"secret": 1}, {"transform": {"secret": 1}}, {**PIPELINE, "secret": 1})):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(content))
        recipe = tmp_path / f"{number}.yaml"
        recipe.write_text(f"augment: {augment}\naugment_pipeline: {file}\n")
        with pytest.raises(UsageError, match="augment_pipeline: need a pipeline") as refused:
            make_config({}, str(recipe))
        assert "secret" not in str(refused.value)


def test_without_augmentation_the_other_settings_of_it_have_no_effect_and_contradict_nothing():
    from harness.data.augment import make_augment
    from harness.data.preprocess import Preprocess

    preprocess = Preprocess(32, (0.5,) * 3, (0.2,) * 3, 1.0, "bicubic")
    rich = {"auto_augment": "3a", "erasing": 0.5, "crop_scale": "0.5,1", "crop": "pad", "augment_pipeline": PIPELINE}
    assert make_augment(Config(augment="none", **rich), preprocess) == make_augment(Config(augment="none"), preprocess)


def test_settings_that_are_off_leave_name_and_digest_of_earlier_runs_alone():
    plain = Config()
    assert (
        not {"auto_augment", "erasing", "erasing_mode", "crop_scale", "augment_pipeline"}
        & plain.affecting_results().keys()
    )
    assert Config(color_jitter="none", crop_scale="0.08,1").digest() == plain.digest() != Config(vflip=0.1).digest()


def test_a_sweep_over_a_policy_that_does_not_exist_is_refused_before_it_starts():
    fixed = {"val_fraction": {"value": 0.1}}
    for values, message in ((["none", "randm9"], "no such policy"), (["rand-m5", "augmix", "3a", "none"], "")):
        document = {
            "method": "grid",
            "command": list(START_RUN),
            "parameters": {**fixed, "auto_augment": {"values": values}},
        }
        if message:
            with pytest.raises(UsageError, match=message):
                parse_sweep(document, "x", {})
        else:
            parse_sweep(document, "x", {})
