"""Shared by the loops that `throughput.py` compares: the network, the images one by one, the clock, W&B offline."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from harness.models import factory
from harness.runs.components import Components
from harness.tracking.wandb.client import changed_environment

# Warm-up updates, measured updates -> seconds of the measured updates, seconds of one evaluation of the test split.
Timed = Callable[[int, int], tuple[float, float]]


@dataclass
class Clock:
    """Seconds of the updates after the warm-up and of the evaluation after them, both including work on the device.

    Every loop calls `begin` when its last warm-up update has ended, `end_training` when its last update has ended, and
    the other two around the evaluation; so each is charged for loading as many batches as it trains.
    """

    device: torch.device
    trained: float = 0.0
    evaluated: float = 0.0
    _began: float = 0.0

    def begin(self) -> None:
        self._began = self._now()

    def end_training(self) -> None:
        self.trained = self._now() - self._began

    def begin_evaluation(self) -> None:
        self._began = self._now()

    def end_evaluation(self) -> None:
        self.evaluated = self._now() - self._began

    @property
    def seconds(self) -> tuple[float, float]:
        return self.trained, self.evaluated

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class ImageDataset(Dataset):
    """The images one by one, as an image folder returns them once decoded."""

    def __init__(self, split: Any, transform: Any = None) -> None:
        self.source, self.transform = split.source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.source[index]
        return (image if self.transform is None else self.transform(image)), int(label)


class Repeated:
    """A loader that restarts until it has returned a number of batches; its other attributes are the loader's."""

    def __init__(self, loader: Any, batches: int) -> None:
        self.loader, self.batches = loader, batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        stream = endless(self.loader)
        yield from itertools.islice(stream, self.batches)
        stream.close()  # ends the workers, which would otherwise load on during the evaluation

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet, in a copy
            raise AttributeError(name)
        return getattr(self.loader, name)


def endless(loader: Any) -> Any:
    """Return a generator of the batches of one epoch after another."""
    while True:
        yield from loader


def build_model(components: Components, channels_last: bool) -> nn.Module:
    """Return the network of the settings, with the same initial weights for every loop."""
    torch.manual_seed(0)
    model = factory.create_model(components.config, len(components.dataset.classes)).to(components.learner.device)
    return model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload, no-any-return]


def torchvision_transforms(components: Components) -> tuple[Any, Any]:
    """Return our augmentation (crop, flip, 8x8 cutout) with torchvision's transforms, and that of the evaluation."""
    from torchvision import transforms

    normalise = [transforms.ToTensor(), transforms.Normalize(components.dataset.mean, components.dataset.std)]
    cutout = transforms.RandomErasing(p=1.0, scale=(1 / 16, 1 / 16), ratio=(1, 1))
    augmented = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), *normalise, cutout]
    return transforms.Compose(augmented), transforms.Compose(normalise)


def autocast(device: torch.device, precision: torch.dtype | None) -> Any:
    """Return a context in which the network computes in a precision; None: float32."""
    return torch.autocast(device.type, dtype=precision) if precision else contextlib.nullcontext()


def channels_last(images: Tensor) -> Tensor:
    """Return images of shape (N, C, H, W) with the channels stored last."""
    return images.contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def wandb_offline() -> Iterator[None]:
    """Keep W&B offline, silent, and in a temporary folder, for all libraries that log to it by themselves."""
    with tempfile.TemporaryDirectory() as folder:
        names = ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR")
        with changed_environment(**dict.fromkeys(names, folder), WANDB_MODE="offline", WANDB_SILENT="true"):
            yield


@contextlib.contextmanager
def wandb_run() -> Iterator[Path]:
    """Open W&B's global run offline, for a library that logs to it, and yield its folder, which is deleted."""
    import wandb

    with tempfile.TemporaryDirectory() as folder:
        wandb.init(mode="offline", project="throughput", dir=folder)
        try:
            yield Path(folder)
        finally:
            wandb.finish()
