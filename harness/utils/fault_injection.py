"""Faults made on purpose, for `tests/faults`. Nothing here acts unless HARNESS_TESTING=1 and HARNESS_FAULT are both set.

HARNESS_FAULT is `ACTION@PLACE=N`, several parted by commas: the action is done the N-th time that this process passes
the place (at `step`: when the run has done N updates). All places are in `PLACES`, all actions in `ACTIONS`.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

PLACES = {
    "step": "an update is done and counted, nothing of it is saved",
    "part": "the gradients of one part of a batch are there, the optimizer has not used them",
    "evaluation": "a batch of an evaluation is next",
    "write": "half of a file lies beside the one that it is to replace",
    "replaced": "a file has just been replaced by a whole new one",
    "swap": "the last checkpoint has become the previous one, the new one is not yet the last",
    "journal": "half of a journal's line is written",
    "chapter": "training, choosing, judging, drawing or keeping has ended",
}
ACTIONS = ("kill", "term", "int", "usr1", "raise", "oom")
_passed: Counter[str] = Counter()


def point(place: str, number: int | None = None, first: Callable[[], object] | None = None) -> None:
    """Do what HARNESS_FAULT says of this place; nothing outside of tests.

    Args:
        number: what N is compared with; by default how often the place was passed.
        first: leaves things half done, before the action.
    """
    if "HARNESS_FAULT" not in os.environ or os.environ.get("HARNESS_TESTING") != "1":
        return
    _passed[place] += 1
    assert place in PLACES, place
    for fault in os.environ["HARNESS_FAULT"].split(","):
        action, _, where = fault.partition("@")
        if where == f"{place}={_passed[place] if number is None else number}":
            if first is not None:
                first()
            _do(action, fault)


def background_saves() -> bool:
    """Whether a test wants checkpoints written by a thread, as they are on a GPU."""
    return os.environ.get("HARNESS_TESTING") == "1" and os.environ.get("HARNESS_SAVES") == "background"


def _do(action: str, fault: str) -> None:
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "term" | "int" | "usr1":
            os.kill(os.getpid(), {"term": signal.SIGTERM, "int": signal.SIGINT, "usr1": signal.SIGUSR1}[action])
        case "raise":
            raise RuntimeError(f"made on purpose: {fault}")
        case "oom":
            from torch import OutOfMemoryError

            raise OutOfMemoryError(f"CUDA out of memory. Made on purpose: {fault}")
        case _:
            raise AssertionError(f"HARNESS_FAULT={fault}: no such action; there are {', '.join(ACTIONS)}")
