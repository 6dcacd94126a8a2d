"""The loop: training and evaluation as generators of records that know no writer.

Source of the shape: big_vision's evaluators yield names and values and leave the writing to their caller.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.tracking.metric_names import with_present_names
from harness.tracking.records import Curve, Record, Value
from harness.training.device import autocast, eval_mode, peak_memory, synchronise
from harness.training.distributed import SingleProcess
from harness.training.learner import Learner, StepResult
from harness.training.schedule import Schedule
from harness.utils import fault_injection
from harness.utils.errors import DivergedError, ResourceError, is_out_of_memory
from harness.utils.seeding import seed_for


class TrainBatches(Protocol):
    """Training batches as a function of where they are used."""

    steps: int  # batches an epoch
    num_images: int  # images an epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """From batch `start` on: float [B, 3, H, W] on the device, augmented and normalised; int64 [B]."""
        ...

    def size(self, batch: int) -> int:
        """Images of a batch, in all processes together."""
        ...


class EvalBatches(Protocol):
    """Every image of a split exactly once, in order, not augmented."""

    num_images: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class StepInfo:
    """Where training is, between two updates; given to `watch`.

    Attributes:
        step: updates done in the run. epoch: epochs finished. batch: updates done in the epoch. images: images seen in the epoch.
        loss: reads the loss of the newest update (waits for the device).
        acc: reads the accuracy over the epoch so far (waits for the device).
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


PLAIN = ("step", "history", "lrs", "sizes", "seconds")
STACKED = ("losses", "corrects", "norms")


@dataclass
class TrainerState:
    """How far a run is: what a checkpoint needs beside the learner's weights.

    Attributes:
        step: updates done.
        history: the scalars of each finished epoch's record.
        losses, corrects, lrs, norms, sizes (images): of the unfinished epoch's updates, so that it can go on.
        seconds: time spent in the unfinished epoch so far.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    corrects: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def forget_epoch(self) -> None:
        """Empty what is kept of the unfinished epoch: it is finished."""
        for name in (*STACKED, "lrs", "sizes"):
            setattr(self, name, [])
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """As tensors and plain values."""
        stack = {name: torch.stack(parts).cpu() if (parts := getattr(self, name)) else None for name in STACKED}
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        plain = {name: getattr(self, name) for name in PLAIN}
        return {**plain, **stack, "random": random}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Back to what `state_dict` said, torch's random states included."""
        for name in PLAIN:
            setattr(self, name, state[name])
        self.history = [with_present_names(row) for row in self.history]
        for name in STACKED:
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
    progress: TrainerState | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Iterator[Record]:
    """Train, and yield one record at the end of each epoch.

    Args:
        evaluations: splits evaluated after every epoch, name (`val`, `test`) -> batches.
        progress: where to go on; a fresh one starts. It is kept up to date while training goes on.
        watch: called between updates; it may raise to stop, and then `progress` and `learner` are whole. So may
            `evaluations` while they are read: the epoch then goes on with its evaluation.

    Yields:
        `train/loss` (nats, mean over the images as trained on), `train/acc` (share 0..1), `<split>/loss`,
        `<split>/acc`, `lr` (of the epoch's last update), `epoch`, times, throughput and memory; `steps` holds
        loss and LR of every update. Gradients are enabled at each yield.

    Raises:
        DivergedError: the loss is not finite.
    """
    progress = progress or TrainerState()
    while len(progress.history) < epochs:
        epoch, done = len(progress.history), len(progress.lrs)
        began = time.monotonic() - progress.seconds
        if done == 0:
            # Dropout and the like: a function of the epoch (and of the process).
            torch.manual_seed(seed_for(seed, "epoch", epoch, *learner.processes.rank_key))
        learner.model.train()
        for batch, labels in train.epoch(epoch, done):
            size = len(labels) if learner.processes.world_size == 1 else train.size(len(progress.lrs))
            _step(learner, schedule, progress, batch, labels, size)
            progress.seconds = time.monotonic() - began
            fault_injection.point("step", progress.step)
            if on_step is not None:
                on_step(_tick(progress, epoch, epochs, train.steps))
        synchronise(learner.device)
        trained = time.monotonic() - began
        progress.seconds = trained
        images = sum(progress.sizes)
        values, steps = _epoch_values(progress)
        learner.average_buffers()
        for name, batches in (evaluations or {}).items():
            scores = evaluate(learner.eval_model, batches, learner.device, learner.precision, learner.processes)
            values |= {f"{name}/{key}": value for key, value in scores.items()}
        progress.forget_epoch()
        whole = time.monotonic() - began
        values |= {
            "epoch": epoch + 1,
            "time/epoch_s": whole,
            "time/train_s": trained,
            "time/eval_s": whole - trained,
            "throughput/images_per_s": images / max(trained, 1e-9),
            "memory/peak_gib": peak_memory(learner.device),
        }
        progress.history.append({key: float(value) for key, value in values.items() if isinstance(value, int | float)})
        yield Record(step=progress.step, epoch=epoch + 1, values=values, steps=steps)


