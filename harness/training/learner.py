"""A model together with all that changes it: one `train_step` is one optimizer update, whoever calls it."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.config.settings import Config
from harness.data.views import flatten_views
from harness.models.outputs import split_logits, weighted_loss
from harness.training.cuda_graph import GraphedStep, StepOutputs
from harness.training.device import autocast
from harness.training.distributed import SingleProcess
from harness.training.ema import EMAModel
from harness.training.finite import first_not_finite, infinite_buffers
from harness.training.freezing import Freezing, make_freezing
from harness.training.lookahead import Lookahead
from harness.training.losses import Loss, make_loss
from harness.training.optimizer import (
    current_lr,
    group_lr_scales,
    is_second_order,
    load_optimizer,
    make_optimizer,
    seed_optimizer,
    set_lr_and_momentum,
)
from harness.training.process_settings import abandon_failed_onednn, release_freed_memory
from harness.training.running_statistics import unmoved_statistics
from harness.utils import fault_injection
from harness.utils.errors import ResourceError, UsageError, is_out_of_memory

# images [B, channels, H, W], labels int64 [B] or uint8 [B, classes], step -> mixed images, targets [B] or [B, classes]
Mix = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StepResult:
    """The result of one update; the tensors are on the device, and nothing has waited for them.

    Attributes:
        loss: [] mean over the batch, nats.
        correct: [] int, images whose highest logit was their label (of mixed images, the label with the larger share). Where
            images have several labels: those of which every class was predicted correctly at a probability of 0.5.
        grad_norm: [] norm over all gradients before clipping; None where it was not measured.
    """

    loss: Tensor
    correct: Tensor
    lr: float
    grad_norm: Tensor | None = None


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the number of images that are predicted correctly, [] int; of several labels each has to be."""
    if labels.ndim == 2:
        return ((logits > 0) == labels.bool()).all(1).sum()
    return (logits.argmax(1) == labels).sum()


