"""Class-activation maps through the pytorch-grad-cam package, held so that they cannot harm a run.

The package switches the model it is given to evaluation mode, leaves gradients behind, needs float32 and a recorded
graph, and its hooks are blind in a compiled model. So it gets a private copy of the bare model, in float32, and
works outside autocast and inference mode: the caller's model is never touched. The gradient starts at the image, so
that frozen parameters are no obstacle and none is differentiated by.

The package stretches every map to 0..1, noise as well as evidence. `raw` is what it has before that, taken where its
`get_cam_image` hands it over: at the layer's own resolution, with its sign.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.evaluation.cam_layers import Layer, find_layer
from harness.utils.errors import UsageError, did_you_mean

_CHUNK = 32  # images at a time


@dataclass(frozen=True)
class Method:
    """How a map is made.

    Attributes:
        class_name: in pytorch_grad_cam.
        says: what its map is, in a line.
        of_a_class: whether the map depends on the class that is asked for.
        slow: hundreds of forward passes an image.
    """

    class_name: str
    says: str
    of_a_class: bool = True
    slow: bool = False


METHODS = {
    "hirescam": Method(
        "HiResCAM", "gradient times activation, cell by cell; exact where only pooling and a linear layer follow"
    ),
    "gradcam": Method("GradCAM", "activations weighted by their mean gradient"),
    "gradcam++": Method("GradCAMPlusPlus", "Grad-CAM with weights from second-order gradients"),
    "xgradcam": Method("XGradCAM", "Grad-CAM with weights from normalised activations"),
    "layercam": Method("LayerCAM", "activations weighted by their positive gradients; for early layers"),
    "gradcamelementwise": Method("GradCAMElementWise", "positive part of gradient times activation, cell by cell"),
    "eigencam": Method(
        "EigenCAM", "first principal component of the activations; the same for every class", of_a_class=False
    ),
    "eigengradcam": Method("EigenGradCAM", "first principal component of gradient times activation"),
    "scorecam": Method("ScoreCAM", "each channel weighted by the score of the image that it masks", slow=True),
    "ablationcam": Method("AblationCAM", "each channel weighted by the drop of the score without it", slow=True),
}


@dataclass(frozen=True)
class Maps:
    """Where in each of N images the evidence for a class lies.

    Attributes:
        method: key of `METHODS`.
        layer: dotted name of the layer that was looked at.
        raw: float32 [N, h, w], at the layer's resolution, signed: positive cells speak for the class.
        scaled: float32 [N, H, W], the positive part at the image's resolution, each stretched to 0..1 by itself.
        empty: bool [N], nothing to see: no positive cell, or the same in all of them; `scaled` is zero then.
        peak: float32 [N], the greatest positive cell of `raw`, in logits for the gradient methods; 0 where none is.
        share: float32 [N], positive evidence over all evidence (sum of positive cells / sum of magnitudes), 0..1.
    """

    method: str
    layer: str
    raw: np.ndarray
    scaled: np.ndarray
    empty: np.ndarray
    peak: np.ndarray
    share: np.ndarray

    def __len__(self) -> int:
        return len(self.raw)


def explain(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int] | np.ndarray | Tensor,
    *,
    method: str = "hirescam",
    layer: str = "auto",
) -> Maps:
    """The maps of the evidence for one class in each image. The model is left as it was found, in every respect.

    Args:
        images: float [N, 3, H, W], normalised as the model takes them.
        targets: int [N], the class to explain in each image.
        method: a key of `METHODS`.
        layer: dotted name of a module, or `auto`: see `cam_layers.find_layer`.

    Raises:
        UsageError: no such method, layer or class, or this method cannot explain this layer.
    """
    name = canonical_method(method)
    wanted = [int(target) for target in targets]
    if images.ndim != 4 or len(wanted) != len(images) or not wanted:
        raise UsageError(
            f"need images [N, 3, H, W] and a class for each, got {list(images.shape)} and {len(wanted)} classes"
        )
    with torch.inference_mode(False), torch.enable_grad(), _no_autocast():
        mine = private_copy(model)
        place = next(mine.parameters()).device
        shown = (
            images.detach().clone().to(place, torch.float32)
        )  # a clone: images made in inference mode record no graph
        found = find_layer(mine, shown[:1], layer)
        _check_classes(wanted, found.classes)
        cam = _make(METHODS[name], mine, found)
        step = 1 if METHODS[name].slow else _CHUNK  # the package keeps the activations of every forward pass of a call
        try:
            parts = [_run(cam, shown[i : i + step], wanted[i : i + step]) for i in range(0, len(wanted), step)]
        finally:
            cam.activations_and_grads.release()
            cam.outputs = None  # it holds the graph
    raw, scaled = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _measure(name, found.name, raw, scaled)


def default_layer(model: nn.Module, image: Tensor | None = None) -> str:
    """The dotted name of the layer that `auto` stands for.

    Args:
        image: float [1, 3, H, W], of the size that the model will see; its configured size where it is not given.
    """
    with torch.inference_mode(False), torch.enable_grad(), _no_autocast():
        mine = private_copy(model)
        if image is None:
            config = getattr(mine, "pretrained_cfg", None) or {}
            image = torch.zeros(1, *config.get("input_size", (3, 224, 224)))
        return find_layer(mine, image[:1].detach().clone().to(next(mine.parameters()).device, torch.float32)).name


def canonical_method(word: str) -> str:
    """The key of `METHODS` that a word spells, in any case, with or without dashes (`Grad-CAM++`).

    Raises:
        UsageError: there is no such method; the nearest is named.
    """
    key = str(word).lower().replace("-", "").replace("_", "").replace("plusplus", "++")
    if key not in METHODS:
        raise UsageError(f"there is no CAM method {word!r}{did_you_mean(key, METHODS)}; known: {', '.join(METHODS)}")
    return key


def private_copy(model: nn.Module) -> nn.Module:
    """A float32 copy of the bare model, not compiled, in evaluation mode, its parameters frozen."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            break
        model = inner
    # Results of an earlier forward pass that a module kept (a weight-normed weight, say) refuse to be copied.
    kept = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    mine: nn.Module = copy.deepcopy(model, kept).float().eval().requires_grad_(False)
    checkpointing: Any = getattr(mine, "set_grad_checkpointing", None)
    if callable(checkpointing):
        checkpointing(False)  # it runs the blocks past the stage that is hooked
    return mine


