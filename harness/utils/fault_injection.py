"""Deliberate faults for `tests/faults`; inactive unless HARNESS_TESTING=1 and HARNESS_FAULT are both set.

HARNESS_FAULT is `ACTION@POINT=N`, or several of these separated by commas. The action is performed when this process
reaches the point for the N-th time (at `step`: after the N-th update of the run). `POINTS` lists the points, `ACTIONS` the actions.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

POINTS = {
    "step": "after an update, before anything of it is saved",
    "micro_batch": "after the backward pass of a micro-batch, before the optimizer step",
    "evaluation": "before the forward pass of an evaluation batch",
    "write": "after half of the temporary file that replaces a file is written",
    "replaced": "after a file was replaced",
    "swap": "after last.pt was renamed to previous.pt, before the new last.pt exists",
    "journal": "after half of a line of the journal is written",
    "phase": "after a phase of a run: training, selection, evaluation, figures or saving",
}
ACTIONS = ("kill", "term", "int", "usr1", "raise", "oom")
_visits: Counter[str] = Counter()


class OutOfMemoryError(RuntimeError):
    """A stand-in for torch's error, which `is_out_of_memory` recognises by its name too."""


def point(name: str, number: int | None = None, first: Callable[[], object] | None = None) -> None:
    """Perform the action that HARNESS_FAULT names for this point; do nothing outside of tests.

    Args:
        number: the number to compare with N; the number of visits by default.
        first: called before the action, to leave a file incomplete.
    """
    if "HARNESS_FAULT" not in os.environ or os.environ.get("HARNESS_TESTING") != "1":
        return
    _visits[name] += 1
    assert name in POINTS, name
    for fault in os.environ["HARNESS_FAULT"].split(","):
        action, _, condition = fault.partition("@")
        if condition == f"{name}={_visits[name] if number is None else number}":
            if first is not None:
                first()
            _perform(action, fault)


def background_saves() -> bool:
    """Return whether a test requests checkpoints written by a background thread, as on a GPU."""
    return os.environ.get("HARNESS_TESTING") == "1" and os.environ.get("HARNESS_SAVES") == "background"


def _perform(action: str, fault: str) -> None:
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "term" | "int" | "usr1":
            os.kill(os.getpid(), {"term": signal.SIGTERM, "int": signal.SIGINT, "usr1": signal.SIGUSR1}[action])
        case "raise":
            raise RuntimeError(f"deliberate fault: {fault}")
        case "oom":
            raise OutOfMemoryError(f"CUDA out of memory. Deliberate fault: {fault}")
        case _:
            raise AssertionError(f"HARNESS_FAULT={fault}: unknown action; need one of {', '.join(ACTIONS)}")
