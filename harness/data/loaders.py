"""Make the loaders of a run, which serve equivalent batches from device memory or from worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from harness.config.settings import Config
from harness.data.augment import make_augment
from harness.data.dataset import Dataset, Split
from harness.data.device_loader import (
    NO_SHARDING,
    DeviceEvalLoader,
    DeviceTrainLoader,
    Sharder,
    free_memory,
    why_not_in_batches,
    why_not_on_device,
)
from harness.data.preprocess import Preprocess
from harness.data.worker_loader import WorkerEvalLoader, WorkerTrainLoader
from harness.utils.errors import UsageError

# images float32 [B, channels, H, W], with `aug_splits` [B, views, channels, H, W], in training
Batch: TypeAlias = tuple[Tensor, Tensor]  # images, labels int64 [B] or uint8 [B, C], on the device


class TrainLoader(Protocol):
    """Augmented and normalised training batches, a pure function of (seed, epoch, batch).

    Attributes:
        steps: batches in an epoch.
        num_images: images in an epoch.
    """

    steps: int
    num_images: int

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of this process in an epoch, from batch `start` on."""
        ...

    def size(self, batch: int) -> int:
        """Return the number of images in a batch, over all processes."""
        ...

    def preview(self, count: int, with_partners: bool = False) -> Batch:
        """Return the first images of this process in the first batch of the first epoch, as `epoch` yields them.

        Args:
            with_partners: return also those that Mixup and CutMix mix with them, see `preview_positions`.
        """
        ...


class EvalLoader(Protocol):
    """Every image of a split once, in order and without augmentation; the last batch may be smaller."""

    num_images: int

    def __iter__(self) -> Iterator[Batch]: ...

    def shard(self, sharder: Sharder) -> EvalLoader:
        """Return a loader of this process's images."""
        ...


@dataclass(frozen=True)
class Loaders:
    """The loaders of a run.

    Attributes:
        kind: of the training images. `resident`: they are kept on the device; `timm`: worker processes read them, through
            timm's loader. Evaluation images are kept on the device where they fit, unless `loader` is `timm`.
    """

    train: TrainLoader
    val: EvalLoader | None
    test: EvalLoader | None
    kind: Literal["resident", "timm"]

    def close(self) -> None:
        """End the worker processes; no batch can be read after that.

        torch ends them when its loader is deleted. Where an error's traceback keeps the loader in a reference cycle, the
        garbage collector may delete its queues first, and torch waits 5 s for each worker.
        """
        for loader in (self.train, self.val, self.test):
            if isinstance(loader, WorkerTrainLoader | WorkerEvalLoader):
                loader.workers.kill()


def make_loaders(
    config: Config, data: Dataset, preprocess: Preprocess, device: torch.device | str, sharder: Sharder = NO_SHARDING
) -> Loaders:
    """Make the loaders of all splits, by `config.loader`.

    Args:
        sharder: divides each training batch among processes; evaluation loaders serve whole splits until `shard`.

    Raises:
        UsageError: the settings contradict each other, the data or the device.
    """
    device = torch.device(device)
    augment = make_augment(config, preprocess)
    of_augmentation = why_not_in_batches(config, augment)
    of_images: str | None = "loader=timm"
    if config.loader != "timm":
        of_images = why_not_on_device(data, augment, preprocess, device, with_training=of_augmentation is None)
    # The main process decides for all: free memory differs between GPUs, and the two loaders' batches are not the same.
    of_images = sharder.broadcast(of_images)
    if (reason := of_augmentation or of_images) and config.loader == "resident":
        raise UsageError(f"loader=resident is not possible: {reason}; set --loader auto")
    is_resident = reason is None
    train_loader = DeviceTrainLoader if is_resident else WorkerTrainLoader
    # Images that are only augmented one by one need no processes of their own in evaluation.
    eval_loader = DeviceEvalLoader if of_images is None else WorkerEvalLoader
    return Loaders(
        train_loader(data.train, augment, preprocess, config, device, sharder),
        None if data.val is None else eval_loader(data.val, preprocess, config, device),
        None if data.test is None else eval_loader(data.test, preprocess, config, device),
        "resident" if is_resident else "timm",
    )


def make_eval_loader(split: Split, preprocess: Preprocess, config: Config, device: torch.device | str) -> EvalLoader:
    """Make the loader of one split: from device memory where the images already have the model's input size."""
    device, pixels = torch.device(device), split.pixels
    fits = pixels is not None and pixels.shape[1:3] == (preprocess.size, preprocess.size) and preprocess.crop_pct == 1
    if fits and config.loader != "timm" and pixels is not None and pixels.nbytes <= free_memory(device) / 4:
        return DeviceEvalLoader(split, preprocess, config, device)
    return WorkerEvalLoader(split, preprocess, config, device)
