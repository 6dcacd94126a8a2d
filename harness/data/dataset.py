"""Labelled images: the splits of a data set, where their pixels come from, and the statistics that describe them."""

from __future__ import annotations

import dataclasses
import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from harness.config.names import SplitName
from harness.data.image_io import GREY, RGB, Picture, as_picture, as_pixels, read_image, to_channels
from harness.data.multilabel import multilabel_indices, with_known_classes
from harness.utils.errors import DataError, UsageError
from harness.utils.seeding import seed_for

# Held-out images are the same for every seed, so that the runs of a sweep are compared on the same images.
SPLIT_SEED = 20180924
CHUNK_BYTES = 1 << 24
SAMPLED_IMAGES = 256  # for the statistics of images that are not in memory
MAX_PIXEL_BYTES = 2 * 2**30  # fixed, not a fraction of the memory: a fingerprint must not depend on the machine

PerChannel: TypeAlias = tuple[float, ...]  # a value for each channel
Label: TypeAlias = int | np.ndarray  # of an image: its class, or uint8 [C] of 0 and 1 where images have several
IMAGENET_MEAN: PerChannel = (0.485, 0.456, 0.406)
IMAGENET_STD: PerChannel = (0.229, 0.224, 0.225)


def spread_indices(length: int, count: int = 16) -> list[int]:
    """Return up to `count` indices of a sequence, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, length - 1, count).astype(int)).tolist() if length else []


def item_label(labels: np.ndarray, index: int) -> Label:
    """Return the label of an image, or uint8 [C] where images have several."""
    return labels[index] if labels.ndim == 2 else int(labels[index])


class ArrayImages:
    """Images in memory; `source[i]` is (picture, label).

    Args:
        pixels: uint8 [N, H, W, C], or N arrays uint8 [H, W, C] of several sizes.
    """

    def __init__(self, pixels: np.ndarray | Sequence[np.ndarray], labels: np.ndarray) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Picture, Label]:
        return as_picture(self.pixels[index]), item_label(self.labels, index)


class FileImages:
    """Image files, each decoded when it is accessed.

    Args:
        files: paths, or the contents of files.
        ids: the names that error messages use.
        grey_range, channels: those of `read_image`.
    """

    def __init__(
        self,
        files: Sequence[str | bytes],
        ids: Sequence[str],
        labels: np.ndarray,
        grey_range: tuple[float, float] | None = None,
        channels: int = RGB,
    ) -> None:
        self.files, self.ids, self.labels, self.grey_range = files, ids, labels, grey_range
        self.channels = channels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Picture, Label]:
        pixels = read_image(self.files[index], self.ids[index], self.grey_range, self.channels)
        return as_picture(pixels), item_label(self.labels, index)


class ConvertedImages:
    """The items of a random-access data set of (PIL image, label), converted to RGB or to another number of channels."""

    def __init__(self, dataset: Any, labels: np.ndarray, channels: int = RGB) -> None:
        self.dataset, self.labels, self.channels = dataset, labels, channels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        return to_channels(self.dataset[index][0], self.channels), int(self.labels[index])


class TimmReaderImages:
    """The items of a timm reader of (open file, label), each decoded when it is accessed.

    timm's own data set replaces an unreadable image by the next one; this class raises instead.
    """

    def __init__(
        self,
        reader: Any,
        name: str,
        labels: np.ndarray,
        grey_range: tuple[float, float] | None = None,
        channels: int = RGB,
    ) -> None:
        self.reader, self.name, self.labels, self.grey_range = reader, name, labels, grey_range
        self.channels = channels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        with self.reader[index][0] as file:
            pixels = read_image(file, f"{self.name}/{index}", self.grey_range, self.channels)
        return as_picture(pixels), int(self.labels[index])


class RelabelledImages:
    """The images of another source with other labels."""

    def __init__(self, source: Any, labels: np.ndarray) -> None:
        self.source, self.labels = source, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Picture, Label]:
        return self.source[index][0], item_label(self.labels, index)


class ImageSubset:
    """The items of another source at `indices`, in that order."""

    def __init__(self, source: Any, indices: np.ndarray) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Picture, Label]:
        image, label = self.source[int(self.indices[index])]
        return image, label if isinstance(label, np.ndarray) else int(label)


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Attributes:
        labels: int64 [N], or uint8 [N, C] of 0 and 1 where images have several labels.
        ids: a stable name for each image: its path below the data folder, or `test/17`.
        pixels: uint8 [N, H, W, C] where all images have the same size and fit in memory, else None.
        source: `len(source)` and `source[i] -> (picture, label)`: an image of Pillow, RGB or L, or uint8 [H, W, C].
        sizes: size of each file in bytes [N] where the pixels are not in memory; part of the fingerprint.
    """

    name: SplitName
    labels: np.ndarray
    ids: Sequence[str]
    pixels: np.ndarray | None
    source: Any
    sizes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_multilabel(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.labels.ndim == 2

    def picture(self, index: int) -> np.ndarray:
        """Return an image as stored, uint8 [H, W, C]: RGB, grey, or of other channels."""
        return self.pixels[index] if self.pixels is not None else as_pixels(self.source[index][0])

    def subset(self, indices: np.ndarray, name: SplitName) -> Split:
        """Return the images at `indices`, in that order, as a split."""
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
        mean, std: statistics of the training pixels per channel, on a 0..1 scale.
        fingerprint: SHA-256 of ids, labels and pixels (of file sizes where the pixels are not in memory), in hexadecimal.
        skipped: ids of the unreadable images that were left out.
        notes: sentences on the data that its user should know.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None
    mean: PerChannel
    std: PerChannel
    fingerprint: str
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def in_memory(name: SplitName, pixels: np.ndarray, labels: np.ndarray, ids: Sequence[str]) -> Split:
    """Return a split of images in memory, uint8 [N, H, W, C]."""
    labels, pixels = np.asarray(labels), np.ascontiguousarray(pixels)
    labels = labels.astype(np.int64 if labels.ndim < 2 else np.uint8, copy=False)
    return Split(name, labels, ids, pixels, ArrayImages(pixels, labels))


def with_classes(
    split: Split,
    names: Sequence[str] | None,
    classes: Sequence[str],
    data: str,
    lack: str = "the training images do not have",
) -> Split:
    """Return the split with its labels as indices into `classes`, matched by name.

    Args:
        names: the split's own classes, in the order of its labels; None where they are `classes`.
        data: the data set that an error message names.
        lack: the end of the sentence on a class that is not one of `classes`.

    Raises:
        DataError: the split has a class that `classes` does not have, or labels beyond its classes.
    """
    names = classes if names is None else names
    if split.is_multilabel:
        return _with_known_columns(split, names, classes, data, lack)
    if len(split) and not 0 <= split.labels.min() <= split.labels.max() < len(names):
        raise DataError(
            f"{data}: the {split.name} labels are {split.labels.min()} to {split.labels.max()}, but there are {len(names)} classes"
        )
    if list(names) == list(classes):
        return split
    index = {unicodedata.normalize("NFC", name): number for number, name in enumerate(classes)}
    places = [index.get(unicodedata.normalize("NFC", name)) for name in names]
    if unknown := [names[label] for label in np.unique(split.labels) if places[label] is None]:
        raise _unknown_classes(data, split, unknown, lack)
    labels = np.array([place or 0 for place in places], dtype=np.int64)[split.labels]
    if split.pixels is not None:
        return in_memory(split.name, split.pixels, labels, split.ids)
    # A source gives each image its own label; the new ones take their place.
    return dataclasses.replace(split, labels=labels, source=RelabelledImages(split.source, labels))


def _unknown_classes(data: str, split: Split, names: Sequence[str], lack: str) -> DataError:
    noun = "class" if len(names) == 1 else "classes"
    return DataError(f"{data}: the {split.name} images have {noun} {', '.join(names[:5])}, which {lack}")


def _with_known_columns(split: Split, names: Sequence[str], classes: Sequence[str], data: str, lack: str) -> Split:
    """Do what `with_classes` does for images with several labels."""
    if list(names) == list(classes):
        return split
    ours, theirs = ([unicodedata.normalize("NFC", name) for name in each] for each in (classes, names))
    used = (split.labels.sum(0) > 0).tolist()
    if unknown := [name for name, key, is_used in zip(names, theirs, used, strict=True) if is_used and key not in ours]:
        raise _unknown_classes(data, split, unknown, lack)
    labels = with_known_classes(split.labels, theirs, ours)
    if split.pixels is not None:
        return in_memory(split.name, split.pixels, labels, split.ids)
    return dataclasses.replace(split, labels=labels, source=RelabelledImages(split.source, labels))


def hold_out(
    split: Split, fraction: float, name: SplitName, setting: str, seed_name: str | None = None, label_column: str = ""
) -> tuple[Split, Split]:
    """Split off about `fraction` of the images of every class.

    The choice depends on the labels, the fraction and `seed_name`, never on the seed of a run.

    Args:
        name: the name of the split that is held out.
        setting: the setting that an error message names.
        seed_name: what the random choice is made for; `name` by default.
        label_column: of the table that the labels come from, for an error message; empty where none was named.

    Returns:
        The remaining images, under the name of `split`, and those that are held out.

    Raises:
        UsageError: the fraction amounts to no image at all, or every class has one image.
    """
    divide = multilabel_indices if split.is_multilabel else _stratified_indices
    held_out = divide(split.labels, fraction, seed_for(SPLIT_SEED, seed_name or name))
    counts = np.ones(0) if split.is_multilabel else np.unique(split.labels, return_counts=True)[1]
    if len(counts) > 1 and counts.max() == 1:
        column = f"is {label_column!r} the label? " if label_column else ""
        raise UsageError(
            f"{len(counts):,} classes of one image each, so {setting}={fraction:g} can hold out none; {column}--label-column names the labels of a table, and a class folder holds all images of its class"
        )
    if not len(held_out):
        raise UsageError(
            f"{setting}={fraction:g} of {len(split)} {split.name} images is less than one image; set a larger --{setting.replace('_', '-')}"
        )
    remaining = np.setdiff1d(np.arange(len(split)), held_out)
    return split.subset(remaining, split.name), split.subset(held_out, name)


def _stratified_indices(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return sorted indices of about `fraction` of every class, `round(fraction * N)` in total, never a whole class."""
    # The legacy generator: NumPy guarantees that its stream never changes.
    random = np.random.RandomState(seed % 2**32)
    classes, class_sizes = np.unique(labels, return_counts=True)
    quotas = class_sizes * fraction
    taken = np.floor(quotas).astype(np.int64)
    # Largest-remainder rounding: the classes with the largest remainders give one more image until the total is right.
    missing = round(len(labels) * fraction) - int(taken.sum())
    candidates = [index for index in np.argsort(taken - quotas, kind="stable") if taken[index] + 1 < class_sizes[index]]
    for index in candidates[:missing]:
        taken[index] += 1
    chosen = [
        random.permutation(np.flatnonzero(labels == label))[:count] for label, count in zip(classes, taken, strict=True)
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def check_classes(classes: Sequence[str], expected: int) -> None:
    """Check the number of classes.

    Args:
        expected: how many there must be; 0 accepts any number from two.

    Raises:
        DataError: there are fewer than two.
        UsageError: there are not as many as expected.
    """
    if len(classes) < 2:
        raise DataError(f"only {len(classes)} class ({', '.join(classes)}); a classifier needs at least two")
    if expected and expected != len(classes):
        raise UsageError(f"classes={expected}, but the data has {len(classes)}; leave --classes out")


def fit_channels(values: PerChannel, channels: int) -> PerChannel:
    """Return the mean or standard deviation of `channels` channels for weights that are adapted from others.

    Each channel gets the mean of the values, as in timm's loader.
    """
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def channel_statistics(split: Split, channels: int = RGB) -> tuple[PerChannel, PerChannel]:
    """Return mean and standard deviation per channel on a 0..1 scale.

    Where the pixels are not in memory, they are ImageNet's for RGB and grey images, and those of a sample for others.

    Args:
        channels: of the images.
    """
    if split.pixels is not None:
        chunks, channels = _chunks(split.pixels), split.pixels.shape[3]
    elif channels in (RGB, GREY):
        return fit_channels(IMAGENET_MEAN, channels), fit_channels(IMAGENET_STD, channels)
    else:
        chunks = (split.picture(index)[None] for index in spread_indices(len(split), SAMPLED_IMAGES))
    counts = np.zeros((channels, 256), np.int64)
    for chunk in chunks:
        counts += _value_counts(chunk)
    levels, pixels = np.arange(256), counts.sum(1)
    mean = (counts * levels).sum(1) / (255 * pixels)  # of whole numbers, so that equal channels have equal means
    squares = (counts * (levels / 255 - mean[:, None]) ** 2).sum(1)
    # At least one grey level, so that a constant channel can be divided by it.
    std = np.maximum(np.sqrt(squares / pixels), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def _value_counts(images: np.ndarray) -> np.ndarray:
    """Return how many pixels have each of the values 0..255, int64 [C, 256], of images uint8 [N, H, W, C].

    Counting takes a fifth of the time of sums over the pixels in float64, for three channels.
    """
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(images, -1, 0)])


def fingerprint(classes: Sequence[str], splits: Sequence[Split | None]) -> str:
    """Return a SHA-256 in hexadecimal that differs whenever the data differs."""
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


def _chunks(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield slices of whole images, about `CHUNK_BYTES` each, so that no large copy is made."""
    step = max(1, CHUNK_BYTES // max(1, int(np.prod(pixels.shape[1:]))))
    for start in range(0, len(pixels), step):
        yield pixels[start : start + step]
