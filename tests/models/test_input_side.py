"""The size of a model's default input, without building the model."""

import pytest
import timm

from harness.models.names import input_side
from harness.utils.files import write_json


@pytest.mark.parametrize("name", ["resnet18", "test_vit.r160_in1k", "efficientnet_lite0", "custom_resnet"])
def test_the_side_is_that_of_the_configuration_of_the_built_model(name):
    assert input_side(name) == timm.create_model(name).pretrained_cfg["input_size"][-1]


def test_the_side_of_a_folder_is_in_its_configuration_and_a_damaged_one_is_not_known(tmp_path):
    write_json(tmp_path / "config.json", {"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 48, 48]}})
    assert input_side(f"local-dir:{tmp_path}") == 48
    (tmp_path / "config.json").write_text("[")
    assert input_side(f"local-dir:{tmp_path}") == 0


def test_the_side_of_weights_that_do_not_exist_is_not_known():
    assert input_side("resnet18.nonsense") == 0
