"""The same settings over several seeds: ordinary runs in one W&B group, with mean, standard deviation and interval.

Each run is the one of `harness run --seed K`, in a directory of its own; the summary has a directory beside them. The
runs train one after another in one process, which imports libraries and chooses the precision once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count as upwards
from pathlib import Path
from typing import IO, Any

from harness.config.names import FROM_PYTHON
from harness.config.recipe import AnyConfig
from harness.config.settings import AUTO, Config, setting_fields
from harness.config.stored import stored_config_or_none
from harness.data.own_datasets import config_of_call
from harness.data.registry import load_dataset
from harness.reporting.html.pages import write_run_page
from harness.runs.progress import LineReporter, ProgressReporter
from harness.runs.run import run
from harness.runs.tracked_run import check_tracking
from harness.tracking import run_dir
from harness.tracking.chosen_settings import read_choices
from harness.tracking.metric_names import interval_scale, is_share
from harness.tracking.run_dir import RunState
from harness.tracking.run_files import check_output_folder
from harness.tracking.run_list import has_diverged
from harness.tracking.run_names import name_without_seed, slug
from harness.tracking.wandb.failed_trial import report_failed_trial
from harness.training.device import pick_device, pick_precision, release_memory
from harness.training.process_settings import configured_torch
from harness.utils import environment
from harness.utils.errors import (
    BusyError,
    CheckpointError,
    DataError,
    DivergedError,
    HarnessError,
    ResourceError,
    TrackingError,
    UsageError,
)
from harness.utils.files import read_json, write_atomically, write_json
from harness.utils.plain import sub_mapping
from harness.utils.signals import Interrupted, StopRequests
from harness.utils.stats import CONFIDENCE, MeanInterval, mean_interval
from harness.utils.text import write_csv

SUMMARY, TABLE, FIGURES, RECIPE = run_dir.SEEDS, "seeds.csv", "figures.csv", run_dir.SEEDS_RECIPE
# Settings that must be equal for a finished run to be reused, besides those that affect the results.
REUSE_KEYS = ("group", "data_dir", "image_root", "test", "tta")
# Errors of a single seed. Any other error would end the next seed as well.
SINGLE_SEED_ERRORS = (DivergedError, CheckpointError, BusyError, ResourceError)
MAX_NAME = 60  # characters of a name, so that the seed still fits into the directory's name


class SeedsFailedError(HarnessError):
    """Some of the seeds failed."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True)
class SeedRun:
    """The run of one seed.

    Attributes:
        state: waiting, finished, failed or interrupted.
        folder: name of its run directory in the output directory; empty where it has none yet.
        result: the `result` of its `summary.json`.
        rates: its LRMIN and LRMAX.
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
    """The results of several seeds.

    Attributes:
        folder: holds `seeds.json`, `seeds.csv` (a row for each seed), `figures.csv` (a row for each metric) and `recipe.yaml`.
        config: the settings of the first seed; its `group` is that of all.
    """

    folder: Path
    config: Config
    seeds: tuple[SeedRun, ...]

    @property
    def finished(self) -> tuple[SeedRun, ...]:
        """The seeds that finished."""
        return tuple(seed for seed in self.seeds if seed.state == RunState.FINISHED)

    @property
    def failed(self) -> tuple[SeedRun, ...]:
        """The seeds that failed."""
        return tuple(seed for seed in self.seeds if seed.state == RunState.FAILED)

    @property
    def figures(self) -> dict[str, MeanInterval]:
        """Mean and interval of each metric (`test/acc` and the like) over the seeds that finished."""
        names = dict.fromkeys(
            key for seed in self.finished for key, value in seed.result.items() if _is_metric(key, value)
        )
        return {
            name: mean_interval(
                [seed.result[name] for seed in self.finished if _is_metric(name, seed.result.get(name))],
                scale=interval_scale(name),
            )
            for name in names
        }

    @property
    def command(self) -> str:
        """The command line that resumes the unfinished seeds."""
        return run_dir.resume_seeds_command(self.folder, len(self.seeds), self.config.plugin)

    def check(self) -> None:
        """Raise `SeedsFailedError`, with the first one's exit status, when a seed failed."""
        if self.failed:
            first = self.failed[0]
            again = [seed for seed in self.failed if not has_diverged(seed.state, vars(seed))]
            remedy = "; the same command tries them again" if len(again) == len(self.failed) else ""
            raise SeedsFailedError(
                f"{len(self.failed)} of {len(self.seeds)} seeds failed; seed {first.seed}: {first.reason}{remedy}",
                first.exit_code,
            )

    def to_json(self) -> dict[str, Any]:
        """Return plain values: the seeds, each metric's mean and interval, and the command that resumes."""
        return {
            "seeds": [vars(seed) for seed in self.seeds],
            "figures": {name: vars(interval) for name, interval in self.figures.items()},
            "confidence": CONFIDENCE,
            "group": self.config.group,
            "resume": "" if len(self.finished) == len(self.seeds) else self.command,
            "config": self.config.to_dict(),
        }


