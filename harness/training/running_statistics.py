"""Running statistics of batch normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def unmoved_statistics(model: nn.Module) -> Iterator[None]:
    """Leave running statistics as they are while a backward pass computes layers again, as gradient checkpointing does.

    They have moved in the forward pass. With momentum 0 the layers compute the same and save the same tensors, which
    checkpointing asks for, and add nothing to the statistics. It applies to torch's batch and instance normalisation and to what
    is derived from them, as timm's is; not to layers that keep statistics in a way of their own.
    """
    layers = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    counters = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
    counts = [counter.clone() for counter in counters]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        with torch.no_grad():
            for counter, count in zip(counters, counts, strict=True):
                counter.copy_(count)
