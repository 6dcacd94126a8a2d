"""Training and evaluation loops; `fit` is a generator of records and knows no tracker.

The design follows big_vision's evaluators, which yield names and values and leave the writing to their caller.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.config.names import MACRO_METRICS, main_metric
from harness.tracking.metric_names import with_present_names
from harness.tracking.records import Curve, Record, Value
from harness.training.device import (
    autocast,
    eval_mode,
    evaluation_memory,
    pause_garbage_collection,
    peak_memory,
    synchronise,
)
from harness.training.distributed import SingleProcess
from harness.training.learner import Learner
from harness.training.live_steps import EpochPosition, LiveSteps, step_curve
from harness.training.multilabel import evaluate_multilabel
from harness.training.saved_progress import TENSOR_FIELDS, check_progress
from harness.training.schedule import Schedule
from harness.utils import fault_injection
from harness.utils.errors import DivergedError
from harness.utils.seeding import seed_for
from harness.utils.signals import Interrupted
from harness.utils.stats import macro_scores


class TrainBatches(Protocol):
    """Training batches as a function of epoch and batch."""

    steps: int  # batches in an epoch
    num_images: int  # images in an epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images float [B, channels, H, W], augmented and normalised, and labels int64 [B] from batch `start` on."""
        ...

    def size(self, batch: int) -> int:
        """Return the number of images in a batch, over all processes."""
        ...


class EvalBatches(Protocol):
    """Every image of a split once, in order and without augmentation."""

    num_images: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class StepInfo:
    """The position of training between two updates; passed to `on_step`.

    Attributes:
        step: updates done in the run.
        epoch: epochs finished.
        epochs: epochs of the run.
        batch: updates done in the epoch.
        batches: updates in an epoch.
        images: images seen in the epoch.
        lr: learning rate of the last update.
        loss: returns the loss of the last update; waits for the device.
        acc: returns the accuracy over the epoch so far, or the share of exact matches; waits for the device.
        share_name: what `acc` returns: `acc`, `exact_match`, or `auc` in a range test.
    """

    step: int
    epoch: int
    epochs: int
    batch: int
    batches: int
    images: int
    lr: float
    loss: Callable[[], float]
    acc: Callable[[], float]
    share_name: str = "acc"


COLLECT_EVERY = 100  # updates between collections of the garbage of a long epoch
PLAIN_FIELDS = ("step", "history", "lrs", "sizes", "seconds")
UPDATE_FIELDS = (*TENSOR_FIELDS, "lrs", "sizes", "times")  # one value for each update of the unfinished epoch


