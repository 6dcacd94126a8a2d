"""Read a folder or tar archive of class folders: check its classes, check or decode its images, and make its splits."""

from __future__ import annotations

import multiprocessing
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from harness.config.names import SPLIT_NAMES, SplitName
from harness.data import decoded_cache
from harness.data.dataset import MAX_PIXEL_BYTES, FileImages, Split, in_memory, spread_indices
from harness.data.folder_scan import FolderScan, Layout, child_folders, scan_folder
from harness.data.image_io import check_header, read_image, unused_range
from harness.utils.environment import usable_cpus
from harness.utils.errors import DataError, ResourceError
from harness.utils.text import escape_unprintable

T = TypeVar("T")
# Up to this many bytes of files every image is decoded before the run starts; above it only its header is read.
MAX_CHECKED_BYTES = 2**30
MIN_PARALLEL_FILES = 5000  # below this number of files, starting processes takes longer than it saves
CHUNK_FILES = 256


@dataclass
class ClassFolders:
    """The images of one split: class -> sorted paths."""

    name: SplitName
    folder: str
    paths: dict[str, list[str]]


@dataclass
class FolderData:
    """The contents of a data folder or archive.

    Attributes:
        splits: `train` and, where the folder has them, `val` and `test`.
        skipped: ids of the unreadable images that were left out.
        notes: sentences on images and other files that are not used.
    """

    classes: tuple[str, ...]
    splits: dict[SplitName, Split]
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_image_folder(
    root: Path, skip_bad: bool, grey_range: tuple[float, float] | None = None, is_for_training: bool = True
) -> FolderData:
    """Read a folder or a tar archive of class folders.

    Args:
        skip_bad: leave unreadable images out instead of raising.
        grey_range: that of `read_image`.
        is_for_training: whether `train` has to be there, with two classes or more, each with images, and those of the
            other splits among them.

    Raises:
        DataError: there is no data, an image cannot be read, or the classes are inconsistent.
    """
    is_archive = root.is_file()
    is_cached = is_archive and grey_range is None  # an entry of the cache is named by the archive alone
    if is_cached and (cached := decoded_cache.load_decoded(root)) is not None:
        return FolderData(*cached)
    scan, layout = scan_folder(root, needs_train=is_for_training)
    class_folders = _group_by_class(scan, layout)
    notes = _unused_notes(scan, layout)
    if is_for_training:
        _check_classes(class_folders, root, notes)
        classes = tuple(class_folders["train"].paths)
    else:
        _check_any(class_folders, root, notes)
        classes = tuple(sorted({name for split in class_folders.values() for name in split.paths}))
    notes += [] if grey_range else _grey_notes([scan.files[path] for path in _sample([*scan.files])])
    data = FolderData(tuple(escape_unprintable(name) for name in classes), {}, notes=notes)
    problems = dict(scan.problems)
    for split in class_folders.values():
        data.splits[split.name] = _read_split(split, classes, scan, skip_bad, problems, grey_range)
    if problems and not skip_bad:
        path, reason = min(problems.items())
        raise DataError(
            f"{root}: {len(problems)} of {len(problems) + sum(map(len, data.splits.values()))} images cannot be read, the first is {escape_unprintable(path)}: {reason}; repair them, or set --bad-images skip"
        )
    data.skipped.extend(escape_unprintable(path) for path in sorted(problems))
    _check_not_emptied(data, root, of_class=is_for_training)
    # An entry of the cache has no notes, and may be used for training.
    if is_cached and not problems and not notes and is_for_training:
        decoded_cache.save_decoded(root, data.classes, data.splits)
    return data


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
        else:  # beside the class folders or, in an archive, beside the split folders
            depth = 2 if layout.prefix else 1
            scan.unused["/".join(path.split("/")[:-1][:depth]) or "."] += 1
    return class_folders


def _unused_notes(scan: FolderScan, layout: Layout) -> list[str]:
    """Return sentences that name the images outside the class folders, and count the files that are no images."""
    notes = []
    if scan.unused:
        folders = [f"{escape_unprintable(name)} ({images})" for name, images in sorted(scan.unused.items())]
        where = f"the class folders of {', '.join(layout.splits.values())}" if layout.splits else "the class folders"
        notes.append(
            f"{sum(scan.unused.values())} images are not used, because they are outside {where}: {_names(folders)}"
        )
    if scan.unread:
        kinds = [
            f"{escape_unprintable(kind)} ({count})"
            for kind, count in sorted(scan.unread.items(), key=lambda item: (-item[1], item[0]))
        ]
        notes.append(f"{sum(scan.unread.values())} files are of kinds that are not read as images: {_names(kinds)}")
    return notes


def _grey_notes(files: Sequence[str | bytes]) -> list[str]:
    """Return a sentence where deep grey images use little of the range that becomes black to white."""
    if (extent := unused_range(files)) is None:
        return []
    lowest, highest, white = (f"{value:g}" for value in extent)
    return [
        f"grey values of {len(files)} sampled images are {lowest} to {highest}, and {white} becomes white; set --grey-range LOW,HIGH to the range of the whole data set"
    ]


