"""Class-activation maps through the pytorch-grad-cam package, without side effects on the model.

The package switches its model to evaluation mode, leaves gradients behind, needs float32 and a recorded graph, and its
hooks do not run in a compiled model. So it gets a private float32 copy of the bare model, and works outside autocast
and inference mode: the caller's model is never changed. Its parameters are frozen, and the gradient ends at the explained
layer: below it nothing is recorded and no gradient is computed, which is most of the network.

The package stretches every map to 0..1, noise as well as evidence. `raw` is the map before that, as its
`get_cam_image` returns it: at the layer's own resolution, with its sign.
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

from harness.evaluation.cam_layers import Layer, find_layer, finer_layer
from harness.training.device import no_cudnn_benchmark
from harness.utils.errors import UsageError, did_you_mean
from harness.utils.lazy import deferred_imports

# What the package imports for methods that are not offered here, and for volumes. It would take 1.3 of its 1.7 s.
UNUSED = ("sklearn.decomposition", "scipy.ndimage", "scipy.sparse", "scipy.sparse.linalg")
MAX_CHUNK = 32  # images per call of the package
MIN_CELLS = 4  # a side of a map; with fewer, one cell is a quarter of the image or more


@dataclass(frozen=True)
class Method:
    """How a map is computed.

    Attributes:
        class_name: in pytorch_grad_cam.
        description: one line.
        is_class_specific: whether the map depends on the class to explain.
        is_slow: whether it takes hundreds of forward passes per image.
    """

    class_name: str
    description: str
    is_class_specific: bool = True
    is_slow: bool = False


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
        "EigenCAM", "first principal component of the activations; the same for every class", is_class_specific=False
    ),
    "eigengradcam": Method("EigenGradCAM", "first principal component of gradient times activation"),
    "scorecam": Method("ScoreCAM", "each channel weighted by the score of the image that it masks", is_slow=True),
    "ablationcam": Method("AblationCAM", "each channel weighted by the drop of the score without it", is_slow=True),
}


@dataclass(frozen=True)
class Resolution:
    """The size of a map in cells, and of its image in pixels."""

    map_height: int
    map_width: int
    input_height: int
    input_width: int

    @property
    def is_coarse(self) -> bool:
        """Whether a map has too few cells to tell where in an image the evidence lies."""
        return min(self.map_height, self.map_width) < MIN_CELLS

    def __str__(self) -> str:
        cells = f"{self.map_height} x {self.map_width} cells for {self.input_height} x {self.input_width} pixels"
        return f"{cells}: too coarse to tell where the evidence lies" if self.is_coarse else cells


@dataclass(frozen=True)
class Maps:
    """Where in each of N images the evidence for a class lies.

    Attributes:
        method: key of `METHODS`.
        layer: dotted name of the explained layer.
        raw: float32 [N, h, w], at the layer's resolution, signed: positive cells are evidence for the class.
        scaled: float32 [N, H, W], the positive part at the image's resolution, each map stretched to 0..1 by itself.
        empty: bool [N], no positive cell, or all cells equal; `scaled` is zero then.
        peak: float32 [N], the greatest positive cell of `raw`, in logits for the gradient methods; 0 without one.
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

    @property
    def resolution(self) -> Resolution:
        """The cells of a map and the pixels of its image."""
        return Resolution(*self.raw.shape[1:], *self.scaled.shape[1:])


def compute_maps(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int] | np.ndarray | Tensor,
    *,
    method: str = "hirescam",
    layer: str = "auto",
) -> Maps:
    """Return maps of the evidence for one class in each image; the model is left unchanged in every respect.

    Args:
        images: float [N, channels, H, W], normalised as the model takes them.
        targets: int [N], the class to explain in each image.
        method: a key of `METHODS`.
        layer: dotted name of a module, or `auto`: see `cam_layers.find_layer`.

    Raises:
        UsageError: no such method, layer or class, or this method cannot explain this layer.
    """
    name = canonical_method(method)
    classes = [int(target) for target in targets]
    if images.ndim != 4 or len(classes) != len(images) or not classes:
        raise UsageError(
            f"need images [N, channels, H, W] and a class for each, got {list(images.shape)} and {len(classes)} classes"
        )
    with torch.inference_mode(False), torch.enable_grad(), _no_autocast(), no_cudnn_benchmark():
        copied = private_copy(model)
        device = next(copied.parameters()).device
        inputs = images.detach().clone().to(device, torch.float32)  # images of inference mode record no graph
        target_layer = find_layer(copied, inputs[:1], layer)
        _check_classes(classes, target_layer.classes)
        cam = _make_cam(METHODS[name], copied, target_layer)
        # The package keeps the activations of every forward pass of a call.
        size = 1 if METHODS[name].is_slow else MAX_CHUNK
        try:
            chunks = [_run(cam, inputs[i : i + size], classes[i : i + size]) for i in range(0, len(classes), size)]
        finally:
            cam.activations_and_grads.release()
            cam.outputs = None  # it holds the graph
    raw, scaled = (np.concatenate(maps) for maps in zip(*chunks, strict=True))
    return make_maps(name, target_layer.name, raw, scaled)


def default_layer(model: nn.Module, image: Tensor | None = None) -> str:
    """Return the dotted name of the layer that `auto` stands for.

    Args:
        image: float [1, channels, H, W], of the size of the model's images; None: the model's configured size.

    Raises:
        UsageError: no layer of the model gives a map.
    """
    with torch.inference_mode(False), torch.enable_grad(), _no_autocast():
        copied = private_copy(model)
        if image is None:
            config = getattr(copied, "pretrained_cfg", None) or {}
            channels, *sides = config.get("input_size", (3, 224, 224))
            image = torch.zeros(1, getattr(copied, "in_chans", channels), *sides)
        return find_layer(copied, _one_image(copied, image)).name


