"""Measure what the loaders do to training images, from a test pattern that is sent through them.

Red and green of the pattern encode the position of a pixel, blue that it is not padding. So every image of a batch shows
how it was cropped and flipped, and where its cutout is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from harness.checks.finished_run import BATCH_SIZE, BATCH_WANTED
from harness.checks.table import CheckRow, row
from harness.config.augmentation import per_image_settings
from harness.config.settings import Config
from harness.data.augment import make_augment
from harness.data.dataset import Dataset, Split, fit_channels, in_memory
from harness.data.device_loader import why_not_in_batches, why_not_on_device
from harness.data.image_io import RGB
from harness.data.loaders import make_loaders
from harness.data.preprocess import Preprocess, make_preprocess
from harness.data.registry import CIFAR_STATISTICS
from harness.utils.text import percent

SIZE, PADDING, CUTOUT = 32, 4, 8
# Of 2048 fair coins the fraction of heads is off by more than 5 standard deviations (0.055) in one of 1.7 million
# experiments; each of 9 offsets is missed by all of them with probability 9 (8/9)^2048, which is 0.
IMAGES, SIGMAS = 2048, 5.0
LOW, STEP, BLUE = 4, 8, 255  # red = LOW + STEP * row, green = LOW + STEP * column, blue = BLUE
LoaderKind: TypeAlias = Literal["resident", "timm"]


@dataclass(frozen=True)
class MeasuredAugmentation:
    """The augmentation of N images.

    Attributes:
        kind: the loader.
        top, left: int [N], first row and column of the crop in the image, negative in the padding; only valid where
            `is_crop`.
        flipped: bool [N].
        cutout_pixels: int [N], pixels of exactly the mean colour.
        cutout_sizes: int [N, 2], height and width of the box around them.
        over_padding: number of cutouts that lie partly in the padding, so that they were made after the crop.
        is_crop: bool [N], whether the image is a window of the black-padded original, except for its cutout.
        colour_change: the greatest change of a colour outside the cutout, grey levels 0..255.
    """

    kind: str
    top: np.ndarray
    left: np.ndarray
    flipped: np.ndarray
    cutout_pixels: np.ndarray
    cutout_sizes: np.ndarray
    over_padding: int
    is_crop: np.ndarray
    colour_change: float


def pattern_dataset(count: int = IMAGES) -> Dataset:
    """Return a data set of `count` copies of the test pattern, with the classes and statistics of CIFAR-10."""
    positions = (LOW + STEP * np.arange(SIZE)).astype(np.uint8)
    image = np.empty((SIZE, SIZE, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = positions[:, None], positions[None], BLUE
    pixels = np.broadcast_to(image, (count, SIZE, SIZE, 3))
    labels = np.arange(count) % 10
    train: Split = in_memory("train", pixels, labels, [f"train/{index}" for index in range(count)])
    mean, std = CIFAR_STATISTICS["cifar10"]
    return Dataset(
        "cifar10", tuple(map(str, range(10))), train, None, train.subset(np.arange(64), "test"), mean, std, ""
    )


def augmentation_rows(model: nn.Module, config: Config) -> list[CheckRow]:
    """Return the rows about the batch, crop, flip, cutout and any other augmentation of training images."""
    data, cpu = pattern_dataset(), torch.device("cpu")
    of_run = make_preprocess(config, model, data)
    # The pattern is RGB, whatever the images of the run are.
    mean, std = (fit_channels(values, RGB) for values in (of_run.mean, of_run.std))
    config, preprocess = config.replace(in_chans=RGB), replace(of_run, mean=mean, std=std)
    kinds: list[LoaderKind] = ["timm"]
    augment = make_augment(config, preprocess)
    reason = why_not_in_batches(config, augment) or why_not_on_device(data, augment, preprocess, cpu)
    if config.loader != "timm" and not reason:
        kinds.insert(0, "resident")
    measured = [measure_loader(config, data, preprocess, kind) for kind in kinds]
    return [
        batch_row(config, data, preprocess, kinds[0]),
        _row("crop", f"RandomCrop({SIZE}, padding={PADDING})", [_crop(each) for each in measured], kinds),
        _row("flip", "horizontal, probability 1/2", [_flip(each) for each in measured], kinds),
        _row("cutout", f"one {CUTOUT}x{CUTOUT} cutout inside the image, of the mean colour", [_cutout(each) for each in measured], kinds),
        _row("order", "crop, flip, cutout, and nothing else", [_order(each, config) for each in measured], kinds),
    ]  # fmt: skip


def batch_row(config: Config, data: Dataset, preprocess: Preprocess, kind: LoaderKind) -> CheckRow:
    """Return the row about the images per update: those of the loader's first batch."""
    how, images = "the loader's first batch", config.batch_size
    if config.batch_size <= len(data.train):
        settings = config.replace(loader=kind, workers=0)
        images = len(next(iter(make_loaders(settings, data, preprocess, "cpu").train.epoch(0)))[1])
    else:
        how = "the setting"
    parts = f", in {config.grad_accumulation} parts" if config.grad_accumulation > 1 else ""
    is_balanced = config.sampling == "balanced"
    order = ", images of rare classes several times an epoch (sampling=balanced)" * is_balanced
    return row("batch", BATCH_WANTED, f"{images:,} images{parts}{order}", how, images == BATCH_SIZE and not is_balanced)


