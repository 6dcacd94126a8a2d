"""A labelled data set in memory or on disk, its splits, and the figures that describe it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from harness.data.image_io import read_image
from harness.utils.errors import DataError, UsageError
from harness.utils.seeding import seed_for

# One split for all runs, whatever their seed, so that the runs of a sweep are compared on the same images.
SPLIT_SEED = 20180924
MAX_PIXEL_BYTES = 2 * 2**30  # fixed, not a share of the memory: a fingerprint must not depend on the machine

Triple: TypeAlias = tuple[float, float, float]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class ArrayImages:
    """A source over pictures in memory: `source[i]` is (PIL image RGB, label)."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]), int(self.labels[index])


class FileImages:
    """A source over picture files, decoded when they are asked for.

    Args:
        files: paths, or the bytes of files.
        ids: what errors call them.
    """

    def __init__(self, files: Sequence[str | bytes], ids: Sequence[str], labels: np.ndarray) -> None:
        self.files, self.ids, self.labels = files, ids, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(read_image(self.files[index], self.ids[index])), int(self.labels[index])


class ImageSubset:
    """Some items of another source, in a given order."""

    def __init__(self, source: Any, indices: np.ndarray) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.source[int(self.indices[index])]
        return image, int(label)


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Attributes:
        name: `train`, `val` or `test`.
        labels: int64 [N].
        ids: a stable name of each image: its path below the data folder, or `test/17`.
        pixels: uint8 [N, H, W, 3] when all images have one size and fit in memory, else None.
        source: `len(source)` and `source[i] -> (PIL image RGB, label)`; decodes when asked.
        sizes: bytes of each file [N], where the pixels are not in memory; goes into the fingerprint.
    """

    name: str
    labels: np.ndarray
    ids: Sequence[str]
    pixels: np.ndarray | None
    source: Any
    sizes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, index: int) -> np.ndarray:
        """The image as stored, uint8 [H, W, 3], RGB."""
        return self.pixels[index] if self.pixels is not None else np.asarray(self.source[index][0])

    def part(self, indices: np.ndarray, name: str) -> Split:
        """Some of the images, in the order of `indices`, with their ids."""
        pixels = None if self.pixels is None else self.pixels[indices]
        labels = self.labels[indices]
        return Split(
            name=name,
            labels=labels,
            ids=[self.ids[index] for index in indices],
            pixels=pixels,
            source=ImageSubset(self.source, indices) if pixels is None else ArrayImages(pixels, labels),
            sizes=None if self.sizes is None else self.sizes[indices],
        )


@dataclass(frozen=True)
class Dataset:
    """Splits that share no image.

    Attributes:
        mean, std: of the training images' pixels, by channel, 0..1 scale.
        fingerprint: SHA-256 over ids, labels and pixels (file sizes where those are not in memory), hexadecimal.
        skipped: ids of the unreadable images that were left out.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None
    mean: Triple
    std: Triple
    fingerprint: str
    skipped: list[str] = field(default_factory=list)


def in_memory(name: str, pixels: np.ndarray, labels: np.ndarray, ids: Sequence[str]) -> Split:
    """A split over pictures in memory, uint8 [N, H, W, 3]."""
    labels, pixels = np.asarray(labels, dtype=np.int64), np.ascontiguousarray(pixels)
    return Split(name, labels, ids, pixels, ArrayImages(pixels, labels))


def hold_out(split: Split, fraction: float, name: str, setting: str) -> tuple[Split, Split]:
    """`split` without, and as `name` with, about `fraction` of the images of every class.

    The choice depends on the labels, the fraction and the name, never on a run's seed.

    Raises:
        UsageError: the fraction of so few images is nothing; `setting` is what to change.
    """
    held = _stratified(split.labels, fraction, seed_for(SPLIT_SEED, name))
    if not len(held):
        raise UsageError(
            f"{setting}={fraction:g} of {len(split)} images ({split.name}) is none; set a larger --{setting.replace('_', '-')}"
        )
    rest = np.setdiff1d(np.arange(len(split)), held)
    return split.part(rest, split.name), split.part(held, name)


def _stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Sorted indices of about `fraction` of every class, `round(fraction * N)` in all; one of each class stays out."""
    # The legacy generator: NumPy promises that its stream never changes.
    random = np.random.RandomState(seed % 2**32)
    classes, counts = np.unique(labels, return_counts=True)
    quota = counts * fraction
    take = np.floor(quota).astype(np.int64)
    # The classes with the largest remainders give one more each, until the total is right.
    wanted = round(len(labels) * fraction) - int(take.sum())
    spare = [index for index in np.argsort(take - quota, kind="stable") if take[index] + 1 < counts[index]]
    for index in spare[:wanted]:
        take[index] += 1
    chosen = [
        random.permutation(np.flatnonzero(labels == label))[:some] for label, some in zip(classes, take, strict=True)
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def check_classes(classes: Sequence[str], wanted: int) -> None:
    """Raises UsageError when `wanted` (0: any) is not the number of classes, DataError when there is but one."""
    if len(classes) < 2:
        raise DataError(f"found {len(classes)} class ({', '.join(classes)}); a classifier needs at least two")
    if wanted and wanted != len(classes):
        raise UsageError(f"classes={wanted}, but the data has {len(classes)}; leave --classes out")


def channel_statistics(split: Split) -> tuple[Triple, Triple]:
    """Mean and standard deviation of each channel over all pixels, 0..1 scale; ImageNet's for images not in memory."""
    if split.pixels is None:
        return IMAGENET_MEAN, IMAGENET_STD
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for chunk in _chunks(split.pixels):
        values = chunk.reshape(-1, 3).astype(np.float64) / 255
        total += values.sum(0)
        squares += np.square(values).sum(0)
        count += len(values)
    mean = total / count
    # At least one grey level, so that a channel that never changes can be divided by it.
    std = np.maximum(np.sqrt(np.maximum(squares / count - mean**2, 0)), 1 / 255)
    return _triple(mean), _triple(std)


def fingerprint(classes: Sequence[str], splits: Sequence[Split | None]) -> str:
    """SHA-256 in hexadecimal: other data, another number."""
    digest = hashlib.sha256("\0".join(classes).encode())
    for split in splits:
        if split is None:
            continue
        digest.update(f"\0\0{split.name} {len(split)}\0".encode())
        digest.update("\0".join(split.ids).encode())
        digest.update(split.labels.astype("<i8").tobytes())
        if split.pixels is not None:
            digest.update(str(split.pixels.shape).encode())
            for chunk in _chunks(split.pixels):
                digest.update(np.ascontiguousarray(chunk).data)
        elif split.sizes is not None:
            digest.update(split.sizes.astype("<i8").tobytes())
    return digest.hexdigest()


def _chunks(pixels: np.ndarray, count: int = 1 << 24) -> Iterator[np.ndarray]:
    """Slices of whole images of about `count` bytes, so that no large copy is made."""
    step = max(1, count // max(1, int(np.prod(pixels.shape[1:]))))
    for start in range(0, len(pixels), step):
        yield pixels[start : start + step]


def _triple(values: np.ndarray) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
