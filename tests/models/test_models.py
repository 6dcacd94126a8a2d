"""The networks compute what their documentation says, and a run gets the model that its settings name."""

from __future__ import annotations

import importlib
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn import functional as F

from harness.config.settings import Config
from harness.data.preprocess import Preprocess
from harness.models import factory
from harness.utils import plugins as user_plugins
from harness.utils.errors import DataError, UsageError

ORDERS = ("conv-pool-bn-relu", "conv-bn-relu-pool")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make(classes: int = 10, **settings: Any) -> nn.Module:
    return factory.create_model(Config(**settings), classes)


def small(**arguments: Any) -> nn.Module:
    return make(model_args={"width": 4, **arguments})


def with_random_statistics(model: nn.Module) -> nn.Module:
    """Return the model in evaluation mode with BN weights and statistics unlike those of a new one."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def expected_parameters(width: int, classes: int) -> dict[str, int]:
    def block(channels_in: int, channels_out: int) -> int:
        return 9 * channels_in * channels_out + 2 * channels_out

    w = width
    return {
        "prep": block(3, w),
        "layer1": block(w, 2 * w) + 2 * block(2 * w, 2 * w),
        "layer2": block(2 * w, 4 * w),
        "layer3": block(4 * w, 8 * w) + 2 * block(8 * w, 8 * w),
        "global_pool": 0,
        "fc": 8 * w * classes + classes,
    }


def test_each_stage_has_the_parameters_of_the_assignment() -> None:
    model = make()
    parts = {name: factory.count_parameters(part) for name, part in model.named_children()}
    assert parts == expected_parameters(64, 10)
    assert [parts[name] for name in ("prep", "layer1", "layer2", "layer3", "fc")] == [
        1_856,
        369_408,
        295_424,
        5_901_312,
        5_130,
    ]
    assert factory.count_parameters(model) == 6_573_130


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model_args": {"head_bias": False}}, 6_573_120),
        ({"model_args": {"order": ORDERS[1]}}, 6_573_130),
        ({"model": "resnet18_cifar"}, 11_173_962),
    ],
)
def test_the_variants_have_their_known_number_of_parameters(settings: dict[str, Any], expected: int) -> None:
    assert factory.count_parameters(make(**settings)) == expected


@pytest.mark.parametrize(("width", "classes"), [(1, 2), (16, 10), (24, 100)])
def test_the_number_of_parameters_follows_width_and_classes(width: int, classes: int) -> None:
    assert factory.count_parameters(make(classes, model_args={"width": width})) == sum(
        expected_parameters(width, classes).values()
    )


def test_a_shared_parameter_counts_once() -> None:
    layer = nn.Linear(3, 2)
    assert factory.count_parameters(nn.Sequential(layer, layer)) == 8


def reference_logits(
    state: dict[str, Tensor], images: Tensor, order: str, training: bool = False, padding: str = "constant"
) -> Tensor:
    """Return the logits of the assignment's network, computed from a state dict without a module."""

    def conv(x: Tensor, at: str) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=padding), state[f"{at}.conv.weight"])

    def bn_relu(x: Tensor, at: str) -> Tensor:
        weight, bias, mean, var = (state[f"{at}.bn.{key}"] for key in ("weight", "bias", "running_mean", "running_var"))
        return F.relu(F.batch_norm(x, mean.clone(), var.clone(), weight, bias, training=training))

    def down(x: Tensor, at: str) -> Tensor:
        x = conv(x, at)
        if order == "conv-pool-bn-relu":
            return bn_relu(F.max_pool2d(x, 2), at)
        return F.max_pool2d(bn_relu(x, at), 2)

    def add_residual(x: Tensor, at: str) -> Tensor:
        r1 = bn_relu(conv(x, f"{at}.block1"), f"{at}.block1")
        return x + bn_relu(conv(r1, f"{at}.block2"), f"{at}.block2")

    x = bn_relu(conv(images, "prep"), "prep")
    x = add_residual(down(x, "layer1.down"), "layer1.residual")
    x = down(x, "layer2.down")
    x = add_residual(down(x, "layer3.down"), "layer3.residual")
    return F.max_pool2d(x, 4).flatten(1) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("training", [False, True])
