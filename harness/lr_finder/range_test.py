"""The LR range test: training steps at rising learning rates, on learners of its own.

It takes the very step that training takes (`Learner.train_step`), on models that it makes for itself, and restores
every random stream: training after it is bit-identical to training without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from harness.lr_finder.analysis import DivergenceDetector, End, LRCurve
from harness.lr_finder.measure import measure_of
from harness.tracking.records import Curve, Record
from harness.training.learner import Learner
from harness.training.loop import EvalBatches, StepInfo, TrainBatches, evaluate_batches
from harness.training.multilabel import evaluate_multilabel, ranking_quality
from harness.training.rng import preserve_rng_state
from harness.training.schedule import Schedule
from harness.utils.errors import UsageError
from harness.utils.seeding import seed_for

LearnerFactory: TypeAlias = Callable[[int], Learner]  # seed -> a new learner with that seed's initial weights
LoaderFactory: TypeAlias = Callable[[int], TrainBatches]  # seed -> the training batches in that seed's order

STEPS_PER_DECADE = 25
VAL_POINTS = 20  # how often the held-out images are evaluated


@dataclass(frozen=True)
class LRRange:
    """The learning rates of a range test.

    Attributes:
        steps: updates between the two ends. When the loss has not diverged by then, the range is extended at the
            same pace: to a hundred times its upper end, or four times when it is linear.
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
                f"steps={self.steps}: a range test needs at least 10; {STEPS_PER_DECADE} per decade are recommended"
            )

    def lr(self, step: int) -> float:
        """Return the learning rate of the update after `step` finished ones, also beyond the upper end."""
        fraction = step / (self.steps - 1)
        if self.kind == "linear":
            return self.low + (self.high - self.low) * fraction
        return self.low * (self.high / self.low) ** fraction

    @property
    def max_steps(self) -> int:
        """Updates in the range with all its extensions."""
        if self.kind == "linear":
            return 4 * self.steps
        return self.steps + math.ceil(2 * (self.steps - 1) / math.log10(self.high / self.low))


def is_like_sgd(optimizer: str) -> bool:
    """Return whether an optimizer takes rates as those of SGD; others divide the gradient by its size."""
    return optimizer.removeprefix("c").startswith(("sgd", "momentum", "nesterov"))


def default_range(
    optimizer: str,
    *,
    steps: int | None = None,
    low: float | None = None,
    high: float | None = None,
    linear: bool = False,
) -> LRRange:
    """Return the range for an optimizer: four decades and more, 25 steps in each, unless given otherwise.

    Adam and RMSprop divide by the size of the gradient, and learn and diverge at a tenth of SGD's rates or less.
    """
    usual_low, usual_high = (1e-4, 1.0) if is_like_sgd(optimizer) else (1e-6, 0.1)
    if low is None:
        low = usual_low if high is None else min(usual_low, high / 1e3)
    if high is None:
        high = max(usual_high, 1e3 * low)
    if steps is None:
        decades = math.log10(high / low) if 0 < low < high else 1.0
        steps = max(4 * STEPS_PER_DECADE, math.ceil(STEPS_PER_DECADE * decades))
    return LRRange(low, high, steps, "linear" if linear else "exponential")


