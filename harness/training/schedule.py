"""Learning-rate schedules as pure functions of the step: there is no state to save."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.config.settings import Config


@dataclass(frozen=True)
class Schedule:
    """The learning rate (and momentum) of every optimizer update of a run.

    `lr(k)` is the learning rate of the update after k others, k = 0 .. steps-1; `lr(steps)` is the end of the curve.

    Attributes:
        kind: one_cycle, cyclic, cosine, plateau or constant.
        steps: updates of the run.
        peak: step at which one_cycle reaches `lr_max` and cosine ends its warm-up.
        momentum_min: momentum at the LR's maximum; None: constant momentum.
    """

    kind: str
    steps: int
    lr_min: float
    lr_max: float
    peak: float = 0.0
    cycles: float = 1
    momentum: float = 0.9
    momentum_min: float | None = None
    patience: int = 10
    factor: float = 0.1

    def height(self, step: float) -> float:
        """Return the position of the curve between lr_min (0) and lr_max (1)."""
        match self.kind:
            case "one_cycle":
                return _triangle(step, self.peak, self.steps)
            case "cyclic":
                # Smith, "Cyclical Learning Rates", https://arxiv.org/abs/1506.01186, section 3: the triangular policy.
                length = self.steps / self.cycles
                return _triangle(step % length if step < self.steps else length, length / 2, length)
            case "cosine":
                if step < self.peak:
                    return step / self.peak
                return 0.5 * (1 + math.cos(math.pi * (step - self.peak) / max(self.steps - self.peak, 1)))
        return 1.0

    def lr(self, step: int, losses: Sequence[float] = ()) -> float:
        """Return the learning rate of one update.

        Args:
            step: updates done before it.
            losses: the validation loss after each finished epoch; only plateau uses them.
        """
        if self.kind == "plateau":
            drops = plateau_drops(losses, self.patience)
            return max(self.lr_max * self.factor**drops, min(self.lr_min, self.lr_max))
        height = self.height(step)
        return self.lr_min * (1 - height) + self.lr_max * height  # exact at both ends

    def momentum_at(self, step: int) -> float:
        """Return the momentum of one update: at its minimum where the learning rate is at its maximum."""
        if self.momentum_min is None or self.kind in ("plateau", "constant"):
            return self.momentum
        height = self.height(step)
        return self.momentum * (1 - height) + self.momentum_min * height


def make_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """Return the schedule of a run with `steps_per_epoch` updates in an epoch."""
    lr_min, lr_max = config.rates()
    return Schedule(
        kind=config.schedule,
        steps=config.epochs * steps_per_epoch,
        lr_min=lr_min,
        lr_max=lr_max,
        peak=config.peak_epoch * steps_per_epoch,
        cycles=config.cycles,
        momentum=config.momentum,
        momentum_min=config.momentum_min,
        patience=config.plateau_patience,
        factor=config.plateau_factor,
    )


def plateau_drops(losses: Sequence[float], patience: int, threshold: float = 1e-4) -> int:
    """Return how often the learning rate was lowered: once for each `patience` + 1 epochs in a row without a lower loss.

    A loss is lower if it is below (1 - threshold) times the lowest so far; NaN is not lower. The counts are those of `torch.optim.lr_scheduler.ReduceLROnPlateau` with its defaults.
    """
    lowest, waited, drops = math.inf, 0, 0
    for loss in losses:
        if loss < lowest * (1 - threshold) or (math.isinf(lowest) and math.isfinite(loss)):
            lowest, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            drops, waited = drops + 1, 0
    return drops


def _triangle(step: float, peak: float, end: float) -> float:
    """Return 0 at step 0, 1 at `peak`, 0 at `end`, and linear values between."""
    if step < peak:
        return step / peak
    if step >= end:
        return 1.0 if end <= peak else 0.0
    return (end - step) / (end - peak)