def test_the_network_equals_a_reference_implementation_of_the_assignment(order: str, training: bool) -> None:
    model = with_random_statistics(small(order=order).double())
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    expected = reference_logits(
        {key: value.clone() for key, value in model.state_dict().items()}, images, order, training
    )
    assert torch.allclose(model.train(training)(images), expected, atol=1e-10)


def test_the_two_orders_are_two_networks_over_the_same_weights() -> None:
    one, other = (with_random_statistics(small(order=order)) for order in ORDERS)
    # With a negative BN weight the smallest value is largest after BN, and pooling before BN has dropped it.
    nn.init.constant_(one.layer2.down.bn.weight, -1.0)
    other.load_state_dict(one.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(one(images), other(images), atol=1e-3)


def test_the_convolutions_use_the_requested_padding() -> None:
    model = with_random_statistics(small(padding_mode="reflect").double())
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    state = model.state_dict()
    assert torch.allclose(model(images), reference_logits(state, images, ORDERS[0], padding="reflect"), atol=1e-10)
    assert not torch.allclose(model(images), reference_logits(state, images, ORDERS[0]), atol=1e-3)


def test_the_output_is_logits_and_not_probabilities() -> None:
    model = with_random_statistics(small())
    logits = model(torch.randn(8, 3, 32, 32))
    assert (logits < 0).any() and not torch.allclose(logits.sum(1), torch.ones(8), atol=0.1)
    assert not [module for module in model.modules() if isinstance(module, nn.Softmax | nn.LogSoftmax)]


def test_the_logit_scale_multiplies_the_logits_only() -> None:
    plain, scaled = with_random_statistics(small()), with_random_statistics(small(logit_scale=0.125))
    scaled.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(scaled(images), plain(images) * 0.125)
    features = plain.forward_features(images)
    assert torch.equal(scaled.forward_head(features, pre_logits=True), plain.forward_head(features, pre_logits=True))
    scaled.reset_classifier(0)
    assert torch.equal(scaled(images), plain.forward_head(features, pre_logits=True))


def test_the_heads_pooling_equals_max_pooling_by_four() -> None:
    model = small().eval()
    features = model.forward_features(torch.randn(2, 3, 32, 32))
    assert torch.equal(model.forward_head(features, pre_logits=True), nn.MaxPool2d(4)(features).flatten(1))


def test_a_zero_head_starts_with_the_uniform_loss() -> None:
    model = small(head_init="zero")
    loss = F.cross_entropy(model(torch.randn(16, 3, 32, 32)), torch.arange(16) % 10)
    assert loss.item() == pytest.approx(math.log(10), abs=1e-6)
    model.reset_classifier(3)
    assert not model.fc.weight.any() and not model.fc.bias.any()
    model.init_weights()
    assert not model.fc.weight.any() and model.prep.conv.weight.any()


def test_dropout_acts_before_the_classifier_and_only_in_training() -> None:
    model = small(drop_rate=0.5)
    features = torch.rand(4, 32, 4, 4) + 1
    assert torch.equal(model.eval().forward_head(features, pre_logits=True), features.amax((2, 3)))
    dropped = model.train().forward_head(features, pre_logits=True)
    assert 0.2 < (dropped == 0).float().mean() < 0.8


@pytest.mark.parametrize(
    "arguments",
    [
        {"width": 0},
        {"width": 2.5},
        {"width": True},
        {"order": "bn-conv"},
        {"head_init": "ones"},
        {"padding_mode": "mirror"},
        {"global_pool": ""},
    ],
)
def test_an_argument_that_the_network_refuses_is_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(arguments))):
        make(model_args=arguments)