def finer_maps(model: nn.Module, image: Tensor) -> str:
    """Return what helps where the maps of a model are coarse: an earlier layer by its name, or larger images in training.

    Args:
        image: float [1, channels, H, W], of the size of the model's images.
    """
    with torch.inference_mode(False), torch.enable_grad(), _no_autocast():
        copied = private_copy(model)
        layer = finer_layer(copied, _one_image(copied, image), MIN_CELLS)
    if layer is None:
        return "no earlier layer has more; a run with a larger --image-size has"
    return f"--cam-layer {layer.name} has {layer.size[0]} x {layer.size[1]} cells, of features that tell classes apart less well"


def _one_image(model: nn.Module, image: Tensor) -> Tensor:
    """Return the first image as a model in float32 takes it, outside inference mode, on the model's device."""
    return image[:1].detach().clone().to(next(model.parameters()).device, torch.float32)


def canonical_method(name: str) -> str:
    """Return the key of `METHODS` for a name in any case, with or without dashes (`Grad-CAM++`).

    Raises:
        UsageError: there is no such method; the nearest is suggested.
    """
    key = str(name).lower().replace("-", "").replace("_", "").replace("plusplus", "++")
    if key not in METHODS:
        raise UsageError(f"there is no CAM method {name!r}{did_you_mean(key, METHODS)}; known: {', '.join(METHODS)}")
    return key


def private_copy(model: nn.Module) -> nn.Module:
    """Return a float32 copy of the bare model, not compiled, in evaluation mode, its parameters frozen."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            break
        model = inner
    # Tensors that a module kept of an earlier forward pass (a weight-normed weight, say) cannot be copied.
    kept = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    copied: nn.Module = copy.deepcopy(model, kept).float().eval().requires_grad_(False)
    checkpointing: Any = getattr(copied, "set_grad_checkpointing", None)
    if callable(checkpointing):
        checkpointing(False)  # with it the blocks run without the stage that has the hook
    return copied


@contextmanager
def _no_autocast() -> Iterator[None]:
    with ExitStack() as contexts:
        for device_type in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device_type):
                contexts.enter_context(torch.autocast(device_type, enabled=False))
        yield


def _check_classes(targets: Sequence[int], classes: int) -> None:
    # A negative one would count from the end, and the package swallows an IndexError.
    unknown = [target for target in targets if not 0 <= target < classes]
    if unknown:
        raise UsageError(f"there is no class {unknown[0]}: the model has 0..{classes - 1}")


def _make_cam(method: Method, model: nn.Module, layer: Layer) -> Any:
    """Return the package's object, extended to keep the raw map."""
    if method.class_name == "AblationCAM" and layer.reshape is not None:
        raise UsageError(
            f"ablationcam cannot explain layer {layer.name!r}, whose output is not [B, C, H, W]; try hirescam"
        )
    with deferred_imports(*UNUSED):
        base: Any = getattr(importlib.import_module("pytorch_grad_cam"), method.class_name)

    class KeepsRawMap(base):
        def get_cam_image(self, *args: Any, **kwargs: Any) -> np.ndarray:
            self.raw = super().get_cam_image(*args, **kwargs)
            return self.raw

    cam = KeepsRawMap(model=model, target_layers=[layer.module], reshape_transform=layer.reshape)
    if cam.uses_gradients:  # the first hook to run: the package's hooks take the leaf that it returns
        cam.activations_and_grads.handles.append(
            layer.module.register_forward_hook(
                lambda module, inputs, output: output.detach().requires_grad_(), prepend=True
            )
        )
    # The next layer may write into this one's output (ReLU in place), and the package keeps that very memory on a
    # CPU but a copy on a GPU. This hook, the last to run, gives the next layer memory of its own.
    cam.activations_and_grads.handles.append(
        layer.module.register_forward_hook(lambda module, inputs, output: output.clone())
    )
    return cam


def _run(cam: Any, images: Tensor, targets: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with _no_progress_bars():
        scaled = cam(input_tensor=images, targets=[ClassifierOutputTarget(target) for target in targets])
    return np.asarray(cam.raw, np.float32), np.asarray(scaled, np.float32)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Suppress the progress bar that the slow methods draw for every image."""
    modules = [importlib.import_module(f"pytorch_grad_cam.{name}") for name in ("score_cam", "ablation_cam")]
    bars = [module.tqdm for module in modules]
    for module in modules:
        module.tqdm = SimpleNamespace(tqdm=lambda steps: steps)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, bar in zip(modules, bars, strict=True):
            module.tqdm = bar  # type: ignore[attr-defined]


def make_maps(method: str, layer: str, raw: np.ndarray, scaled: np.ndarray) -> Maps:
    """Return the maps with what is derived from them; one with NaN or infinite cells is empty.

    Args:
        raw: float32 [N, h, w].
        scaled: float32 [N, H, W].
    """
    finite = np.isfinite(raw).all((1, 2))
    evidence = np.where(finite[:, None, None], raw, 0)
    positive = np.maximum(evidence, 0)
    peak, all_evidence = positive.max((1, 2)), np.abs(evidence).sum((1, 2))
    empty = ~finite | (peak <= 1e-12) | (positive.min((1, 2)) >= peak * (1 - 1e-5))
    share = np.divide(positive.sum((1, 2)), all_evidence, out=np.zeros_like(peak), where=all_evidence > 0)
    return Maps(method, layer, raw, np.where(empty[:, None, None], 0, scaled).astype(np.float32), empty, peak, share)
