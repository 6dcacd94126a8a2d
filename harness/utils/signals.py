"""Requests to stop a run by a signal, by W&B or by the end of its parent: it stops after the current update, and a
second signal stops it immediately."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Generic, TypeVar

from harness.utils.errors import HarnessError

_initial_parent = [os.getppid()]  # at the start of this program, or when it was forked
PARENT_CHECK_SECONDS = 1.0
# Signals within this time count as one request, since a scheduler signals both the agent and the run, and the agent
# signals the run too. A second Ctrl-C is always a second request.
SAME_REQUEST_SECONDS = 1.0
PREEMPTED = (
    138,
    143,
)  # exit statuses after SIGUSR1 and SIGTERM, which a cluster sends before it takes the machine away
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # those that the system has stop a run
T = TypeVar("T")


def _store_parent() -> None:
    _initial_parent[0] = os.getppid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_store_parent)


class Interrupted(HarnessError):
    """The run was stopped by a signal or by W&B; its state was saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopRequests:
    """A context in which SIGINT, SIGTERM, SIGHUP and SIGUSR1 set a flag that the training loop checks between updates.

    The handler does nothing else: no files, no locks, no logging. Outside the main thread, where Python delivers no
    signals, only `stop` sets the flag. A run of a sweep stops, as after SIGTERM, when the agent that started it ends
    without stopping it, as `wandb agent` does after SIGTERM.
    """

    def __init__(self) -> None:
        self._received: int | None = None  # the first signal
        self._received_at = 0.0
        self._substitute, self._reason = 0, ""  # of a request that is not a signal: the signal it counts as
        self._former_handlers: dict[int, Any] = {}
        self._exited = threading.Event()
        self._raises_immediately = False

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name, None)
                is_ignored = name == "SIGHUP" and number is not None and signal.getsignal(number) == signal.SIG_IGN
                if number is not None and not is_ignored:  # nohup lets a run go on without its terminal
                    self._former_handlers[number] = signal.signal(number, self._handle)
        if os.environ.get("WANDB_SWEEP_ID"):
            threading.Thread(target=self._watch_parent, name="agent-watch", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._exited.set()
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received, self._received_at = number, time.monotonic()
            if self._raises_immediately:
                raise KeyboardInterrupt
        elif number == signal.SIGINT == self._received or time.monotonic() - self._received_at > SAME_REQUEST_SECONDS:
            os._exit(128 + number)

    def _watch_parent(self) -> None:
        while not self._exited.wait(PARENT_CHECK_SECONDS):
            if os.getppid() != _initial_parent[0]:
                self._request(signal.SIGTERM, "stopped because the agent that started it has ended")
                return

    def _request(self, substitute: int, reason: str) -> None:
        if not self._reason:
            self._substitute, self._reason = substitute, reason

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal interrupt the context immediately, for example a wait for a server, where no state would be lost.

        Raises:
            Interrupted: a signal was received.
        """
        self._raises_immediately = True
        try:
            self.check()
            yield
        except KeyboardInterrupt:
            self.check()
            raise
        finally:
            self._raises_immediately = False

    def stop(self) -> None:
        """Request a stop as Ctrl-C does; a later signal still counts as the first one."""
        self._request(signal.SIGINT, "stopped in W&B")

    @property
    def pending(self) -> bool:
        """Whether a stop was requested."""
        return self.signal_number != 0

    @property
    def signal_number(self) -> int:
        """The signal that requested a stop, or that the request counts as; 0 without a request."""
        return self._received or self._substitute

    def check(self) -> None:
        """Raise `Interrupted` if a stop was requested (exit status 130 for Ctrl-C, 143 for SIGTERM)."""
        self.raise_for(self.signal_number)

    def raise_for(self, signal_number: int) -> None:
        """Raise `Interrupted` for a signal that this process or another one of the run received; 0 does nothing."""
        if not signal_number:
            return
        if self._received is None and self._reason:
            raise Interrupted(self._reason, 128 + signal_number)
        # The name of this signal says little to most users.
        name = "Ctrl-C (SIGINT)" if signal_number == signal.SIGINT else signal.Signals(signal_number).name
        raise Interrupted(f"stopped by {name}", 128 + signal_number)


def die_with_parent(parent: int | None = None) -> None:
    """Let the kernel send SIGTERM to this process when its parent ends, even if the parent is killed (Linux only).

    Args:
        parent: process id of the parent before this process started; if it has ended already, SIGTERM is sent now.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


class Interruptible(Generic[T]):
    """Batches that raise `Interrupted` between two of them if a stop was requested."""

    def __init__(self, batches: Iterable[T], stop_requests: StopRequests) -> None:
        self._batches, self._stop_requests = batches, stop_requests
        self.num_images: int = getattr(batches, "num_images", 0)

    def __iter__(self) -> Iterator[T]:
        for batch in self._batches:
            self._stop_requests.check()
            yield batch
