"""`harness models`: the names that `--model` takes."""

import timm
import torch

from harness.models.factory import parameter_count_of
from tests.support.commands import command


def test_the_names_are_harness_s_own_and_then_those_of_timm(tmp_path):
    done = command("models", "resnet18", cwd=tmp_path, check=0)
    own, *others = done.stdout.splitlines()
    assert own == "* resnet18_cifar"
    assert [line.strip() for line in others] == [name for name in timm.list_models("*resnet18*") if name != own[2:]]
    assert f"{len(others) + 1} models; * harness's own" in done.stderr


def test_a_model_is_built_to_count_its_parameters(tmp_path):
    done = command("models", "custom", "--count", cwd=tmp_path, check=0)
    assert done.stdout.splitlines() == ["* custom_resnet  6,573,130"]


def test_a_model_is_counted_as_it_is_built():
    built = timm.create_model("test_resnet")
    assert parameter_count_of("test_resnet") == sum(each.numel() for each in built.parameters())
    assert torch.zeros(1).device.type == "cpu"


def test_an_unknown_name_is_answered_with_the_nearest_one(tmp_path):
    done = command("models", "custom_resnets", cwd=tmp_path, check=0)
    assert (
        done.stdout == "" and "no model's name contains 'custom_resnets' (did you mean 'custom_resnet'?)" in done.stderr
    )
