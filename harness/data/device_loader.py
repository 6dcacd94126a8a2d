"""Batches out of a data set that lies on the device as bytes: augmented a batch at a time, with nothing to wait for."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from harness.config.settings import Config
from harness.data.augment import Augment, apply_augment, draw_parameters, pad
from harness.data.dataset import Dataset, Split
from harness.data.preprocess import Preprocess
from harness.utils.errors import UsageError
from harness.utils.seeding import seed_for


class Sharder(Protocol):
    """Which part of a batch or of a split is a process' own."""

    world_size: int

    def shard(self, things: int) -> slice: ...


class NoSharding:
    """The share of a process that is alone."""

    world_size = 1

    def shard(self, things: int) -> slice:
        return slice(0, things)


NO_SHARDING = NoSharding()


def count_steps(images: int, batch_size: int, drop_last: bool, least: int = 2) -> tuple[int, int]:
    """How many batches an epoch has, and how many images they hold together.

    A last batch of fewer than `least` images is left out in any case: batch normalisation has nothing to normalise by.

    Raises:
        UsageError: there would be no batch.
    """
    if drop_last and batch_size > images:
        raise UsageError(
            f"batch_size={batch_size} > {images} training images; lower --batch-size, or set --drop-last False"
        )
    if images < 2:
        raise UsageError(f"need at least 2 training images, got {images}")
    steps, rest = divmod(images, batch_size)
    if drop_last or rest == 0 or (rest < least and steps):
        return steps, steps * batch_size
    return steps + 1, images


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in an epoch, int64 [count] on the CPU, the same on every machine and loader."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_for(seed, "order", epoch)))


def copy_to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values on the device, without waiting until they are there."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class DeviceTrainLoader:
    """Training batches from a padded store on the device; satisfies `Batches`.

    Attributes:
        steps: batches in an epoch.
        images: images in an epoch.
    """

    def __init__(
        self,
        split: Split,
        augment: Augment,
        preprocess: Preprocess,
        config: Config,
        device: torch.device,
        sharder: Sharder = NO_SHARDING,
    ) -> None:
        assert split.pixels is not None
        self.steps, self.images = count_steps(len(split), config.batch_size, config.drop_last, 2 * sharder.world_size)
        self._sharder = sharder
        self._augment, self._config, self._size, self._device = augment, config, preprocess.size, device
        self._store = pad(torch.from_numpy(split.pixels).to(device), augment.padding, augment.padding_mode)
        self._labels = torch.from_numpy(split.labels).to(device)
        self._constants = preprocess.constants(device)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 [B, 3, H, W] and labels int64 [B], from batch `start` on. Draws nothing from global generators."""
        size, count, seed = self._config.batch_size, len(self._labels), self._config.seed
        order = copy_to_device(epoch_order(count, seed, epoch)[: self.images], self._device)
        drawn = draw_parameters(self._augment, self._size, count, seed, epoch).map(
            lambda values: copy_to_device(values, self._device)
        )
        for batch in range(start, self.steps):
            index = order[batch * size : (batch + 1) * size]
            index = index[self._sharder.shard(len(index))]
            images = apply_augment(self._store, index, drawn[index], self._size, self._augment.cutout, self._constants)
            yield images if self._config.channels_last else images.contiguous(), self._labels[index]

    def size(self, batch: int) -> int:
        """Images of a batch, in all processes together."""
        return min(self._config.batch_size, self.images - batch * self._config.batch_size)


class DeviceEvalLoader:
    """Evaluation batches from a store on the device; satisfies `EvalBatches`."""

    def __init__(self, split: Split, preprocess: Preprocess, config: Config, device: torch.device) -> None:
        assert split.pixels is not None
        self.images = len(split)
        self._config = config
        self._store = torch.from_numpy(split.pixels).to(device)
        self._labels = torch.from_numpy(split.labels).to(device)
        self._mean, self._std = preprocess.constants(device)

    def part(self, sharder: Sharder) -> DeviceEvalLoader:
        """Those of the images that are one process' share."""
        part, mine = copy.copy(self), sharder.shard(self.images)
        part._store, part._labels = self._store[mine], self._labels[mine]
        part.images = len(part._labels)
        return part

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order, not augmented."""
        size = self._config.eval_batch_size
        for start in range(0, self.images, size):
            pixels = self._store[start : start + size].permute(0, 3, 1, 2)
            images = torch.sub(pixels, self._mean).div_(self._std)
            yield images if self._config.channels_last else images.contiguous(), self._labels[start : start + size]


def why_not_on_device(
    config: Config, data: Dataset, augment: Augment, preprocess: Preprocess, device: torch.device
) -> str | None:
    """Why this data can not be kept on the device, or None when it can."""
    if config.augment == "albumentations":
        return "augment=albumentations works on single images in worker processes"
    if augment.crop == "resized":
        return "crop=resized works on single images"
    size, bytes_needed = preprocess.size, 0
    for split in (data.train, data.val, data.test):
        if split is None:
            continue
        if split.pixels is None:
            return f"the {split.name} images have several sizes, or are too many for memory"
        height, width = split.pixels.shape[1:3]
        if (height, width) != (size, size):
            return f"the {split.name} images are {width} x {height} pixels, and the model sees {size} x {size}"
        side = size + 2 * augment.padding if split is data.train else size
        bytes_needed += len(split) * side * side * 3
    if preprocess.crop_pct != 1:
        return f"the model wants its images enlarged before they are cropped (crop_pct={preprocess.crop_pct:g})"
    free = free_memory(device)
    if bytes_needed > free / 4:
        return f"it needs {bytes_needed / 2**30:.2f} GiB, more than a quarter of the {free / 2**30:.2f} GiB free on {device}"
    return None


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on the device; on a CPU including what the system would give back of its caches."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):  # not Linux: half of what is built in
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
