"""Batches that worker processes make image by image: for data that does not fit on the device, or transforms of single images."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from harness.config.settings import Config
from harness.data.augment import Augment, alternating_flips
from harness.data.balance import occurrences
from harness.data.dataset import Label, Split
from harness.data.device_loader import NO_SHARDING, Sharder, count_steps, preview_positions, training_order
from harness.data.erasing import SeededErasing, make_erasing
from harness.data.image_transforms import AlbumentationsTransform, TimmTransform, albumentations_compose, seeded_rng
from harness.data.own_transforms import find_transforms
from harness.data.preprocess import Preprocess
from harness.data.views import with_memory_format
from harness.data.worker_pool import WorkerPool, iterate_checked, send_limit
from harness.utils.environment import usable_cpus
from harness.utils.errors import DataError, UsageError, first_line
from harness.utils.seeding import seed_for

# (epoch, index of the image), and how often it came before in the epoch, where it did
Key: TypeAlias = tuple[int, int] | tuple[int, int, int]


class AugmentedDataset(Dataset):
    """Augmented training images by (epoch, index): a pure function of these and the seed, in any process."""

    def __init__(self, source: Any, transform: TimmTransform | AlbumentationsTransform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed
        self._flips: tuple[int, np.ndarray] | None = None  # an epoch, and whether each image is mirrored in it

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> tuple[np.ndarray, Label]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> list[tuple[np.ndarray, Label]]:
        """Return a whole batch; torch's loader calls this, so the generators are restored only once per batch."""
        with seeded_rng(0, numpy=self.transform.draws_numpy):
            return [self._load(*key) for key in keys]

    def _load(self, epoch: int, index: int, repetition: int = 0) -> tuple[np.ndarray, Label]:
        image, label = self.source[index]
        repeated = (repetition,) if repetition else ()
        pixels = self.transform(image, seed_for(self.seed, "augment", epoch, index, *repeated))
        if self.transform.augment.alternating_flip and self._is_mirrored(epoch, index):
            pixels = np.ascontiguousarray(pixels[..., ::-1])
        return pixels, label

    def _is_mirrored(self, epoch: int, index: int) -> bool:
        if self._flips is None or self._flips[0] != epoch:
            self._flips = epoch, alternating_flips(len(self), self.seed, epoch).numpy()
        return bool(self._flips[1][index])


def try_pipeline(transform: TimmTransform | AlbumentationsTransform, split: Split) -> None:
    """Refuse a pipeline of the user's that fails, or gives no input of the network, on the first image of the split.

    Raises:
        UsageError: it does.
    """
    image, _ = split.source[0]
    try:
        transform(image, 0)
    except DataError as error:
        raise UsageError(f"{error} ({split.ids[0]})") from None
    except Exception as error:  # noqa: BLE001 - what a transform raises is not known
        raise UsageError(f"augment_pipeline fails on {split.ids[0]}: {first_line(error)[:200]}") from None


def try_transforms(transform: TimmTransform, split: Split) -> None:
    """Refuse transforms of plug-ins that fail, or return no image of their input's size, on the first image of the split.

    Raises:
        UsageError: one does.
    """
    try:
        with seeded_rng(0, numpy=True):
            transform(split.source[0][0], 0)
    except DataError as error:
        raise UsageError(f"{error} ({split.ids[0]})") from None


class EvalDataset(Dataset):
    """Evaluation images, resized and cropped for the model; the normalisation follows on the device."""

    def __init__(self, source: Any, preprocess: Preprocess) -> None:
        self.source, self.preprocess = source, preprocess

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Label]:
        image, label = self.source[index]
        return self.preprocess.pixels(image).numpy(), label


