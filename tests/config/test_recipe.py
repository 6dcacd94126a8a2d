"""Recipe files, and the precedence of options, recipes and defaults."""

import pytest

from harness.config.recipe import make_config, read_recipe, recipe_paths
from harness.config.settings import Config
from harness.utils.errors import UsageError


@pytest.mark.parametrize("name", recipe_paths())
def test_a_shipped_recipe_is_unchanged_after_writing_and_reading_its_config(name, tmp_path):
    first = make_config({}, name)
    path = tmp_path / "config.yaml"
    path.write_text(first.to_yaml())
    second = make_config({"recipe": str(path)})
    assert second.to_dict() == first.to_dict()
    assert second.digest() == first.digest()


def test_an_option_takes_precedence_over_the_recipe_and_the_recipe_over_the_default(tmp_path):
    path = tmp_path / "custom.yaml"
    path.write_text("lr_max: 0.3\nepochs: 7\n")
    config = make_config({"recipe": str(path), "epochs": "9"})
    assert (config.lr_max, config.epochs, config.momentum) == (0.3, 9, Config().momentum)


def test_an_unknown_setting_names_the_nearest_one():
    with pytest.raises(UsageError, match=r"'epocs'.*did you mean 'epochs'"):
        make_config({"epocs": 3})


def test_a_recipe_file_may_start_from_a_shipped_one(tmp_path):
    path = tmp_path / "custom.yaml"
    path.write_text("recipe: digits\nseed: 3\n")
    config, digits = make_config({"recipe": str(path)}), make_config({}, "digits")
    assert config.replace(seed=0, recipe="digits") == digits
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


def test_arguments_of_the_model_are_added_to_those_of_the_recipe():
    recipe = make_config({}, "dawnbench").model_args
    config = make_config({"model_args": "width=8,logit_scale=1"}, "dawnbench")
    assert config.model_args == {**recipe, "width": 8, "logit_scale": 1}


def test_another_model_takes_neither_arguments_nor_rates_of_the_recipes_own_model():
    recipe, default = make_config({}, "custom-resnet"), Config()
    other = make_config({"model": "resnet18_cifar"}, "custom-resnet")
    assert recipe.model_args and recipe.head_lr_scale != 1
    assert (other.model_args, other.head_lr_scale) == ({}, 1)
    assert (other.lr_min, other.lr_max) == (default.lr_min, default.lr_max) != (recipe.lr_min, recipe.lr_max)
    assert other.epochs == recipe.epochs
    assert make_config({"model": "resnet18_cifar", "lr_max": 0.2}, "custom-resnet").lr_max == 0.2
    assert make_config({"model": "custom_resnet"}, "custom-resnet").model_args == recipe.model_args
