"""Wait for the end of an upload as long as it proceeds: a large model over a slow line takes longer than any fixed time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

SLOWEST = 100_000  # bytes a second of a connection that still counts as working
BUFFERED = 4 * 2**20  # bytes that count as sent as the system has taken them over, though nothing has arrived yet
POLL = 0.5


def patience(timeout: float, size: int) -> float:
    """Return how many seconds an upload of `size` bytes may take: what a slow connection needs, and `timeout` more."""
    return timeout + size / SLOWEST


def finish_run(run: Any, exit_code: int, timeout: float, give_up: Callable[[], None]) -> str:
    """Finish a run in W&B; return why not everything was uploaded, empty where it was.

    Args:
        timeout: seconds without progress, beyond what a slow connection needs for what is on its way.
        give_up: ends W&B's process, with which `run.finish` ends.
    """
    errors: list[BaseException] = []

    def finish() -> None:
        try:
            run.finish(exit_code=exit_code)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=finish, name="wandb-finish", daemon=True)
    thread.start()
    uploaded, total, changed = -1, 0, time.monotonic()
    while True:
        thread.join(POLL)
        if not thread.is_alive():
            break
        before, (uploaded, total) = uploaded, _progress(run)
        if uploaded != before:
            changed = time.monotonic()
        waited = time.monotonic() - changed
        if waited > patience(timeout, min(total, BUFFERED)):
            give_up()
            thread.join(10)
            return f"nothing was uploaded for {waited:.0f} s"
    if errors:
        raise errors[0]
    return ""


def _progress(run: Any) -> tuple[int, int]:
    """Return the bytes of files that were sent, and all that are to be sent; W&B has no public API for that."""
    with contextlib.suppress(Exception):
        handle = run._interface.deliver_poll_exit()
        stats = handle.wait_or(timeout=5).response.poll_exit_response.pusher_stats
        return int(stats.uploaded_bytes), int(stats.total_bytes)
    return 0, 0
