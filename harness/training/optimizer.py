"""Optimizers: groups of parameters with factors on the learning rate, and the rates of each update."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness.config.settings import Config
from harness.utils.errors import UsageError


def parameter_groups(config: Config, model: nn.Module) -> list[dict[str, Any]]:
    """Return the groups of trained parameters for an optimizer, each with its factor on the LR as `lr_scale`.

    There is one group; with `bias_lr_scale` or `head_lr_scale` one for each factor, whose weight decay is divided by it, so
    that the weights shrink as they would without.

    Raises:
        UsageError: `head_lr_scale`, and the model does not name its classifier.
    """
    head: set[int] = set()
    if config.head_lr_scale != 1:
        if not callable(get_classifier := getattr(model, "get_classifier", None)):
            raise UsageError(
                f"head_lr_scale={config.head_lr_scale:g} needs a model with timm's get_classifier(); leave --head-lr-scale out"
            )
        head = {id(parameter) for parameter in get_classifier().parameters()}
    by_scale: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = config.bias_lr_scale if name.rpartition(".")[2] == "bias" else 1.0
            scale *= config.head_lr_scale if id(parameter) in head else 1.0
            by_scale.setdefault(scale, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": config.weight_decay / scale, "lr_scale": scale}
        for scale, parameters in by_scale.items()
    ]


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that the settings name, in its fused form where torch has one."""
    trained = parameter_groups(config, model)
    lr, momentum = config.rates()[1], config.momentum
    fused = all(parameter.device.type in ("cpu", "cuda") for group in trained for parameter in group["params"])
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(trained, lr, momentum, nesterov=config.nesterov, fused=fused)
        case "adam":
            return torch.optim.Adam(trained, lr, betas=(momentum, 0.999), fused=fused)
        case "adamw":
            return torch.optim.AdamW(trained, lr, betas=(momentum, 0.999), fused=fused)
        case "rmsprop":
            return torch.optim.RMSprop(trained, lr, momentum=momentum)
    raise AssertionError(config.optimizer)


def set_lr_and_momentum(optimizer: torch.optim.Optimizer, lr: float, momentum: float) -> None:
    """Give every parameter group its learning rate (times its `lr_scale`) and momentum for the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def current_lr(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate that the optimizer has now, without the factors of parameter groups."""
    group = optimizer.param_groups[0]
    return float(group["lr"]) / group.get("lr_scale", 1.0)
