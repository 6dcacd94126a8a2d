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
SEEDS = "seeds.json"  # in the directory of several seeds
SEEDS_RECIPE = "recipe.yaml"  # beside it
LOCK = ".lock"
# What a run and the commands that use it write in its directory, or read there: none of it may be a symbolic link.
OWN_FOLDERS = (CHECKPOINTS, FIGURES, "media", "wandb")
OWN_FILES = (
    LOCK, STATUS, SUMMARY, CONFIG, SEEDS, SEEDS_RECIPE, "journal.jsonl", "journal.replaced.jsonl", "report.html",
    "predictions.csv", "per_class.csv", "lr_finder.json", "seeds.csv", "figures.csv", "sweep.json", "trials.csv",
    "sweep.yaml", "best.yaml", "SHA256SUMS",
)  # fmt: skip


def check_own_files(path: Path) -> None:
    """Refuse a directory in which something that harness would read or write is a symbolic link, a pipe or a device.

    Raises:
        DataError: there is such a file; the message names it.
    """
    names = [*OWN_FOLDERS, *OWN_FILES]
    with contextlib.suppress(OSError):  # a directory that cannot be listed has no file to refuse
        names += [name for name in os.listdir(path) if name.startswith("evaluation-")]
    for inner in (path / name for name in names):
        if not os.path.lexists(inner):
            continue
        if inner.is_symlink() or (
            (inner.name in OWN_FOLDERS) != inner.is_dir() and not inner.name.startswith("evaluation-")
        ):
            raise _refused(path, inner)
        if inner.is_dir() and inner.name != "wandb":  # W&B makes links of its own in there, and opens none of ours
            for folder, folders, files in os.walk(inner):
                for name in (*folders, *files):
                    _check_own_file(path, Path(folder, name), is_folder=name in folders)
        elif inner.is_file():
            _check_own_file(path, inner, is_folder=False)
        elif inner.name != "wandb":
            raise _refused(path, inner)


def _check_own_file(root: Path, path: Path, is_folder: bool) -> None:
    if path.is_symlink() or not (is_folder or path.is_file()):
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
        return not _lock(handle, exclusive=False)


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
        UsageError: the file cannot be written, or is a link or no file.
    """
    try:
        handle = open(open_regular(path / LOCK, os.O_RDWR | os.O_CREAT), "r+")  # noqa: SIM115 - held for as long as the run
    except OSError as error:
        if is_out_of_space(error):
            raise
        raise UsageError(f"cannot lock {path / LOCK}: {error.strerror}; a run directory has to be writable") from None
    _lock_handles.add(handle)
    if _lock(handle):
        return handle
    handle.close()
    return None


def _lock(handle: IO[str], *, exclusive: bool = True) -> bool:
    """Lock an open file, and return whether no other process holds it."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return not exclusive
    return True
