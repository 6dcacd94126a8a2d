"""Compare our loop with a reference PyTorch loop and the loops of timm, Lightning, fastai and Ultralytics.

    pip install -e '.[peers]' ultralytics
    python benchmarks/throughput.py                                    # the full network, batch 512
    python benchmarks/throughput.py --quick                            # a minute: a narrow network
    python benchmarks/throughput.py --data folder --data-dir cifar     # your own images

All use the same model, images, batch size, optimizer and augmentation (pad by 4 and crop, flip, 8x8 cutout), in one
process, interleaved, and all but the reference loop log to W&B offline. Each loop is measured over the same number of
updates after some warm-up updates, and over an evaluation of the test split; starting and ending the W&B run is left out.
`as it comes` means the library's defaults (float32, NCHW, its own loader), `tuned` the same with bf16 and channels_last;
what else differs is in the docstrings of `peers.py` and `peer_ultralytics.py`. A library that is not installed is
skipped with a message.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import measure
import peer_ultralytics
import peers
import torch
from loop_parts import Clock, Timed, autocast, build_model, wandb_offline
from torch import Tensor
from torch.nn import functional as F

from harness.cli.commands import CONTEXT, SettingsCommand
from harness.cli.options import setting_options
from harness.config.recipe import make_config
from harness.runs.components import Components, build_components
from harness.tracking.wandb import init
from harness.training.device import autocast_dtype
from harness.training.loop import fit
from harness.training.schedule import make_schedule


class FirstBatches:
    """The first batches of an endless stream of epochs as one epoch; starts the clock after the warm-up."""

    def __init__(self, batches: Any, warm: int, steps: int, clock: Clock) -> None:
        self.batches, self.warm, self.steps, self.clock = batches, warm, warm + steps, clock
        self.images = self.num_images = self.steps * batches.size(0)

    def size(self, batch: int) -> int:
        return int(self.batches.size(0))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        done = 0
        while True:
            for batch in self.batches.epoch(epoch):
                yield batch
                done += 1
                if done == self.warm:
                    self.clock.begin()
                if done == self.steps:
                    return
            epoch += 1


def harness_loop(components: Components) -> Timed:
    """Measure `fit` and the W&B tracker as a run uses them: schedule, records, curves, evaluation, W&B rows."""

    def timed(warm: int, steps: int) -> tuple[float, float]:
        clock = Clock(components.learner.device)
        train = FirstBatches(components.loaders.train, warm, steps, clock)
        schedule = make_schedule(components.config, train.steps)
        evaluated = {components.eval_split: getattr(components.loaders, components.eval_split)}

        def on_step(info: Any) -> None:
            if info.batch == train.steps:
                clock.end_training()

        with tempfile.TemporaryDirectory() as folder:
            tracker = init.start(components.config.replace(wandb="offline"), Path(folder), run_name="throughput")
            record = next(
                iter(fit(components.learner, train, schedule, epochs=1, evaluations=evaluated, on_step=on_step))
            )
            began = time.perf_counter()
            tracker.record(record)
            tracking = time.perf_counter() - began
            tracker.finish("finished", 0)
        return clock.trained, float(record.values["time/eval_s"]) + tracking  # type: ignore[arg-type]

    return timed


def reference_loop(components: Components) -> Timed:
    """Measure the fastest plain loop that we can write: data in memory, one gather per batch, bf16 where faster, fused SGD."""
    config, device = components.config, components.learner.device
    precision, pixels, labels = autocast_dtype(config.precision), *_on_device(components, "train")
    model = build_model(components, channels_last=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.001, 0.9, nesterov=True, weight_decay=5e-4, fused=True)
    mean, std = (
        torch.tensor([255 * v for v in of], device=device).view(1, 3, 1, 1)
        for of in (components.dataset.mean, components.dataset.std)
    )
    windows = F.pad(pixels.permute(0, 3, 1, 2), (4, 4, 4, 4)).contiguous().unfold(2, 32, 1).unfold(3, 32, 1)
    size, rows = config.batch_size, torch.arange(32, device=device)
    test_images, test_labels = _on_device(components, "test")

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, device=device)

    def batch() -> tuple[Tensor, Tensor]:
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
        clock = Clock(device)
        model.train()
        losses = []
        for step in range(warm + steps):
            if step == warm:
                clock.begin()
            images, labels = batch()
            with autocast(device, precision):
                loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.stack(losses).cpu()
        clock.end_training()
        clock.begin_evaluation()
        model.eval()
        with torch.no_grad(), autocast(device, precision):
            correct = torch.zeros((), dtype=torch.long, device=device)
            for start in range(0, len(test_images), 1000):
                images = test_images[start : start + 1000].permute(0, 3, 1, 2).float().sub_(mean).div_(std)
                correct += (model(images).argmax(1) == test_labels[start : start + 1000]).sum()
        correct.item()
        clock.end_evaluation()
        return clock.seconds

    return timed


def _on_device(components: Components, name: str) -> tuple[Tensor, Tensor]:
    split = getattr(components.dataset, name)
    return tuple(torch.from_numpy(part).to(components.learner.device) for part in (split.pixels, split.labels))  # type: ignore[return-value]


def make_loops(components: Components, only: str = "") -> tuple[dict[str, Timed], list[str]]:
    """Return the loops that can run here, by name, and a message for each of the others."""
    makers: dict[str, Callable[[], Timed]] = {
        "harness": lambda: harness_loop(components),
        "reference PyTorch loop": lambda: reference_loop(components),
    }
    libraries: dict[str, Callable[[Components, bool], Timed]] = {
        "timm": peers.timm_step,
        "Lightning": peers.lightning,
        "fastai": peers.fastai,
        "Ultralytics": peer_ultralytics.ultralytics_trainer,
    }
    for library, maker in libraries.items():
        for tuned, form in ((False, "as it comes"), (True, "tuned")):
            makers[f"{library} + W&B {form}"] = partial(maker, components, tuned)
    loops, skipped = {}, []
    for name, maker in makers.items():
        if only and name != "harness" and not any(word in name.lower() for word in only.lower().split(",")):
            continue
        try:
            loops[name] = maker()
        except ImportError as error:
            package = "ultralytics" if "Ultralytics" in name else "-e '.[peers]'"
            skipped.append(f"{name}: {error.name} is not installed; pip install {package}")
    return loops, skipped


def compare(
    components: Components, *, warm: int, steps: int, repeats: int, only: str = ""
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure all loops; one row each with images/s in training and evaluation, and the relative speed of harness."""
    with wandb_offline():
        loops, skipped = make_loops(components, only)
        work = {name: partial(timed, warm, steps) for name, timed in loops.items()}
        results = measure.in_turns(work, repeats)
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
@click.option(
    "--warm",
    default=2,
    type=click.IntRange(min=1),
    show_default=True,
    help="Warm-up updates before them, in which the other libraries' workers load ahead.",
)
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
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if quick:
        settings = {"model_args": "width=8", "batch_size": 128, **settings}
        steps, warm, repeats = min(steps, 3), 1, min(repeats, 2)
    with contextlib.ExitStack() as stack:
        if "data" not in settings:
            folder = stack.enter_context(measure.pictures(1024 if quick else 5120, 256 if quick else 1024))
            settings |= {"recipe": "custom-resnet", "data": "folder", "data_dir": str(folder)}
        components = build_components(make_config(settings))
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
