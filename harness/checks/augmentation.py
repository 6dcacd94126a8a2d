"""What really happens to training images: a test pattern goes through the loaders of a run and is read off again.

Red and green of the pattern say where a pixel was, blue that it is no padding. So every image that comes out tells how
it was cropped and mirrored, and where it was covered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from harness.checks.table import CheckRow, row
from harness.config.settings import Config
from harness.data.augment import make_augment
from harness.data.dataset import Dataset, Split, in_memory
from harness.data.device_loader import why_not_on_device
from harness.data.loaders import make_loaders
from harness.data.preprocess import Preprocess, make_preprocess
from harness.data.registry import CIFAR_STATISTICS

SIDE, PADDING, HOLE = 32, 4, 8
# Of 2048 fair coins the share of heads is off by more than 5 standard deviations (0.055) in one of 1.7 million
# experiments; each of 9 offsets is missed by all of them with probability 9 (8/9)^2048, which is 0.
PICTURES, SIGMAS = 2048, 5.0
LOW, STEP, SEEN = 4, 8, 255  # red = LOW + STEP * row, green = LOW + STEP * column, blue = SEEN
CUTS = "a test pattern through the loader"


@dataclass(frozen=True)
class MeasuredAugmentation:
    """What N images came to.

    Attributes:
        kind: the loader.
        top, left: int [N], where the crop starts in the image, negative in the padding; meaningless unless `plain`.
        mirrored: bool [N].
        holes: int [N], pixels of exactly the mean colour.
        boxes: int [N, 2], height and width of what they span.
        over_padding: how many holes lie partly in the padding: they were cut after the crop.
        plain: bool [N]: it is a window of the black-padded image, pixel by pixel, but for its hole.
        altered: the greatest change of a colour outside the hole, grey levels.
    """

    kind: str
    top: np.ndarray
    left: np.ndarray
    mirrored: np.ndarray
    holes: np.ndarray
    boxes: np.ndarray
    over_padding: int
    plain: np.ndarray
    altered: float


def test_pattern(count: int = PICTURES) -> Dataset:
    """A data set of one picture, `count` times, that looks like CIFAR-10 to everything else."""
    place = (LOW + STEP * np.arange(SIDE)).astype(np.uint8)
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = place[:, None], place[None], SEEN
    pixels = np.broadcast_to(image, (count, SIDE, SIDE, 3))
    labels = np.arange(count) % 10
    train: Split = in_memory("train", pixels, labels, [f"train/{index}" for index in range(count)])
    mean, std = CIFAR_STATISTICS["cifar10"]
    return Dataset("cifar10", tuple(map(str, range(10))), train, None, train.subset(np.arange(64), "test"), mean, std, "")


def augmentation_rows(model: nn.Module, config: Config) -> list[CheckRow]:
    """The rows about batches, crop, flip, Cutout and anything else that is done to training images."""
    data, cpu = test_pattern(), torch.device("cpu")
    preprocess = make_preprocess(config, model, data)
    kinds: list[Literal["resident", "timm"]] = ["timm"]
    if config.loader != "timm" and not why_not_on_device(
        config, data, make_augment(config, preprocess), preprocess, cpu
    ):
        kinds.insert(0, "resident")
    measured = [measure(config, data, preprocess, kind) for kind in kinds]
    return [
        batch_row(config, data, preprocess, kinds[0]),
        _agreed("crop", f"RandomCrop {SIDE}, padding {PADDING}", [_crop(each) for each in measured], measured),
        _agreed("flip", "horizontal, share 1/2", [_flip(each) for each in measured], measured),
        _agreed(
            "cutout", f"one hole {HOLE}x{HOLE}, whole, of the mean colour", [_cutout(each) for each in measured], measured
        ),
        _agreed(
            "order", "crop > flip > Cutout, and nothing else", [_order(each, config) for each in measured], measured
        ),
    ]  # fmt: skip


def batch_row(config: Config, data: Dataset, preprocess: Preprocess, kind: Literal["resident", "timm"]) -> CheckRow:
    """How many images an update sees: those of the loader's first batch."""
    how, found = "the loader's first batch", config.batch_size
    if config.batch_size <= len(data.train):
        asked = config.replace(loader=kind, workers=0)
        found = len(next(iter(make_loaders(asked, data, preprocess, "cpu").train.epoch(0)))[1])
    else:
        how = "the setting"
    parts = f", in {config.grad_accumulation} parts" if config.grad_accumulation > 1 else ""
    return row("batch", "512 images an update", f"{found:,} images{parts}", how, found == 512)


