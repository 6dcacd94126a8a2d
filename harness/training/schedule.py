"""Learning-rate schedules as pure functions of the step: there is no state to save."""

from __future__ import annotations

import dataclasses
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
        former, since: the schedule of the run before its length was changed after `since` updates, see `extend`; `peak` and
            `cycles` are then of the curve that begins there.
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
    former: Schedule | None = None
    since: int = 0

    def height(self, step: float) -> float:
        """Return the position of the curve between lr_min (0) and lr_max (1)."""
        former, lowest = self.former, 0.0
        if former is not None:
            if step < self.since or (step < former.steps and self._continues_cycles):
                return former.height(step)
            if self._is_stretched:
                left, whole = former.steps - self.since, self.steps - self.since
                is_last = step >= self.steps
                return former.height(former.steps if is_last else self.since + (step - self.since) * left / whole)
            lowest = former.height(former.steps) if self.kind == "one_cycle" else 0.0
        return self._new_height(step - self._start, self.steps - self._start, lowest)

    def _new_height(self, step: float, steps: float, lowest: float) -> float:
        """Return the height of a curve of `steps` updates that begins at height `lowest`."""
        match self.kind:
            case "one_cycle":
                height = _triangle(step, self.peak, steps)
                return lowest + (1 - lowest) * height if step < self.peak else height
            case "cyclic":
                # Smith, "Cyclical Learning Rates", https://arxiv.org/abs/1506.01186, section 3: the triangular policy.
                length = steps / self.cycles
                return _triangle(step % length if step < steps else length, length / 2, length)
            case "cosine":
                if step < self.peak:
                    return step / self.peak
                return 0.5 * (1 + math.cos(math.pi * (step - self.peak) / max(steps - self.peak, 1)))
        return 1.0

    @property
    def _continues_cycles(self) -> bool:
        """Whether the triangles of a cyclic schedule that has not ended go on as they were, and others follow."""
        former = self.former
        return former is not None and self.kind == "cyclic" and self.since < former.steps < self.steps

    @property
    def _is_stretched(self) -> bool:
        """Whether what was left of the former curve is stretched (or compressed) over what is left now."""
        former = self.former
        return former is not None and self.since < former.steps and not self._continues_cycles

    @property
    def _start(self) -> int:
        """The update with which a curve of its own begins."""
        if self.former is None or not self._continues_cycles:
            return self.since
        return self.former.steps

    def extend(self, since: int, steps: int) -> Schedule:
        """Return the schedule of the same run with another length, which is decided after `since` updates.

        Nothing changes before `since`. A one-cycle or cosine schedule that has not ended continues from its present LR: the
        rest of its curve is stretched. One that has ended begins again, from the LR that it has ended with (cosine without
        a warm-up: from `lr_max`), with its peak at the same fraction. Cyclic continues with triangles of about the same
        length. Plateau and constant depend on no length.

        Args:
            steps: updates of the whole run.
        """
        extended = dataclasses.replace(self, former=self, since=since, steps=steps)
        former, length = max(self.steps - self._start, 1), max(steps - extended._start, 1)
        cycles = max(1.0, round(length * self.cycles / former))
        return dataclasses.replace(extended, peak=self.peak / former * length, cycles=cycles)

    def describe_extension(self, steps_per_epoch: int) -> str:
        """Return in words what becomes of the learning rate after `extend`."""
        assert self.former is not None
        present = self.former.lr(max(self.since - 1, 0)) if self.kind != "plateau" else self.lr_max
        epochs = self.steps / steps_per_epoch
        if self.kind in ("plateau", "constant"):
            return f"{self.kind} does not depend on the number of epochs"
        if self._is_stretched:
            left, whole = ((end - self.since) / steps_per_epoch for end in (self.former.steps, self.steps))
            return f"{self.kind} continues from LR {present:.3g}: the rest of its curve takes {whole:.4g} instead of {left:.4g} epochs, and ends at LR {self.lr(self.steps):.3g}"
        if self.kind == "cyclic":
            return f"cyclic continues with {self.cycles:g} more cycles of {(self.steps - self._start) / self.cycles / steps_per_epoch:.3g} epochs"
        peak = (self.since + self.peak) / steps_per_epoch
        return f"{self.kind} begins again, at LR {self.lr(self.since):.3g}, {self.lr_max:.3g} at epoch {peak:.4g}, {self.lr(self.steps):.3g} at epoch {epochs:.4g}"

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
    extensions = config.extensions()
    lengths = [*(epochs for _, epochs in extensions), config.epochs]
    schedule = Schedule(
        kind=config.schedule,
        steps=lengths[0] * steps_per_epoch,
        lr_min=lr_min,
        lr_max=lr_max,
        peak=config.peak_epoch * steps_per_epoch,
        cycles=config.cycles,
        momentum=config.momentum,
        momentum_min=config.momentum_min,
        patience=config.plateau_patience,
        factor=config.plateau_factor,
    )
    for (step, _), epochs in zip(extensions, lengths[1:], strict=True):
        schedule = schedule.extend(step, epochs * steps_per_epoch)
    return schedule


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
