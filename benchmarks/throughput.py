"""Compare our loop with a reference PyTorch loop, timm's loader and step, and Lightning's Trainer with WandbLogger.

    pip install -e '.[peers]'
    python benchmarks/throughput.py                                    # the full network, batch 512
    python benchmarks/throughput.py --quick                            # a minute: a narrow network
    python benchmarks/throughput.py --data folder --data-dir cifar     # your own images

All use the same model, images, batch size, optimizer and augmentation (pad by 4 and crop, flip, 8x8 cutout), in one
process, interleaved. Each loop is measured over the same number of updates after some warm-up updates, and over an
evaluation of the test split. `as it comes` means the library's defaults (float32, NCHW, its own loader), `tuned` the same
with bf16 and channels_last. A library that is not installed is skipped with a message.
"""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import measure
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from harness.cli.commands import CONTEXT, SettingsCommand
from harness.cli.options import config_from_options, setting_options
from harness.models import factory
from harness.runs.components import Components, build_components
from harness.training.device import autocast_dtype
from harness.training.loop import fit
from harness.training.schedule import make_schedule

Timed = Callable[
    [int, int], tuple[float, float]
]  # warm-up updates, measured updates -> seconds of the measured updates, of an evaluation


class FirstBatches:
    """The first batches of an endless stream of epochs as one epoch; stores the time at which the warm-up ended."""

    def __init__(self, batches: Any, warm: int, steps: int, device: torch.device) -> None:
        self.batches, self.warm, self.steps, self.device = batches, warm, warm + steps, device
        self.images = self.steps * batches.size(0)
        self.began = 0.0

    def size(self, batch: int) -> int:
        return int(self.batches.size(0))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        done = 0
        while True:
            for batch in self.batches.epoch(epoch):
                if done == self.warm:
                    _wait(self.device)
                    self.began = time.perf_counter()
                if done == self.steps:
                    return
                done += 1
                yield batch
            epoch += 1


def harness_loop(components: Components) -> Timed:
    """Measure `fit` as a run calls it: schedule, records, curves, evaluation."""

    def timed(warm: int, steps: int) -> tuple[float, float]:
        train = FirstBatches(components.loaders.train, warm, steps, components.learner.device)
        schedule = make_schedule(components.config, train.steps)
        evaluated = {components.eval_split: getattr(components.loaders, components.eval_split)}
        end_times: list[float] = []

        def on_step(info: Any) -> None:
            if info.batch == train.steps:
                _wait(components.learner.device)
                end_times.append(time.perf_counter())

        record = next(iter(fit(components.learner, train, schedule, epochs=1, evaluations=evaluated, on_step=on_step)))
        return end_times[0] - train.began, float(record.values["time/eval_s"])  # type: ignore[arg-type]

    return timed