def run_seeds(config: AnyConfig, count: int, reporter: ProgressReporter | None = None, **settings: Any) -> SeedsResult:
    """Train the seeds `config.seed`, `config.seed` + 1, ...: the same as `harness run --seeds COUNT`.

    Seeds that an earlier call with the same settings finished are not trained again, and an unfinished one is resumed.
    A seed that diverges does not keep the others from training: see `SeedsResult.check`.

    Args:
        config: a configuration, a dictionary of settings, or a recipe by its name or path.
        settings: settings by keyword, such as `epochs=3`; they win. `data` may also be that of `run`.

    Raises:
        HarnessError: an error that every seed would end with: a wrong setting, missing data, W&B refused.
        Interrupted: a signal stopped it; the state was saved, and the same call resumes it.
    """
    with contextlib.ExitStack() as data:
        with report_failed_trial():
            config = data.enter_context(config_of_call(config, settings))
            _check(config, count)
        return _run_seeds(config, count, reporter)


def _run_seeds(config: Config, count: int, reporter: ProgressReporter | None) -> SeedsResult:
    with report_failed_trial():
        config = _common(config, count)
        read_fingerprint = cache(lambda: load_dataset(config).fingerprint)  # the splits of every seed are the same
        configs = [_with_seed(config, config.seed + index) for index in range(count)]
        check_tracking(config)
        run_dir.check_output(config)
        folder, lock, created = _claim(config, count, read_fingerprint)
    reporter = reporter or LineReporter(sys.stderr)
    try:
        write_atomically(folder / RECIPE, config.replace(resume="auto").to_yaml())
        result = SeedsResult(folder, config, tuple(SeedRun(one.seed) for one in configs))
        with StopRequests() as stop_requests:
            for index, one in enumerate(configs):
                result = _train(result, index, one, reporter, stop_requests, read_fingerprint)
    except (UsageError, DataError, TrackingError):
        if folder in created and not any(_runs_of(one) for one in configs):  # refused before anything began
            shutil.rmtree(folder, ignore_errors=True)
            run_dir.remove_empty(created)
        raise
    finally:
        lock.close()
    if line := _differing_choices(result):
        reporter.message(f"Warning: {line}")
    if config.report and count > 1:
        write_run_page(folder, reporter.message)
    reporter.message(f"Summary of the seeds: {folder}" + _sync_hint(result))
    return result


def seeds_table(result: SeedsResult) -> str:
    """Return a line for each seed, then one for each metric, for a terminal."""
    names = [name for name in result.figures if name.endswith(("/acc", "/map", "/loss"))]
    lines = [
        f"seed {seed.seed:<5} {seed.state:<12} {'  '.join(f'{name} {_number(name, seed.result[name])}' for name in names if name in seed.result) or seed.reason}"
        for seed in result.seeds
    ]
    width = max((len(name) for name in result.figures), default=0)
    for name, interval in result.figures.items():
        text = f"{name:<{width}} mean {_number(name, interval.mean)} of {interval.n} seed{'s' * (interval.n > 1)}"
        if interval.sd is not None:
            points = f"{100 * interval.sd:.2f} points" if is_share(name) else f"{interval.sd:.4f}"
            text += f", standard deviation {points}"
        if interval.low is not None and interval.high is not None:
            text += f", 95 % interval {_number(name, interval.low)} to {_number(name, interval.high)}"
        if interval.sd is not None:
            text += f", from {_number(name, interval.least)} to {_number(name, interval.most)}"
        lines.append(text)
    if any(interval.n == 2 for interval in result.figures.values()):
        lines.append("Two seeds have no 95 % interval that says anything; three or more have one.")
    if result.failed and result.finished:
        count = "1 failed seed is" if len(result.failed) == 1 else f"{len(result.failed)} failed seeds are"
        lines.append(f"{count} left out of these figures, which may therefore look too good.")
    return "\n".join(lines)


def _check(config: Config, count: int) -> None:
    """Refuse settings and surroundings that do not go with several seeds."""
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
            f"seeds={count} trains in one process, and this is one of several; start each seed on its own: --seed {config.seed}"
        )
    if config.resume not in ("auto", "never"):
        raise UsageError(
            f"--resume {config.resume} names one run; leave it out with several seeds: the same command resumes each of them"
        )
    highest = setting_fields()["seed"].metadata["high"]
    if config.seed + count - 1 > highest:
        raise UsageError(f"seed={config.seed}, seeds={count}: the last seed is above {highest}; lower one of them")


