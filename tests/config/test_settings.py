"""Settings: conversion, every spelling of a name, and refused values."""

import math

import pytest

from harness.config import settings
from harness.config.recipe import make_config
from harness.config.settings import Config, canonical_name, coerce
from harness.utils.errors import UsageError


@pytest.mark.parametrize("spelling", ["LRMAX", "lr_max", "lr-max", "Lr_Max", "LRmax", "lr"])
def test_a_setting_is_understood_in_any_spelling(spelling):
    assert canonical_name(spelling) == "lr_max"


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("lr_max", "1e-3", 0.001),
        ("compile", "True", True),
        ("compile", "false", False),
        ("epochs", 8.0, 8),
        ("model_args", "width=16,logit_scale=0.125", {"width": 16, "logit_scale": 0.125}),
        ("optimizer_args", "eps=1e-6,betas=[0.9,0.98]", {"eps": 1e-6, "betas": [0.9, 0.98]}),
        ("model_args", "a={'b': [1, 2], 'c': 3},d=[[4, 5], [6]]", {"a": {"b": [1, 2], "c": 3}, "d": [[4, 5], [6]]}),
        ("model_args", "a=1],b=2", {"a": "1]", "b": 2}),
        ("model_args", "{'width': 16, 'deep': {'a': True}}", {"width": 16, "deep": {"a": True}}),
        ("model_args", "{width: 16}", {"width": 16}),
        ("tags", "a, b", ("a", "b")),
        ("tags", "['a', 'b']", ("a", "b")),
        ("momentum_min", "None", None),
        ("momentum_min", 0.85, 0.85),
        ("seed", str(2**62), 2**62),
    ],
)
def test_a_value_is_converted_to_the_type_of_its_setting(name, word, value):
    result = coerce(name, word)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr_max": math.nan}, "finite"),
        ({"lr_max": "inf"}, "finite"),
        ({"lr_max": 0}, "lr_max > 0"),
        ({"lr_min": -1}, "lr_min >= 0"),
        ({"lr_max": True}, "a number"),
        ({"epochs": 2.5}, "whole number"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"momentum": 1.5}, "momentum < 1"),
        ({"label_smoothing": 2}, "label_smoothing < 1"),
        ({"compile": "maybe"}, "True or False"),
        ({"schedule": "one cycle"}, "did you mean 'one_cycle'"),
        ({"tracker": "tensor board"}, "did you mean 'tensorboard'"),
        ({"lr_min": 0.5, "lr_max": 0.1}, "need lr_min <= lr_max, got lr_min=0.5, lr_max=0.1"),
        ({"peak_epoch": 30}, "peak_epoch <= epochs"),
        ({"schedule": "plateau"}, "val-fraction"),
        ({"early_stop": 3}, "val-fraction"),
        ({"select": "best"}, "val-fraction"),
        ({"momentum": 0}, "Nesterov"),
        ({"momentum": 0.8, "momentum_min": 0.9}, "need momentum_min <= momentum, got 0.9 > 0.8"),
        ({"test": False}, "nothing to evaluate on; set --val-fraction 0.1"),
        ({"test": False, "val_fraction": 0.1, "select": "best-on-test"}, "which test=False leaves unread"),
        ({"grad_accumulation": 513}, "empty"),
        (
            {"val_fraction": 0.5, "test_fraction": 0.5},
            "val_fraction=0.5 and test_fraction=0.5 leave nothing to train on",
        ),
        ({"model_args": "width"}, "mapping"),
        ({"model_args": {"a": math.nan}}, "finite"),
        ({"name": "a\x1b[31m"}, "control characters"),
        ({"project": None}, "a string"),
    ],
)
def test_an_invalid_value_is_refused_with_what_is_allowed(values, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        Config(**values)


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [("schedule", "onecycle", "one_cycle"), ("tracker", "wandb,tensorbord", "tensorboard")],
)
def test_a_name_that_only_a_plug_in_could_register_is_refused_where_there_is_none(name, value, nearest):
    with pytest.raises(
        UsageError, match=f"{name}=.*or one that a module of --plugin registers .did you mean '{nearest}'"
    ):
        make_config({name: value})
    assert nearest not in str(getattr(make_config({name: value, "plugin": "mine"}), name))


