"""Count and name the images that stand in two splits, where a test on them would be a test on training images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.dataset import FileImages, ImageSubset, RelabelledImages, Split
from harness.data.image_io import pixel_digest, stored_shape
from harness.data.listing import PickedItems, pair_list
from harness.utils.errors import DataError

# Files of up to this many bytes are compared; larger data sets take longer to read than a run should wait.
MAX_COMPARED_BYTES = 2**30


def duplicate_notes(train: Split, others: list[Split]) -> list[str]:
    """Return a sentence for each split that shares images with the training images, with the first of them by name.

    Raises:
        DataError: all of a split's images are training images.
    """
    notes = []
    for split in others:
        compared = shared_images(train, split)
        if compared is None:
            continue
        equal, distinct = compared
        shared = len(equal)
        # Where the training images are mostly alike, a shared one proves nothing.
        if shared == len(split) and distinct > max(len(np.unique(train.labels, axis=0)), len(train) // 2):
            raise DataError(
                f"all {shared} {split.name} images are training images too, so they cannot test what the model has learned; give other images"
            )
        if shared:
            named = pair_list([(str(split.ids[index]), str(train.ids[same])) for index, same in equal])
            notes.append(f"{shared} of {len(split)} {split.name} images stand in the training images too: {named}")
    return notes


def shared_images(train: Split, split: Split) -> tuple[list[tuple[int, int]], int] | None:
    """Return the images of a split that are training images too, each with the index of the first one that equals it, and
    how many different training images there are; None where they cannot be compared."""
    digests = _comparable(train, split)
    if digests is None:
        return None
    in_train, in_split = digests
    places: dict[bytes, int] = {}
    for index, digest in enumerate(in_train):
        places.setdefault(digest, index)
    return [(index, places[digest]) for index, digest in enumerate(in_split) if digest in places], len(places)


def _comparable(train: Split, split: Split) -> tuple[list[bytes], list[bytes]] | None:
    """Return the digests of the training images and of a split's images; None where they cannot be compared.

    Images in memory are compared by their pixels, also with files; files with each other by their content, if there is
    another file of their size.
    """
    if (held := train.pixels if train.pixels is not None else split.pixels) is not None:
        shape = held.shape[1:]
        if any(each.pixels is not None and each.pixels.shape[1:] != shape for each in (train, split)):
            return [], []  # none can be equal
        digests = _pixel_digests(train, shape)
        other_digests = None if digests is None else _pixel_digests(split, shape)
        return None if digests is None or other_digests is None else (digests, other_digests)
    sizes, other_sizes = train.sizes, split.sizes
    files, other_files = _files(train.source), _files(split.source)
    if sizes is None or other_sizes is None or not files or not other_files:
        return None
    common = np.intersect1d(sizes, other_sizes)
    if sum(int(each[np.isin(each, common)].sum()) for each in (sizes, other_sizes)) > MAX_COMPARED_BYTES:
        return None
    kept = set(common.tolist())
    return list(_file_digests(files, sizes, kept)), list(_file_digests(other_files, other_sizes, kept))


def _pixel_digests(split: Split, shape: tuple[int, ...]) -> list[bytes] | None:
    """Return the digest of the pixels of each image of a shape, [H, W, C]; for another, which no such image can equal, its
    number; None where the images of the split are no files, or would take too long to read."""
    if split.pixels is not None:
        return list(map(pixel_digest, split.pixels))
    files = _files(split.source)
    if not files or split.sizes is None or int(split.sizes.sum()) > MAX_COMPARED_BYTES:
        return None
    stored = {shape[:2], shape[1::-1]}  # an EXIF orientation may turn it
    digests = []
    for index, file in enumerate(files):
        digest = str(index).encode()
        if stored_shape(file, split.ids[index]) in stored and (pixels := split.picture(index)).shape == shape:
            digest = pixel_digest(pixels)
        digests.append(digest)
    return digests


def _files(source: Any) -> Sequence[str | bytes]:
    """Return the files of a source of images; none for other sources."""
    if isinstance(source, ImageSubset):
        files = _files(source.source)
        return PickedItems(files, source.indices.tolist()) if files else []
    if isinstance(source, RelabelledImages):
        return _files(source.source)
    return source.files if isinstance(source, FileImages) else []


def _file_digests(files: Sequence[str | bytes], sizes: np.ndarray, common: set[int]) -> Iterator[bytes]:
    """Yield the digest of each file whose size is in `common`; for another, which no file can equal, its own name."""
    for index, size in enumerate(sizes.tolist()):
        if size in common:
            file = files[index]
            yield _digest(file if isinstance(file, bytes) else Path(file).read_bytes())
        else:
            yield f"{id(files)}/{index}".encode()


def _digest(content: Any) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
