"""Learning-rate schedules as pure functions of the step: there is no state to save."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.config.settings import Config
from harness.training.own_schedules import Shape, find_shape
from harness.utils.errors import UsageError
from harness.utils.text import counted

# Schedules whose LR falls by a factor now and then, or not at all: no curve between LRMIN and LRMAX, a constant momentum.
LEVELS = ("step", "multi_step", "plateau", "constant")


@dataclass(frozen=True)
class Schedule:
    """The learning rate (and momentum) of every optimizer update of a run.

    `lr(k)` is the learning rate of the update after k others, k = 0 .. steps-1; `lr(steps)` is the end of the curve.

    Attributes:
        kind: one of `SCHEDULES`, or the name of one that a plug-in registers.
        steps: updates of the run.
        peak: updates from the beginning of the curve until one_cycle reaches `lr_max`, or cosine ends its warm-up from
            `lr_min`.
        momentum_min: momentum at the LR's maximum; None: constant momentum.
        patience: of plateau, epochs.
        factor: by which plateau, step and multi_step multiply the LR.
        milestones: updates after which multi_step does, in the run.
        step_size: updates after which step does, again and again; each time is rounded to a whole update.
        power: exponent of polynomial.
        shape: the function of a plug-in's schedule.
        warmup: updates before the curve, in which the LR rises linearly to the curve's first one.
        warmup_factor: the LR of the first of these, as a fraction of that.
        ignored_losses: epochs at the beginning whose loss plateau does not regard: those of the warm-up.
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
    milestones: tuple[int, ...] = ()
    step_size: float = 1.0
    power: float = 1.0
    shape: Shape | None = None
    warmup: int = 0
    warmup_factor: float = 0.01
    ignored_losses: int = 0
    former: Schedule | None = None
    since: int = 0

    def height(self, step: float) -> float:
        """Return the position of the curve between lr_min (0) and lr_max (1), from the end of the warm-up on."""
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
            case "polynomial":
                if step < self.peak:
                    return step / self.peak
                return float(max(1 - (step - self.peak) / max(steps - self.peak, 1), 0.0) ** self.power)
        return 1.0 if self.shape is None else self.shape(step, steps)

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
        if self.former is None:
            return self.warmup
        if not self._continues_cycles:
            return self.since
        return self.former.steps

    def extend(self, since: int, steps: int) -> Schedule:
        """Return the schedule of the same run with another length, which is decided after `since` updates.

        Nothing changes before `since`, nor in the warm-up. A one-cycle, cosine or polynomial schedule, or one of a plug-in,
        that has not ended continues from its present LR: the rest of its curve is stretched. One that has ended begins
        again: one-cycle from the LR that it has ended with, cosine and polynomial after a warm-up from there, if they had
        one, else from `lr_max`, with peak and warm-up at the same fractions. Cyclic continues with triangles of about the
        same length. Step and multi_step keep the updates at which they lower the LR. Plateau and constant depend on no
        length.

        Args:
            steps: updates of the whole run.
        """
        since = max(since, self.warmup)
        extended = dataclasses.replace(self, former=self, since=since, steps=steps)
        former, length = max(self.steps - self._start, 1), max(steps - extended._start, 1)
        cycles = max(1.0, round(length * self.cycles / former))
        peak = self.peak / former * length
        if self.warmup and self.former is None and since >= self.steps and self.kind in ("cosine", "polynomial"):
            peak = self.warmup / self.steps * length
        return dataclasses.replace(extended, peak=peak, cycles=cycles)

    def describe_extension(self, steps_per_epoch: int) -> str:
        """Return in words what becomes of the learning rate after `extend`."""
        assert self.former is not None
        present = self.former.lr(max(self.since - 1, 0)) if self.kind != "plateau" else self.lr_max
        epochs = self.steps / steps_per_epoch
        if self.kind in ("plateau", "constant"):
            return f"{self.kind} does not depend on the number of epochs"
        if self.kind in LEVELS:
            return f"{self.kind} keeps the epochs at whose end it lowers the LR"
        if self._is_stretched:
            left, whole = ((end - self.since) / steps_per_epoch for end in (self.former.steps, self.steps))
            highest = max(range(self.since, self.steps + 1), key=self.height)
            top = self.lr(highest)
            rise = f"reaches {top:.3g} at epoch {highest / steps_per_epoch:.3g}, " if top > self.lr(self.since) else ""
            return f"{self.kind} continues from LR {present:.3g}: the rest of its curve takes {whole:.4g} instead of {left:.4g} epochs, {rise}and ends at LR {self.lr(self.steps):.3g}"
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
        if step < self.warmup:
            progress = step / self.warmup
            return self._curve_lr(self.warmup, losses) * (self.warmup_factor * (1 - progress) + progress)
        return self._curve_lr(step, losses)

    def _curve_lr(self, step: int, losses: Sequence[float]) -> float:
        """Return the learning rate of an update after the warm-up."""
        match self.kind:
            case "plateau":
                return self._lowered(plateau_drops(losses[self.ignored_losses :], self.patience))
            case "step":
                return self._lowered(self._drops(step))
            case "multi_step":
                return self._lowered(bisect.bisect_right(self.milestones, step))
        height = self.height(step)
        return self.lr_min * (1 - height) + self.lr_max * height  # exact at both ends

    def _drops(self, step: int) -> int:
        """Return how many multiples of `step_size`, each rounded to a whole update, have been reached at an update."""
        drops = int(step / self.step_size) + 1
        while drops and round(drops * self.step_size) > step:
            drops -= 1
        return drops

    def _lowered(self, drops: int) -> float:
        """Return `lr_max` after some multiplications by `factor`; not below `lr_min`."""
        return max(self.lr_max * self.factor**drops, min(self.lr_min, self.lr_max))

    def momentum_at(self, step: int) -> float:
        """Return the momentum of one update: at its minimum where the learning rate is at its maximum."""
        if self.momentum_min is None or self.kind in LEVELS:
            return self.momentum
        height = self.height(self.warmup) * step / self.warmup if step < self.warmup else self.height(step)
        return self.momentum * (1 - height) + self.momentum_min * height