def test_the_digest_changes_only_with_settings_that_affect_the_results():
    plain = Config()
    assert plain.digest() == Config(project="other", output="elsewhere", wandb="offline", name="x").digest()
    assert plain.digest() != Config(seed=1).digest()
    assert plain.digest() != Config(lr_max=0.03).digest()


@pytest.mark.parametrize(
    ("values", "digest"),
    [
        ({"recipe": "digits", "data": "digits", "epochs": 2, "peak_epoch": 1}, "e863c8b9"),
        ({"seed": 3, "cuda_graph": True}, "464fb78d"),
        ({"seed": 3, "cuda_graph": False, "compile": True}, "8acc94a5"),
    ],
)
def test_the_digest_of_settings_that_version_0_1_had_is_the_same(values, digest):
    assert Config(**values).digest() == digest


def test_an_automatic_cuda_graph_has_the_digest_of_none_and_fused_counts_only_where_it_is_set():
    assert Config(cuda_graph="auto").digest() == Config(cuda_graph=False).digest() != Config(cuda_graph=True).digest()
    assert "fused" not in Config().affecting_results() and "fused" in Config().to_dict()
    assert len({Config(fused=value).digest() for value in (None, True, False)}) == 3


def test_every_setting_has_help_and_its_default_passes_its_own_check():
    for name, field in settings.setting_fields().items():
        assert len(field.metadata["help"]) > 15, name
        assert field.metadata["help"].endswith("."), name
    Config()


@pytest.mark.parametrize(
    ("arguments", "value", "path"),
    [
        (["--tta", "run"], "true", "run"),
        (["--tta=False", "run"], "False", "run"),
        (["--tta", "no", "run"], "no", "run"),
        (["run", "--TTA"], "true", "run"),
        (["--no-tta", "run"], "false", "run"),
        (["--tta", "mirror-translate", "run"], "mirror-translate", "run"),
    ],
)
def test_a_boolean_option_stands_alone_or_takes_a_value_and_never_swallows_a_path(arguments, value, path):
    import click

    from harness.cli.commands import CONTEXT, SettingsCommand
    from harness.cli.options import setting_options

    @click.command(cls=SettingsCommand, context_settings=CONTEXT)
    @click.argument("path")
    @setting_options
    def command(settings, path):
        return settings, path

    assert command.main(arguments, standalone_mode=False) == ({"tta": value}, path)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], None),
        (["--cuda-graph"], True),
        (["--cuda_graph=True"], True),
        (["--no-cuda-graph"], False),
        (["--cuda-graph", "auto"], None),
    ],
)
def test_the_option_of_a_setting_that_is_on_off_or_auto_takes_a_value_or_stands_alone(arguments, value):
    import click

    from harness.cli.commands import CONTEXT, SettingsCommand
    from harness.cli.options import setting_options

    @click.command(cls=SettingsCommand, context_settings=CONTEXT)
    @setting_options
    def command(settings):
        return make_config(settings).cuda_graph

    assert command.main(arguments, standalone_mode=False) is value


def test_only_a_setting_that_may_be_none_can_be_auto():
    with pytest.raises(UsageError, match="compile='auto': need True or False"):
        Config(compile="auto")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, "mirror"), (False, "none"), ("True", "mirror"), ("no", "none"), (1, "mirror"), ("mirror-translate",) * 2],
)
def test_tta_was_on_or_off_before_and_such_values_are_still_read(value, expected):
    assert Config(tta=value).tta == expected


def test_alternating_flip_needs_flip():
    with pytest.raises(UsageError, match="--flip True"):
        Config(alternating_flip=True, flip=False)


@pytest.mark.parametrize("word", ["none", "None", "", None])
def test_no_file_is_the_word_for_an_empty_mapping_of_a_file(word):
    assert coerce("augment_pipeline", word) == {}
