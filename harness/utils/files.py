"""Atomic writes: after a crash at any moment a file has either its former or its new content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from harness.utils import fault_injection
from harness.utils.errors import ResourceError

OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, write: Callable[[BinaryIO], object] | bytes | str) -> None:
    """Replace the file at `path`; the new content is on the disk when this returns.

    Args:
        write: the content, or a function that writes it to the open binary file.

    Raises:
        ResourceError: the disk is full or the folder is not writable; the former file is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
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
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # torch reports a full disk as a RuntimeError of its zip writer, without errno.
        if isinstance(error, OSError) or "inline_container" in str(error):
            raise ResourceError(_why_not_written(path, error)) from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file; empty if there is no such file or it holds no mapping."""
    try:
        value = json.loads(path.read_text())
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


def _why_not_written(path: Path, error: Exception) -> str:
    code = error.errno if isinstance(error, OSError) else errno.ENOSPC
    if code in OUT_OF_SPACE:
        try:
            file_system = os.statvfs(path.parent)
            free = f"{file_system.f_bavail * file_system.f_frsize / 2**20:.1f} MB free"
        except OSError:
            free = "no space left"
        return (
            f"no space to write {path.name} in {path.parent} ({free}); free some space, then run the same command again"
        )
    return f"cannot write {path}: {getattr(error, 'strerror', None) or error}"
