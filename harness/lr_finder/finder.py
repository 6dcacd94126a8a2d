"""`LRFinder`: LR range tests over several seeds, with held-out images and short confirmation runs."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from harness.config.conversion import BALANCED
from harness.config.settings import FIND, Config
from harness.data import loaders
from harness.data.balance import class_weights, most_frequent_share
from harness.data.dataset import Dataset, hold_out
from harness.data.mixup import make_mixup
from harness.data.preprocess import Preprocess
from harness.evaluation.initial_weights import give_initial_weights, read_initial_weights
from harness.lr_finder.analysis import LRCurve
from harness.lr_finder.measure import measure_of
from harness.lr_finder.range_test import LRRange, ShortRun, candidate_lrs, default_range, range_test, short_run
from harness.lr_finder.result import LRFinderResult
from harness.lr_finder.suggestion import Suggestion, round_significant, suggest
from harness.models import factory
from harness.tracking.records import Record
from harness.training.learner import Learner, make_learner
from harness.training.loop import EvalBatches, StepInfo, TrainBatches
from harness.training.losses import uniform_loss, uninformed_loss
from harness.training.rng import preserve_rng_state
from harness.training.schedule import Schedule
from harness.utils.errors import UsageError

MAX_HELD_OUT = 512  # images held out of the training set
SHORT_RUN_STEPS = (50, 300)  # a short run takes two epochs, within these


@dataclass(frozen=True)
class LRFinderOptions:
    """The options of a range test; None: as `default_range` sets it.

    Attributes:
        steps: updates between `low` and `high`.
        linear: raise the learning rate linearly instead of exponentially.
        seeds: how many tests, each with other initial weights and another order of the images.
        confirm: how many short runs around the suggestion.
    """

    steps: int | None = None
    low: float | None = None
    high: float | None = None
    linear: bool = False
    seeds: int = 3
    confirm: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= 100:
            raise UsageError(f"seeds={self.seeds}: need 1 to 100; three show the spread")
        if not 0 <= self.confirm <= 20:
            raise UsageError(f"confirm={self.confirm}: need 0 to 20 short runs")


@dataclass(frozen=True)
class LRFinderInputs:
    """What the learning rates are searched for.

    Attributes:
        precision: dtype of autocast; None: float32 throughout.
        steps_per_epoch: updates in an epoch of the run.
    """

    config: Config
    dataset: Dataset
    preprocess: Preprocess
    device: torch.device
    precision: torch.dtype | None
    steps_per_epoch: int


class LRFinder:
    """Runs range tests on models and loaders that it makes for itself.

    Args:
        report: takes a line of progress.
        on_step: called after each update of a range test.
        check: called after each update, of the short runs too; it may raise to stop.

    Attributes:
        curves: the measurements so far, one per seed.
        measure: what is measured beside the loss.
        uniform_loss: loss of a model that gives every class the same probability, nats: of cross-entropy ln(classes). Where images
            have several labels, of a model that knows how frequent each class is, and nothing else.
        val_loader: the held-out images; None where there are too few to hold any out.
    """

    def __init__(
        self,
        inputs: LRFinderInputs,
        options: LRFinderOptions,
        *,
        report: Callable[[str], None] = lambda message: None,
        on_step: Callable[[StepInfo], None] = lambda step_info: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.inputs, self.config, self.options = inputs, inputs.config, options
        self.report, self.on_step, self.check = report, on_step, check
        self.lr_range = range_for(inputs.config, options)
        self.num_classes = inputs.config.classes or len(inputs.dataset.classes)
        self.measure = measure_of(inputs.config.is_multilabel)
        self.uniform_loss = self._uniform_loss()
        self.dataset, remark = hold_out_for_finder(inputs.dataset, inputs.config)
        self.remarks = (remark,) if remark else ()
        self.curves: list[LRCurve] = []
        self.val_loader: EvalBatches | None = None
        if self.dataset.val is not None:
            with preserve_rng_state():
                self.val_loader = self._loaders(inputs.config.seed).val

    def records(self, seeds: Sequence[int] | None = None) -> Iterator[Record]:
        """Run the tests and yield one record per seed; None: the run's own seed and those after it."""
        config = self.config
        if seeds is None:
            seeds = [(config.seed + offset) % 2**63 for offset in range(self.options.seeds)]
        for record in range_test(
            self.learner_factory,
            self.loader_factory,
            self.lr_range,
            seeds=seeds,
            # Where the momentum moves against the learning rate, it is lowest where the learning rate is highest.
            momentum=config.momentum if config.momentum_min is None else config.momentum_min,
            uniform_loss=self.uniform_loss,
            curves=self.curves,
            val_loader=self.val_loader,
            on_step=self._on_step,
        ):
            curve = self.curves[-1]
            self.report(
                f"range test, seed {curve.seed}: {len(curve.lrs)} steps, {curve.lrs[0]:.2g} to {curve.lrs[-1]:.2g}: {curve.end}"
            )
            yield record

    def result(self, folder: Path) -> LRFinderResult:
        """Return the result of the tests so far, after the short runs of `options.confirm`.

        Args:
            folder: the run directory that it belongs to.
        """
        suggestion = suggest(self.curves, uniform_loss=self.uniform_loss, chance=self._chance(), measure=self.measure)
        short_runs = self._short_runs(suggestion)
        lr_min, lr_max = suggestion.lr_min, suggestion.lr_max
        if any(run.acc > 0 for run in short_runs):
            best = max(
                short_runs, key=lambda run: run.acc
            )  # of equal ones the first, which is nearest to the suggestion
            lr_min, lr_max = best.lr_min, best.lr_max
        return LRFinderResult(
            folder=folder,
            config=self.config,
            lr_range=self.lr_range,
            lr_min=lr_min,
            lr_max=lr_max,
            suggestion=suggestion,
            curves=self.curves,
            short_runs=short_runs,
            held_out_images=self.val_loader.num_images if self.val_loader is not None else 0,
            remarks=self.remarks,
            has_val_split=self.inputs.dataset.val is not None and not self.config.val_fraction,
        )

    def _uniform_loss(self) -> float:
        if not self.config.is_multilabel:
            return uniform_loss(self.config, self.num_classes)
        dataset = self.inputs.dataset
        weights = class_weights(self.config, dataset.train.labels, dataset.classes, self.num_classes)
        return uninformed_loss(self.config, dataset.train.labels, weights)

    def _chance(self) -> float:
        """Return what the measure is where nothing has been learnt, 0..1."""
        labels = self.inputs.dataset.train.labels
        if self.config.is_multilabel:
            return 0.5
        return 1 / len(np.unique(labels)) if self.config.sampling == BALANCED else most_frequent_share(labels)

    def _short_runs(self, suggestion: Suggestion) -> list[ShortRun]:
        if not self.options.confirm or suggestion.lr_max is None or suggestion.lr_min is None:
            return []
        if self.val_loader is None:
            raise UsageError("--confirm needs held-out images, and the training set is too small; leave --confirm out")
        runs = []
        for lr_max in candidate_lrs(suggestion.lr_max, self.options.confirm):
            lr_min = lr_max * suggestion.lr_min / suggestion.lr_max
            schedule = self._short_schedule(round_significant(lr_max), round_significant(lr_min))
            run = short_run(
                self.learner_factory,
                self.loader_factory,
                self.val_loader,
                schedule,
                seed=self.config.seed,
                check=self.check,
            )
            outcome = (
                "diverged" if math.isnan(run.loss) else f"{100 * run.acc:.1f} % held-out {self.measure.held_out_name}"
            )
            self.report(f"short run, LRMAX {run.lr_max:.2g}: {outcome}")
            runs.append(run)
        return runs

    def _short_schedule(self, lr_max: float, lr_min: float) -> Schedule:
        config = self.config
        steps = min(max(2 * self.inputs.steps_per_epoch, SHORT_RUN_STEPS[0]), SHORT_RUN_STEPS[1])
        has_peak = config.schedule == "one_cycle" and config.epochs
        peak = (config.peak_epoch / config.epochs if has_peak else 0.2) * steps
        return Schedule(
            "one_cycle", steps, lr_min, lr_max, peak=peak, momentum=config.momentum, momentum_min=config.momentum_min
        )

    def learner_factory(self, seed: int) -> Learner:
        """Return a learner as a run with that seed begins with."""
        config, inputs = with_placeholder_lr(self.config).replace(seed=seed), self.inputs
        gc.collect()  # a learner of another seed, and what it holds on the device
        torch.manual_seed(seed)
        model = factory.create_model(config, self.num_classes)
        factory.initialise_for(model, config, self.dataset, inputs.preprocess)
        if config.init:
            give_initial_weights(model, read_initial_weights(config.init), self.dataset.classes, config.model)
        mixup, forward = (
            make_mixup(config, self.num_classes),
            factory.make_training_forward(config, model, inputs.device),
        )
        train = self.dataset.train
        weights = class_weights(config, train.labels, self.dataset.classes, self.num_classes)
        return make_learner(
            config, model, inputs.device, inputs.precision, mixup, forward=forward, class_weights=weights
        )

    def loader_factory(self, seed: int) -> TrainBatches:
        """Return the training batches of a run with that seed, without the held-out images."""
        return self._loaders(seed).train

    def _loaders(self, seed: int) -> loaders.Loaders:
        config = with_placeholder_lr(self.config).replace(seed=seed)
        return loaders.make_loaders(config, self.dataset, self.inputs.preprocess, self.inputs.device)

    def _on_step(self, step_info: StepInfo) -> None:
        self.on_step(step_info)
        self.check()


