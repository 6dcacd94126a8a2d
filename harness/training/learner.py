"""A model together with all that changes it: one `update` is one optimizer step, whoever asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from harness.config.settings import Config
from harness.training.cuda_graph import GraphedStep
from harness.training.device import autocast
from harness.training.distributed import SingleProcess
from harness.training.optimizer import current_lr, make_optimizer, set_lr_and_momentum
from harness.utils import fault_injection
from harness.utils.errors import UsageError, is_out_of_memory

# images [B, 3, H, W], labels int64 [B], step -> mixed images, targets [B] or [B, classes]
Mix = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StepResult:
    """What one update saw, on the device and not yet waited for.

    Attributes:
        loss: [] mean over the batch, nats.
        correct: [] int, images whose highest logit was their label (the heavier one when mixed).
        grad_norm: [] norm over all gradients before clipping; None where it was not measured.
    """

    loss: Tensor
    correct: Tensor
    lr: float
    grad_norm: Tensor | None = None


@dataclass
class Learner:
    """A model, its optimizer and the numerics of a step.

    Attributes:
        model: the plain module; weights are saved from and loaded into it.
        forward: what is called in training: the model itself, or compiled.
        processes: who else computes parts of each batch.
        parallel: the model wrapped so that gradients are averaged over the processes; None in one alone.
        precision: autocast type; None for float32.
        auto_batch: double `grad_accumulation`, down to one image a part, when memory runs out in a batch.
        graph: what does an update's `_change` as a CUDA graph, where that was asked for.
        ema: moving average of the weights; where there is one, it is what is evaluated and kept.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    precision: torch.dtype | None = None
    label_smoothing: float = 0.0
    clip_grad: float = 0.0
    grad_accumulation: int = 1
    auto_batch: bool = False
    measure_grad: bool = False
    mix: Mix | None = None
    forward: Callable[[Tensor], Tensor] | None = None
    processes: SingleProcess = field(default_factory=SingleProcess)
    parallel: nn.Module | None = None
    graph: GraphedStep | None = None
    ema: AveragedModel | None = None
    scaler: torch.amp.GradScaler | None = field(default=None)

    def train_step(
        self, images: Tensor, labels: Tensor, step: int, lr: float, momentum: float, whole: int | None = None
    ) -> StepResult:
        """One optimizer step on one batch.

        Args:
            images: float [B, 3, H, W]. labels: int64 [B].
            step: updates done before; mixing draws from it.
            whole: images of the batch in all processes together; None: these are all.

        Raises:
            FloatingPointError: the loss is not finite. On a CPU before anything was changed by it; elsewhere the
                loss is not waited for, and whoever reads it has to look.
        """
        set_lr_and_momentum(self.optimizer, lr, momentum)
        targets: Tensor = labels
        if self.mix is not None:
            images, targets = self.mix(images, labels, step)
        if self.graph is not None:
            loss, correct, norm = self.graph(images, labels, targets)
        else:
            loss, correct, norm = self._change(images, labels, targets, whole)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return StepResult(loss, correct, current_lr(self.optimizer), norm)

    def _change(
        self, images: Tensor, labels: Tensor, targets: Tensor, whole: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients, clipping and the optimizer's step; loss, images that are right, and norm of the gradient."""
        loss, correct = self.processes.all_reduce_sum(*self._gradients(images, labels, targets, whole or len(images)))
        if self.device.type == "cpu" and not torch.isfinite(loss):
            raise FloatingPointError(f"loss {loss.item()}")
        norm = self._grad_norm()
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        return loss, correct, norm

    def _gradients(self, images: Tensor, labels: Tensor, targets: Tensor, whole: int) -> tuple[Tensor, Tensor]:
        """`_backward`, where asked for in as many parts as the memory needs."""
        if not self.auto_batch:
            return self._backward(images, labels, targets, whole)
        # What a pass that breaks off has changed already: running statistics and the random state.
        buffers, random = [buffer.clone() for buffer in self.model.buffers()], torch.get_rng_state()
        on_device = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        while True:
            try:
                return self._backward(images, labels, targets, whole)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.grad_accumulation >= len(images):
                    raise
            # Out of the except block, where the error would hold on to the tensors of the pass.
            self.grad_accumulation = min(2 * self.grad_accumulation, len(images))
            self.optimizer.zero_grad(set_to_none=True)
            if on_device is not None:
                torch.cuda.empty_cache()
                torch.cuda.set_rng_state(on_device, self.device)
            torch.set_rng_state(random)
            with torch.no_grad():
                for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                    buffer.copy_(before)

    def _backward(self, images: Tensor, labels: Tensor, targets: Tensor, whole: int) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss over the whole batch, added up over its parts."""
        self.optimizer.zero_grad(set_to_none=True)
        forward = self.model if self.forward is None else self.forward
        losses, corrects = [], []
        split = zip(*(t.tensor_split(self.grad_accumulation) for t in (images, labels, targets)), strict=True)
        parts = [part for part in split if len(part[0])]
        for number, (part, truth, target) in enumerate(parts, 1):
            with self._quiet(number < len(parts)):
                with autocast(self.device, self.precision):
                    logits = forward(part)  # [B / parts, classes]
                loss = F.cross_entropy(logits.float(), target, label_smoothing=self.label_smoothing)
                loss = loss * (len(part) / whole)
                # Gradients are averaged over the processes, and are to be summed.
                scaled = loss * self.processes.world_size if self.processes.world_size > 1 else loss
                (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
            fault_injection.point("micro_batch")
            losses.append(loss.detach())
            corrects.append((logits.detach().argmax(1) == truth).sum())
        return torch.stack(losses).sum(), torch.stack(corrects).sum()

    def _quiet(self, more: bool) -> contextlib.AbstractContextManager[None]:
        """While gradients of more parts follow, the processes need not exchange them."""
        if self.parallel is None or not more:
            return contextlib.nullcontext()
        quiet: contextlib.AbstractContextManager[None] = self.parallel.no_sync()  # type: ignore[operator]
        return quiet

    def _grad_norm(self) -> Tensor | None:
        if not self.clip_grad and not self.measure_grad:
            return None
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        return nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad or float("inf"))

    def average_buffers(self) -> None:
        """Have all processes hold the same model, before it is evaluated or saved."""
        self.processes.average_buffers(self.model, self.ema)

    @property
    def eval_model(self) -> nn.Module:
        """The module whose results count: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def state_dict(self) -> dict[str, Any]:
        """All that training changes, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "grad_accumulation": self.grad_accumulation,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to what `state_dict` said."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.graph is not None:
            self.graph.forget()  # the optimizer's buffers are others now
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
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
) -> Learner:
    """The learner that the settings describe, its model moved to the device."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(device)
    model.to(memory_format=layout)
    ema = None
    if config.ema:
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
    processes = processes or SingleProcess()
    _check_processes(config, processes, device)
    parallel = processes.wrap_ddp(model)
    trained = model if parallel is None else parallel
    learner = Learner(
        model=model,
        processes=processes,
        parallel=parallel,
        optimizer=make_optimizer(config, model.parameters()),
        device=device,
        precision=precision,
        label_smoothing=0.0 if mix else config.label_smoothing,  # mixed targets are smoothed where they are made
        clip_grad=config.clip_grad,
        grad_accumulation=config.grad_accumulation,
        auto_batch=config.auto_batch,
        mix=mix,
        forward=torch.compile(trained) if config.compile else parallel,
        ema=ema,
        scaler=torch.amp.GradScaler(device.type) if precision == torch.float16 else None,
    )
    if config.cuda_graph:
        _check_graph(config, learner)
        learner.graph = GraphedStep(learner._change, learner.optimizer, device)
    return learner


def _check_processes(config: Config, processes: SingleProcess, device: torch.device) -> None:
    """Refuse what several processes can not do together."""
    if processes.world_size == 1:
        return
    if config.batch_size < 2 * processes.world_size:
        raise UsageError(
            f"batch_size={config.batch_size} is over all processes, and {processes.world_size} of them need two images each; set --batch-size {2 * processes.world_size} or more"
        )
    obstacles = {
        "auto_batch=True would split the batch in one process and not in another": config.auto_batch,
        "cuda_graph=True is for one process": config.cuda_graph,
        f"sync_bn=True needs GPUs, and this is {device.type}": config.sync_bn and device.type != "cuda",
    }
    if told := [text for text, there in obstacles.items() if there]:
        raise UsageError(f"{told[0]}; leave that option out under torchrun")


def _check_graph(config: Config, learner: Learner) -> None:
    """Refuse what a recorded update can not do."""
    obstacles = {
        f"device={learner.device} has no CUDA graphs": learner.device.type != "cuda",
        "compile=True brings graphs of its own": config.compile,
        "precision=fp16 looks at the gradients between its kernels": learner.scaler is not None,
        "auto_batch=True may change the parts of a batch": config.auto_batch,
        "momentum_min moves the momentum, which is fixed in a graph": config.momentum_min is not None,
        f"optimizer={config.optimizer} counts its steps outside": config.optimizer != "sgd",
    }
    if told := [text for text, there in obstacles.items() if there]:
        raise UsageError(f"cuda_graph=True, but {told[0]}; leave --cuda-graph out")