@contextmanager
def _no_autocast() -> Iterator[None]:
    with ExitStack() as off:
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                off.enter_context(torch.autocast(kind, enabled=False))
        yield


def _check_classes(wanted: Sequence[int], classes: int) -> None:
    # A negative one would count from the end, and the package swallows an IndexError.
    wrong = [target for target in wanted if not 0 <= target < classes]
    if wrong:
        raise UsageError(f"there is no class {wrong[0]}: the model knows 0..{classes - 1}")


def _make(method: Method, model: nn.Module, layer: Layer) -> Any:
    """The package's object, which also keeps the raw map."""
    if method.class_name == "AblationCAM" and layer.reshape is not None:
        raise UsageError(
            f"ablationcam cannot explain layer {layer.name!r}, whose output is not [B, C, H, W]; try hirescam"
        )
    base: Any = getattr(importlib.import_module("pytorch_grad_cam"), method.class_name)

    class Keeping(base):
        def get_cam_image(self, *arguments: Any, **named: Any) -> np.ndarray:
            self.raw = super().get_cam_image(*arguments, **named)
            return self.raw

    cam = Keeping(model=model, target_layers=[layer.module], reshape_transform=layer.reshape)
    # What comes next may write into the layer's output (ReLU in place), and the package keeps that very memory on a
    # CPU but a copy on a GPU. With this hook, last in the row, what comes next gets memory of its own.
    cam.activations_and_grads.handles.append(
        layer.module.register_forward_hook(lambda module, given, output: output.clone())
    )
    return cam


def _run(cam: Any, images: Tensor, targets: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    if cam.uses_gradients:
        images = images.requires_grad_() * 1  # not a leaf, so that a model may write into it
    with _no_bars():
        scaled = cam(input_tensor=images, targets=[ClassifierOutputTarget(target) for target in targets])
    return np.asarray(cam.raw, np.float32), np.asarray(scaled, np.float32)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the progress bar that the slow methods draw for every image."""
    modules = [importlib.import_module(f"pytorch_grad_cam.{name}") for name in ("score_cam", "ablation_cam")]
    bars = [module.tqdm for module in modules]
    for module in modules:
        module.tqdm = SimpleNamespace(tqdm=lambda steps: steps)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, bar in zip(modules, bars, strict=True):
            module.tqdm = bar  # type: ignore[attr-defined]


def _measure(method: str, layer: str, raw: np.ndarray, scaled: np.ndarray) -> Maps:
    finite = np.isfinite(raw).all((1, 2))
    evidence = np.where(finite[:, None, None], raw, 0)
    positive = np.maximum(evidence, 0)
    peak, all_evidence = positive.max((1, 2)), np.abs(evidence).sum((1, 2))
    empty = ~finite | (peak <= 1e-12) | (positive.min((1, 2)) >= peak * (1 - 1e-5))
    share = np.divide(positive.sum((1, 2)), all_evidence, out=np.zeros_like(peak), where=all_evidence > 0)
    return Maps(method, layer, raw, np.where(empty[:, None, None], 0, scaled).astype(np.float32), empty, peak, share)
