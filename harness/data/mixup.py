"""Mixup and CutMix through timm's `Mixup`, as a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from harness.config.settings import Config
from harness.utils.seeding import seed_for


def make_mixup(config: Config, num_classes: int) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None:
    """Return the function that mixes a batch, or None where both Mixup and CutMix are off.

    It takes images float [B, channels, H, W], labels int64 [B] (uint8 [B, num_classes] where images have several) and the step, and returns mixed images and soft targets
    float [B, num_classes]. timm draws from NumPy's global generator, which is seeded for the step and then restored.
    """
    if not config.mixup and not config.cutmix:
        return None
    from timm.data import Mixup

    mixup = Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
        multi_label=config.is_multilabel,
    )

    def mixup_batch(images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if len(images) % 2:  # timm mixes pairs of images, so the last one of an odd batch stays as it is
            mixed, targets = mixup_batch(images[:-1], labels[:-1], step)
            smooth = _smooth_labels if config.is_multilabel else smooth_one_hot
            last_target = smooth(labels[-1:], num_classes, config.label_smoothing).to(targets)
            return torch.cat([mixed, images[-1:]]), torch.cat([targets, last_target])
        state = np.random.get_state()
        np.random.seed(seed_for(config.seed, "mix", step) % 2**32)
        try:
            return mixup(images.clone(), labels)
        finally:
            np.random.set_state(state)

    return mixup_batch


def smooth_one_hot(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return targets float [B, num_classes]: 1 - s + s/num_classes for the label, s/num_classes for the other classes."""
    return one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def _smooth_labels(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return several labels per image, [B, num_classes] of 0 and 1, as float targets moved towards 0.5, as timm does."""
    return labels.float() * (1 - smoothing) + 0.5 * smoothing
