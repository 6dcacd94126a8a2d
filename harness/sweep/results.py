"""What a sweep leaves: `trials.csv`, `best.yaml`, `sweep.json` and its figures."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.config.recipe import make_config, recipe_paths
from harness.config.settings import Config
from harness.sweep.distributions import as_text
from harness.sweep.schema import SweepSpec
from harness.sweep.study import TrialRecord
from harness.tracking import run_dir
from harness.tracking.journal import follow_journal
from harness.utils.files import write_atomically
from harness.utils.stats import mean_interval

TRIALS, BEST, SUMMARY, FIGURES, RUNS, COPY = "trials.csv", "best.yaml", "sweep.json", "figures", "runs", "sweep.yaml"
# Settings of a single run, which the best of a sweep does not hand on.
PER_RUN_SETTINGS = (
    "recipe",
    "name",
    "group",
    "job_type",
    "output",
    "resume",
    "test",
    "notes",
    "wandb",
    "gallery",
    "report",
)


@dataclass(frozen=True)
class TrialTimes:
    """Seconds of one trial.

    Attributes:
        wall: from the start of its process to its end, over all its tries on this machine.
        epochs: of them training and evaluating. count: epochs.
    """

    wall: float
    epochs: float
    count: int


def trial_times(folder: Path, wall: float) -> TrialTimes:
    """What a trial's journal says of its time."""
    records, _ = follow_journal(folder, 0)
    spent = [float(value) for record in records if (value := record.scalars().get("time/epoch_s")) is not None]
    return TrialTimes(wall, sum(spent), len(spent))


def write_trials(
    path: Path, sweep: SweepSpec, rows: Sequence[TrialRecord], spent: Mapping[str, TrialTimes], folder: str
) -> None:
    """One line a trial: state, parameters, metric, time, where it is, why it failed."""
    names = [axis.name for axis in sweep.searched]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ["trial", "state", *names, sweep.metric.name, "values", "seconds", "training seconds", "folder", "reason"]
    )
    for row in rows:
        took = spent.get(row.name)
        best = f"{sweep.metric.best(row.history):.6g}" if row.history else ""
        cells = [_cell(row.values.get(name)) for name in names]
        seconds = ["", ""] if took is None else [f"{took.wall:.1f}", f"{took.epochs:.1f}"]
        table.writerow(
            [row.name, row.state, *cells, best, len(row.history), *seconds, f"{folder}/{row.name}", _cell(row.reason)]
        )
    write_atomically(path, text.getvalue())


def _cell(value: Any) -> str:
    """A value as a spreadsheet may open it: nothing that it would take for a formula."""
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return f"{value:.8g}" if isinstance(value, float) else str(value)
    text = value if isinstance(value, str) else as_text(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") else text


def best_recipe(sweep: SweepSpec, best: TrialRecord, name: str, trials: int) -> str:
    """The text of `best.yaml`: the settings of the best trial, ready to be trained and tested."""
    values = chosen_settings(sweep.config(best.values))
    value = sweep.metric.best(best.history)
    found = ", ".join(f"{key} {_cell(part)}" for key, part in best.values.items())
    head = (
        f"# The best of {trials} trials of the sweep {_one_line(name)}: {sweep.metric.name} {value:.6g} ({best.name}).\n"
        f"#\n#   harness run --recipe PATH/TO/{BEST}\n#\n# Searched: {_one_line(found)}\n"
    )
    return head + yaml_io.dump_yaml(values)


def chosen_settings(config: Config) -> dict[str, Any]:
    """The settings by which a configuration differs from the shipped recipe that it starts from."""
    base = config.recipe if config.recipe in recipe_paths() else Config().recipe
    here, there = config.to_dict(), make_config({}, base).to_dict()
    return {
        "recipe": base,
        **{key: value for key, value in here.items() if value != there[key] and key not in PER_RUN_SETTINGS},
    }


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def overhead(spent: Mapping[str, TrialTimes]) -> dict[str, float]:
    """How much of the trials' time was not training, in all and per trial (median), seconds."""
    done = [took for took in spent.values() if took.count]
    if not done:
        return {}
    wall, epochs = sum(took.wall for took in done), sum(took.epochs for took in done)
    return {
        "seconds": round(wall, 1),
        "training seconds": round(epochs, 1),
        "share not training": round(1 - epochs / wall, 4),
        "median seconds a trial not training": round(statistics.median(took.wall - took.epochs for took in done), 2),
    }


def final_table(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread of the test figures over the seeds of the final runs.

    Args:
        results: of each run: `seed` and what its `summary.json` calls its result.
    """
    scores = [float(result["test/acc"]) for result in results if "test/acc" in result]
    told: dict[str, Any] = {"seeds": [dict(result) for result in results]}
    if scores:
        found = mean_interval(scores)
        told["test/acc mean"], told["test/acc standard deviation"] = found.mean, found.sd or 0.0
        told["test/acc lowest"], told["test/acc highest"] = found.least, found.most
        if found.low is not None:
            told["test/acc 95 % interval"] = [found.low, found.high]
    return told


def result_of(folder: Path) -> dict[str, Any]:
    """What a finished run's summary calls its result."""
    return dict(run_dir.read_summary(folder).get("result", {}))
