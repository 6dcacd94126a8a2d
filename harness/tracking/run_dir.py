"""The folder of a run: its name, its lock, its status.

Names come from users and sweeps, so a folder's name is a slug of theirs and lies inside the output folder.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

from harness.config import yaml_io
from harness.config.settings import Config
from harness.utils.errors import AlreadyFinished, BusyError, HarnessError, UsageError
from harness.utils.files import read_json, write_json

CHECKPOINTS, FIGURES, STATUS, SUMMARY, CONFIG = "checkpoints", "figures", "status.json", "summary.json", "config.yaml"
SEEDS = "seeds.json"  # in the folder of several seeds
UNFINISHED = ("running", "failed", "preempted", "interrupted")


def slug(name: str) -> str:
    """`name` as a folder name: letters, digits, `.`, `_` and `-`, 1 to 80 of them, not starting with `.` or `-`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip(".-")[:80].rstrip(".-")
    return word or "run"


def default_name(config: Config) -> str:
    """`<recipe or model>-<data>-s<seed>-<digest>`: the same settings give the same name, so a rerun finds its run."""
    return slug(f"{_start(config)}-s{config.seed}-{config.digest()}")


def name_without_seed(config: Config) -> str:
    """`<recipe or model>-<data>-<digest>`: the same for all seeds of the same settings."""
    return slug(f"{_start(config)}-{config.replace(seed=0).digest()}")


def _start(config: Config) -> str:
    return f"{Path(config.recipe).stem}-{config.data.rsplit('/', 1)[-1]}"


@dataclass
class RunDir:
    """A run folder that this process has locked.

    Attributes:
        resumed: whether it holds an unfinished run of the same settings, to go on with.
    """

    path: Path
    resumed: bool
    lock: IO[str] | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def figures(self) -> Path:
        return self.path / FIGURES

    def status(self, state: str, **facts: Any) -> None:
        """Write `status.json`: `state` is running, finished, failed, preempted or interrupted."""
        write_json(self.path / STATUS, {"state": state, "pid": os.getpid(), "host": socket.gethostname(), **facts})

    def close(self) -> None:
        """Let others have the folder."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None


def claim_run_dir(config: Config) -> RunDir:
    """The folder this run writes into, locked: an unfinished one of equal settings, or a new one.

    Raises:
        UsageError: the output folder can not be written, or `--resume` names a folder that holds no such run.
        BusyError: the named run is being written by another process.
    """
    if config.resume not in ("auto", "never"):
        return _claim_named(config, Path(config.resume).expanduser())
    output = Path(config.output).expanduser()
    make_folder(output)
    given = os.environ.get("WANDB_RUN_ID") or config.name
    base = slug(given or default_name(config))
    if os.environ.get("WANDB_RUN_ID") and read_state(output / base) != "none":
        return _claim_named(config, output / base)  # one folder for one W&B run, never a second beside it
    for name in (base, *(f"{base}-{number}" for number in range(2, 10_000))):
        path = output / name
        state = read_state(path)
        if state == "none":
            make_folder(path)
        elif state not in UNFINISHED or config.resume == "never" or differences(path, config):
            continue
        lock = lock_folder(path)
        if lock is not None and read_state(path) == state:  # not taken by another process in the meantime
            return RunDir(path, resumed=state != "none", lock=lock)
        if lock is None and config.name:
            raise _busy(path)
    raise UsageError(f"{output} has ten thousand runs named {base}; choose another --name")


def runs_with_settings(config: Config) -> Iterator[Path]:
    """The folders in the output folder that runs of this name and these settings have left, oldest first."""
    output, base = Path(config.output).expanduser(), slug(config.name or default_name(config))
    for number in count(1):
        path = output / (base if number == 1 else f"{base}-{number}")
        if read_state(path) == "none":
            return
        if not differences(path, config):
            yield path


def _claim_named(config: Config, path: Path) -> RunDir:
    if read_state(path) == "none":
        raise UsageError(f"--resume {path}: there is no run in that folder; `harness runs` lists what there is")
    changed = differences(path, config)
    if changed:
        raise UsageError(
            f"--resume {path}: its settings differ: {'; '.join(changed)}; leave those options out, or start a new run"
        )
    lock = lock_folder(path)
    if lock is None:
        raise _busy(path)
    if read_state(path) == "finished":
        lock.close()
        raise AlreadyFinished(f"{path} is already complete; `harness evaluate {path}` says what it came to")
    return RunDir(path, resumed=True, lock=lock)


def _busy(path: Path) -> BusyError:
    pid = read_json(path / STATUS).get("pid", "?")
    return BusyError(
        f"{path} is being written by another process (pid {pid}); wait for it, or give this run another --name"
    )


def differences(path: Path, config: Config) -> list[str]:
    """`setting: there -> here` for each setting that a run's numbers depend on and that is not equal."""
    try:
        there = Config(**yaml_io.read_yaml(path / CONFIG)).affecting_results()
    except (HarnessError, TypeError):
        return [f"{CONFIG} can not be read"]
    here = config.affecting_results()
    return [f"{key}: {there[key]!r} -> {here[key]!r}" for key in here if there[key] != here[key]]


def read_state(path: Path) -> str:
    """The state in a run folder's `status.json`; `none` where there is no run."""
    if not path.is_dir() or not (path / CONFIG).exists():
        return "none"
    return str(read_json(path / STATUS).get("state", "failed"))


def is_locked(path: Path) -> bool:
    """Whether a living process is writing the run (a `running` state without a lock is a crash)."""
    handle = lock_folder(path)
    if handle is None:
        return True
    handle.close()
    return False


def list_runs(output: Path) -> Iterator[tuple[Path, str, Mapping[str, Any]]]:
    """(folder, state, status) of each run in an output folder; a run that died without a word is `crashed`."""
    for path in sorted(output.iterdir()) if output.is_dir() else []:
        state = read_state(path)
        if state == "none":
            continue
        if state == "running" and not is_locked(path):
            state = "crashed"
        yield path, state, read_json(path / STATUS)


def members(path: Path) -> list[Path]:
    """The run folders that a folder stands for: those of the seeds whose summary it is, else it alone."""
    seeds = read_json(path / SEEDS).get("seeds")
    if not isinstance(seeds, list):
        return [path]
    names = [seed.get("folder") for seed in seeds if isinstance(seed, dict)]
    # Names from a file: nothing that leads elsewhere.
    return [path.parent / name for name in names if isinstance(name, str) and name and name == slug(name)] or [path]


def check_output(config: Config) -> None:
    """Find an output folder that can not be written before anything is loaded.

    Raises:
        UsageError: it can not be made or written.
    """
    make_folder(Path(config.output).expanduser())


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}.{threading.get_ident()}"
        probe.write_text(json.dumps({}))
        probe.unlink()
    except OSError as error:
        raise UsageError(f"can not write to {path}: {error.strerror}; choose another --output") from None


def lock_folder(path: Path) -> IO[str] | None:
    """An open, locked file; None when another process holds it. The kernel frees it when the process dies."""
    if sys.platform == "win32":
        return open(path / ".lock", "a+")
    import fcntl

    handle = open(path / ".lock", "a+")  # noqa: SIM115 - held for as long as the run
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        return None
    return handle
