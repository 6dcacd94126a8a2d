"""Where in a network to look: the layer whose output is explained, and how its output becomes a map [B, C, h, w]."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.utils.errors import UsageError, did_you_mean

MOST_PREFIX_TOKENS = 64  # class, distillation and register tokens that a row of tokens may start with


@dataclass(frozen=True)
class Layer:
    """A module of the network, by its dotted name, and the way from its output to a map.

    Attributes:
        reshape: output -> [B, C, h, w]; None where the output is that already.
        size: (h, w) of its map, cells.
        classes: how many logits the network gives.
    """

    name: str
    module: nn.Module
    reshape: Callable[[Tensor], Tensor] | None
    size: tuple[int, int]
    classes: int


@dataclass
class _Activations:
    """What one forward pass showed of the modules.

    Attributes:
        outputs: module name -> its output, when it is a tensor; in the order in which the modules finished.
        calls: module name -> how often it ran.
    """

    logits: Tensor
    outputs: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)


def find_layer(model: nn.Module, image: Tensor, name: str = "auto") -> Layer:
    """The layer of that name, or for `auto` the last stage of the network whose map has more than one cell.

    A stage is what timm's `feature_info` calls one: its output comes after the residual add. A model without that
    gets the module that is the last to give a map. Where tokens are pooled through a class token alone, the output of
    the last block has no gradient at the patches; the norm at its start takes its place.

    Args:
        model: in evaluation mode.
        image: float [1, 3, H, W].

    Raises:
        UsageError: there is no such module (the nearest is named), or its output is no map.
    """
    if name != "auto" and name not in dict(model.named_modules(remove_duplicate=False)):
        names = [known for known, _ in model.named_modules() if known]
        raise UsageError(f"the model has no layer {name!r}{did_you_mean(name, names)}")
    seen = _look(model, image)
    if name != "auto":
        return _layer(model, seen, name, image)
    aspect = image.shape[-2] / image.shape[-1]
    for candidate in _candidates(model, seen):
        layer = _try(model, seen, candidate, image)
        # A matrix of attention has four axes too, but not the shape of the image.
        if layer is not None and math.prod(layer.size) > 1 and _looks_like(*layer.size, aspect):
            return layer
    raise UsageError(
        "no layer of the model gives a map (a tensor [B, C, H, W] or a row of patch tokens); name one with a map"
    )


def token_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, C, h, w] from tokens [B, prefix + h*w, C]: the prefix left out, the rest row by row."""
    height, width = grid
    patches = tokens[:, tokens.shape[1] - height * width :]
    return patches.transpose(1, 2).reshape(len(tokens), tokens.shape[2], height, width)


def channels_first(output: Tensor) -> Tensor:
    """[B, C, h, w] from [B, h, w, C]."""
    return output.permute(0, 3, 1, 2)


def _candidates(model: nn.Module, seen: _Activations) -> Iterator[str]:
    """Layer names, best first."""
    info = getattr(model, "feature_info", None)
    for stage in reversed(info if isinstance(info, list) else []):
        name = stage.get("module", "") if isinstance(stage, dict) else ""
        output = seen.outputs.get(name)
        if output is not None and output.ndim == 3 and not _patches_matter(model, output, seen.logits):
            yield f"{name}.norm1"
        yield name
    # Containers finish after their parts, so that the last to finish is the outermost; the root is the whole model.
    names = [name for name, output in reversed(seen.outputs.items()) if output.ndim in (3, 4) and output.requires_grad]
    yield from (name for name in names if seen.outputs[name].ndim == 4)
    yield from (
        name
        for name in names
        if seen.outputs[name].ndim == 3 and _patches_matter(model, seen.outputs[name], seen.logits)
    )


