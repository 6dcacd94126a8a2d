"""Compare our range test with torch-lr-finder's and Lightning's: the suggestions, and the accuracy of training with each.

    pip install torch-lr-finder "lightning!=2.6.2,!=2.6.3"
    python benchmarks/finders.py --recipe digits
    python benchmarks/finders.py --model-args width=16 --batch-size 128 --runs 3 --train-steps 400

All use the same model, initial weights, batches, optimizer and range. Then each suggestion is used for the same short
one-cycle run with lr_min = lr_max / 10, evaluated on held-out images. A finder that is not installed is skipped with a message.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from harness.config.recipe import make_config
from harness.lr_finder.finder import LRFinder, LRFinderOptions
from harness.lr_finder.range_test import short_run
from harness.lr_finder.suggestion import suggest
from harness.runs.components import build_components
from harness.runs.lr_find import finder_inputs
from harness.runs.progress import LineReporter
from harness.training.optimizer import make_optimizer
from harness.training.schedule import Schedule

Finder = Callable[["Repetition"], float | None]


class Repetition:
    """The inputs of a finder for one repetition."""

    def __init__(self, lr_finder: LRFinder, seed: int) -> None:
        self.lr_finder, self.seed, self.lr_range = lr_finder, seed, lr_finder.lr_range

    def model(self) -> nn.Module:
        """Return the model with the initial weights of the seed."""
        return self.lr_finder.learner_factory(self.seed).model

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return make_optimizer(self.lr_finder.config.replace(lr_max=lr, lr_min=0.0), model)

    def loader(self) -> DataLoader[Any]:
        """Return as many ready batches of the seed as the range has steps; both other finders need a DataLoader."""
        train, epoch = self.lr_finder.loader_factory(self.seed), 0
        batches: list[tuple[torch.Tensor, torch.Tensor]] = []
        while len(batches) < self.lr_range.steps:
            batches += list(train.epoch(epoch))
            epoch += 1
        return DataLoader(batches[: self.lr_range.steps], batch_size=None)  # type: ignore[arg-type]


def ours(repetition: Repetition) -> float | None:
    """Run our range test with one seed."""
    lr_finder = repetition.lr_finder
    lr_finder.curves.clear()
    for _ in lr_finder.records([repetition.seed]):
        pass
    return suggest(lr_finder.curves, uniform_loss=lr_finder.uniform_loss).lr_max


def torch_lr_finder(repetition: Repetition) -> float | None:
    """Run davidtvs/pytorch-lr-finder; it suggests the steepest descent."""
    import matplotlib
    from torch_lr_finder import LRFinder

    matplotlib.use("Agg")
    model = repetition.model()
    device = next(model.parameters()).device
    finder = LRFinder(
        model, repetition.optimizer(model, repetition.lr_range.low), nn.CrossEntropyLoss(), device=str(device)
    )
    finder.range_test(repetition.loader(), end_lr=repetition.lr_range.high, num_iter=repetition.lr_range.steps)
    result = finder.plot(suggest_lr=True)  # (axes, lr), or only axes when there is no suggestion
    return float(result[1]) if isinstance(result, tuple) else None


def lightning(repetition: Repetition) -> float | None:
    """Run Lightning's `Tuner.lr_find` with its defaults, except for the range."""
    import lightning.pytorch as pl
    from lightning.pytorch.tuner import Tuner

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr = repetition.model(), repetition.lr_range.low

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            images, labels = batch
            return F.cross_entropy(self.model(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return repetition.optimizer(self.model, self.lr)

    module, lr_range = Module(), repetition.lr_range
    device = repetition.lr_finder.inputs.device
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        result = Tuner(trainer).lr_find(
            module,
            train_dataloaders=repetition.loader(),
            min_lr=lr_range.low,
            max_lr=lr_range.high,
            num_training=lr_range.steps,
        )
    return None if result is None else result.suggestion()


FINDERS: dict[str, tuple[str, Finder]] = {
    "ours": ("", ours),
    "torch-lr-finder": ("torch-lr-finder", torch_lr_finder),
    "Lightning": ("lightning", lightning),
}


def installed(package: str) -> bool:
    """Return whether a package is installed in a version that may be used; say so if not."""
    if not package:
        return True
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        print(f"{package} is not installed and is skipped; pip install {package}")
        return False
    if package == "lightning" and version in ("2.6.2", "2.6.3"):
        print(f"lightning {version} must not be used; pip install 'lightning!=2.6.2,!=2.6.3'")
        return False
    return True


def main() -> None:
    """Print a table of suggestions, seconds, and held-out accuracy of training with them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="repetitions, each with a different seed")
    parser.add_argument("--train-steps", type=int, default=200, help="steps of the run that uses a suggestion")
    for name in ("steps", "low", "high"):
        parser.add_argument(f"--{name}", type=int if name == "steps" else float, default=None)
    options, rest = parser.parse_known_args()
    settings = {word.lstrip("-"): value for word, value in zip(rest[::2], rest[1::2], strict=True)}
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # of the other libraries
    config = make_config({"wandb": "disabled", "deterministic": True, **settings})
    lr_finder = LRFinder(
        finder_inputs(config, build_components(config)),
        LRFinderOptions(options.steps, options.low, options.high, seeds=1),
        report=LineReporter().message,
    )
    assert lr_finder.val_loader is not None, "too few images to hold any out"
    print(
        f"{config.model} on {config.data}, batch {config.batch_size}, {lr_finder.lr_range}, {Path(torch.__file__).parent.name} {torch.__version__}"
    )
    print(f"{'finder':<18}{'lr_max (each run)':<34}{'s':>7}  held-out accuracy of training with it")
    for name, (package, finder) in FINDERS.items():
        if installed(package):
            print(_line(name, finder, lr_finder, options.runs, options.train_steps), flush=True)


def _line(name: str, finder: Finder, lr_finder: LRFinder, runs: int, steps: int) -> str:
    rates, seconds, scores = [], [], []
    for seed in range(runs):
        began = time.monotonic()
        lr = finder(Repetition(lr_finder, seed))
        seconds.append(time.monotonic() - began)
        rates.append(lr)
        if lr is not None and lr_finder.val_loader is not None:
            schedule = Schedule("one_cycle", steps, lr / 10, lr, peak=steps / 5, momentum=lr_finder.config.momentum)
            scores.append(
                100
                * short_run(
                    lr_finder.learner_factory, lr_finder.loader_factory, lr_finder.val_loader, schedule, seed=seed
                ).acc
            )
    suggestions = ", ".join("none" if lr is None else f"{lr:.2g}" for lr in rates)
    accuracy = f"{mean(scores):.1f} % ({min(scores):.1f} to {max(scores):.1f})" if scores else "-"
    return f"{name:<18}{suggestions:<34}{mean(seconds):>7.1f}  {accuracy}"


if __name__ == "__main__":
    main()
