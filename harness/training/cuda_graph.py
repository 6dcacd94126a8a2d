"""Capture the whole optimizer update as one CUDA graph, launched once per batch instead of some 150 kernels one by one.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from harness.utils.errors import ResourceError, first_line, is_out_of_memory

log = logging.getLogger(__name__)
WARMUP_STEPS = 3  # updates without a graph: cuDNN chooses its algorithms, the optimizer creates its buffers
StepOutputs: TypeAlias = tuple[Tensor, Tensor, Tensor | None]  # loss, correct, gradient norm
# images, labels, targets -> outputs: forward and backward pass, clipping and the optimizer's step
Step: TypeAlias = Callable[[Tensor, Tensor, Tensor], StepOutputs]


class GraphedStep:
    """A training step that is captured at the fourth batch of the largest shape and replayed for each one after it.

    Every call is one real update. The warm-up steps run without a graph, and so does every batch of another shape (an
    epoch's last, smaller one), which counts as no warm-up and is never captured. Capturing changes no tensor. Required
    are constant shapes, constant momentum, and a step that never waits for the device.

    A CPU has no graphs: there "replaying" calls the step on the same static buffers, so that everything except for the
    capture is tested there.

    Args:
        step: computes gradients and updates the weights.
        is_optional: where the step cannot be captured, warn and run it without a graph, instead of raising.
    """

    def __init__(
        self, step: Step, optimizer: torch.optim.Optimizer, device: torch.device, is_optional: bool = False
    ) -> None:
        self.step, self.is_optional = step, is_optional
        self._optimizer, self._device = optimizer, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._has_failed = False
        self.reset()

    def reset(self) -> None:
        """Warm up and capture again: the tensors of the model or the optimizer were replaced."""
        self._warmed_up = self._largest_batch = 0
        self._shape: tuple[object, ...] = ()
        self.replay: Callable[[], StepOutputs] | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._lrs: list[Tensor] = []  # of the parameter groups; the graph reads them

    def __call__(self, images: Tensor, labels: Tensor, targets: Tensor) -> StepOutputs:
        """Do one update with the learning rate of the optimizer; the returned tensors are the caller's.

        Raises:
            ResourceError: the step cannot be captured, and `is_optional` is False.
        """
        if self._has_failed:
            return self.step(images, labels, targets)
        shape = tuple((tuple(t.shape), t.dtype, t.stride()) for t in (images, labels, targets))
        if len(images) > self._largest_batch:  # warm-up and capture were of a smaller batch
            self.reset()
            self._shape, self._largest_batch = shape, len(images)
        if shape != self._shape:
            return self.step(images, labels, targets)
        if self._warmed_up < WARMUP_STEPS:
            self._warmed_up += 1
            return self.warm_up(images, labels, targets)
        if self.replay is None:
            self._inputs = tuple(torch.empty_like(t) for t in (images, labels, targets))
            try:
                self.replay = self.capture(*self._inputs)
            except ResourceError as error:
                if not self.is_optional:
                    raise
                log.warning("training without a CUDA graph: %s", error)
                self._has_failed, self._inputs = True, ()
                return self.step(images, labels, targets)
        for buffer, value in zip(self._inputs, (images, labels, targets), strict=True):
            buffer.copy_(value)
        lrs = self._set_lr_tensor()
        try:
            loss, correct, norm = self.replay()
        finally:
            self._restore_lrs(lrs)
        return loss.clone(), correct.clone(), None if norm is None else norm.clone()

    def warm_up(self, images: Tensor, labels: Tensor, targets: Tensor) -> StepOutputs:
        """Do one update without a graph, on the stream that is captured later."""
        if self._stream is None:
            return self.step(images, labels, targets)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = self.step(images, labels, targets)
        current.wait_stream(self._stream)
        return outputs

    def capture(self, images: Tensor, labels: Tensor, targets: Tensor) -> Callable[[], StepOutputs]:
        """Capture the step on static buffers, without computing anything, and return what replays it.

        Raises:
            ResourceError: the step cannot be captured.
        """
        if self._stream is None:
            return lambda: self.step(images, labels, targets)
        graph, lrs = torch.cuda.CUDAGraph(), self._set_lr_tensor()
        try:
            self._optimizer.zero_grad(set_to_none=True)  # so that the gradients are allocated in the graph's own memory
            # thread_local: calls of other threads (a checkpoint's copy, pinned memory of a loader) do not end the capture.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                outputs = self.step(images, labels, targets)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error) and not self.is_optional:
                raise
            reason = first_line(error)
            raise ResourceError(
                f"this model's training step cannot be captured as a CUDA graph: {reason}; turn it off with --cuda-graph False"
            ) from error
        finally:
            self._restore_lrs(lrs)

        def replay() -> StepOutputs:
            graph.replay()
            return outputs

        return replay

    def _set_lr_tensor(self) -> list[float]:
        """Give the parameter groups the tensors that the graph reads their learning rates from; return the former values."""
        groups = self._optimizer.param_groups
        lrs = [float(group["lr"]) for group in groups]
        self._lrs = self._lrs or [torch.zeros((), device=self._device) for _ in groups]
        for group, tensor, lr in zip(groups, self._lrs, lrs, strict=True):
            tensor.fill_(lr)  # a kernel with an argument, not a copy from the CPU, which would wait for the device
            group["lr"] = tensor
        return lrs

    def _restore_lrs(self, lrs: list[float]) -> None:
        for group, lr in zip(self._optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