def reference_loop(components: Components) -> Timed:
    """Measure the fastest plain loop that we can write: data in memory, one gather per batch, bf16 where faster, fused SGD."""
    config, device = components.config, components.learner.device
    precision, pixels, labels = autocast_dtype(config.precision), *_on_device(components, "train")
    model = _model(components, channels_last=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.001, 0.9, nesterov=True, weight_decay=5e-4, fused=True)
    mean, std = (
        torch.tensor([255 * v for v in of], device=device).view(1, 3, 1, 1)
        for of in (components.dataset.mean, components.dataset.std)
    )
    windows = F.pad(pixels.permute(0, 3, 1, 2), (4, 4, 4, 4)).contiguous().unfold(2, 32, 1).unfold(3, 32, 1)
    size, rows = config.batch_size, torch.arange(32, device=device)
    test_images, test_labels = _on_device(components, "test")

    def batch() -> tuple[Tensor, Tensor]:
        draw = lambda high, *shape: torch.randint(0, high, shape, device=device)  # noqa: E731
        index = draw(len(pixels), size)
        images = windows[index, :, draw(9, size), draw(9, size)].contiguous(memory_format=torch.channels_last)
        images = images.float().sub_(mean).div_(std)
        images = torch.where((draw(2, size) == 1)[:, None, None, None], images.flip(3), images)
        top, left = draw(25, size, 1), draw(25, size, 1)
        cutout = ((rows >= top) & (rows < top + 8))[:, None, :, None] & ((rows >= left) & (rows < left + 8))[
            :, None, None, :
        ]
        return images.masked_fill_(cutout, 0), labels[index]

    def timed(warm: int, steps: int) -> tuple[float, float]:
        model.train()
        losses = []
        for step in range(warm + steps):
            if step == warm:
                _wait(device)
                began = time.perf_counter()
            images, labels = batch()
            with _autocast(device, precision):
                loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.stack(losses).cpu()
        _wait(device)
        trained, began = time.perf_counter() - began, time.perf_counter()
        model.eval()
        with torch.no_grad(), _autocast(device, precision):
            correct = torch.zeros((), dtype=torch.long, device=device)
            for start in range(0, len(test_images), 1000):
                images = test_images[start : start + 1000].permute(0, 3, 1, 2).float().sub_(mean).div_(std)
                correct += (model(images).argmax(1) == test_labels[start : start + 1000]).sum()
        correct.item()  # waits for the device
        return trained, time.perf_counter() - began

    return timed


class ImageDataset(Dataset):
    """The images one by one, as an image folder returns them once decoded."""

    def __init__(self, split: Any, transform: Any = None) -> None:
        self.source, self.transform = split.source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.source[index]
        return (image if self.transform is None else self.transform(image)), int(label)


def timm_step(components: Components, tuned: bool) -> Timed:
    """Measure timm's `create_loader` and the step of its train.py, with our augmentation in place of its transforms."""
    from timm.data import create_loader
    from timm.data.random_erasing import RandomErasing
    from timm.data.transforms import ToNumpy
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter, accuracy
    from torchvision import transforms

    config, device = components.config, components.learner.device
    model = _model(components, channels_last=tuned)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.001, weight_decay=5e-4, momentum=0.9)
    options: dict[str, Any] = dict(
        input_size=(3, 32, 32), use_prefetcher=True, mean=components.dataset.mean, std=components.dataset.std, device=device,
        num_workers=4, persistent_workers=True, pin_memory=device.type == "cuda",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more workers than cores
        train = create_loader(
            ImageDataset(components.dataset.train), batch_size=config.batch_size, is_training=True, **options
        )
        test = create_loader(
            ImageDataset(components.dataset.test),
            batch_size=config.batch_size,
            is_training=False,
            crop_pct=1.0,
            **options,
        )
    crop = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), ToNumpy()]
    train.loader.dataset.transform = transforms.Compose(crop)
    train.random_erasing = RandomErasing(
        1.0, 1 / 16, 1 / 16, min_aspect=1.0, max_aspect=1.0, mode="const", device=device
    )
    stream = _endless(train)

    def context() -> Any:
        return _autocast(device, torch.bfloat16 if tuned else None)

    def timed(warm: int, steps: int) -> tuple[float, float]:
        model.train()
        meter = AverageMeter()
        for step in range(warm + steps):
            if step == warm:
                _wait(device)
                began = time.perf_counter()
            images, labels = next(stream)
            if tuned:
                images = images.contiguous(memory_format=torch.channels_last)
            with context():
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 50 == 0:
                meter.update(loss.item(), images.size(0))
        _wait(device)
        trained, began = time.perf_counter() - began, time.perf_counter()
        model.eval()
        with torch.no_grad():
            for images, labels in test:
                if tuned:
                    images = images.contiguous(memory_format=torch.channels_last)
                with context():
                    logits = model(images)
                meter.update(F.cross_entropy(logits, labels).item(), images.size(0))
                accuracy(logits, labels, topk=(1, 5))
        return trained, time.perf_counter() - began

    return timed


