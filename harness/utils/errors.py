"""The errors that a user can meet, and the exit status of each.

| status | meaning | class |
| --- | --- | --- |
| 0 | success, or nothing left to do | `AlreadyFinished` |
| 1 | unexpected failure: a bug | any other exception |
| 2 | wrong command, option or setting | `UsageError` |
| 3 | data missing or unreadable | `DataError` |
| 4 | checkpoint missing, damaged or unsafe | `CheckpointError` |
| 5 | training diverged | `DivergedError` |
| 6 | out of disk space, memory or file handles | `ResourceError` |
| 7 | tracking failed where it was required | `TrackingError` |
| 8 | run directory in use by another process | `BusyError` |
| 9 | a check of `verify` or `doctor` failed | `CHECK_FAILED` |
| 130, 143, 138, 129 | stopped by SIGINT, SIGTERM, SIGUSR1 or SIGHUP, with the state saved | `harness.utils.signals.Interrupted` |
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

CHECK_FAILED = 9


class HarnessError(Exception):
    """An error whose message is one line: what is wrong, the value, the remedy. The command exits with `exit_code`.

    Attributes:
        is_reported: whether its message has been printed already, by this process or another.
    """

    exit_code = 1
    is_reported = False


class UsageError(HarnessError, ValueError):
    """The command or one of its values is wrong; nothing was created."""

    exit_code = 2


class DataError(HarnessError, RuntimeError):
    """The data is missing, empty or unreadable."""

    exit_code = 3


class CheckpointError(HarnessError, RuntimeError):
    """A checkpoint is missing, damaged, unsafe or of another run."""

    exit_code = 4


class DivergedError(HarnessError, RuntimeError):
    """The loss became NaN or infinite."""

    exit_code = 5


class ResourceError(HarnessError, RuntimeError):
    """There is no disk space, memory or file handle left."""

    exit_code = 6


class TrackingError(HarnessError, RuntimeError):
    """W&B is required by the settings and not available."""

    exit_code = 7


class BusyError(HarnessError, RuntimeError):
    """Another process is using this run directory."""

    exit_code = 8


class PeerLostError(HarnessError, RuntimeError):
    """Another process of the same run ended."""

    def __init__(self, message: str, is_reported: bool = False) -> None:
        super().__init__(message)
        self.is_reported = is_reported


class AlreadyFinished(HarnessError):
    """The run is complete; there is nothing to do."""

    exit_code = 0


def as_harness_error(error: BaseException) -> HarnessError | None:
    """Return the error to show for an exception of the system or of a library; None for an unexpected one."""
    if isinstance(error, HarnessError):
        return error
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return ResourceError(
            f"out of memory ({text[:120]}); lower --batch-size, or keep the batch size with --grad-accumulation 2 or --auto-batch"
        )
    if is_compiler_error(error):
        return ResourceError(
            f"torch.compile failed ({first_line(error)[:200]}); leave out --compile, or choose an optimizer other than kron, which compiles itself"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return ResourceError(
            f"a data-loader worker died ({text[:120]}); memory or /dev/shm may be short: try --workers 0"
        )
    name = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
    if is_out_of_space(error):
        reason = error.strerror if isinstance(error, OSError) else "No space left on device"
        return ResourceError(f"{reason}{name}; free some space, then run the same command again")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return ResourceError(
            f"{error.strerror}{name}; close files or raise `ulimit -n`, then run the same command again"
        )
    if isinstance(error, ImportError | OSError) and any(part in text for part in NOT_MAPPED_TEXTS):
        return ResourceError(f"out of memory while a library was loaded ({text[:160]}); raise `ulimit -v`")
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EIO):
        return ResourceError(f"{error.strerror}{name}")
    if isinstance(error, OSError) and error.errno in UNUSABLE_PATH and name:
        return UsageError(f"{error.strerror}{name}; choose another file or folder, or change its permissions")
    return None


def is_compiler_error(error: BaseException) -> bool:
    """Return whether torch.compile could not compile something, for example because there is no C++ compiler."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


# A file system that is full, a quota that is used up, a file that may not grow.
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How torch's zip writer and libraries in Rust and C++, which raise no OSError, say that the disk is full.
OUT_OF_SPACE_TEXTS = ("inline_container", "No space left on device", "File too large", "os error 28", "os error 27")
# How the dynamic linker says that there is no memory for a library.
NOT_MAPPED_TEXTS = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")
# A path that the user has to change; errors of reading data have messages of their own.
UNUSABLE_PATH = (
    errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST,
    errno.EINVAL,
)  # fmt: skip
# How PyTorch's allocator and oneDNN (which has no other text for it) say that there is no memory left on the CPU.
ONEDNN_ERROR = "could not create a primitive"
OUT_OF_MEMORY_TEXTS = ("can't allocate memory", ONEDNN_ERROR, "std::bad_alloc")


def is_out_of_space(error: BaseException) -> bool:
    """Return whether a file could not be written because the disk is full or the file may not grow."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in OUT_OF_SPACE
    return isinstance(error, Exception) and any(text in str(error) for text in OUT_OF_SPACE_TEXTS)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the device or the machine ran out of memory."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS))
    )


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return ` (did you mean 'x'?)` for the closest known name, shown after a prefix; empty if none is close.

    The only name that begins with the given one is close, however long it is.
    """
    known = list(known)
    longer = [other for other in known if len(name) > 2 and other.startswith(name)]
    matches = longer[:1] if len(longer) == 1 else difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {prefix + matches[0]!r}?)" if matches else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
