"""The losses of training: cross-entropy, binary cross-entropy, focal loss and JSD, with weights of the classes."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.config.losses import GAMMA, JSD_ALPHA, LOSSES
from harness.config.settings import Config
from harness.data.balance import positive_factor
from harness.data.mixup import smooth_one_hot
from harness.data.multilabel import prior_logits
from harness.training.own_losses import Loss as Loss
from harness.training.own_losses import own_loss
from harness.utils.errors import UsageError

MOST_IMAGES = 4096  # that a loss without a model is computed of
CLOSEST = 1e-8  # to 0 of 1 - p: below it, powers under 1 have infinite slopes


def make_loss(
    config: Config, device: torch.device, class_weights: Tensor | None = None, is_smoothed: bool = False
) -> Loss:
    """Return the loss that the settings describe.

    Args:
        device: of the logits.
        class_weights: float32 [C]; where images have several labels, the weights of the images that have a class (torch's
            `pos_weight`).
        is_smoothed: the targets have their label smoothing already, as mixed ones have.

    Raises:
        UsageError: no plug-in registers the loss, or it does not take its arguments.
    """
    smoothing = 0.0 if is_smoothed else config.label_smoothing
    class_weights = None if class_weights is None else class_weights.to(device)
    if config.is_multilabel:
        return _multilabel_loss(config, device, class_weights, smoothing)
    if (registered := own_loss(config, class_weights, is_smoothed)) is not None:
        return registered
    if config.loss == "bce":
        return _binary_cross_entropy(config, device, class_weights)
    if config.loss == "focal":
        return functools.partial(
            focal_loss,
            gamma=float(config.loss_args.get("gamma", GAMMA)),
            smoothing=smoothing,
            class_weights=class_weights,
        )
    if config.loss == "jsd":
        from timm.loss import JsdCrossEntropy

        alpha = float(config.loss_args.get("alpha", JSD_ALPHA))
        jsd: Loss = JsdCrossEntropy(config.aug_splits, alpha=alpha, smoothing=smoothing)  # logits [views * B, C]
        return jsd
    if class_weights is None:
        return functools.partial(F.cross_entropy, label_smoothing=smoothing)
    return functools.partial(weighted_cross_entropy, class_weights=class_weights, smoothing=smoothing)


def weighted_cross_entropy(logits: Tensor, targets: Tensor, *, class_weights: Tensor, smoothing: float) -> Tensor:
    """Return torch's weighted cross-entropy, summed and divided by the number of images.

    torch's own mean divides by the weights in the batch instead, which a micro-batch or a process does not know of the
    others, and which takes the effect of the weights away in a batch of one class.
    """
    total = F.cross_entropy(logits, targets, weight=class_weights, label_smoothing=smoothing, reduction="sum")
    return total / len(logits)


def focal_loss(
    logits: Tensor, targets: Tensor, *, gamma: float, smoothing: float, class_weights: Tensor | None
) -> Tensor:
    """Return the focal loss: cross-entropy in which the term of a class with probability p has the factor (1 - p)^gamma.

    With gamma 0 it is the (weighted) cross-entropy. For two classes and hard labels it is the sigmoid focal loss of the
    difference of the logits. Source: Lin et al., https://arxiv.org/abs/1708.02002, equation 4.
    """
    if targets.ndim == 1:
        targets = smooth_one_hot(targets, logits.shape[1], smoothing)
    log_p = logits.log_softmax(1)
    terms = -targets * (-torch.expm1(log_p)).clamp_min(CLOSEST) ** gamma * log_p
    if class_weights is not None:
        terms = terms * class_weights
    return terms.sum(1).mean()


def _binary_cross_entropy(config: Config, device: torch.device, class_weights: Tensor | None) -> Loss:
    """Return timm's binary cross-entropy; with class weights, each image has that of its label (of mixed ones, their mean)."""
    from timm.loss import BinaryCrossEntropy

    arguments, smoothing = config.loss_args, config.label_smoothing
    pos_weight = arguments.get("pos_weight")
    each = BinaryCrossEntropy(
        smoothing=0.0,  # the targets are smoothed here, alike for labels and for mixed targets
        target_threshold=arguments.get("target_threshold"),
        reduction="none",
        pos_weight=None if pos_weight is None else float(pos_weight),
    ).to(device)
    sums = bool(arguments.get("sum_classes", False))

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim == 1:
            targets = smooth_one_hot(targets, logits.shape[1], smoothing)
        terms = each(logits, targets)  # [B, C]
        by_image = terms.sum(1) if sums else terms.mean(1)
        if class_weights is not None:
            unsmoothed = targets @ class_weights - smoothing * class_weights.mean()
            by_image = by_image * (unsmoothed / (1 - smoothing))
        return by_image.mean()

    return loss


