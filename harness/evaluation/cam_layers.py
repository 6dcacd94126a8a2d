"""Choose the layer of a network to explain, and turn its output into a map [B, C, h, w]."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.utils.errors import UsageError, did_you_mean

# Parts of the names of classes whose outputs are added to the features, instead of being the features.
BRANCH_WORDS = ("attn", "attention", "mlp", "ffn", "feedforward", "dropout", "droppath", "layerscale", "identity")
MAX_PREFIX_TOKENS = 64  # class, distillation and register tokens before those of the patches


@dataclass(frozen=True)
class Layer:
    """A module of the network and how its output becomes a map.

    Attributes:
        name: dotted.
        reshape: output -> [B, C, h, w]; None where the output has that shape already.
        size: (h, w) of its map, cells.
        classes: number of logits of the network.
    """

    name: str
    module: nn.Module
    reshape: Callable[[Tensor], Tensor] | None
    size: tuple[int, int]
    classes: int


@dataclass
class _Activations:
    """The outputs of all modules in one forward pass.

    Attributes:
        outputs: module name -> its output, when that is a tensor; in the order in which the modules finished.
        calls: module name -> how often it ran.
    """

    logits: Tensor
    outputs: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)


def find_layer(model: nn.Module, image: Tensor, name: str = "auto") -> Layer:
    """Return the layer of that name, or for `auto` the last stage of the network whose map has more than one cell.

    The stages are those of timm's `feature_info`, whose output comes after the residual addition. Where none of them
    returns a map, it is the last module outside attention and MLPs whose map, or whose patch tokens, the logits depend
    on. Where tokens are pooled through a class token alone, the output of the last block has no gradient at the patches;
    the norm at its start is used instead.

    Args:
        model: in evaluation mode.
        image: float [1, channels, H, W].

    Raises:
        UsageError: there is no such module (the nearest is suggested), or its output is not a map.
    """
    if name != "auto" and name not in dict(model.named_modules(remove_duplicate=False)):
        names = [known for known, _ in model.named_modules() if known]
        raise UsageError(f"the model has no layer {name!r}{did_you_mean(name, names)}")
    activations = _record_activations(model, image)
    if name != "auto":
        return _layer(model, activations, name, image)
    aspect = image.shape[-2] / image.shape[-1]
    for candidate in _candidates(model, activations):
        layer = _try_layer(model, activations, candidate, image)
        # A matrix of attention has four axes too, but not the shape of the image.
        if layer is not None and math.prod(layer.size) > 1 and _has_aspect(*layer.size, aspect):
            return layer
    raise UsageError(
        "no layer of the model gives a map (a tensor [B, C, H, W] or a row of patch tokens); name one with --cam-layer"
    )


def finer_layer(model: nn.Module, image: Tensor, cells: int) -> Layer | None:
    """Return the last of the layers that `auto` considers whose map has at least `cells` cells on each side; None without one.

    Args:
        model: in evaluation mode.
        image: float [1, channels, H, W].
    """
    activations = _record_activations(model, image)
    aspect = image.shape[-2] / image.shape[-1]
    for candidate in _candidates(model, activations):
        layer = _try_layer(model, activations, candidate, image)
        if layer is not None and min(layer.size) >= cells and _has_aspect(*layer.size, aspect):
            return layer
    return None


def token_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return [B, C, h, w] from tokens [B, prefix + h*w, C]: the prefix left out, the rest row by row."""
    height, width = grid
    patches = tokens[:, tokens.shape[1] - height * width :]
    return patches.transpose(1, 2).reshape(len(tokens), tokens.shape[2], height, width)


def channels_first(output: Tensor) -> Tensor:
    """Return [B, C, h, w] from [B, h, w, C]."""
    return output.permute(0, 3, 1, 2)


def _candidates(model: nn.Module, activations: _Activations) -> Iterator[str]:
    """Yield layer names, best first."""
    info = getattr(model, "feature_info", None)
    for stage in reversed(info if isinstance(info, list) else []):
        name = stage.get("module", "") if isinstance(stage, dict) else ""
        output = activations.outputs.get(name)
        if output is not None and output.ndim == 3 and not _logits_depend_on_patches(model, output, activations.logits):
            yield f"{name}.norm1"
        yield name
    # No stage returns a map, as where stages return tuples or lists. The last map or row of tokens on which the logits
    # depend; containers finish after their children, so that the last to finish is the outermost.
    names = [
        name for name, output in reversed(activations.outputs.items()) if output.ndim in (3, 4) and output.requires_grad
    ]
    names = [name for name in names if not _is_attention(activations, activations.outputs[name])]
    depending = _depending(model, activations, names)
    inside = [name for name in depending if _is_inside_branch(model, name)]
    yield from (name for name in depending if name not in inside)
    yield from inside


def _is_inside_branch(model: nn.Module, name: str) -> bool:
    """Return whether a module belongs to a branch beside the residual connection: attention, an MLP, dropout."""
    parts = name.split(".")
    path = [model.get_submodule(".".join(parts[: depth + 1])) for depth in range(len(parts))]
    return any(word in type(module).__name__.lower() for module in path for word in BRANCH_WORDS)


def _is_attention(activations: _Activations, output: Tensor) -> bool:
    """Return whether an output [B, heads, N, N] compares tokens with tokens, N of which another module returns."""
    if output.ndim != 4 or output.shape[2] != output.shape[3]:
        return False
    return any(other.ndim == 3 and other.shape[1] == output.shape[2] for other in activations.outputs.values())


