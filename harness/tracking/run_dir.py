"""The directory of a run: its name, its lock, its state.

Names come from users and sweeps, so a directory is named by a slug of theirs and lies inside the output folder.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import IO, Any

from harness.config.settings import AUTO, Config, setting_fields
from harness.config.stored import stored_config_or_none
from harness.tracking.chosen_settings import CHOSEN, requested_values
from harness.tracking.journal import NAME as JOURNAL
from harness.tracking.journal import read_journal
from harness.tracking.metric_names import with_present_names
from harness.tracking.run_files import (
    CHECKPOINTS,
    CONFIG,
    DATASET,
    FIGURES,
    SEEDS,
    SEEDS_RECIPE,
    STATUS,
    SUMMARY,
    check_output_folder,
    check_own_files,
    is_locked,
    lock_folder,
    make_folder,
    remove_empty,
)
from harness.tracking.run_names import default_name, slug
from harness.utils.checksums import changed_files
from harness.utils.environment import launch_command
from harness.utils.errors import AlreadyFinished, BusyError, HarnessError, ResourceError, UsageError
from harness.utils.files import json_bytes, open_regular, read_json, write_json
from harness.utils.plain import sub_mapping

# What the result of a run stands on, listed in SHA256SUMS when it ends. Checkpoints have an index of their own, and the
# report is written again by `harness report`.
RESULT_FILES = (
    CONFIG, DATASET, CHOSEN, "journal.jsonl", SUMMARY, "predictions.csv", "per_class.csv", "lr_finder.json",
    "checkpoints/model.safetensors", "checkpoints/model.json", "checkpoints/config.json", "checkpoints/class_map.txt",
    "checkpoints/README.md",
)  # fmt: skip


class RunState(StrEnum):
    """The state of a run. `status.json` holds the first five; the others are concluded when it is read."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    PREEMPTED = "preempted"  # stopped from outside (SIGTERM, SIGUSR1), with its state saved
    INTERRUPTED = "interrupted"  # stopped by the user or by W&B, with its state saved
    CRASHED = "crashed"  # `running`, but no process is writing it
    NONE = "none"  # there is no run in the directory
    UNREADABLE = "unreadable"  # there is one, whose settings are gone
    UNKNOWN = "unknown"  # any other text in `status.json`

    @classmethod
    def _missing_(cls, value: object) -> RunState:
        return cls.UNKNOWN


CONFIG_UNREADABLE = f"{CONFIG} cannot be read"
UNFINISHED = (RunState.RUNNING, RunState.FAILED, RunState.PREEMPTED, RunState.INTERRUPTED)  # can be resumed


