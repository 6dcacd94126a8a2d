"""Convolutions whose gradients oneDNN leaves undefined in bfloat16 on a CPU are trained in float32.

They are those of which a part of the kernel meets padding only, as the sides of a 3 x 3 kernel on a map of 1 x 1. The gradients
of these taps are 0, but oneDNN does not write them: they are what the memory held before, finite or not (oneDNN 3.12 in torch
2.14; float32 is right, and so are the outputs and the gradients of the inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from harness.training.device import eval_mode

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


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


def _forward(self: nn.Module, images: Tensor, *others: Any) -> Tensor:
    """Compute the convolution of a module, in training mode in float32."""
    forward: Callable[..., Tensor] = type(self).forward
    if not self.training:
        return forward(self, images, *others)
    with torch.autocast("cpu", enabled=False):
        return forward(self, images.float(), *others)


def convolutions_with_unused_taps(model: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """Return the names of the convolutions in which a part of the kernel meets padding only; the model is not changed.

    Args:
        shape: of an image, for example (channels, height, width).
    """
    names: dict[str, None] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def look(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if inputs and has_unused_taps(module, inputs[0].shape[2:], output.shape[2:]):
                names[name] = None

        return look

    convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)]
    hooks = [module.register_forward_hook(watch(name)) for name, module in convolutions]
    try:
        with eval_mode(model), torch.no_grad():
            model(torch.zeros(1, *shape))
    finally:
        for hook in hooks:
            hook.remove()
    return list(names)


def has_unused_taps(module: nn.Module, size: Sequence[int], output: Sequence[int]) -> bool:
    """Return whether a row or a column of the kernel lies outside the map at every position.

    Args:
        size: of the map, for example (height, width).
        output: of the result. The kernel of a transposed convolution lies on it, at a position for each of the map.
    """
    settings: Any = module
    padding = settings.padding
    if padding == "valid":
        padding = [0] * len(size)
    elif padding == "same":
        padding = [
            step * (kernel - 1) // 2 for step, kernel in zip(settings.dilation, settings.kernel_size, strict=True)
        ]
    positions, limits = (size, output) if isinstance(module, TRANSPOSED) else (output, size)
    for axis, kernel in enumerate(settings.kernel_size):
        stride, dilation = settings.stride[axis], settings.dilation[axis]
        starts = [position * stride - padding[axis] for position in range(positions[axis])]
        if not all(any(0 <= start + tap * dilation < limits[axis] for start in starts) for tap in range(kernel)):
            return True
    return False