def test_resnet18_for_small_images_equals_torchvisions_with_its_stem_swapped() -> None:
    ours = with_random_statistics(make(model="resnet18_cifar"))
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(ours(images), theirs.eval()(images), rtol=1e-4, atol=1e-4)


def test_every_convolution_of_resnet18_is_initialised_with_timms_own_scale() -> None:
    ours, reference = make(model="resnet18_cifar"), timm.create_model("resnet18", num_classes=10)
    stem = ours.conv1.weight
    assert stem.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.1)
    for key, value in reference.state_dict().items():
        if value.ndim == 4 and key != "conv1.weight":
            assert ours.state_dict()[key].std() == pytest.approx(float(value.std()), rel=0.05), key


def test_the_model_has_one_output_per_class() -> None:
    assert make(7, model_args={"width": 4})(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_any_model_of_timm_can_be_made_with_its_own_arguments() -> None:
    model = make(5, model="resnet10t", model_args={"drop_rate": 0.25})
    assert model.num_classes == 5 and model.drop_rate == 0.25 and not factory.is_ours(model)


def test_models_of_harness_are_recognised_also_when_compiled() -> None:
    model = small()
    assert factory.is_ours(model) and factory.is_ours(torch.compile(model))
    assert factory.is_ours(make(model="resnet18_cifar", model_args={"channels": [8, 8, 8, 8]}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "custom_resnt"}, "did you mean 'custom_resnet'"),
        ({"model": "resnet18_cifr"}, "did you mean 'resnet18_cifar'"),
        (
            {"model": "efficientnet"},
            r"did you mean 'efficientnet_b0'\?\); \d+ models begin with it: harness models effi",
        ),
        ({"model": "vit"}, r"did you mean 'vit_tiny_\w+'\?\); \d+ models begin with it: harness models vit"),
        ({"model": "resnet"}, "did you mean 'resnet18'"),
        ({"model": "regnet"}, r"'regnet'; \d+ models begin with it"),
        ({"model": "google/vit-base-patch16-224"}, "did you mean 'vit_base_patch16_224'"),
        ({"model": "google/vit-base-patch16-224"}, "timm loads repositories of its own format"),
        ({"model": "timm/resnet18.a1_in1k"}, r"write resnet18.a1_in1k"),
        ({"model": "./exported"}, "write local-dir:./exported"),
        ({"model": "zzzzqqqq"}, "there is no model 'zzzzqqqq'; see harness models"),
        ({"model": "resnet18.a1_in2k"}, "did you mean 'resnet18.a1_in1k'"),
        ({"model": "someone/resnet"}, "hf-hub:someone/resnet"),
        ({"model": "C:\\model"}, "looks like a path"),
        ({"model": "hf-hub:"}, "looks like a path"),
        ({"model": "local-dir:nowhere"}, "config.json"),
        ({"model_args": {"widht": 8}}, "no argument 'widht' .did you mean 'width'"),
        ({"model": "resnet18_cifar", "model_args": {"chanels": [8]}}, "did you mean 'channels'"),
        ({"model": "resnet10t", "model_args": {"widht": 8}}, "no argument 'widht'"),
        ({"model_args": {"num_classes": 3}}, "num_classes; set --classes"),
        ({"model_args": {"in_chans": 1}}, "in_chans; set --in-chans"),
        ({"model_args": {"features_only": True}}, "features_only"),
        ({"pretrained": True}, "no pretrained weights; set --init RUN_OR_FILE .* --pretrained False"),
        ({"model": "resnet18_cifar", "pretrained": True}, "no pretrained weights"),
        ({"plugin": ["no_such_module_here"]}, "no_such_module_here"),
        ({"plugin": ["my_model.py"]}, "must be a module's name"),
    ],
)
def test_a_model_that_can_not_be_created_is_refused_with_the_remedy(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**settings)


def test_a_saved_folder_is_a_model_to_start_from(tmp_path: Path) -> None:
    model = small().eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = make(model=f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))


