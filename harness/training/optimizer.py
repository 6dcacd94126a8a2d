"""Optimizers from torch.optim, made from settings."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from harness.config.settings import Config


def make_optimizer(config: Config, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that the settings name, in its fused form where torch has one."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    lr, decay, momentum = config.rates()[1], config.weight_decay, config.momentum
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained)
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(trained, lr, momentum, weight_decay=decay, nesterov=config.nesterov, fused=fused)
        case "adam":
            return torch.optim.Adam(trained, lr, betas=(momentum, 0.999), weight_decay=decay, fused=fused)
        case "adamw":
            return torch.optim.AdamW(trained, lr, betas=(momentum, 0.999), weight_decay=decay, fused=fused)
        case "rmsprop":
            return torch.optim.RMSprop(trained, lr, momentum=momentum, weight_decay=decay)
    raise AssertionError(config.optimizer)


def set_lr_and_momentum(optimizer: torch.optim.Optimizer, lr: float, momentum: float) -> None:
    """Give every parameter group its learning rate and momentum for the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def current_lr(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate that the optimizer has now."""
    return float(optimizer.param_groups[0]["lr"])