def lightning(components: Components, tuned: bool) -> Timed:
    """Measure Lightning's Trainer with WandbLogger offline, logging every 50 steps as by default."""
    import lightning as L
    from lightning.pytorch.loggers import WandbLogger
    from torchvision import transforms

    config, device = components.config, components.learner.device
    normalise = [transforms.ToTensor(), transforms.Normalize(components.dataset.mean, components.dataset.std)]
    cutout = transforms.RandomErasing(p=1.0, scale=(1 / 16, 1 / 16), ratio=(1, 1))
    augmented = transforms.Compose(
        [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), *normalise, cutout]
    )
    net = _model(components, channels_last=tuned).cpu()

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, index: int) -> Tensor:
            images, labels = batch
            if tuned:
                images = images.contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(self.net(images), labels)
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            images, labels = batch
            logits = self.net(images)
            self.log("val/loss", F.cross_entropy(logits, labels))
            self.log("val/acc", (logits.argmax(1) == labels).float().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.001, 0.9, nesterov=True, weight_decay=5e-4)

    class Clock(L.Callback):
        def __init__(self, warm: int) -> None:
            self.warm, self.began, self.trained, self.evaluated = warm, 0.0, 0.0, 0.0

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if index == self.warm:
                _wait(device)
                self.began = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            _wait(device)
            self.trained = time.perf_counter() - self.began

        def on_validation_start(self, trainer: Any, module: Any) -> None:
            self.since = time.perf_counter()

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            _wait(device)
            self.evaluated = time.perf_counter() - self.since

    def loader(split: Any, transform: Any, shuffle: bool) -> DataLoader:
        return DataLoader(
            ImageDataset(split, transform), config.batch_size, shuffle=shuffle, num_workers=2, drop_last=shuffle
        )

    def timed(warm: int, steps: int) -> tuple[float, float]:
        clock = Clock(warm)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logger = WandbLogger(save_dir=folder, offline=True, project="throughput")
            trainer = L.Trainer(
                default_root_dir=folder, logger=logger, max_epochs=1, limit_train_batches=warm + steps,
                accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, enable_progress_bar=False,
                enable_model_summary=False, num_sanity_val_steps=0, callbacks=[clock], precision="bf16-mixed" if tuned else "32-true",
            )  # fmt: skip
            train, test = (
                loader(components.dataset.train, augmented, True),
                loader(components.dataset.test, transforms.Compose(normalise), False),
            )
            repeated = _Repeated(train, warm + steps)
            trainer.fit(Module(), repeated, test)
            logger.experiment.finish()
        return clock.trained, clock.evaluated

    return timed


class _Repeated:
    """A loader that restarts until it has returned a number of batches."""

    def __init__(self, loader: DataLoader, batches: int) -> None:
        self.loader, self.batches = loader, batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        stream = _endless(self.loader)
        for _ in range(self.batches):
            yield next(stream)


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _model(components: Components, channels_last: bool) -> nn.Module:
    torch.manual_seed(0)
    model = factory.create_model(components.config, len(components.dataset.classes)).to(components.learner.device)
    return model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload, no-any-return]


def _on_device(components: Components, name: str) -> tuple[Tensor, Tensor]:
    split = getattr(components.dataset, name)
    return tuple(torch.from_numpy(part).to(components.learner.device) for part in (split.pixels, split.labels))  # type: ignore[return-value]


