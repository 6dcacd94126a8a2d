"""The same settings over several seeds: ordinary runs in one W&B group, and what they come to together.

The runs stand beside each other in the output folder, each what `harness run --seed K` makes; beside them stands a
folder with the summary. One after another in one process: imports and the verdict on precision are paid for once.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count as upwards
from pathlib import Path
from typing import IO, Any

from harness.tracking.run_dir import RunState
from harness.utils import environment
from harness.tracking import run_dir
from harness.runs import run
from harness.config import yaml_io
from harness.config.settings import Config, setting_fields
from harness.runs.progress import LineReporter
from harness.utils.errors import BusyError, CheckpointError, DivergedError, HarnessError, ResourceError, UsageError
from harness.utils.files import read_json, write_atomically, write_json
from harness.utils.signals import Interrupted, StopRequests
from harness.reporting.html.share import write_run_page
from harness.utils.stats import CONFIDENCE, MeanInterval, mean_interval
from harness.runs.trainer import ProgressReporter
from harness.tracking.wandb.failed_trial import report_failed_trial
from harness.training import device as machine

SUMMARY, TABLE, FIGURES, RECIPE = run_dir.SEEDS, "seeds.csv", "figures.csv", "recipe.yaml"
# What else must be equal for a finished run to be one of these: it has the same figures of the same images, in one group.
REUSED = ("group", "data_dir", "test", "tta")
# A seed's own misfortune. Any other error would meet the next seed as well.
OF_ONE_SEED = (DivergedError, CheckpointError, BusyError, ResourceError)
LONGEST = 60  # letters of a name that leave room for the seed in a folder's name


class SeedsFailedError(HarnessError):
    """Some of the seeds did not come to their end."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True)
