"""List the images and class folders of a data folder or tar archive, without decoding anything.

Data is untrusted: links that lead outside, link loops, devices and archive members with unsafe paths are handled here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.config.names import SPLIT_NAMES, SPLIT_WORDS, SplitName
from harness.data.archive import ARCHIVES, read_archive
from harness.data.image_io import is_image_name
from harness.utils.errors import DataError
from harness.utils.files import read_regular
from harness.utils.text import escape_unprintable

# Folders that may hold the files that list the images of the splits; "" is the one that the images are in or below.
LIST_FOLDERS = ("", "meta", "splits", "lists")
CLASS_NAMES = "classes.txt"
MAX_LIST_BYTES = 2**28
MAX_NESTING = 4  # folders around the one that holds class folders, splits or lists


@dataclass
class FolderScan:
    """The contents of a data folder or archive. Paths are relative to its root, with `/` between their parts.

    Attributes:
        files: path of an image -> its path on the disk, or the contents of the file.
        folders: paths of all folders, including empty ones.
        problems: path of an image -> why it cannot be used.
        repeats: links that were left out because they lead to a file or folder that is listed already.
        unused: folder beside the split folders -> the number of images in it.
        unread: extension of files that are no images -> their number.
        texts: path of a file that may list images or classes -> its contents.
    """

    files: dict[str, str | bytes] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    problems: dict[str, str] = field(default_factory=dict)
    repeats: list[str] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    texts: dict[str, bytes] = field(default_factory=dict)

    def add_unread(self, name: str) -> None:
        """Count a file that is no image by its extension."""
        self.unread[os.path.splitext(name)[1].lower() or name] += 1


@dataclass(frozen=True)
class Layout:
    """Where the class folders are.

    Attributes:
        prefix: the folder that holds the class folders, the split folders or what the lists name; "" is the root.
        splits: split -> the folder that holds its class folders; empty where there are no split folders.
        lists: split -> the file that lists its images; empty where there are split folders, or no such files.
    """

    prefix: str
    splits: Mapping[SplitName, str]
    lists: Mapping[SplitName, str] = field(default_factory=dict)


def scan_folder(root: Path, known_classes: Collection[str] | None = None) -> tuple[FolderScan, Layout]:
    """List the contents of a folder or of a tar archive.

    Args:
        known_classes: those of a trained model that is evaluated; None: split folders without a `train` folder are refused.

    Raises:
        DataError: it is missing, unreadable, holds something unsafe, or its layout is not supported.
    """
    if root.is_dir():
        try:
            resolved = root.resolve()
            layout = find_layout(resolved, known_classes)
            scan = _Walk(resolved).run(layout.splits.values() or [layout.prefix])
            if layout.splits:
                _count_unused(resolved, layout, scan)
            for path in _list_files(layout, lambda folder: _texts(resolved / folder)):
                scan.texts[path] = read_regular(resolved / path, MAX_LIST_BYTES)
            return scan, layout
        except OSError as error:
            raise DataError(f"{escape_unprintable(str(error.filename or root))}: {error.strerror}") from None
    if root.is_file() and root.name.lower().endswith(ARCHIVES):
        scan = _scan_archive(root)
        contents = _Contents(lambda path: child_folders(scan.folders, path), lambda path: _child_texts(scan, path))
        return scan, _find_layout(contents, known_classes)
    if root.is_file():
        raise DataError(f"{root} is neither a folder nor an archive ({', '.join(ARCHIVES)}); set --data-dir")
    raise DataError(
        f"there is no folder {root}; set --data-dir to the folder (or .tar) that holds the class folders, or train/ and test/; --data cifar10 downloads CIFAR-10"
    )


def find_layout(root: Path, known_classes: Collection[str] | None = None) -> Layout:
    """Return where the class folders of a folder are.

    Raises:
        DataError: the folder is missing or unreadable, or its layout is not supported.
    """
    contents = _Contents(lambda path: _subfolders(root / path), lambda path: _texts(root / path))
    try:
        return _find_layout(contents, known_classes)
    except OSError as error:
        raise DataError(f"{escape_unprintable(str(error.filename or root))}: {error.strerror}") from None


def child_folders(folders: Iterable[str], path: str) -> list[str]:
    """Return the sorted names of the folders directly below `path` ("" is the root)."""
    start = f"{path}/" if path else ""
    return sorted(item[len(start) :] for item in folders if item.startswith(start) and "/" not in item[len(start) :])


@dataclass(frozen=True)
class _Contents:
    """What a folder or an archive holds: path of a folder in it -> names.

    Attributes:
        folders: the folders in it.
        texts: the files in it that may list images.
    """

    folders: Callable[[str], list[str]]
    texts: Callable[[str], list[str]]


def _find_layout(contents: _Contents, known_classes: Collection[str] | None) -> Layout:
    """Find split folders, files that list splits, or class folders: in the root, or in the only folder that is in it."""
    prefix = ""
    for _ in range(MAX_NESTING):
        splits = _find_splits(prefix, contents.folders)
        lists = {} if splits else _find_lists(prefix, contents)
        if known_classes is None and "train" not in lists:  # nothing to train on: they are files of another kind
            lists = {}
        inner = contents.folders(prefix)
        if splits or lists or len(inner) != 1 or inner[0] in (known_classes or ()):
            break
        below = _join(prefix, inner[0])
        if not contents.folders(below):  # a single class folder
            break
        prefix = below
    if known_classes is None and splits and "train" not in splits:
        raise DataError(
            f"there is {' and '.join(sorted(splits.values()))} but no train folder; name the training images' folder train"
        )
    return Layout(prefix, splits, lists)


def _find_lists(prefix: str, contents: _Contents) -> dict[SplitName, str]:
    """Return split -> the file that lists its images."""
    for folder in (_join(prefix, name) for name in LIST_FOLDERS):
        names = contents.texts(folder)
        lists: dict[SplitName, str] = {}
        for name in names:
            if split := SPLIT_WORDS.get(name.lower().removesuffix(".txt")):
                if split in lists:
                    raise DataError(
                        f"{lists[split]} and {_join(folder, name)} would both list the {split} images; keep one of them"
                    )
                lists[split] = _join(folder, name)
        if lists:
            return {split: lists[split] for split in SPLIT_NAMES if split in lists}
    return {}


def _list_files(layout: Layout, texts: Callable[[str], list[str]]) -> list[str]:
    """Return the files of a layout that list images, and those that may name their classes."""
    folders = dict.fromkeys([*(path.rpartition("/")[0] for path in layout.lists.values()), layout.prefix])
    named = [_join(folder, name) for folder in folders for name in texts(folder) if name == CLASS_NAMES]
    return [*layout.lists.values(), *named] if layout.lists else []


def _texts(folder: Path) -> list[str]:
    """Return the names of the files in a folder that may list images or classes; none where there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_list_name(entry.name) and not entry.is_dir())


