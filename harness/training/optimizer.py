"""Optimizers: groups of parameters with factors on the learning rate, and the rates of each update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

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
        classifiers = get_classifier()  # several for a distilled model
        classifiers = classifiers if isinstance(classifiers, tuple | list) else (classifiers,)
        head = {id(parameter) for classifier in classifiers for parameter in classifier.parameters()}
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
    """Give every parameter of a fused SGD with momentum a buffer of zeros, where it has none.

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


# Settings of the optimizer that do not change in a run; the schedule sets the others at every step.
CONSTANT = ("weight_decay", "nesterov", "dampening", "eps", "maximize", "alpha", "centered", "amsgrad")


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state of an optimizer after a check that PyTorch leaves out: fused kernels trust the shapes of their buffers.

    Raises:
        ValueError: a buffer has another shape than its parameter, or a setting is another one.
    """
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for name in CONSTANT:
            if name in group and name in saved and saved[name] != group[name]:
                raise ValueError(f"{name} {saved[name]!r} instead of {group[name]!r}")
        for name in ("lr", "momentum"):
            if name in saved and not isinstance(saved[name], int | float | Tensor):
                raise ValueError(f"{name} {saved[name]!r} is no number")
    optimizer.load_state_dict(dict(state))
    create_momentum_buffers(optimizer)
    for parameter, buffers in optimizer.state.items():
        for name, buffer in buffers.items():
            shapes = [[], [1]] if name == "step" else [list(parameter.shape)]
            is_tensor = isinstance(buffer, Tensor) and buffer.layout == torch.strided and buffer.is_floating_point()
            if buffer is not None and (not is_tensor or list(buffer.shape) not in shapes):
                shape = list(buffer.shape) if is_tensor else "no dense tensor of floating-point numbers"
                raise ValueError(f"{name} {shape} for a parameter {list(parameter.shape)}")
