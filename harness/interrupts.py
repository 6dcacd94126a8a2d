"""Signals that stop a run at the next safe place; a second one stops it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from harness.errors import HarnessError

PARENT = os.getppid()  # as this program begins
WATCH_EVERY = 1.0  # seconds between looks at the parent
TOGETHER = (
    1.0  # seconds within which signals are one request: a scheduler tells the agent and the run, and so does the agent
)


class Interrupted(HarnessError):
    """A signal, or W&B, asked the run to stop; its state was saved."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Interrupts:
    """A context in which SIGINT, SIGTERM and SIGHUP set a flag that the loop looks at between updates.

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

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
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
        elif time.monotonic() - self._since > TOGETHER:
            os._exit(128 + number)

    def _watch_parent(self) -> None:
        while not self._left.wait(WATCH_EVERY):
            if os.getppid() != PARENT:
                self._ask(signal.SIGTERM, "stopped since the agent that started it is gone")
                return

    def _ask(self, number: int, why: str) -> None:
        if not self._why:
            self._asked, self._why = number, why

    def stop(self) -> None:
        """Stop as Ctrl-C does; a signal that comes later is still the first one."""
        self._ask(signal.SIGINT, "stopped in W&B")

    @property
    def pending(self) -> bool:
        """Whether a stop was asked for."""
        return self._number is not None or bool(self._why)

    def check(self) -> None:
        """Raise `Interrupted` when a stop was asked for (exit status 130 for Ctrl-C, 143 for SIGTERM)."""
        if self._number is not None:
            raise Interrupted(f"stopped by {signal.Signals(self._number).name}", 128 + self._number)
        if self._why:
            raise Interrupted(self._why, 128 + self._asked)