def evaluate(
    model: nn.Module,
    batches: EvalBatches,
    device: torch.device,
    precision: torch.dtype | None = None,
    processes: SingleProcess | None = None,
) -> dict[str, float]:
    """`loss` (nats, mean over all images) and `acc` (share 0..1) of a model; exact for any batch sizes.

    Of several processes each is given its own batches, and all are told the figures of all images.

    The model is in evaluation mode while it is asked, and each of its modules in its old mode afterwards.
    """
    # Sums in float64 (float32 where the device has no other), read once.
    loss = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    count = 0
    try:
        with eval_mode(model), torch.no_grad():
            for images, labels in batches:
                fault_injection.point("evaluation")
                with autocast(device, precision):
                    logits = model(images)  # [B, classes]
                loss += F.cross_entropy(logits.float(), labels, reduction="sum")
                correct += (logits.argmax(1) == labels).sum()
                count += len(labels)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"out of memory while evaluating {batches.num_images:,} images; lower --eval-batch-size"
        ) from None
    loss, correct, seen = (processes or SingleProcess()).all_reduce_sum(
        loss, correct, torch.full((), count, device=device)
    )
    everywhere = int(seen)
    if everywhere == 0:
        return {"loss": math.nan, "acc": math.nan}
    return {"loss": loss.item() / everywhere, "acc": correct.item() / everywhere}


def _step(
    learner: Learner, schedule: Schedule, progress: TrainerState, images: Tensor, labels: Tensor, whole: int
) -> None:
    seen = [epoch.get("val/loss", math.nan) for epoch in progress.history] if schedule.kind == "plateau" else ()
    lr, momentum = schedule.lr(progress.step, seen), schedule.momentum_at(progress.step)
    try:
        outcome = learner.train_step(images, labels, progress.step, lr, momentum, whole)
    except FloatingPointError as error:
        raise DivergedError(_diverged(str(error), len(progress.history), progress.step, lr)) from None
    _note(progress, outcome, whole)


def _note(progress: TrainerState, outcome: StepResult, images: int) -> None:
    progress.step += 1
    progress.losses.append(outcome.loss)
    progress.corrects.append(outcome.correct)
    progress.lrs.append(outcome.lr)
    progress.sizes.append(images)
    if outcome.grad_norm is not None:
        progress.norms.append(outcome.grad_norm)


def _epoch_values(progress: TrainerState) -> tuple[dict[str, Value], Curve]:
    """The epoch's training figures and per-step curves, read from the device at once."""
    losses = torch.stack(progress.losses).cpu().double()  # [batches]; the one wait for the device in an epoch
    first = progress.step - len(losses)
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        index = int(bad[0])
        raise DivergedError(
            _diverged(f"loss {losses[index].item()}", len(progress.history), first + index, progress.lrs[index])
        )
    sizes = torch.tensor(progress.sizes, dtype=torch.float64)
    values: dict[str, Value] = {
        "train/loss": float((losses * sizes).sum() / sizes.sum()),
        "train/acc": int(torch.stack(progress.corrects).sum()) / sum(progress.sizes),
        "lr": progress.lrs[-1],
    }
    lines = {"train/step_loss": losses.tolist(), "lr": list(progress.lrs)}
    if progress.norms:
        lines["train/grad_norm"] = torch.stack(progress.norms).float().cpu().tolist()
    return values, Curve("step", list(range(first + 1, progress.step + 1)), lines)


def _diverged(what: str, epochs: int, step: int, lr: float) -> str:
    return f"training diverged: {what} in epoch {epochs + 1} at step {step + 1}, learning rate {lr:.3g}; lower --lr-max (a range test finds one) or set --clip-grad 1"


def _tick(progress: TrainerState, epoch: int, epochs: int, batches: int) -> StepInfo:
    losses, corrects, images = progress.losses, progress.corrects, sum(progress.sizes)
    return StepInfo(
        step=progress.step,
        epoch=epoch,
        epochs=epochs,
        batch=len(losses),
        batches=batches,
        images=images,
        lr=progress.lrs[-1],
        loss=lambda: float(losses[-1]),
        acc=lambda: int(torch.stack(corrects).sum()) / images,
    )
