"""Names of runs say what was trained on what."""

import pytest

from harness.config.recipe import make_config
from harness.tracking.run_names import default_name, name_without_seed


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({}, "custom-resnet-cifar10-s0-"),
        ({"recipe": "speedrun", "seed": 3}, "speedrun-cifar10-s3-"),
        ({"data": "folder", "data_dir": "pictures/"}, "pictures-s0-"),
        ({"data": "folder", "data_dir": "some where/v1.2"}, "v1.2-s0-"),
        ({"data": "folder", "data_dir": "x/cifar10-jpg.tar.xz"}, "cifar10-jpg-s0-"),
        ({"model": "resnet18", "data": "folder", "data_dir": "pets"}, "resnet18-pets-s0-"),
        ({"recipe": "digits", "model": "hf-hub:timm/resnet18.a1_in1k"}, "resnet18.a1_in1k-digits-s0-"),
        ({"data": "torch/fashion_mnist"}, "fashion_mnist-s0-"),
    ],
)
def test_a_run_is_named_after_its_recipe_or_another_model_and_its_data(settings, start):
    name = default_name(make_config(settings))
    assert name.startswith(start)
    assert len(name) == len(start) + len(default_name(make_config({}))) - len("custom-resnet-cifar10-s0-")


def test_a_run_whose_recipe_file_is_gone_or_of_another_run_is_named_after_its_model(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: digits\nmodel: resnet18\n")
    config = make_config({"recipe": str(path)})
    assert default_name(config).startswith("mine-digits-s0-")
    path.unlink()
    assert default_name(config).startswith("resnet18-digits-s0-")
    assert default_name(config.replace(recipe="runs/x/config.yaml")).startswith("resnet18-digits-s0-")


def test_long_names_of_models_and_folders_leave_the_digest_whole():
    config = make_config({"model": "resnet18", "data": "folder", "data_dir": "f" * 90})
    for name in (default_name(config), name_without_seed(config)):
        assert len(name) <= 80
    assert default_name(config).endswith(config.digest())
