"""The steps of an epoch that is not finished, read from the device without waiting for it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.tracking.records import Curve, Record

if TYPE_CHECKING:
    from harness.training.loop import TrainerState

LIVE_SECONDS = 2.0  # between records of steps; W&B's client sends its rows every 5 s
MAX_STEPS = 4096  # in one copy; more are copied in turn


@dataclass(frozen=True)
class EpochPosition:
    """Where an epoch lies in a run.

    Attributes:
        epochs: epochs finished before it.
        batches: updates of an epoch.
        images: images of an epoch.
    """

    epochs: int
    batches: int
    images: int


@dataclass(frozen=True)
class _Copy:
    """The losses and gradient norms of some updates on their way from a GPU: complete when `event` has happened."""

    start: int
    stop: int
    rows: int
    event: torch.cuda.Event


class LiveSteps:
    """Makes a record of the finished updates of an epoch every few seconds, while training continues.

    On a GPU the losses are copied to page-locked memory behind the updates that compute them, and are read once the copy
    is complete, so that neither the device nor the processor waits. Reading changes no number of the training. Devices other
    than CPU and CUDA are read at the end of the epoch. The last update of an epoch is left to the record of the epoch, with
    which it shares a row.

    Args:
        state: of the training; the times of its steps are corrected to those at which a GPU finished them.
        interval: seconds between records; infinite: none.
    """

    def __init__(self, state: TrainerState, device: torch.device, interval: float) -> None:
        self._state, self._device, self._interval = state, device, interval
        self._next = time.monotonic() + interval
        self._is_cuda = device.type == "cuda"
        self._position, self._done = EpochPosition(0, 1, 0), 0  # updates of the epoch that were returned
        self._copy: _Copy | None = None
        self._timed, self._timed_until = 0, 0.0
        self._host: Tensor | None = None
        if self._is_cuda and math.isfinite(interval):  # before the loop, since allocating may make the device wait
            self._host = torch.empty(2, MAX_STEPS, pin_memory=True)

    def begin_epoch(self, position: EpochPosition) -> None:
        """Forget the steps of the epoch before; called while the device has no work."""
        self._position, self._done, self._copy = position, 0, None
        self._timed, self._timed_until = len(self._state.times), time.time()
        if self._is_cuda:
            self._origin, self._origin_time = torch.cuda.Event(enable_timing=True), time.time()
            self._origin.record()

    def poll(self) -> Record | None:
        """Return a record of the updates that have finished since the last one; None where it is not time yet."""
        copy = self._copy
        if copy is not None and copy.event.query():
            self._copy = None
            self._correct_times(copy.stop, self._origin_time + self._origin.elapsed_time(copy.event) / 1000)
            assert self._host is not None
            values = self._host[: copy.rows, : copy.stop - copy.start].tolist()
            return self._record(copy.start, copy.stop, values)
        if copy is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._interval
            if self._is_cuda:
                self._start_copy()
            elif self._device.type == "cpu":
                return self._rest()
        return None

    def finish_epoch(self) -> Record | None:
        """Return the updates that are left, after the device has finished them, if some of the epoch were returned before."""
        self._correct_times(len(self._state.times), time.time())
        return self._rest() if self._done else None

    def stop(self) -> Record | None:
        """Return the updates that are left, as training stops here; wait for the device."""
        return self._rest()

    def _rest(self) -> Record | None:
        state, start, stop = self._state, self._done, self._number_done()
        self._copy = None
        if start >= stop:
            return None
        rows = [torch.stack(rows[start:stop]).float().tolist() for rows in (state.losses, state.norms) if rows]
        return self._record(start, stop, rows)

    def _number_done(self) -> int:
        """Return how many updates of the epoch have been launched, without its last one."""
        return min(len(self._state.lrs), self._position.batches - 1)

    def _start_copy(self) -> None:
        state, start = self._state, self._done
        stop = min(self._number_done(), start + MAX_STEPS)
        if start >= stop:
            return
        assert self._host is not None
        rows = [rows[start:stop] for rows in (state.losses, state.norms) if rows]
        for row, tensors in enumerate(rows):
            self._host[row, : stop - start].copy_(torch.stack(tensors).float(), non_blocking=True)
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._copy = _Copy(start, stop, len(rows), event)

    def _correct_times(self, stop: int, until: float) -> None:
        """Spread the times of the updates since the last correction evenly: a GPU works behind the processor."""
        if not self._is_cuda:
            return
        count, since = stop - self._timed, self._timed_until
        for index in range(count):
            self._state.times[self._timed + index] = round(since + (until - since) * (index + 1) / count, 3)
        if count > 0:
            self._timed, self._timed_until = stop, until

    def _record(self, start: int, stop: int, rows: Sequence[Sequence[float]]) -> Record:
        self._done = stop
        curve = step_curve(self._state, self._position, start, stop, *rows)
        times = self._state.times[start:stop]
        step = self._state.step - len(self._state.lrs) + stop
        epochs = self._position.epochs
        return Record(step, epochs, {}, curve, "steps", time=round(time.time(), 3), step_times=times)


def step_curve(
    state: TrainerState,
    position: EpochPosition,
    start: int,
    stop: int,
    losses: Sequence[float],
    norms: Sequence[float] = (),
) -> Curve:
    """Return what was measured at the updates `start` to `stop` of the unfinished epoch.

    Args:
        losses, norms: of these updates; the norms may be empty.
    """
    first_step, images = state.step - len(state.lrs), position.epochs * position.images + sum(state.sizes[:start])
    images_seen = []
    for size in state.sizes[start:stop]:
        images += size
        images_seen.append(images)
    lines: dict[str, Sequence[float]] = {"train/step_loss": losses, "lr": state.lrs[start:stop]}
    if len(norms):
        lines["train/grad_norm"] = norms
    lines["epoch"] = [round(position.epochs + index / position.batches, 6) for index in range(start + 1, stop + 1)]
    lines["images_seen"] = images_seen
    return Curve("step", list(range(first_step + start + 1, first_step + stop + 1)), lines)
