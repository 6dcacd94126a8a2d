"""Predict the classes of labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from harness.evaluation.metrics import Predictions
from harness.training.device import eval_mode
from harness.utils.errors import DataError, DivergedError


def predict_batches(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str,
    *,
    autocast: torch.dtype | None = None,
    tta: str = "none",
) -> Predictions:
    """Return the model's predictions for every image, made in evaluation mode; the modules' modes are restored.

    Args:
        batches: images float [B, channels, H, W], normalised, and labels int [B].
        autocast: dtype of the forward pass; None: the model's own. Losses and probabilities are always float32.
        tta: also predict other views of each image: `mirror`, `mirror-translate` or `none`; see `tta_views`.

    Raises:
        DataError: there is no image.
        DivergedError: a prediction holds NaN or infinite numbers.
    """
    device = torch.device(device)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []
    # no_grad, not inference_mode: a buffer that a model makes on its first forward pass must stay fit for training.
    with eval_mode(model), torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        for images, labels in batches:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True).long()
            logits = model(images).float()  # [B, C]
            losses = nn.functional.cross_entropy(logits, labels, reduction="none")
            tta_logits = mean_tta_logits(model, images, logits, tta) if tta != "none" else None
            parts.append((labels, logits.softmax(1), losses, None if tta_logits is None else tta_logits.softmax(1)))
    if not parts:
        raise DataError("there are no images to predict")
    columns = [_concatenate(part) for part in zip(*parts, strict=True)]
    predictions = Predictions(columns[0], columns[1], columns[2], columns[3] if tta != "none" else None)
    bad = int((~np.isfinite(predictions.probabilities).all(1)).sum())
    if bad:
        raise DivergedError(
            f"the model answers {bad} of {len(predictions)} images with NaN or infinite numbers; its training has diverged"
        )
    return predictions


def tta_views(images: Tensor, tta: str) -> list[tuple[float, Tensor]]:
    """Return views of the images, each with its weight; the weights add up to 1, and the images come first.

    `mirror`: the images and their mirror images. `mirror-translate`: these with half of the weight, and both moved by one
    pixel up and to the left, and down and to the right, with the other half; the border is reflected.

    Args:
        images: float [B, channels, H, W].

    Source: Keller Jordan, https://arxiv.org/abs/2404.00498, section 3.5.
    """
    views = [images]
    if tta == "mirror-translate":
        height, width = images.shape[2:]
        padded = nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
        views += [padded[:, :, start : start + height, start : start + width] for start in (2, 0)]
    weights = [0.5] if len(views) == 1 else [0.25, 0.125, 0.125]
    pairs = [(weight, (view, view.flip(-1))) for weight, view in zip(weights, views, strict=True)]
    return [(weight, view) for weight, pair in pairs for view in pair]


def mean_tta_logits(model: nn.Module, images: Tensor, logits: Tensor, tta: str) -> Tensor:
    """Return the weighted mean of the logits over all views; those of the images themselves are given."""
    (weight, _), *others = tta_views(images, tta)
    mean = weight * logits
    for weight, view in others:
        mean = mean + weight * model(view).float()
    return mean


def _concatenate(parts: Sequence[Tensor | None]) -> np.ndarray:
    """Return the parts of all batches as one array; an empty one when there are none."""
    return torch.cat([part for part in parts if part is not None] or [torch.empty(0)]).cpu().numpy()