@dataclass
class TrainerState:
    """The position of a run: what a checkpoint needs besides the learner's state.

    Attributes:
        step: updates done.
        history: the scalars of each finished epoch's record.
        losses, corrects, lrs, norms, sizes (images), times (seconds since 1970): of the unfinished epoch's updates, so that
            it can be resumed.
        seconds: time spent in the unfinished epoch so far.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    corrects: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def forget_epoch(self) -> None:
        """Empty what is kept of the unfinished epoch, which is finished now."""
        for name in UPDATE_FIELDS:
            setattr(self, name, [])
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, and torch's random states.

        The tensors stay on the device: the writer of a checkpoint copies them, on a GPU in a thread of its own.
        """
        tensors = {name: torch.stack(values) if (values := getattr(self, name)) else None for name in TENSOR_FIELDS}
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        plain = {name: getattr(self, name) for name in (*PLAIN_FIELDS, "times")}
        return {**plain, **tensors, "random": random}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` returned, including torch's random states.

        Raises:
            ValueError and others: it is not such a state.
        """
        check_progress(state)
        for name in PLAIN_FIELDS:
            setattr(self, name, state[name])
        self.history = [with_present_names(row) for row in self.history]
        times = list(state.get("times", []))
        self.times = times if len(times) == len(self.lrs) else [round(time.time(), 3)] * len(self.lrs)
        for name in TENSOR_FIELDS:
            setattr(self, name, [] if state[name] is None else list(state[name].to(device)))
        torch.set_rng_state(state["random"]["cpu"])
        if "cuda" in state["random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["random"]["cuda"])


def fit(
    learner: Learner,
    train: TrainBatches,
    schedule: Schedule,
    *,
    epochs: int,
    evaluations: Mapping[str, EvalBatches] | None = None,
    seed: int = 0,
    state: TrainerState | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
    live_seconds: float | None = None,
) -> Iterator[Record]:
    """Train, and yield one record at the end of each epoch.

    Args:
        evaluations: splits evaluated after every epoch, name (`val`, `test`) -> batches.
        state: the position to resume from, updated during training; None: the start.
        on_step: called between updates. It may raise to stop; `state` and `learner` are consistent then. So may
            `evaluations` during an evaluation, with which the epoch is then resumed.
        live_seconds: also yield a record of kind `steps` every this many seconds, of the updates that the device has
            finished since the one before, and one before training stops by `Interrupted` or `DivergedError`; None: no such
            records.

    Yields:
        `train/loss` (nats, mean over the images as augmented), `train/acc` (fraction; `train/exact_match` where images have
        several labels), `<split>/` and what `evaluate_batches` or `evaluate_multilabel` returns,
        `lr` (of the epoch's last update; `lr/<group>` where parameter groups have factors on it), `epoch`, times, throughput and memory; `steps` holds loss, LR, fraction of the
        epochs and images seen of every update. Gradients are enabled at each yield.

    Raises:
        DivergedError: a loss, a weight or a running statistic is not finite.
    """
    state = state or TrainerState()
    live = LiveSteps(state, learner.device, math.inf if live_seconds is None else live_seconds)
    while len(state.history) < epochs:
        position = EpochPosition(len(state.history), train.steps, train.num_images)
        live.begin_epoch(position)
        try:
            epoch, done = position.epochs, len(state.lrs)
            started_at = time.monotonic() - state.seconds
            if done == 0:
                # The random state of dropout and the like is a function of the epoch (and of the process).
                torch.manual_seed(seed_for(seed, "epoch", epoch, *learner.processes.rank_key))
            learner.begin_epoch(epoch)
            with pause_garbage_collection():
                for images, labels in train.epoch(epoch, done):
                    num_images = len(labels) if learner.processes.world_size == 1 else train.size(len(state.lrs))
                    _step(learner, schedule, state, images, labels, num_images)
                    state.seconds = time.monotonic() - started_at
                    fault_injection.point("step", state.step)
                    if on_step is not None:
                        on_step(_step_info(state, epoch, epochs, train.steps, learner.share_name))
                    if state.step % COLLECT_EVERY == 0:
                        gc.collect(1)
                    if (record := live.poll()) is not None:
                        yield record
            synchronise(learner.device)
            train_seconds = time.monotonic() - started_at
            state.seconds = train_seconds
            images_seen = sum(state.sizes)
            if (record := live.finish_epoch()) is not None:  # before the evaluation, which may take long
                yield record
            values, steps = _epoch_values(state, position, learner.share_name)
            values |= {f"lr/{name}": state.lrs[-1] * scale for name, scale in learner.lr_scales.items()}
            learner.average_buffers()
            if name := learner.first_not_finite():
                raise _divergence(f"{name} is not finite", epoch, state.step - 1, state.lrs[-1])
            for name, batches in (evaluations or {}).items():
                metrics = _evaluate(learner, learner.eval_model, name, batches)
                values |= {f"{name}/{key}": value for key, value in metrics.items()}
                if learner.ema is not None:
                    values |= _evaluate_plain(learner, name, batches)
                if batches.num_images and not math.isfinite(metrics["loss"]):
                    raise _divergence(f"{name}/loss {metrics['loss']}", epoch, state.step - 1, state.lrs[-1])
            step_times = state.times
            state.forget_epoch()
            epoch_seconds = time.monotonic() - started_at
            values |= {
                "epoch": epoch + 1,
                "time/epoch_s": epoch_seconds,
                "time/train_s": train_seconds,
                "time/eval_s": epoch_seconds - train_seconds,
                "throughput/images_per_s": images_seen / max(train_seconds, 1e-9),
                "memory/peak_gib": peak_memory(learner.device),
            }
            state.history.append({key: float(value) for key, value in values.items() if isinstance(value, int | float)})
            record = Record(state.step, epoch + 1, values, steps, time=round(time.time(), 3), step_times=step_times)
            yield record
        except (DivergedError, Interrupted):
            if live_seconds is not None and (last := live.stop()) is not None:
                yield last
            raise


def _evaluate(learner: Learner, model: nn.Module, split: str, batches: EvalBatches) -> dict[str, float]:
    """Return the metrics of an epoch on a split; thresholds of several labels per image are chosen only on validation."""
    where = (model, batches, learner.device, learner.precision, learner.processes)
    if learner.is_multilabel:
        return evaluate_multilabel(*where, chooses_thresholds=split == "val")[0]
    return evaluate_batches(*where)


def _evaluate_plain(learner: Learner, split: str, batches: EvalBatches) -> dict[str, float]:
    """Return the loss and accuracy (of several labels, the mAP) of the weights that are trained, beside those of their average."""
    metrics = _evaluate(learner, learner.model, split, batches)
    return {f"{split}/{name}_plain": metrics[name] for name in ("loss", main_metric(learner.is_multilabel))}


def evaluate_batches(
    model: nn.Module,
    batches: EvalBatches,
    device: torch.device,
    precision: torch.dtype | None = None,
    processes: SingleProcess | None = None,
) -> dict[str, float]:
    """Return `loss` (cross-entropy, nats, mean over all images), `acc`, `balanced_acc` and `f1_macro` (fractions) of a model.

    They are exact for any batch sizes.
    With several processes, each passes its own batches, and all receive the metrics of all images. The model is in
    evaluation mode meanwhile; afterwards each of its modules has its former mode.

    Raises:
        ResourceError: out of memory.
    """
    # Sums in float64 (float32 where the device has no float64), read once.
    loss = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    counts = torch.zeros(3, 0, dtype=torch.int64, device=device)  # of each class: hits, images, predictions
    count = 0
    with evaluation_memory(batches.num_images), eval_mode(model), torch.no_grad():
        for images, labels in batches:
            fault_injection.point("evaluation")
            with autocast(device, precision):
                logits = model(images)  # [B, classes]
            loss += F.cross_entropy(logits.float(), labels, reduction="sum")
            predicted = logits.argmax(1)
            if not count:
                counts = counts.new_zeros(3, logits.shape[1])
            is_hit = (predicted == labels).to(counts.dtype)
            for row, classes, amount in zip(
                counts, (labels, labels, predicted), (is_hit, ones := torch.ones_like(is_hit), ones), strict=True
            ):
                row.scatter_add_(0, classes, amount)  # which, unlike bincount, does not wait for the device
            count += len(labels)
    processes = processes or SingleProcess()
    # A process without images does not know the number of classes.
    loss, total, widths, processes_with_images = processes.all_reduce_sum(
        loss, *(torch.tensor(number, device=device) for number in (count, counts.shape[1], int(count > 0)))
    )
    num_images = int(total)
    if num_images == 0:
        return dict.fromkeys(("loss", "acc", *MACRO_METRICS), math.nan)
    if not count:
        counts = counts.new_zeros(3, int(widths) // int(processes_with_images))
    hits, true, predictions = (each.tolist() for each in processes.all_reduce_sum(*counts))
    macro = dict(zip(MACRO_METRICS, macro_scores(hits, true, predictions), strict=True))
    return {"loss": loss.item() / num_images, "acc": sum(hits) / num_images, **macro}


def _step(
    learner: Learner, schedule: Schedule, state: TrainerState, images: Tensor, labels: Tensor, num_images: int
) -> None:
    """Do one update and add its result to the state."""
    losses = [epoch.get("val/loss", math.nan) for epoch in state.history] if schedule.kind == "plateau" else ()
    lr, momentum = schedule.lr(state.step, losses), schedule.momentum_at(state.step)
    try:
        result = learner.train_step(images, labels, state.step, lr, momentum, num_images)
    except FloatingPointError as error:
        raise _divergence(str(error), len(state.history), state.step, lr) from None
    state.step += 1
    state.losses.append(result.loss)
    state.corrects.append(result.correct)
    state.lrs.append(result.lr)
    state.sizes.append(num_images)
    state.times.append(round(time.time(), 3))
    if result.grad_norm is not None:
        state.norms.append(result.grad_norm)


def _epoch_values(state: TrainerState, position: EpochPosition, share: str) -> tuple[dict[str, Value], Curve]:
    """Return the epoch's training metrics and per-step curves, read from the device at once.

    Args:
        share: the name of the fraction of the images that were predicted correctly.
    """
    losses = torch.stack(state.losses).cpu().double()  # [batches]; the only wait for the device in an epoch
    first_step = state.step - len(losses)
    not_finite = (~torch.isfinite(losses)).nonzero()
    if len(not_finite):
        index = int(not_finite[0])
        raise _divergence(f"loss {losses[index].item()}", len(state.history), first_step + index, state.lrs[index])
    sizes = torch.tensor(state.sizes, dtype=torch.float64)
    values: dict[str, Value] = {
        "train/loss": float((losses * sizes).sum() / sizes.sum()),
        f"train/{share}": int(torch.stack(state.corrects).sum()) / sum(state.sizes),
        "lr": state.lrs[-1],
    }
    norms = torch.stack(state.norms).float().tolist() if state.norms else []
    return values, step_curve(state, position, 0, len(state.lrs), losses.tolist(), norms)


def _divergence(reason: str, epochs: int, step: int, lr: float) -> DivergedError:
    return DivergedError(
        f"training diverged: {reason} in epoch {epochs + 1} at step {step + 1}, learning rate {lr:.3g}; lower --lr-max (harness lr-find suggests one) or set --clip-grad 1"
    )


def _step_info(state: TrainerState, epoch: int, epochs: int, batches: int, share: str) -> StepInfo:
    losses, corrects, images = state.losses, state.corrects, sum(state.sizes)
    return StepInfo(
        step=state.step,
        epoch=epoch,
        epochs=epochs,
        batch=len(losses),
        batches=batches,
        images=images,
        lr=state.lrs[-1],
        loss=lambda: float(losses[-1]),
        acc=lambda: int(torch.stack(corrects).sum()) / images,
        share_name=share,
    )
