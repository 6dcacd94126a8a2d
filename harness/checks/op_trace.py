"""What a network really computes: the operations of one forward pass, in order, whoever wrote the module and however."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.training.device import eval_mode

# Operations that only look at the same numbers in another shape, or prepare them.
VIEWS = {"view", "_unsafe_view", "reshape", "flatten", "t", "transpose", "permute", "detach", "alias", "clone", "squeeze",
         "unsqueeze", "expand", "select", "slice", "contiguous", "_to_copy", "empty", "empty_like", "zeros", "lift_fresh",
         "as_strided"}  # fmt: skip
SOFTMAX = ("softmax", "log_softmax", "_softmax", "_log_softmax")


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        kind: conv, bn, relu, pool, linear, add, softmax, or torch's own word for another.
        text: the operation with its geometry, such as `conv3x3 64>128`.
        source: number of the step whose output it takes; -1: the images.
        other: the same for the second summand of `add`, else -2.
        shape: of the output.
    """

    kind: str
    text: str
    source: int
    other: int
    shape: tuple[int, ...]


@dataclass
class _Recorder(TorchDispatchMode):
    steps: list[Step] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)  # so that no id is used twice
    made_by: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        first = next((leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)), None)
        if first is None or not tensors:
            return out
        sources = [self.made_by.get(id(tensor), -2) for tensor in tensors]
        source = max(sources)
        if source == -2:  # nothing of the images is in it
            return out
        if name in VIEWS:
            number = source
        else:
            number = len(self.steps)
            others = [place for place in sources if place not in (-2, source)]
            kind, text = _told(name, args, first)
            self.steps.append(Step(kind, text, source, others[0] if others else -2, tuple(first.shape)))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.kept.append(leaf)
                self.made_by[id(leaf)] = number
        return out


def trace(model: nn.Module, images: Tensor) -> tuple[list[Step], Tensor]:
    """The operations of one forward pass in evaluation mode, and what came out.

    Args:
        images: float [B, 3, H, W].
    """
    recorder = _Recorder()
    recorder.made_by[id(images)] = -1
    with eval_mode(model), torch.no_grad(), recorder:
        out = model(images)
    return recorder.steps, out


def describe(steps: list[Step]) -> str:
    """Steps in words: `conv3x3 64>128, MaxPool 2, BN, ReLU`."""
    return ", ".join(step.text for step in steps)


def _told(name: str, args: Any, out: Tensor) -> tuple[str, str]:
    """Kind and text of one operation of torch's."""
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
        wide = args[1] if plain == "addmm" else args[0]
        return "linear", f"FC {wide.shape[-1]}>{out.shape[-1]}{'' if plain == 'addmm' else ' without bias'}"
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
    """Geometry of a convolution; stride 1, padding that keeps the size, and no bias go unsaid."""
    weight, bias, stride, padding = args[1], args[2], args[3], args[4]
    kernel = tuple(weight.shape[2:])
    text = f"conv{kernel[0]}x{kernel[-1]} {weight.shape[1]}>{weight.shape[0]}"
    if set(stride) != {1}:
        text += f" s{stride[0]}"
    if any(pad != side // 2 for pad, side in zip(padding, kernel, strict=False)):
        text += f" p{padding[0]}"
    return text + ("" if bias is None else " with bias")