@dataclass
class RunDir:
    """A run directory that this process has locked.

    Attributes:
        resumed: whether it holds an unfinished run of the same settings, which is to be resumed.
        created: the folders that were made for it, the outermost first; empty where the directory was there.
        plugins: the modules that the command which resumes it has to name.
        checkpoint_step: of the newest checkpoint that was saved; 0 without one.
    """

    path: Path
    resumed: bool
    lock: IO[str] | None = None
    created: Sequence[Path] = ()
    plugins: Sequence[str] = ()
    checkpoint_step: int = 0

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def resume_command(self) -> str:
        """The command line that resumes the run."""
        return resume_command(self.path, plugins=self.plugins)

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def figures(self) -> Path:
        return self.path / FIGURES

    def status(self, state: RunState, **facts: Any) -> None:
        """Write `status.json`; on a full disk over the former one, which takes no space.

        Raises:
            ResourceError: it cannot be written.
        """
        about = {"pid": os.getpid(), "host": socket.gethostname(), "checkpoint_step": self.checkpoint_step}
        status = {"state": state, **about, **facts}
        try:
            write_json(self.path / STATUS, status)
        except ResourceError as full:
            try:
                with open(open_regular(self.path / STATUS, os.O_WRONLY), "wb", buffering=0) as file:
                    file.truncate(file.write(json_bytes(status)))
            except OSError:
                raise full from None

    def discard(self) -> None:
        """Remove the directory, and the folders above it that are empty, where they were made for this run."""
        if self.path not in self.created:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        remove_empty(self.created[:-1])

    def close(self) -> None:
        """Release the lock."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None


def claim_run_dir(config: Config) -> RunDir:
    """Return the locked directory that this run writes to: that of an unfinished run of equal settings, or a new one.

    Raises:
        UsageError: the output folder cannot be written, or `--resume` names a directory that holds no such run.
        BusyError: the named run is being written by another process.
    """
    if config.resume not in ("auto", "never"):
        return _claim_named(config, Path(config.resume).expanduser())
    output = Path(config.output).expanduser()
    created = make_folder(output)
    run_id = os.environ.get("WANDB_RUN_ID")
    base = slug(run_id or config.name or default_name(config))
    if run_id and read_state(output / base) != RunState.NONE:
        check_output_folder(output / base, is_named=False)
        return _claim_named(config, output / base)  # one directory for one W&B run, never a second beside it
    for name in (base, *(f"{base}-{number}" for number in range(2, 10_000))):
        path = output / name
        state = read_state(path)
        if state in (RunState.NONE, *UNFINISHED):
            check_output_folder(path, is_named=False)
        mine: list[Path] = []
        if state == RunState.NONE:
            mine = make_folder(path)
        elif config.resume == "never":
            continue
        elif state == RunState.UNREADABLE:
            raise _unreadable(path)
        elif state not in UNFINISHED:
            continue
        elif changed := changed_settings(path, config):
            if changed == [CONFIG_UNREADABLE]:
                raise _unreadable(path)
            continue
        check_own_files(path)
        lock = lock_folder(path)
        if lock is not None and read_state(path) == state:  # not taken by another process in the meantime
            made = [*created, *mine] if mine else []
            return RunDir(path, state != RunState.NONE, lock, made, config.plugin)
        if lock is None and config.name:
            raise _busy(path)
    raise UsageError(f"{output} already has 10,000 runs named {base}; choose another --name")


def planned_run_dir(config: Config) -> tuple[Path, bool]:
    """Return the directory that `claim_run_dir` would take now, without taking it, and whether its unfinished run is resumed."""
    for path in unfinished_runs(config):
        if not is_locked(path):
            return path, True
    return next(path for path in _paths_of(config) if read_state(path) == RunState.NONE), False


def _paths_of(config: Config) -> Iterator[Path]:
    """Yield the directories that runs of this name may have, one after the other, without end."""
    output = Path(config.output).expanduser()
    base = slug(os.environ.get("WANDB_RUN_ID") or config.name or default_name(config))
    return (output / (base if number == 1 else f"{base}-{number}") for number in count(1))


def precisions() -> list[str]:
    """Return the number formats that `auto` may stand for."""
    return [choice for choice in setting_fields()["precision"].metadata["choices"] if choice != AUTO]


def kept_precision(config: Config) -> str:
    """Return the precision to train with: for `auto`, that of the unfinished run which these settings resume, if any.

    `auto` may be a measurement, whose result differs between machines; it must not decide which run is found.
    """
    if config.precision != AUTO:
        return config.precision
    for precision in precisions():
        if next(unfinished_runs(config.replace(precision=precision)), None) is not None:
            return precision
    return AUTO


def kept_settings(config: Config) -> Config | None:
    """Return the settings with those that the unfinished run which they resume has chosen from its data; None without one.

    What is chosen may differ later: weights that could not be downloaded may be there, the memory may be another one.
    A setting that is given now, such as more epochs, stays as it is. A run that another process is writing is none to resume.
    """
    path = next((path for path in unfinished_runs(config) if not is_locked(path)), None)
    stored = stored_config(path) if path is not None else None
    if path is None or stored is None:
        return None
    present = config.to_dict()
    unchanged = [name for name, requested in requested_values(path).items() if present[name] == requested]
    return config.replace(**{name: getattr(stored, name) for name in unchanged})


def unfinished_runs(config: Config) -> Iterator[Path]:
    """Yield the run directories that these settings may resume, oldest first: the named one, or those of the same name."""
    if config.resume not in ("auto", "never"):
        path = Path(config.resume).expanduser()
        yield from [] if changed_settings(path, config, is_named=True) else [path]
    elif config.resume == "auto":
        yield from (path for path in runs_with_settings(config) if read_state(path) in UNFINISHED)


def runs_with_settings(config: Config) -> Iterator[Path]:
    """Yield the run directories of this name and these settings in the output folder, oldest first."""
    for path in _paths_of(config):
        if read_state(path) == RunState.NONE:
            return
        if not changed_settings(path, config):
            yield path


def _claim_named(config: Config, path: Path) -> RunDir:
    if read_state(path) == RunState.NONE:
        raise UsageError(f"--resume {path}: there is no run in that directory; `harness runs` lists the runs")
    if read_state(path) == RunState.UNREADABLE:
        raise _unreadable(path)
    changed = changed_settings(path, config, is_named=True)
    if changed:
        raise UsageError(
            f"--resume {path}: its settings differ: {'; '.join(changed)}; omit those options, or start a new run"
        )
    check_own_files(path)
    lock = lock_folder(path)
    if lock is None:
        raise _busy(path)
    if read_state(path) == RunState.FINISHED and not changed_settings(path, config):
        lock.close()
        raise AlreadyFinished(
            f"{path} is already complete; show its result with: harness evaluate {path}; train on with more --epochs"
        )
    return RunDir(path, resumed=True, lock=lock, plugins=config.plugin)


def _busy(path: Path) -> BusyError:
    pid = read_json(path / STATUS).get("pid", "?")
    return BusyError(
        f"{path} is in use by another process (pid {pid}); wait until it ends, or give this run another --name"
    )


def _unreadable(path: Path) -> UsageError:
    """Return the error for a run that may be the requested one: it must not start again without a word."""
    return UsageError(
        f"{path}: {CONFIG_UNREADABLE}, so it is not known whether this is its run; restore that file, or start a new run with --resume never"
    )


def stored_config(path: Path) -> Config | None:
    """Return the settings of the run in a directory; None where they cannot be read."""
    return stored_config_or_none(path / CONFIG)


def changed_settings(path: Path, config: Config, is_named: bool = False) -> list[str]:
    """Return `setting: stored -> requested` for each setting that affects a run's numbers and is not equal.

    Args:
        is_named: the user named the run, which may get another number of epochs.
    """
    stored_settings = stored_config(path)
    if stored_settings is None:
        return [CONFIG_UNREADABLE]
    stored, requested = stored_settings.affecting_results(), config.affecting_results()
    undecided = _as_requested(path, stored_settings).affecting_results()
    if is_named and _has_other_length(stored_settings, config):
        for settings in (stored, requested, undecided):
            for key in ("epochs", "extended"):
                settings.pop(key, None)
    every = dict.fromkeys([*requested, *stored])  # a setting at its default may be in neither
    return [
        f"{key}: {stored.get(key)!r} -> {requested.get(key)!r}"
        for key in every
        if requested.get(key) not in (stored.get(key), undecided.get(key))
    ]


def _as_requested(path: Path, stored: Config) -> Config:
    """Return the settings of a run before it chose those that were `auto`; as they are where what it wrote makes no sense."""
    try:
        return stored.replace(**requested_values(path))
    except HarnessError:
        return stored


def _has_other_length(stored: Config, config: Config) -> bool:
    """Return whether settings are those of a run whose number of epochs was changed, by what `extended` says."""
    if "epochs" in config.undecided:
        return False
    *former, last = config.extended or ("",)
    epochs = [*(epochs for _, epochs in stored.extensions()), stored.epochs]
    is_prefix = tuple(former) == stored.extended[: len(former)]
    return is_prefix and len(former) < len(epochs) and last.partition(":")[2] == str(epochs[len(former)])


def read_state(path: Path) -> RunState:
    """Return the state in `status.json`; `FAILED` where there is no status.

    Without `config.yaml`, which a run writes first, it is `UNREADABLE` where anything else of a run is there, and else `NONE`.
    """
    if not path.is_dir():
        return RunState.NONE
    if not os.path.lexists(path / CONFIG):
        is_run = any(os.path.lexists(path / name) for name in (JOURNAL, STATUS, CHECKPOINTS))
        return RunState.UNREADABLE if is_run else RunState.NONE
    return RunState(str(read_json(path / STATUS).get("state", RunState.FAILED)))


def mark_failed(path: Path, reason: str, exit_code: int) -> None:
    """Write that a run failed whose main process was killed; nothing where it lives, or has written how it ended."""
    lock = lock_folder(path)
    if lock is None:
        return
    with lock:
        if read_state(path) == RunState.RUNNING:
            facts = {"state": RunState.FAILED, "reason": reason, "exit_code": exit_code}
            write_json(path / STATUS, {**read_json(path / STATUS), **facts})


def changed_results(path: Path) -> list[str]:
    """Return which files of a finished run are gone or have changed since; none where it has no checksums."""
    return changed_files(path, RESULT_FILES)


def saved_step(path: Path) -> int:
    """Return the step of the newest checkpoint that a run has saved, by its status; 0 where it has saved none.

    Where the status does not tell, it is the step of the last epoch in the journal: checkpoints are saved with the epochs.
    """
    status = read_json(path / STATUS)
    step = status.get("checkpoint_step")
    if step is None and read_state(path) in (RunState.RUNNING, RunState.PREEMPTED, RunState.INTERRUPTED):
        step = status.get("step")  # version 0.1: in these states it is that of a checkpoint
    if isinstance(step, int):
        return step
    try:
        records = read_journal(path).records
    except HarnessError:
        return 0
    return max((record.step for record in records if record.kind == "epoch"), default=0)


def current_state(path: Path) -> RunState:
    """Return the state of a run; `CRASHED` where it should be running and no process is writing it."""
    state = read_state(path)
    return RunState.CRASHED if state == RunState.RUNNING and not is_locked(path) else state


def read_summary(path: Path) -> dict[str, Any]:
    """Return `summary.json` of a run directory, metrics under their present names; empty where there is none."""
    summary = read_json(path / SUMMARY)
    for section in ("result", "best", "last"):
        if isinstance(summary.get(section), dict):
            summary[section] = with_present_names(summary[section])
    for section in ("result", "best", "last", "seconds", "dataset", "environment"):  # as their readers expect them
        if section in summary:
            summary[section] = sub_mapping(summary, section)
    environment = summary.get("environment")
    if isinstance(environment, dict) and "seconds before" in environment:  # the name in version 0.1
        environment["seconds_before"] = environment.pop("seconds before")
    return summary


def list_runs(output: Path) -> Iterator[tuple[Path, RunState, Mapping[str, Any]]]:
    """Yield (directory, state, status) of each run in an output folder; `UNKNOWN` where a folder cannot be read."""
    for path in sorted(output.iterdir()) if output.is_dir() else []:
        try:
            state = current_state(path)
        except OSError:
            state = RunState.UNKNOWN
        if state != RunState.NONE:
            yield path, state, read_json(path / STATUS)


def resume_command(path: Path, status: Mapping[str, Any] | None = None, plugins: Sequence[str] = ()) -> str:
    """Return the command line that resumes a run, made of its directory.

    Args:
        plugins: modules that the user named; a command in a listing names none, since they come from a file.
        status: the contents of `status.json`: of the command in it only the number of processes is used; empty is
            returned where it says that the run cannot be resumed. None: the run of this process.
    """
    launch = launch_command() if status is None else _launch_command_in(status)
    if not launch:
        return ""
    config = str(path / CONFIG)
    named = ["--plugin", ",".join(plugins)] if plugins else []
    return shlex.join([*launch, "run", "--recipe", config, "--resume", str(path), *named])


def _launch_command_in(status: Mapping[str, Any]) -> list[str]:
    stored = status.get("resume")
    if not isinstance(stored, str) or not stored:
        return []
    pattern = r"torchrun (--standalone|--nnodes \d{1,6}) --nproc-per-node (\d{1,6}) -m harness run "
    torchrun = re.match(pattern, stored, re.ASCII)
    if torchrun is None:
        return ["harness"]
    return ["torchrun", *torchrun[1].split(), "--nproc-per-node", torchrun[2], "-m", "harness"]


def resume_seeds_command(folder: Path, count: int, plugins: Sequence[str] = ()) -> str:
    """Return the command line that resumes the unfinished ones of several seeds."""
    named = ["--plugin", ",".join(plugins)] if plugins else []
    return shlex.join(["harness", "run", "--recipe", str(folder / SEEDS_RECIPE), "--seeds", str(count), *named])


def members(path: Path) -> list[Path]:
    """Return the run directories that a directory stands for: those of its seeds, or else itself alone."""
    seeds = read_json(path / SEEDS).get("seeds")
    if not isinstance(seeds, list):
        return [path]
    names = [seed.get("folder") for seed in seeds if isinstance(seed, dict)]
    # The names come from a file: accept none that leads out of the folder.
    return [path.parent / name for name in names if isinstance(name, str) and name and name == slug(name)] or [path]


def check_output(config: Config) -> None:
    """Check that the output folder can be written, before anything is loaded; leave no folder that was not there.

    Raises:
        UsageError: it cannot.
    """
    remove_empty(make_folder(Path(config.output).expanduser()))
