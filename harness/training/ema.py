"""Exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class EMAModel(AveragedModel):
    """Moving average of the parameters and buffers of a model, without a host sync.

    The `update_parameters` of `AveragedModel` copies the number of updates to the device in each one, for averaging
    functions that need it there; the decay here is computed on the CPU. Without warm-up the average is bit-identical
    to torch's; the warm-up is that of `timm.utils.ModelEmaV3`.

    Args:
        decay: weight of the former average in the new one.
        warmup: let the decay rise to `decay`, so that the initial weights do not stay in the average of a short run.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False) -> None:
        super().__init__(model, use_buffers=True)
        self.decay, self.warmup = decay, warmup

    def decay_after(self, updates: int) -> float:
        """Return the decay of the next update after so many: with warm-up 0, 0.37, 0.52, 0.60, ..., 0.98 after 350."""
        return min(self.decay, 1 - (1 + updates) ** (-2 / 3)) if self.warmup else self.decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the model; the first call copies it."""
        averages = chain(self.module.parameters(), self.module.buffers())
        values = chain(model.parameters(), model.buffers())
        pairs = [(average.detach(), value.detach()) for average, value in zip(averages, values, strict=True)]
        updates = int(self.n_averaged)  # a tensor on the CPU
        if updates == 0:
            for average, value in pairs:
                average.copy_(value)
        else:
            self._update(pairs, self.decay_after(updates))
        self.n_averaged += 1

    @staticmethod
    def _update(pairs: list[tuple[Tensor, Tensor]], decay: float) -> None:
        by_dtype: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for average, value in pairs:
            by_dtype.setdefault(average.dtype, []).append((average, value))
        for dtype, same_dtype in by_dtype.items():
            if dtype.is_floating_point or dtype.is_complex:
                averages, values = zip(*same_dtype, strict=True)
                torch._foreach_lerp_(list(averages), list(values), 1 - decay)
            else:
                for average, value in same_dtype:
                    average.copy_(average * decay + value * (1 - decay))
