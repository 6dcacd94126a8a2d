"""What can go wrong for a user, each with its exit status; everything else is our own mistake (status 1)."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

CHECK_FAILED = 9  # the exit status of `verify` where a point deviates, and of `doctor` where no run is possible


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


class PeerLostError(HarnessError, RuntimeError):
    """Another process of the same run ended.

    Attributes:
        told: whether the process that ended has said so itself.
    """

    def __init__(self, text: str, told: bool = False) -> None:
        super().__init__(text)
        self.told = told


class AlreadyFinished(HarnessError):
    """There is nothing to do: the run is complete."""

    exit_code = 0


def as_harness_error(error: BaseException) -> HarnessError | None:
    """What an exception of the system or of torch means to a user; None: a mistake of ours, or no news."""
    if isinstance(error, HarnessError):
        return error
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return ResourceError(
            f"out of memory ({text[:120]}); lower --batch-size, or keep it with --grad-accumulation 2 or --auto-batch"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return ResourceError(
            f"a data-loader worker died ({text[:120]}); memory or /dev/shm may be short: try --workers 0"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE):
        return ResourceError(
            f"{error.strerror}{f': {error.filename}' if error.filename else ''}; free some, then run the same command again"
        )
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine had no memory left for a tensor."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known word, or nothing when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
