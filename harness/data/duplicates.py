"""Count and name the images that stand in two splits, where a test on them would be a test on training images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.dataset import FileImages, ImageSubset, Split
from harness.data.image_io import pixel_digest
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
        digests = _comparable(train, split)
        if digests is None:
            continue
        in_train, in_split = digests
        places: dict[bytes, int] = {}
        for index, digest in enumerate(in_train):
            places.setdefault(digest, index)
        equal = [(index, places[digest]) for index, digest in enumerate(in_split) if digest in places]
        shared = len(equal)
        # Where the training images are mostly alike, a shared one proves nothing.
        if shared == len(split) and len(places) > max(len(np.unique(train.labels, axis=0)), len(train) // 2):
            raise DataError(
                f"all {shared} {split.name} images are training images too, so they cannot test what the model has learned; give other images"
            )
        if shared:
            named = pair_list([(str(split.ids[index]), str(train.ids[same])) for index, same in equal])
            notes.append(f"{shared} of {len(split)} {split.name} images stand in the training images too: {named}")
    return notes


def _comparable(train: Split, split: Split) -> tuple[list[bytes], list[bytes]] | None:
    """Return the digests of the training images and of a split's images; None where they cannot be compared.

    Decoded images are compared by their pixels; files by their content, if there is another file of their size.
    """
    if train.pixels is not None and split.pixels is not None:
        if train.pixels.shape[1:] != split.pixels.shape[1:]:
            return None
        return list(map(pixel_digest, train.pixels)), list(map(pixel_digest, split.pixels))
    sizes, other_sizes = train.sizes, split.sizes
    files, other_files = _files(train.source), _files(split.source)
    if sizes is None or other_sizes is None or not files or not other_files:
        return None
    common = np.intersect1d(sizes, other_sizes)
    if sum(int(each[np.isin(each, common)].sum()) for each in (sizes, other_sizes)) > MAX_COMPARED_BYTES:
        return None
    kept = set(common.tolist())
    return list(_file_digests(files, sizes, kept)), list(_file_digests(other_files, other_sizes, kept))


def _files(source: Any) -> Sequence[str | bytes]:
    """Return the files of a source of images; none for other sources."""
    if isinstance(source, ImageSubset):
        files = _files(source.source)
        return PickedItems(files, source.indices.tolist()) if files else []
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