def _common(config: Config, count: int) -> Config:
    """Return the settings with what all seeds share made explicit: precision and group.

    Seeds that were begun keep their precision: `auto` may be a measurement, which must not decide whether they are found.
    """
    if config.precision == AUTO:
        for precision in run_dir.precisions() if config.resume == "auto" else ():
            begun = _with_group(config.replace(precision=precision))
            first = _with_seed(begun, begun.seed)
            saved = [path / RECIPE for path in _folders(begun, count)]
            if any(_equal(path, begun) for path in saved) or any(
                _equal(path / run_dir.CONFIG, first) for path in run_dir.runs_with_settings(first)
            ):
                return begun
    device = pick_device(config.device)
    with configured_torch(config, device):
        config = config.replace(precision=pick_precision(config.precision, device))
    return _with_group(config)


def _with_group(config: Config) -> Config:
    group = config.group or os.environ.get("WANDB_RUN_GROUP") or config.name or name_without_seed(config)
    return config.replace(group=group)


def _with_seed(config: Config, seed: int) -> Config:
    return config.replace(seed=seed, name=config.name and f"{config.name[:MAX_NAME]}-s{seed}")


def _folders(config: Config, count: int) -> Iterator[Path]:
    """Yield the directories in which a summary of seeds of this name stands, and then the first free one."""
    start = slug(config.name or name_without_seed(config))[:MAX_NAME]
    base = f"{start}-seeds-{config.seed}-{config.seed + count - 1}"
    for number in upwards(1):
        path = Path(config.output).expanduser() / (base if number == 1 else f"{base}-{number}")
        yield path
        if not (path / RECIPE).exists():
            return


def _claim(config: Config, count: int, read_fingerprint: Callable[[], str]) -> tuple[Path, IO[str], list[Path]]:
    """Return the locked directory of the summary (the one of the same settings, or a new one), and the folders made for it."""
    for path in _folders(config, count):
        if (path / RECIPE).exists() and (config.resume == "never" or not _equal(path / RECIPE, config)):
            continue
        if not all(_has_equal_data(run, config, read_fingerprint) for run in run_dir.members(path)):
            continue
        check_output_folder(path, is_named=False)
        created = run_dir.make_folder(path)
        run_dir.check_own_files(path)
        lock = run_dir.lock_folder(path)
        if lock is None:
            raise BusyError(f"{path}: another process is training these seeds; wait for it, or give --name")
        return path, lock, created
    raise AssertionError("unreachable")


def _equal(path: Path, config: Config) -> bool:
    """Return whether a recipe of earlier seeds has these settings."""
    saved = stored_config_or_none(path)
    return saved is not None and _are_reused(saved, config) and saved.affecting_results() == config.affecting_results()


def _has_equal_uses(folder: Path, config: Config) -> bool:
    """Return whether a run of these settings has the same data and group, and is evaluated in the same way."""
    saved = run_dir.stored_config(folder)
    return saved is not None and _are_reused(saved, config)


def _has_equal_data(folder: Path, config: Config, read_fingerprint: Callable[[], str]) -> bool:
    """Return whether the data of a run are those of these settings; without reading them where the settings tell.

    A data set that is an object of Python has the name of its class, which others have too.
    """
    if not config.data.startswith(FROM_PYTHON):
        return True
    trained = sub_mapping(run_dir.read_summary(folder), "dataset").get("fingerprint")
    return trained is None or trained == read_fingerprint()


def _are_reused(saved: Config, config: Config) -> bool:
    return all(getattr(saved, name) == getattr(config, name) for name in REUSE_KEYS)