def hold_out_for_finder(dataset: Dataset, config: Config) -> tuple[Dataset, str]:
    """Return the data set with a small part of the training images as `val` and no test images, and a remark or "".

    The part is 2 % of the images but at least 200, at most a tenth, and never more than 512.
    """
    total = len(dataset.train)
    count = min(MAX_HELD_OUT, max(round(0.02 * total), min(200, total // 10)))
    if count < len(dataset.classes):
        return dataclasses.replace(dataset, val=None, test=None), "too few training images to hold any out"
    train, val = hold_out(dataset.train, count / total, "val", "val_fraction", seed_name="find")
    if config.drop_last and len(train) < config.batch_size:
        remark = f"the {len(val)} images used for evaluation are trained on too, since a batch needs nearly all {total}"
        return dataclasses.replace(dataset, val=val, test=None), remark
    return dataclasses.replace(dataset, train=train, val=val, test=None), ""


def range_for(config: Config, options: LRFinderOptions) -> LRRange:
    """Return the learning rates that the test takes."""
    return default_range(
        config.optimizer, steps=options.steps, low=options.low, high=options.high, linear=options.linear
    )


def with_placeholder_lr(config: Config) -> Config:
    """Return `config` with default numbers in place of the value `find`, so that a run's components can be built."""
    if not config.needs_lr_find:
        return config
    default = Config()
    lr_min, lr_max = (
        getattr(default if getattr(config, name) == FIND else config, name) for name in ("lr_min", "lr_max")
    )
    return config.replace(lr_min=min(lr_min, lr_max), lr_max=max(lr_min, lr_max))
