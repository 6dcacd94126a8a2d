"""Exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class EMAModel(AveragedModel):
    """Moving average of the parameters and buffers of a model, bit-identical to torch's and without a host sync.

    The `update_parameters` of `AveragedModel` copies the number of updates to the device in each one, for averaging
    functions that need it there; an average with a constant decay does not.

    Args:
        decay: weight of the former average in the new one.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the model; the first call copies it."""
        averages = chain(self.module.parameters(), self.module.buffers())
        values = chain(model.parameters(), model.buffers())
        pairs = [(average.detach(), value.detach()) for average, value in zip(averages, values, strict=True)]
        if int(self.n_averaged) == 0:  # a tensor on the CPU
            for average, value in pairs:
                average.copy_(value)
        else:
            self._update(pairs)
        self.n_averaged += 1

    def _update(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        by_dtype: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for average, value in pairs:
            by_dtype.setdefault(average.dtype, []).append((average, value))
        for dtype, same_dtype in by_dtype.items():
            if dtype.is_floating_point or dtype.is_complex:
                averages, values = zip(*same_dtype, strict=True)
                torch._foreach_lerp_(list(averages), list(values), 1 - self.decay)
            else:
                for average, value in same_dtype:
                    average.copy_(average * self.decay + value * (1 - self.decay))