def test_weights_that_can_not_be_loaded_are_a_data_error(tmp_path: Path) -> None:
    save_for_hf(small(), tmp_path, safe_serialization=True)
    for file in [*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.bin")]:
        file.unlink()
    with pytest.raises(DataError, match="--pretrained False"):
        make(model=f"local-dir:{tmp_path}", pretrained=True)


PLUGIN = """
from timm.models import register_model
from torch import nn

from .parts import body


class Tiny(nn.Module):
    def __init__(self, num_classes=10, channels=4):
        super().__init__()
        self.num_classes = num_classes
        self.body = body(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


@register_model
def tiny_from_a_plugin(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
    return Tiny(**kwargs)


@register_model
def closed_from_a_plugin(pretrained=False, num_classes=10):
    return Tiny(num_classes)
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder of plug-ins as the current directory; what they change in Python and timm is undone."""
    from timm.models import _registry

    package = tmp_path / "plugin_for_a_test"
    package.mkdir()
    (package / "__init__.py").write_text(PLUGIN)
    (package / "parts.py").write_text(
        "from torch import nn\n\n\ndef body(channels):\n    return nn.Conv2d(3, channels, 3)\n"
    )
    (tmp_path / "broken_plugin_for_a_test.py").write_text("import module_that_is_not_there\n")
    (tmp_path / "crooked_plugin_for_a_test.py").write_text("def (\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(user_plugins, "_named", set())
    names = ("plugin_for_a_test", "broken_plugin_for_a_test", "crooked_plugin_for_a_test")
    user_plugins.allow_plugins(names)
    loaded = set(sys.modules)
    registered = set(_registry._model_entrypoints)
    yield tmp_path
    for name in set(sys.modules) - loaded:
        if name.split(".")[0].endswith("plugin_for_a_test"):
            del sys.modules[name]
    for name in set(_registry._model_entrypoints) - registered:
        del _registry._model_entrypoints[name]
        _registry._module_to_models.pop(_registry._model_to_module.pop(name), None)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("plugins")
def test_a_plugins_model_trains_a_step() -> None:
    model = make(3, model="tiny_from_a_plugin", plugin=["plugin_for_a_test"], model_args={"channels": 6})
    assert model.head.weight.shape == (3, 6) and not factory.is_ours(model)
    images, labels = torch.randn(8, 3, 12, 12), torch.arange(8) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = F.cross_entropy(model(images), labels)
    before.backward()
    optimizer.step()
    assert F.cross_entropy(model(images), labels) < before
    assert ("tiny_from_a_plugin", "plugin") in factory.model_names("plugin")


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"plugin": ["broken_plugin_for_a_test"]}, "broken_plugin_for_a_test.*module_that_is_not_there"),
        ({"plugin": ["crooked_plugin_for_a_test"]}, "crooked_plugin_for_a_test.*SyntaxError"),
        ({"plugin": ["plugin_for_a_test"], "model": "tiny_from_plugin"}, "did you mean 'tiny_from_a_plugin'"),
        ({"plugin": ["plugin_for_a_test"], "model": "closed_from_a_plugin"}, r"add \*\*kwargs"),
        ({"plugin": ["plugin_for_a_test"], "model": "tiny_from_a_plugin", "pretrained": True}, "no pretrained weights"),
        ({"plugin": ["plugin_for_a_test"], "model": "tiny_from_a_plugin", "in_chans": 1}, "leave --in-chans out"),
    ],
)
def test_an_error_in_a_plugin_is_reported(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**settings)


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (["lost_plugin_for_a_test"], "there is no plugin 'lost_.*start in the folder that has lost_.*pip install -e"),
        (["plugin_for_a_test.lost"], r"there is no plugin 'plugin_for_a_test\.lost'"),
        (["broken_plugin_for_a_test"], "No module named 'module_that_is_not_there'; install it"),
    ],
)
def test_a_plugin_that_is_not_there_says_where_it_was_looked_for(names: list[str], remedy: str) -> None:
    user_plugins.allow_plugins(names)
    with pytest.raises(UsageError, match=remedy) as error:
        factory.model_names("x", names)
    assert ("there is no" in remedy) == (os.getcwd() in str(error.value))


