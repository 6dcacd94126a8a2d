"""Compare the recipe `finetune` with training from scratch, from weights that a network of this package got on other classes.

    python benchmarks/finetune.py --data-dir cifar --log log.jsonl

One network is trained on the first five classes of CIFAR-10 (JPEG copy, class folders; all of their training images): a run of
`harness`, kept in --work. The other five classes are then learnt from 100 and 400 training images of each, by

- `auto`: the recipe of that name from scratch, with the same network,
- `finetune`: the recipe of that name from those weights,
- `auto --init`: the recipe `auto` from those weights.

All are scored on the test images of the five classes, means over --seeds. Each seed has other training images, the same ones
for all three. With --validation they are scored on 2,000 training images that no set has, on which the values of the recipe were
chosen, instead of on test images. With --log FILE every result is kept, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import auto_recipe
import click
import compare_settings
import measure
import numpy as np

import harness
from harness.config.automatic import choose_settings, with_choices
from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.data.dataset import Dataset, Split, channel_statistics, fingerprint, in_memory
from harness.runs.automatic import data_facts
from harness.training.device import pick_device

FIRST = 5  # classes of the weights, in the order of their names; the others are learnt from them
VALIDATION = 400  # training images of each class that are in no set; a fifth of fewer than 2,000
METHODS = ("auto", "finetune", "auto --init")
SHOWN = ("batch_size", "epochs", "optimizer", "lr_max", "weight_decay", "layer_decay", "freeze_epochs", "ema", "auto_augment", "cutout")  # fmt: skip
_arrays: dict[str, np.ndarray] = {}


@dataclass(frozen=True)
class Images:
    """A data set as `harness.run` takes it: items (image, label), and the names of the classes."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.pixels[index], int(self.labels[index])


def classes_of(kind: str, is_first: bool) -> tuple[str, ...]:
    """Return the names of the classes of the weights, or of the others."""
    names = tuple(str(name) for name in _arrays[f"{kind} classes"])
    return names[:FIRST] if is_first else names[FIRST:]


def images_of(kind: str, part: str, is_first: bool) -> Images:
    """Return all images of a split that belong to the classes of the weights, or to the others."""
    pixels, labels = _arrays[f"{kind} {part} pixels"], _arrays[f"{kind} {part} labels"]
    indices = np.flatnonzero((labels < FIRST) == is_first)
    return Images(pixels[indices], labels[indices] - (0 if is_first else FIRST), classes_of(kind, is_first))


def pretrain(kind: str, work: Path, settings: Mapping[str, Any]) -> tuple[Path, float]:
    """Train the network on the first classes, unless the run is there; return its directory and its test accuracy."""
    data = {part: images_of(kind, part, is_first=True) for part in ("train", "test")}
    options = {"recipe": "auto", "wandb": "disabled", "output": str(work), "name": "weights", "cam": "none", **settings}
    finished = work / "weights" / "summary.json"
    if not finished.is_file():
        harness.run(options, data=data)
    return finished.parent, float(json.loads(finished.read_text("utf-8"))["result"]["test/acc"])


