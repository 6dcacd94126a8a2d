"""Atomic writes: after a crash at any moment a file has either its former or its new content. Reads of untrusted files.

A run directory may come from somebody else. What harness reads or writes in it is opened as a regular file and never
through a symbolic link, which could lead anywhere; a pipe or a device would block or never end.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

from harness.utils import fault_injection
from harness.utils.errors import UNUSABLE_PATH, ResourceError, UsageError, is_out_of_space
from harness.utils.plain import json_text, parse_json

MAX_JSON_BYTES = 64 * 2**20  # of a file that `read_json` reads; those of harness have kilobytes
# Without O_NONBLOCK the opening of a pipe waits for its other end.
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Return a file descriptor of a regular file; a symbolic link is not followed, and a pipe is not waited for.

    Args:
        flags: as those of `os.open`.

    Raises:
        OSError: the file cannot be opened, or is a link, a directory, a pipe or a device.
    """
    try:
        descriptor = os.open(path, flags | _SAFE, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and os.path.islink(path):
            raise OSError(errno.ELOOP, "a symbolic link, which is not followed", str(path)) from None
        if error.errno == errno.ENXIO:  # a pipe without a reader, or a socket
            raise OSError(errno.EINVAL, "not a regular file", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_regular(path: Path, limit: int | None = None) -> bytes:
    """Return the content of a regular file that is no symbolic link.

    Raises:
        OSError: it cannot be read, is no regular file, or has more than `limit` bytes.
    """
    with open(open_regular(path), "rb") as file:
        if limit is not None and os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"more than {limit:,} bytes", str(path))
        return file.read()


def link_inside(root: Path, path: Path) -> Path | None:
    """Return the first symbolic link on the way from the folder `root` to `path`, which lies in it; None without one."""
    inner = Path(root)
    for part in Path(path).relative_to(root).parts:
        inner = inner / part
        if inner.is_symlink():
            return inner
    return None


def is_plain_path(path: str) -> bool:
    """Return whether a path that a file names is one of plain names below a folder: not absolute, without `..` or a drive."""
    return not {"", ".", ".."} & set(re.split(r"[/\\]", path)) and ":" not in path


def write_atomically(path: Path, write: Callable[[BinaryIO], object] | bytes | str) -> None:
    """Replace the file at `path`; the new content is on the disk when this returns.

    Args:
        write: the content, or a function that writes it to the open binary file.

    Raises:
        ResourceError: the disk is full or read-only. UsageError: the path cannot be written, for example for want of
            permission. The former file is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:  # a new file: what lies there may be a link
            if callable(write):
                write(file)
            else:
                file.write(write.encode() if isinstance(write, str) else write)
            file.flush()
            os.fsync(file.fileno())
            fault_injection.point("write", first=lambda: file.truncate(file.tell() // 2))
        os.replace(temporary, path)
        sync_folder(path.parent)
        fault_injection.point("replaced")
    except BaseException as error:
        with contextlib.suppress(OSError):  # the folder may have gone, or have become read-only
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in UNUSABLE_PATH:
            raise UsageError(f"cannot write {path}: {error.strerror}; choose another file or folder") from error
        if isinstance(error, OSError) or is_out_of_space(error):
            raise ResourceError(_why_not_written(path, error)) from error
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented, strict JSON, atomically."""
    write_atomically(path, json_bytes(value))


def note_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file without waiting for the disk, which takes its time; where that fails the file stays as it was.

    For what is written after every epoch and may be lost, since the disk may be full and training continues.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:  # a new file: what lies there may be a link
            file.write(json_bytes(value))
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Return the content of a JSON file. The bytes of a name that is no Unicode are written as escapes."""
    return (json_text(value, indent=2) + "\n").encode("utf-8", "backslashreplace")


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file; empty if there is no such regular file or it holds no mapping."""
    try:
        value = parse_json(read_regular(path, MAX_JSON_BYTES))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def remove_temporary_files(folder: Path) -> None:
    """Remove the partial files of a killed `write_atomically` from a folder and its subfolders."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Return the folder of the user's cache in which this package keeps files; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness"


def is_archive(file: Path | IO[bytes]) -> bool:
    """Return whether a file is a zip archive, intact or damaged."""
    import zipfile

    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # it ends as an archive of several disks does
        return True


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, where the file system can sync folders."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _why_not_written(path: Path, error: BaseException) -> str:
    if is_out_of_space(error):
        return f"no space to write {path.name} in {path.parent} ({free_space(path.parent)}); free some space, then run the same command again"
    return f"cannot write {path}: {getattr(error, 'strerror', None) or error}"


def free_space(folder: Path) -> str:
    """Return how much space is free where a folder is or would be, as text."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        file_system = os.statvfs(folder)
        return f"{file_system.f_bavail * file_system.f_frsize / 2**20:.1f} MB free"
    except OSError:
        return "no space left"
