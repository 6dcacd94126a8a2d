"""The operations that a network computes in one forward pass, in order, however its modules are written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.training.device import eval_mode

# Operations that only reshape or copy their input, or allocate memory.
VIEWS = {"view", "_unsafe_view", "reshape", "flatten", "t", "transpose", "permute", "detach", "alias", "clone", "squeeze",
         "unsqueeze", "expand", "select", "slice", "contiguous", "_to_copy", "empty", "empty_like", "zeros", "lift_fresh",
         "as_strided"}  # fmt: skip
SOFTMAX = ("softmax", "log_softmax", "_softmax", "_log_softmax")


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        kind: conv, bn, relu, pool, linear, add, softmax, or torch's name of any other operation.
        text: the operation with its geometry, such as `conv3x3 64>128`.
        source: index of the step whose output it takes; -1 for the images.
        other: index of the step of the second summand of `add`; else -2.
        shape: shape of the output.
    """

    kind: str
    text: str
    source: int
    other: int
    shape: tuple[int, ...]


@dataclass
class _Recorder(TorchDispatchMode):
    steps: list[Step] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)  # kept alive, so that no id is used twice
    step_of: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        first = next((leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)), None)
        if first is None or not tensors:
            return out
        sources = [self.step_of.get(id(tensor), -2) for tensor in tensors]
        source = max(sources)
        if source == -2:  # it does not depend on the images
            return out
        if name in VIEWS:
            number = source
        else:
            number = len(self.steps)
            others = [index for index in sources if index not in (-2, source)]
            kind, text = _describe(name, args, first)
            self.steps.append(Step(kind, text, source, others[0] if others else -2, tuple(first.shape)))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.outputs.append(leaf)
                self.step_of[id(leaf)] = number
        return out


def trace(model: nn.Module, images: Tensor) -> tuple[list[Step], Tensor]:
    """Return the operations of one forward pass in evaluation mode, and its output.

    Args:
        images: float [B, channels, H, W].
    """
    recorder = _Recorder()
    recorder.step_of[id(images)] = -1
    with eval_mode(model), torch.no_grad(), recorder:
        out = model(images)
    return recorder.steps, out


def describe_steps(steps: list[Step]) -> str:
    """Return steps as text: `conv3x3 64>128, MaxPool 2, BN, ReLU`."""
    return ", ".join(step.text for step in steps)


def _describe(name: str, args: Any, out: Tensor) -> tuple[str, str]:
    """Return the kind and the text of one operation of torch."""
    plain = name.rstrip("_")
    if plain == "convolution":
        return "conv", _conv(args, out)
    if "batch_norm" in plain:
        return "bn", "BN"
    if plain in ("relu", "clamp_min"):
        return "relu", "ReLU"
    if "pool" in plain or (plain == "mean" and args[0].dim() == 4):
        return "pool", f"{'Max' if 'max' in plain else 'Avg'}Pool {max(1, args[0].shape[-1] // _side(out))}"
    if plain in ("addmm", "mm", "linear"):
        inputs = args[1] if plain == "addmm" else args[0]
        return "linear", f"FC {inputs.shape[-1]}>{out.shape[-1]}{'' if plain == 'addmm' else ' without bias'}"
    if name in SOFTMAX:
        return "softmax", name.strip("_")
    if plain == "add":
        return "add", "add"
    if plain == "mul" and not isinstance(args[1], Tensor):
        return "mul", f"x {args[1]:g}"
    return plain, plain


def _side(out: Tensor) -> int:
    return int(out.shape[-1]) if out.dim() == 4 else 1


def _conv(args: Any, out: Tensor) -> str:
    """Return the geometry of a convolution; stride 1, size-keeping padding and a missing bias are not mentioned."""
    weight, bias, stride, padding = args[1], args[2], args[3], args[4]
    kernel = tuple(weight.shape[2:])
    text = f"conv{kernel[0]}x{kernel[-1]} {weight.shape[1]}>{weight.shape[0]}"
    if set(stride) != {1}:
        text += f" s{stride[0]}"
    if any(pad != side // 2 for pad, side in zip(padding, kernel, strict=False)):
        text += f" p{padding[0]}"
    return text + ("" if bias is None else " with bias")
