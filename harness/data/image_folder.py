"""Folders and archives of class folders as splits: which images they hold, whether they can be read, and their pixels."""

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

import numpy as np

from harness.data.dataset import MAX_PIXEL_BYTES, FileImages, Split, in_memory
from harness.data.image_io import check_header, plain_name, read_image
from harness.data.listing import Layout, Listing, children, read_listing
from harness.utils.environment import usable_cpus
from harness.utils.errors import DataError, ResourceError

# Up to this many bytes of files every picture is decoded before the run, beyond it only its header is read.
MAX_CHECKED_BYTES = 2**30
MANY = 5000  # from so many files on, processes are worth their start
CHUNK = 256


@dataclass
class ClassFolders:
    """The images of one split by class: class -> paths, sorted."""

    name: str
    folder: str
    paths: dict[str, list[str]]


@dataclass
class FolderData:
    """What a data folder or archive holds.

    Attributes:
        splits: `train` and, where the folder has them, `val` and `test`.
        skipped: ids of unreadable images that were left out.
    """

    classes: tuple[str, ...]
    splits: dict[str, Split]
    skipped: list[str] = field(default_factory=list)


def read_image_folder(root: Path, skip_bad: bool) -> FolderData:
    """The images of a folder, or of a tar archive, of class folders.

    Args:
        skip_bad: leave unreadable images out, instead of refusing the data.

    Raises:
        DataError: nothing is there, an image can not be read, or the classes do not fit together.
    """
    listing, layout = read_listing(root)
    found = _class_folders(listing, layout)
    _check(found, root)
    classes = tuple(found["train"].paths)
    data = FolderData(tuple(plain_name(name) for name in classes), {})
    problems = dict(listing.problems)
    for split in found.values():
        data.splits[split.name] = _read_split(split, classes, listing, skip_bad, problems)
    if problems and not skip_bad:
        name, reason = min(problems.items())
        raise DataError(
            f"{root}: {len(problems)} of {len(problems) + sum(map(len, data.splits.values()))} images can not be read, the first is {plain_name(name)}: {reason}; mend them, or set --bad-images skip"
        )
    data.skipped.extend(plain_name(name) for name in sorted(problems))
    _check_left(data, root)
    return data


def _class_folders(listing: Listing, layout: Layout) -> dict[str, ClassFolders]:
    splits = layout.splits or {"train": layout.prefix}
    found = {}
    for name in ("train", "val", "test"):
        if name in splits:
            paths: dict[str, list[str]] = {label: [] for label in children(listing.folders, splits[name])}
            found[name] = ClassFolders(name, splits[name], paths)
    for path in sorted([*listing.files, *listing.problems]):
        for split in found.values():
            start = f"{split.folder}/" if split.folder else ""
            label, slash, _ = path[len(start) :].partition("/")
            if path.startswith(start) and slash and label in split.paths:
                split.paths[label].append(path)
    return found


def _check(found: Mapping[str, ClassFolders], root: Path) -> None:
    """Raises DataError for classes that are empty, too few, not trained on, or hard to tell apart."""
    train = found["train"]
    if not any(train.paths.values()):
        raise DataError(
            f"{root}: no images in class folders below {train.folder or 'it'}; the layout is train/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE"
        )
    if len(train.paths) < 2:
        raise DataError(f"{root}: only one class folder, {_names(train.paths)}; a classifier needs at least two")
    for split in found.values():
        if empty := [name for name, paths in split.paths.items() if not paths]:
            raise DataError(
                f"{root}: no images in class folder {_names(empty)} of {split.folder or f'{root} itself, which has no train/'}; fill it, or keep it out of the data folder"
            )
        if unknown := sorted(set(split.paths) - set(train.paths)):
            raise DataError(f"{root}: {split.folder} has class {_names(unknown)}, which {train.folder} has not")
    alike: dict[str, str] = {}
    for name in train.paths:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in alike:
            raise DataError(
                f"{root}: classes {plain_name(alike[key])} and {plain_name(name)} differ only in case; merge or rename them"
            )
        alike[key] = name


