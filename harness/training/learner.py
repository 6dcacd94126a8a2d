"""A model together with all that changes it: one `update` is one optimizer step, whoever asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from harness import faults
from harness.config import Config
from harness.errors import UsageError, out_of_memory
from harness.training.graph import GraphedChange
from harness.training.machine import autocast
from harness.training.optimizer import make_optimizer, rate, set_rates

# images [B, 3, H, W], labels int64 [B], step -> mixed images, targets [B] or [B, classes]
Mix = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Outcome:
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
        forward: what is called in training: the model itself, compiled or wrapped for several processes.
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
    graph: GraphedChange | None = None
    ema: AveragedModel | None = None
    scaler: torch.amp.GradScaler | None = field(default=None)

    def update(self, images: Tensor, labels: Tensor, step: int, lr: float, momentum: float) -> Outcome:
        """One optimizer step on one batch.

        Args:
            images: float [B, 3, H, W]. labels: int64 [B].
            step: updates done before; mixing draws from it.

        Raises:
            FloatingPointError: the loss is not finite. On a CPU before anything was changed by it; elsewhere the
                loss is not waited for, and whoever reads it has to look.
        """
        set_rates(self.optimizer, lr, momentum)
        targets: Tensor = labels
        if self.mix is not None:
            images, targets = self.mix(images, labels, step)
        loss, correct, norm = (self.graph or self._change)(images, labels, targets)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return Outcome(loss, correct, rate(self.optimizer), norm)

    def _change(self, images: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients, clipping and the optimizer's step; loss, images that are right, and norm of the gradient."""
        loss, correct = self._gradients(images, labels, targets)
        if self.device.type == "cpu" and not torch.isfinite(loss):
            raise FloatingPointError(f"loss {loss.item()}")
        norm = self._grad_norm()
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        return loss, correct, norm

    def _gradients(self, images: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """`_backward`, where asked for in as many parts as the memory needs."""
        if not self.auto_batch:
            return self._backward(images, labels, targets)
        # What a pass that breaks off has changed already: running statistics and the random state.
        buffers, random = [buffer.clone() for buffer in self.model.buffers()], torch.get_rng_state()
        on_device = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        while True:
            try:
                return self._backward(images, labels, targets)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self.grad_accumulation >= len(images):
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

    def _backward(self, images: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss over the batch, added up over its parts."""
        self.optimizer.zero_grad(set_to_none=True)
        forward = self.model if self.forward is None else self.forward
        losses, corrects = [], []
        for part, truth, target in zip(
            *(t.tensor_split(self.grad_accumulation) for t in (images, labels, targets)), strict=True
        ):
            if not len(part):
                continue
            with autocast(self.device, self.precision):
                logits = forward(part)  # [B / parts, classes]
            loss = F.cross_entropy(logits.float(), target, label_smoothing=self.label_smoothing)
            loss = loss * (len(part) / len(images))
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            faults.point("part")
            losses.append(loss.detach())
            corrects.append((logits.detach().argmax(1) == truth).sum())
        return torch.stack(losses).sum(), torch.stack(corrects).sum()

    def _grad_norm(self) -> Tensor | None:
        if not self.clip_grad and not self.measure_grad:
            return None
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        return nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad or float("inf"))

    @property
    def judged(self) -> nn.Module:
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
    config: Config, model: nn.Module, device: torch.device, precision: torch.dtype | None, mix: Mix | None = None
) -> Learner:
    """The learner that the settings describe, its model moved to the device."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(device)
    model.to(memory_format=layout)
    ema = None
    if config.ema:
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
    learner = Learner(
        model=model,
        optimizer=make_optimizer(config, model.parameters()),
        device=device,
        precision=precision,
        label_smoothing=0.0 if mix else config.label_smoothing,  # mixed targets are smoothed where they are made
        clip_grad=config.clip_grad,
        grad_accumulation=config.grad_accumulation,
        auto_batch=config.auto_batch,
        mix=mix,
        forward=torch.compile(model) if config.compile else None,
        ema=ema,
        scaler=torch.amp.GradScaler(device.type) if precision == torch.float16 else None,
    )
    if config.cuda_graph:
        _check_graph(config, learner)
        learner.graph = GraphedChange(learner._change, learner.optimizer, device)
    return learner


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
