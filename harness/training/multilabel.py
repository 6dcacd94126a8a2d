"""Evaluate a model on images with several labels, in one process or several."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.config.names import MULTILABEL_METRICS
from harness.training.device import autocast, eval_mode, evaluation_memory
from harness.training.distributed import SingleProcess
from harness.utils import fault_injection
from harness.utils.multilabel import FIXED_THRESHOLD, best_thresholds, multilabel_metrics


def evaluate_multilabel(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    precision: torch.dtype | None = None,
    processes: SingleProcess | None = None,
    thresholds: np.ndarray | None = None,
    chooses_thresholds: bool = False,
) -> tuple[dict[str, float], np.ndarray]:
    """Return `loss`, `map`, `f1_macro` and `exact_match` of a model, and the thresholds that they are of, float64 [C].

    The loss is the binary cross-entropy, nats, summed over the classes, mean over the images, without weights. With several processes each
    passes its own batches, and all receive the metrics of all images.

    Args:
        batches: images float [B, channels, H, W] and labels uint8 [B, C] of 0 and 1.
        thresholds: float [C]; None: 0.5 for each class.
        chooses_thresholds: choose them on these images instead, the best F1 for each class.

    Raises:
        ResourceError: out of memory.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    with evaluation_memory(getattr(batches, "num_images", 0)), eval_mode(model), torch.no_grad():
        for images, labels in batches:
            fault_injection.point("evaluation")
            with autocast(device, precision):
                logits = model(images)
            parts.append((logits.float(), labels))
    logits, labels = _of_all_processes(parts, processes or SingleProcess(), device)
    used = np.full(logits.shape[1], FIXED_THRESHOLD) if thresholds is None else thresholds
    if not len(labels):
        return dict.fromkeys(("loss", *MULTILABEL_METRICS), math.nan), used
    loss = float(image_losses(logits, labels).cpu().double().mean())  # on the CPU, since MPS has no float64
    probabilities, truth = logits.sigmoid().cpu().numpy(), labels.cpu().numpy()
    if chooses_thresholds and np.isfinite(probabilities).all():
        used = best_thresholds(truth, probabilities)
    return {"loss": loss, **multilabel_metrics(truth, probabilities, used)}, used


def image_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross-entropy of each image, the sum over its classes, float32 [B], nats.

    Args:
        logits: float32 [B, C]. labels: [B, C] of 0 and 1.
    """
    return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").sum(1)


def ranking_quality(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the area under the ROC curve of a batch, the mean over its classes, 0..1, float32 []; 0.5 is that of chance.

    It is the share of the pairs of an image with the class and one without it whose logits are in the right order, equal ones
    counted as half. It needs no threshold, and does not depend on how frequent a class is. Classes that all or none of the images
    have are left out; 0.5 where none is left. NaN counts as the lowest logit.

    Args:
        logits: float [B, C]. labels: [B, C] of 0 and 1.
    """
    comparable = logits.float().nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    columns, has = comparable.T.contiguous(), labels.T > 0  # [C, B]
    ordered = columns.sort(1).values
    below, up_to = (torch.searchsorted(ordered, columns, right=right) for right in (False, True))
    ranks = (below + up_to + 1) / 2  # from 1; of equal logits the mean
    positives = has.sum(1)
    negatives = len(labels) - positives
    in_order = torch.where(has, ranks, 0).sum(1) - positives * (positives + 1) / 2
    pairs = positives * negatives
    areas = torch.where(pairs > 0, in_order / pairs.clamp_min(1), 0.5)
    known = (pairs > 0).sum()
    return torch.where(known > 0, (areas * (pairs > 0)).sum() / known.clamp_min(1), 0.5).float()


def _of_all_processes(
    parts: list[tuple[Tensor, Tensor]], processes: SingleProcess, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return logits float32 [N, C] and labels [N, C] of the images of all processes, in the order of their ranks."""
    logits, labels = (torch.cat(column) for column in zip(*parts, strict=True)) if parts else (torch.zeros(0, 0),) * 2
    if processes.world_size == 1:
        return logits, labels
    # A process without images does not know the number of classes.
    counts = torch.zeros(processes.world_size, 2, dtype=torch.int64, device=device)
    counts[processes.rank] = torch.tensor(logits.shape, device=device)
    (counts,) = processes.all_reduce_sum(counts)
    numbers = counts[:, 0].tolist()
    start, width = sum(numbers[: processes.rank]), int(counts[:, 1].max())
    gathered = []
    for values in (logits, labels):
        rows = torch.zeros(sum(numbers), width, dtype=torch.float64, device=device)
        rows[start : start + len(values), : values.shape[1]] = values.to(device).double()
        gathered.append(processes.all_reduce_sum(rows)[0])
    return gathered[0].float(), gathered[1].to(torch.uint8)
