"""Read a run directory back, as far as it can be read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.config.names import REPORTED_SPLITS, data_name, main_metric
from harness.config.settings import FIND, Config
from harness.config.stored import with_former_defaults
from harness.evaluation.metrics import SavedPredictions, read_predictions_csv
from harness.tracking import journal, run_dir
from harness.tracking.records import Record, Scalar, Table, Value
from harness.tracking.run_dir import RunState
from harness.tracking.run_files import FINDER, is_run
from harness.utils.errors import DataError, HarnessError, UsageError
from harness.utils.files import read_json
from harness.utils.plain import number, sub_mapping

PREDICTIONS = "predictions.csv"
TRIALS, SWEEP = "trials.csv", "sweep.json"


@dataclass(frozen=True)
class RunData:
    """The contents of a run directory; what could not be read is empty, and named in `missing`.

    Attributes:
        state: finished, running, failed, preempted, interrupted, or crashed (its process ended without recording why).
        config: the settings by name.
        header: the journal's first line. summary: `summary.json`. status: `status.json`.
        finder: `lr_finder.json`. records: of the journal. alerts: (title, text).
    """

    path: Path
    state: str
    config: Mapping[str, Any] = field(default_factory=dict)
    header: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    finder: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Record] = ()
    alerts: Sequence[tuple[str, str]] = ()
    predictions: SavedPredictions | None = None
    missing: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The name that the user chose, else that of the directory."""
        return str(self.config.get("name") or self.path.name)

    @property
    def data(self) -> str:
        """The name of the data set: of a folder, archive or table its own."""
        settings = (str(self.config.get(name) or "") for name in ("data", "data_dir"))
        return data_name(*settings) or "?"

    @property
    def epochs(self) -> list[Record]:
        """The records of the epochs."""
        return [record for record in self.records if record.kind == "epoch"]

    @property
    def classes(self) -> list[str]:
        return _classes(self.header, self.summary)

    @property
    def is_range_test(self) -> bool:
        """Whether it is a range test alone, not a run that begins with one."""
        wanted = (self.config.get(name) for name in ("lr_min", "lr_max"))
        return bool(self.finder) and not self.epochs and not self.result and FIND not in wanted

    @property
    def environment(self) -> Mapping[str, Any]:
        return sub_mapping(self.summary, "environment") or sub_mapping(self.header, "environment")

    @property
    def dataset(self) -> Mapping[str, Any]:
        return sub_mapping(self.header, "dataset") or sub_mapping(self.summary, "dataset")

    @property
    def result(self) -> Mapping[str, Any]:
        """The metrics of the result; empty where the run has not finished."""
        return sub_mapping(self.summary, "result")

    @property
    def is_multilabel(self) -> bool:
        """Whether images may have several labels."""
        return _is_multilabel(self.config)

    @property
    def main(self) -> str:
        """The metric that the result is named by: `acc`, or `map` where images have several labels."""
        return main_metric(self.is_multilabel)

    @property
    def split(self) -> str:
        """The split that is reported: test where it was evaluated, else validation."""
        known = set(self.result) | {key for record in self.epochs for key in record.values}
        return next((split for split in REPORTED_SPLITS if f"{split}/{self.main}" in known), "test")

    @property
    def watched(self) -> str:
        """The split that each epoch was evaluated on."""
        known = {key for record in self.epochs for key in record.values}
        return next((split for split in ("val", "test") if f"{split}/{self.main}" in known), "test")

    def figure(self, key: str) -> float:
        """Return a metric of the result such as `test/acc`; NaN where there is none."""
        return number(self.result.get(key))

    def line(self, key: str) -> tuple[list[int], list[float]]:
        """Return (epochs, values) of a metric."""
        pairs = [(record.epoch, number(record.values[key])) for record in self.epochs if key in record.values]
        return [epoch for epoch, _ in pairs], [value for _, value in pairs]

    def steps(self, key: str) -> tuple[list[float], list[float]]:
        """Return (steps, values) of a metric that is logged at every step."""
        x: list[float] = []
        y: list[float] = []
        for record in self.records:
            if record.steps is not None and key in record.steps.lines:
                x += [float(step) for step in record.steps.x]
                y += [float(value) for value in record.steps.lines[key]]
        return x, y

    def value(self, key: str) -> Value | None:
        """Return what was last recorded under this key, for a tracker or for the journal alone."""
        for record in reversed(self.records):
            for values in (record.values, record.details):
                if key in values:
                    return values[key]
        return None

    def table(self, key: str) -> Table | None:
        """Return the table that was last logged under this key; None where it is empty."""
        value = self.value(key)
        return value if isinstance(value, Table) and value.rows else None

    @property
    def finder_confidence(self) -> str:
        """How far the seeds of the LR range test agree; the key was `sure` before."""
        return str(self.finder.get("confidence") or self.finder.get("sure") or "")

    def scalars(self) -> list[Mapping[str, Scalar]]:
        """Return the scalar values of each epoch."""
        return [record.scalars() for record in self.epochs]