def _patches_matter(model: nn.Module, tokens: Tensor, logits: Tensor) -> bool:
    """Whether the logits depend on the second half of the tokens, which holds patches only."""
    if not tokens.requires_grad:
        return False
    weights = torch.arange(1.0, 1.0 + logits.shape[1], device=logits.device)
    (slope,) = torch.autograd.grad((logits * weights).sum(), tokens, retain_graph=True, allow_unused=True)
    if slope is None or not slope.any():  # a head that starts at zero tells nothing
        return getattr(model, "global_pool", "") != "token"
    return bool(slope[:, tokens.shape[1] // 2 :].any())


def _try(model: nn.Module, seen: _Activations, name: str, image: Tensor) -> Layer | None:
    try:
        return _layer(model, seen, name, image)
    except UsageError:
        return None


def _layer(model: nn.Module, seen: _Activations, name: str, image: Tensor) -> Layer:
    calls = seen.calls.get(name, 0)
    if calls != 1:
        how = "is not run" if calls == 0 else f"is run {calls} times"
        raise UsageError(f"layer {name!r} {how} in a forward pass; choose one that is run once")
    output = seen.outputs.get(name)
    if output is None or output.ndim not in (3, 4) or len(output) != len(image):
        shape = "something that is no tensor" if output is None else list(output.shape)
        raise UsageError(f"layer {name!r} gives {shape}: need a map [B, C, H, W] or tokens [B, N, C]; try layer 'auto'")
    module, classes = model.get_submodule(name), seen.logits.shape[1]
    height, width = int(image.shape[-2]), int(image.shape[-1])
    if output.ndim == 3:
        grid = _token_grid(model, output.shape[1], height, width)
        if grid is None:
            raise UsageError(f"layer {name!r} gives {output.shape[1]} tokens, which fill no grid; choose another layer")
        return Layer(name, module, lambda tokens: token_map(tokens, grid), grid, classes)
    if _is_channels_last(output.shape, height / width, getattr(model, "output_fmt", None)):
        return Layer(name, module, channels_first, (int(output.shape[1]), int(output.shape[2])), classes)
    return Layer(name, module, None, (int(output.shape[2]), int(output.shape[3])), classes)


def _is_channels_last(shape: Sequence[int], aspect: float, said: object) -> bool:
    """Whether [B, ?, ?, ?] is [B, h, w, C]: by which two axes look like the image, else by what the model says."""
    first, last = _looks_like(shape[2], shape[3], aspect), _looks_like(shape[1], shape[2], aspect)
    return last if first != last else str(said).rpartition(".")[2] == "NHWC"


def _looks_like(height: int, width: int, aspect: float) -> bool:
    """Whether a grid can be an image of that aspect, each side shrunk and rounded up or down by its own stride."""
    return abs(height - aspect * width) < 1 + aspect


def _token_grid(model: nn.Module, tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """(h, w) of the patches among `tokens`: as the model's patch embedding says, else one of the image's aspect."""
    embed: Any = getattr(model, "patch_embed", None)
    sizes = []
    if hasattr(embed, "dynamic_feat_size"):
        sizes.append(tuple(map(int, embed.dynamic_feat_size((height, width)))))
    if getattr(embed, "grid_size", None):
        sizes.append(tuple(map(int, embed.grid_size)))
    for grid in sizes:
        if len(grid) == 2 and 0 <= tokens - math.prod(grid) <= MOST_PREFIX_TOKENS:
            return grid[0], grid[1]
    prefixes = [int(getattr(model, "num_prefix_tokens", 0) or 0), 0, 1, 2]
    for patches in (tokens - prefix for prefix in prefixes):
        rows = round(math.sqrt(max(patches, 0) * height / width))
        if rows and patches % rows == 0 and _looks_like(rows, patches // rows, height / width):
            return rows, patches // rows
    return None


def _look(model: nn.Module, image: Tensor) -> _Activations:
    """One forward pass with gradient, watched."""
    seen = _Activations(torch.empty(0))
    with _watched(model, seen):
        logits = model(image.clone().requires_grad_() * 1)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(f"the model gives {shape} for one image: need logits [B, classes]")
    seen.logits = logits
    return seen


@contextmanager
def _watched(model: nn.Module, seen: _Activations) -> Iterator[None]:
    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def note(module: nn.Module, arguments: object, output: object) -> None:
            seen.calls[name] = seen.calls.get(name, 0) + 1
            seen.outputs.pop(name, None)
            if isinstance(output, Tensor):
                seen.outputs[name] = output

        return note

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
