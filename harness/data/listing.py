"""What lies in a data folder or archive: its pictures, its folders, and what cannot be used, before anything is decoded.

Data is untrusted: links that leave it, link loops, devices and names that climb out are met here.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.data.image_io import is_image_name, plain_name
from harness.utils.errors import DataError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")
MAX_ARCHIVE_BYTES = 8 * 2**30  # of all members, unpacked: they are kept in memory
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip


@dataclass
class Listing:
    """Paths are relative to the data's root, with `/` between the parts.

    Attributes:
        files: path of a picture -> where it lies on disk, or the bytes of the file.
        folders: paths of all folders, empty ones too.
        problems: path -> why that picture cannot be used.
        repeats: paths that were left out because they are a second way to the same file.
    """

    files: dict[str, str | bytes] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    problems: dict[str, str] = field(default_factory=dict)
    repeats: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """Where the class folders are.

    Attributes:
        splits: `train`, `val`, `test` -> the folder that holds its class folders; empty: they lie in `prefix`, unsplit.
    """

    prefix: str
    splits: Mapping[str, str]


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def read_listing(root: Path) -> tuple[Listing, Layout]:
    """What lies in a folder, or in a tar archive.

    Raises:
        DataError: it is missing, unreadable, holds something unsafe, or has no layout that is understood.
    """
    if root.is_dir():
        try:
            top = root.resolve()
            layout = find_layout(lambda path: _subfolders(top / path))
            walk = _Walk(top)
            return walk.run(layout.splits.values() or [layout.prefix]), layout
        except OSError as error:
            raise DataError(f"{plain_name(str(error.filename or root))}: {error.strerror}") from None
    if root.is_file() and is_archive(root):
        listing = _read_archive(root)
        return listing, find_layout(lambda path: children(listing.folders, path))
    if root.is_file():
        raise DataError(f"{root} is neither a folder nor an archive ({', '.join(ARCHIVES)}); set --data-dir")
    raise DataError(f"there is no folder {root}; set --data-dir to the folder (or .tar) that holds train/ and test/")


def find_layout(subfolders: Callable[[str], list[str]]) -> Layout:
    """Finds `train/`, `val/` and `test/` of class folders, also one folder down, or class folders with no splits.

    Args:
        subfolders: path of a folder -> the names of the folders in it.
    """
    prefix = ""
    splits = _splits_in("", subfolders)
    top = subfolders("")
    if not splits and len(top) == 1 and _splits_in(top[0], subfolders):
        prefix, splits = top[0], _splits_in(top[0], subfolders)
    if splits and "train" not in splits:
        raise DataError(
            f"there is {' and '.join(sorted(splits.values()))} but no train folder; name the training images' folder train"
        )
    return Layout(prefix, splits)


def children(folders: Iterable[str], path: str) -> list[str]:
    """Names of the folders that lie directly in `path` (`""`: the root), sorted."""
    start = f"{path}/" if path else ""
    return sorted(item[len(start) :] for item in folders if item.startswith(start) and "/" not in item[len(start) :])


def _splits_in(path: str, subfolders: Callable[[str], list[str]]) -> dict[str, str]:
    """Split -> folder. A folder of that name is a split only if it holds folders: a class may be called `train`."""
    found: dict[str, str] = {}
    for name in subfolders(path):
        split = SPLITS.get(name.lower())
        folder = f"{path}/{name}" if path else name
        if split is None or not subfolders(folder):
            continue
        if split in found:
            raise DataError(f"{found[split]} and {folder} would both be the {split} images; keep one of them")
        found[split] = folder
    return found


def _ignored(name: str) -> bool:
    """Hidden files and folders, and what systems leave behind."""
    return name.startswith(".") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini", "$recycle.bin")


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not _ignored(entry.name) and entry.is_dir())


class _Walk:
    """Visits real folders first, then links, so that a picture keeps its own name and each is listed once."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.listing = Listing()
        self._seen: set[str] = set()  # real paths of folders and files
        self._links: list[tuple[str, str]] = []  # (path in the listing, path on disk)

    def run(self, starts: Iterable[str]) -> Listing:
        for start in starts:
            place = os.path.join(self.root, start) if start else self.root
            if os.path.islink(place):
                self._links.append((start, place))
            else:
                self._folder(start, place)
        while self._links:
            self._link(*self._links.pop(0))
        return self.listing

    def _folder(self, path: str, place: str) -> None:
        waiting = [(path, place)]
        while waiting:
            path, place = waiting.pop()
            if place in self._seen:
                self.listing.repeats.append(path)
                continue
            self._seen.add(place)
            if path:
                self.listing.folders.add(path)
            with os.scandir(place) as entries:
                found = sorted((entry for entry in entries if not _ignored(entry.name)), key=lambda entry: entry.name)
            for entry in found:
                inner = f"{path}/{entry.name}" if path else entry.name
                if entry.is_symlink():
                    self._links.append((inner, entry.path))
                elif entry.is_dir():
                    waiting.append((inner, entry.path))
                elif is_image_name(entry.name):
                    self._file(inner, entry.path)

    def _file(self, path: str, place: str) -> None:
        if place in self._seen:
            self.listing.repeats.append(path)
        elif not os.path.isfile(place):  # a pipe would be waited for without end
            self.listing.problems[path] = "not a regular file"
        else:
            self._seen.add(place)
            self.listing.files[path] = place

    def _link(self, path: str, link: str) -> None:
        target = os.path.realpath(link)
        if target != self.root and not target.startswith(self.root + os.sep):
            raise DataError(
                f"{plain_name(path)} is a link that leaves the data folder; copy what it points to, or set --data-dir to a folder that holds both"
            )
        if not os.path.exists(target):
            self.listing.problems[path] = "dangling link"
        elif os.path.isdir(target):
            holder = os.path.realpath(os.path.dirname(link))
            if holder == target or holder.startswith(target + os.sep):  # the link is inside what it points to
                self.listing.repeats.append(path)
            else:
                self._folder(path, target)
        elif is_image_name(path):
            self._file(path, target)


def _read_archive(archive: Path) -> Listing:
    """Reads all pictures of a tar archive into memory, in one pass and with nothing written to disk."""
    listing, total = Listing(), 0
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                path = _member_path(archive, member)
                if not path or any(_ignored(part) for part in path.split("/")):
                    continue
                total += member.size
                if total > MAX_ARCHIVE_BYTES:
                    raise DataError(
                        f"{archive} holds more than {MAX_ARCHIVE_BYTES / 2**30:g} GiB; unpack it and set --data-dir to the folder"
                    )
                parents = path.split("/")[: None if member.isdir() else -1]
                listing.folders.update("/".join(parents[: depth + 1]) for depth in range(len(parents)))
                content = tar.extractfile(member) if member.isfile() and is_image_name(path) else None
                if content is not None:
                    listing.files[path] = content.read()
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError, ValueError) as error:
        raise DataError(f"{archive}: damaged archive ({plain_name(str(error))})") from None
    listing.files = dict(sorted(listing.files.items()))
    return listing


def _member_path(archive: Path, member: tarfile.TarInfo) -> str:
    """The member's path, without `.` parts."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if member.name.startswith("/") or ".." in parts:
        raise DataError(f"{archive}: member {plain_name(member.name)} climbs out of the archive; refused")
    if not (member.isfile() or member.isdir()):
        raise DataError(
            f"{archive}: member {plain_name(member.name)} is a link or a device; refused, pack the files themselves"
        )
    return "/".join(parts)
