"""Our range test beside torch-lr-finder's and Lightning's tuner's: what each suggests, and what training so gives.

    pip install torch-lr-finder "lightning!=2.6.2,!=2.6.3"
    python benchmarks/finders.py --recipe digits
    python benchmarks/finders.py --model-args width=16 --batch-size 128 --runs 3 --train-steps 400

All see the same model, initial weights, batches, optimizer and range. Then each suggestion is trained with: the same
short one-cycle run with LRMIN = LRMAX/10, judged on images that nobody trained on. A finder that is not installed is
left out, and said to be.
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

Finder = Callable[["Setting"], float | None]


class Setting:
    """What every finder is given for one repetition."""

    def __init__(self, bench: LRFinder, seed: int) -> None:
        self.bench, self.seed, self.lr_range = bench, seed, bench.lr_range

    def model(self) -> nn.Module:
        """The model with the initial weights of the seed."""
        return self.bench.learner_factory(self.seed).model

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return make_optimizer(self.bench.config.replace(lr_max=lr, lr_min=0.0), model.parameters())

    def loader(self) -> DataLoader[Any]:
        """As many of the seed's batches as the range has steps, ready made, since both peers ask for a DataLoader."""
        train, epoch = self.bench.loader_factory(self.seed), 0
        batches: list[tuple[torch.Tensor, torch.Tensor]] = []
        while len(batches) < self.lr_range.steps:
            batches += list(train.epoch(epoch))
            epoch += 1
        return DataLoader(batches[: self.lr_range.steps], batch_size=None)  # type: ignore[arg-type]


def ours(setting: Setting) -> float | None:
    """This project's test, one seed."""
    bench = setting.bench
    bench.curves.clear()
    for _ in bench.records([setting.seed]):
        pass
    return suggest(bench.curves, uniform_loss=bench.uniform_loss).lr_max


def torch_lr_finder(setting: Setting) -> float | None:
    """davidtvs/pytorch-lr-finder: steepest descent, as its plot suggests."""
    import matplotlib
    from torch_lr_finder import LRFinder

    matplotlib.use("Agg")
    model = setting.model()
    device = next(model.parameters()).device
    finder = LRFinder(model, setting.optimizer(model, setting.lr_range.low), nn.CrossEntropyLoss(), device=str(device))
    finder.range_test(setting.loader(), end_lr=setting.lr_range.high, num_iter=setting.lr_range.steps)
    found = finder.plot(suggest_lr=True)
    return float(found[1]) if isinstance(found, tuple) else None


def lightning(setting: Setting) -> float | None:
    """Lightning's `Tuner.lr_find` with its own defaults but for the range."""
    import lightning.pytorch as pl
    from lightning.pytorch.tuner import Tuner

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr = setting.model(), setting.lr_range.low

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            images, labels = batch
            return F.cross_entropy(self.model(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return setting.optimizer(self.model, self.lr)

    module, window = Module(), setting.lr_range
    device = setting.bench.inputs.device
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
        found = Tuner(trainer).lr_find(
            module, train_dataloaders=setting.loader(), min_lr=window.low, max_lr=window.high, num_training=window.steps
        )
    return None if found is None else found.suggestion()


FINDERS: dict[str, tuple[str, Finder]] = {
    "ours": ("", ours),
    "torch-lr-finder": ("torch-lr-finder", torch_lr_finder),
    "Lightning": ("lightning", lightning),
}


def installed(package: str) -> bool:
    """Whether a peer is there and may be used."""
    if not package:
        return True
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        print(f"{package} is not installed, so it is left out; pip install {package}")
        return False
    if package == "lightning" and found in ("2.6.2", "2.6.3"):
        print(f"lightning {found} must not be used; pip install 'lightning!=2.6.2,!=2.6.3'")
        return False
    return True


def main() -> None:
    """Print a table: suggestion, seconds, and the held-out accuracy of training with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="repetitions, each with another seed")
    parser.add_argument("--train-steps", type=int, default=200, help="steps of the run that tries a suggestion")
    for name in ("steps", "low", "high"):
        parser.add_argument(f"--{name}", type=int if name == "steps" else float, default=None)
    own, rest = parser.parse_known_args()
    settings = {word.lstrip("-"): value for word, value in zip(rest[::2], rest[1::2], strict=True)}
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # the peers' own
    config = make_config({"wandb": "disabled", "deterministic": True, **settings})
    bench = LRFinder(
        finder_inputs(config, build_components(config)),
        LRFinderOptions(own.steps, own.low, own.high, seeds=1),
        report=LineReporter().message,
    )
    assert bench.val_loader is not None, "too few images to hold any out"
    print(
        f"{config.model} on {config.data}, batch {config.batch_size}, {bench.lr_range}, {Path(torch.__file__).parent.name} {torch.__version__}"
    )
    print(f"{'finder':<18}{'LRMAX (each run)':<34}{'s':>7}  held-out accuracy of training so")
    for name, (package, finder) in FINDERS.items():
        if installed(package):
            print(_line(name, finder, bench, own.runs, own.train_steps), flush=True)


def _line(name: str, finder: Finder, bench: LRFinder, runs: int, steps: int) -> str:
    rates, seconds, scores = [], [], []
    for seed in range(runs):
        began = time.monotonic()
        lr = finder(Setting(bench, seed))
        seconds.append(time.monotonic() - began)
        rates.append(lr)
        if lr is not None and bench.val_loader is not None:
            schedule = Schedule("one_cycle", steps, lr / 10, lr, peak=steps / 5, momentum=bench.config.momentum)
            scores.append(
                100 * short_run(bench.learner_factory, bench.loader_factory, bench.val_loader, schedule, seed=seed).acc
            )
    said = ", ".join("none" if lr is None else f"{lr:.2g}" for lr in rates)
    judged = f"{mean(scores):.1f} % ({min(scores):.1f} to {max(scores):.1f})" if scores else "-"
    return f"{name:<18}{said:<34}{mean(seconds):>7.1f}  {judged}"


if __name__ == "__main__":
    main()