@dataclass
class Learner:
    """A model, its optimizer and the numerics of a step.

    Attributes:
        model: the plain module; weights are saved from it and loaded into it.
        precision: dtype of autocast; None for float32.
        loss: of float32 logits and labels or soft targets, a mean over the images.
        auto_batch: double `grad_accumulation`, down to one image per micro-batch, when memory runs out in a batch.
        measure_grad: measure the gradient norm even without clipping.
        forward: called in training instead of `model`: compiled, wrapped, or in other kernels.
        processes: the processes that compute the other shards of each batch.
        parallel: the model wrapped so that gradients are averaged over the processes; None in a single process.
        graph: does the update as a CUDA graph.
        ema: moving average of the weights; if there is one, it is evaluated and saved.
        infinite_buffers: names of the model's buffers that hold infinite values by design.
        lookahead: replaces the weights by their average every few updates.
        freezing: which parameters are not trained, and until when.
        lr_scales: name of a group of parameters -> factor on its LR; empty where all have the same.
        is_compiled: `forward` is the compiled model.
        is_checkpointed: the backward pass computes layers again, whose activations are not kept.
        is_multilabel: whether images have several labels; then labels are uint8 [B, classes].
        is_without_onednn: oneDNN failed when memory ran out, and is not used any more in this process.
        count_correct: takes logits [B, classes] and labels, and returns `StepResult.correct`, []; an LR range test replaces it.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    precision: torch.dtype | None = None
    loss: Loss = nn.functional.cross_entropy
    clip_grad: float = 0.0
    grad_accumulation: int = 1
    auto_batch: bool = False
    measure_grad: bool = False
    mix: Mix | None = None
    forward: Callable[[Tensor], Tensor] | None = None
    processes: SingleProcess = field(default_factory=SingleProcess)
    parallel: nn.Module | None = None
    graph: GraphedStep | None = None
    ema: EMAModel | None = None
    lookahead: Lookahead | None = None
    scaler: torch.amp.GradScaler | None = field(default=None)
    infinite_buffers: frozenset[str] = frozenset()
    freezing: Freezing = field(default_factory=Freezing)
    lr_scales: Mapping[str, float] = field(default_factory=dict)
    is_compiled: bool = False
    is_checkpointed: bool = False
    is_multilabel: bool = False
    is_without_onednn: bool = False
    count_correct: Callable[[Tensor, Tensor], Tensor] = count_correct

    @property
    def share_name(self) -> str:
        """The name of the fraction of the training images that are predicted correctly."""
        return "exact_match" if self.is_multilabel else "acc"

    def begin_epoch(self, epoch: int) -> None:
        """Put the model into training mode for an epoch, with what is trained in it.

        Args:
            epoch: epochs done before it.
        """
        if self.freezing.apply(self.model, epoch):
            self.optimizer.zero_grad(set_to_none=True)
            if self.graph is not None:
                self.graph.reset()
            if self.parallel is not None:  # it exchanges the gradients of the parameters that it was made with
                was_forward = self.forward is self.parallel
                self.parallel = None
                self.forward = None if was_forward or self.is_compiled else self.forward
                gc.collect()
                self.parallel = self.processes.wrap_ddp(self.model)
                assert self.parallel is not None
                self.forward = torch.compile(self.parallel) if self.is_compiled else self.parallel
        self.model.train()
        self.freezing.freeze_statistics(self.model, epoch)

    def train_step(
        self, images: Tensor, labels: Tensor, step: int, lr: float, momentum: float, num_images: int | None = None
    ) -> StepResult:
        """Do one optimizer update on one batch.

        Args:
            images: float [B, channels, H, W], or several views of each, [B, views, channels, H, W]. labels: int64 [B], or
                uint8 [B, classes] where images have several.
            step: updates done before; mixing depends on it.
            num_images: images of the batch over all processes; None: B.

        Raises:
            FloatingPointError: the loss is not finite. On a CPU it is raised before the weights change; other devices
                are not waited for, and the reader of the loss has to check it.
        """
        set_lr_and_momentum(self.optimizer, lr, momentum)
        seed_optimizer(self.optimizer, step)
        targets: Tensor = labels if labels.ndim == 1 else labels.float()
        if self.mix is not None:
            images, targets = self.mix(images, labels, step)
            if self.is_multilabel:
                labels = (targets > 0.5).to(labels.dtype)  # of two mixed images, the labels of the heavier one
            else:
                labels = targets if targets.ndim == 1 else targets.argmax(1)  # of two mixed labels, the heavier one
        if self.graph is not None:
            loss, correct, norm = self.graph(images, labels, targets)
        else:
            loss, correct, norm = self.update(images, labels, targets, num_images)
        if self.lookahead is not None:
            self.lookahead.update(step + 1)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return StepResult(loss, correct, current_lr(self.optimizer), norm)

    def update(self, images: Tensor, labels: Tensor, targets: Tensor, num_images: int | None = None) -> StepOutputs:
        """Compute and clip gradients and let the optimizer step; return loss, correct predictions and gradient norm."""
        loss, correct = self._gradients(images, labels, targets, num_images or len(images))
        loss, correct = self.processes.all_reduce_sum(loss, correct)
        if self.device.type == "cpu" and not torch.isfinite(loss):
            raise FloatingPointError(f"loss {loss.item()}")
        norm = self._grad_norm()
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            with self._layers_computed_again():  # by second derivatives
                self.optimizer.step()
        return loss, correct, norm

    def _layers_computed_again(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which gradient checkpointing may compute layers again without moving their statistics."""
        return unmoved_statistics(self.model) if self.is_checkpointed else contextlib.nullcontext()

    def _gradients(self, images: Tensor, labels: Tensor, targets: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
        """Call `_backward`; with `auto_batch`, in as many micro-batches as the memory requires."""
        if not self.auto_batch:
            return self._backward(images, labels, targets, num_images)
        # An interrupted pass may have changed the running statistics and the random state.
        buffers, cpu_rng = [buffer.clone() for buffer in self.model.buffers()], torch.get_rng_state()
        cuda_rng = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        while True:
            try:
                return self._backward(images, labels, targets, num_images)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.grad_accumulation >= len(images):
                    raise
                self.is_without_onednn |= abandon_failed_onednn(error)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise ResourceError(
                    "out of memory, and batch normalisation cannot use the images one at a time; lower --image-size or the model's width"
                ) from None
            # Not in the except block, where the error would keep the tensors of the pass alive.
            self.grad_accumulation = min(2 * self.grad_accumulation, len(images))
            self.optimizer.zero_grad(set_to_none=True)
            gc.collect()
            if cuda_rng is not None:
                torch.cuda.empty_cache()
                torch.cuda.set_rng_state(cuda_rng, self.device)
            else:
                release_freed_memory()  # kept, it would be in pieces that larger tensors and oneDNN's code do not fit into
            torch.set_rng_state(cpu_rng)
            with torch.no_grad():
                for buffer, former in zip(self.model.buffers(), buffers, strict=True):
                    buffer.copy_(former)

    def _backward(self, images: Tensor, labels: Tensor, targets: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
        """Compute the gradients of the mean loss over the batch, added up over its micro-batches; return loss, correct."""
        self.optimizer.zero_grad(set_to_none=True)
        forward = self.model if self.forward is None else self.forward
        losses, corrects = [], []
        split = zip(*(t.tensor_split(self.grad_accumulation) for t in (images, labels, targets)), strict=True)
        micro_batches = [micro_batch for micro_batch in split if len(micro_batch[0])]
        for number, (inputs, classes, target) in enumerate(micro_batches, 1):
            with self._delayed_all_reduce(number < len(micro_batches)):
                with autocast(self.device, self.precision):
                    # each [B / micro-batches, classes], of views the first ones first
                    logits, *auxiliary = split_logits(forward(flatten_views(inputs)))
                loss = weighted_loss([self.loss(each.float(), target) for each in (logits, *auxiliary)])
                loss = loss * (len(inputs) / num_images)
                # DDP averages the gradients over the processes; they have to be summed.
                scaled = loss * self.processes.world_size if self.processes.world_size > 1 else loss
                scaled = scaled if self.scaler is None else self.scaler.scale(scaled)
                with self._layers_computed_again():
                    if is_second_order(self.optimizer):
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore")  # of a reference cycle, which zero_grad breaks
                            scaled.backward(create_graph=True)
                    else:
                        scaled.backward()
            fault_injection.point("micro_batch")
            losses.append(loss.detach())
            corrects.append(self.count_correct(logits.detach()[: len(classes)], classes))
        return torch.stack(losses).sum(), torch.stack(corrects).sum()

    def _delayed_all_reduce(self, is_delayed: bool) -> contextlib.AbstractContextManager[None]:
        """Return a context in which gradients are not exchanged, if more micro-batches follow."""
        if self.parallel is None or not is_delayed:
            return contextlib.nullcontext()
        no_sync: contextlib.AbstractContextManager[None] = self.parallel.no_sync()  # type: ignore[operator]
        return no_sync

    def _grad_norm(self) -> Tensor | None:
        if not self.clip_grad and not self.measure_grad:
            return None
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        return nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad or float("inf"))

    def average_buffers(self) -> None:
        """Give all processes the same running statistics, before the model is evaluated or saved."""
        self.processes.average_buffers(self.model, self.ema)

    def first_not_finite(self) -> str:
        """Return the name of the first weight or running statistic that is NaN or infinite; waits for the device."""
        averages = {} if self.ema is None else self.ema.module.state_dict()
        return first_not_finite({"model": self.model.state_dict(), "ema": averages}, self.infinite_buffers)

    @property
    def eval_model(self) -> nn.Module:
        """The module that is evaluated and saved: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.module

    def state_dict(self) -> dict[str, Any]:
        """Return all that training changes, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "lookahead": None if self.lookahead is None else self.lookahead.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "grad_accumulation": self.grad_accumulation,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError and others: the state is not that of this model and optimizer.
        """
        self.model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.graph is not None:
            self.graph.reset()  # the optimizer has new buffers
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.lookahead is not None:
            self.lookahead.load_state_dict(state["lookahead"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.grad_accumulation = max(self.grad_accumulation, int(state.get("grad_accumulation", 1)))


def make_learner(
    config: Config,
    model: nn.Module,
    device: torch.device,
    precision: torch.dtype | None,
    mix: Mix | None = None,
    processes: SingleProcess | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
    images_on_device: bool = False,
    class_weights: Tensor | None = None,
) -> Learner:
    """Return the learner that the settings describe, with its model moved to the device.

    Args:
        forward: called in training instead of the model; not under torchrun or with `compile`.
        images_on_device: all images are in device memory; `cuda_graph=auto` captures the update only then, since other
            loaders take longer than launching its kernels does.
        class_weights: float32 [classes], those of the setting; where images have several labels, of a class's images.

    Raises:
        UsageError: the settings, the device and the processes contradict each other.
    """
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(device)
    model.to(memory_format=layout)
    processes = processes or SingleProcess()
    _check_processes(config, processes, device)
    optimizer = make_optimizer(config, model)
    if is_second_order(optimizer) and (processes.world_size > 1 or precision == torch.float16):
        raise UsageError(
            f"optimizer={config.optimizer} needs second derivatives, which {'several processes do' if processes.world_size > 1 else 'fp16 does'} not have; choose another --optimizer"
        )
    ema = EMAModel(model, config.ema, config.ema_warmup) if config.ema else None
    parallel = processes.wrap_ddp(model)
    trained = model if parallel is None else parallel
    learner = Learner(
        model=model,
        processes=processes,
        parallel=parallel,
        optimizer=optimizer,
        device=device,
        precision=precision,
        loss=make_loss(config, device, class_weights, is_smoothed=mix is not None),
        clip_grad=config.clip_grad,
        grad_accumulation=config.grad_accumulation,
        auto_batch=config.auto_batch,
        mix=mix,
        forward=torch.compile(trained) if config.compile else parallel or forward,
        ema=ema,
        scaler=torch.amp.GradScaler(device.type) if precision == torch.float16 else None,
        infinite_buffers=infinite_buffers(model),
        freezing=make_freezing(config, model),
        lr_scales=group_lr_scales(config, model),
        is_compiled=config.compile,
        is_checkpointed=config.gradient_checkpointing,
        is_multilabel=config.is_multilabel,
    )
    reason = why_not_captured(config, learner)
    if config.cuda_graph and reason:
        raise UsageError(f"cuda_graph=True, but {reason}; leave --cuda-graph out")
    if config.cuda_graph or (config.cuda_graph is None and images_on_device and not reason):
        learner.graph = GraphedStep(learner.update, learner.optimizer, device, is_optional=config.cuda_graph is None)
    return learner


def _check_processes(config: Config, processes: SingleProcess, device: torch.device) -> None:
    """Refuse what several processes cannot do together."""
    if processes.world_size == 1:
        return
    if config.batch_size < 2 * processes.world_size:
        raise UsageError(
            f"batch_size={config.batch_size} is over all processes, and {processes.world_size} of them need two images each; set --batch-size {2 * processes.world_size} or more"
        )
    reasons = {
        "auto_batch=True would split the batch in one process and not in another": config.auto_batch,
        "cuda_graph=True is for one process": config.cuda_graph is True,
        f"sync_bn=True needs GPUs, and this is {device.type}": config.sync_bn and device.type != "cuda",
    }
    if reason := next((reason for reason, applies in reasons.items() if applies), None):
        raise UsageError(f"{reason}; leave that option out under torchrun")


def why_not_captured(config: Config, learner: Learner) -> str | None:
    """Return the reason why the update cannot be captured as a CUDA graph, or None where it can."""
    reasons = {
        f"device={learner.device} has no CUDA graphs": learner.device.type != "cuda",
        "compile=True has graphs of its own": config.compile,
        "precision=fp16 reads the gradients between its kernels": learner.scaler is not None,
        "gradient_checkpointing=True keeps random states": config.gradient_checkpointing,
        "auto_batch=True may change the number of micro-batches": config.auto_batch,
        "several processes exchange their gradients": learner.processes.world_size > 1,
        "momentum_min changes the momentum, which is constant in a graph": config.momentum_min is not None,
        f"optimizer={config.optimizer} counts its steps on the CPU": config.optimizer != "sgd",
    }
    return next((reason for reason, applies in reasons.items() if applies), None)