def _train(
    result: SeedsResult,
    index: int,
    config: Config,
    reporter: ProgressReporter,
    stop_requests: StopRequests,
    read_fingerprint: Callable[[], str],
) -> SeedsResult:
    """Train one seed, or reuse its finished run; the summary is written whatever happens."""
    total = len(result.seeds)
    reused = None if config.resume == "never" else _finished_run(config, read_fingerprint)
    if reused is not None:
        reporter.message(f"Seed {config.seed} ({index + 1} of {total}): already finished in {reused}")
        return _update(result, index, _finished_seed(config.seed, reused))
    reporter.message(f"Seed {config.seed} ({index + 1} of {total})")
    try:
        with stop_requests.at_once():  # until the run has its own handlers; nothing loaded before that needs saving
            path = run(config, reporter).folder
    except Interrupted as stop:
        result = _update(result, index, _unfinished_seed(config, RunState.INTERRUPTED, stop))
        progress = f"{len(result.finished)} of {total} seeds are finished"
        raise Interrupted(f"{stop}; {progress}; resume with: {result.command}", stop.exit_code) from stop
    except SINGLE_SEED_ERRORS as error:
        reporter.message(f"Seed {config.seed} failed: {error}")
        return _update(result, index, _unfinished_seed(config, RunState.FAILED, error))
    except HarnessError as error:
        _update(result, index, _unfinished_seed(config, RunState.FAILED, error))
        raise
    finally:
        reporter.close()  # the next seed has a bar of its own
        release_memory()
    return _update(result, index, _finished_seed(config.seed, path))


def _finished_run(config: Config, read_fingerprint: Callable[[], str]) -> Path | None:
    """Return the directory in which this very run has finished."""
    for path in run_dir.runs_with_settings(config):
        if run_dir.read_state(path) != RunState.FINISHED or not _has_equal_uses(path, config):
            continue
        if _has_equal_data(path, config, read_fingerprint):
            return path
    return None


def _finished_seed(seed: int, folder: Path) -> SeedRun:
    if run_dir.SUMMARY in run_dir.changed_results(folder):
        raise DataError(
            f"{folder / run_dir.SUMMARY} has changed since the run ended; restore it, or train again with --resume never"
        )
    summary = run_dir.read_summary(folder)
    rates: dict[str, float] = {name: summary[name] for name in ("lr_min", "lr_max") if name in summary}
    return SeedRun(seed, RunState.FINISHED, folder.name, summary.get("result", {}), rates)


def _differing_choices(result: SeedsResult) -> str:
    """Return which settings the seeds have chosen differently from the data and the machine; empty where they are equal."""
    chosen = {seed.seed: read_choices(result.folder.parent / seed.folder) for seed in result.finished}
    names = dict.fromkeys(name for choices in chosen.values() for name in choices)
    differing = []
    for name in names:
        values: dict[str, int] = {}  # value -> the first seed that has it
        for seed, choices in chosen.items():
            if name in choices:
                values.setdefault(str(choices[name].value), seed)
        if len(values) > 1:
            differing.append(f"{name} ({', '.join(f'{value} in seed {seed}' for value, seed in values.items())})")
    if not differing:
        return ""
    return f"the seeds have different settings, so their mean is that of no one setting: {'; '.join(differing)}; give these settings and train again"


def _unfinished_seed(config: Config, state: str, error: HarnessError) -> SeedRun:
    runs = _runs_of(config)
    return SeedRun(config.seed, state, runs[-1] if runs else "", reason=str(error), exit_code=error.exit_code)


def _runs_of(config: Config) -> list[str]:
    """Return the names of the run directories of these settings in the same group, oldest first."""
    return [path.name for path in run_dir.runs_with_settings(config) if _has_equal_uses(path, config)]


def _update(result: SeedsResult, index: int, seed: SeedRun) -> SeedsResult:
    """Return `result` with one seed replaced, after writing it to the summary's files."""
    seeds = (*result.seeds[:index], seed, *result.seeds[index + 1 :])
    result = dataclasses.replace(result, seeds=seeds)
    write_json(result.folder / SUMMARY, result.to_json())
    names = list(result.figures)
    rows = [
        [one.seed, one.state, one.folder, *(one.rates.get(name, "") for name in ("lr_min", "lr_max"))]
        + [one.result.get(name, "") for name in names]
        for one in result.seeds
    ]
    write_csv(result.folder / TABLE, ["seed", "state", "folder", "lr_min", "lr_max", *names], rows)
    columns = [field.name for field in dataclasses.fields(MeanInterval)]
    figures = [[name, *(getattr(interval, column) for column in columns)] for name, interval in result.figures.items()]
    write_csv(result.folder / FIGURES, ["figure", *columns], figures)
    return result


def _sync_hint(result: SeedsResult) -> str:
    """Return the command that uploads the runs to W&B; empty where they are there already."""
    parent = result.folder.parent
    offline = any(read_json(parent / seed.folder / run_dir.STATUS).get("sync") for seed in result.seeds)
    command = shlex.join(["harness", "sync", str(result.folder)])
    return f"\nW&B is offline. Upload all of them later with: {command}" if offline else ""


def _is_metric(name: str, value: Any) -> bool:
    """Return whether an entry of a result is a finite metric of a split."""
    return "/" in name and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _number(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if is_share(name) else f"{value:.4f}"
