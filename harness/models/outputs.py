"""The logits in what a model returns: alone, or with those of auxiliary heads while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.utils.errors import UsageError

# Weight of the loss of each auxiliary head. Source: Szegedy et al., "Going Deeper with Convolutions",
# https://arxiv.org/abs/1409.4842, section 5.
AUXILIARY_WEIGHT = 0.3
LOGITS_KEYS = ("logits", "out", "output")  # of a dictionary


def split_logits(outputs: Any) -> list[Tensor]:
    """Return the logits [B, classes] in a model's outputs, and after them those of its auxiliary heads.

    Understood are a tensor; a tuple or list of tensors, the first of which are the logits; and a mapping that has them
    as `logits`, `out` or `output`. None is left out.

    Raises:
        UsageError: the outputs are something else, or they do not all have the shape of the logits.
    """
    if isinstance(outputs, Tensor):
        return [outputs]
    values: list[Any] = []
    if isinstance(outputs, Mapping):
        if key := next((key for key in LOGITS_KEYS if outputs.get(key) is not None), None):
            values = [outputs[key], *(value for name, value in outputs.items() if name != key)]
    elif isinstance(outputs, tuple | list):
        values = list(outputs)
    values = [value for value in values if value is not None]
    if not values or any(not isinstance(value, Tensor) or value.shape != values[0].shape for value in values):
        raise UsageError(
            f"the model returns {describe_outputs(outputs)} instead of logits, alone or with others of the same shape"
        )
    return values


def describe_outputs(outputs: Any) -> str:
    """Return the type of a model's outputs with the shapes of its tensors."""
    if isinstance(outputs, Tensor):
        return str(list(outputs.shape))
    if isinstance(outputs, Mapping):
        parts = [f"{key}: {describe_outputs(value)}" for key, value in list(outputs.items())[:5]]
    elif isinstance(outputs, tuple | list):
        parts = [describe_outputs(value) for value in list(outputs)[:5]]
    else:
        return f"a {type(outputs).__name__}"
    return f"a {type(outputs).__name__} of ({', '.join(parts)})"


def weighted_loss(losses: list[Tensor]) -> Tensor:
    """Return the loss of the logits plus that of each auxiliary head, weighted by `AUXILIARY_WEIGHT`."""
    if len(losses) == 1:
        return losses[0]
    return losses[0] + AUXILIARY_WEIGHT * torch.stack(losses[1:]).sum()


def return_logits_in_evaluation(model: nn.Module) -> None:
    """Let a model that returns more than its logits in evaluation, as timm's `inception_v3` does, return these alone."""
    model.register_forward_hook(_logits_alone)


def _logits_alone(module: nn.Module, inputs: Any, outputs: Any) -> Tensor | None:
    return None if module.training or isinstance(outputs, Tensor) else split_logits(outputs)[0]
