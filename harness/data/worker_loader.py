"""Batches that worker processes make image by image: for data that does not fit on the device, or transforms of single images."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

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
    alternating_flips,
    seeded_rng,
)
from harness.data.dataset import Split
from harness.data.device_loader import NO_SHARDING, Sharder, count_steps, epoch_order
from harness.data.preprocess import Preprocess
from harness.utils.environment import usable_cpus
from harness.utils.errors import DataError, ResourceError, first_line
from harness.utils.seeding import seed_for

TIMEOUT = 300  # seconds without a batch after which the workers are considered stuck
Key: TypeAlias = tuple[int, int]  # (epoch, index of the image)


class AugmentedDataset(Dataset):
    """Augmented training images by (epoch, index): a pure function of these and the seed, in any process."""

    def __init__(self, source: Any, transform: TimmTransform | AlbumentationsTransform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed
        self._flips: tuple[int, np.ndarray] | None = None  # an epoch, and whether each image is mirrored in it

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> tuple[np.ndarray, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> list[tuple[np.ndarray, int]]:
        """Return a whole batch; torch's loader calls this, so the generators are restored only once per batch."""
        with seeded_rng(0):
            return [self._load(*key) for key in keys]

    def _load(self, epoch: int, index: int) -> tuple[np.ndarray, int]:
        image, label = self.source[index]
        pixels = self.transform(image, seed_for(self.seed, "augment", epoch, index))
        if self.transform.augment.alternating_flip and self._is_mirrored(epoch, index):
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
        return pixels, label

    def _is_mirrored(self, epoch: int, index: int) -> bool:
        if self._flips is None or self._flips[0] != epoch:
            self._flips = epoch, alternating_flips(len(self), self.seed, epoch).numpy()
        return bool(self._flips[1][index])


class EvalDataset(Dataset):
    """Evaluation images, resized and cropped for the model; the normalisation follows on the device."""

    def __init__(self, source: Any, preprocess: Preprocess) -> None:
        self.source, self.preprocess = source, preprocess

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image, label = self.source[index]
        return self.preprocess.pixels(image).numpy(), label


class EpochOrder(Sampler[list[Key]]):
    """The batches of one epoch as lists of keys, from batch `start` on, so that skipped images are not decoded.

    Attributes:
        epoch, start: what the next iteration serves.
    """

    def __init__(self, num_images: int, steps: int, config: Config, sharder: Sharder) -> None:
        self.num_images, self.steps, self.config, self.sharder = num_images, steps, config, sharder
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        batch_size, epoch = self.config.batch_size, self.epoch
        order = epoch_order(self.num_images, self.config.seed, epoch).tolist()
        for batch in range(self.start, self.steps):
            indices = order[batch * batch_size : (batch + 1) * batch_size]
            yield [(epoch, index) for index in indices[self.sharder.shard(len(indices))]]


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
        self._order = EpochOrder(len(split), self.steps, config, sharder)
        self._cutout: TimmCutout | None = None
        if config.augment == "albumentations":
            albumentations_compose(augment, preprocess)  # reports a missing package here rather than in a worker
            transform: TimmTransform | AlbumentationsTransform = AlbumentationsTransform(augment, preprocess)
        else:
            transform = TimmTransform(augment, preprocess)
            if augment.cutout:
                # Without a reference to self: the cycle would delay its deletion, and with it the end of its workers.
                batch_size, num_images = config.batch_size, self.num_images
                self._cutout = TimmCutout(
                    augment.cutout,
                    preprocess.size,
                    config.seed,
                    device,
                    lambda batch: sharder.shard(min(batch_size, num_images - batch * batch_size)),
                )
        dataset = AugmentedDataset(split.source, transform, config.seed)
        loader, self.workers = _make_dataloader(dataset, config, device, batch_sampler=self._order)
        self._batches = _prefetch(loader, preprocess, device, normalised=transform.normalised, cutout=self._cutout)
        self._iteration = 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images float32 [B, 3, H, W] and labels int64 [B] from batch `start` on.

        The global random generators are not used.

        Raises:
            RuntimeError: another epoch was started since, which the worker processes serve instead.
        """
        self._iteration += 1
        iteration = self._iteration
        self._order.epoch, self._order.start = epoch, start
        if self._cutout:
            self._cutout.start(epoch, start)
        if start >= self.steps:
            return
        for images, labels in _iterate(self._batches, self.workers):
            yield _set_memory_format(images, self._config), labels
            if iteration != self._iteration:
                raise RuntimeError(
                    f"epoch {epoch} was abandoned for another one; start it again with epoch({epoch}, start=...)"
                )

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
        self._batches = _prefetch(loader, preprocess, device, normalised=False, cutout=None)

    def shard(self, sharder: Sharder) -> WorkerEvalLoader:
        """Return a loader of this process's images."""
        return WorkerEvalLoader(*self._arguments, sharder)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in order, without augmentation."""
        for images, labels in _iterate(self._batches, self.workers):
            yield _set_memory_format(images, self._config), labels


class WorkerPool:
    """The worker processes of one loader: they ignore Ctrl-C, which the main process handles, and are killed when stuck.

    torch's own timeout is not used, because with it torch waits for a killed worker until the timeout is over. Nor is
    its SIGCHLD handler, because it raises wherever the main process is when a worker dies, for example in a save. What
    remains is torch's check that the workers live, every 5 s while it waits for a batch.

    A batch goes through shared memory, in a thread of the worker. Where that fails (a full /dev/shm, a limit on files),
    Python prints the error and drops the batch, and the main process waits for it: here the worker ends instead.

    Attributes:
        pids: process ids, an array shared with the workers; 0 for one that has not started.
        is_stuck: whether the workers were killed.
    """

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self.pids: Any = multiprocessing.get_context().Array("q", max(num_workers, 1))
        self._send_error: Any = multiprocessing.get_context().Array("c", 200)
        self.is_stuck = False

    @property
    def send_error(self) -> str:
        """Why a worker could not send a batch, in one line; empty where all could."""
        return str(self._send_error.value.decode(errors="replace"))

    def __call__(self, worker_id: int) -> None:
        """Initialise a worker process."""
        self.pids[worker_id] = os.getpid()
        # Ctrl-C, a closed terminal and `timeout` signal every process of the group.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.setpgrp()
        # The thread that sends batches, and the one that passes their file descriptors on.
        multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(self._end)  # type: ignore[attr-defined]
        sys.excepthook = lambda kind, error, traceback: self._end(error)

    def _end(self, error: BaseException, *_: object) -> None:
        """End a worker process that cannot send, and leave the reason to the main process."""
        self._send_error.value = first_line(error).encode()[:199]
        os._exit(1)

    @contextlib.contextmanager
    def kill_when_stuck(self) -> Iterator[Callable[[], None]]:
        """Kill the workers once the main process has waited for a batch for more than `TIMEOUT` seconds.

        Yields:
            A function to call before and after waiting for a batch.
        """
        wait_start, finished = [0.0], threading.Event()  # 0: not waiting

        def toggle_waiting() -> None:
            wait_start[0] = 0.0 if wait_start[0] else time.monotonic()

        def watch() -> None:
            while not finished.wait(min(1.0, TIMEOUT / 4)):
                if wait_start[0] and time.monotonic() - wait_start[0] > TIMEOUT:
                    self.is_stuck = True
                    for pid in self.pids[:]:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    return

        if self._num_workers:
            threading.Thread(target=watch, daemon=True).start()
        try:
            yield toggle_waiting
        finally:
            finished.set()


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
        if (known := _send_limit(str(error))) is None:
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
    loader: DataLoader, preprocess: Preprocess, device: torch.device, *, normalised: bool, cutout: TimmCutout | None
) -> Iterable[tuple[Tensor, Tensor]]:
    """Wrap the loader in timm's PrefetchLoader, which copies batches to the device ahead, normalises and cuts out."""
    from timm.data.loader import PrefetchLoader

    # For images that are normalised already: subtracts 0 and divides by 255 * (1 / 255) = 1, which is exact.
    mean, std = ((0.0,) * 3, (1 / 255,) * 3) if normalised else (preprocess.mean, preprocess.std)
    batches = PrefetchLoader(loader, mean=mean, std=std, device=device)
    batches.random_erasing = cutout
    return batches


