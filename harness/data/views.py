"""Several views of each image in a batch, which the JSD loss compares: images float [B, V, channels, H, W] in place of [B, channels, H, W].

A batch stays one of B images, so that it is divided into micro-batches and among processes as any other. The network gets
timm's order: all first views, then all second ones, and so on.
"""

from __future__ import annotations

import torch
from torch import Tensor


def flatten_views(images: Tensor) -> Tensor:
    """Return images [B, V, channels, H, W] as [V * B, channels, H, W], all first views first; those without views as they are."""
    return images if images.ndim == 4 else images.transpose(0, 1).flatten(0, 1)


def with_memory_format(images: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return images whose `flatten_views` is a view of them in this memory format."""
    if images.ndim == 4:
        return _in_format(images, memory_format)
    flat = _in_format(flatten_views(images), memory_format)
    return flat.unflatten(0, (images.shape[1], len(images))).transpose(0, 1)


def _in_format(images: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return images [B, channels, H, W] in a memory format, with the strides by which torch chooses its kernels.

    Images of one channel are in both formats at once, so that `contiguous` leaves the strides of either.
    """
    images = images.contiguous(memory_format=memory_format)
    count, channels, height, width = images.shape
    if channels != 1:
        return images
    step = 1 if memory_format == torch.channels_last else height * width
    return images.as_strided((count, 1, height, width), (height * width, step, width, 1))
