"""Batches from a data set that is kept in device memory as uint8 and augmented one batch at a time."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from harness.config.settings import Config
from harness.data.augment import Augment, AugmentParameters, apply_augment, draw_parameters, pad
from harness.data.balance import balanced_order
from harness.data.dataset import Dataset, Split
from harness.data.erasing import make_erasing
from harness.data.preprocess import Preprocess
from harness.data.views import with_memory_format
from harness.utils.errors import UsageError
from harness.utils.seeding import seed_for

T = TypeVar("T")


class Sharder(Protocol):
    """The division of a batch or a split among the processes of a run."""

    world_size: int

    def shard(self, num_items: int, /) -> slice:
        """Return the items of this process."""
        ...

    def broadcast(self, value: T) -> T:
        """Return the main process's value."""
        ...


class NoSharding:
    """The division of a run of one process: all items."""

    world_size = 1

    def shard(self, num_items: int, /) -> slice:
        """Return all items."""
        return slice(0, num_items)

    def broadcast(self, value: T) -> T:
        """Return the value."""
        return value


NO_SHARDING = NoSharding()


def count_steps(num_images: int, batch_size: int, drop_last: bool, min_last_batch: int = 2) -> tuple[int, int]:
    """Return the number of batches in an epoch, and the number of images in them.

    A last batch of fewer than `min_last_batch` images is always dropped, because batch normalisation needs several.

    Raises:
        UsageError: there would be no batch.
    """
    if drop_last and batch_size > num_images:
        raise UsageError(
            f"batch_size={batch_size} > {num_images} training images; lower --batch-size, or set --drop-last False"
        )
    if num_images < 2:
        raise UsageError(f"need at least 2 training images, got {num_images}")
    steps, remainder = divmod(num_images, batch_size)
    if drop_last or remainder == 0 or (remainder < min_last_batch and steps):
        return steps, steps * batch_size
    return steps + 1, num_images


def preview_positions(num_images: int, count: int, with_partners: bool) -> list[int]:
    """Return the positions of the first images of a batch, and of those that Mixup and CutMix mix with them.

    timm mixes the first image with the last, the second with the last but one, and so on; of an odd batch, without the
    last one. So the images at these positions, taken as a batch, are mixed as in the whole batch.

    Args:
        num_images: of the batch.
        count: at most so many of the first images.
    """
    if not with_partners:
        return list(range(min(count, num_images)))
    even = num_images - num_images % 2
    if 2 * count >= even:
        return list(range(num_images))
    return [*range(count), *range(even - count, even)]


def epoch_order(num_images: int, seed: int, epoch: int) -> Tensor:
    """Return a random order of all images, int64 [num_images] on the CPU."""
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(seed_for(seed, "order", epoch)))


def training_order(labels: np.ndarray, config: Config, epoch: int) -> Tensor:
    """Return the images of an epoch in the order of `sampling`, int64 [num_images] on the CPU; all loaders share it."""
    if config.sampling == "balanced":
        return balanced_order(labels, config.seed, epoch)
    return epoch_order(len(labels), config.seed, epoch)