def _collate(samples: list[tuple[np.ndarray, int]]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.stack([image for image, _ in samples])), torch.tensor([label for _, label in samples])


def _set_memory_format(images: Tensor, config: Config) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)


def _iterate(batches: Iterable[tuple[Tensor, Tensor]], workers: WorkerPool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches; raise what goes wrong in a worker as an error with a message of one line."""
    with workers.kill_when_stuck() as toggle_waiting:
        yield from _iterate_checked(iter(batches), workers, toggle_waiting)


def _iterate_checked(
    iterator: Iterator[tuple[Tensor, Tensor]], workers: WorkerPool, toggle_waiting: Callable[[], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    handler = signal.getsignal(signal.SIGCHLD)
    while True:
        toggle_waiting()
        try:
            batch = next(iterator, None)
        except (DataError, RuntimeError, EOFError, OSError) as error:
            if _one_line_error(error, workers) is error:
                raise
            # torch's frames and this error refer to each other. If that cycle were left to the garbage collector, it
            # could delete the queues before the loader, whose workers then would not receive the order to stop, and
            # torch would wait for them. (A local variable for the new error would create the same cycle.)
            error.__traceback__ = None
            raise _one_line_error(error, workers) from None
        finally:  # torch's own handler would raise wherever the main process is when a worker ends
            if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGCHLD) != handler:
                signal.signal(signal.SIGCHLD, handler)
        toggle_waiting()
        if batch is None:
            return
        yield batch


# What the system says when a batch cannot be sent -> why, and what helps.
SEND_LIMITS = {
    "No space left": "/dev/shm is too small: enlarge it (docker run --shm-size 2g)",  # noqa: S108 - named, not used
    "File too large": "files may not grow that far: raise the limit (ulimit -f unlimited)",
    "Too many open files": "too few files may be open: raise the limit (ulimit -n 4096)",
}


def _send_limit(text: str) -> ResourceError | None:
    """Return an error that names the limit which keeps batches from being sent; None where the text names none."""
    limit = next((limit for sign, limit in SEND_LIMITS.items() if sign in text), None)
    if limit is None:
        return None
    return ResourceError(f"the loader processes cannot send their batches: {limit}, or set --workers 0")


def _one_line_error(error: Exception, workers: WorkerPool) -> Exception:
    """Return an error of one line for one from torch's loader, which includes the traceback of the worker."""
    text = str(error).strip()
    if isinstance(error, DataError):
        return DataError(text.splitlines()[-1].removeprefix(f"{DataError.__module__}.{DataError.__name__}: "))
    reason = workers.send_error or text
    if (known := _send_limit(reason)) is not None:
        return known
    if workers.send_error:
        return ResourceError(f"a loader process cannot send its batches: {reason}; lower --workers, or set --workers 0")
    if workers.is_stuck:
        return DataError(
            f"no batch from the loader processes for {TIMEOUT} s; check the disk that holds the data, or try --workers 0"
        )
    is_cut_off = isinstance(error, EOFError | ConnectionError)  # a worker died while it sent a batch
    if is_cut_off or ("DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text)):
        return ResourceError(
            "a loader process was killed, most often for lack of memory or of /dev/shm; lower --workers"
        )
    return error