def measure_loader(config: Config, data: Dataset, preprocess: Preprocess, kind: LoaderKind) -> MeasuredAugmentation:
    """Measure one epoch of the test pattern through a loader."""
    count = max(64, IMAGES * SIZE**2 // preprocess.size**2)  # larger images, but no more memory
    if count < len(data.train):
        data = pattern_dataset(count)
    settings = config.replace(loader=kind, workers=0, batch_size=64, grad_accumulation=1, channels_last=False)
    batches = make_loaders(settings, data, preprocess, "cpu").train.epoch(0)
    images = torch.cat([images for images, _ in batches])
    return measure_images((images if images.ndim == 4 else images[:, -1]).numpy(), preprocess, kind)


def measure_images(images: np.ndarray, preprocess: Preprocess, kind: str) -> MeasuredAugmentation:
    """Measure the augmentation of each image, float32 [N, channels, H, W], normalised."""
    mean, std = (tensor.numpy() for tensor in preprocess.constants("cpu"))
    cutout = (images == 0).all(1)  # [N, H, W]; no colour of the pattern or of the padding is the mean
    levels = images * std + mean  # 0..255
    inside = ~cutout & (levels[:, 2] > BLUE / 2)  # neither cutout nor padding
    rows, columns = np.arange(images.shape[2])[:, None], np.arange(images.shape[3])[None]
    source_rows, source_columns = (levels[:, 0] - LOW) / STEP, (levels[:, 1] - LOW) / STEP
    slope = ((source_columns - source_columns.mean()) * (columns - columns.mean()) * inside).sum((1, 2))
    flipped = slope < 0
    across = np.where(flipped[:, None, None], images.shape[3] - 1 - columns, columns)
    top, top_spread = _constant(source_rows - rows, inside)
    left, left_spread = _constant(source_columns - across, inside)
    is_shift = (top_spread < 0.05) & (left_spread < 0.05)
    # Where the crop has the image, the image must be; elsewhere it must be black.
    expected = (
        (rows + top[:, None, None] >= 0) & (rows + top[:, None, None] < SIZE)
        & (across + left[:, None, None] >= 0) & (across + left[:, None, None] < SIZE)
    )  # fmt: skip
    black = (np.abs(levels).max(1) < 0.5) | cutout
    is_crop = is_shift & (np.where(expected, inside | cutout, black)).all((1, 2))
    positions = (source_rows, source_columns)
    changes = [np.abs(part - part.round())[inside].max() * STEP for part in positions if inside.any()]
    changes.append(np.abs(levels[:, 2] - BLUE)[inside].max() if inside.any() else 0.0)
    return MeasuredAugmentation(
        kind=kind,
        top=top,
        left=left,
        flipped=flipped,
        cutout_pixels=cutout.sum((1, 2)),
        cutout_sizes=np.stack([cutout.any(2).sum(1), cutout.any(1).sum(1)], 1),
        over_padding=int((cutout & ~expected).any((1, 2)).sum()),
        is_crop=is_crop,
        colour_change=float(max(changes)),
    )


def _constant(values: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rounded constant of each image of [N, H, W] within `where`, and the range of its values there."""
    low = np.where(where, values, np.inf).min((1, 2))
    high = np.where(where, values, -np.inf).max((1, 2))
    is_known = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(is_known, low, 0), np.where(is_known, high, 99)
    return np.rint((low + high) / 2).astype(int), high - low


def _crop(measured: MeasuredAugmentation) -> tuple[str, bool]:
    if not measured.is_crop.all():
        return f"{percent(1 - measured.is_crop.mean(), 0)} are no crops of the black-padded image", False
    tops, lefts = (sorted({int(value) for value in values}) for values in (measured.top, measured.left))
    if tops == lefts == [0]:
        return "not cropped", False
    return f"offsets {_span(tops)} and {_span(lefts)}", tops == lefts == list(range(-PADDING, PADDING + 1))


def _span(values: list[int]) -> str:
    """Return offsets counted from the corner of the padding: 0..8 for a padding of 4."""
    shifted = [value - values[0] for value in values]
    is_whole = shifted == list(range(len(shifted)))
    return f"{shifted[0]}..{shifted[-1]}{'' if is_whole else f' ({len(values)} of them)'}"


def _flip(measured: MeasuredAugmentation) -> tuple[str, bool]:
    fraction = float(measured.flipped.mean())
    tolerance = SIGMAS * 0.5 / np.sqrt(len(measured.flipped))
    description = f"{fraction:.3f} of {len(measured.flipped):,} images (tolerance {tolerance:.3f})"
    return description, abs(fraction - 0.5) <= tolerance


def _cutout(measured: MeasuredAugmentation) -> tuple[str, bool]:
    if not measured.cutout_pixels.any():
        return "no cutout", False
    sizes = sorted({(int(height), int(width)) for height, width in measured.cutout_sizes})
    is_filled = bool((measured.cutout_pixels == measured.cutout_sizes.prod(1)).all())
    shown = " or ".join(f"{height}x{width}" for height, width in sizes[:3]) + (" ..." if len(sizes) > 3 else "")
    fraction = float((measured.cutout_pixels > 0).mean())
    description = f"{shown} in every image" if fraction == 1 else f"{shown} in {percent(fraction, 0)} of the images"
    return description, sizes == [(CUTOUT, CUTOUT)] and is_filled


def _order(measured: MeasuredAugmentation, config: Config) -> tuple[str, bool]:
    others = [f"{name} {value:g}" for name in ("mixup", "cutmix") if (value := getattr(config, name))]
    if config.augment != "none":
        others += per_image_settings(config) + ([f"erasing={config.erasing:g}"] if config.erasing else [])
    if measured.colour_change > 0.05:
        others.append(f"colours changed by up to {measured.colour_change:.0f} levels")
    if others:
        return f"also {', '.join(others)}", False
    count = measured.over_padding
    order = f"; {count} cutouts overlap the padding, so the crop comes first" if count else ""
    return f"colours unchanged{order}", True


def _row(name: str, wanted: str, results: list[tuple[str, bool]], kinds: Sequence[LoaderKind]) -> CheckRow:
    """Return one row for all loaders that were measured."""
    texts = [text for text, _ in results]
    description = texts[0]
    if len(set(texts)) > 1:
        description = "; ".join(f"{kind}: {text}" for kind, text in zip(kinds, texts, strict=True))
    how = f"a test pattern through the loader ({', '.join(kinds)})"
    return row(name, wanted, description, how, all(agrees for _, agrees in results))
