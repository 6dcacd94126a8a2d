"""What can go wrong for a user, each with its exit status; everything else is our own mistake (status 1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """One line that names the value and the remedy; `exit_code` is the status the command ends with."""

    exit_code = 1


class UsageError(HarnessError, ValueError):
    """The command or a value in it is wrong; nothing was created."""

    exit_code = 2


class DataError(HarnessError, RuntimeError):
    """Data missing, empty or unreadable."""

    exit_code = 3


class CheckpointError(HarnessError, RuntimeError):
    """A checkpoint is missing, damaged, foreign or unsafe."""

    exit_code = 4


class DivergedError(HarnessError, RuntimeError):
    """The loss became NaN or infinite."""

    exit_code = 5


class ResourceError(HarnessError, RuntimeError):
    """Out of disk, memory or open files."""

    exit_code = 6


class TrackingError(HarnessError, RuntimeError):
    """W&B was asked for by name and can not be had."""

    exit_code = 7


class BusyError(HarnessError, RuntimeError):
    """Another process is writing this run folder."""

    exit_code = 8


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known word, or nothing when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
