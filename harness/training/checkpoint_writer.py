"""Checkpoints written off the critical path: a snapshot on the device, and one thread that does the rest.

On a GPU an epoch of CIFAR-10 is a third of a second, and a checkpoint with its checksum and its syncs takes nearly as
long. The loop pays for a copy within the device's memory only. On a CPU, where a thread would take its time from
training, a checkpoint is written at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from harness.utils import fault_injection

WAITING = 2  # snapshots in memory at most: one being written, one behind it


class CheckpointWriter:
    """Writes states in the order in which they were given.

    An error of a write (a full disk) is raised by the next call of `save` or `flush`, in the thread that calls.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._background = device.type != "cpu" or fault_injection.background_saves()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def save(self, state: Mapping[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
        """Have `state` written as it is now, whatever is done to its tensors after this returns.

        Args:
            state: tensors, mappings, lists and plain values.
            write: is given the state with its tensors on the CPU.
        """
        if not self._background:
            write(dict(state))
            return
        while len(self._pending) >= WAITING or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()
        try:
            snapshot, ready = _copied(dict(state)), _now(self._device)
        except torch.OutOfMemoryError:  # no room for a copy on the device
            self.flush()
            write(dict(state))
            return
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending.append(self._pool.submit(lambda: write(_on_cpu(snapshot, self._device, ready))))

    def flush(self) -> None:
        """Wait until everything given is on the disk."""
        while self._pending:
            self._pending.popleft().result()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


class NullCheckpointWriter:
    """Writes nothing: another process does."""

    def save(self, state: Mapping[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""


def _mapped(change: Callable[[Tensor], Tensor], state: Any) -> Any:
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, dict):
        return {key: _mapped(change, value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_mapped(change, value) for value in state)
    return state


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    # preserve_format keeps NHWC weights as they are: a file holds the same bytes whichever way it was written.
    copied: dict[str, Any] = _mapped(lambda tensor: tensor.detach().clone(), state)
    return copied


def _now(device: torch.device) -> Any:
    """The moment at which the device has done all it was given; None where work is done in order anyway."""
    if device.type != "cuda":
        return None
    moment = torch.cuda.Event()
    moment.record(torch.cuda.current_stream(device))
    return moment


def _on_cpu(snapshot: dict[str, Any], device: torch.device, ready: Any) -> dict[str, Any]:
    """The snapshot in the CPU's memory, copied beside what the device is doing for training."""
    if ready is None:
        moved: dict[str, Any] = _mapped(lambda tensor: tensor.cpu(), snapshot)
        return moved
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)) as _:
        torch.cuda.current_stream(device).wait_event(ready)
        moved = _mapped(lambda tensor: tensor.cpu(), snapshot)  # each copy is waited for by this thread alone
    return moved
