"""The files of a run directory: their names, the lock, and the refusal of links, pipes and devices among them.

A run directory may come from somebody else, and a link could lead anywhere: what is written through it would be written
elsewhere, and what is read through it would be uploaded.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from harness.utils.errors import DataError, ResourceError, UsageError, is_out_of_space
from harness.utils.files import free_space, open_regular

CHECKPOINTS, FIGURES, STATUS, SUMMARY, CONFIG = "checkpoints", "figures", "status.json", "summary.json", "config.yaml"
FINDER = "lr_finder.json"
DATASET = "dataset.json"  # the data set's fingerprint and classes
SEEDS = "seeds.json"  # in the directory of several seeds
SWEEP_COPY = "sweep.yaml"  # in the directory of a sweep, its file
SEEDS_RECIPE = "recipe.yaml"  # beside it
LOCK = ".lock"
JOURNAL, WANDB, EVALUATION = "journal.jsonl", "wandb", "evaluation-"
EXPORT = "wandb-export"  # of W&B's files of `harness export --wandb`
CONSOLE, DIFF = "console.log", "diff.patch"
DATABASE = "study.db"  # of a sweep
# What a run, a sweep and the commands that use them write in its directory, or read there: none of it may be a link.
TRACKER_FOLDERS = ("tensorboard", "mlflow", "trackio")
OWN_FOLDERS = (CHECKPOINTS, FIGURES, "media", WANDB, EXPORT, *TRACKER_FOLDERS)
SWEEP_FOLDERS = ("runs", "logs", "pareto", "parameters")
WANDB_LINKS = ("latest-run", "debug.log", "debug-internal.log", "debug-core.log")  # W&B replaces them by new links
OWN_FILES = (
    LOCK, STATUS, SUMMARY, CONFIG, DATASET, SEEDS, SEEDS_RECIPE, JOURNAL, "journal.replaced.jsonl", "report.html", CONSOLE, DIFF,
    "predictions.csv", "per_class.csv", FINDER, "seeds.csv", "figures.csv", "sweep.json", "trials.csv",
    SWEEP_COPY, "best.yaml", "times.json", "SHA256SUMS", DATABASE, *(f"{DATABASE}-{end}" for end in ("journal", "wal", "shm")),
)  # fmt: skip


def is_run(path: Path) -> bool:
    """Return whether a folder is a run directory, even a damaged one."""
    return any(os.path.lexists(path / name) for name in (CONFIG, JOURNAL))


def check_own_files(path: Path) -> None:
    """Refuse a directory in which something that harness would read or write is a symbolic link, a pipe or a device.

    Raises:
        DataError: there is such a file; the message names it.
    """
    evaluations: list[str] = []
    with contextlib.suppress(OSError):  # a directory that cannot be listed has no file to refuse
        evaluations = [name for name in os.listdir(path) if name.startswith(EVALUATION)]
    for inner in (path / name for name in (*OWN_FOLDERS, *SWEEP_FOLDERS, *evaluations, *OWN_FILES)):
        if not os.path.lexists(inner):
            continue
        is_folder = inner.name not in OWN_FILES
        if inner.is_symlink() or is_folder != inner.is_dir():
            raise _refused(path, inner)
        if not is_folder:
            _check_own_file(path, inner, is_folder=False)
        elif inner.name == WANDB:
            _check_wandb_folder(path, inner)
        else:
            _check_inside(path, inner)


def _check_inside(root: Path, folder: Path) -> None:
    """Check everything in a folder; of the runs of a sweep, which are checked when they are used, only the folders."""
    for walked, folders, files in os.walk(folder):
        for name in (*folders, *files):
            _check_own_file(root, Path(walked, name), is_folder=name in folders)
        if WANDB in folders:
            _check_wandb_folder(root, Path(walked, WANDB))
            folders.remove(WANDB)
        if folder.name == "runs":
            return


def _check_wandb_folder(root: Path, folder: Path) -> None:
    """Check what W&B writes to by its name; it makes links of its own, and harness opens nothing through them."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            # It makes a link under its name with a number first, and leaves that where it cannot be renamed.
            is_own = name in WANDB_LINKS or (name.rpartition(".")[0] in WANDB_LINKS and name[-1:].isdecimal())
            if not is_own and (folder / name).is_symlink():
                raise _refused(root, folder / name)


