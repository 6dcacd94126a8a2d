"""Data sets that timm's `create_dataset` reads by name: `torch/mnist`, `hfds/user/name`, `tfds/name`, ..."""

from __future__ import annotations

import contextlib
import functools
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from harness.config.names import BUILT_IN_DATASETS, TIMM_PREFIXES, SplitName
from harness.config.settings import Config
from harness.data.dataset import (
    MAX_PIXEL_BYTES,
    ArrayImages,
    ConvertedImages,
    Split,
    TimmReaderImages,
    in_memory,
    spread_indices,
    with_classes,
)
from harness.data.folder_scan import find_layout
from harness.data.image_io import Picture, as_picture, as_pixels, read_image, to_channels
from harness.data.safe_names import local_folder
from harness.utils.errors import DataError, UsageError, did_you_mean
from harness.utils.registry import registered_names
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
IMAGE_FOLDER = "torch/image_folder"
UNLABELLED = -1  # the label of every image in a test split whose labels are not published
log = logging.getLogger(__name__)


def read_timm_dataset(config: Config) -> tuple[Sequence[str], Split, None, Split | None]:
    """Read a data set through timm.

    Returns:
        The class names, the training split, no validation split, and the test split: the data set's own test images,
        else its validation images, else None.

    Raises:
        UsageError: timm does not know the name, or the package that reads it is not installed.
        DataError: the data is missing or unreadable.
    """
    prefix, _, rest = config.data.partition("/")
    is_unknown = prefix.lower() == "torch" and rest.lower() not in TORCHVISION_NAMES
    if is_unknown or not config.data.lower().startswith(TIMM_PREFIXES):
        if Path(config.data).expanduser().exists():
            raise UsageError(
                f"there is no data set {config.data!r}, but a {'folder' if Path(config.data).expanduser().is_dir() else 'file'} of that name; did you mean --data-dir {shlex.quote(config.data)}?"
            )
        known = [*BUILT_IN_DATASETS, *registered_names("dataset"), *(f"torch/{name}" for name in TORCHVISION_NAMES)]
        raise UsageError(
            f"there is no data set {config.data!r}{did_you_mean(config.data, known)}; need {', '.join(BUILT_IN_DATASETS)}, torch/NAME, hfds/NAME, tfds/NAME or wds/NAME, or one that a module of --plugin registers"
        )
    is_folder = config.data.lower() == IMAGE_FOLDER
    train, *folders = _open_image_folders(config) if is_folder else [_create_timm_dataset(config, "train")]
    classes, train_split = _class_names(train), _make_split(train, "train", config)
    for dataset in folders if is_folder else _held_out(config):
        split = _make_split(dataset, "test", config)
        if (split.labels == UNLABELLED).all():
            log.warning("%s has a split without labels, which is not used", config.data)
            continue
        if classes is None:
            classes = _numbers(train_split, split)
        split = with_classes(split, _class_names(dataset), classes, config.data)
        return classes, with_classes(train_split, None, classes, config.data), None, split
    classes = classes or _numbers(train_split)
    return classes, with_classes(train_split, None, classes, config.data), None, None


def _held_out(config: Config) -> Iterator[Any]:
    """Yield the test images and then the validation images, where there are such."""
    for timm_split in ("test", "validation"):
        try:
            dataset = _create_timm_dataset(config, timm_split)
        except DataError as error:  # many data sets have only one of the two, and some have neither
            log.info("%s", error)
            continue
        yield dataset


def _open_image_folders(config: Config) -> list[Any]:
    """Return torchvision's `ImageFolder` of the training images, and of the test or else of the validation images.

    timm takes the whole root where a split has no folder, and so would test on the training images.

    Raises:
        DataError: there is no training folder, or two splits are one folder.
    """
    root = Path(local_folder(config))
    layout = find_layout(root)
    if "val" in layout.splits and "test" in layout.splits:
        log.warning("%s is not used with --data %s; set --data folder", layout.splits["val"], config.data)
    held_out = layout.splits.get("test") or layout.splits.get("val")
    folders = [layout.splits.get("train", layout.prefix), *([held_out] if held_out else [])]
    if len({(root / folder).resolve() for folder in folders}) < len(folders):
        raise DataError(f"{root}: {' and '.join(folders)} are one folder; the test images must not be training images")
    # torchvision's own loader clips deep grey values.
    loader = functools.partial(_read_file, grey_range=config.grey_limits(), channels=config.in_chans)
    return [
        _create_timm_dataset(config, "train", root=root / folder, search_split=False, loader=loader)
        for folder in folders
    ]


def _read_file(path: str, grey_range: tuple[float, float] | None, channels: int) -> Picture:
    return as_picture(read_image(path, "", grey_range, channels))


