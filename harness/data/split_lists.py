"""Text files that list the images of a split: `train.txt`, `val.txt`, `test.txt`, a path a line, with or without a label.

The class of an image without a label is the name of its folder. A label that is a number is a position in `classes.txt`
where there is such a file beside the lists. Only images that the folder holds can be listed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from harness.config.names import SplitName
from harness.data.folder_scan import FolderScan, Layout
from harness.data.image_io import SUFFIXES
from harness.data.listing import short_list
from harness.utils.errors import DataError
from harness.utils.text import counted, escape_unprintable

# Folders that the paths of a list may start in, besides the one that the list is in and the root.
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpg", "JPEGImages", "pictures", "photos")
LABEL = re.compile(r"(?P<path>.*\S)[\s,;]+(?P<label>\S+)")


@dataclass
class ListedImages:
    """What split files list.

    Attributes:
        classes: split -> path of an image -> its class; empty where no line of any file is the path of an image.
        names: the lines of `classes.txt`, where labels need it.
        missing: what is listed and not there -> why it cannot be used.
        notes: sentences on what a reader should know.
    """

    classes: dict[SplitName, dict[str, str]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_split_lists(scan: FolderScan, layout: Layout) -> ListedImages:
    """Return the images that the split files of a folder list.

    Raises:
        DataError: some lines have labels and others none, or an image is listed with two classes.
    """
    finder = _ImageFinder(scan, layout)
    lines = {name: _read_lines(scan.texts[path], finder) for name, path in layout.lists.items()}
    resolved = [line for each in lines.values() for line in each if line[0] is not None]
    if not resolved:
        names = ", ".join(layout.lists.values())
        note = f"{names}: not used, since none of the lines is the path of an image in the folder"
        return ListedImages(notes=[note])
    labelled = sum(label is not None for _, label, _ in resolved)
    if 0 < labelled < len(resolved):
        bare = next(text for _, label, text in resolved if label is None)
        raise DataError(
            f"{', '.join(layout.lists.values())}: {labelled} lines have a label and {len(resolved) - labelled} have none, the first is {escape_unprintable(bare)!r}; give every line a label, or none"
        )
    images = ListedImages(names=_label_names(scan, layout) if labelled else [])
    for split, each in lines.items():
        file, classes = layout.lists[split], images.classes.setdefault(split, {})
        for path, label, text in each:
            if path is None:
                images.missing[_split_label(text)[0] if labelled else text] = f"{file} lists it, and it is not there"
                continue
            name = path.split("/")[-2] if label is None and "/" in path else _class_name(label, images.names, path)
            if classes.setdefault(path, name) != name:
                raise DataError(
                    f"{file} lists {escape_unprintable(path)} with the classes {escape_unprintable(classes[path])} and {escape_unprintable(name)}; keep one of them"
                )
        if repeats := sum(path is not None for path, _, _ in each) - len(classes):
            images.notes.append(f"{counted(repeats, 'line', 'lines')} of {file} repeat{'s' * (repeats == 1)} an image")
    return images


class _ImageFinder:
    """Finds the image that a line of a list names, among those of the folder."""

    def __init__(self, scan: FolderScan, layout: Layout) -> None:
        lists = {path.rpartition("/")[0] for path in layout.lists.values()}
        bases = [*sorted(lists), layout.prefix, *(_join(layout.prefix, name) for name in IMAGE_FOLDERS)]
        self._starts = [f"{base}/" if base else "" for base in dict.fromkeys(bases)]
        self._paths = {*scan.files, *scan.problems}
        self._without_suffix: Mapping[str, str] | None = None

    def find(self, name: str) -> str | None:
        """Return the path of an image; its extension may be missing in `name`."""
        name = name.replace("\\", "/").removeprefix("./").strip("\"'")
        for start in self._starts:
            if start + name in self._paths:
                return start + name
        if name.lower().endswith(SUFFIXES):
            return None
        if self._without_suffix is None:
            self._without_suffix = {path.rpartition(".")[0]: path for path in self._paths}
        for start in self._starts:
            if path := self._without_suffix.get(start + name):
                return path
        return None


def _read_lines(content: bytes, finder: _ImageFinder) -> list[tuple[str | None, str | None, str]]:
    """Return (path of the image, None where there is none; label, None without one; text) of each line."""
    lines: list[tuple[str | None, str | None, str]] = []
    for line in _lines(content):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        path, label = finder.find(text), None
        if path is None:
            start, end = _split_label(text)
            if end is not None and (path := finder.find(start)) is not None:
                label = end
        lines.append((path, label, text))
    return lines


def _lines(content: bytes) -> Iterable[str]:
    """Return the lines of a text file as `open` divides it: names may hold the further line ends of `str.splitlines`."""
    return io.StringIO(content.decode("utf-8-sig", "surrogateescape"), newline=None)


def _split_label(text: str) -> tuple[str, str | None]:
    """Return the path and the label of a line; of one with a tab the label is all behind it."""
    if "\t" in text:
        path, _, label = text.rpartition("\t")
        return path.strip(), label.strip()
    match = LABEL.fullmatch(text)
    return (match["path"].rstrip(",;"), match["label"]) if match else (text, None)


def _label_names(scan: FolderScan, layout: Layout) -> list[str]:
    """Return the lines of `classes.txt` beside the lists or in the root; none where there is no such file."""
    folders = dict.fromkeys([path.rpartition("/")[0] for path in layout.lists.values()] + [layout.prefix])
    for path in (_join(folder, "classes.txt") for folder in folders):
        if path in scan.texts:
            return [line.strip() for line in _lines(scan.texts[path]) if line.strip()]
    return []


def _class_name(label: str | None, names: list[str], path: str) -> str:
    """Return the class of a label: itself, or where it is a number the name at that position.

    Raises:
        DataError: there is no label, or no name at its position.
    """
    if label is None:
        raise DataError(
            f"{escape_unprintable(path)} is listed without a label and is in no folder; add labels to the lists"
        )
    if not names or label in names or not label.isdecimal():
        return label
    if int(label) >= len(names):
        raise DataError(
            f"{escape_unprintable(path)} has label {label}, and classes.txt has {len(names)} classes ({short_list(names)}), counted from 0"
        )
    return names[int(label)]


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
