"""Load the data set that a configuration names."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import logging
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.config.names import FIXED_DATASETS, SPLIT_NAMES, SplitName
from harness.config.settings import Config
from harness.data.dataset import (
    Dataset,
    PerChannel,
    Split,
    channel_statistics,
    check_classes,
    fingerprint,
    hold_out,
    in_memory,
    with_classes,
)
from harness.data.duplicates import duplicate_notes
from harness.data.image_folder import list_image_folder, read_image_folder
from harness.data.image_io import GREY, RGB, grey_batch
from harness.data.listing import Listing, StoredData, read_listing, short_list
from harness.data.stored_table import find_tables, is_table_name
from harness.data.table_listing import list_marked_folder, list_tables
from harness.utils.environment import rank
from harness.utils.errors import DataError, UsageError, first_line

__all__ = ["Dataset", "Split", "load_dataset", "load_evaluation_data"]
log = logging.getLogger(__name__)

# Mean and standard deviation over all pixels of the 50,000 training images. The value 0.20 that is often quoted for the
# standard deviation is the mean of those of single images.
CIFAR_STATISTICS: dict[str, tuple[PerChannel, PerChannel]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def load_dataset(config: Config) -> Dataset:
    """Load the data set that `config.data` names from `config.data_dir`.

    The validation split is `val_fraction` of the training images, or the folder's own; the test split is the data
    set's own, or `test_fraction` of the images. Both are stratified by class and the same for every seed.

    Raises:
        DataError: the data is missing, unreadable, empty or inconsistent.
        UsageError: there is no such data set, or the settings do not fit it.
    """
    source = read_stored(config)
    check_classes(source.classes, config.classes)
    train, val, test = divide_splits(config, source)
    notes = [*source.notes, *duplicate_notes(train, [split for split in (val, test) if split is not None])]
    known = CIFAR_STATISTICS.get(config.data) if config.in_chans == RGB else None
    mean, std = known or channel_statistics(train, config.in_chans)
    digest = fingerprint(source.classes, (train, val, test))
    if rank() == 0:
        for note in notes:
            log.warning("%s", note)
    return Dataset(config.data, tuple(source.classes), train, val, test, mean, std, digest, source.skipped, notes)


@dataclass(frozen=True)
class EvaluationData:
    """Labelled images to evaluate a model on; labels are indices into the model's classes.

    Attributes:
        classes: the data's own.
        fingerprint: SHA-256 as that of a `Dataset`.
        is_own: whether these are the images of the run, with its own splits.
    """

    splits: dict[SplitName, Split]
    classes: tuple[str, ...]
    fingerprint: str
    is_own: bool


def load_evaluation_data(
    config: Config, classes: Sequence[str], own_fingerprint: str, divide: bool = False
) -> EvaluationData:
    """Load the images that a trained model is evaluated on: those of its run with their splits, or all images of other data.

    Args:
        classes: the model's; the data's are matched with them by name, and may be fewer.
        own_fingerprint: of the data that the model was trained with; data with another one is other data.
        divide: hold images of other data out too, as `val_fraction` and `test_fraction` say.

    Raises:
        DataError: the data is missing, unreadable or empty, or has a class that the model does not have.
        UsageError: there is no such data set, or the settings do not fit it.
    """
    source = read_stored(config, classes)
    for note in source.notes:
        log.warning("%s", note)
    whole = tuple(source.splits.get(name) for name in SPLIT_NAMES)
    used, digest = whole, ""
    if "train" in source.splits:
        try:
            used = divide_splits(config, source)
            digest = fingerprint(source.classes, used)
        except UsageError:  # other data, which the run's fractions do not fit
            if divide:
                raise
    if not digest or not (divide or digest == own_fingerprint):
        used, digest = whole, fingerprint(source.classes, whole)
    data = config.data_dir or config.data
    splits = {
        split.name: with_classes(split, source.classes, classes, data, "the model does not have")
        for split in used
        if split is not None
    }
    return EvaluationData(splits, tuple(source.classes), digest, digest == own_fingerprint)


def read_stored(
    config: Config,
    known_classes: Collection[str] | None = None,
    *,
    listing: Listing | None = None,
    checks_files: bool = True,
) -> StoredData:
    """Read the data set that `config.data` names.

    Args:
        known_classes: those of a trained model that is evaluated; None: the data is to be trained on.
        listing: its images, where `list_files` has listed them already.
        checks_files: that of `read_listing`.
    """
    path, skip_bad = Path(config.data_dir).expanduser(), config.bad_images == "skip"
    reading = (config.grey_limits(), config.in_chans)
    if (
        config.data == "folder" and path.is_file() and not config.is_multilabel
    ):  # an archive, whose decoded images may be in the cache
        return read_image_folder(path, skip_bad, *reading, known_classes)
    if listing is None:
        listing = list_files(config, known_classes)
    if listing is not None:
        return read_listing(
            listing, skip_bad, *reading, is_for_training=known_classes is None, checks_files=checks_files
        )
    classes: Sequence[str]
    train: Split
    val: Split | None
    test: Split | None
    if config.data in CIFAR_STATISTICS:
        classes, train, val, test = _cifar(config)
    elif config.data == "digits":
        classes, train, val, test = _digits()
    else:
        from harness.data.own_datasets import read_own_dataset

        if (own := read_own_dataset(config, needs_train=known_classes is None)) is not None:
            return own
        from harness.data.timm_datasets import read_timm_dataset

        classes, train, val, test = read_timm_dataset(config)
    splits = [split for split in (train, val, test) if split is not None]
    if config.data in FIXED_DATASETS:
        splits = [_with_channels(split, config) for split in splits]
    return StoredData(classes, {split.name: split for split in splits})


def _with_channels(split: Split, config: Config) -> Split:
    """Return a split of RGB images in memory with the channels of the settings.

    Raises:
        UsageError: RGB images are not converted to so many.
    """
    if config.in_chans == RGB:
        return split
    if config.in_chans != GREY:
        raise UsageError(f"in_chans={config.in_chans}, but the images of {config.data} are RGB; set --in-chans 3 or 1")
    assert split.pixels is not None
    return in_memory(split.name, grey_batch(split.pixels), split.labels, split.ids)


def list_files(config: Config, known_classes: Collection[str] | None = None) -> Listing | None:
    """Return the images of a folder, an archive or a table before they are read; None for any other data set.

    Args:
        known_classes: those of a trained model that is evaluated; None: the data is to be trained on.

    Raises:
        DataError: the data is missing or unreadable, or its classes are inconsistent.
        UsageError: a table has no column for its images or labels, or names an image outside of its folder.
    """
    if config.data == "table":
        return list_tables(config, known_classes)
    if config.data != "folder":
        return None
    marked, reason = list_marked_folder(config, known_classes)
    if marked is not None:
        return marked
    if config.is_multilabel:
        raise UsageError(
            f"{config.data_dir} has one label per image, that of its folder, and label_separator or label_columns is of tables; set --data table and --data-dir to the table, and --image-root to the folder"
        )
    try:
        listing = list_image_folder(Path(config.data_dir).expanduser(), known_classes)
    except DataError as error:
        hint = reason or _table_hint(config.data_dir)
        raise DataError(f"{error}; {hint}" if hint else str(error)) from None
    listing.notes += [reason] if reason else []
    return listing


def _table_hint(data_dir: str) -> str:
    """Return how a folder that holds no class folders is read by the tables in it; empty where it has none."""
    path = Path(data_dir).expanduser()
    tables = [file for file in sorted(path.iterdir()) if is_table_name(file)] if path.is_dir() else []
    if not tables:
        return ""
    try:
        files = [file for listed in find_tables(path).values() for file in listed]
    except DataError:  # several tables, none of them named after a split
        files = tables[:1]
    option = f"--data-dir {shlex.quote(str(files[0]))}" if len(files) == 1 else "--data table"
    return f"if {short_list([file.name for file in files])} names the images and their classes: {option}"


def divide_splits(config: Config, source: StoredData) -> tuple[Split, Split | None, Split | None]:
    """Return the training, validation and test images, held out as the settings say.

    Raises:
        UsageError: the fractions do not fit the data.
    """
    train, val, test = (source.splits.get(name) for name in SPLIT_NAMES)
    assert train is not None
    if val is not None and config.val_fraction:
        raise UsageError(
            f"{config.data_dir or config.data} has validation images of its own, which val_fraction={config.val_fraction:g} contradicts; set --val-fraction 0"
        )
    if val is None and test is None:
        train, test = hold_out(train, config.test_fraction, "test", "test_fraction", label_column=config.label_column)
    if config.val_fraction:
        train, val = hold_out(train, config.val_fraction, "val", "val_fraction", label_column=config.label_column)
    return train, val, test


def _cifar(config: Config) -> tuple[Sequence[str], Split, None, Split]:
    from torchvision import datasets

    dataset_class = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.data]
    train, test = (_load_cifar(dataset_class, config, is_train=is_train) for is_train in (True, False))

    def make_split(name: SplitName, dataset: Any) -> Split:
        ids = [f"{name}/{index}" for index in range(len(dataset.targets))]
        return in_memory(name, dataset.data, dataset.targets, ids)

    return train.classes, make_split("train", train), None, make_split("test", test)


def _load_cifar(dataset_class: Any, config: Config, *, is_train: bool) -> Any:
    """Return torchvision's data set, which checks the MD5 of every file before it unpickles any."""
    folder = Path(config.data_dir).expanduser()
    try:
        return dataset_class(folder, train=is_train, download=False)
    except RuntimeError:
        missing = f"{config.data} is not in {folder} (looked for {folder / dataset_class.base_folder})"
    except OSError as error:
        raise DataError(f"{config.data} in {folder} cannot be read: {error.strerror or error}") from None
    if not config.download:
        raise DataError(f"{missing}; set --download True, or --data-dir to the folder that holds it")
    try:
        return dataset_class(folder, train=is_train, download=True)
    except (OSError, RuntimeError) as error:
        reason = first_line(error)
        raise DataError(
            f"{missing} and cannot be downloaded ({reason}); put {dataset_class.url} there, or set --data-dir to the folder that holds it"
        ) from None


