"""Find weights that are NaN or infinite, before they are evaluated or saved over finite ones."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm


def first_not_finite(state: Mapping[str, Any], exempt: Collection[str] = ()) -> str:
    """Return the name of the first tensor with a value that is NaN or infinite; empty if all are finite.

    Waits for the device once if all are.

    Args:
        state: name -> tensor, plain value, or such a mapping or list again, whose names are joined by dots.
        exempt: names of tensors, without the names of the mappings around them, that may hold infinite values.
    """
    tensors = {name: tensor for name, tensor in _floating(state) if not _is_exempt(name, exempt)}
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors.values():
        by_device.setdefault(tensor.device, []).append(tensor)
    norms = [get_total_norm(group, float("inf")) for group in by_device.values()]
    if all(bool(torch.isfinite(norm)) for norm in norms):
        return ""
    return next(name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all()))


def infinite_buffers(model: nn.Module) -> frozenset[str]:
    """Return the names of a new model's buffers that hold infinite values by design, such as an attention mask."""
    buffers = dict(model.named_buffers())
    if not first_not_finite(buffers):
        return frozenset()
    return frozenset(name for name, buffer in buffers.items() if first_not_finite({name: buffer}))


def _floating(state: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        if state.is_floating_point() and state.numel():
            yield path, state.detach()
    elif isinstance(state, Mapping):
        for name, value in state.items():
            yield from _floating(value, f"{path}.{name}" if path else str(name))
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            yield from _floating(value, f"{path}.{index}")


def _is_exempt(name: str, exempt: Collection[str]) -> bool:
    return any(name == other or name.endswith(f".{other}") for other in exempt)
