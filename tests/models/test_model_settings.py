"""Dropout, stochastic depth and gradient checkpointing as settings, against timm's own."""

import copy

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from harness.config.settings import Config
from harness.evaluation import gradcam
from harness.models import factory
from harness.models.cifar_resnet import CustomResNet
from harness.training.learner import make_learner, why_not_captured
from harness.utils.errors import UsageError
from tests.support.training import CPU

VIT = {"model": "test_vit", "image_size": 0}


def made(**settings):
    torch.manual_seed(0)
    return factory.create_model(Config(**settings), 3)


def rates(model, kind):
    return [
        module.p if kind is nn.Dropout else module.drop_prob for module in model.modules() if isinstance(module, kind)
    ]


def test_drop_and_drop_path_make_the_model_that_timm_makes_with_them():
    ours = made(model="test_vit", drop=0.3, drop_path=0.2)
    torch.manual_seed(0)
    theirs = timm.create_model("test_vit", num_classes=3, drop_rate=0.3, drop_path_rate=0.2)
    images = torch.randn(2, 3, *ours.default_cfg["input_size"][1:], generator=torch.Generator().manual_seed(1))
    assert (
        0.3 in rates(ours, nn.Dropout)
        and rates(ours, DropPath) == rates(theirs, DropPath)
        and max(rates(ours, DropPath)) == pytest.approx(0.2)
    )
    outputs = []
    for model in (ours, theirs):
        torch.manual_seed(2)
        outputs.append(model.train()(images))
    assert torch.equal(*outputs)


def test_drop_sets_the_dropout_of_the_networks_of_this_package():
    model = made(model="custom_resnet", model_args={"width": 4}, drop=0.4)
    assert isinstance(model, CustomResNet) and model.drop_rate == 0.4
    assert made(model="custom_resnet", model_args={"width": 4, "drop_rate": 0.1}).drop_rate == 0.1


def test_a_rate_of_0_is_given_to_the_model_and_none_leaves_it_the_models():
    assert Config(drop="none").drop is None and Config(drop=0).drop == 0.0
    assert Config(drop=0).digest() != Config().digest() == Config(drop=None, drop_path="none").digest()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model": "custom_resnet", "drop_path": 0.1},
            "no argument 'drop_path_rate', which drop_path sets; leave --drop-path out",
        ),
        ({"model_args": {"drop_rate": 0.1}, "drop": 0.1}, "keep --drop"),
        ({"drop": 1.0}, "need drop < 1"),
        ({"drop_path": -0.1}, "need drop_path >= 0"),
    ],
)
def test_a_rate_that_the_model_cannot_have_is_refused_in_one_line(settings, message):
    with pytest.raises(UsageError, match=message):
        made(**settings)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "custom_resnet", "resnet18_cifar"])
def test_gradient_checkpointing_changes_memory_and_not_the_update(name):
    size = 64 if name == "test_vit" else 32
    config = Config(model=name, precision="fp32", channels_last=False, lr_min=0.1, lr_max=0.1)
    models, kept = [], []
    images = torch.randn(
        4, 3, *(timm.create_model("test_vit").default_cfg["input_size"][1:] if name == "test_vit" else (size, size))
    )
    for checkpointing in (False, True):
        torch.manual_seed(0)
        one = config.replace(gradient_checkpointing=checkpointing)
        model = factory.create_model(one, 3)
        factory.initialise_for(model, one, None, None)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        learner, sizes = make_learner(one, model, CPU, None), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            learner.train_step(images, torch.tensor([0, 1, 2, 0]), 0, 0.1, 0.9)
        models.append(dict(model.named_parameters()))
        kept.append(sum(sizes))
    for key, value in models[0].items():
        torch.testing.assert_close(models[1][key], value)
    assert kept[1] < kept[0]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("custom_resnet", "sgd"), ("test_resnet", "sgd"), ("test_efficientnet", "sgd"), ("custom_resnet", "adahessian")],
)
def test_gradient_checkpointing_moves_running_statistics_once_an_update(name, optimizer, momentum):
    """With the momentum None they are means over all batches, which the number of batches weights."""
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    states = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = Config(model=name, precision="fp32", channels_last=False, gradient_checkpointing=checkpointing)
        config = config.replace(grad_accumulation=2, optimizer=optimizer)
        if name == "custom_resnet":
            config = config.replace(model_args={"width": 4})
        model = factory.create_model(config, 3)
        factory.initialise_for(model, config, None, None)
        layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        for layer in layers:
            layer.momentum = momentum
        learner, former = make_learner(config, model.train(), CPU, None), dict(model.named_buffers())
        former = {key: value.clone() for key, value in former.items()}
        for _ in range(2):
            learner.train_step(images, torch.arange(8) % 3, 0, 0.01, 0.9)
        assert {layer.momentum for layer in layers} == {momentum}
        assert {int(layer.num_batches_tracked) for layer in layers} == {4}
        states.append(dict(model.named_buffers()))
    assert all(not torch.equal(states[1][key], value) for key, value in former.items() if "running" in key)
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value)


def test_class_activation_maps_of_a_model_with_gradient_checkpointing_are_those_without():
    model = made(model="custom_resnet", model_args={"width": 4}).eval()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing(True)
    images = torch.randn(2, 3, 32, 32)
    maps, others = (gradcam.compute_maps(each, images, [0, 1]) for each in (model, other))
    torch.testing.assert_close(torch.from_numpy(maps.raw), torch.from_numpy(others.raw))


def test_a_model_without_gradient_checkpointing_is_refused_in_one_line():
    model = nn.Linear(3, 3)
    with pytest.raises(UsageError, match="has no set_grad_checkpointing"):
        factory.initialise_for(model, Config(gradient_checkpointing=True), None, None)


def test_an_update_with_gradient_checkpointing_is_neither_captured_nor_in_fused_kernels(monkeypatch):
    config = Config(gradient_checkpointing=True, precision="bf16", fused=True)
    learner = make_learner(config, nn.Linear(3, 3), CPU, None)
    learner.device = torch.device("cuda")
    assert "gradient_checkpointing=True" in why_not_captured(config, learner)
    with pytest.raises(UsageError, match="gradient_checkpointing=True"):
        factory.make_training_forward(config, CustomResNet(width=4), torch.device("cuda"))