def _sample(items: Sequence[T]) -> list[T]:
    """Return up to 16 of the items, evenly spread."""
    return [items[index] for index in spread_indices(len(items))]


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
        raise DataError(f"{root}: only one class folder, {_names(train.paths)}; a classifier needs at least two")
    for split in class_folders.values():
        if empty := [name for name, paths in split.paths.items() if not paths]:
            raise DataError(
                f"{root}: no images in class folder {_names(empty)} of {split.folder or f'{root} itself, which has no train/'}; fill it, or move it out of the data folder"
            )
        if unknown := sorted(set(split.paths) - set(train.paths)):
            raise DataError(f"{root}: {split.folder} has class {_names(unknown)}, which {train.folder} does not have")
    folded_names: dict[str, str] = {}
    for name in train.paths:
        folded = unicodedata.normalize("NFC", name).casefold()
        if folded in folded_names:
            raise DataError(
                f"{root}: classes {escape_unprintable(folded_names[folded])} and {escape_unprintable(name)} differ only in case; merge or rename them"
            )
        folded_names[folded] = name


def _check_not_emptied(data: FolderData, root: Path, of_class: bool) -> None:
    """Raise DataError where leaving out unreadable images emptied a split or, if `of_class`, a class."""
    for name, split in data.splits.items():
        if not len(split):
            raise DataError(f"{root}: none of the {name} images can be read")
    if not of_class:
        return
    class_sizes = np.bincount(data.splits["train"].labels, minlength=len(data.classes))
    if empty := [name for name, size in zip(data.classes, class_sizes, strict=True) if not size]:
        raise DataError(f"{root}: none of the training images of class {_names(empty)} can be read")


def _names(names: Sequence[str] | Mapping[str, object]) -> str:
    shown = [escape_unprintable(name) for name in list(names)[:5]]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read_split(
    split: ClassFolders,
    classes: Sequence[str],
    scan: FolderScan,
    skip_bad: bool,
    problems: dict[str, str],
    grey_range: tuple[float, float] | None,
) -> Split:
    """Decode or check the images of one split; add those that cannot be read to `problems`."""
    class_index = {name: index for index, name in enumerate(classes)}
    labelled = [
        (path, class_index[name]) for name, paths in split.paths.items() for path in paths if path in scan.files
    ]
    files = [scan.files[path] for path, _ in labelled]
    sizes = np.array([_file_size(file) for file in files], dtype=np.int64)
    shape = _common_shape(files, grey_range)
    decode = shape is not None or skip_bad or int(sizes.sum()) <= MAX_CHECKED_BYTES
    pixels = None if shape is None else np.empty((len(files), *shape), np.uint8)
    readable = np.ones(len(files), dtype=bool)
    results = _check_all(
        files, partial(_check_files, decode=decode, keep_pixels=pixels is not None, grey_range=grey_range)
    )
    for index, result in enumerate(results):
        if isinstance(result, str):
            problems[labelled[index][0]] = result
            readable[index] = False
        elif pixels is not None and result is not None:
            if result.shape == pixels.shape[1:]:
                pixels[index] = result
            else:
                pixels = None  # several sizes: the images are decoded when they are accessed
    kept = np.flatnonzero(readable)
    ids = [escape_unprintable(labelled[index][0]) for index in kept]
    labels = np.array([labelled[index][1] for index in kept], dtype=np.int64)
    if pixels is not None:
        return in_memory(split.name, pixels if len(kept) == len(pixels) else pixels[kept], labels, ids)
    source = FileImages([files[index] for index in kept], ids, labels, grey_range)
    return Split(split.name, labels, ids, None, source, sizes[kept])


def _file_size(file: str | bytes) -> int:
    try:
        return len(file) if isinstance(file, bytes) else os.path.getsize(file)
    except OSError:
        return 0  # reading it fails later, with a message that names it


def _common_shape(files: Sequence[str | bytes], grey_range: tuple[float, float] | None) -> tuple[int, ...] | None:
    """Return the [H, W, 3] that a sample of the images shares, if the split fits in memory at that size, else None."""
    shapes = set()
    for file in _sample(files):
        try:
            shapes.add(read_image(file, grey_range=grey_range).shape)
        except DataError:
            continue  # reported when all images are read
    if len(shapes) != 1:
        return None
    shape = shapes.pop()
    return shape if len(files) * int(np.prod(shape)) <= MAX_PIXEL_BYTES else None


def _check_files(
    files: Sequence[str | bytes], decode: bool, keep_pixels: bool, grey_range: tuple[float, float] | None
) -> list[np.ndarray | str | None]:
    """Return for each file its pixels (None unless they are kept), or the reason why it cannot be read.

    Args:
        decode: decode each image completely; otherwise check its header only.
    """
    results: list[np.ndarray | str | None] = []
    for file in files:
        try:
            if decode:
                pixels = read_image(file, "_", grey_range)
                results.append(pixels if keep_pixels else None)
            else:
                check_header(file, "_", grey_range)
                results.append(None)
        except DataError as error:
            results.append(str(error).removeprefix("_: "))
    return results


def _check_all(files: Sequence[str | bytes], check: partial[list]) -> Iterator[np.ndarray | str | None]:
    """Yield the results of `check` in order, from several processes for many files (the GIL would serialise threads)."""
    chunks = [files[start : start + CHUNK_FILES] for start in range(0, len(files), CHUNK_FILES)]
    num_workers = min(16, usable_cpus())
    if len(files) < MIN_PARALLEL_FILES or num_workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        for chunk in chunks:
            yield from check(chunk)
        return
    try:
        with ProcessPoolExecutor(num_workers, multiprocessing.get_context("fork")) as pool:
            for results in pool.map(check, chunks):
                yield from results
    except BrokenProcessPool:
        raise ResourceError("a process that decoded images was killed, most often for lack of memory") from None
