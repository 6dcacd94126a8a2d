"""Batches made image by image in worker processes: for data that does not fit the device, or transforms that work on one image."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from harness.config.settings import Config
from harness.data.augment import (
    AlbumentationsTransform,
    Augment,
    TimmCutout,
    TimmTransform,
    albumentations_compose,
    seeded_rng,
)
from harness.data.dataset import Split
from harness.data.device_loader import NO_SHARDING, Sharder, count_steps, epoch_order
from harness.data.preprocess import Preprocess
from harness.utils.environment import usable_cpus
from harness.utils.errors import DataError, ResourceError
from harness.utils.seeding import seed_for

TIMEOUT = 300  # seconds that a worker may take for one batch before it counts as stuck
Key = tuple[int, int]  # (epoch, index of the image)


class AugmentedDataset(Dataset):
    """Training images by (epoch, index), a pure function of that and the seed, in whatever process it is asked."""

    def __init__(self, source: Any, transform: TimmTransform | AlbumentationsTransform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> tuple[np.ndarray, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> list[tuple[np.ndarray, int]]:
        """What the loader calls: a whole batch, so that the generators of the process are put back but once."""
        with seeded_rng(0):
            return [self._one(*key) for key in keys]

    def _one(self, epoch: int, index: int) -> tuple[np.ndarray, int]:
        image, label = self.source[index]
        return self.transform(image, seed_for(self.seed, "augment", epoch, index)), label


class EvalDataset(Dataset):
    """Evaluation images: the model's own preprocessing, but for the normalisation, which follows on the device."""

    def __init__(self, source: Any, preprocess: Preprocess) -> None:
        self.source, self.preprocess = source, preprocess

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image, label = self.source[index]
        return self.preprocess.pixels(image).numpy(), label


class EpochOrder(Sampler[list[Key]]):
    """The batches of one epoch as lists of keys, from a given batch on: what is skipped is never decoded."""

    def __init__(self, count: int, steps: int, config: Config, sharder: Sharder) -> None:
        self.count, self.steps, self.config, self.sharder = count, steps, config, sharder
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        size, epoch = self.config.batch_size, self.epoch
        order = epoch_order(self.count, self.config.seed, epoch).tolist()
        for batch in range(self.start, self.steps):
            whole = order[batch * size : (batch + 1) * size]
            yield [(epoch, index) for index in whole[self.sharder.shard(len(whole))]]


class WorkerTrainLoader:
    """Training batches from worker processes through timm's PrefetchLoader; satisfies `Batches`.

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
        self.steps, self.images = count_steps(len(split), config.batch_size, config.drop_last, 2 * sharder.world_size)
        self._config = config
        self._order = EpochOrder(len(split), self.steps, config, sharder)
        self._cutout: TimmCutout | None = None
        if config.augment == "albumentations":
            albumentations_compose(augment, preprocess)  # a missing package is said now, not by a worker
            transform: TimmTransform | AlbumentationsTransform = AlbumentationsTransform(augment, preprocess)
        else:
            transform = TimmTransform(augment, preprocess)
            if augment.cutout:
                # No reference to self, or its processes would be waited for when it goes.
                size, images = config.batch_size, self.images
                self._cutout = TimmCutout(
                    augment.cutout,
                    preprocess.size,
                    config.seed,
                    device,
                    lambda batch: sharder.shard(min(size, images - batch * size)),
                )
        dataset = AugmentedDataset(split.source, transform, config.seed)
        loader = _loader(dataset, config, device, batch_sampler=self._order)
        self._workers = loader.worker_init_fn
        self._batches = _prefetch(loader, preprocess, device, normalised=transform.normalised, cutout=self._cutout)
        self._turn = 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 [B, 3, H, W] and labels int64 [B], from batch `start` on. Draws nothing from global generators.

        The worker processes serve one epoch at a time: starting another ends this one.
        """
        self._turn += 1
        turn = self._turn
        self._order.epoch, self._order.start = epoch, start
        if self._cutout:
            self._cutout.start(epoch, start)
        if start >= self.steps:
            return
        for images, labels in _told(self._batches, self._workers):
            yield _laid_out(images, self._config), labels
            if turn != self._turn:
                raise RuntimeError(
                    f"epoch {epoch} was left for another one; start it again with epoch({epoch}, start=...)"
                )

    def size(self, batch: int) -> int:
        """Images of a batch, in all processes together."""
        return min(self._config.batch_size, self.images - batch * self._config.batch_size)


