"""The ways to augmented batches, alone: pictures a second that each could feed.

    python benchmarks/augmentation.py
    python benchmarks/augmentation.py --data folder --data-dir cifar --batch-size 512

Pad 4 and crop, flip, normalise, 8x8 hole, as the settings say; in one process, in turns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import measure
import torch

from harness.cli.options import CONTEXT, SettingsCommand, config_from_options, setting_options
from harness.data import loaders
from harness.runs.components import Components, build_components

WAYS: dict[str, dict[str, Any]] = {
    "resident": {"loader": "resident", "augment": "timm"},
    "timm loader, 0 workers": {"loader": "timm", "augment": "timm", "workers": 0},
    "timm loader, 2 workers": {"loader": "timm", "augment": "timm", "workers": 2},
    "albumentations, 0 workers": {"loader": "timm", "augment": "albumentations", "workers": 0},
    "albumentations, 2 workers": {"loader": "timm", "augment": "albumentations", "workers": 2},
}


def ours(parts: Components, **way: Any) -> Callable[[], float]:
    """Pictures a second of an epoch of our batches."""
    config, device = parts.config.replace(**way), parts.learner.device
    train = loaders.make_loaders(config, parts.data, parts.preprocess, device).train
    epoch = iter(range(1_000_000))

    def once() -> float:
        def read() -> None:
            for _ in train.epoch(next(epoch)):
                pass

        return train.num_images / measure.seconds(config_from_options, device)

    once()  # workers start
    return once


def torchvision_batches(parts: Components) -> Callable[[], float]:
    """torchvision's transforms on whole batches: one crop, one flip and one hole for all pictures of a batch."""
    from torchvision.transforms import v2

    assert parts.data.train.pixels is not None
    device, size = parts.learner.device, parts.config.batch_size
    pixels = torch.from_numpy(parts.data.train.pixels).permute(0, 3, 1, 2).contiguous().to(device)
    change = v2.Compose(
        [v2.RandomCrop(32, 4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True),
         v2.Normalize(parts.data.mean, parts.data.std), v2.RandomErasing(1.0, (1 / 16, 1 / 16), (1, 1))]
    )  # fmt: skip

    def once() -> float:
        order = torch.randperm(len(pixels), device=device)

        def read() -> None:
            for start in range(0, len(order) - size + 1, size):
                change(pixels[order[start : start + size]])

        return len(order) // size * size / measure.seconds(config_from_options, device)

    return once


@click.command(cls=SettingsCommand, context_settings=CONTEXT)
@click.option("--repeats", default=5, show_default=True)
@click.option("--quick", is_flag=True, help="Few pictures and turns, to see that it works.")
@click.option("--out", type=click.Path(path_type=Path))
@setting_options
def main(settings: dict[str, Any], repeats: int, quick: bool, out: Path | None) -> None:
    with contextlib.ExitStack() as stack:
        if "data" not in settings:
            folder = stack.enter_context(measure.pictures(1024 if quick else 10_240, 256))
            settings |= {"data": "folder", "data_dir": str(folder)}
        parts = build_components(
            config_from_options({"model_args": "width=4", "batch_size": 128 if quick else 512, **settings})
        )
        work = {name: ours(parts, **way) for name, way in WAYS.items()}
        work["torchvision v2, one draw a batch (not the same)"] = torchvision_batches(parts)
        told = measure.in_turns(work, 2 if quick else repeats)
    best = measure.spread(told["resident"])["median"]
    rows = [
        {"way": name, **{f"images/s, {key}": value for key, value in measure.spread(values).items()},
         "resident is": best / measure.spread(values)["median"]}
        for name, values in told.items()
    ]  # fmt: skip
    measure.keep("augmentation", parts.learner.device, rows, out, batch_size=parts.config.batch_size)


if __name__ == "__main__":
    main()