def check_output_folder(path: Path, is_named: bool) -> None:
    """Refuse to write results through symbolic links of names that the user has not given.

    Args:
        path: where results are about to be written; it may not exist yet.
        is_named: whether the user named it: then it may be a link itself.

    Raises:
        DataError: it is a link, or has one in it.
    """
    for folder in (*(() if is_named else (path,)), *(path / name for name in (FIGURES, WANDB, *TRACKER_FOLDERS))):
        if folder.is_symlink():
            raise DataError(
                f"{folder} is a symbolic link, and what is written would lie where it leads; remove it, or name another folder"
            )
    if (path / WANDB).is_dir():
        _check_wandb_folder(path, path / WANDB)


def _check_own_file(root: Path, path: Path, is_folder: bool) -> None:
    # What has gone since it was listed, like a temporary file of a living process, is nothing to refuse.
    if path.is_symlink() or (not is_folder and not path.is_file() and os.path.lexists(path)):
        raise _refused(root, path)


def _refused(root: Path, path: Path) -> DataError:
    kind = "a symbolic link" if path.is_symlink() else "no regular file" if not path.is_dir() else "a directory"
    return DataError(
        f"{root}: {path.relative_to(root)} is {kind}; a run directory has plain files and folders: replace it by a copy of what it stands for"
    )


def is_locked(path: Path) -> bool:
    """Return whether a living process is writing the run; nothing is written for it, so the disk may be read-only."""
    try:
        descriptor = open_regular(path / LOCK)
    except OSError:  # there is no lock, or nothing that a run could have locked
        return False
    with open(descriptor) as handle:
        try:
            return not _lock(handle, exclusive=False)
        except OSError:  # a file system without locks, on which no run could have begun
            return False


def make_folder(path: Path, remedy: str = "choose another --output") -> list[Path]:
    """Make a folder that can be written; return the folders that were made, the outermost first.

    Args:
        remedy: of an error, what the user may do.

    Raises:
        UsageError: it cannot be made or written.
        ResourceError: the disk is full.
    """
    missing = [folder for folder in (*reversed(path.parents), path) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}.{threading.get_ident()}"
        try:
            with open(probe, "xb") as file:
                file.write(b"{}")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        remove_empty(missing)
        if is_out_of_space(error):
            raise ResourceError(
                f"no space to write in {path} ({free_space(path)}); free some space, or {remedy}"
            ) from None
        raise UsageError(f"cannot write to {path}: {error.strerror}; {remedy}") from None
    return missing


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders that are empty, from the last to the first."""
    for folder in reversed(folders):
        with contextlib.suppress(OSError):  # not empty, or not there
            folder.rmdir()


_lock_handles: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def _close_inherited_locks() -> None:
    """Close the locks of the parent in a forked process, which would hold them after the parent's death."""
    for handle in list(_lock_handles):
        handle.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_locks)


def lock_folder(path: Path) -> IO[str] | None:
    """Return an open, locked file; None when another process holds it.

    The kernel frees it when the process dies, whatever processes it has forked.

    Raises:
        UsageError: the file cannot be written, is a link or no file, or is on a file system without locks.
    """
    try:
        handle = open(open_regular(path / LOCK, os.O_RDWR | os.O_CREAT), "r+")  # noqa: SIM115 - held for as long as the run
    except OSError as error:
        if is_out_of_space(error):
            raise
        raise UsageError(f"cannot lock {path / LOCK}: {error.strerror}; a run directory has to be writable") from None
    _lock_handles.add(handle)
    try:
        is_free = _lock(handle)
    except OSError as error:
        handle.close()
        raise UsageError(
            f"cannot lock {path / LOCK}: {error.strerror}; choose an --output on a file system that has locks"
        ) from None
    if is_free:
        return handle
    handle.close()
    return None


def _lock(handle: IO[str], *, exclusive: bool = True) -> bool:
    """Lock an open file, and return whether no other process holds it.

    Raises:
        OSError: its file system has no locks, such as a Lustre that is mounted without them.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