class SeedRun:
    """One of the runs.

    Attributes:
        state: waiting, finished, failed or interrupted.
        folder: name of its run folder in the output folder; empty where it has none yet.
        result: what its `summary.json` calls its result. rates: its LRMIN and LRMAX.
        reason, exit_code: of a seed that failed.
    """

    seed: int
    state: str = "waiting"
    folder: str = ""
    result: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    reason: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class SeedsResult:
    """What several seeds came to.

    Attributes:
        folder: holds `seeds.json`, `seeds.csv` (a row a seed), `figures.csv` (a row a figure) and `recipe.yaml`.
        config: the settings of the first seed; its `group` is that of all.
    """

    folder: Path
    config: Config
    seeds: tuple[SeedRun, ...]

    @property
    def finished(self) -> tuple[SeedRun, ...]:
        """The seeds that came to their end."""
        return tuple(seed for seed in self.seeds if seed.state == RunState.FINISHED)

    @property
    def failed(self) -> tuple[SeedRun, ...]:
        """The seeds that did not, for a reason of their own."""
        return tuple(seed for seed in self.seeds if seed.state == RunState.FAILED)

    @property
    def figures(self) -> dict[str, MeanInterval]:
        """`test/acc` and the like, each over the seeds that finished."""
        names = dict.fromkeys(
            key for seed in self.finished for key, value in seed.result.items() if _counts(key, value)
        )
        return {
            name: mean_interval([seed.result[name] for seed in self.finished if _counts(name, seed.result.get(name))])
            for name in names
        }

    @property
    def command(self) -> str:
        """The line that goes on with what is unfinished."""
        return shlex.join(["harness", "run", "--recipe", str(self.folder / RECIPE), "--seeds", str(len(self.seeds))])

    def check(self) -> None:
        """Raise `SeedsFailedError`, with the first one's exit status, when a seed failed."""
        if self.failed:
            first = self.failed[0]
            raise SeedsFailedError(
                f"{len(self.failed)} of {len(self.seeds)} seeds failed, seed {first.seed} because: {first.reason}; the same command tries again",
                first.exit_code,
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values: the seeds, each figure's spread, how to go on."""
        return {
            "seeds": [vars(seed) for seed in self.seeds],
            "figures": {name: vars(found) for name, found in self.figures.items()},
            "confidence": CONFIDENCE,
            "group": self.config.group,
            "resume": "" if len(self.finished) == len(self.seeds) else self.command,
            "config": self.config.to_dict(),
        }


def run_seeds(config: Config, count: int, display: ProgressReporter | None = None) -> SeedsResult:
    """Train the seeds `config.seed`, `config.seed` + 1, ...: the same as `harness run --seeds COUNT`.

    Seeds that a call with the same settings has finished are not trained again, and one that it has begun goes on. A
    seed that diverges does not keep the others from training: see `SeedsResult.check`.

    Raises:
        HarnessError: every seed would meet it: a wrong setting, missing data, W&B refused.
        Interrupted: a signal stopped it; the state was saved and the same call goes on.
    """
    with report_failed_trial():
        _check(config, count)
        config = _common(config)
        configs = [_of_seed(config, config.seed + place) for place in range(count)]
        run_dir.check_output(config)
        folder, lock = _claim(config, count)
    display = display or LineReporter(sys.stderr)
    try:
        write_atomically(folder / RECIPE, config.replace(resume="auto").to_yaml())
        told = SeedsResult(folder, config, tuple(SeedRun(each.seed) for each in configs))
        with StopRequests() as stop_requests:
            for place, each in enumerate(configs):
                told = _train(told, place, each, display, stop_requests)
    finally:
        lock.close()
    if config.report and count > 1:
        write_run_page(folder, display.say)
    display.say(f"summary of the seeds: {folder}" + _sync(told))
    return told


def seeds_table(told: SeedsResult) -> str:
    """A line a seed, then a line a figure, for a person."""
    names = [name for name in told.figures if name.endswith(("/acc", "/loss"))]
    lines = [
        f"seed {seed.seed:<5} {seed.state:<12} {'  '.join(f'{name} {_number(name, seed.result[name])}' for name in names if name in seed.result) or seed.reason}"
        for seed in told.seeds
    ]
    for name, found in told.figures.items():
        text = f"{name:<10} mean {_number(name, found.mean)} of {found.n} seed{'s' * (found.n > 1)}"
        if found.sd is not None and found.low is not None and found.high is not None:
            ends = found.low, found.high
            if _is_share(name):  # no share lies outside, whatever Student's interval of few seeds says
                ends = max(0.0, found.low), min(1.0, found.high)
            points = f"{100 * found.sd:.2f} points" if _is_share(name) else f"{found.sd:.4f}"
            text += (
                f", standard deviation {points}, 95 % interval {_number(name, ends[0])} to {_number(name, ends[1])}"
                f", from {_number(name, found.least)} to {_number(name, found.most)}"
            )
        lines.append(text)
    if told.failed and told.finished:
        lines.append(f"without the {len(told.failed)} that failed, so the figures are those of the luckier seeds")
    return "\n".join(lines)


def _check(config: Config, count: int) -> None:
    """Refuse what several seeds can not go with."""
    if count < 1:
        raise UsageError(f"seeds={count}: need at least 1")
    if os.environ.get("WANDB_SWEEP_ID"):
        raise UsageError(
            f"seeds={count}: a run of a sweep is one W&B run; leave seeds out and make `seed` a parameter of the sweep"
        )
    if os.environ.get("WANDB_RUN_ID"):
        raise UsageError(f"seeds={count} makes as many W&B runs, and WANDB_RUN_ID names one; unset it")
    if environment.world_size() > 1:
        raise UsageError(
            f"seeds={count} trains in one process, and this is one of several; start each seed by itself: --seed {config.seed}"
        )
    if config.resume not in ("auto", "never"):
        raise UsageError(
            f"--resume {config.resume} is one run; with several seeds leave it out: the same command goes on with each"
        )
    highest = setting_fields()["seed"].metadata["high"]
    if config.seed + count - 1 > highest:
        raise UsageError(f"seed={config.seed}, seeds={count}: the last seed is above {highest}; lower one of them")


def _common(config: Config) -> Config:
    """The settings with what all seeds share made definite: the number format and the group."""
    device = machine.pick_device(config.device)
    machine.configure_torch(config, device)
    config = config.replace(precision=machine.pick_precision(config.precision, device))
    group = config.group or os.environ.get("WANDB_RUN_GROUP") or config.name or run_dir.name_without_seed(config)
    return config.replace(group=group)


def _of_seed(config: Config, seed: int) -> Config:
    return config.replace(seed=seed, name=config.name and f"{config.name[:LONGEST]}-s{seed}")


def _claim(config: Config, count: int) -> tuple[Path, IO[str]]:
    """The locked folder of the summary: the one of the same settings, or a new one."""
    start = run_dir.slug(config.name or run_dir.name_without_seed(config))[:LONGEST]
    base = f"{start}-seeds-{config.seed}-{config.seed + count - 1}"
    for number in upwards(1):
        path = Path(config.output).expanduser() / (base if number == 1 else f"{base}-{number}")
        if (path / RECIPE).exists() and (config.resume == "never" or not _equal(path / RECIPE, config)):
            continue
        path.mkdir(exist_ok=True)
        lock = run_dir.lock_folder(path)
        if lock is None:
            raise BusyError(f"{path}: another process trains these seeds; wait for it, or give --name")
        return path, lock
    raise AssertionError("unreachable")


def _equal(path: Path, config: Config) -> bool:
    """Whether a saved configuration is that of runs with the same figures, in the same group."""
    try:
        there = Config(**yaml_io.read_yaml(path))
    except (HarnessError, TypeError):
        return False
    same = all(getattr(there, name) == getattr(config, name) for name in REUSED)
    return same and there.affecting_results() == config.affecting_results()


def _train(told: SeedsResult, place: int, config: Config, display: ProgressReporter, stop_requests: StopRequests) -> SeedsResult:
    """One seed trained, or found to be; the summary is written whatever happens."""
    total = len(told.seeds)
    before = None if config.resume == "never" else _finished(config)
    if before is not None:
        display.say(f"seed {config.seed}, {place + 1} of {total}: finished before in {before}")
        return _with(told, place, _ended(config.seed, before))
    display.say(f"seed {config.seed}, {place + 1} of {total}")
    try:
        with stop_requests.at_once():  # until the run has its own handlers; what is loaded then is nothing to be saved
            path = run.run(config, display).folder
    except Interrupted as stop:
        told = _with(told, place, _broken(config, RunState.INTERRUPTED, stop))
        done = f"{len(told.finished)} of {total} seeds are done"
        raise Interrupted(f"{stop}; {done}; go on with: {told.command}", stop.exit_code) from stop
    except OF_ONE_SEED as error:
        display.say(f"seed {config.seed} failed: {error}")
        return _with(told, place, _broken(config, RunState.FAILED, error))
    except HarnessError as error:
        _with(told, place, _broken(config, RunState.FAILED, error))
        raise
    finally:
        if isinstance(display, LineReporter):
            display.close()  # the next seed has a bar of its own
        machine.release_memory()
    return _with(told, place, _ended(config.seed, path))


def _finished(config: Config) -> Path | None:
    """The folder in which this very run has come to its end."""
    for path in run_dir.runs_with_settings(config):
        if run_dir.read_state(path) == RunState.FINISHED and _equal(path / run_dir.CONFIG, config):
            return path
    return None


def _ended(seed: int, folder: Path) -> SeedRun:
    summary = run_dir.read_summary(folder)
    rates: dict[str, float] = {name: summary[name] for name in ("lr_min", "lr_max") if name in summary}
    return SeedRun(seed, RunState.FINISHED, folder.name, summary.get("result", {}), rates)


def _broken(config: Config, state: str, error: HarnessError) -> SeedRun:
    left = [path.name for path in run_dir.runs_with_settings(config) if _equal(path / run_dir.CONFIG, config)]
    return SeedRun(config.seed, state, left[-1] if left else "", reason=str(error), exit_code=error.exit_code)


def _with(told: SeedsResult, place: int, seed: SeedRun) -> SeedsResult:
    """`told` with the news of one seed, which is written down."""
    seeds = (*told.seeds[:place], seed, *told.seeds[place + 1 :])
    told = dataclasses.replace(told, seeds=seeds)
    write_json(told.folder / SUMMARY, told.to_json())
    names = list(told.figures)
    rows = [
        [each.seed, each.state, each.folder, *(each.rates.get(name, "") for name in ("lr_min", "lr_max"))]
        + [each.result.get(name, "") for name in names]
        for each in told.seeds
    ]
    write_atomically(told.folder / TABLE, _csv(["seed", "state", "folder", "lr_min", "lr_max", *names], rows))
    columns = [field.name for field in dataclasses.fields(MeanInterval)]
    figures = [[name, *(_cell(getattr(found, key)) for key in columns)] for name, found in told.figures.items()]
    write_atomically(told.folder / FIGURES, _csv(["figure", *columns], figures))
    return told


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _cell(value: float | None) -> float | str:
    return "" if value is None else value


def _sync(told: SeedsResult) -> str:
    """What brings the runs to W&B; empty where they are there."""
    home = told.folder.parent
    waiting = any(read_json(home / seed.folder / run_dir.STATUS).get("sync") for seed in told.seeds)
    return f"\nall to W&B: {shlex.join(['harness', 'sync', str(told.folder)])}" if waiting else ""


def _counts(name: str, value: Any) -> bool:
    """Whether a part of a result is a figure of a split."""
    return "/" in name and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_share(name: str) -> bool:
    return name.rsplit("/", 1)[-1].startswith(("acc", "ece"))


def _number(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if _is_share(name) else f"{value:.4f}"
