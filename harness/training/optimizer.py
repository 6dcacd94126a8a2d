"""Optimizers: groups of parameters with factors on the learning rate, and the rates of each update."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
from timm import optim as timm_optim
from torch import Tensor, nn

from harness.config.settings import Config
from harness.models.freezing import require_head
from harness.training.rng import preserve_rng_state
from harness.utils.errors import UsageError, did_you_mean, first_line

# Those that are made with torch's own defaults and fused kernels; all others are timm's, with timm's defaults.
NATIVE: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}
# Arguments of an optimizer that another setting decides -> that setting.
DECIDED = {
    "params": "freeze", "lr": "lr_max", "weight_decay": "weight_decay", "momentum": "momentum", "fused": "optimizer",
    "layer_decay": "layer_decay", "filter_bias_and_bn": "bias_decay",
}  # fmt: skip
FALLBACK = "fallback_list"  # of hybrid optimizers as muon: patterns of the parameters that the other one updates
COMPILED = "kron"  # optimizers whose names begin so compile themselves in the first step, for minutes on a CPU
BODY = "body"  # name of the group of parameters without a factor of its own


def check_optimizer(config: Config) -> None:
    """Refuse an optimizer that does not exist, before anything takes time.

    Raises:
        UsageError: there is none of that name; the message names the nearest.
    """
    known = [*NATIVE, *timm_optim.list_optimizers()]
    if config.optimizer not in known:
        raise UsageError(
            f"optimizer={config.optimizer!r}: there is none of that name{did_you_mean(config.optimizer, known)}; need {', '.join(NATIVE)}, or one of timm.optim.list_optimizers()"
        )
    for name in config.optimizer_args:
        if name in DECIDED:
            raise UsageError(f"optimizer_args cannot hold {name}; set --{DECIDED[name].replace('_', '-')}")


def parameter_groups(config: Config, model: nn.Module) -> list[dict[str, Any]]:
    """Return the groups of trained parameters for an optimizer, each with its factor on the LR as `lr_scale`, and its name.

    There is one group; with `bias_lr_scale` or `head_lr_scale` one for each factor, whose weight decay is divided by it, so
    that the weights shrink as they would without. `layer_decay` has a factor for each layer, as timm numbers them, and leaves
    the weight decay as it is, as timm does. Without `bias_decay` those parameters that timm excludes have no weight decay.

    Raises:
        UsageError: `head_lr_scale`, and the model does not name its classifier.
    """
    head: Collection[str] = ()
    if config.head_lr_scale != 1:
        head = require_head(model, f"head_lr_scale={config.head_lr_scale:g}")
    layers, decayed, fallback = _layers(config, model), _decayed(config, model), _fallback(config, model)
    lowest = sorted(set(layers.values()))
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        names, scale = [], 1.0
        if name.rpartition(".")[2] == "bias" and config.bias_lr_scale != 1:
            scale, names = scale * config.bias_lr_scale, ["bias"]
        if name in head:
            scale, names = scale * config.head_lr_scale, ["head", *names]
        decay = config.weight_decay / scale if decayed is None or id(parameter) in decayed else 0.0
        if layers:
            scale *= layers[id(parameter)]
            names = [f"layer_{lowest.index(layers[id(parameter)]):02}", *names]
        key = (scale, decay, id(parameter) in fallback)
        group = groups.setdefault(
            key, {"params": [], "weight_decay": decay, "lr_scale": scale, "name": "_".join(names) or BODY}
        )
        if id(parameter) in fallback:
            group["use_fallback"] = True
        group["params"].append(parameter)
    return list(groups.values())


def group_lr_scales(config: Config, model: nn.Module) -> dict[str, float]:
    """Return the factor on the LR of each group by its name; empty where all parameters have the same LR."""
    scales = {group["name"]: group["lr_scale"] for group in parameter_groups(config, model)}
    return scales if len(set(scales.values())) > 1 else {}


def _layers(config: Config, model: nn.Module) -> dict[int, float]:
    """Return id of a parameter -> the factor of its layer by timm; empty without `layer_decay`."""
    if config.layer_decay == 1:
        return {}
    groups = timm_optim.param_groups_layer_decay(model, weight_decay=1.0, layer_decay=config.layer_decay)
    return {id(parameter): float(group["lr_scale"]) for group in groups for parameter in group["params"]}


def _decayed(config: Config, model: nn.Module) -> set[int] | None:
    """Return the ids of the parameters that timm applies the weight decay to; None where it applies to all."""
    if config.decays_biases:
        return None
    names = getattr(model, "no_weight_decay", None)
    excluded = {"no_weight_decay_list": names() if callable(names) else ()}
    groups = (
        timm_optim.param_groups_weight_decay(model, weight_decay=1.0, **excluded)
        if config.layer_decay == 1
        else timm_optim.param_groups_layer_decay(model, weight_decay=1.0, layer_decay=config.layer_decay, **excluded)
    )
    return {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}


def _fallback(config: Config, model: nn.Module) -> set[int]:
    """Return the ids of the parameters that the patterns of `fallback_list` name."""
    patterns = config.optimizer_args.get(FALLBACK, ())
    if not patterns:
        return set()
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    groups = timm_optim.param_groups_weight_decay(model, weight_decay=1.0, fallback_list=patterns)
    return {id(parameter) for group in groups if group.get("use_fallback") for parameter in group["params"]}


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that the settings name, in its fused form where torch has one.

    Raises:
        UsageError: there is none of that name, its package is missing, or it refuses an argument.
    """
    check_optimizer(config)
    trained = [
        {key: value for key, value in group.items() if key != "name"} for group in parameter_groups(config, model)
    ]
    arguments = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config.optimizer_args.items()
        if key != FALLBACK
    }
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    if "betas" in arguments and not isinstance(arguments["betas"], tuple):
        raise UsageError(f"optimizer_args {given}: betas are two numbers or more; write betas=[0.9,0.999]")
    make = _make_native if config.optimizer in NATIVE else _make_timm
    verb = "be made"
    try:
        optimizer = make(config, trained, dict(arguments))
        if arguments and not config.optimizer.startswith(COMPILED):
            verb = "do a step"
            try_step(make(config, _small_groups(trained), dict(arguments)))
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"optimizer={config.optimizer} cannot {verb}{f' with {given}' if given else ''}: {first_line(error)}; change --optimizer or --optimizer-args"
        ) from error
    return optimizer