def make_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """Return the schedule of a run with `steps_per_epoch` updates in an epoch.

    Raises:
        UsageError: there is no such schedule, or its warm-up does not end before the run or the peak.
    """
    lr_min, lr_max = config.rates()
    shape, extensions = find_shape(config), config.extensions()
    lengths = [*(epochs for _, epochs in extensions), config.epochs]
    steps = lengths[0] * steps_per_epoch
    warmup = config.warmup_steps or round(config.warmup_epochs * steps_per_epoch)
    peak = config.peak_epoch * steps_per_epoch
    if config.schedule == "one_cycle" and config.warmup_epochs:
        warmup = min(warmup, int(peak))  # both may be rounded
    milestones = [epoch * steps_per_epoch for epoch in config.milestone_epochs()] or [steps / 2, steps * 3 / 4]
    step_size = config.step_epochs * steps_per_epoch or math.ceil(steps / 3)
    first_drop = {"step": step_size, "multi_step": milestones[0]}.get(config.schedule, math.inf)
    _check_warmup(config, warmup, min(lengths) * steps_per_epoch, peak, first_drop)
    rise = peak - warmup if not warmup or peak - warmup >= 1 else 0.0  # updates from the warm-up to the peak
    schedule = Schedule(
        kind=config.schedule,
        steps=steps,
        lr_min=lr_min,
        lr_max=lr_max,
        peak={"one_cycle": rise, "cosine": 0.0 if warmup else peak}.get(config.schedule, 0.0),
        cycles=config.cycles,
        momentum=config.momentum,
        momentum_min=config.momentum_min,
        patience=config.plateau_patience,
        factor=config.plateau_factor if config.schedule == "plateau" else config.step_factor,
        milestones=tuple(round(step) for step in milestones),
        step_size=max(step_size, 1.0),
        power=config.poly_power,
        shape=shape,
        warmup=warmup,
        warmup_factor=config.warmup_factor,
        ignored_losses=math.ceil(warmup / steps_per_epoch) if warmup else 0,
    )
    for (step, _), epochs in zip(extensions, lengths[1:], strict=True):
        schedule = schedule.extend(step, epochs * steps_per_epoch)
    if shape is not None:
        # Its end, `steps`, is no update's rate, but that of a plot, and of a run that is trained on.
        for step in {schedule.warmup, (schedule.warmup + schedule.steps) // 2, schedule.steps - 1, schedule.steps} - {
            -1
        }:
            schedule.height(step)  # a function that fails does so before anything is trained
    return schedule


def _check_warmup(config: Config, warmup: int, steps: int, peak: float, first_drop: float) -> None:
    if warmup and warmup >= steps:
        raise UsageError(
            f"the warm-up takes {counted(warmup, 'update', 'updates')}, and the run {counted(steps, 'update', 'updates')}; lower --warmup-steps or --warmup-epochs, or raise --epochs"
        )
    if config.schedule == "one_cycle" and warmup > peak:
        raise UsageError(
            f"the warm-up takes {counted(warmup, 'update', 'updates')}, and one_cycle reaches its peak after {peak:g}; lower --warmup-steps or --warmup-epochs, or raise --peak-epoch"
        )
    if warmup > first_drop:
        raise UsageError(
            f"the warm-up takes {counted(warmup, 'update', 'updates')}, and schedule={config.schedule} lowers the LR after {first_drop:g} already; lower --warmup-steps or --warmup-epochs, or raise --{'step-epochs' if config.schedule == 'step' else 'milestones'}"
        )
    if warmup and config.schedule in ("one_cycle", "cyclic") and config.rates()[0] == 0:
        raise UsageError(
            f"a warm-up of schedule={config.schedule} rises to LRMIN, which is 0, so that nothing would be learnt in it; set --lr-min above 0, or --peak-epoch for a later peak"
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
