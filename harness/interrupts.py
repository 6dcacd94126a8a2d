"""Signals that stop a run at the next safe place; a second one stops it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from harness.errors import HarnessError


class Interrupted(HarnessError):
    """A signal, or W&B, asked the run to stop; its state was saved."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Interrupts:
    """A context in which SIGINT, SIGTERM and SIGHUP set a flag that the loop looks at between updates.

    The handler does nothing else: no files, no locks, no logging. Outside the main thread, where Python delivers
    no signals, only `stop` sets the flag.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
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
