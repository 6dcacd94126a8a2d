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
    tta: bool = False,
) -> Predictions:
    """Return the model's predictions for every image, made in evaluation mode; the modules' modes are restored.

    Args:
        batches: images float [B, 3, H, W], normalised, and labels int [B].
        autocast: dtype of the forward pass; None: the model's own. Losses and probabilities are always float32.
        tta: also predict each image mirrored.

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
            tta_logits = (logits + model(images.flip(-1)).float()) / 2 if tta else None
            parts.append((labels, logits.softmax(1), losses, None if tta_logits is None else tta_logits.softmax(1)))
    if not parts:
        raise DataError("there are no images to predict")
    columns = [_concatenate(part) for part in zip(*parts, strict=True)]
    predictions = Predictions(columns[0], columns[1], columns[2], columns[3] if tta else None)
    bad = int((~np.isfinite(predictions.probabilities).all(1)).sum())
    if bad:
        raise DivergedError(
            f"the model answers {bad} of {len(predictions)} images with NaN or infinite numbers; its training has diverged"
        )
    return predictions


def _concatenate(parts: Sequence[Tensor | None]) -> np.ndarray:
    """Return the parts of all batches as one array; an empty one when there are none."""
    return torch.cat([part for part in parts if part is not None] or [torch.empty(0)]).cpu().numpy()
