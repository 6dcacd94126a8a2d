"""Signals that stop a run at the next safe place; a second one stops it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Generic, TypeVar

from harness.errors import HarnessError

PREEMPTED = (138, 143)  # exit statuses after SIGUSR1 and SIGTERM, which a cluster sends before it takes the machine
T = TypeVar("T")


class Interrupted(HarnessError):
    """A signal, or W&B, asked the run to stop; its state was saved."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Interrupts:
    """A context in which SIGINT, SIGTERM, SIGHUP and SIGUSR1 set a flag that the loop looks at between updates.

    The handler does nothing else: no files, no locks, no logging. Outside the main thread, where Python delivers
    no signals, only `stop` sets the flag.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._before: dict[int, Any] = {}
        self._at_once = False

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
                if (number := getattr(signal, name, None)) is not None:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None:
            os._exit(128 + number)
        self._number = number
        if self._at_once:
            raise KeyboardInterrupt

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
        """Stop as Ctrl-C does."""
        self._number = self._number or signal.SIGINT

    @property
    def pending(self) -> bool:
        """Whether a stop was asked for."""
        return self._number is not None

    def check(self) -> None:
        """Raise `Interrupted` when a stop was asked for (exit status 130 for Ctrl-C, 143 for SIGTERM)."""
        if self._number is not None:
            raise Interrupted(f"stopped by {signal.Signals(self._number).name}", 128 + self._number)


class Interruptible(Generic[T]):
    """Batches that look between any two of them whether a stop was asked for, and then raise `Interrupted`."""

    def __init__(self, batches: Iterable[T], interrupts: Interrupts) -> None:
        self._batches, self._interrupts = batches, interrupts
        self.images: int = getattr(batches, "images", 0)

    def __iter__(self) -> Iterator[T]:
        for batch in self._batches:
            self._interrupts.check()
            yield batch