def measure(
    config: Config, data: Dataset, preprocess: Preprocess, kind: Literal["resident", "timm"]
) -> MeasuredAugmentation:
    """One epoch of the pattern through a loader, read off."""
    side = preprocess.size
    few = max(64, PICTURES * SIDE**2 // side**2)  # the memory of the usual size, whatever the size
    if few < len(data.train):
        data = test_pattern(few)
    plain = config.replace(loader=kind, workers=0, batch_size=64, grad_accumulation=1, channels_last=False)
    batches = make_loaders(plain, data, preprocess, "cpu").train.epoch(0)
    return _read_off(torch.cat([images for images, _ in batches]).numpy(), preprocess, kind)


def _read_off(images: np.ndarray, preprocess: Preprocess, kind: str) -> MeasuredAugmentation:
    """What was done to each image, float32 [N, 3, H, W], normalised."""
    mean, std = (tensor.numpy() for tensor in preprocess.constants("cpu"))
    hole = (images == 0).all(1)  # [N, H, W]; no colour of the pattern or of the padding is the mean
    levels = images * std + mean  # 0..255
    inside = ~hole & (levels[:, 2] > SEEN / 2)  # neither hole nor padding
    rows, columns = np.arange(images.shape[2])[:, None], np.arange(images.shape[3])[None]
    row_there, column_there = (levels[:, 0] - LOW) / STEP, (levels[:, 1] - LOW) / STEP
    slope = ((column_there - column_there.mean()) * (columns - columns.mean()) * inside).sum((1, 2))
    mirrored = slope < 0
    across = np.where(mirrored[:, None, None], images.shape[3] - 1 - columns, columns)
    top, top_spread = _constant(row_there - rows, inside)
    left, left_spread = _constant(column_there - across, inside)
    clean = (top_spread < 0.05) & (left_spread < 0.05)
    # Where the crop says that the image is, there it must be, and black around it.
    covered = (
        (rows + top[:, None, None] >= 0) & (rows + top[:, None, None] < SIDE)
        & (across + left[:, None, None] >= 0) & (across + left[:, None, None] < SIDE)
    )  # fmt: skip
    black = (np.abs(levels).max(1) < 0.5) | hole
    plain = clean & (np.where(covered, inside | hole, black)).all((1, 2))
    altered = [np.abs(part - part.round())[inside].max() * STEP for part in (row_there, column_there) if inside.any()]
    altered.append(np.abs(levels[:, 2] - SEEN)[inside].max() if inside.any() else 0.0)
    boxes = np.stack([hole.any(2).sum(1), hole.any(1).sum(1)], 1)
    return MeasuredAugmentation(
        kind=kind,
        top=top,
        left=left,
        mirrored=mirrored,
        holes=hole.sum((1, 2)),
        boxes=boxes,
        over_padding=int((hole & ~covered).any((1, 2)).sum()),
        plain=plain,
        altered=float(max(altered)),
    )


def _constant(values: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The constant that [N, H, W] is within `where`, rounded, and how far it is from one."""
    low = np.where(where, values, np.inf).min((1, 2))
    high = np.where(where, values, -np.inf).max((1, 2))
    seen = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(seen, low, 0), np.where(seen, high, 99)
    return np.rint((low + high) / 2).astype(int), high - low


def _crop(each: MeasuredAugmentation) -> tuple[str, bool]:
    if not each.plain.all():
        return f"{100 * (1 - each.plain.mean()):.0f} % are no windows of the image in black padding", False
    tops, lefts = (sorted({int(value) for value in values}) for values in (each.top, each.left))
    wanted = list(range(-PADDING, PADDING + 1))
    if tops == lefts == [0]:
        return "not cropped", False
    return f"offsets {_span(tops)} and {_span(lefts)}", tops == lefts == wanted


def _span(values: list[int]) -> str:
    """Counted from the padding's corner: 0..8 for a padding of 4."""
    shifted = [value - values[0] for value in values]
    whole = shifted == list(range(len(shifted)))
    return f"{shifted[0]}..{shifted[-1]}{'' if whole else f' ({len(values)} of them)'}"


def _flip(each: MeasuredAugmentation) -> tuple[str, bool]:
    share = float(each.mirrored.mean())
    tolerance = SIGMAS * 0.5 / np.sqrt(len(each.mirrored))
    return f"{share:.3f} of {len(each.mirrored):,} (1/2 within {tolerance:.3f})", abs(share - 0.5) <= tolerance


def _cutout(each: MeasuredAugmentation) -> tuple[str, bool]:
    if not each.holes.any():
        return "no hole", False
    sizes = sorted({(int(height), int(width)) for height, width in each.boxes})
    full = bool((each.holes == each.boxes.prod(1)).all())
    shown = " or ".join(f"{height}x{width}" for height, width in sizes[:3]) + (" ..." if len(sizes) > 3 else "")
    found = (
        f"{shown} in every image" if (each.holes > 0).all() else f"{shown}, in {100 * (each.holes > 0).mean():.0f} %"
    )
    return found, sizes == [(HOLE, HOLE)] and full


def _order(each: MeasuredAugmentation, config: Config) -> tuple[str, bool]:
    others = [f"{name} {value:g}" for name in ("mixup", "cutmix") if (value := getattr(config, name))]
    if each.altered > 0.05:
        others.append(f"colours changed by up to {each.altered:.0f} levels")
    if others:
        return f"also {', '.join(others)}", False
    after = f"; {each.over_padding} holes reach into the padding, so after the crop" if each.over_padding else ""
    return f"colours unchanged{after}", True


def _agreed(name: str, wanted: str, told: list[tuple[str, bool]], measured: list[MeasuredAugmentation]) -> CheckRow:
    """One row for all loaders that were measured."""
    said = {text for text, _ in told}
    kinds = [each.kind for each in measured]
    found = (
        told[0][0]
        if len(said) == 1
        else "; ".join(f"{kind}: {text}" for kind, (text, _) in zip(kinds, told, strict=True))
    )
    how = f"{CUTS} ({', '.join(kinds)})"
    return row(name, wanted, found, how, all(agrees for _, agrees in told))
