"""Labelled images as a folder, an archive or a table lists them, and the splits that are made once they are read."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from harness.config.names import SplitName
from harness.data.dataset import MAX_PIXEL_BYTES, FileImages, Split, in_memory, spread_indices
from harness.data.image_io import RGB, check_header, read_image, unused_range
from harness.data.multilabel import class_counts
from harness.utils.environment import usable_cpus
from harness.utils.errors import DataError, ResourceError
from harness.utils.text import escape_unprintable

# Up to this many bytes of files every image is decoded before the run starts; above it only its header is read.
MAX_CHECKED_BYTES = 2**30
MIN_PARALLEL_FILES = 5000  # below this number of files, starting processes takes longer than it saves
CHUNK_FILES = 256
Reading: TypeAlias = tuple[tuple[float, float] | None, int]  # grey_range and channels of `read_image`


@dataclass
class StoredData:
    """A data set as it is stored, before anything is held out.

    Attributes:
        skipped: ids of the unreadable images that were left out.
        notes: sentences on images and other files that are not used.
    """

    classes: Sequence[str]
    splits: dict[SplitName, Split]
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class ListedSplit:
    """The images of one split, not read yet.

    Attributes:
        files: N paths, or contents of files.
        ids: N names; those of files are paths below the data folder.
        labels: int64 [N], or uint8 [N, C] of 0 and 1 where images have several labels.
    """

    name: SplitName
    files: Sequence[str | bytes]
    ids: Sequence[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Listing:
    """The images of a data set, not read yet.

    Attributes:
        root: the folder, archive or table that messages name.
        origin: where splits and classes come from, for a reader.
        problems: id of an image -> why it cannot be used.
        notes: sentences on images and other files that are not used.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[SplitName, ListedSplit]
    origin: str = ""
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class PickedItems(Sequence[Any]):
    """The items of a sequence at `indices`, each taken when it is accessed."""

    def __init__(self, items: Sequence[Any], indices: Sequence[int]) -> None:
        self._items, self._indices = items, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._items[int(position)] for position in self._indices[index]]
        return self._items[int(self._indices[index])]


def read_listing(
    listing: Listing,
    skip_bad: bool,
    grey_range: tuple[float, float] | None,
    channels: int = RGB,
    *,
    is_for_training: bool,
    checks_files: bool = True,
) -> StoredData:
    """Check or decode the images of a listing, and return them as splits.

    Args:
        skip_bad: leave unreadable images out instead of raising.
        grey_range, channels: those of `read_image`.
        is_for_training: whether every class has to keep a training image.
        checks_files: whether images that are decoded when they are accessed are checked now; always with `skip_bad`.

    Raises:
        DataError: an image cannot be read, or none is left of a split or a class.
    """
    root, problems = listing.root, dict(listing.problems)
    notes = [*listing.notes, *([] if grey_range else grey_notes(sample_files(listing.splits.values())))]
    data = StoredData(listing.classes, {}, notes=notes)
    for split in listing.splits.values():
        data.splits[split.name] = _read_split(split, skip_bad, problems, (grey_range, channels), checks_files)
    if problems and not skip_bad:
        raise DataError(f"{root}: {unreadable_text(problems, len(problems) + sum(map(len, data.splits.values())))}")
    data.skipped.extend(escape_unprintable(path) for path in sorted(problems))
    _check_not_emptied(data, root, of_class=is_for_training)
    return data


def unreadable_text(problems: Mapping[str, str], total: int) -> str:
    """Return how many of `total` images cannot be read, why the first one (path -> reason) cannot, and what helps."""
    path, reason = min(problems.items())
    remedy = "repair them" if len(problems) == total else "repair or remove them, or set --bad-images skip"
    return f"{len(problems):,} of {total:,} images cannot be read, the first is {escape_unprintable(path)}: {reason}; {remedy}"


def short_list(names: Sequence[str] | Mapping[str, object]) -> str:
    """Return the first five names, and how many more there are."""
    shown = [escape_unprintable(name) for name in list(names)[:5]]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def pair_list(pairs: Sequence[tuple[str, str]]) -> str:
    """Return the first five pairs of equal images, and how many more there are."""
    return short_list([f"{image} = {same}" for image, same in pairs])


def class_order(names: Iterable[str]) -> list[str]:
    """Return class names without repeats: by their value where all are whole numbers, else by their letters."""
    unique = set(names)
    if all(name.isascii() and name.isdigit() for name in unique):
        return sorted(unique, key=lambda name: (int(name), name))
    return sorted(unique)


def sample_files(splits: Iterable[ListedSplit], count: int = 16) -> list[str | bytes]:
    """Return up to `count` of all images, evenly spread."""
    splits = list(splits)
    starts = np.cumsum([0, *map(len, splits)])
    sample = []
    for index in spread_indices(int(starts[-1]), count):
        number = int(np.searchsorted(starts, index, side="right")) - 1
        sample.append(splits[number].files[index - int(starts[number])])
    return sample