def _autocast(device: torch.device, precision: torch.dtype | None) -> Any:
    return torch.autocast(device.type, dtype=precision) if precision else contextlib.nullcontext()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_loops(components: Components, only: str = "") -> tuple[dict[str, Timed], list[str]]:
    """Return the loops that can run here, by name, and a message for each of the others."""
    makers: dict[str, Callable[[], Timed]] = {
        "harness": lambda: harness_loop(components),
        "reference PyTorch loop": lambda: reference_loop(components),
        "timm as it comes": lambda: timm_step(components, False),
        "timm tuned": lambda: timm_step(components, True),
        "Lightning + W&B as it comes": lambda: lightning(components, False),
        "Lightning + W&B tuned": lambda: lightning(components, True),
    }
    loops, skipped = {}, []
    for name, maker in makers.items():
        if only and name != "harness" and not any(word in name.lower() for word in only.lower().split(",")):
            continue
        try:
            loops[name] = maker()
        except ImportError as error:
            skipped.append(f"{name}: {error.name} is not installed; pip install -e '.[peers]'")
    return loops, skipped


def compare(
    components: Components, *, warm: int, steps: int, repeats: int, only: str = ""
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure all loops; one row each with images/s in training and evaluation, and the relative speed of harness."""
    loops, skipped = make_loops(components, only)
    results = measure.in_turns({name: lambda timed=timed: timed(warm, steps) for name, timed in loops.items()}, repeats)
    images, test_images = steps * components.config.batch_size, len(components.dataset.test or ())
    epoch_steps = components.loaders.train.steps
    rows = []
    for name, pairs in results.items():
        training, evaluation = ([pair[index] for pair in pairs] for index in (0, 1))
        epochs = [trained / steps * epoch_steps + seconds for trained, seconds in pairs]
        rows.append({
            "contender": name,
            "train images/s": images / statistics.median(training),
            "least": images / max(training),
            "most": images / min(training),
            "test images/s": test_images / statistics.median(evaluation),
            "epoch (s)": statistics.median(epochs),
            "ours is, training": statistics.median(pair[0] / harness[0] for pair, harness in zip(pairs, results["harness"], strict=True)),
            "ours is, whole epoch": statistics.median(epochs) / _median_epoch(results["harness"], steps, epoch_steps),
        })  # fmt: skip
    return rows, skipped


def _median_epoch(pairs: list[tuple[float, float]], steps: int, epoch_steps: int) -> float:
    return statistics.median(trained / steps * epoch_steps + seconds for trained, seconds in pairs)


@click.command(cls=SettingsCommand, context_settings=CONTEXT)
@click.option("--steps", default=4, show_default=True, help="Updates measured per repetition.")
@click.option("--warm", default=1, show_default=True, help="Warm-up updates before them.")
@click.option("--repeats", default=5, show_default=True, help="Repetitions of each loop.")
@click.option(
    "--only", default="", help="Measure only the loops whose names contain one of these comma-separated words."
)
@click.option("--quick", is_flag=True, help="A narrow network and few repetitions, to see that it works.")
@click.option("--out", type=click.Path(path_type=Path), help="The JSON file. [results/throughput-DATE.json]")
@setting_options
def main(
    settings: dict[str, Any], steps: int, warm: int, repeats: int, only: str, quick: bool, out: Path | None
) -> None:
    os.environ["WANDB_SILENT"] = "true"
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if quick:
        settings = {"model_args": "width=8", "batch_size": 128, **settings}
        steps, repeats = min(steps, 3), min(repeats, 2)
    with contextlib.ExitStack() as stack:
        if "data" not in settings:
            folder = stack.enter_context(measure.pictures(1024 if quick else 5120, 256 if quick else 1024))
            settings |= {"data": "folder", "data_dir": str(folder)}
        components = build_components(config_from_options(settings))
        rows, skipped = compare(components, warm=warm, steps=steps, repeats=repeats, only=only)
    config = components.config
    facts = dict(
        model=config.model, model_args=config.model_args, batch_size=config.batch_size, precision=config.precision,
        steps=steps, warm=warm, repeats=repeats, left_out=skipped,
    )  # fmt: skip
    measure.keep("throughput", components.learner.device, rows, out, **facts)
    for line in skipped:
        click.echo(line, err=True)


if __name__ == "__main__":
    main()
