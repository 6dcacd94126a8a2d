"""Time the recipe `speedrun` beside a plain PyTorch loop of the same network and settings, in turns, in one process.

    python benchmarks/speedrun.py --data-dir cifar10.tar.xz --runs 3
    python benchmarks/speedrun.py --quick --device cpu

The plain loop is what the publication of this kind of training times: images on the device, a loop of its own without a tracker,
a checkpoint or an evaluation in between, then one evaluation with six views of each image. Timed are whitening, training and that
evaluation. Ours is `harness.run` with W&B offline: the epochs as its summary states them, with and without the evaluation after
each, and the same evaluation of its weights at the end.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import measure
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

import harness
import harness.runs.components
from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.data.preprocess import sample_images
from harness.evaluation.predict import predict_batches, tta_views
from harness.evaluation.trained_model import load_trained_model
from harness.models.whitening import whiten_first_layer
from harness.runs.components import Components, build_components
from harness.training.device import autocast, synchronise


def plain_loop(components: Components, seed: int) -> dict[str, float]:
    """Train and evaluate with nothing but torch; return seconds and the accuracy with six views."""
    config, device = components.config, components.learner.device
    train, test = components.dataset.train, components.dataset.test
    assert train.pixels is not None and test is not None and test.pixels is not None
    normalise = components.preprocess.normalise
    images, labels, test_images, test_labels = (
        normalise(torch.from_numpy(split.pixels).to(device).permute(0, 3, 1, 2)) if part == "pixels"
        else torch.from_numpy(split.labels).to(device)
        for split in (train, test) for part in ("pixels", "labels")
    )  # fmt: skip
    torch.manual_seed(seed)
    model = timm.create_model(config.model, **config.model_args)
    synchronise(device)
    started_at = time.monotonic()
    whiten_first_layer(model, sample_images(train, components.preprocess))
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = _optimizer(config, model)
    steps = config.epochs * (len(images) // config.batch_size)
    peak = config.peak_epoch / config.epochs * steps
    averages = [value.detach().clone() for value in model.state_dict().values()]
    padding, side, step = config.crop_padding, images.shape[-1], 0
    padded = F.pad(images, (padding,) * 4, mode="reflect")
    first_flip = torch.rand(len(images), device=device) < 0.5
    offsets = torch.arange(side, device=device)
    for epoch in range(config.epochs):
        order = torch.randperm(len(images), device=device)
        corner = torch.randint(0, 2 * padding + 1, (2, len(images)), device=device)
        for index in order[: steps // config.epochs * config.batch_size].split(config.batch_size):
            rows, columns = (corner[axis][index, None] + offsets for axis in (0, 1))
            flip = first_flip[index] ^ bool(epoch % 2)
            columns = torch.where(flip[:, None], columns.flip(1), columns)
            batch = padded[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
            height = min(step / peak, (steps - step) / (steps - peak))
            for group in optimizer.param_groups:
                lr = config.rates()[0] * (1 - height) + config.rates()[1] * height
                group["lr"] = lr * group["factor"]
            optimizer.zero_grad(set_to_none=True)
            with autocast(device, components.learner.precision):
                logits = model(batch)
            F.cross_entropy(logits.float(), labels[index], label_smoothing=config.label_smoothing).backward()
            optimizer.step()
            step += 1
            _look_ahead(model, averages, step, steps, config.lookahead)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    model.eval()
    with torch.no_grad(), autocast(device, components.learner.precision):
        for batch, classes in zip(test_images.split(2000), test_labels.split(2000), strict=True):
            logits = sum(weight * model(view) for weight, view in tta_views(batch, config.tta))
            correct += (logits.argmax(1) == classes).sum()
    accuracy = correct.item() / len(test_labels)
    return {"seconds": time.monotonic() - started_at, "acc_tta": accuracy}


def _optimizer(config: Config, model: torch.nn.Module) -> torch.optim.Optimizer:
    biases = [p for name, p in model.named_parameters() if p.requires_grad and name.endswith("bias")]
    others = [p for name, p in model.named_parameters() if p.requires_grad and not name.endswith("bias")]
    decay, scale = config.weight_decay, config.bias_lr_scale
    groups = [
        {"params": others, "weight_decay": decay, "factor": 1.0},
        {"params": biases, "weight_decay": decay / scale, "factor": scale},
    ]
    return torch.optim.SGD(groups, 0.1, config.momentum, nesterov=True, fused=True)


@torch.no_grad()
def _look_ahead(model: torch.nn.Module, averages: list[Tensor], step: int, steps: int, every: int) -> None:
    if step < steps and step % every:
        return
    decay = 1.0 if step == steps else 0.95**every * (step / steps) ** 3
    for average, value in zip(averages, model.state_dict().values(), strict=True):
        if value.is_floating_point():
            average.lerp_(value, 1 - decay)
            value.copy_(average)


def ours(components: Components, seed: int) -> dict[str, float]:
    """Train with `harness.run`, W&B offline; return seconds and the accuracy with six views."""
    with tempfile.TemporaryDirectory() as folder:
        config = components.config.replace(
            seed=seed, output=folder, wandb="offline", resume="never", gallery=0, cam="none"
        )
        result = harness.run(config)
        seconds = result.summary["seconds"]
        trained = load_trained_model(Path(result.folder), {"device": str(components.learner.device)})
        batches = components.loaders.test
        assert batches is not None
        model = trained.model.to(memory_format=torch.channels_last)
        evaluate = functools.partial(
            predict_batches,
            model, batches, components.learner.device, autocast=components.learner.precision, tta=config.tta,
        )  # fmt: skip
        evaluate()
        last = measure.seconds(evaluate, components.learner.device)
        return {
            "seconds": seconds["train"] + last,
            "with evaluations": seconds["epoch"] + last,
            "acc_tta": result.summary["result"]["test/acc_tta"],
        }


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="A folder or archive of images. [generated ones]")
@click.option("--device", default="auto", show_default=True)
@click.option("--runs", default=3, show_default=True, help="Seeds; one more of each is not counted.")
@click.option("--quick", is_flag=True, help="One epoch of a narrow network.")
@click.option("--out", type=click.Path(path_type=Path))
def main(data_dir: Path | None, device: str, runs: int, quick: bool, out: Path | None) -> None:
    with contextlib.ExitStack() as stack:
        if data_dir is None:
            data_dir = stack.enter_context(measure.pictures(512 if quick else 20_480, 128 if quick else 4096))
        settings: dict[str, Any] = {"data": "folder", "data_dir": str(data_dir.resolve()), "device": device}
        if quick:
            settings, runs = settings | {"epochs": 1, "batch_size": 64, "model_args": "width=4"}, 1
        components = build_components(make_config(settings, "speedrun"))
        load = harness.runs.components.load_dataset
        harness.runs.components.load_dataset = lambda config: (
            components.dataset if config.val_fraction == 0 else load(config)
        )
        results: dict[str, list[dict[str, float]]] = {"plain PyTorch loop": [], "harness run": []}
        for seed in range(-1, runs):  # the first of each pays for what is done once
            for name, work in (("plain PyTorch loop", plain_loop), ("harness run", ours)):
                result = work(components, max(seed, 0))
                click.echo(f"{name}: {result}", err=True)
                if seed >= 0 or quick:
                    results[name].append(result)
        base = statistics.median(result["seconds"] for result in results["plain PyTorch loop"])
        rows = []
        for name, values in results.items():
            row = {"loop": name, "runs": len(values)}
            row |= {key: statistics.median(value[key] for value in values) for key in values[0]}
            rows.append({**row, "of the plain loop's time": row["seconds"] / base})
        measure.keep("speedrun", components.learner.device, rows, out, each=results)


if __name__ == "__main__":
    main()