def repeat_images(order: Sequence[int], repeats: float) -> list[tuple[int, int]]:
    """Return as many (image, repetition) as there are images in `order`: the first ones, each `repeats` times in a row.

    The order of timm's RepeatAugSampler, also for a number that is not whole: the image at place i of the list is that at
    place `i // repeats` of `order`.
    """
    repeated: list[tuple[int, int]] = []
    for place in range(len(order)):
        image = order[int(place // repeats)]
        is_next = bool(repeated) and repeated[-1][0] == image
        repeated.append((image, repeated[-1][1] + 1 if is_next else 0))
    return repeated


class EpochOrder(Sampler[list[Key]]):
    """The batches of one epoch as lists of keys, from batch `start` on, so that skipped images are not decoded.

    Attributes:
        repeats: how often an epoch shows each of its images.
        epoch, start: what the next iteration serves.
    """

    def __init__(self, labels: np.ndarray, steps: int, config: Config, sharder: Sharder, repeats: float = 1.0) -> None:
        self.labels, self.steps, self.config, self.sharder = labels, steps, config, sharder
        self.repeats = repeats
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        batch_size, epoch = self.config.batch_size, self.epoch
        order = training_order(self.labels, self.config, epoch)
        images = [(index, 0) for index in order.tolist()]
        if self.config.sampling == "balanced":
            images = list(zip(order.tolist(), occurrences(order.numpy()).tolist(), strict=True))
        elif self.repeats > 1:
            images = repeat_images(order.tolist(), self.repeats)
        keys: list[Key] = [(epoch, index, number) if number else (epoch, index) for index, number in images]
        for batch in range(self.start, self.steps):
            of_batch = keys[batch * batch_size : (batch + 1) * batch_size]
            yield of_batch[self.sharder.shard(len(of_batch))]


class WorkerTrainLoader:
    """Training batches from worker processes through timm's PrefetchLoader; a `TrainLoader`.

    Attributes:
        workers: its processes.
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
        self.steps, self.num_images = count_steps(
            len(split), config.batch_size, config.drop_last, 2 * sharder.world_size
        )
        self._config = config
        self._order = EpochOrder(split.labels, self.steps, config, sharder, augment.repeats)
        # Without a reference to self: the cycle would delay its deletion, and with it the end of its workers.
        batch_size, num_images = config.batch_size, self.num_images
        if config.augment == "albumentations":
            transform: TimmTransform | AlbumentationsTransform = AlbumentationsTransform(augment, preprocess)
            # What is wrong with the package or with a pipeline is reported here rather than by a worker.
            albumentations_compose(augment, preprocess)
            if augment.pipeline:
                try_pipeline(transform, split)
        else:
            transform = TimmTransform(augment, preprocess, own := find_transforms(config))
            if own:
                try_transforms(transform, split)
        self._erasing = make_erasing(
            augment,
            preprocess.size,
            config.seed,
            device,
            lambda batch: sharder.shard(min(batch_size, num_images - batch * batch_size)),
            with_cutout=not transform.normalised,  # albumentations cuts out itself
        )
        self._dataset, self._preprocess, self._device = (
            AugmentedDataset(split.source, transform, config.seed),
            preprocess,
            device,
        )
        loader, self.workers = _make_dataloader(self._dataset, config, device, batch_sampler=self._order)
        self._batches = _prefetch(loader, preprocess, device, normalised=transform.normalised, erasing=self._erasing)
        self._iteration = 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images float32 [B, channels, H, W] (or [B, views, channels, H, W]) and labels int64 [B] or uint8 [B, C] from batch `start` on.

        The global random generators are not used.

        Raises:
            RuntimeError: another epoch was started since, which the worker processes serve instead.
        """
        self._iteration += 1
        iteration = self._iteration
        self._order.epoch, self._order.start = epoch, start
        for erase in self._erasing:
            erase.start(epoch, start)
        if start >= self.steps:
            return
        for images, labels in iterate_checked(self._batches, self.workers):
            yield _set_memory_format(images, self._config), labels
            if iteration != self._iteration:
                raise RuntimeError(
                    f"epoch {epoch} was abandoned for another one; start it again with epoch({epoch}, start=...)"
                )

    def preview(self, count: int, with_partners: bool = False) -> tuple[Tensor, Tensor]:
        """Return images at `preview_positions` of the first batch of the first epoch, and their labels.

        They are made in this process, since an epoch that is begun and left would keep the workers busy.
        """
        first = copy.copy(self._order)
        first.epoch, first.start = 0, 0
        keys = next(iter(first))
        positions = preview_positions(len(keys), count, with_partners)
        images, labels = _collate(self._dataset.__getitems__([keys[position] for position in positions]))
        images, labels = images.to(self._device), labels.to(self._device)
        if not self._dataset.transform.normalised:
            images = self._preprocess.normalise(images)
        for erase in map(copy.copy, self._erasing):  # an epoch may be under way
            erase.start(0, 0)
            erase(images, positions)
        return _set_memory_format(images, self._config), labels

    def size(self, batch: int) -> int:
        """Return the number of images in a batch, over all processes."""
        return min(self._config.batch_size, self.num_images - batch * self._config.batch_size)


class WorkerEvalLoader:
    """Evaluation batches from worker processes; an `EvalLoader`."""

    def __init__(
        self, split: Split, preprocess: Preprocess, config: Config, device: torch.device, sharder: Sharder = NO_SHARDING
    ) -> None:
        items = range(len(split))[sharder.shard(len(split))]
        self.num_images = len(items)
        self._config, self._arguments = config, (split, preprocess, config, device)
        dataset = Subset(EvalDataset(split.source, preprocess), items)
        loader, self.workers = _make_dataloader(dataset, config, device, batch_size=config.eval_batch_size)
        self._batches = _prefetch(loader, preprocess, device, normalised=False, erasing=[])

    def shard(self, sharder: Sharder) -> WorkerEvalLoader:
        """Return a loader of this process's images."""
        return WorkerEvalLoader(*self._arguments, sharder)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in order, without augmentation."""
        for images, labels in iterate_checked(self._batches, self.workers):
            yield _set_memory_format(images, self._config), labels


def count_workers(workers: int, device: torch.device) -> int:
    """Return the number of worker processes for the setting `workers`.

    -1 means 2 for a CPU, so that training keeps its cores; for a GPU at most 16 of the cores that this process may use,
    divided among the processes that torchrun started on this machine.
    """
    if workers >= 0:
        return workers
    cores = usable_cpus()
    if device.type == "cpu":
        return min(2, cores)
    return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _make_dataloader(
    dataset: Dataset, config: Config, device: torch.device, **arguments: Any
) -> tuple[DataLoader, WorkerPool]:
    num_workers = count_workers(config.workers, device)
    try:
        workers = WorkerPool(num_workers)
    except OSError as error:  # its arrays are in shared memory too
        if (known := send_limit(str(error))) is None:
            raise
        raise known from None
    loader = DataLoader(
        dataset,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=_collate,
        worker_init_fn=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the default would draw from the global generator for every iteration
        **arguments,
    )
    return loader, workers


def _prefetch(
    loader: DataLoader,
    preprocess: Preprocess,
    device: torch.device,
    *,
    normalised: bool,
    erasing: Sequence[SeededErasing],
) -> Iterable[tuple[Tensor, Tensor]]:
    """Wrap the loader in timm's PrefetchLoader, which copies batches to the device ahead, normalises and erases."""
    from timm.data.loader import PrefetchLoader

    # For images that are normalised already: subtracts 0 and divides by 255 * (1 / 255) = 1, which is exact.
    channels = preprocess.channels
    mean, std = ((0.0,) * channels, (1 / 255,) * channels) if normalised else (preprocess.mean, preprocess.std)
    batches = PrefetchLoader(loader, mean=mean, std=std, channels=channels, device=device)
    batches.random_erasing = functools.partial(_erase, erasing) if erasing else None
    return batches


def _erase(erasing: Sequence[SeededErasing], images: Tensor) -> Tensor:
    for erase in erasing:
        images = erase(images)
    return images


def _collate(samples: list[tuple[np.ndarray, Label]]) -> tuple[Tensor, Tensor]:
    images, labels = [image for image, _ in samples], [label for _, label in samples]
    has_several = isinstance(labels[0], np.ndarray)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)) if has_several else torch.tensor(
        labels
    )


def _set_memory_format(images: Tensor, config: Config) -> Tensor:
    return with_memory_format(images, torch.channels_last if config.channels_last else torch.contiguous_format)
