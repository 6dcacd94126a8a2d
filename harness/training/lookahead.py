"""Look-ahead averaging of the weights, whose pull grows towards the end of training.

Sources: Zhang et al., "Lookahead Optimizer", https://arxiv.org/abs/1907.08610; the schedule of the average is Keller
Jordan's, https://arxiv.org/abs/2404.00498, section 3.4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

DECAY_OF_AN_UPDATE = 0.95


class Lookahead:
    """A moving average of a model's weights that replaces them every few updates.

    After every `every`-th update t of T the average moves to `decay * average + (1 - decay) * weights`, with
    `decay = 0.95**every * (t / T)**3`, and is copied into the model; after the last update it is only copied. Floating-point
    buffers (running statistics) are averaged too.

    Args:
        every: updates between two averages.
        steps: updates T of the run.
    """

    def __init__(self, model: nn.Module, every: int, steps: int) -> None:
        self.every, self.steps = every, steps
        self._values = [value for value in (*model.parameters(), *model.buffers()) if value.is_floating_point()]
        self._averages = [value.detach().clone() for value in self._values]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average and replace the weights where it is time.

        Args:
            step: updates done, this one included.
        """
        values = [value.detach() for value in self._values]
        if step >= self.steps:
            torch._foreach_copy_(values, self._averages)
        elif step % self.every == 0:
            decay = DECAY_OF_AN_UPDATE**self.every * (step / self.steps) ** 3
            torch._foreach_lerp_(self._averages, values, 1 - decay)
            torch._foreach_copy_(values, self._averages)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages."""
        return {"averages": self._averages}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Restore what `state_dict` returned."""
        for average, value in zip(self._averages, state["averages"], strict=True):
            average.copy_(value)