def test_an_installed_plugin_is_found_from_any_directory(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plugins / "empty").mkdir()
    monkeypatch.chdir(plugins / "empty")
    monkeypatch.setattr(sys, "path", [*sys.path, str(plugins)])  # as an installation puts it there
    assert factory.model_names("from_a_plugin", ["plugin_for_a_test"]) == [
        ("closed_from_a_plugin", "plugin"),
        ("tiny_from_a_plugin", "plugin"),
    ]


def test_the_names_start_with_those_of_harness_and_hold_all_of_timm() -> None:
    names = factory.model_names()
    assert [name for name, origin in names if origin == "harness"] == [n for n, _ in names[:3]]
    assert sorted(name for name, _ in names) == sorted(timm.list_models())


def test_names_are_found_by_a_part_or_a_pattern() -> None:
    assert factory.model_names("cifar") == [("resnet18_cifar", "harness")]
    assert {name for name, _ in factory.model_names("resnet18*")} >= {"resnet18", "resnet18_cifar"}
    assert all("convnext" in name for name, _ in factory.model_names("convnext"))
    assert factory.model_names("nothing-of-this-name") == []


@pytest.mark.parametrize("arguments", [{"width": 0}, {"width": 2.5}, {"width": True}, {"conv_init": "zeros"}])
def test_an_argument_that_the_speedrun_network_refuses_is_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"need .*{next(iter(arguments))}"):
        make(model="speedrun_cnn", model_args=arguments)


@pytest.mark.parametrize("conv_init", ["dirac", "default"])
def test_the_speedrun_network_starts_anew_as_it_was_built(conv_init: str) -> None:
    arguments = {"width": 4, "conv_init": conv_init}
    model = make(model="speedrun_cnn", model_args=arguments)
    assert model.fc.bias is None  # the logits are scaled to a ninth, and a bias would be with them
    torch.manual_seed(0)
    expected = make(model="speedrun_cnn", model_args=arguments).state_dict()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7)
    torch.manual_seed(0)
    model.init_weights()
    first = model.layer1.conv1.weight[
        :4, :4, 1, 1
    ]  # width 4 of 24 patches: the identity of as many channels as both have
    assert torch.equal(first, torch.eye(4)) == (conv_init == "dirac")
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in expected.items()
    }
    for name, value in model.state_dict().items():
        assert not (value == 7).any(), name
        torch.testing.assert_close(
            value.float().std(correction=0), expected[name].float().std(correction=0), atol=0.05, rtol=0.3
        )


def test_intermediate_maps_have_one_memory_order() -> None:
    with pytest.raises(ValueError, match="need output_fmt='NCHW', got 'NHWC'"):
        small().forward_intermediates(torch.zeros(1, 3, 32, 32), output_fmt="NHWC")


def test_weights_that_timms_own_arguments_name_are_read_without_asking_for_timms(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    overlay = {"file": str(tmp_path / "mine.safetensors"), "num_classes": 3}
    made = make(3, model="test_resnet", pretrained=True, model_args={"pretrained_cfg_overlay": overlay})
    for name, value in model.state_dict().items():
        assert torch.equal(made.state_dict()[name], value), name


def test_an_error_inside_a_model_that_no_argument_explains_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **more: Any) -> nn.Module:
        raise RuntimeError("a bug")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        make(model="resnet18")


def test_a_model_that_timm_cannot_build_again_gets_no_configuration(tmp_path: Path) -> None:
    preprocess = Preprocess(8, (0.5,) * 3, (0.5,) * 3, 1.0, "bilinear")
    path = tmp_path / "config.json"
    assert not factory.write_timm_config(nn.Linear(2, 2), ["a", "b"], preprocess, path)
    model = small()
    model._model_args = {"width": object()}  # as a plug-in's model may have been made
    assert not factory.write_timm_config(model, ["a", "b"], preprocess, path) and not path.exists()
