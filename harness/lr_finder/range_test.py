"""The learning-rate range test: the steps of training at rising rates, on learners of its own, and without a trace.

It takes the very step that training takes (`Learner.update`), on models that it makes for itself, and gives every
random stream back as it was: training after it is the training that would have been without it, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from harness.lr_finder.analysis import DivergenceDetector, End, LRCurve
from harness.tracking.records import Curve, Record
from harness.training.learner import Learner
from harness.training.loop import EvalBatches, StepInfo, TrainBatches, evaluate
from harness.training.rng import preserve_rng_state
from harness.training.schedule import Schedule
from harness.utils.errors import UsageError
from harness.utils.seeding import seed_for

Make = Callable[[int], Learner]  # seed -> a fresh learner with that seed's initial weights
Feed = Callable[[int], TrainBatches]  # seed -> the training batches in that seed's order

STEPS_PER_DECADE = 25
HELD_POINTS = 20  # how often the held-out images are asked


@dataclass(frozen=True)
class LRRange:
    """The rates of a range test.

    Attributes:
        steps: updates between the two ends. When the loss has not diverged by then, the range goes on at the same
            pace: to a hundred times its upper end, or four times when it is linear.
    """

    low: float
    high: float
    steps: int
    kind: Literal["exponential", "linear"] = "exponential"

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise UsageError(f"need 0 < low < high, got low={self.low:g}, high={self.high:g}")
        if self.steps < 10:
            raise UsageError(
                f"steps={self.steps}: a range test needs at least 10, and better {STEPS_PER_DECADE} for each decade"
            )

    def lr(self, step: int) -> float:
        """The rate of the update after `step` finished ones, also beyond the upper end."""
        share = step / (self.steps - 1)
        if self.kind == "linear":
            return self.low + (self.high - self.low) * share
        return self.low * (self.high / self.low) ** share

    @property
    def most(self) -> int:
        """Updates in the range with all its extensions."""
        if self.kind == "linear":
            return 4 * self.steps
        return self.steps + math.ceil(2 * (self.steps - 1) / math.log10(self.high / self.low))


def default_range(
    optimizer: str,
    *,
    steps: int | None = None,
    low: float | None = None,
    high: float | None = None,
    linear: bool = False,
) -> LRRange:
    """The range for an optimizer, where nothing else is asked for: four decades and more, 25 steps in each.

    Adam and RMSprop divide by the size of the gradient, and learn and diverge at rates a tenth of SGD's and less.
    """
    usual = (1e-4, 1.0) if optimizer == "sgd" else (1e-6, 0.1)
    low = low if low is not None else usual[0] if high is None else min(usual[0], high / 1e3)
    high = high if high is not None else max(usual[1], 1e3 * low)
    if steps is None:
        decades = math.log10(high / low) if 0 < low < high else 1.0
        steps = max(4 * STEPS_PER_DECADE, math.ceil(STEPS_PER_DECADE * decades))
    return LRRange(low, high, steps, "linear" if linear else "exponential")


def range_test(
    make: Make,
    feed: Feed,
    window: LRRange,
    *,
    seeds: Sequence[int],
    momentum: float,
    uniform_loss: float,
    curves: list[LRCurve],
    held: EvalBatches | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Iterator[Record]:
    """The test for one seed after the other; one record of each.

    Args:
        make, feed: what each seed trains, and on what. Called with every random stream forked.
        chance: the loss of a model that guesses, ln(classes).
        curves: what was measured is added to it, seed by seed.
        held: images to evaluate on every few steps, which `feed` should not hold.
        watch: called between updates; it may raise to stop.

    Yields:
        `find/seed_<seed>`: loss and smoothed loss over the rate. The step is 0: nothing was trained.
    """
    for number, seed in enumerate(seeds):
        trace = curve_of_seed(
            make,
            feed,
            window,
            seed=seed,
            momentum=momentum,
            uniform_loss=uniform_loss,
            held=held,
            on_step=on_step,
            number=number,
        )
        curves.append(trace)
        yield Record(step=0, epoch=0, values={f"find/seed_{seed}": seed_curve(trace)}, kind="find")


def curve_of_seed(
    make: Make,
    feed: Feed,
    window: LRRange,
    *,
    seed: int,
    momentum: float,
    uniform_loss: float,
    held: EvalBatches | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
    number: int = 0,
) -> LRCurve:
    """The range test of one seed; whatever was random before is as it was."""
    with preserve_rng_state():
        learner, batches = make(seed), feed(seed)
        learner.measure_grad = True
        learner.model.train()
        alarm, notes = DivergenceDetector(uniform_loss, window.steps), _Notes(window, batches.steps, number, on_step)
        every = max(1, window.steps // HELD_POINTS)
        end: End = "end of range"
        for step, (images, labels) in enumerate(_stream(batches, seed)):
            if step >= window.most:
                break
            finite = notes.update(learner, images, labels, window.lr(step), momentum)
            if alarm.rings(notes.losses[-1]):
                end = "diverged" if finite else "not finite"
                break
            if held is not None and step % every == every - 1:
                with preserve_rng_state():  # a loader may draw; the test must not depend on whether it looks
                    scores = evaluate(learner.model, held, learner.device, learner.precision)
                notes.held[step] = (scores["loss"], scores["acc"])
        device = learner.device
        del learner, batches
    free_device_memory(device)
    return notes.trace(seed, end)


class _Notes:
    """What is written down of a test while it runs."""

    def __init__(self, window: LRRange, batches: int, number: int, on_step: Callable[[StepInfo], None] | None) -> None:
        self.window, self.batches, self.number, self.on_step = window, batches, number, on_step
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.accs: list[float] = []
        self.norms: list[float] = []
        self.held: dict[int, tuple[float, float]] = {}
        self.images = 0

    def update(self, learner: Learner, images: Tensor, labels: Tensor, lr: float, momentum: float) -> bool:
        """One step of training; whether its loss was finite. The loss is waited for."""
        try:
            outcome = learner.train_step(images, labels, len(self.lrs), lr, momentum)
        except FloatingPointError:
            self._add(lr, math.nan, math.nan, math.nan)
            return False
        loss = float(outcome.loss)
        norm = math.nan if outcome.grad_norm is None else float(outcome.grad_norm)
        self._add(outcome.lr, loss if math.isfinite(loss) else math.nan, int(outcome.correct) / len(labels), norm)
        self.images += len(labels)
        if self.on_step is not None:
            self.on_step(self._tick())
        return math.isfinite(loss)

    def _add(self, lr: float, loss: float, acc: float, norm: float) -> None:
        for line, value in ((self.lrs, lr), (self.losses, loss), (self.accs, acc), (self.norms, norm)):
            line.append(value)

    def _tick(self) -> StepInfo:
        done, planned = len(self.lrs), max(len(self.lrs), self.window.steps)
        loss, acc = self.losses[-1], self.accs[-1]
        return StepInfo(
            step=self.number * self.window.steps + done,
            epoch=self.number,
            epochs=self.number + 1,
            batch=done,
            batches=planned,
            images=self.images,
            lr=self.lrs[-1],
            loss=lambda: loss,
            acc=lambda: acc,
        )

    def trace(self, seed: int, end: End) -> LRCurve:
        lrs, losses, accs, norms = (np.array(line) for line in (self.lrs, self.losses, self.accs, self.norms))
        return LRCurve(seed, lrs, losses, accs, norms, self.window.steps, end, self.held)


@dataclass(frozen=True)
class ShortRun:
    """A short one-cycle run with its maximum at `lr_max`.

    Attributes:
        loss, acc: on the held-out images at its end; NaN and 0 where it diverged.
    """

    lr_max: float
    lr_min: float
    steps: int
    loss: float
    acc: float


def short_run(
    make: Make,
    feed: Feed,
    held: EvalBatches,
    schedule: Schedule,
    *,
    seed: int,
    on_step: Callable[[], None] | None = None,
) -> ShortRun:
    """Train for one whole, short schedule and evaluate, with every random stream given back as it was.

    Args:
        watch: called between updates; it may raise to stop.
    """
    scores = {"loss": math.nan, "acc": 0.0}
    with preserve_rng_state():
        learner, batches = make(seed), feed(seed)
        learner.model.train()
        diverged = False
        for step, (images, labels) in enumerate(_stream(batches, seed)):
            if step >= schedule.steps:
                break
            try:
                outcome = learner.train_step(images, labels, step, schedule.lr(step), schedule.momentum_at(step))
            except FloatingPointError:
                diverged = True
                break
            if on_step is not None:
                on_step()
        if not diverged and bool(torch.isfinite(outcome.loss)):
            # The weights themselves: a moving average is still at its beginning after so few steps.
            scores = evaluate(learner.model, held, learner.device, learner.precision)
            scores = scores if math.isfinite(scores["loss"]) else {"loss": math.nan, "acc": 0.0}
        device = learner.device
        del learner, batches
    free_device_memory(device)
    return ShortRun(schedule.lr_max, schedule.lr_min, schedule.steps, scores["loss"], scores["acc"])


def candidates(lr_max: float, count: int) -> list[float]:
    """`count` rates around `lr_max`: itself, its half, its double, its quarter, and so on."""
    powers = [(place + 1) // 2 * (-1 if place % 2 else 1) for place in range(count)]
    return [lr_max * 2.0**power for power in powers]


def seed_curve(trace: LRCurve) -> Curve:
    """Loss and smoothed loss of one seed over the rate, up to the first loss that is not finite."""
    end = trace.finite
    lines = {"loss": trace.losses[:end].tolist(), "smoothed": trace.smoothed[:end].tolist()}
    return Curve("lr", trace.lrs[:end].tolist(), lines, title=f"range test, seed {trace.seed}")


def median_curve(curves: Sequence[LRCurve], what: Literal["level", "smoothed", "acc_level"]) -> Curve:
    """Median and extremes over the seeds at each rate that at least half of them reached with a finite loss."""
    reached = sorted((trace.finite for trace in curves), reverse=True)
    length = reached[(len(reached) - 1) // 2] if reached else 0
    lines_of_seeds = [getattr(trace, what)[: trace.finite] for trace in curves]
    lines: dict[str, list[float]] = {"median": [], "low": [], "high": []}
    for place in range(length):
        values = [float(line[place]) for line in lines_of_seeds if place < len(line)]
        for name, read in (("median", np.median), ("low", np.min), ("high", np.max)):
            lines[name].append(float(read(values)))
    longest = max(curves, key=lambda trace: len(trace.lrs)).lrs[:length].tolist() if curves else []
    return Curve("lr", longest, lines, title=what)


def _stream(batches: TrainBatches, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch, with dropout and the like seeded as in training."""
    epoch = 0
    while True:
        torch.manual_seed(seed_for(seed, "epoch", epoch))
        some = False
        for batch in batches.epoch(epoch):
            some = True
            yield batch
        if not some:
            raise UsageError("an epoch has no batches to test on; lower --batch-size")
        epoch += 1


def free_device_memory(device: torch.device) -> None:
    """Give the memory of what is no longer used back, and begin to measure its peak anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