def _child_texts(scan: FolderScan, path: str) -> list[str]:
    start = f"{path}/" if path else ""
    return sorted(text[len(start) :] for text in scan.texts if text.rpartition("/")[0] == path)


def is_list_name(name: str) -> bool:
    """Return whether a file name is that of a list of the images of a split, or of the names of classes."""
    name = name.lower()
    return name == CLASS_NAMES or (name.endswith(".txt") and name.removesuffix(".txt") in SPLIT_WORDS)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _find_splits(path: str, subfolders: Callable[[str], list[str]]) -> dict[SplitName, str]:
    """Return split -> folder. Only a folder that holds folders is a split: a class may be called `train`."""
    splits: dict[SplitName, str] = {}
    for name in subfolders(path):
        split = SPLIT_WORDS.get(name.lower())
        folder = _join(path, name)
        if split is None or not subfolders(folder):
            continue
        if split in splits:
            raise DataError(f"{splits[split]} and {folder} would both be the {split} images; keep one of them")
        splits[split] = folder
    return splits


def _is_ignored(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that operating systems leave behind."""
    return name.startswith(".") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini", "$recycle.bin")


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not _is_ignored(entry.name) and entry.is_dir())


def _count_unused(root: Path, layout: Layout, scan: FolderScan) -> None:
    """Count the images beside the split folders; links are not followed."""
    beside = root / layout.prefix
    splits = {(root / folder).name for folder in layout.splits.values()}
    for folder, folders, files in os.walk(beside):
        folders[:] = [
            name for name in folders if not _is_ignored(name) and (Path(folder) != beside or name not in splits)
        ]
        images = sum(is_image_name(name) and not _is_ignored(name) for name in files)
        if images:
            inside = Path(folder).relative_to(beside).parts
            scan.unused["/".join([*filter(None, [layout.prefix]), *inside[:1]]) or "."] += images


class _Walk:
    """A walk of folders first and links afterwards, so that an image keeps its own path and is listed once.

    In its methods `path` is relative to the root and `disk_path` absolute.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._scan = FolderScan()
        self._visited: set[str] = set()  # real paths of folders and files
        self._links: list[tuple[str, str]] = []  # (path, disk path)

    def run(self, starts: Iterable[str]) -> FolderScan:
        """Return the contents of the folders `starts`."""
        for path in starts:
            disk_path = os.path.join(self._root, path) if path else self._root
            if os.path.islink(disk_path):
                self._links.append((path, disk_path))
            else:
                self._visit_folder(path, disk_path)
        while self._links:
            self._visit_link(*self._links.pop(0))
        return self._scan

    def _visit_folder(self, path: str, disk_path: str) -> None:
        pending = [(path, disk_path)]
        while pending:
            path, disk_path = pending.pop()
            if disk_path in self._visited:
                self._scan.repeats.append(path)
                continue
            self._visited.add(disk_path)
            if path:
                self._scan.folders.add(path)
            with os.scandir(disk_path) as iterator:
                entries = sorted(
                    (entry for entry in iterator if not _is_ignored(entry.name)), key=lambda entry: entry.name
                )
            for entry in entries:
                entry_path = f"{path}/{entry.name}" if path else entry.name
                if entry.is_symlink():
                    self._links.append((entry_path, entry.path))
                elif entry.is_dir():
                    pending.append((entry_path, entry.path))
                elif is_image_name(entry.name):
                    self._add_file(entry_path, entry.path)
                else:
                    self._scan.add_unread(entry.name)

    def _add_file(self, path: str, disk_path: str) -> None:
        if disk_path in self._visited:
            self._scan.repeats.append(path)
        elif not os.path.isfile(disk_path):  # opening a pipe would block forever
            self._scan.problems[path] = "not a regular file"
        else:
            self._visited.add(disk_path)
            self._scan.files[path] = disk_path

    def _visit_link(self, path: str, link: str) -> None:
        target = os.path.realpath(link)
        if target != self._root and not target.startswith(self._root + os.sep):
            raise DataError(
                f"{escape_unprintable(path)} is a link that leaves the data folder; copy what it points to (cp -rL), or keep that below the data folder, in a hidden folder such as .pool"
            )
        if not os.path.exists(target):
            self._scan.problems[path] = "dangling link"
        elif os.path.isdir(target):
            parent = os.path.realpath(os.path.dirname(link))
            if parent == target or parent.startswith(target + os.sep):  # the link is inside its own target
                self._scan.repeats.append(path)
            else:
                self._visit_folder(path, target)
        elif is_image_name(path):
            self._add_file(path, target)


def _scan_archive(archive: Path) -> FolderScan:
    """Read all images of a tar archive into memory."""
    scan = FolderScan()
    for path, is_folder, content in read_archive(archive, lambda path: is_list_name(path.rpartition("/")[2])):
        if not path or any(_is_ignored(part) for part in path.split("/")):
            continue
        parents = path.split("/")[: None if is_folder else -1]
        scan.folders.update("/".join(parents[: depth + 1]) for depth in range(len(parents)))
        if content is not None and not is_image_name(path):
            scan.texts[path] = content
            scan.add_unread(path.rpartition("/")[2])
        elif content is not None:
            scan.files[path] = content
        elif not is_folder:
            scan.add_unread(path.rpartition("/")[2])
    scan.files = dict(sorted(scan.files.items()))
    return scan
