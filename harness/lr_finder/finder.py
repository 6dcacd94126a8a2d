"""What a range test is run on: learners and batches made anew for each seed, and images that none of them trains on."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.config.settings import FIND, Config
from harness.data import loaders
from harness.data.dataset import Dataset, hold_out
from harness.data.mixup import make_mixup
from harness.lr_finder.analysis import LRCurve
from harness.lr_finder.range_test import (
    LRRange,
    ShortRun,
    candidates,
    default_range,
    preserve_rng_state,
    range_test,
    short_run,
)
from harness.lr_finder.result import LRFinderResult
from harness.lr_finder.suggestion import Suggestion, round_significant, suggest
from harness.models import factory
from harness.tracking.records import Record
from harness.training.learner import Learner, make_learner
from harness.training.loop import EvalBatches, StepInfo, TrainBatches
from harness.training.schedule import Schedule
from harness.utils.errors import UsageError

if TYPE_CHECKING:
    from harness.runs.components import Components
    from harness.runs.trainer import ProgressReporter

MAX_HELD_OUT = 512  # images held out of the training set
TRIAL_STEPS = (50, 300)  # a short run takes two epochs, within these


@dataclass(frozen=True)
class LRFinderOptions:
    """What a range test is asked for; None: what `default_window` takes."""

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


class LRFinder:
    """All that a test needs of the parts of a run, which it leaves alone."""

    def __init__(
        self,
        config: Config,
        parts: Components,
        ask: LRFinderOptions,
        display: ProgressReporter,
        check: Callable[[], None],
    ) -> None:
        self.config, self.components, self.ask, self.display, self.check = config, parts, ask, display, check
        self.window = range_for(config, ask)
        self.classes = config.classes or len(parts.data.classes)
        self.uniform_loss = math.log(self.classes)  # the loss of a guess
        self.data, remark = hold_out_for_finder(parts.data, config)
        self.remarks = (remark,) if remark else ()
        self.curves: list[LRCurve] = []
        self.held: EvalBatches | None = None
        if self.data.val is not None:
            with preserve_rng_state():
                self.held = self._loaders(config.seed).val

    def records(self, seeds: Sequence[int] | None = None) -> Iterator[Record]:
        """The records of the test, one a seed; None: the run's own and those after it."""
        own = [(self.config.seed + number) % 2**63 for number in range(self.ask.seeds)]
        for record in range_test(
            self.make,
            self.feed,
            self.window,
            seeds=own if seeds is None else seeds,
            # Where the momentum moves against the rate, it is at its least where the rate is at its greatest.
            momentum=self.config.momentum if self.config.momentum_min is None else self.config.momentum_min,
            uniform_loss=self.uniform_loss,
            curves=self.curves,
            held=self.held,
            on_step=self._watch,
        ):
            trace = self.curves[-1]
            self.display.say(
                f"range test, seed {trace.seed}: {len(trace.lrs)} steps, {trace.lrs[0]:.2g} to {trace.lrs[-1]:.2g}: {trace.end}"
            )
            yield record

    def finding(self, folder: Path) -> LRFinderResult:
        """What the test says, after the short runs that were asked for."""
        said = suggest(self.curves, uniform_loss=self.uniform_loss)
        trials = self._trials(said)
        lr_min, lr_max = said.lr_min, said.lr_max
        if any(trial.acc > 0 for trial in trials):
            best = max(trials, key=lambda trial: trial.acc)  # of equal ones the first, the nearest to the suggestion
            lr_min, lr_max = best.lr_min, best.lr_max
        return LRFinderResult(
            folder=folder,
            config=self.config,
            window=self.window,
            lr_min=lr_min,
            lr_max=lr_max,
            suggestion=said,
            curves=self.curves,
            trials=trials,
            held_images=self.held.num_images if self.held is not None else 0,
            remarks=self.remarks,
            brings_val=self.components.data.val is not None and not self.config.val_fraction,
        )

    def _trials(self, said: Suggestion) -> list[ShortRun]:
        if not self.ask.confirm or said.lr_max is None or said.lr_min is None:
            return []
        if self.held is None:
            raise UsageError(
                "--confirm needs images to hold out, and the training set is too small; leave --confirm out"
            )
        trials = []
        for lr_max in candidates(said.lr_max, self.ask.confirm):
            schedule = self._short(round_significant(lr_max), round_significant(lr_max * said.lr_min / said.lr_max))
            trial = short_run(self.make, self.feed, self.held, schedule, seed=self.config.seed, on_step=self.check)
            self.display.say(
                f"short run, LRMAX {trial.lr_max:.2g}: {'diverged' if math.isnan(trial.loss) else f'{100 * trial.acc:.1f} % held-out'}"
            )
            trials.append(trial)
        return trials

    def _short(self, lr_max: float, lr_min: float) -> Schedule:
        config, steps = self.config, min(max(2 * self.components.batches.train.steps, TRIAL_STEPS[0]), TRIAL_STEPS[1])
        share = config.peak_epoch / config.epochs if config.schedule == "one_cycle" and config.epochs else 0.2
        return Schedule(
            "one_cycle",
            steps,
            lr_min,
            lr_max,
            peak=share * steps,
            momentum=config.momentum,
            momentum_min=config.momentum_min,
        )

    def make(self, seed: int) -> Learner:
        """A learner as a run with that seed begins with."""
        config, own = with_placeholder_lr(self.config).replace(seed=seed), self.components.learner
        gc.collect()  # a learner of another seed, and what it holds on the device
        torch.manual_seed(seed)
        model = factory.create_model(config, self.classes)
        return make_learner(config, model, own.device, own.precision, make_mixup(config, self.classes))

    def feed(self, seed: int) -> TrainBatches:
        """The training batches of a run with that seed, without the held-out images."""
        return self._loaders(seed).train

    def _loaders(self, seed: int) -> loaders.Loaders:
        config = with_placeholder_lr(self.config).replace(seed=seed)
        return loaders.make_loaders(config, self.data, self.components.preprocess, self.components.learner.device)

    def _watch(self, tick: StepInfo) -> None:
        self.display.tick(tick)
        self.check()


