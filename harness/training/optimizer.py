"""Make the optimizer of a run, and set its learning rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from harness.config.settings import Config


def parameter_groups(config: Config, parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Return the groups of trained parameters for an optimizer, each with its factor on the LR as `lr_scale`.

    There is one group, or with `bias_lr_scale` one for the biases too, whose weight decay is divided by that factor.
    """
    trained = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    scale, decay = config.bias_lr_scale, config.weight_decay
    if scale == 1:
        return [{"params": [parameter for _, parameter in trained], "weight_decay": decay}]
    biases = [parameter for name, parameter in trained if name.rpartition(".")[2] == "bias"]
    others = [parameter for name, parameter in trained if name.rpartition(".")[2] != "bias"]
    groups = (
        {"params": others, "weight_decay": decay, "lr_scale": 1.0},
        {"params": biases, "weight_decay": decay / scale, "lr_scale": scale},
    )
    return [group for group in groups if group["params"]]


def make_optimizer(config: Config, parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """Return the optimizer that the settings name, in its fused form where torch has one."""
    trained = parameter_groups(config, parameters)
    lr, momentum = config.rates()[1], config.momentum
    fused = all(parameter.device.type in ("cpu", "cuda") for group in trained for parameter in group["params"])
    match config.optimizer:
        case "sgd":
            sgd = torch.optim.SGD(trained, lr, momentum, nesterov=config.nesterov, fused=fused)
            create_momentum_buffers(sgd)
            return sgd
        case "adam":
            return torch.optim.Adam(trained, lr, betas=(momentum, 0.999), fused=fused)
        case "adamw":
            return torch.optim.AdamW(trained, lr, betas=(momentum, 0.999), fused=fused)
        case "rmsprop":
            return torch.optim.RMSprop(trained, lr, momentum=momentum)
    raise AssertionError(config.optimizer)


def create_momentum_buffers(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter of an SGD with momentum a buffer of zeros, where it has none.

    torch allocates the buffers in the first step without initialising them, and its fused kernel leaves them so when
    the GradScaler skips that step for infinite gradients. It also fails where a parameter gets its first gradient in a
    later step than others. The first step from zeros is the one that torch does without buffers.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") and group.get("momentum") else ():
            if "betas" not in group and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


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