class WorkerEvalLoader:
    """Evaluation batches from worker processes; satisfies `EvalBatches`."""

    def __init__(
        self, split: Split, preprocess: Preprocess, config: Config, device: torch.device, sharder: Sharder = NO_SHARDING
    ) -> None:
        mine = range(len(split))[sharder.shard(len(split))]
        self.images = len(mine)
        self._config, self._made_of = config, (split, preprocess, config, device)
        dataset = Subset(EvalDataset(split.source, preprocess), mine)
        loader = _loader(dataset, config, device, batch_size=config.eval_batch_size)
        self._workers = loader.worker_init_fn
        self._batches = _prefetch(loader, preprocess, device, normalised=False, cutout=None)

    def part(self, sharder: Sharder) -> WorkerEvalLoader:
        """Those of the images that are one process' share."""
        return WorkerEvalLoader(*self._made_of, sharder)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order, not augmented."""
        for images, labels in _told(self._batches, self._workers):
            yield _laid_out(images, self._config), labels


class WorkerPool:
    """The processes of one loader: started so that only the main one acts on signals, and ended when one is stuck.

    Torch's own time limit is not used: with it, torch waits for a worker that was killed until the limit is over. Nor
    is its handler of SIGCHLD, which raises in the midst of whatever is done when a worker dies, a save for one. What is
    left looks every 5 s, while a batch is waited for, whether the workers live.
    """

    def __init__(self, count: int) -> None:
        self._pids: Any = multiprocessing.get_context().Array("q", max(count, 1))
        self._count = count
        self.stuck = False

    def __call__(self, number: int) -> None:
        """What a new worker does first."""
        self._pids[number] = os.getpid()
        # Ctrl-C, a closed terminal and `timeout` reach every process of a group.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.setpgrp()

    @contextlib.contextmanager
    def watched(self) -> Iterator[Callable[[], None]]:
        """While it lasts, a worker is killed that keeps the reader waiting for more than `TIMEOUT` seconds.

        Yields:
            To be called before and after waiting for a batch.
        """
        waiting, over = [0.0], threading.Event()

        def turn() -> None:
            waiting[0] = 0.0 if waiting[0] else time.monotonic()

        def watch() -> None:
            while not over.wait(min(1.0, TIMEOUT / 4)):
                if waiting[0] and time.monotonic() - waiting[0] > TIMEOUT:
                    self.stuck = True
                    for pid in self._pids[:]:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    return

        if self._count:
            threading.Thread(target=watch, daemon=True).start()
        try:
            yield turn
        finally:
            over.set()


def loader_processes(workers: int, device: torch.device) -> int:
    """How many processes the setting `workers` means: for -1, what feeds the device without taking its cores.

    A GPU's share are the cores that this process may use, parted among the processes that torchrun started here.
    """
    if workers >= 0:
        return workers
    cores = usable_cpus()
    if device.type == "cpu":
        return min(2, cores)
    return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _loader(dataset: Dataset, config: Config, device: torch.device, **how: Any) -> DataLoader:
    processes = loader_processes(config.workers, device)
    return DataLoader(
        dataset,
        num_workers=processes,
        persistent_workers=processes > 0,
        collate_fn=_collate,
        worker_init_fn=WorkerPool(processes),
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or each pass would draw a number from the global generator
        **how,
    )


def _prefetch(
    loader: DataLoader, preprocess: Preprocess, device: torch.device, *, normalised: bool, cutout: TimmCutout | None
) -> Iterable[tuple[Tensor, Tensor]]:
    """timm's loader around ours: sends a batch ahead to the device, normalises there, and cuts holes."""
    from timm.data.loader import PrefetchLoader

    # Images that are normalised already: minus 0, divided by 255 * (1 / 255) = 1, which changes no bit.
    mean, std = ((0.0,) * 3, (1 / 255,) * 3) if normalised else (preprocess.mean, preprocess.std)
    batches = PrefetchLoader(loader, mean=mean, std=std, device=device)
    batches.random_erasing = cutout
    return batches


def _collate(samples: list[tuple[np.ndarray, int]]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.stack([image for image, _ in samples])), torch.tensor([label for _, label in samples])


def _laid_out(images: Tensor, config: Config) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)


def _told(batches: Iterable[tuple[Tensor, Tensor]], workers: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, with what goes wrong in a worker told in one line."""
    with workers.watched() as turn:
        yield from _told_each(iter(batches), workers, turn)


def _told_each(
    iterator: Iterator[tuple[Tensor, Tensor]], workers: WorkerPool, turn: Callable[[], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    handler = signal.getsignal(signal.SIGCHLD)
    while True:
        turn()
        try:
            batch = next(iterator, None)
            if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGCHLD) != handler:
                signal.signal(signal.SIGCHLD, handler)
        except (DataError, RuntimeError, EOFError, ConnectionError) as error:
            if _one_line(error, workers.stuck) is error:
                raise
            # torch's frames and this error hold each other. Left to the collector, which ends the queues first, the
            # workers would not hear that they should go, and be waited for. (A local name for the new error would
            # close the same circle.)
            error.__traceback__ = None
            raise _one_line(error, workers.stuck) from None
        turn()
        if batch is None:
            return
        yield batch


def _one_line(error: Exception, stuck: bool) -> Exception:
    """Our own error for one that came through torch's loader, which puts a worker's whole traceback into the message."""
    text = str(error).strip()
    if isinstance(error, DataError):
        return DataError(text.splitlines()[-1].removeprefix(f"{DataError.__module__}.{DataError.__name__}: "))
    if stuck:
        return DataError(
            f"no batch came from the loader processes for {TIMEOUT} s; is the disk with the data away? Try --workers 0"
        )
    cut_off = isinstance(error, EOFError | ConnectionError)  # while it handed a batch over
    if cut_off or ("DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text)):
        return ResourceError(
            "a loader process was killed, most often for lack of memory or of /dev/shm; lower --workers"
        )
    return error