def range_test(
    learner_factory: LearnerFactory,
    loader_factory: LoaderFactory,
    lr_range: LRRange,
    *,
    seeds: Sequence[int],
    momentum: float,
    uniform_loss: float,
    curves: list[LRCurve],
    val_loader: EvalBatches | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Iterator[Record]:
    """Run the test with one seed after the other, and yield one record of each.

    Args:
        learner_factory, loader_factory: what each seed trains, and on what. Called with every random stream saved.
        uniform_loss: loss of a model that gives every class the same probability, ln(classes), nats.
        curves: the measurements are appended to it, seed by seed.
        val_loader: images to evaluate on every few steps, which `loader_factory` should not hold.
        on_step: called between updates; it may raise to stop.

    Yields:
        `find/seed_<seed>`, a detail: loss and smoothed loss over the learning rate. The step is 0: no run was trained.
    """
    for seed_index, seed in enumerate(seeds):
        curve = curve_of_seed(
            learner_factory,
            loader_factory,
            lr_range,
            seed=seed,
            momentum=momentum,
            uniform_loss=uniform_loss,
            val_loader=val_loader,
            on_step=on_step,
            seed_index=seed_index,
        )
        curves.append(curve)
        yield Record(step=0, epoch=0, values={}, kind="find", details={f"find/seed_{seed}": seed_curve(curve)})


def curve_of_seed(
    learner_factory: LearnerFactory,
    loader_factory: LoaderFactory,
    lr_range: LRRange,
    *,
    seed: int,
    momentum: float,
    uniform_loss: float,
    val_loader: EvalBatches | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
    seed_index: int = 0,
) -> LRCurve:
    """Run the range test with one seed; every random stream is restored afterwards."""
    with preserve_rng_state():
        learner, batches = learner_factory(seed), loader_factory(seed)
        learner.measure_grad = True
        if learner.is_multilabel:
            learner.count_correct = _ranked_images
        learner.begin_epoch(learner.freezing.epochs)
        detector = DivergenceDetector(uniform_loss, lr_range.steps)
        recorder = _CurveRecorder(lr_range, seed_index, on_step, measure_of(learner.is_multilabel).key)
        every = max(1, lr_range.steps // VAL_POINTS)
        end: End = "end of range"
        for step, (images, labels) in enumerate(_batches_of_all_epochs(batches, seed)):
            if step >= lr_range.max_steps:
                break
            is_finite = recorder.train_step(learner, images, labels, lr_range.lr(step), momentum)
            if detector.update(recorder.losses[-1]):
                end = "diverged" if is_finite else "not finite"
                break
            if val_loader is not None and step % every == every - 1:
                with preserve_rng_state():  # a loader may draw; the curve must not depend on whether it is evaluated
                    recorder.val_points[step] = _held_out_scores(learner, val_loader)
        device = learner.device
        del learner, batches
    free_device_memory(device)
    return recorder.curve(seed, end)


class _CurveRecorder:
    """Takes the steps of a range test and collects what each measures."""

    def __init__(
        self, lr_range: LRRange, seed_index: int, on_step: Callable[[StepInfo], None] | None, measure_key: str
    ) -> None:
        self.lr_range, self.seed_index, self.on_step, self.measure_key = lr_range, seed_index, on_step, measure_key
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.accs: list[float] = []
        self.norms: list[float] = []
        self.val_points: dict[int, tuple[float, float]] = {}
        self.images = 0

    def train_step(self, learner: Learner, images: Tensor, labels: Tensor, lr: float, momentum: float) -> bool:
        """Take one training step, wait for its loss, and return whether that is finite."""
        try:
            result = learner.train_step(images, labels, len(self.lrs), lr, momentum)
        except FloatingPointError:
            self._append(lr, math.nan, math.nan, math.nan)
            return False
        loss = float(result.loss)
        norm = math.nan if result.grad_norm is None else float(result.grad_norm)
        self._append(result.lr, loss if math.isfinite(loss) else math.nan, float(result.correct) / len(labels), norm)
        self.images += len(labels)
        if self.on_step is not None:
            self.on_step(self._step_info())
        return math.isfinite(loss)

    def _append(self, lr: float, loss: float, acc: float, norm: float) -> None:
        for column, value in ((self.lrs, lr), (self.losses, loss), (self.accs, acc), (self.norms, norm)):
            column.append(value)

    def _step_info(self) -> StepInfo:
        done = len(self.lrs)
        loss, acc = self.losses[-1], self.accs[-1]
        return StepInfo(
            step=self.seed_index * self.lr_range.steps + done,
            epoch=self.seed_index,
            epochs=self.seed_index + 1,
            batch=done,
            batches=max(done, self.lr_range.steps),
            images=self.images,
            lr=self.lrs[-1],
            loss=lambda: loss,
            acc=lambda: acc,
            share_name=self.measure_key,
        )

    def curve(self, seed: int, end: End) -> LRCurve:
        """Return what was collected."""
        lrs, losses, accs, norms = (np.array(column) for column in (self.lrs, self.losses, self.accs, self.norms))
        return LRCurve(seed, lrs, losses, accs, norms, self.lr_range.steps, end, self.val_points)


@dataclass(frozen=True)
class ShortRun:
    """A short one-cycle run with its maximum at `lr_max`.

    Attributes:
        loss, acc: on the held-out images at its end, accuracy or mAP; NaN and 0 where it diverged.
    """

    lr_max: float
    lr_min: float
    steps: int
    loss: float
    acc: float


def short_run(
    learner_factory: LearnerFactory,
    loader_factory: LoaderFactory,
    val_loader: EvalBatches,
    schedule: Schedule,
    *,
    seed: int,
    check: Callable[[], None] | None = None,
) -> ShortRun:
    """Train for one whole, short schedule and evaluate; every random stream is restored afterwards.

    Args:
        check: called between updates; it may raise to stop.
    """
    loss, acc = math.nan, 0.0
    with preserve_rng_state():
        learner, batches = learner_factory(seed), loader_factory(seed)
        learner.begin_epoch(learner.freezing.epochs)
        has_diverged = False
        for step, (images, labels) in enumerate(_batches_of_all_epochs(batches, seed)):
            if step >= schedule.steps:
                break
            try:
                result = learner.train_step(images, labels, step, schedule.lr(step), schedule.momentum_at(step))
            except FloatingPointError:
                has_diverged = True
                break
            if check is not None:
                check()
        if not has_diverged and bool(torch.isfinite(result.loss)):
            # The weights themselves: an EMA is still at its beginning after so few steps.
            scores = _held_out_scores(learner, val_loader)
            loss, acc = scores if math.isfinite(scores[0]) else (math.nan, 0.0)
        device = learner.device
        del learner, batches
    free_device_memory(device)
    return ShortRun(schedule.lr_max, schedule.lr_min, schedule.steps, loss, acc)


def _held_out_scores(learner: Learner, val_loader: EvalBatches) -> tuple[float, float]:
    """Return loss (nats) and accuracy, or mAP where images have several labels, of the weights themselves on the held-out images."""
    where = (learner.model, val_loader, learner.device, learner.precision)
    scores = evaluate_multilabel(*where)[0] if learner.is_multilabel else evaluate_batches(*where)
    return scores["loss"], scores[measure_of(learner.is_multilabel).held_out_key]


def _ranked_images(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the area under the ROC curve of a batch times its images, so that the sum over micro-batches is their mean, float32 []."""
    return ranking_quality(logits, labels) * len(labels)


def candidate_lrs(lr_max: float, count: int) -> list[float]:
    """Return `count` learning rates around `lr_max`: itself, its half, its double, its quarter, and so on."""
    powers = [(index + 1) // 2 * (-1 if index % 2 else 1) for index in range(count)]
    return [lr_max * 2.0**power for power in powers]


def seed_curve(curve: LRCurve) -> Curve:
    """Return loss and smoothed loss of one seed over the learning rate, up to the first loss that is not finite."""
    end = curve.finite
    lines = {"loss": curve.losses[:end].tolist(), "smoothed": curve.smoothed[:end].tolist()}
    return Curve("lr", curve.lrs[:end].tolist(), lines, title=f"range test, seed {curve.seed}")


def median_curve(curves: Sequence[LRCurve], quantity: Literal["level", "smoothed", "acc_level"]) -> Curve:
    """Return median and extremes over the seeds at each learning rate that at least half of them reached with a finite loss."""
    reached = sorted((curve.finite for curve in curves), reverse=True)
    length = reached[(len(reached) - 1) // 2] if reached else 0
    lines_of_seeds = [getattr(curve, quantity)[: curve.finite] for curve in curves]
    lines: dict[str, list[float]] = {"median": [], "low": [], "high": []}
    for index in range(length):
        values = [float(line[index]) for line in lines_of_seeds if index < len(line)]
        for name, reduce in (("median", np.median), ("low", np.min), ("high", np.max)):
            lines[name].append(float(reduce(values)))
    longest = max(curves, key=lambda curve: len(curve.lrs)).lrs[:length].tolist() if curves else []
    return Curve("lr", longest, lines, title=quantity)


def _batches_of_all_epochs(batches: TrainBatches, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield epoch after epoch, with dropout and the like seeded as in training."""
    epoch = 0
    while True:
        torch.manual_seed(seed_for(seed, "epoch", epoch))
        is_empty = True
        for batch in batches.epoch(epoch):
            is_empty = False
            yield batch
        if is_empty:
            raise UsageError("an epoch has no batches to test on; lower --batch-size")
        epoch += 1


def free_device_memory(device: torch.device) -> None:
    """Give the memory of what is no longer used back, and measure the peak from now on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