def _depending(model: nn.Module, activations: _Activations, names: Sequence[str]) -> list[str]:
    """Return those of the modules on whose outputs the logits depend: of tokens, on those of patches."""
    outputs = [activations.outputs[name] for name in names]
    if not outputs:
        return []
    gradients = torch.autograd.grad(_weighted_sum(activations.logits), outputs, retain_graph=True, allow_unused=True)
    if not any(gradient is not None and gradient.any() for gradient in gradients):
        return list(names)  # a head initialised to zero has no gradient at all
    return [
        name
        for name, output, gradient in zip(names, outputs, gradients, strict=True)
        if gradient is not None and (gradient[:, output.shape[1] // 2 :] if output.ndim == 3 else gradient).any()
    ]


def _weighted_sum(logits: Tensor) -> Tensor:
    """Return a sum of the logits that does not vanish where their sum is constant."""
    return (logits * torch.arange(1.0, 1.0 + logits.shape[1], device=logits.device)).sum()


def _logits_depend_on_patches(model: nn.Module, tokens: Tensor, logits: Tensor) -> bool:
    """Return whether the logits depend on the second half of the tokens, which holds patches only."""
    if not tokens.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(_weighted_sum(logits), tokens, retain_graph=True, allow_unused=True)
    if gradient is None or not gradient.any():  # a head initialised to zero has no gradient at all
        return getattr(model, "global_pool", "") != "token"
    return bool(gradient[:, tokens.shape[1] // 2 :].any())


def _try_layer(model: nn.Module, activations: _Activations, name: str, image: Tensor) -> Layer | None:
    try:
        return _layer(model, activations, name, image)
    except UsageError:
        return None


def _layer(model: nn.Module, activations: _Activations, name: str, image: Tensor) -> Layer:
    calls = activations.calls.get(name, 0)
    if calls != 1:
        how = "is not run" if calls == 0 else f"is run {calls} times"
        raise UsageError(f"layer {name!r} {how} in a forward pass; choose one that is run once")
    output = activations.outputs.get(name)
    if output is None or output.ndim not in (3, 4) or len(output) != len(image):
        shape = "something that is no tensor" if output is None else list(output.shape)
        raise UsageError(f"layer {name!r} gives {shape}: need a map [B, C, H, W] or tokens [B, N, C]; try layer 'auto'")
    module, classes = model.get_submodule(name), activations.logits.shape[1]
    height, width = int(image.shape[-2]), int(image.shape[-1])
    if output.ndim == 3:
        grid = _token_grid(model, output.shape[1], height, width)
        if grid is None:
            raise UsageError(f"layer {name!r} gives {output.shape[1]} tokens, which fill no grid; choose another layer")
        return Layer(name, module, lambda tokens: token_map(tokens, grid), grid, classes)
    if _is_channels_last(output.shape, height / width, getattr(model, "output_fmt", None)):
        return Layer(name, module, channels_first, (int(output.shape[1]), int(output.shape[2])), classes)
    return Layer(name, module, None, (int(output.shape[2]), int(output.shape[3])), classes)


def _is_channels_last(shape: Sequence[int], aspect: float, output_fmt: object) -> bool:
    """Return whether [B, ?, ?, ?] is [B, h, w, C]: by which two axes have the image's aspect, else by timm's `output_fmt`."""
    is_first, is_last = _has_aspect(shape[2], shape[3], aspect), _has_aspect(shape[1], shape[2], aspect)
    return is_last if is_first != is_last else str(output_fmt).rpartition(".")[2] == "NHWC"


def _has_aspect(height: int, width: int, aspect: float) -> bool:
    """Return whether a grid can be an image of that aspect, each side divided and rounded by its own stride."""
    return abs(height - aspect * width) < 1 + aspect


def _token_grid(model: nn.Module, tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Return (h, w) of the patches among `tokens`: from the model's patch embedding, else one of the image's aspect."""
    embed: Any = getattr(model, "patch_embed", None)
    sizes = []
    if hasattr(embed, "dynamic_feat_size"):
        sizes.append(tuple(map(int, embed.dynamic_feat_size((height, width)))))
    if getattr(embed, "grid_size", None):
        sizes.append(tuple(map(int, embed.grid_size)))
    for grid in sizes:
        if len(grid) == 2 and 0 <= tokens - math.prod(grid) <= MAX_PREFIX_TOKENS:
            return grid[0], grid[1]
    prefixes = [int(getattr(model, "num_prefix_tokens", 0) or 0), 0, 1, 2]
    for patches in (tokens - prefix for prefix in prefixes):
        rows = round(math.sqrt(max(patches, 0) * height / width))
        if rows and patches % rows == 0 and _has_aspect(rows, patches // rows, height / width):
            return rows, patches // rows
    return None


def _record_activations(model: nn.Module, image: Tensor) -> _Activations:
    """Return the outputs of one forward pass with gradient."""
    activations = _Activations(torch.empty(0))
    with _recording(model, activations):
        logits = model(image.clone().requires_grad_() * 1)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(f"the model gives {shape} for one image: need logits [B, classes]")
    activations.logits = logits
    return activations


@contextmanager
def _recording(model: nn.Module, activations: _Activations) -> Iterator[None]:
    def hook_for(name: str) -> Callable[[nn.Module, object, object], None]:
        def record(module: nn.Module, inputs: object, output: object) -> None:
            activations.calls[name] = activations.calls.get(name, 0) + 1
            activations.outputs.pop(name, None)
            if isinstance(output, Tensor):
                activations.outputs[name] = output

        return record

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