def hold_out_for_finder(data: Dataset, config: Config) -> tuple[Dataset, str]:
    """The training images with a small part of them as `val`, no test images, and what there is to remark.

    The part is 2 % of the images but at least 200, at most a tenth, and never more than 512.
    """
    total = len(data.train)
    count = min(MAX_HELD_OUT, max(round(0.02 * total), min(200, total // 10)))
    if count < len(data.classes):
        return dataclasses.replace(data, val=None, test=None), "there are too few training images to hold any out"
    rest, held = hold_out(data.train, count / total, "val", "val_fraction", seed_name="find")
    if config.drop_last and len(rest) < config.batch_size:
        remark = (
            f"the {len(held)} images that are evaluated on are trained on too, since a batch needs nearly all {total}"
        )
        return dataclasses.replace(data, val=held, test=None), remark
    return dataclasses.replace(data, train=rest, val=held, test=None), ""


def range_for(config: Config, ask: LRFinderOptions) -> LRRange:
    """The rates that the test takes."""
    return default_range(config.optimizer, steps=ask.steps, low=ask.low, high=ask.high, linear=ask.linear)


def with_placeholder_lr(config: Config) -> Config:
    """`config` with numbers that only stand in for the word `find`, so that the parts of a run can be made."""
    if not config.needs_lr_find:
        return config
    default = Config()
    lr_min, lr_max = (
        getattr(default if getattr(config, name) == FIND else config, name) for name in ("lr_min", "lr_max")
    )
    return config.replace(lr_min=min(lr_min, lr_max), lr_max=max(lr_min, lr_max))
