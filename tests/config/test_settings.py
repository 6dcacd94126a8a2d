"""Settings: one place, every spelling, every refusal."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import settings as config
from harness.config import yaml_io
from harness.config.recipe import make_config, read_recipe, recipe_paths
from harness.config.settings import Config, canonical_name, coerce
from harness.utils.errors import UsageError


@pytest.mark.parametrize("name", recipe_paths())
def test_a_shipped_recipe_survives_the_way_to_a_file_and_back(name, tmp_path):
    first = make_config({}, name)
    path = tmp_path / "config.yaml"
    path.write_text(first.to_yaml())
    second = make_config({"recipe": str(path)})
    assert second.to_dict() == first.to_dict()
    assert second.digest() == first.digest()


def test_an_option_wins_over_the_recipe_and_the_recipe_over_the_default(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("lr_max: 0.3\nepochs: 7\n")
    made = make_config({"recipe": str(path), "epochs": "9"})
    assert (made.lr_max, made.epochs, made.momentum) == (0.3, 9, Config().momentum)


@pytest.mark.parametrize("word", ["LRMAX", "lr_max", "lr-max", "Lr_Max", "LRmax"])
def test_any_spelling_of_a_setting_is_that_setting(word):
    assert canonical_name(word) == "lr_max"


def test_an_unknown_setting_names_the_nearest_one():
    with pytest.raises(UsageError, match=r"'epocs'.*did you mean 'epochs'"):
        make_config({"epocs": 3})


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("lr_max", "1e-3", 0.001),
        ("compile", "True", True),
        ("compile", "false", False),
        ("epochs", 8.0, 8),
        ("model_args", "width=16,logit_scale=0.125", {"width": 16, "logit_scale": 0.125}),
        ("model_args", "{'width': 16, 'deep': {'a': True}}", {"width": 16, "deep": {"a": True}}),
        ("model_args", "{width: 16}", {"width": 16}),
        ("tags", "a, b", ("a", "b")),
        ("tags", "['a', 'b']", ("a", "b")),
        ("momentum_min", "None", None),
        ("momentum_min", 0.85, 0.85),
        ("seed", str(2**62), 2**62),
    ],
)
def test_a_value_arrives_as_it_was_meant(name, word, value):
    got = coerce(name, word)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("values", "says"),
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
        ({"schedule": "onecycle"}, "did you mean 'one_cycle'"),
        ({"lr_min": 0.5, "lr_max": 0.1}, "need lr_min <= lr_max, got lr_min=0.5, lr_max=0.1"),
        ({"peak_epoch": 30}, "peak_epoch <= epochs"),
        ({"schedule": "plateau"}, "val-fraction"),
        ({"early_stop": 3}, "val-fraction"),
        ({"select": "best"}, "val-fraction"),
        ({"momentum": 0}, "Nesterov"),
        ({"grad_accumulation": 513}, "empty"),
        ({"model_args": "width"}, "mapping"),
        ({"model_args": {"a": math.nan}}, "finite"),
        ({"name": "a\x1b[31m"}, "control characters"),
        ({"project": None}, "a word"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(values, says):
    with pytest.raises(UsageError, match=says.replace("(", r"\(")):
        Config(**values)


def test_the_digest_changes_with_what_the_numbers_depend_on_and_with_nothing_else():
    plain = Config()
    assert plain.digest() == Config(project="other", output="elsewhere", wandb="offline", name="x").digest()
    assert plain.digest() != Config(seed=1).digest()
    assert plain.digest() != Config(lr_max=0.03).digest()


def test_every_setting_has_help_and_its_default_passes_its_own_check():
    for name, setting in config.setting_fields().items():
        assert len(setting.metadata["help"]) > 15, name
        assert setting.metadata["help"].endswith("."), name
    Config()


def test_a_recipe_file_may_start_from_a_shipped_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: digits\nseed: 3\n")
    made, digits = make_config({"recipe": str(path)}), make_config({}, "digits")
    assert made.replace(seed=0, recipe="digits") == digits
    path.write_text("recipe: digitz\nseed: 3\n")
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        make_config({"recipe": str(path)})


def test_a_recipe_compressed_to_fewer_epochs_keeps_its_shape():
    assert make_config({"epochs": 6}).peak_epoch == 5 * 6 / 24
    assert make_config({"epochs": "12", "peak_epoch": 5}).peak_epoch == 5


def test_an_unknown_recipe_names_the_nearest_one():
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        read_recipe("digit")


def test_a_recipe_with_one_setting_in_two_spellings_is_refused(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text("lr_max: 0.1\nLRMAX: 0.2\n")
    with pytest.raises(UsageError, match="given twice"):
        read_recipe(str(path))


WORDS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20),
)


@given(st.dictionaries(st.text("abcdefgh_é", min_size=1), st.one_of(WORDS, st.lists(WORDS, max_size=3)), max_size=5))
def test_what_is_dumped_is_read_back_equal(values):
    assert yaml_io.parse_yaml(yaml_io.dump_yaml(values)) == values or values == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: !!python/object/apply:os.system ['true']", "tag"),
        ("a: !mine 3", "tag"),
        ("a: &x 1\nb: *x", "aliases"),
        ("a: 1\na: 2", "given twice"),
        ("a: [", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("- 1", "one mapping"),
        ("", "one mapping"),
        ("a: " + "[" * 40 + "]" * 40, "deeper"),
        ("a: " + "[" * 5000, "deeper|not valid"),
        ("a:\n\t- 1", "not valid YAML"),
        ("a: \x00", "not valid YAML|control"),
    ],
)
def test_hostile_or_broken_yaml_is_refused_in_one_line(text, says, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        yaml_io.read_yaml(path)
    assert "\n" not in str(caught.value)
    assert "x.yaml" in str(caught.value)


def test_yaml_numbers_and_words_are_what_a_person_means():
    read = yaml_io.parse_yaml("a: 1e-3\nb: 010\nc: no\nd: 1:30\ne: 1.0\nf: -.inf\ng: null\nh: true")
    assert read == {"a": 0.001, "b": 10, "c": "no", "d": "1:30", "e": 1.0, "f": -math.inf, "g": None, "h": True}


def test_a_settings_file_that_is_too_large_or_not_text_is_refused(tmp_path):
    large, binary = tmp_path / "large.yaml", tmp_path / "binary.yaml"
    large.write_bytes(b"#" * 1_000_001)
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="1,000,001 bytes"):
        yaml_io.read_yaml(large)
    with pytest.raises(UsageError, match="UTF-8"):
        yaml_io.read_yaml(binary)


@pytest.mark.parametrize(
    ("words", "value", "rest"),
    [
        (["--tta", "run"], "true", "run"),
        (["--tta=False", "run"], "False", "run"),
        (["--tta", "no", "run"], "no", "run"),
        (["run", "--TTA"], "true", "run"),
        (["--no-tta", "run"], "false", "run"),
    ],
)
def test_a_boolean_option_stands_alone_or_takes_a_value_and_never_swallows_a_path(words, value, rest):
    import click

    from harness.cli.options import CONTEXT, SettingsCommand, setting_options

    @click.command(cls=SettingsCommand, context_settings=CONTEXT)
    @click.argument("path")
    @setting_options
    def told(settings, path):
        return settings, path

    assert told.main(words, standalone_mode=False) == ({"tta": value}, rest)
