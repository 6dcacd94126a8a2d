"""Losses that a plug-in registers: functions of logits and targets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from harness.config.losses import LOSSES
from harness.config.registered import registered_function
from harness.config.settings import Config
from harness.data.mixup import smooth_one_hot
from harness.training.rng import preserve_rng_state
from harness.utils.errors import UsageError, first_line, is_out_of_memory
from harness.utils.registry import register
from harness.utils.signatures import check_arguments, takes_argument

# logits float32 [B, C], labels int64 [B] or soft targets float [B, C] -> mean over the B images, [].
# As a mean of one number per image it is the same however a batch is divided into micro-batches and among processes.
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
WEIGHTS = "class_weights"  # the argument of a loss that takes them


def register_loss(function: Any = None, *, name: str = "") -> Any:
    """Register a loss of training: `--loss NAME --plugin MODULE` trains with it.

    The function gets logits float32 [B, C] and targets, and returns their mean loss over the B images, a float32 scalar with
    a gradient. The targets are class indices int64 [B], or, with Mixup, CutMix or label smoothing, soft targets float32
    [B, C], whose rows add up to 1; in one run they are always the same. `--loss-args` are further arguments. An argument
    named `class_weights` gets those of `--class-weights`, float32 [C], or None; a loss without it is refused with them.
    It must be a pure function, so that a resumed run is the same, and so that it can be captured as a CUDA graph.

    Args:
        name: by default that of the function.

    Raises:
        UsageError: the name is one of a loss of `harness`, or another module has registered it.
    """
    return register("loss", function, name=name, taken=LOSSES)


def check_loss(config: Config) -> None:
    """Refuse a loss that no plug-in registers, or that does not take its arguments, before anything takes time.

    Raises:
        UsageError: in one line, which.
    """
    function, subject = registered_function("loss", config.loss, config.plugin), f"loss={config.loss}"
    if function is None:
        return
    if WEIGHTS in config.loss_args:
        raise UsageError(
            f"loss_args={WEIGHTS}: the weights of the classes are a setting of their own; set --class-weights"
        )
    check_arguments(subject, "loss_args", function, config.loss_args, positional=2, supplied=(WEIGHTS,))
    if config.class_weights and not takes_argument(function, WEIGHTS):
        raise UsageError(
            f"{subject} takes no weights of the classes: it has no argument {WEIGHTS}; leave --class-weights out, or set --sampling balanced"
        )


def own_loss(config: Config, class_weights: Tensor | None = None, is_smoothed: bool = False) -> Loss | None:
    """Return the loss that a plug-in registers, with its arguments; None for one of `harness`.

    Args:
        class_weights: float32 [C], on the device of the logits.
        is_smoothed: the targets have their label smoothing already, as mixed ones have.

    Raises:
        UsageError: there is no such loss, or it does not take its arguments.
    """
    function = registered_function("loss", config.loss, config.plugin)
    if function is None:
        return None
    check_loss(config)
    given = {WEIGHTS: class_weights} if takes_argument(function, WEIGHTS) else {}
    loss: Loss = functools.partial(function, **config.loss_args, **given)
    smoothing = 0.0 if is_smoothed else config.label_smoothing
    return functools.partial(_smoothed, loss, smoothing) if smoothing else loss


def _smoothed(loss: Loss, smoothing: float, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss with smoothed labels as its targets; soft ones stay as they are."""
    return loss(logits, smooth_one_hot(targets, logits.shape[1], smoothing) if targets.ndim == 1 else targets)


def try_loss(config: Config, loss: Loss, classes: int, images: int, device: torch.device) -> None:
    """Refuse a loss of a plug-in that fails, or returns no finite scalar with a gradient, on one batch of random logits.

    Args:
        loss: of the learner.
        images: of the batch, the smallest part of one that training has.

    Raises:
        UsageError: in one line, what is wrong.
    """
    if config.loss in LOSSES:
        return
    generator = torch.Generator().manual_seed(config.seed)
    leaf = torch.randn(images, classes, generator=generator).to(device).requires_grad_()
    targets: Tensor = torch.arange(images, device=device) % classes
    if config.mixup or config.cutmix:
        soft = smooth_one_hot(targets, classes, config.label_smoothing)
        targets = 0.7 * soft + 0.3 * soft.flip(0)
    is_soft = targets.ndim == 2 or config.label_smoothing > 0
    kind = f"soft targets float32 [{images}, {classes}]" if is_soft else f"labels int64 [{images}]"
    where = f"loss={config.loss} on logits float32 [{images}, {classes}] and {kind}"
    remedy = (
        "; the targets are soft with mixup, cutmix and label_smoothing: set them to 0 if it takes class indices only"
        if is_soft
        else ""
    )
    try:
        with preserve_rng_state():
            result = loss(leaf * 1, targets)  # no leaf, as the logits of a model are none
            if problem := _problem(result):
                raise UsageError(f"{where} {problem}{remedy}")
            result.backward()
    except UsageError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UsageError(f"{where} raised {type(error).__name__}: {first_line(error)}{remedy}") from error
    if leaf.grad is None or not bool(torch.isfinite(leaf.grad).all()):
        what = "no gradient" if leaf.grad is None else "a gradient that is not finite"
        raise UsageError(f"{where} has {what} with respect to the logits")


def _problem(result: Any) -> str:
    """Return what is wrong with the value of a loss; empty where it is a finite float32 scalar that depends on the logits."""
    if not isinstance(result, Tensor):
        return f"returned {type(result).__name__}; need a tensor, a float32 scalar"
    if result.ndim or result.dtype != torch.float32:
        return f"returned {str(result.dtype).removeprefix('torch.')} {list(result.shape)}; need a float32 scalar, the mean over the images"
    if not bool(torch.isfinite(result)):
        return f"returned {float(result.detach())}; need a finite number"
    if not result.requires_grad:
        return "returned a number without a gradient; compute it from the logits with torch's functions"
    return ""