def _digits() -> tuple[Sequence[str], Split, None, None]:
    """Return the 1,797 handwritten digits that come with scikit-learn, 8x8 grey enlarged to 32x32 RGB."""
    grey, labels = enlarged_digits()
    pixels = np.repeat(grey[..., None], 3, axis=3)
    ids = [f"digits/{index}" for index in range(len(pixels))]
    return [str(digit) for digit in range(10)], in_memory("train", pixels, labels.copy(), ids), None, None


@functools.cache
def enlarged_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits as grey images, uint8 [N, 32, 32], and their labels, int64 [N], for reading only.

    They are kept, 2 MB, since several seeds or trials of one process load them each; reading takes a sixth of a second.
    """
    values, labels = read_digits_table()
    small = np.rint(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # [N, 8, 8], from 0..16
    large = np.stack([np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in small])
    for array in (large, labels):
        array.flags.writeable = False
    return large, labels


def read_digits_table() -> tuple[np.ndarray, np.ndarray]:
    """Return grey values 0..16 [N, 64] and labels [N] of scikit-learn's digits.

    They are read from scikit-learn's file, because importing its data sets takes a second or more.

    Raises:
        DataError: scikit-learn is not installed.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("data=digits comes with scikit-learn, which is not installed; pip install scikit-learn")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        with gzip.open(path, "rt") as file:
            rows = np.array([line.split(",") for line in file], dtype=float)  # [N, 65]
        return rows[:, :-1], rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # another release may store the file elsewhere

    digits = load_digits()
    return digits.data, digits.target
