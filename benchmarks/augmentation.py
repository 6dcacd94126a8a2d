"""Measure the input pipelines alone: augmented images per second from each loader.

    python benchmarks/augmentation.py
    python benchmarks/augmentation.py --data folder --data-dir cifar --batch-size 512

Pad by 4 and crop, flip, normalise, 8x8 cutout, as the settings say; in one process, interleaved.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import measure
import torch

from harness.cli.commands import CONTEXT, SettingsCommand
from harness.cli.options import setting_options
from harness.config.recipe import make_config
from harness.data import loaders
from harness.runs.components import Components, build_components

LOADERS: dict[str, dict[str, Any]] = {
    "resident": {"loader": "resident", "augment": "timm"},
    "timm loader, 0 workers": {"loader": "timm", "augment": "timm", "workers": 0},
    "timm loader, 2 workers": {"loader": "timm", "augment": "timm", "workers": 2},
    "albumentations, 0 workers": {"loader": "timm", "augment": "albumentations", "workers": 0},
    "albumentations, 2 workers": {"loader": "timm", "augment": "albumentations", "workers": 2},
}


def harness_loader(components: Components, **settings: Any) -> Callable[[], float]:
    """Return a function that reads one epoch from our loader and returns images per second."""
    config, device = components.config.replace(**settings), components.learner.device
    train = loaders.make_loaders(config, components.dataset, components.preprocess, device).train
    epochs = itertools.count()

    def read_epoch() -> None:
        for _ in train.epoch(next(epochs)):
            pass

    def images_per_second() -> float:
        return train.num_images / measure.seconds(read_epoch, device)

    images_per_second()  # starts the worker processes
    return images_per_second


def torchvision_batches(components: Components) -> Callable[[], float]:
    """Return the same for torchvision's transforms on whole batches: one crop, flip and cutout for all images of a batch."""
    from torchvision.transforms import v2

    assert components.dataset.train.pixels is not None
    device, size = components.learner.device, components.config.batch_size
    pixels = torch.from_numpy(components.dataset.train.pixels).permute(0, 3, 1, 2).contiguous().to(device)
    transform = v2.Compose(
        [v2.RandomCrop(32, 4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True),
         v2.Normalize(components.dataset.mean, components.dataset.std), v2.RandomErasing(1.0, (1 / 16, 1 / 16), (1, 1))]
    )  # fmt: skip

    def read_epoch() -> None:
        order = torch.randperm(len(pixels), device=device)
        for start in range(0, len(order) - size + 1, size):
            transform(pixels[order[start : start + size]])

    def images_per_second() -> float:
        return len(pixels) // size * size / measure.seconds(read_epoch, device)

    return images_per_second


@click.command(cls=SettingsCommand, context_settings=CONTEXT)
@click.option("--repeats", default=5, show_default=True)
@click.option("--quick", is_flag=True, help="Few images and repetitions, to see that it works.")
@click.option("--out", type=click.Path(path_type=Path))
@setting_options
def main(settings: dict[str, Any], repeats: int, quick: bool, out: Path | None) -> None:
    with contextlib.ExitStack() as stack:
        if "data" not in settings:
            folder = stack.enter_context(measure.pictures(1024 if quick else 10_240, 256))
            settings |= {"recipe": "custom-resnet", "data": "folder", "data_dir": str(folder)}
        components = build_components(
            make_config({"model_args": "width=4", "batch_size": 128 if quick else 512, **settings})
        )
        work = {name: harness_loader(components, **settings) for name, settings in LOADERS.items()}
        work["torchvision v2, one draw per batch (not equivalent)"] = torchvision_batches(components)
        speeds = measure.in_turns(work, 2 if quick else repeats)
    best = measure.spread(speeds["resident"])["median"]
    rows = [
        {"loader": name, **{f"images/s, {key}": value for key, value in measure.spread(values).items()},
         "relative speed of resident": best / measure.spread(values)["median"]}
        for name, values in speeds.items()
    ]  # fmt: skip
    measure.keep("augmentation", components.learner.device, rows, out, batch_size=components.config.batch_size)


if __name__ == "__main__":
    main()
