"""Mixup and CutMix through timm's `Mixup`, as a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from harness.config.settings import Config
from harness.utils.seeding import seed_for


def make_mixup(config: Config, classes: int) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None:
    """(images [B, 3, H, W], labels [B], step) -> (mixed images, soft targets float [B, classes]); None when both are off.

    timm draws from NumPy's global stream: it is seeded for the step and given back as it was.
    """
    if not config.mixup and not config.cutmix:
        return None
    from timm.data import Mixup

    mixup = Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=classes,
    )

    def mixup_batch(images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if len(images) % 2:  # timm pairs images, so an odd one is left as it is
            mixed, targets = mixup_batch(images[:-1], labels[:-1], step)
            alone = mixup_target(labels[-1:], classes, config.label_smoothing).to(targets)
            return torch.cat([mixed, images[-1:]]), torch.cat([targets, alone])
        state = np.random.get_state()
        np.random.seed(seed_for(config.seed, "mix", step) % 2**32)
        try:
            return mixup(images.clone(), labels)
        finally:
            np.random.set_state(state)

    return mixup_batch


def mixup_target(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """One-hot targets [B, classes], smoothed: 1 - s + s/classes on the label, s/classes elsewhere."""
    return one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes
