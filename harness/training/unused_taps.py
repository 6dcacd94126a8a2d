"""Convolutions whose gradients oneDNN leaves undefined in bfloat16 on a CPU are trained in float32.

They are those of which a part of the kernel meets padding only, as the sides of a 3 x 3 kernel on a map of 1 x 1. The gradients
of these taps are 0, but oneDNN does not write them: they are what the memory held before, finite or not (oneDNN 3.12 in torch
2.14; float32 is right, and so are the outputs and the gradients of the inputs).
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from harness.training.device import eval_mode


def train_unused_taps_in_float32(model: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    """Let the convolutions with unused taps compute in float32, whatever autocast says, while they are in training mode.

    Args:
        model: on the CPU.
        shape: of an image, (channels, height, width).

    Returns:
        Their names.
    """
    names = convolutions_with_unused_taps(model, shape)
    for name in names:
        module = model.get_submodule(name)
        module.forward = MethodType(_forward, module)
    return names


def _forward(self: nn.Module, images: Tensor) -> Tensor:
    """Compute the convolution of a module, in training mode in float32."""
    forward: Callable[[nn.Module, Tensor], Tensor] = type(self).forward
    if not self.training:
        return forward(self, images)
    with torch.autocast("cpu", enabled=False):
        return forward(self, images.float())


def convolutions_with_unused_taps(model: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    """Return the names of the convolutions in which a part of the kernel meets padding only; the model is not changed.

    Args:
        shape: of an image, (channels, height, width).
    """
    names: dict[str, None] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def look(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            assert isinstance(module, nn.Conv2d)
            if inputs and has_unused_taps(module, inputs[0].shape[-2:], output.shape[-2:]):
                names[name] = None

        return look

    convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_hook(watch(name)) for name, module in convolutions]
    try:
        with eval_mode(model), torch.no_grad():
            model(torch.zeros(1, *shape))
    finally:
        for hook in hooks:
            hook.remove()
    return list(names)


def has_unused_taps(module: nn.Conv2d, size: tuple[int, ...], output: tuple[int, ...]) -> bool:
    """Return whether a row or a column of the kernel lies outside the map at every position.

    Args:
        size: of the map, (height, width).
        output: of the result, (height, width).
    """
    for axis in range(2):
        kernel, stride, dilation = module.kernel_size[axis], module.stride[axis], module.dilation[axis]
        match module.padding:
            case "same":
                padding = dilation * (kernel - 1) // 2
            case "valid":
                padding = 0
            case amounts:
                padding = int(amounts[axis])
        starts = range(-padding, output[axis] * stride - padding, stride)
        if not all(any(0 <= start + tap * dilation < size[axis] for start in starts) for tap in range(kernel)):
            return True
    return False