def grey_notes(files: Sequence[str | bytes]) -> list[str]:
    """Return a sentence where deep grey images use little of the range that becomes black to white."""
    if (extent := unused_range(files)) is None:
        return []
    lowest, highest, white = (f"{value:g}" for value in extent)
    return [
        f"grey values of {len(files)} sampled images are {lowest} to {highest}, and {white} becomes white; set --grey-range LOW,HIGH to the range of the whole data set"
    ]


def _check_not_emptied(data: StoredData, root: Path, of_class: bool) -> None:
    """Raise DataError where leaving out unreadable images emptied a split or, if `of_class`, a class."""
    for name, split in data.splits.items():
        if not len(split):
            raise DataError(f"{root}: none of the {name} images can be read")
    if not of_class:
        return
    class_sizes = class_counts(data.splits["train"].labels, len(data.classes))
    if empty := [name for name, size in zip(data.classes, class_sizes, strict=True) if not size]:
        raise DataError(f"{root}: none of the training images of class {short_list(empty)} can be read")


def _read_split(
    split: ListedSplit, skip_bad: bool, problems: dict[str, str], reading: Reading, checks_files: bool
) -> Split:
    """Decode or check the images of one split; add those that cannot be read to `problems`."""
    files = split.files
    sizes = np.array([_file_size(file) for file in files], dtype=np.int64)
    shape = _common_shape(files, reading)
    decode = shape is not None or skip_bad or int(sizes.sum()) <= MAX_CHECKED_BYTES
    pixels = None if shape is None else np.empty((len(files), *shape), np.uint8)
    readable = np.ones(len(files), dtype=bool)
    results: Iterable[np.ndarray | str | None] = ()
    if checks_files or skip_bad or pixels is not None:
        results = _check_all(
            files, partial(_check_files, decode=decode, keep_pixels=pixels is not None, reading=reading)
        )
    for index, result in enumerate(results):
        if isinstance(result, str):
            problems[split.ids[index]] = result
            readable[index] = False
        elif pixels is not None and result is not None:
            if result.shape == pixels.shape[1:]:
                pixels[index] = result
            else:
                pixels = None  # several sizes: the images are decoded when they are accessed
    kept = np.flatnonzero(readable)
    ids = [escape_unprintable(split.ids[index]) for index in kept.tolist()]
    labels = split.labels[kept]
    if pixels is not None:
        return in_memory(split.name, pixels if len(kept) == len(pixels) else pixels[kept], labels, ids)
    # A sequence that reads its items when they are accessed stays one.
    used = [files[index] for index in kept] if isinstance(files, list) else PickedItems(files, kept.tolist())
    return Split(split.name, labels, ids, None, FileImages(used, ids, labels, *reading), sizes[kept])


def _file_size(file: str | bytes) -> int:
    try:
        return len(file) if isinstance(file, bytes) else os.path.getsize(file)
    except OSError:
        return 0  # reading it fails later, with a message that names it


def _common_shape(files: Sequence[str | bytes], reading: Reading) -> tuple[int, ...] | None:
    """Return the [H, W, C] that a sample of the images shares, if the split fits in memory at that size, else None."""
    shapes = set()
    for index in spread_indices(len(files)):
        try:
            shapes.add(read_image(files[index], "", *reading).shape)
        except DataError:
            continue  # reported when all images are read
    if len(shapes) != 1:
        return None
    shape = shapes.pop()
    return shape if len(files) * int(np.prod(shape)) <= MAX_PIXEL_BYTES else None


def _check_files(
    files: Sequence[str | bytes], decode: bool, keep_pixels: bool, reading: Reading
) -> list[np.ndarray | str | None]:
    """Return for each file its pixels (None unless they are kept), or the reason why it cannot be read.

    Args:
        decode: decode each image completely; otherwise check its header only.
    """
    results: list[np.ndarray | str | None] = []
    for file in files:
        try:
            if decode:
                pixels = read_image(file, "_", *reading)
                results.append(pixels if keep_pixels else None)
            else:
                check_header(file, "_", *reading)
                results.append(None)
        except DataError as error:
            results.append(str(error).removeprefix("_: "))
    return results


def _check_all(files: Sequence[str | bytes], check: partial[list]) -> Iterator[np.ndarray | str | None]:
    """Yield the results of `check` in order, from several processes for many files (the GIL would serialise threads)."""
    chunks = (files[start : start + CHUNK_FILES] for start in range(0, len(files), CHUNK_FILES))
    num_workers = min(16, usable_cpus())
    can_fork = num_workers >= 2 and "fork" in multiprocessing.get_all_start_methods()
    # The pool would take every chunk at once: the contents of a file of images stay where they are.
    if len(files) < MIN_PARALLEL_FILES or not can_fork or not isinstance(files, list):
        for chunk in chunks:
            yield from check(chunk)
        return
    try:
        with ProcessPoolExecutor(num_workers, multiprocessing.get_context("fork")) as pool:
            for results in pool.map(check, chunks):
                yield from results
    except BrokenProcessPool:
        raise ResourceError("a process that decoded images was killed, most often for lack of memory") from None