def dataset_of(kind: str, images: int, seed: int, is_validation: bool) -> Dataset:
    """Return the set of a seed with so many training images of each class, and what it is scored on as its test split."""
    train, test = images_of(kind, "train", is_first=False), images_of(kind, "test", is_first=False)
    orders = [np.random.RandomState(20261127).permutation(np.flatnonzero(train.labels == label)) for label in range(len(train.classes))]  # fmt: skip
    counts = [min(VALIDATION, len(order) // 5) for order in orders]
    held = [order[:count] for order, count in zip(orders, counts, strict=True)]
    rest = [order[count:] for order, count in zip(orders, counts, strict=True)]
    random = np.random.RandomState(seed)
    drawn = np.sort(np.concatenate([random.permutation(order)[:images] for order in rest]))

    def split(name: Any, of: Images, indices: np.ndarray | slice) -> Split:
        labels = of.labels[indices]
        return in_memory(name, of.pixels[indices], labels, [f"{name}/{number}" for number in range(len(labels))])

    scored = split("test", train, np.sort(np.concatenate(held))) if is_validation else split("test", test, slice(None))
    splits = (split("train", train, drawn), None, scored)
    return Dataset("folder", train.classes, *splits, *channel_statistics(splits[0]), fingerprint(train.classes, splits))


def settle(method: str, weights: Path, options: Mapping[str, Any], dataset: Dataset) -> Config:
    """Return the settings of a method, chosen for a data set."""
    recipe, _, init = method.partition(" --")
    start = {"init": str(weights)} if init or recipe == "finetune" else {}
    settings = {"wandb": "disabled", "data": "folder", "recipe": recipe, "workers": 0, **start, **options}
    if start:  # the run of the weights names the model
        settings = {name: value for name, value in settings.items() if name not in ("model", "model_args")}
    config = make_config(settings)
    return with_choices(config, choose_settings(config, data_facts(config, dataset)))


def measured(method: str, weights: Path, images: int, seed: int, options: Mapping[str, Any], kind: str, is_validation: bool) -> dict[str, Any]:  # fmt: skip
    """Train one run; return its accuracy, that of the last epoch."""
    dataset, began = dataset_of(kind, images, seed, is_validation), time.monotonic()
    config = settle(method, weights, {**options, "seed": seed}, dataset)
    acc = compare_settings.train(config, dataset)["acc"]
    return {"acc": acc, "seconds": time.monotonic() - began}


def row_of(images: int, method: str, results: Sequence[Mapping[str, Any]], config: Config) -> dict[str, Any]:
    """Return the row of a method: mean and standard deviation of the accuracy in percent, seconds of a run."""
    accs = [100 * result["acc"] for result in results]
    return {
        "images of each class": images,
        "method": method,
        "acc %": round(statistics.fmean(accs), 2),
        "sd": round(statistics.stdev(accs), 2) if len(accs) > 1 else 0.0,
        "seeds": len(accs),
        "seconds": round(statistics.fmean(result["seconds"] for result in results), 1),
        "settings": " ".join(f"{name}={getattr(config, name)}" for name in SHOWN),
    }


@click.command()
@click.option("--data-dir", default="", help="CIFAR-10 as class folders, or an archive of them.")
@click.option("--images", default="100,400", show_default=True, help="Training images of each class, with commas.")
@click.option("--methods", default=",".join(METHODS), show_default=True, help="Which ones, with commas.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--model", default="custom_resnet", show_default=True)
@click.option("--width", default=16, show_default=True, help="Channels of the first convolution of the network.")
@click.option("--pretrain-epochs", default=12, show_default=True)
@click.option("--option", "fixed", multiple=True, help="NAME=VALUE: a setting of the measured runs.")
@click.option("--validation", is_flag=True, help="Score on training images that no set has.")
@click.option("--work", type=click.Path(path_type=Path), help="Keep the run of the weights here.")
@click.option("--quick", is_flag=True, help="Digits in place of CIFAR, a tiny network, two epochs.")
@click.option("--log", type=click.Path(path_type=Path), help="Keep each result here, and read those that it has.")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    data_dir: str, images: str, methods: str, seeds: int, model: str, width: int, pretrain_epochs: int, fixed: tuple[str, ...],
    validation: bool, work: Path | None, quick: bool, log: Path | None, out: Path | None,
) -> None:  # fmt: skip
    kind = "cifar"
    if quick:
        kind, images, seeds, width, pretrain_epochs = "digits", "10", 1, 4, 1
        fixed = (*fixed, "epochs=2")
    wanted = methods.split(",")
    if unknown := set(wanted) - set(METHODS):
        raise click.UsageError(f"--methods {','.join(sorted(unknown))}: need some of {', '.join(METHODS)}")
    _arrays.update(auto_recipe.arrays_of(data_dir, ["digits-28" if quick else "cifar-800"], quick=False))
    architecture = {"model": model, "model_args": {"width": width}} if model != "resnet18" else {"model": model}
    options: dict[str, Any] = {**architecture, **dict(item.split("=", 1) for item in fixed)}
    lines = log.read_text("utf-8").splitlines() if log is not None and log.exists() else []
    known = {json.dumps(entry["key"], sort_keys=True): entry for entry in map(json.loads, lines)}
    with tempfile.TemporaryDirectory() as folder:
        weights, acc = pretrain(kind, work or Path(folder), {**architecture, "epochs": pretrain_epochs})
        click.echo(f"weights: {100 * acc:.2f} % on the test images of their own classes", err=True)
        results: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for seed in range(seeds):
            for count in map(int, images.split(",")):
                for method in wanted:
                    key = [method, count, seed, options, validation]
                    name = json.dumps(key, sort_keys=True)
                    if name not in known:
                        known[name] = {"key": key, **measured(method, weights, count, seed, options, kind, validation)}
                        if log is not None:
                            with log.open("a", encoding="utf-8") as file:
                                file.write(json.dumps(known[name]) + "\n")
                        click.echo(json.dumps(known[name]), err=True)
                    results.setdefault((count, method), []).append(known[name])
        rows = [
            row_of(count, method, runs, settle(method, weights, options, dataset_of(kind, count, 0, validation)))
            for (count, method), runs in sorted(results.items())
        ]
    about = {"classes of the weights": classes_of(kind, True), "classes": classes_of(kind, False), "weights_acc": acc}
    split = "validation" if validation else "test"
    measure.keep("finetune", pick_device("auto"), rows, out, model=model, width=width, split=split, pretrain_epochs=pretrain_epochs, **about)  # fmt: skip


if __name__ == "__main__":
    main()
