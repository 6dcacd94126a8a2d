"""What `harness runs` lists: the runs, sweeps and seeds of an output folder, whoever wrote their files."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.config.names import REPORTED_SPLITS, data_name
from harness.tracking.journal import NAME as JOURNAL
from harness.tracking.run_dir import RunState, list_runs, read_summary, resume_command
from harness.tracking.run_files import CONFIG, FINDER
from harness.utils.errors import DivergedError, HarnessError
from harness.utils.files import read_json
from harness.utils.plain import number, sub_mapping


@dataclass(frozen=True)
class ListedRun:
    """A run as a row of a list. What is not known is empty or NaN.

    Attributes:
        written_at: when its journal was last written, in seconds since 1970.
        lr_max: where a range test has found it, the rate that it found.
        epoch: epochs that are done.
        split, accuracy: of the result, or of the last epoch of a run without one. Where images have several labels, the split
            is followed by `mAP`, which the number is.
        resume: the command that resumes it; empty where it runs, is finished or has to change first.
        diverged: whether it ended because a loss or a weight was not finite.
    """

    path: Path
    state: RunState
    written_at: float
    model: str
    data: str
    seed: float
    lr_max: float
    epoch: float
    epochs: float
    split: str
    accuracy: float
    resume: str
    diverged: bool
    is_range_test: bool = False

    @property
    def advice(self) -> str:
        """What to do about a run that has not finished; empty where it has."""
        return diverged_advice(self.lr_max) if self.diverged else self.resume

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.name


def has_diverged(state: str, status: Mapping[str, Any]) -> bool:
    """Return whether a run, or one of several seeds, ended because a loss or a weight was not finite.

    Resumed with the same settings it would end so again.
    """
    return state == RunState.FAILED and status.get("exit_code") == DivergedError.exit_code


def diverged_advice(lr_max: float) -> str:
    """Return what to do about a run that diverged: the same settings would diverge again."""
    rate = f" at lr_max={lr_max:g}" if math.isfinite(lr_max) else ""
    return f"diverged{rate}: start it anew with a lower --lr-max or --clip-grad 1; harness lr-find suggests a rate"


# The column by which a list is sorted -> what its rows are compared by.
SORT_KEYS: dict[str, Callable[[ListedRun], Any]] = {
    "date": lambda run: (run.written_at, run.name),
    "name": lambda run: run.name,
    "state": lambda run: (run.state, run.written_at),
    "accuracy": lambda run: (run.accuracy if math.isfinite(run.accuracy) else -1.0, run.written_at),
    "model": lambda run: (run.model, run.data, run.written_at),
    "data": lambda run: (run.data, run.model, run.written_at),
    "epoch": lambda run: (run.epoch if math.isfinite(run.epoch) else -1.0, run.written_at),
    "lr": lambda run: (run.lr_max if math.isfinite(run.lr_max) else -1.0, run.written_at),
}


def listed_runs(output: Path, states: Iterable[str] = (), part: str = "", sort: str = "date") -> list[ListedRun]:
    """Return the runs in an output folder.

    Args:
        states: keep the runs in one of these states; none: all.
        part: keep the runs whose name, model or data contains this text.
        sort: a key of `SORT_KEYS`.
    """
    kept, text = set(states), part.lower()
    runs = (_read(path, state, status) for path, state, status in list_runs(output))
    chosen = [
        run
        for run in runs
        if (not kept or run.state in kept) and any(text in field.lower() for field in (run.name, run.model, run.data))
    ]
    return sorted(chosen, key=SORT_KEYS[sort])


def _read(path: Path, state: RunState, status: Mapping[str, Any]) -> ListedRun:
    settings: Mapping[str, Any] = {}
    with contextlib.suppress(HarnessError):
        settings = yaml_io.read_yaml(path / CONFIG)
    summary = read_summary(path)
    split, accuracy = _accuracy(summary, status)
    found, lr_max = read_json(path / FINDER), number(settings.get("lr_max"))
    # The status of a range test counts no epochs; a run that begins with one is trained with the rate that it found.
    is_range_test = "epoch" not in status and (bool(found) or settings.get("job_type") == "find")
    if (is_range_test or math.isnan(lr_max)) and number(found.get("lr_max")) > 0:
        lr_max = number(found["lr_max"])
    diverged = has_diverged(state, status)
    has_no_command = state in (RunState.RUNNING, RunState.FINISHED, RunState.UNREADABLE) or diverged
    written_at = 0.0
    with contextlib.suppress(OSError):  # it has no journal
        written_at = (path / JOURNAL).lstat().st_mtime
    return ListedRun(
        path,
        state,
        written_at,
        str(settings.get("model") or ""),
        data_name(str(settings.get("data") or ""), str(settings.get("data_dir") or "")) if settings else "",
        number(settings.get("seed")),
        lr_max,
        math.nan if is_range_test else number(status.get("epoch", 0)),
        math.nan if is_range_test else number(settings.get("epochs")),
        split,
        accuracy,
        "" if has_no_command else resume_command(path, status),
        diverged,
        is_range_test,
    )


def _accuracy(summary: Mapping[str, Any], status: Mapping[str, Any]) -> tuple[str, float]:
    for source, section in ((summary, "result"), (summary, "last"), (status, "last")):
        for split in REPORTED_SPLITS:
            values = sub_mapping(source, section)
            if 0 <= (value := number(values.get(f"{split}/acc"))) <= 1:
                return split, value
            if f"{split}/acc" not in values and 0 <= (value := number(values.get(f"{split}/map"))) <= 1:
                return f"{split} mAP", value
    return "", math.nan
