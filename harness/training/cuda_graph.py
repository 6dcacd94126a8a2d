"""The whole update as one CUDA graph: launched once a batch instead of some 150 kernels one by one.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.utils.errors import ResourceError, is_out_of_memory

WARM = 3  # updates done kernel by kernel before: cuDNN chooses its algorithms, the optimizer makes its buffers
# images, labels, targets -> loss, correct, gradient norm: forward, backward, clipping and the optimizer's step
Change = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]


class GraphedStep:
    """`change` recorded at its fourth batch of a shape, and replayed for each one after it.

    Every call is one real update: the first ones run kernel by kernel, and so does a batch of another shape. Recording
    itself changes nothing. What it needs: shapes that stay, a learning rate in a tensor, a constant momentum, and nothing
    in `change` that waits for the device.

    On a CPU, which has no graphs, "replaying" calls `change` on the same fixed buffers, so that all but the recording
    is tested there.
    """

    def __init__(self, change: Change, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._change, self._optimizer, self._device = change, optimizer, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.forget()

    def forget(self) -> None:
        """Record anew: the optimizer's or the model's tensors were replaced."""
        self._warmed = 0
        self._shape: tuple[object, ...] = ()
        self._replay: Callable[[], tuple[Tensor, Tensor, Tensor | None]] | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._lr = torch.zeros((), device=self._device)

    def __call__(self, images: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """One update with the rate that the optimizer was given; the results are the caller's to keep."""
        shape = tuple((tuple(t.shape), t.dtype, t.stride()) for t in (images, labels, targets))
        if self._warmed < WARM:
            self._warmed += 1
            return self._beside(lambda: self._change(images, labels, targets))
        if self._replay is None:
            self._shape = shape
            self._inputs = tuple(torch.empty_like(t) for t in (images, labels, targets))
            self._replay = self._recorded()
        if shape != self._shape:
            return self._change(images, labels, targets)
        for kept, given in zip(self._inputs, (images, labels, targets), strict=True):
            kept.copy_(given)
        rates = self._give_rate()
        try:
            loss, correct, norm = self._replay()
        finally:
            self._take_back(rates)
        return loss.clone(), correct.clone(), None if norm is None else norm.clone()

    def _give_rate(self) -> list[float]:
        """The groups' learning rates, which now are in the tensor that the graph reads; they are all the same."""
        rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        assert len(set(rates)) == 1, f"one learning rate for all, got {rates}"
        self._lr.fill_(rates[0])  # a kernel with its argument, not a copy from the CPU: nothing waits
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr
        return rates

    def _take_back(self, rates: list[float]) -> None:
        for group, lr in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = lr

    def _beside(self, work: Callable[[], Any]) -> Any:
        """`work` done on the stream that is recorded later, in its turn."""
        if self._stream is None:
            return work()
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            done = work()
        current.wait_stream(self._stream)
        return done

    def _recorded(self) -> Callable[[], tuple[Tensor, Tensor, Tensor | None]]:
        """Record `change` on the fixed buffers; nothing is computed."""
        if self._stream is None:
            return lambda: self._change(*self._inputs)
        graph, rates = torch.cuda.CUDAGraph(), self._give_rate()
        try:
            self._optimizer.zero_grad(set_to_none=True)  # so that the gradients' memory is the graph's own
            with torch.cuda.graph(graph, stream=self._stream):
                results = self._change(*self._inputs)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ResourceError(
                f"this model's update can not be recorded as a CUDA graph: {why}; leave --cuda-graph out"
            ) from error
        finally:
            self._take_back(rates)

        def replay() -> tuple[Tensor, Tensor, Tensor | None]:
            graph.replay()
            return results

        return replay