def copy_to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return a copy on the device, without waiting for the transfer."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class DeviceTrainLoader:
    """Training batches from padded images on the device; a `TrainLoader`."""

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
        self.steps, self.num_images = count_steps(
            len(split), config.batch_size, config.drop_last, 2 * sharder.world_size
        )
        self._sharder = sharder
        self._augment, self._config, self._size, self._device = augment, config, preprocess.size, device
        self._padded = pad(torch.from_numpy(split.pixels).to(device), augment.padding, augment.padding_mode)
        self._labels = torch.from_numpy(split.labels).to(device)
        self._classes = split.labels  # on the CPU
        self._constants = preprocess.constants(device)
        num_images = self.num_images  # a reference to self would make a cycle, and delay the release of the images
        self._erasing = make_erasing(
            augment,
            preprocess.size,
            config.seed,
            device,
            lambda batch: sharder.shard(min(config.batch_size, num_images - batch * config.batch_size)),
            with_cutout=False,
        )
        self._prepared: tuple[int, Tensor, Tensor, AugmentParameters] | None = None  # the next epoch

    def _prepare(self, epoch: int) -> tuple[int, Tensor, Tensor, AugmentParameters]:
        """Return the epoch, the order of its images, the rows of their augmentation's parameters, and these, on the device."""
        num_images, seed = len(self._labels), self._config.seed
        order = training_order(self._classes, self._config, epoch)
        parameters = draw_parameters(self._augment, self._size, num_images, seed, epoch)
        rows = order
        if self._config.sampling == "balanced":  # an image that comes again is augmented anew
            rows = torch.arange(num_images)
            if self._augment.alternating_flip:
                parameters = replace(parameters, flip=parameters.flip[order])
        order, rows = (copy_to_device(values[: self.num_images], self._device) for values in (order, rows))
        return epoch, order, rows, parameters.map(lambda values: copy_to_device(values, self._device))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images float32 [B, C, H, W] and labels int64 [B] or uint8 [B, C] from batch `start` on.

        The global random generators are not used.
        """
        prepared = self._prepared
        self._prepared = None
        if prepared is None or prepared[0] != epoch:
            prepared = self._prepare(epoch)
        _, order, rows, parameters = prepared
        for batch in range(start, self.steps):
            index, row = self._of_batch(batch, order, rows)
            yield self._images(epoch, batch, index, parameters[row]), self._labels[index]
        if self._device.type == "cuda":  # it still computes the last updates; later it would wait for the next epoch
            self._prepared = self._prepare(epoch + 1)

    def _of_batch(self, batch: int, *of_epoch: Tensor) -> tuple[Tensor, ...]:
        """Return this process's part of a batch of each tensor of an epoch."""
        of_batch = [values[batch * self._config.batch_size :][: self._config.batch_size] for values in of_epoch]
        return tuple(values[self._sharder.shard(len(values))] for values in of_batch)

    def _images(
        self,
        epoch: int,
        batch: int,
        index: Tensor,
        parameters: AugmentParameters,
        positions: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the images at `index` with the augmentation of `parameters`; they have these positions in the process's part of a batch."""
        images = apply_augment(self._padded, index, parameters, self._size, self._augment.cutout, self._constants)
        for erase in self._erasing:
            erase.start(epoch, batch)
            erase(images, positions)
        return images if self._config.channels_last else with_memory_format(images, torch.contiguous_format)

    def preview(self, count: int, with_partners: bool = False) -> tuple[Tensor, Tensor]:
        """Return images at `preview_positions` of the first batch of the first epoch, and their labels."""
        epoch, order, rows, parameters = self._prepare(0)
        index, row = self._of_batch(0, order, rows)
        positions = preview_positions(len(index), count, with_partners)
        index, row = index[positions], row[positions]
        return self._images(epoch, 0, index, parameters[row], positions), self._labels[index]

    def size(self, batch: int) -> int:
        """Return the number of images in a batch, over all processes."""
        return min(self._config.batch_size, self.num_images - batch * self._config.batch_size)


class DeviceEvalLoader:
    """Evaluation batches from images on the device; an `EvalLoader`."""

    def __init__(self, split: Split, preprocess: Preprocess, config: Config, device: torch.device) -> None:
        assert split.pixels is not None
        self.num_images = len(split)
        self._config = config
        self._pixels = torch.from_numpy(split.pixels).to(device)
        self._labels = torch.from_numpy(split.labels).to(device)
        self._mean, self._std = preprocess.constants(device)

    def shard(self, sharder: Sharder) -> DeviceEvalLoader:
        """Return a loader of this process's images."""
        loader, items = copy.copy(self), sharder.shard(self.num_images)
        loader._pixels, loader._labels = self._pixels[items], self._labels[items]
        loader.num_images = len(loader._labels)
        return loader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in order, without augmentation."""
        batch_size = self._config.eval_batch_size
        for start in range(0, self.num_images, batch_size):
            pixels = self._pixels[start : start + batch_size].permute(0, 3, 1, 2)
            images = torch.sub(pixels, self._mean).div_(self._std)
            labels = self._labels[start : start + batch_size]
            yield images if self._config.channels_last else with_memory_format(images, torch.contiguous_format), labels


def why_not_in_batches(config: Config, augment: Augment) -> str | None:
    """Return the reason why training images cannot be augmented in whole batches, or None where they can."""
    if config.augment == "albumentations":
        return "augment=albumentations transforms single images in worker processes"
    if augment.per_image:
        return f"{augment.per_image[0]} transforms single images in worker processes"
    return "crop=resized transforms single images" if augment.crop == "resized" else None


def why_not_on_device(
    data: Dataset, augment: Augment, preprocess: Preprocess, device: torch.device, *, with_training: bool = True
) -> str | None:
    """Return the reason why this data cannot be kept on the device, or None where it can.

    Args:
        with_training: whether that includes the training images.
    """
    size, bytes_needed = preprocess.size, 0
    for split in (data.train, data.val, data.test):
        if split is None or (split is data.train and not with_training):
            continue
        if split.pixels is None:
            return f"the {split.name} images have several sizes, or do not fit in memory"
        height, width = split.pixels.shape[1:3]
        if (height, width) != (size, size):
            return f"the {split.name} images are {width} x {height} pixels, and the model takes {size} x {size}"
        side = size + 2 * augment.padding if split is data.train else size
        bytes_needed += len(split) * side * side * split.pixels.shape[3]
    if preprocess.crop_pct != 1:
        return f"the model's preprocessing enlarges images before the crop (crop_pct={preprocess.crop_pct:g})"
    free = free_memory(device)
    if bytes_needed > free / 4:
        return f"the data needs {bytes_needed / 2**30:.2f} GiB, more than a quarter of the {free / 2**30:.2f} GiB free on {device}"
    return None


def free_memory(device: torch.device) -> int:
    """Return the free memory of the device in bytes; on a CPU it includes the caches that the system would release."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):  # not Linux: half of the physical memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
