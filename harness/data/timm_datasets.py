"""Data sets that timm's `create_dataset` reads by name: `torch/mnist`, `hfds/user/name`, `tfds/name`, ..."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.config.names import BUILT_IN_DATASETS, SplitName
from harness.config.settings import Config
from harness.data.dataset import MAX_PIXEL_BYTES, ArrayImages, ConvertedImages, Split, TimmReaderImages, in_memory
from harness.data.image_io import to_rgb
from harness.utils.errors import DataError, UsageError, did_you_mean
from harness.utils.text import escape_unprintable

TORCHVISION_NAMES = (
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


def read_timm_dataset(config: Config) -> tuple[Sequence[str], Split, None, Split | None]:
    """Read a data set through timm.

    Returns:
        The class names, the training split, no validation split, and the test split: the data set's own test images,
        else its validation images, else None.

    Raises:
        UsageError: timm does not know the name, or the package that reads it is not installed.
        DataError: the data is missing or unreadable.
    """
    prefix, slash, rest = config.data.partition("/")
    if (
        not slash
        or prefix.lower() not in PREFIXES
        or (prefix.lower() == "torch" and rest.lower() not in TORCHVISION_NAMES)
    ):
        known = [*BUILT_IN_DATASETS, *(f"torch/{name}" for name in TORCHVISION_NAMES)]
        raise UsageError(
            f"there is no data set {config.data!r}{did_you_mean(config.data, known)}; need {', '.join(BUILT_IN_DATASETS)}, torch/NAME, hfds/NAME, tfds/NAME or wds/NAME"
        )
    train = _create_timm_dataset(config, "train")
    test = None
    for timm_split in ("test", "validation"):
        try:
            test = _create_timm_dataset(config, timm_split)
            break
        except DataError:
            continue  # many data sets have only one of the two, and some have neither
    classes = _class_names(train)
    return classes, _make_split(train, "train"), None, None if test is None else _make_split(test, "test")


def _create_timm_dataset(config: Config, split: str) -> Any:
    from timm.data import create_dataset

    # For torchvision's data sets look on the disk first: a download creates folders even where it fails.
    attempts = (False, True) if config.download else (False,)
    for download in attempts if config.data.lower().startswith("torch/") else (config.download,):
        try:
            with contextlib.redirect_stdout(sys.stderr):
                return create_dataset(
                    config.data, root=os.path.expanduser(config.data_dir), split=split, download=download
                )
        except ImportError as error:
            raise UsageError(
                f"data={config.data} needs a package that is not installed: {_first_line(error)}"
            ) from None
        except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:
            reason = _first_line(error)
    raise DataError(
        f"{config.data} ({split}) cannot be loaded from {config.data_dir}: {reason}; set --data-dir to the folder that holds it, or --download True"
    ) from None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return escape_unprintable(lines[0]) if lines else type(error).__name__


def _class_names(dataset: Any) -> list[str]:
    names = getattr(dataset, "classes", None)
    if names is None and getattr(getattr(dataset, "reader", None), "class_to_idx", None):
        mapping = dataset.reader.class_to_idx
        names = sorted(mapping, key=mapping.__getitem__)
    if names:
        return [escape_unprintable(str(name)) for name in names]
    return [str(label) for label in range(int(_labels(dataset).max()) + 1)]


def _labels(dataset: Any) -> np.ndarray:
    """Return the labels, int64 [N], without decoding images where the data set has a list of labels."""
    targets = getattr(dataset, "targets", None)
    if targets is None and hasattr(getattr(dataset, "reader", None), "iter_targets"):
        targets = list(dataset.reader.iter_targets())
    if targets is None:
        targets = [dataset[index][1] for index in range(len(dataset))]
    return np.asarray(targets, dtype=np.int64)


def _make_split(dataset: Any, name: SplitName) -> Split:
    if not hasattr(dataset, "__getitem__"):
        return _read_stream(dataset, name)
    labels = _labels(dataset)
    ids = [f"{name}/{index}" for index in range(len(labels))]
    reader = getattr(dataset, "reader", None)
    source = ConvertedImages(dataset, labels) if reader is None else TimmReaderImages(reader, name, labels)
    pixels = _decode_all(source)
    return Split(name, labels, ids, None, source) if pixels is None else in_memory(name, pixels, labels, ids)


def _decode_all(source: Any) -> np.ndarray | None:
    """Return all images, uint8 [N, H, W, 3], where they have one size and fit in memory, else None."""
    if not len(source):
        raise DataError("the data set holds no images")
    samples = [source[int(index)][0].size for index in np.unique(np.linspace(0, len(source) - 1, 16).astype(int))]
    width, height = samples[0]
    if len(set(samples)) > 1 or len(source) * width * height * 3 > MAX_PIXEL_BYTES:
        return None
    pixels = np.empty((len(source), height, width, 3), np.uint8)
    for index in range(len(source)):
        image = source[index][0]
        if image.size != (width, height):
            return None
        pixels[index] = np.asarray(image)
    return pixels


def _read_stream(dataset: Any, name: SplitName) -> Split:
    """Read a stream (tfds, wds, hfids) into memory, since training needs random access.

    Raises:
        DataError: it holds no images, or more than fit in memory.
    """
    images, labels, total_bytes = [], [], 0
    for image, label in dataset:
        pixels = np.asarray(to_rgb(image))
        total_bytes += pixels.nbytes
        if total_bytes > MAX_PIXEL_BYTES:
            raise DataError(
                f"{name} is a stream of over {MAX_PIXEL_BYTES / 2**30:g} GiB of pixels; export it to class folders and set --data folder"
            )
        images.append(pixels)
        labels.append(int(label))
    if not images:
        raise DataError(f"{name} holds no images")
    ids = [f"{name}/{index}" for index in range(len(labels))]
    if len({pixels.shape for pixels in images}) == 1:
        return in_memory(name, np.stack(images), np.asarray(labels), ids)
    label_array = np.asarray(labels, np.int64)
    return Split(name, label_array, ids, None, ArrayImages(images, label_array))