def _small_groups(trained: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one group of three small parameters with the settings of the first group."""
    settings = trained[0] if trained else {}
    return [{**settings, "params": [nn.Parameter(torch.ones(shape)) for shape in ((3,), (4, 3), (4, 3, 3, 3))]}]


def try_step(optimizer: torch.optim.Optimizer) -> None:
    """Do a step on the optimizer's parameters; the global random states stay as they are."""
    with preserve_rng_state():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        loss = torch.stack([parameter.square().sum() for parameter in parameters]).sum()
        gradients = torch.autograd.grad(loss, parameters, create_graph=is_second_order(optimizer))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()


def _make_native(config: Config, trained: list[dict[str, Any]], arguments: dict[str, Any]) -> torch.optim.Optimizer:
    lr, momentum = config.rates()[1], config.momentum
    kind = NATIVE[config.optimizer]
    fused = all(parameter.device.type in ("cpu", "cuda") for group in trained for parameter in group["params"])
    if unknown := [name for name in arguments if name not in inspect.signature(kind).parameters or name == "nesterov"]:
        known = [name for name in inspect.signature(kind).parameters if name not in DECIDED and name != "nesterov"]
        raise UsageError(
            f"optimizer={config.optimizer} has no argument {unknown[0]!r}{did_you_mean(unknown[0], known)}; need {', '.join(known)}"
        )
    betas = arguments.pop("betas", (momentum, 0.999))
    if len(betas) != 2 or betas[0] != momentum:
        raise UsageError(f"optimizer_args betas={betas}: the first of two is the momentum; set --momentum {betas[0]}")
    match config.optimizer:
        case "sgd":
            sgd = torch.optim.SGD(trained, lr, momentum, nesterov=config.nesterov, fused=fused, **arguments)
            create_momentum_buffers(sgd)
            return sgd
        case "adam" | "adamw":
            adam: Any = kind
            made: torch.optim.Optimizer = adam(trained, lr, betas=betas, fused=fused, **arguments)
            return made
    return torch.optim.RMSprop(trained, lr, momentum=momentum, **arguments)


def _make_timm(config: Config, trained: list[dict[str, Any]], arguments: dict[str, Any]) -> torch.optim.Optimizer:
    about = timm_optim.get_optimizer_info(config.optimizer)
    if config.momentum_min is not None:
        if not (about.has_momentum or about.has_betas):
            raise UsageError(
                f"momentum_min cycles the momentum, and optimizer={config.optimizer} has none; leave it out"
            )
    else:
        trained = [{**group, "has_constant_momentum": True} for group in trained]
    return timm_optim.create_optimizer_v2(
        trained, config.optimizer, lr=config.rates()[1], momentum=config.momentum, **arguments
    )


def is_second_order(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer needs second derivatives (timm's `adahessian`)."""
    return bool(getattr(optimizer, "is_second_order", False))


def seed_optimizer(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Make the random numbers of an optimizer a function of the step, so that a resumed run draws the same.

    timm's `adahessian` draws from a generator that is not in its state; `kron` stores its own.
    """
    generator, seed = getattr(optimizer, "generator", None), getattr(optimizer, "seed", None)
    if isinstance(generator, torch.Generator) and isinstance(seed, int):
        generator.manual_seed(seed + step)


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
        if group.get("has_constant_momentum"):
            continue
        if group.get("betas") and "momentum" not in group:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            group["momentum"] = momentum


def current_lr(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate that the optimizer has now, without the factors of parameter groups."""
    groups = optimizer.param_groups
    group = next((group for group in groups if group.get("lr_scale", 1.0) == 1), groups[0])
    return float(group["lr"]) / group.get("lr_scale", 1.0)


# Settings of the optimizer that do not change in a run; the schedule sets the others at every step.
CONSTANT = ("weight_decay", "lr_scale", "nesterov", "dampening", "eps", "maximize", "alpha", "centered", "amsgrad")


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
    is_native = type(optimizer) in NATIVE.values()
    for parameter, buffers in optimizer.state.items():
        for name, buffer in buffers.items():
            is_tensor = isinstance(buffer, Tensor) and buffer.layout == torch.strided
            if not is_native:  # buffers of any shape, in torch's own checked operations
                if isinstance(buffer, Tensor) and not is_tensor:
                    raise ValueError(f"{name} is no dense tensor")
                continue
            shapes = [[], [1]] if name == "step" else [list(parameter.shape)]
            if buffer is not None and (
                not is_tensor or not buffer.is_floating_point() or list(buffer.shape) not in shapes
            ):
                shape = (
                    list(buffer.shape)
                    if is_tensor and buffer.is_floating_point()
                    else "no dense tensor of floating-point numbers"
                )
                raise ValueError(f"{name} {shape} for a parameter {list(parameter.shape)}")
