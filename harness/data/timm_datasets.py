"""Data sets that timm's `create_dataset` knows by name: `torch/mnist`, `hfds/user/name`, `tfds/name`, ..."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from harness.config.settings import Config
from harness.data.dataset import MAX_PIXEL_BYTES, Split, in_memory
from harness.data.image_io import plain_name, read_image, to_rgb
from harness.utils.errors import DataError, UsageError, did_you_mean

OURS = ("cifar10", "cifar100", "digits", "folder")
TORCH = (
    "cifar10",
    "cifar100",
    "mnist",
    "kmnist",
    "fashion_mnist",
    "qmnist",
    "imagenet",
    "places365",
    "inaturalist",
    "image_folder",
)
PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")


class ConvertedImages:
    """A source over a random-access data set of (PIL image, label), with pictures brought to RGB."""

    def __init__(self, dataset: Any, labels: np.ndarray) -> None:
        self.dataset, self.labels = dataset, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return to_rgb(self.dataset[index][0]), int(self.labels[index])


class UndecodedImages:
    """A source over a timm reader of (open file, label).

    timm's own data set around it answers an unreadable picture with the next one; here it is an error.
    """

    def __init__(self, reader: Any, name: str, labels: np.ndarray) -> None:
        self.reader, self.name, self.labels = reader, name, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        with self.reader[index][0] as file:
            return Image.fromarray(read_image(file, f"{self.name}/{index}")), int(self.labels[index])


def read_timm_dataset(config: Config) -> tuple[Sequence[str], Split, None, Split | None]:
    """The classes, the training images and, where there are any, the test (or validation) images.

    Raises:
        UsageError: timm does not know the name, or the package that reads it is not installed.
        DataError: the data is missing or unreadable.
    """
    prefix, slash, rest = config.data.partition("/")
    if not slash or prefix.lower() not in PREFIXES or (prefix.lower() == "torch" and rest.lower() not in TORCH):
        known = [*OURS, *(f"torch/{name}" for name in TORCH)]
        raise UsageError(
            f"there is no data {config.data!r}{did_you_mean(config.data, known)}; need {', '.join(OURS)}, torch/NAME, hfds/NAME, tfds/NAME or wds/NAME"
        )
    training = _create(config, "train")
    test = None
    for name in ("test", "validation"):
        try:
            test = _create(config, name)
            break
        except DataError:
            continue  # many sets have only one of the two, and some neither
    classes = _classes(training)
    return classes, _split(training, "train"), None, None if test is None else _split(test, "test")


def _create(config: Config, split: str) -> Any:
    from timm.data import create_dataset

    # torchvision's sets are asked whether they are there first, so that nothing is written where they are not.
    tries = (False, True) if config.download else (False,)
    for download in tries if config.data.lower().startswith("torch/") else (config.download,):
        try:
            with contextlib.redirect_stdout(sys.stderr):
                return create_dataset(
                    config.data, root=os.path.expanduser(config.data_dir), split=split, download=download
                )
        except ImportError as error:
            raise UsageError(f"data={config.data} needs a package that is not installed: {_line(error)}") from None
        except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:
            reason = _line(error)
    raise DataError(
        f"{config.data} ({split}) can not be had in {config.data_dir}: {reason}; set --data-dir to where it lies, or --download True"
    ) from None


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return plain_name(lines[0]) if lines else type(error).__name__


def _classes(dataset: Any) -> list[str]:
    names = getattr(dataset, "classes", None)
    if names is None and getattr(getattr(dataset, "reader", None), "class_to_idx", None):
        mapping = dataset.reader.class_to_idx
        names = sorted(mapping, key=mapping.__getitem__)
    if names:
        return [plain_name(str(name)) for name in names]
    return [str(number) for number in range(int(_labels(dataset).max()) + 1)]


def _labels(dataset: Any) -> np.ndarray:
    """Without decoding, where the data set has a list of them."""
    targets = getattr(dataset, "targets", None)
    if targets is None and hasattr(getattr(dataset, "reader", None), "iter_targets"):
        targets = list(dataset.reader.iter_targets())
    if targets is None:
        targets = [dataset[index][1] for index in range(len(dataset))]
    return np.asarray(targets, dtype=np.int64)


def _split(dataset: Any, name: str) -> Split:
    if not hasattr(dataset, "__getitem__"):
        return _drained(dataset, name)
    labels = _labels(dataset)
    ids = [f"{name}/{index}" for index in range(len(labels))]
    reader = getattr(dataset, "reader", None)
    source = ConvertedImages(dataset, labels) if reader is None else UndecodedImages(reader, name, labels)
    pixels = _pixels(source)
    return Split(name, labels, ids, None, source) if pixels is None else in_memory(name, pixels, labels, ids)


def _pixels(source: Any) -> np.ndarray | None:
    """All pictures decoded, if they have one size and fit in memory."""
    if not len(source):
        raise DataError("the data set holds no images")
    some = [source[int(index)][0].size for index in np.unique(np.linspace(0, len(source) - 1, 16).astype(int))]
    width, height = some[0]
    if len(set(some)) > 1 or len(source) * width * height * 3 > MAX_PIXEL_BYTES:
        return None
    pixels = np.empty((len(source), height, width, 3), np.uint8)
    for index in range(len(source)):
        image = source[index][0]
        if image.size != (width, height):
            return None
        pixels[index] = np.asarray(image)
    return pixels


def _drained(dataset: Any, name: str) -> Split:
    """A stream (tfds, wds, hfids), read once into memory: a run needs its images by number."""
    pictures, labels, total = [], [], 0
    for image, label in dataset:
        picture = np.asarray(to_rgb(image))
        total += picture.nbytes
        if total > MAX_PIXEL_BYTES:
            raise DataError(
                f"{name} is a stream of over {MAX_PIXEL_BYTES / 2**30:g} GiB of pixels; export it to class folders and set --data folder"
            )
        pictures.append(picture)
        labels.append(int(label))
    if not pictures:
        raise DataError(f"{name} holds no images")
    ids = [f"{name}/{index}" for index in range(len(labels))]
    if len({picture.shape for picture in pictures}) == 1:
        return in_memory(name, np.stack(pictures), np.asarray(labels), ids)
    return Split(name, np.asarray(labels, np.int64), ids, None, TimmImages(pictures, labels))


class TimmImages:
    """A source over pictures of several sizes in memory."""

    def __init__(self, pictures: Sequence[np.ndarray], labels: Sequence[int]) -> None:
        self.pictures, self.labels = pictures, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pictures[index]), self.labels[index]