def is_sweep(path: Path) -> bool:
    """Return whether a folder is a sweep's."""
    return any(os.path.lexists(path / name) for name in (TRIALS, SWEEP))


def contained(path: Path) -> list[Path]:
    """Return the runs, sweeps and folders of several seeds in a folder that is none of these itself, by name."""
    if not path.is_dir() or _is_one(path):
        return []
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and _is_one(inner))


def _is_one(path: Path) -> bool:
    return is_run(path) or is_sweep(path) or os.path.lexists(path / run_dir.SEEDS)


def resolve_folders(folders: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Return the runs and sweeps that folders stand for, each once, and (folder, why) of those that had to be left out.

    A folder of several seeds stands for its runs, a folder that holds runs, seeds and sweeps for all of them. A shell's
    `*` names the directory of several seeds as well as their runs, and pages that were written before.

    Raises:
        UsageError: one is neither a run nor a sweep, and holds none. DataError: it has links in place of files.
    """
    named: dict[Path, Path] = {}
    left_out: list[tuple[Path, str]] = []
    for folder in folders:
        if folder.suffix == ".html" and folder.is_file() and len(folders) > 1:
            continue
        inside = contained(folder)
        for member in (member for each in inside or [folder] for member in run_dir.members(each)):
            try:
                check_folder(member)
            except HarnessError as error:
                if not inside:
                    raise
                left_out.append((member, str(error)))  # one damaged run hides no other
            else:
                named.setdefault(member.resolve(), member)
    if not named:
        reason = left_out[0][1] if left_out else "no run or sweep was named"
        raise UsageError(f"there is nothing to report: {reason}")
    return list(named.values()), left_out


def check_folder(path: Path) -> None:
    """Raise unless a page can be made of a folder.

    Raises:
        UsageError: it is neither a run directory nor a sweep's folder.
    """
    if is_run(path) or is_sweep(path):
        run_dir.check_own_files(path)
        return
    if not path.is_dir():
        raise UsageError(f"no such directory: {path}; `harness runs` lists the runs")
    raise UsageError(
        f"{path} is neither a run nor a sweep, and holds none; `harness runs {path.parent}` lists the runs"
    )


def read_run(path: Path, state: str = "") -> RunData:
    """Read a run directory; damage raises nothing, but is named in `missing`.

    Args:
        state: of a run that is about to write it itself; by default the one of `status.json`.
    """
    changed = run_dir.changed_results(path)
    missing = [f"{name}: it has changed since the run ended, and is not trusted" for name in changed]
    contents = journal.JournalContents()
    try:
        contents = journal.read_journal(path)
    except DataError as error:
        missing.append(f"the journal, and with it the curves and images ({error})")
    state = state or _state(path)
    ended = state not in (RunState.RUNNING, RunState.CRASHED)
    if contents.records and ended and not contents.whole:
        missing.append("the end of the journal: it is damaged, and what follows is not shown")
    summary = {} if run_dir.SUMMARY in changed else run_dir.read_summary(path)
    if (
        not summary
        and run_dir.SUMMARY not in changed
        and state == RunState.FINISHED
        and not any(record.kind == "find" for record in contents.records)
    ):
        missing.append("summary.json, and with it the results")
    config = _config(path, contents.header, missing)
    if _is_multilabel(config):  # the page has no matrix of them
        predictions, why = None, ""
    else:
        predictions, why = read_predictions_csv(path / PREDICTIONS, _classes(contents.header, summary))
    if PREDICTIONS in changed:
        predictions = None
    elif why and (state == RunState.FINISHED and summary):
        missing.append(f"predictions.csv, and with it the confusion matrix ({why})")
    return RunData(
        path=path,
        state=state,
        config=config,
        header=contents.header,
        summary=summary,
        status=read_json(path / run_dir.STATUS),
        finder=read_json(path / FINDER),
        records=contents.records,
        alerts=contents.alerts,
        predictions=predictions,
        missing=missing,
    )


def _is_multilabel(config: Mapping[str, Any]) -> bool:
    return bool(config.get("label_separator") or config.get("label_columns"))


def _classes(header: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    names = sub_mapping(header, "dataset").get("classes") or sub_mapping(summary, "dataset").get("classes")
    return [str(name) for name in names] if isinstance(names, list) else []


def _config(path: Path, header: Mapping[str, Any], missing: list[str]) -> Mapping[str, Any]:
    try:
        return yaml_io.read_yaml(path / run_dir.CONFIG)
    except HarnessError as error:
        missing.append(f"config.yaml ({error})")
    return sub_mapping(header, "config")


def _state(path: Path) -> str:
    state = str(read_json(path / run_dir.STATUS).get("state", RunState.CRASHED))
    if state == RunState.RUNNING:
        return state if run_dir.is_locked(path) else RunState.CRASHED
    return state


def affecting_settings(run: RunData) -> Mapping[str, Any]:
    """Return the settings that affect a run's results; all of them where they cannot be parsed."""
    try:
        return Config(**with_former_defaults(run.config)).affecting_results()
    except (HarnessError, TypeError):
        return run.config
