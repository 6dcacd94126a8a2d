"""The worker processes of a loader: started, watched, ended, and their errors in one line."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from harness.utils.errors import DataError, ResourceError, first_line

TIMEOUT = 300  # seconds without a batch after which the workers are considered stuck


class WorkerPool:
    """The worker processes of one loader: they ignore Ctrl-C, which the main process handles, and are killed when stuck.

    torch's own timeout is not used, because with it torch waits for a killed worker until the timeout is over. Nor is
    its SIGCHLD handler, because it raises wherever the main process is when a worker dies, for example in a save. What
    remains is torch's check that the workers live, every 5 s while it waits for a batch.

    A batch goes through shared memory, in a thread of the worker. Where that fails (a full /dev/shm, a limit on files),
    Python prints the error and drops the batch, and the main process waits for it: here the worker ends instead.

    Attributes:
        pids: process ids, an array shared with the workers; 0 for one that has not started.
        is_stuck: whether the workers were killed.
    """

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self.pids: Any = multiprocessing.get_context().Array("q", max(num_workers, 1))
        self._send_error: Any = multiprocessing.get_context().Array("c", 200)
        self.is_stuck = False

    @property
    def send_error(self) -> str:
        """Why a worker could not send a batch, in one line; empty where all could."""
        return str(self._send_error.value.decode(errors="replace"))

    def __call__(self, worker_id: int) -> None:
        """Initialise a worker process."""
        self.pids[worker_id] = os.getpid()
        # Ctrl-C, a closed terminal and `timeout` signal every process of the group.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.setpgrp()
        # The thread that sends batches, and the one that passes their file descriptors on.
        multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(self._end)  # type: ignore[attr-defined]
        sys.excepthook = lambda kind, error, traceback: self._end(error)

    def _end(self, error: BaseException, *_: object) -> None:
        """End a worker process that cannot send, and leave the reason to the main process."""
        self._send_error.value = first_line(error).encode()[:199]
        os._exit(1)

    def kill(self) -> None:
        """End the workers that have started, whatever they do; they write nothing."""
        for pid in filter(None, self.pids[:]):  # 0 would be every process of the group
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def kill_when_stuck(self) -> Iterator[Callable[[], None]]:
        """Kill the workers once the main process has waited for a batch for more than `TIMEOUT` seconds.

        Yields:
            A function to call before and after waiting for a batch.
        """
        wait_start, finished = [0.0], threading.Event()  # 0: not waiting

        def toggle_waiting() -> None:
            wait_start[0] = 0.0 if wait_start[0] else time.monotonic()

        def watch() -> None:
            while not finished.wait(min(1.0, TIMEOUT / 4)):
                if wait_start[0] and time.monotonic() - wait_start[0] > TIMEOUT:
                    self.is_stuck = True
                    self.kill()
                    return

        if self._num_workers:
            threading.Thread(target=watch, daemon=True).start()
        try:
            yield toggle_waiting
        finally:
            finished.set()


def iterate_checked(batches: Iterable[tuple[Tensor, Tensor]], workers: WorkerPool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches; raise what goes wrong in a worker as an error with a message of one line."""
    with workers.kill_when_stuck() as toggle_waiting:
        yield from _next_batches(iter(batches), workers, toggle_waiting)


def _next_batches(
    iterator: Iterator[tuple[Tensor, Tensor]], workers: WorkerPool, toggle_waiting: Callable[[], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    handler = signal.getsignal(signal.SIGCHLD)
    while True:
        toggle_waiting()
        try:
            batch = next(iterator, None)
        except (DataError, RuntimeError, EOFError, OSError) as error:
            if _one_line_error(error, workers) is error:
                raise
            # torch's frames and this error refer to each other. If that cycle were left to the garbage collector, it
            # could delete the queues before the loader, whose workers then would not receive the order to stop, and
            # torch would wait for them. (A local variable for the new error would create the same cycle.)
            error.__traceback__ = None
            raise _one_line_error(error, workers) from None
        finally:  # torch's own handler would raise wherever the main process is when a worker ends
            if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGCHLD) != handler:
                signal.signal(signal.SIGCHLD, handler)
        toggle_waiting()
        if batch is None:
            return
        yield batch


# What the system says when a batch cannot be sent -> why, and what helps.
SEND_LIMITS = {
    "No space left": "/dev/shm is too small: enlarge it (docker run --shm-size 2g)",  # noqa: S108 - named, not used
    "File too large": "files may not grow that far: raise the limit (ulimit -f unlimited)",
    "Too many open files": "too few files may be open: raise the limit (ulimit -n 4096)",
}


def send_limit(text: str) -> ResourceError | None:
    """Return an error that names the limit which keeps batches from being sent; None where the text names none."""
    limit = next((limit for sign, limit in SEND_LIMITS.items() if sign in text), None)
    if limit is None:
        return None
    return ResourceError(f"the loader processes cannot send their batches: {limit}, or set --workers 0")


def _one_line_error(error: Exception, workers: WorkerPool) -> Exception:
    """Return an error of one line for one from torch's loader, which includes the traceback of the worker."""
    text = str(error).strip()
    if isinstance(error, DataError):
        return DataError(text.splitlines()[-1].removeprefix(f"{DataError.__module__}.{DataError.__name__}: "))
    reason = workers.send_error or text
    if (known := send_limit(reason)) is not None:
        return known
    if workers.send_error:
        return ResourceError(f"a loader process cannot send its batches: {reason}; lower --workers, or set --workers 0")
    if workers.is_stuck:
        return DataError(
            f"no batch from the loader processes for {TIMEOUT} s; check the disk that holds the data, or try --workers 0"
        )
    is_cut_off = isinstance(error, EOFError | ConnectionError)  # a worker died while it sent a batch
    if is_cut_off or ("DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text)):
        return ResourceError(
            "a loader process was killed, most often for lack of memory or of /dev/shm; lower --workers"
        )
    return error
