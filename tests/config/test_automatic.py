"""The rules that choose settings from the data: pure functions of facts."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest

from harness.config.automatic import LARGE_MODEL, RULES, SMALL_MODEL, DataFacts, choose_settings, with_choices
from harness.config.class_names import why_not_mirrored
from harness.config.recipe import make_config, read_recipe
from harness.config.settings import AUTO, Config, setting_fields
from harness.data.registry import load_dataset
from harness.reporting.html.facts import chosen_settings
from harness.tracking.chosen_settings import write_choices
from harness.utils.errors import DataError, UsageError

GIB = 2**30


def facts(images=640, side=32, classes=("cat", "dog"), data="folder", memory=64 * GIB, why="no network", **more):
    values = {"is_uniform": True, **more}
    return DataFacts(
        data=data, images=images, classes=tuple(classes), side=side, memory=memory,
        why_no_weights=lambda name: why, is_ours=lambda name: name in ("custom_resnet", "resnet18_cifar"), **values,
    )  # fmt: skip


def chosen(known=None, **options):
    config = make_config({"recipe": "auto", **options})
    choices = choose_settings(config, known or facts())
    return with_choices(config, choices), choices


def test_every_automatic_setting_of_the_recipe_gets_a_plain_value_and_a_reason():
    automatic = {name for name, value in read_recipe("auto").items() if value == AUTO and name != "recipe"}
    config, choices = chosen()
    assert not config.undecided and automatic <= choices.keys()
    assert all(choice.reason and choice.value != AUTO for choice in choices.values())
    assert Config(**config.to_dict()) == config


def test_there_is_a_rule_for_every_setting_that_may_be_automatic():
    assert {name for name, setting in setting_fields().items() if setting.metadata["from_data"]} == RULES.keys()


@pytest.mark.parametrize("images", [2, 3, 7, 8, 20, 48, 159, 160, 640, 4000, 16_000, 45_000, 1_200_000])
def test_the_batch_is_a_power_of_two_with_twenty_updates_an_epoch_where_eight_images_allow_it(images):
    config, _ = chosen(facts(images))
    assert config.batch_size & (config.batch_size - 1) == 0 and 2 <= config.batch_size <= max(images, 2)
    assert config.batch_size <= 512 and (images >= 8) == (config.batch_size >= 8)
    if images >= 160:
        assert images // config.batch_size >= 20


@pytest.mark.parametrize("images", [20, 160, 640, 4000, 16_000, 45_000])
def test_no_set_is_trained_for_few_updates(images):
    config, _ = chosen(facts(images))
    updates = config.epochs * (images // config.batch_size)
    assert updates >= min(1000, 100 * (images // config.batch_size))
    assert 0 < config.peak_epoch < config.epochs


def test_less_memory_makes_the_batch_smaller_and_says_so():
    small, choices = chosen(facts(4000, side=256, memory=1 * GIB))
    large, _ = chosen(facts(4000, side=256, memory=64 * GIB))
    assert 2 <= small.batch_size < large.batch_size and "1 GiB of memory" in choices["batch_size"].reason


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 64),
        ("epochs", 3),
        ("lr_max", 0.01),
        ("flip", False),
        ("optimizer", "adamw"),
        ("model", "resnet18"),
    ],
)
def test_what_is_given_wins_and_is_not_chosen(name, value):
    config, choices = chosen(**{name: value})
    assert getattr(config, name) == value and name not in choices


def test_a_given_batch_size_and_optimizer_decide_the_learning_rate():
    rates = [chosen(batch_size=size)[0].lr_max for size in (8, 32, 128, 512)]
    assert rates == sorted(set(rates))
    assert chosen(optimizer="adamw")[0].lr_max < chosen()[0].lr_max / 5


def test_small_images_get_the_package_network_and_large_ones_a_small_timm_model():
    assert chosen(facts(side=28))[0].model == SMALL_MODEL
    large, choices = chosen(facts(side=300))
    assert large.model == LARGE_MODEL and not large.pretrained and "no network" in choices["pretrained"].reason
    assert chosen(facts(side=300, why=""))[0].pretrained
    assert chosen(pretrained=True)[0].model == LARGE_MODEL


def test_pretrained_weights_get_a_lower_rate_and_fewer_epochs():
    scratch, tuned = (chosen(facts(side=300, why=why))[0] for why in ("no network", ""))
    assert tuned.lr_max < scratch.lr_max and tuned.epochs < scratch.epochs and tuned.cutout == 0


@pytest.mark.parametrize("side", [1, 8, 16, 28, 32, 40, 64, 65, 96, 224, 4000])
def test_sizes_of_the_augmentation_fit_the_input(side):
    config, _ = chosen(facts(side=side))
    size = config.image_size
    assert 16 <= size <= 224 and config.cutout < size / 2 and config.crop_padding < size / 2


@pytest.mark.parametrize(
    ("data", "classes", "is_mirrored"),
    [
        ("folder", ["cat", "dog"], True),
        ("folder", ["0", "1", "9"], False),
        ("folder", ["10", "11"], False),
        ("folder", ["a", "b"], False),
        ("folder", [f"digit {number}" for number in range(10)], False),
        ("folder", ["digit0", "Digit-1", "number_12"], False),
        ("folder", ["letter a", "letter_B"], False),
        ("folder", ["capital letter A", "a_lower", "upper case B"], False),
        ("folder", ["digit three", "character 4"], False),
        ("folder", ["class 0", "class 1"], True),
        ("folder", ["letter a", "envelope"], True),
        ("folder", ["chart", "charm"], True),
        ("folder", ["type a", "type b"], True),
        ("folder", ["zero", "one", "two"], False),
        ("folder", ["turn_left", "turn_right", "stop"], False),
        ("folder", ["leftovers", "copyright"], True),
        ("folder", ["a cat", "b"], True),
        ("digits", ["0", "1"], False),
        ("torch/mnist", ["0 - zero", "1 - one"], False),
        ("torch/fashion_mnist", ["shirt", "bag"], True),
        ("torch/svhn", ["x", "y"], False),
    ],
)
def test_characters_and_sides_are_never_mirrored(data, classes, is_mirrored):
    assert (why_not_mirrored(data, classes) == "") == is_mirrored
    config, choices = chosen(facts(classes=classes, data=data))
    assert config.flip == is_mirrored and "--flip" in choices["flip"].reason


def test_images_that_are_mirrored_in_turns_are_mirrored():
    assert chosen(facts(classes=["0", "1"]), alternating_flip=True)[0].flip


@pytest.mark.parametrize(
    "options", [{"lr_min_ratio": 0.1}, {"lr_min": 0.001}, {"lr_max": "find"}, {"schedule": "cosine"}]
)
def test_rates_that_are_given_in_part_fit_each_other(options):
    config, _ = chosen(**options)
    if config.needs_lr_find:
        assert config.lr_min == config.lr_max == "find"
    else:
        assert 0 < config.lr_min < config.lr_max
        assert "lr_min_ratio" not in options or math.isclose(config.lr_min, 0.1 * config.lr_max)


@pytest.mark.parametrize(("imbalance", "smoothing"), [(1.0, 0.1), (9.99, 0.1), (10.0, 0.0), (400.0, 0.0)])
def test_labels_of_unbalanced_data_are_not_smoothed(imbalance, smoothing):
    config, choices = chosen(facts(imbalance=imbalance))
    assert config.label_smoothing == smoothing and ("rare classes" in choices["label_smoothing"].reason) == (
        not smoothing
    )
    assert chosen(facts(imbalance=imbalance), label_smoothing=0.2)[0].label_smoothing == 0.2


@pytest.mark.parametrize(
    ("known", "options", "reason"),
    [
        ({}, {}, ""),
        ({"images": 5000}, {"in_chans": 1}, ""),
        ({"images": 100, "side": 64}, {"mixup": 0.2}, ""),
        ({"images": 5001}, {}, "up to 5,000 training images"),
        ({"side": 65}, {}, "up to 64 pixels, not at 96"),
        ({}, {"image_size": 128}, "up to 64 pixels, not at 128"),
        ({"classes": "0123456789"}, {}, "one character into another"),
        ({"data": "torch/mnist"}, {}, "one character into another"),
        ({}, {"init": "weights.pth"}, "trained weights need less"),
        ({"images": 800}, {"epochs": 40}, ""),
        ({"images": 4000}, {"epochs": 39}, "fewer than 40 epochs"),
        ({"images": 72}, {}, ""),
        ({"images": 71}, {}, "fewer than 1,000 updates"),
        ({}, {"batch_size": 256, "epochs": 499}, "fewer than 1,000 updates"),
        ({"classes": ["Red_apple", "leaf"]}, {}, ""),
        ({"classes": ["RedApple", "GreenApple"]}, {}, "class names contain green and red"),
        ({"classes": ["Red_apple", "green-apple", "pear"]}, {}, "class names contain green and red"),
        ({}, {"in_chans": 4}, "images of 4 channels"),
        ({}, {"loader": "resident"}, "whole batches"),
        ({}, {"augment": "albumentations"}, "augment=albumentations"),
        ({}, {"augment": "none"}, "augment=none"),
    ],
)
def test_few_small_images_get_randaugment_where_it_is_possible(known, options, reason):
    known = facts(**known)
    config, choices = chosen(known, **options)
    assert config.auto_augment == ("none" if reason else "rand-m5-mstd0.5")
    assert (reason or "--auto-augment none") in choices["auto_augment"].reason
    assert chosen(known, auto_augment="none", **options)[0].auto_augment == "none"


@pytest.mark.parametrize(
    ("known", "options", "policy"),
    [
        ({"images": 20_000, "side": 300}, {"init": "weights.pth"}, "rand-m5-mstd0.5"),
        ({"images": 20}, {"init": "weights.pth", "epochs": 2}, "rand-m5-mstd0.5"),
        ({"classes": "0123456789"}, {"init": "weights.pth"}, "none"),
        ({}, {"init": "weights.pth", "in_chans": 4}, "none"),
        ({}, {"init": "weights.pth", "augment": "albumentations"}, "none"),
        ({}, {"init": "weights.pth", "loader": "resident"}, "none"),
        ({}, {"init": "weights.pth", "freeze_epochs": 0}, "rand-m5-mstd0.5"),
        ({}, {"init": "weights.pth", "freeze_epochs": 0, "layer_decay": 1}, "none"),
        ({}, {"init": "weights.pth", "loss": "jsd", "aug_splits": 3}, "rand-m5-mstd0.5"),
        ({"images": 20_000}, {"pretrained": False}, "none"),
    ],
)
def test_fine_tuning_has_randaugment_where_it_is_possible(known, options, policy):
    config, choices = chosen(facts(**known), recipe="finetune", **options)
    assert config.auto_augment == policy and "auto_augment" in choices


def test_views_that_only_the_chosen_policy_makes_differ_are_allowed_and_none_are_refused():
    views = {"loss": "jsd", "aug_splits": 3, "cutout": 0}
    assert chosen(**views)[0].auto_augment == "rand-m5-mstd0.5"
    with pytest.raises(UsageError, match="nothing differs between the views"):
        chosen(facts(10_000), **views)


@pytest.mark.parametrize(
    ("options", "is_by_length"),
    [
        ({"epochs": 39}, True),
        ({"batch_size": 320, "epochs": 50}, True),
        ({"epochs": 100}, False),
        ({"init": "w.pth"}, False),
    ],
)
def test_the_page_says_for_which_length_a_policy_was_left_out(options, is_by_length, tmp_path):
    config, choices = chosen(facts(classes=("cat", "dog")), **options)
    write_choices(tmp_path, choices)
    run = SimpleNamespace(path=tmp_path, config={**config.to_dict(), "epochs": 200, "extended": f"9:{config.epochs}"})
    reasons = {setting.name: setting.reason for setting in chosen_settings(run)}
    note = f"chosen for {config.epochs} epochs, and the run has 200 now"
    assert (note in reasons["auto_augment"]) == is_by_length and note in reasons["peak_epoch"]


def test_a_policy_that_is_given_stays():
    config, choices = chosen(auto_augment="3a")
    assert config.auto_augment == "3a" and "auto_augment" not in choices


def test_without_augmentation_no_strength_is_chosen():
    pipeline = {"transform": {"__class_fullname__": "HorizontalFlip"}}
    for options in ({"augment": "none"}, {"augment": "albumentations", "augment_pipeline": pipeline}):
        config, choices = chosen(**options)
        assert (config.flip, config.crop_padding, config.cutout, config.auto_augment) == (False, 0, 0, "none")
        reason = "augment=none" if len(options) == 1 else "takes its place"
        assert all(reason in choices[name].reason for name in ("flip", "crop_padding", "cutout"))


def test_arguments_of_the_model_keep_what_was_given():
    config, choices = chosen(model_args={"width": 16})
    assert config.model_args == {"width": 16, "head_init_scale": 0.125} and choices["model_args"].requested == {
        "width": 16
    }
    assert chosen(model_args={"logit_scale": 0.125})[0].model_args == {"logit_scale": 0.125}


def test_the_choice_depends_on_the_facts_alone():
    known = facts(1234, side=48, classes=("a1", "b2", "c3"))
    assert chosen(known)[1] == chosen(dataclasses.replace(known))[1]


def test_automatic_settings_name_the_run_and_have_no_number_before_the_data_are_read():
    config = make_config({"data": "digits"})
    assert (
        config.recipe == "auto"
        and config.to_dict()["batch_size"] == AUTO
        and config.digest() == make_config({"data": "digits"}).digest()
    )
    assert config.replace(batch_size=512).digest() != config.digest()  # not equal to the default that it holds
    assert config != config.replace(batch_size=512) and config.replace(seed=1).undecided == config.undecided
    with pytest.raises(UsageError, match="chosen from the data when a run begins"):
        config.rates()


@pytest.mark.parametrize("name", ["seed", "momentum", "schedule"])
def test_settings_that_the_data_cannot_decide_refuse_auto(name):
    with pytest.raises(UsageError, match=name):
        make_config({name: AUTO})
    with pytest.raises(UsageError, match="or auto"):
        make_config({"epochs": "many"})


def test_any_recipe_may_leave_a_setting_to_the_data():
    config = make_config({"recipe": "custom-resnet", "batch_size": "Auto", "epochs": "auto"})
    assert config.undecided == {"batch_size", "epochs"}
    assert not make_config({"data": "digits", "recipe": "digits"}).undecided


@pytest.mark.parametrize(
    ("names", "data"),
    [
        (["cat/1.png", "dog/2.png"], "folder"),
        (["cifar-10-batches-py/x"], "cifar10"),
        (["cifar-10-python.tar.gz"], "cifar10"),
    ],
)
def test_a_folder_of_images_alone_names_the_data(tmp_path, names, data):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    config = make_config({"data_dir": str(tmp_path)})
    assert (config.data, config.recipe) == (data, "auto" if data == "folder" else "custom-resnet")
    for recipe in ("speedrun", "digits"):
        assert make_config({"data_dir": str(tmp_path), "recipe": recipe}).data == (
            data if data == "folder" or recipe == "speedrun" else "digits"
        )


@pytest.mark.parametrize("is_there", [True, False])
def test_a_missing_or_empty_folder_is_no_download_of_cifar_unless_that_is_named(tmp_path, is_there):
    folder = tmp_path / "misspelt"
    if is_there:
        folder.mkdir()
    config = make_config({"data_dir": str(folder)})
    assert config.data == make_config({"data_dir": str(folder), "recipe": "finetune"}).data == "folder"
    with pytest.raises(DataError, match="misspelt"):
        load_dataset(config)
    assert make_config({"data_dir": str(folder), "data": "cifar10"}).data == "cifar10"
    assert make_config({"data_dir": str(folder), "recipe": "custom-resnet"}).data == "cifar10"


def test_no_combination_of_given_settings_leaves_the_rules_without_an_answer():
    options = {
        "epochs": 1,
        "batch_size": 512,
        "lr_max": 1e-5,
        "crop": "none",
        "mixup": 0.2,
        "model": "vit_tiny_patch16_224",
    }
    for count in range(len(options) + 1):
        for names in itertools.combinations(options, count):
            for side, images in ((8, 4), (64, 100), (640, 300_000)):
                assert not chosen(facts(images, side=side), **{name: options[name] for name in names})[0].undecided


@pytest.mark.parametrize("side", [16, 32, 64, 65, 128, 224])
def test_the_size_of_given_weights_decides_the_augmentation_as_the_same_size_given_does(side):
    """Large images and weights of a small input: the input is small."""
    known = {"model": "resnet18", "init": "weights.safetensors"}
    of_weights, choices = chosen(facts(side=300, weights_side=side), **known)
    given, _ = chosen(facts(side=300), image_size=side, **known)
    assert of_weights == given and choices["image_size"].value == side
    assert (of_weights.crop_padding > 0) == (side <= 64)


def test_a_model_with_a_small_input_of_its_own_is_not_augmented_as_one_of_224_pixels():
    config, choices = chosen(facts(side=300, input_side=lambda name: 48), model="resnet18")
    assert (config.image_size, config.crop_padding, config.cutout) == (0, 6, 12)
    assert "48 pixels" in choices["image_size"].reason


def test_weight_decay_is_that_of_the_optimizers_kind():
    """Decoupled from the gradient it is multiplied by the LR, so that it is chosen a hundred times larger."""
    import timm.optim

    for name in ("sgd", "adam", "rmsprop", "adamw", "nadamw", "lion", "lamb"):
        decay = chosen(optimizer=name)[0].weight_decay
        assert decay == (0.05 if name in ("adamw", "nadamw", "lion", "lamb") else 5e-4), name
        assert timm.optim.get_optimizer_info(name).name == name


def test_images_that_are_larger_than_the_network_is_made_for_are_said_to_be():
    large, small = (chosen(facts(side=side), model="custom_resnet")[1]["image_size"] for side in (300, 32))
    assert "images of 300 pixels, more than custom_resnet is made for; --model" in large.reason
    assert "more than" not in small.reason