def _check_left(data: FolderData, root: Path) -> None:
    """Raises DataError when leaving unreadable images out emptied a class."""
    for name, split in data.splits.items():
        if not len(split):
            raise DataError(f"{root}: none of the {name} images can be read")
    left = np.bincount(data.splits["train"].labels, minlength=len(data.classes))
    if gone := [name for name, count in zip(data.classes, left, strict=True) if not count]:
        raise DataError(f"{root}: none of the training images of class {_names(gone)} can be read")


def _names(names: Sequence[str] | Mapping[str, object]) -> str:
    shown = [plain_name(name) for name in list(names)[:5]]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read_split(
    found: ClassFolders, classes: Sequence[str], listing: Listing, skip_bad: bool, problems: dict[str, str]
) -> Split:
    """Decodes or checks the images of one split; what can not be read is added to `problems`."""
    number = {name: index for index, name in enumerate(classes)}
    listed = [(path, number[name]) for name, paths in found.paths.items() for path in paths if path in listing.files]
    files = [listing.files[path] for path, _ in listed]
    sizes = np.array([_size(file) for file in files], dtype=np.int64)
    shape = _shape(files)
    whole = shape is not None or skip_bad or int(sizes.sum()) <= MAX_CHECKED_BYTES
    pixels = None if shape is None else np.empty((len(files), *shape), np.uint8)
    good = np.ones(len(files), dtype=bool)
    results = _read_all(files, partial(_examine, whole=whole, keep=pixels is not None))
    for index, result in enumerate(results):
        if isinstance(result, str):
            problems[listed[index][0]] = result
            good[index] = False
        elif pixels is not None and result is not None:
            pixels = _put(pixels, index, result)
    kept = np.flatnonzero(good)
    ids = [plain_name(listed[index][0]) for index in kept]
    labels = np.array([listed[index][1] for index in kept], dtype=np.int64)
    if pixels is not None:
        return in_memory(found.name, pixels if len(kept) == len(pixels) else pixels[kept], labels, ids)
    return Split(found.name, labels, ids, None, FileImages([files[index] for index in kept], ids, labels), sizes[kept])


def _put(pixels: np.ndarray, index: int, picture: np.ndarray) -> np.ndarray | None:
    """Stores a picture; None when it is of another size than the others, which are then not kept in memory."""
    if picture.shape != pixels.shape[1:]:
        return None
    pixels[index] = picture
    return pixels


def _size(file: str | bytes) -> int:
    try:
        return len(file) if isinstance(file, bytes) else os.path.getsize(file)
    except OSError:
        return 0  # it is read later, and named then


def _shape(files: Sequence[str | bytes]) -> tuple[int, ...] | None:
    """The one [H, W, 3] of a few images from all over the split, if they have one and the split fits in memory."""
    shapes = set()
    for index in np.unique(np.linspace(0, len(files) - 1, 16).astype(int)) if files else ():
        try:
            shapes.add(read_image(files[index]).shape)
        except DataError:
            continue  # reported when all are read
    if len(shapes) != 1:
        return None
    shape = shapes.pop()
    return shape if len(files) * int(np.prod(shape)) <= MAX_PIXEL_BYTES else None


def _examine(files: Sequence[str | bytes], whole: bool, keep: bool) -> list[np.ndarray | str | None]:
    """For each file its picture (None where not kept), or the reason why it can not be read."""
    results: list[np.ndarray | str | None] = []
    for file in files:
        try:
            if whole:
                picture = read_image(file, "_")
                results.append(picture if keep else None)
            else:
                check_header(file, "_")
                results.append(None)
        except DataError as error:
            results.append(str(error).removeprefix("_: "))
    return results


def _read_all(files: Sequence[str | bytes], examine: partial[list]) -> Iterator[np.ndarray | str | None]:
    """`examine` of all files, in order; in several processes when there are many (threads only wait for each other)."""
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    workers = min(16, usable_cpus())
    if len(files) < MANY or workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        for chunk in chunks:
            yield from examine(chunk)
        return
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
            for results in pool.map(examine, chunks):
                yield from results
    except BrokenProcessPool:
        raise ResourceError("a process that decoded images was killed, most often for lack of memory") from None