def _numbers(*splits: Split) -> list[str]:
    """Return names for labels that have none: 0 to the largest."""
    return [str(label) for label in range(max(int(split.labels.max(initial=0)) for split in splits) + 1)]


def _create_timm_dataset(config: Config, split: str, root: Path | None = None, **options: Any) -> Any:
    from timm.data import create_dataset

    # For torchvision's data sets look on the disk first: a download creates folders even where it fails.
    attempts = (False, True) if config.download else (False,)
    folder = str(root or local_folder(config))
    if config.data.lower().startswith(("hfds/", "hfids/")):
        options["trust_remote_code"] = False
    if config.data.lower().startswith(("wds/", "hfids/")):
        options["input_img_mode"] = ""  # images as stored: a conversion to RGB would clip deep grey values
    for download in attempts if config.data.lower().startswith("torch/") else (config.download,):
        try:
            with contextlib.redirect_stdout(sys.stderr):
                return create_dataset(config.data, root=folder, split=split, download=download, **options)
        except ImportError as error:
            raise UsageError(
                f"data={config.data} needs a package that is not installed: {_first_line(error)}"
            ) from None
        except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:
            reason = _first_line(error)
    raise DataError(
        f"{config.data} ({split}) cannot be loaded from {folder}: {reason}; set --data-dir to the folder that holds it, or --download True"
    ) from None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return escape_unprintable(lines[0]) if lines else type(error).__name__


def _class_names(dataset: Any) -> list[str] | None:
    """Return the names of the classes in the order of the labels; None where the data set has none."""
    names = getattr(dataset, "classes", None)
    mapping = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if names is None and hasattr(dataset, "categories_index"):  # iNaturalist
        names = dataset.all_categories
    if names is None and mapping:
        names = sorted(mapping, key=mapping.__getitem__)
    return [escape_unprintable(str(name)) for name in names] if names else None


def _labels(dataset: Any) -> np.ndarray:
    """Return the labels, int64 [N], without decoding images where the data set has a list of labels.

    Raises:
        DataError: they are not integers.
    """
    targets = getattr(dataset, "targets", None)
    if targets is None and hasattr(getattr(dataset, "reader", None), "iter_targets"):
        targets = list(dataset.reader.iter_targets())
    if targets is None and hasattr(dataset, "categories_index"):  # iNaturalist: (category, file) of each image
        targets = [category for category, _ in dataset.index]
    if targets is None:
        targets = [dataset[index][1] for index in range(len(dataset))]
    labels = np.asarray(targets)
    if labels.ndim != 1 or (len(labels) and not np.issubdtype(labels.dtype, np.integer)):
        raise DataError(f"the labels are {labels.dtype} of shape {list(labels.shape)}; need one integer per image")
    return labels.astype(np.int64)


def _make_split(dataset: Any, name: SplitName, config: Config) -> Split:
    if isinstance(dataset, IterableDataset):
        return _read_stream(dataset, name, config)
    labels = _labels(dataset)
    ids = [f"{name}/{index}" for index in range(len(labels))]
    reader = getattr(dataset, "reader", None)
    source = (
        ConvertedImages(dataset, labels, config.in_chans)
        if reader is None
        else TimmReaderImages(reader, name, labels, config.grey_limits(), config.in_chans)
    )
    pixels = decode_all(source)
    return Split(name, labels, ids, None, source) if pixels is None else in_memory(name, pixels, labels, ids)


def decode_all(source: Any) -> np.ndarray | None:
    """Return all images, uint8 [N, H, W, C], where they have one size and fit in memory, else None."""
    if not len(source):
        raise DataError("the data set holds no images")
    samples = [as_pixels(source[index][0]).shape for index in spread_indices(len(source))]
    shape = samples[0]
    if len(set(samples)) > 1 or len(source) * int(np.prod(shape)) > MAX_PIXEL_BYTES:
        return None
    pixels = np.empty((len(source), *shape), np.uint8)
    for index in range(len(source)):
        image = as_pixels(source[index][0])
        if image.shape != shape:
            return None
        pixels[index] = image
    return pixels


def _read_stream(dataset: Any, name: SplitName, config: Config) -> Split:
    """Read a stream (tfds, wds, hfids) into memory, since training needs random access.

    Raises:
        DataError: it holds no images, or more than fit in memory.
    """
    images: list[np.ndarray] = []
    labels: list[int] = []
    total_bytes = 0
    for image, label in dataset:
        try:
            pixels = as_pixels(to_channels(image, config.in_chans, config.grey_limits()))
        except ValueError as error:
            raise DataError(f"{name}/{len(images)}: {error}") from None
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
