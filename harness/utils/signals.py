"""Signals that stop a run at the next safe place; a second one stops it at once."""

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

_parent = [os.getppid()]  # as this program begins, or was forked
WATCH_EVERY = 1.0  # seconds between looks at the parent
# Seconds within which signals are one request (a scheduler tells the agent and the run, and so does the agent); a second
# Ctrl-C is always one of its own.
TOGETHER = 1.0
PREEMPTED = (138, 143)  # exit statuses after SIGUSR1 and SIGTERM, which a cluster sends before it takes the machine
T = TypeVar("T")


def _note_parent() -> None:
    _parent[0] = os.getppid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_parent)


class Interrupted(HarnessError):
    """A signal, or W&B, asked the run to stop; its state was saved."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class StopRequests:
    """A context in which SIGINT, SIGTERM, SIGHUP and SIGUSR1 set a flag that the loop looks at between updates.

    The handler does nothing else: no files, no locks, no logging. Outside the main thread, where Python delivers
    no signals, only `stop` sets the flag. A run of a sweep stops, as by SIGTERM, when the agent that started it dies
    without a word, as `wandb agent` does of a SIGTERM.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._since = 0.0  # when the first signal came
        self._asked, self._why = 0, ""  # as which signal, by whom, where it was none
        self._before: dict[int, Any] = {}
        self._left = threading.Event()
        self._at_once = False

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
                if (number := getattr(signal, name, None)) is not None:
                    self._before[number] = signal.signal(number, self._handle)
        if os.environ.get("WANDB_SWEEP_ID"):
            threading.Thread(target=self._watch_parent, name="agent-watch", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._number is None:
            self._number, self._since = number, time.monotonic()
            if self._at_once:
                raise KeyboardInterrupt
        elif number == signal.SIGINT == self._number or time.monotonic() - self._since > TOGETHER:
            os._exit(128 + number)

    def _watch_parent(self) -> None:
        while not self._left.wait(WATCH_EVERY):
            if os.getppid() != _parent[0]:
                self._ask(signal.SIGTERM, "stopped since the agent that started it is gone")
                return

    def _ask(self, number: int, why: str) -> None:
        if not self._why:
            self._asked, self._why = number, why

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """While it lasts nothing is lost by breaking off, and a signal does so (waiting for a server, for one).

        Raises:
            Interrupted: a signal came.
        """
        self._at_once = True
        try:
            self.check()
            yield
        except KeyboardInterrupt:
            self.check()
            raise
        finally:
            self._at_once = False

    def stop(self) -> None:
        """Stop as Ctrl-C does; a signal that comes later is still the first one."""
        self._ask(signal.SIGINT, "stopped in W&B")

    @property
    def pending(self) -> bool:
        """Whether a stop was asked for."""
        return self.asked != 0

    @property
    def asked(self) -> int:
        """The signal that asked for a stop, or stands for who did; 0: none."""
        return self._number or (self._asked if self._why else 0)

    def check(self) -> None:
        """Raise `Interrupted` when a stop was asked for (exit status 130 for Ctrl-C, 143 for SIGTERM)."""
        self.obey(self.asked)

    def obey(self, asked: int) -> None:
        """Raise `Interrupted` for a signal that this process, or another of the same run, was sent; nothing for 0."""
        if not asked:
            return
        if self._number is None and self._why:
            raise Interrupted(self._why, 128 + asked)
        raise Interrupted(f"stopped by {signal.Signals(asked).name}", 128 + asked)


def die_with_parent(parent: int | None = None) -> None:
    """Have this process told SIGTERM when the one that started it ends, also when that is killed (Linux only).

    Args:
        parent: the id that the parent had before this process began; where it has gone already, SIGTERM comes now.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


class Interruptible(Generic[T]):
    """Batches that look between any two of them whether a stop was asked for, and then raise `Interrupted`."""

    def __init__(self, batches: Iterable[T], interrupts: StopRequests) -> None:
        self._batches, self._interrupts = batches, interrupts
        self.num_images: int = getattr(batches, "num_images", 0)

    def __iter__(self) -> Iterator[T]:
        for batch in self._batches:
            self._interrupts.check()
            yield batch
