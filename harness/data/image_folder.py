"""List a folder or tar archive of class folders, or of images that split files list, and check its classes."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.config.names import SPLIT_NAMES, SPLIT_WORDS, SplitName
from harness.data import decoded_cache
from harness.data.folder_scan import FolderScan, Layout, child_folders, scan_folder
from harness.data.image_io import RGB
from harness.data.listing import ListedSplit, Listing, StoredData, class_order, read_listing, short_list
from harness.data.split_lists import ListedImages, read_split_lists
from harness.utils.errors import DataError
from harness.utils.text import counted, escape_unprintable


@dataclass
class ClassFolders:
    """The images of one split: class -> sorted paths.

    Attributes:
        folder: that holds the class folders, or the file that lists the images.
    """

    name: SplitName
    folder: str
    paths: dict[str, list[str]]


def read_image_folder(
    root: Path,
    skip_bad: bool,
    grey_range: tuple[float, float] | None = None,
    channels: int = RGB,
    known_classes: Collection[str] | None = None,
) -> StoredData:
    """Read a folder or a tar archive of class folders.

    Args:
        skip_bad: leave unreadable images out instead of raising.
        grey_range, channels: those of `read_image`.
        known_classes: that of `list_image_folder`.

    Raises:
        DataError: there is no data, an image cannot be read, or the classes are inconsistent.
    """
    # An entry of the cache is named by the archive alone.
    is_cached = root.is_file() and grey_range is None and channels == RGB
    if is_cached and (cached := decoded_cache.load_decoded(root)) is not None:
        return StoredData(*cached)
    listing = list_image_folder(root, known_classes)
    data = read_listing(listing, skip_bad, grey_range, channels, is_for_training=known_classes is None)
    # An entry of the cache has no notes, and may be used for training.
    if is_cached and not data.skipped and not data.notes and known_classes is None:
        decoded_cache.save_decoded(root, tuple(data.classes), data.splits)
    return data


def list_image_folder(root: Path, known_classes: Collection[str] | None = None) -> Listing:
    """Return the labelled images of a folder or a tar archive.

    Args:
        known_classes: those of a trained model that is evaluated; None: the data is to be trained on, so that `train`
            has to be there, with two classes or more, each with images, and those of the other splits among them.

    Raises:
        DataError: there is no data, or the classes are inconsistent.
    """
    scan, layout = scan_folder(root, known_classes)
    problems = dict(scan.problems)
    listed = read_split_lists(scan, layout) if layout.lists else ListedImages()
    if listed.classes:
        scan.unread -= Counter(".txt" for _ in scan.texts)
        class_folders = _group_by_list(layout, listed)
        paths = {path for classes in listed.classes.values() for path in classes}
        problems = {path: reason for path, reason in problems.items() if path in paths} | listed.missing
    else:
        layout = Layout(layout.prefix, layout.splits)
        class_folders = _group_by_class(scan, layout)
    _count_unused(scan, layout, class_folders)
    notes = [*listed.notes, *_unused_notes(scan, layout), *_inner_split_notes(scan, layout)]
    if known_classes is None:
        _check_classes(class_folders, root, notes)
        classes = tuple(class_folders["train"].paths)
    else:
        _check_any(class_folders, root, notes)
        names = {name: None for split in class_folders.values() for name in split.paths}
        # The order of a run's own data has to be that of the run.
        classes = tuple(names if layout.lists else sorted(names))
    class_index = {name: index for index, name in enumerate(classes)}
    splits: dict[SplitName, ListedSplit] = {}
    for split in class_folders.values():
        labelled = [(path, class_index[name]) for name, paths in split.paths.items() for path in paths]
        labelled = [(path, label) for path, label in labelled if path in scan.files]
        splits[split.name] = ListedSplit(
            split.name,
            [scan.files[path] for path, _ in labelled],
            [path for path, _ in labelled],
            np.array([label for _, label in labelled], dtype=np.int64),
        )
    shown = tuple(escape_unprintable(name) for name in classes)
    return Listing(root, shown, splits, _origin(layout), problems, notes)


def _group_by_class(scan: FolderScan, layout: Layout) -> dict[SplitName, ClassFolders]:
    folders: Mapping[SplitName, str] = layout.splits or {"train": layout.prefix}
    class_folders: dict[SplitName, ClassFolders] = {}
    for name in SPLIT_NAMES:
        if name in folders:
            paths: dict[str, list[str]] = {label: [] for label in child_folders(scan.folders, folders[name])}
            class_folders[name] = ClassFolders(name, folders[name], paths)
    for path in sorted([*scan.files, *scan.problems]):
        for split in class_folders.values():
            start = f"{split.folder}/" if split.folder else ""
            label, slash, _ = path[len(start) :].partition("/")
            if path.startswith(start) and slash and label in split.paths:
                split.paths[label].append(path)
                break
    return class_folders


def _group_by_list(layout: Layout, listed: ListedImages) -> dict[SplitName, ClassFolders]:
    """Return the images that split files list, grouped by class."""
    grouped: dict[SplitName, ClassFolders] = {}
    for name, classes in listed.classes.items():
        unique = set(classes.values())
        order = [label for label in listed.names if label in unique]
        paths: dict[str, list[str]] = {label: [] for label in [*order, *class_order(unique - set(order))]}
        for path, label in sorted(classes.items()):
            paths[label].append(path)
        grouped[name] = ClassFolders(name, layout.lists[name], paths)
    return grouped


def _count_unused(scan: FolderScan, layout: Layout, class_folders: Mapping[SplitName, ClassFolders]) -> None:
    """Count the images that no split has: beside the class folders or, in an archive, beside the split folders."""
    used = {path for split in class_folders.values() for paths in split.paths.values() for path in paths}
    depth = 2 if layout.prefix else 1
    for path in sorted([*scan.files, *scan.problems]):
        if path not in used:
            scan.unused["/".join(path.split("/")[:-1][:depth]) or "."] += 1


def _origin(layout: Layout) -> str:
    """Return where splits and classes come from, for a reader."""
    if layout.lists:
        return f"splits from {', '.join(layout.lists.values())}"
    if layout.splits:
        folders = [layout.splits[name] for name in SPLIT_NAMES if name in layout.splits]
        return f"splits from the folders {', '.join(folders)}, classes from the folders in them"
    return f"classes from the folders{f' in {layout.prefix}' if layout.prefix else ''}"


def _unused_notes(scan: FolderScan, layout: Layout) -> list[str]:
    """Return sentences that name the images outside the class folders and repeated links, and count the files that are no images."""
    notes = []
    if scan.unused:
        folders = [f"{escape_unprintable(name)} ({images})" for name, images in sorted(scan.unused.items())]
        where = f"the class folders of {', '.join(layout.splits.values())}" if layout.splits else "the class folders"
        count = sum(scan.unused.values())
        it = ("it", "it is") if count == 1 else ("them", "they are")
        reason = (
            f"{', '.join(layout.lists.values())} do not list {it[0]}" if layout.lists else f"{it[1]} outside {where}"
        )
        notes.append(f"{counted(count, 'image is', 'images are')} not used, because {reason}: {short_list(folders)}")
    if scan.repeats:
        lead = "it leads" if len(scan.repeats) == 1 else "they lead"
        names = short_list([escape_unprintable(path) for path in sorted(scan.repeats)])
        notes.append(
            f"{counted(len(scan.repeats), 'link is', 'links are')} not used, because {lead} to a folder or an image that is read already: {names}"
        )
    if scan.unread:
        kinds = [
            f"{escape_unprintable(kind)} ({count})"
            for kind, count in sorted(scan.unread.items(), key=lambda item: (-item[1], item[0]))
        ]
        notes.append(
            f"{counted(sum(scan.unread.values()), 'file is', 'files are')} of kinds that are not read as images: {short_list(kinds)}"
        )
    return notes


def _inner_split_notes(scan: FolderScan, layout: Layout) -> list[str]:
    """Return a sentence where the split folders lie inside the class folders, so that their images would be mixed."""
    if layout.splits or layout.lists:
        return []
    classes = child_folders(scan.folders, layout.prefix)
    start = f"{layout.prefix}/" if layout.prefix else ""
    inner = [set(child_folders(scan.folders, start + name)) for name in classes]
    shared = set.intersection(*inner) if inner else set()
    if len(splits := sorted(name for name in shared if name.lower() in SPLIT_WORDS)) < 2:
        return []
    return [
        f"every class folder has {' and '.join(splits)} in it, which are not used as splits; the layout is {splits[-1]}/CLASS/IMAGE, or list the images in {splits[-1]}.txt"
    ]


def _check_any(class_folders: Mapping[SplitName, ClassFolders], root: Path, notes: Sequence[str]) -> None:
    """Raise DataError for a folder without labelled images."""
    if not any(paths for split in class_folders.values() for paths in split.paths.values()):
        unused = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(f"{root}: no images in class folders{unused}; the layout is CLASS/IMAGE or test/CLASS/IMAGE")


def _check_classes(class_folders: Mapping[SplitName, ClassFolders], root: Path, notes: Sequence[str]) -> None:
    """Raise DataError for classes that are empty, too few, missing in `train`, or that differ only in case."""
    train = class_folders["train"]
    if not any(train.paths.values()):
        unused = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(
            f"{root}: no images in class folders below {train.folder or 'it'}{unused}; the layout is train/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE"
        )
    if len(train.paths) < 2:
        raise DataError(f"{root}: only one class folder, {short_list(train.paths)}; a classifier needs at least two")
    for split in class_folders.values():
        if empty := [name for name, paths in split.paths.items() if not paths]:
            raise DataError(
                f"{root}: no images in class folder {short_list(empty)}{f' of {split.folder}' if split.folder else ''}; fill it, or move it out of the data folder"
            )
        if unknown := sorted(set(split.paths) - set(train.paths)):
            raise DataError(
                f"{root}: {split.folder} has class {short_list(unknown)}, which {train.folder} does not have"
            )
    check_case(train.paths, root)


def check_case(classes: Collection[str], root: Path) -> None:
    """Raise DataError for classes that differ only in case, which not every file system tells apart."""
    folded_names: dict[str, str] = {}
    for name in classes:
        folded = unicodedata.normalize("NFC", name).casefold()
        if folded in folded_names:
            raise DataError(
                f"{root}: classes {escape_unprintable(folded_names[folded])} and {escape_unprintable(name)} differ only in case; merge or rename them"
            )
        folded_names[folded] = name
