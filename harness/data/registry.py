"""The data of a run by its name: splits, classes, statistics and a fingerprint. `load` is the way in."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.config.settings import Config
from harness.data.dataset import (
    Dataset,
    Split,
    Triple,
    channel_statistics,
    check_classes,
    fingerprint,
    hold_out,
    in_memory,
)
from harness.data.image_folder import read_image_folder
from harness.utils.errors import DataError, UsageError

__all__ = ["Dataset", "Split", "load_dataset"]

# Over all pixels of the 50,000 training images. Often seen deviations of 0.20 are means over images, and wrong here.
KNOWN: dict[str, tuple[Triple, Triple]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def load_dataset(config: Config) -> Dataset:
    """The data set that `config.data` names, read from `config.data_dir`.

    A validation split is `val_fraction` of the training images, or the folder's own; a test split is the data's own,
    or `test_fraction`. Both are stratified by class and the same for every seed.

    Raises:
        DataError: the data is missing, unreadable, empty or inconsistent.
        UsageError: no such data is known, or settings do not fit it.
    """
    classes: Sequence[str]
    val: Split | None
    test: Split | None
    skipped: list[str] = []
    if config.data in KNOWN:
        classes, train, val, test = _cifar(config)
    elif config.data == "digits":
        classes, train, val, test = _digits()
    elif config.data == "folder":
        classes, train, val, test, skipped = _folder(config)
    else:
        from harness.data.timm_datasets import read_timm_dataset

        classes, train, val, test = read_timm_dataset(config)
    check_classes(classes, config.classes)
    if val is None and test is None:
        train, test = hold_out(train, config.test_fraction, "test", "test_fraction")
    if config.val_fraction:
        train, val = hold_out(train, config.val_fraction, "val", "val_fraction")
    mean, std = KNOWN.get(config.data) or channel_statistics(train)
    mark = fingerprint(classes, (train, val, test))
    return Dataset(config.data, tuple(classes), train, val, test, mean, std, mark, skipped)


def _cifar(config: Config) -> tuple[Sequence[str], Split, None, Split]:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.data]
    parts = [_cifar_part(kind, config, name) for name in ("train", "test")]
    splits = [
        in_memory(name, part.data, part.targets, [f"{name}/{index}" for index in range(len(part.targets))])
        for name, part in zip(("train", "test"), parts, strict=True)
    ]
    return parts[0].classes, splits[0], None, splits[1]


def _cifar_part(kind: Any, config: Config, name: str) -> Any:
    """torchvision checks the MD5 of every file before it unpickles any."""
    folder = Path(config.data_dir).expanduser()
    try:
        return kind(folder, train=name == "train", download=False)
    except RuntimeError:
        missing = f"{config.data} is not in {folder} (looked for {folder / kind.base_folder})"
    except OSError as error:
        raise DataError(f"{config.data} in {folder} can not be read: {error.strerror or error}") from None
    if not config.download:
        raise DataError(f"{missing}; set --download True, or --data-dir to where it lies")
    try:
        return kind(folder, train=name == "train", download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{missing} and can not be downloaded ({reason}); put {kind.url} there, or set --data-dir to where it lies"
        ) from None


def _digits() -> tuple[Sequence[str], Split, None, None]:
    """The 1,797 handwritten digits that come with scikit-learn, 8x8 grey enlarged to 32x32 RGB."""
    values, labels = _digits_table()
    small = np.rint(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # [N, 8, 8], from 0..16
    large = np.stack([np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in small])
    pixels = np.repeat(large[..., None], 3, axis=3)
    ids = [f"digits/{index}" for index in range(len(pixels))]
    return [str(digit) for digit in range(10)], in_memory("train", pixels, labels, ids), None, None


def _digits_table() -> tuple[np.ndarray, np.ndarray]:
    """Values 0..16 [N, 64] and labels [N], from scikit-learn's file: importing its data sets takes a second or more."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("data=digits comes with scikit-learn, which is not installed; pip install scikit-learn")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        with gzip.open(path, "rt") as file:
            rows = np.array([line.split(",") for line in file], dtype=float)  # [N, 65]
        return rows[:, :-1], rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # another release may keep it elsewhere

    digits = load_digits()
    return digits.data, digits.target


def _folder(config: Config) -> tuple[Sequence[str], Split, Split | None, Split | None, list[str]]:
    found = read_image_folder(Path(config.data_dir).expanduser(), skip_bad=config.bad_images == "skip")
    splits = found.splits
    if "val" in splits and config.val_fraction:
        raise UsageError(
            f"{config.data_dir} has a validation folder, so val_fraction={config.val_fraction:g} is one too many; set --val-fraction 0"
        )
    return found.classes, splits["train"], splits.get("val"), splits.get("test"), found.skipped