def _multilabel_loss(config: Config, device: torch.device, pos_weight: Tensor | None, smoothing: float) -> Loss:
    """Return timm's binary cross-entropy of several labels per image; smoothing moves each of them towards 0.5.

    It is summed over the classes, unless `sum_classes` says otherwise: the gradient of each logit is its probability less its
    target then, as with cross-entropy, so that the learning rates of the recipes fit for any number of classes.
    """
    from timm.loss import BinaryCrossEntropy

    arguments = config.loss_args
    if pos_weight is None and "pos_weight" in arguments:
        pos_weight = torch.tensor(float(arguments["pos_weight"]))
    each = BinaryCrossEntropy(
        smoothing=smoothing,
        smooth_dense=True,
        target_threshold=arguments.get("target_threshold"),
        reduction="none",
        pos_weight=pos_weight,
    ).to(device)
    sums = bool(arguments.get("sum_classes", True))

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        terms = each(logits, targets)  # [B, C]
        return (terms.sum(1) if sums else terms.mean(1)).mean()

    return loss


def uninformed_loss(config: Config, labels: np.ndarray, class_weights: Tensor | None) -> float:
    """Return the loss of a model that knows how frequent each of several labels is, and nothing of the images, nats.

    It is below that of equal probabilities, most of all with many rare classes: a model that has lost what it had learnt falls back
    to it, not to those.

    Args:
        labels: uint8 [N, C] of the training images, of which at most 4,096 are used.
        class_weights: float32 of the model's outputs, as for `make_loss`.
    """
    labels = labels[:: -(-len(labels) // MOST_IMAGES)]
    prior = prior_logits(labels, positive_factor(config, class_weights))
    logits = torch.from_numpy(prior).float().expand(labels.shape)
    return float(make_loss(config, logits.device, class_weights)(logits, torch.from_numpy(labels).float()))


def uniform_loss(config: Config, classes: int) -> float:
    """Return the loss of a model that gives every class the same probability, without weights of the classes, nats.

    Raises:
        UsageError: that of a plug-in is not above 0, so that an LR range test could not tell by it when training diverges.
    """
    if config.loss in ("cross_entropy", "jsd"):  # between equal views there is no divergence
        return math.log(classes)
    # With softmax any equal logits are uniform; with sigmoid these are 1 / classes.
    logits = torch.full((classes, classes), -math.log(max(classes - 1, 1)))
    targets, is_mixed = torch.arange(classes), bool(config.mixup or config.cutmix)
    if config.loss not in LOSSES and is_mixed:  # a loss of a plug-in has soft targets in the whole run then
        targets = smooth_one_hot(targets, classes, config.label_smoothing)
        loss = float(make_loss(config, logits.device, is_smoothed=True)(logits, targets))
    else:
        loss = float(make_loss(config, logits.device)(logits, targets))
    if config.loss not in LOSSES and not loss > 0:
        raise UsageError(
            f"loss={config.loss} is {loss:g} where all classes are equally probable; an LR range test needs a loss above 0 there: give --lr-max and --lr-min"
        )
    return loss
