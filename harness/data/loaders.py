"""The batches of a run, from the device's memory or from worker processes, with the same meaning."""

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
    why_not_on_device,
)
from harness.data.preprocess import Preprocess
from harness.data.worker_loader import WorkerEvalLoader, WorkerTrainLoader
from harness.utils.errors import UsageError

Batch: TypeAlias = tuple[Tensor, Tensor]  # images float32 [B, 3, H, W], labels int64 [B], on the device


class TrainLoader(Protocol):
    """Training batches: a pure function of (seed, epoch, batch).

    Attributes:
        steps: batches in an epoch.
        images: images in an epoch.
    """

    steps: int
    images: int

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...
    def size(self, batch: int) -> int: ...


class EvalLoader(Protocol):
    """Every image once, in order, not augmented; the last batch may be smaller."""

    images: int

    def __iter__(self) -> Iterator[Batch]: ...
    def part(self, sharder: Sharder) -> EvalLoader: ...


@dataclass(frozen=True)
class Loaders:
    """What a run trains on and evaluates.

    Attributes:
        kind: whether the images lie on the device, or come from worker processes through timm's loader.
    """

    train: TrainLoader
    val: EvalLoader | None
    test: EvalLoader | None
    kind: Literal["resident", "timm"]


def make_loaders(
    config: Config, data: Dataset, preprocess: Preprocess, device: torch.device | str, sharder: Sharder = NO_SHARDING
) -> Loaders:
    """The batches of all splits on `device`, as `config.loader` asks.

    Args:
        sharder: of each training batch, which part is this process' own; splits to evaluate are whole until `part`.

    Raises:
        UsageError: the settings do not fit each other, the data or the device.
    """
    device = torch.device(device)
    augment = make_augment(config, preprocess)
    reason = (
        why_not_on_device(config, data, augment, preprocess, device) if config.loader != "timm" else "asked for timm"
    )
    if reason and config.loader == "resident":
        raise UsageError(f"loader=resident is not possible: {reason}; set --loader auto")
    resident = reason is None
    train = DeviceTrainLoader if resident else WorkerTrainLoader
    evaluation = DeviceEvalLoader if resident else WorkerEvalLoader
    return Loaders(
        train(data.train, augment, preprocess, config, device, sharder),
        None if data.val is None else evaluation(data.val, preprocess, config, device),
        None if data.test is None else evaluation(data.test, preprocess, config, device),
        "resident" if resident else "timm",
    )


def make_eval_loader(split: Split, preprocess: Preprocess, config: Config, device: torch.device | str) -> EvalLoader:
    """The batches of one split to evaluate: from the device's memory where the images already have the model's size."""
    device, pixels = torch.device(device), split.pixels
    fits = pixels is not None and pixels.shape[1:3] == (preprocess.size, preprocess.size) and preprocess.crop_pct == 1
    if fits and config.loader != "timm" and pixels is not None and pixels.nbytes <= free_memory(device) / 4:
        return DeviceEvalLoader(split, preprocess, config, device)
    return WorkerEvalLoader(split, preprocess, config, device)
