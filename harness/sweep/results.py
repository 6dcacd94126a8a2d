"""The files that a sweep leaves: `trials.csv`, `best.yaml`, `sweep.json`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import yaml_io
from harness.config.names import TrialStatus
from harness.config.recipe import make_config, recipe_paths
from harness.config.settings import Config
from harness.sweep.distributions import as_text
from harness.sweep.schema import SweepSpec
from harness.sweep.study import TrialRecord
from harness.tracking.journal import follow_journal
from harness.utils.files import read_json, write_json
from harness.utils.plain import number
from harness.utils.text import printable, write_csv

if TYPE_CHECKING:
    from harness.runs.seeds import SeedsResult

TRIALS, BEST, SUMMARY, FIGURES, RUNS, COPY = "trials.csv", "best.yaml", "sweep.json", "figures", "runs", "sweep.yaml"
TIMES = "times.json"
# Settings of a single run, which `best.yaml` leaves out.
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
        wall: from the start of its process to its end, over all tries on this machine.
        epochs: of these, training and evaluating.
        count: of epochs.
    """

    wall: float
    epochs: float
    count: int


def read_trial_times(folder: Path, wall: float) -> TrialTimes:
    """Return the times of a trial that took `wall` seconds, from the journal in its run directory."""
    records, _ = follow_journal(folder, 0)
    seconds = [float(value) for record in records if (value := record.scalars().get("time/epoch_s")) is not None]
    return TrialTimes(wall, sum(seconds), len(seconds))


def update_times(folder: Path, times: Mapping[str, TrialTimes]) -> dict[str, TrialTimes]:
    """Add the times of this command's trials to the sweep's `times.json`; return those of all commands."""
    earlier = {
        name: TrialTimes(*values)
        for name, values in read_json(folder / TIMES).items()
        if isinstance(values, list) and len(values) == 3 and all(math.isfinite(number(value)) for value in values)
    }
    together = {**earlier, **times}
    if times:
        write_json(folder / TIMES, {name: [each.wall, each.epochs, each.count] for name, each in together.items()})
    return together


def write_trials(
    path: Path, sweep: SweepSpec, records: Sequence[TrialRecord], times: Mapping[str, TrialTimes], folder: str
) -> None:
    """Write one line a trial: state, parameters, metric, seconds, run directory, reason of a failure.

    Args:
        folder: of the run directories, as the table names it.
    """
    names = [parameter.name for parameter in sweep.searched]
    header = ["trial", "state", *names, sweep.metric.name]
    header += ["values", "seconds", "training_s", "folder", "reason"]
    rows = []
    for record in records:
        best = _round(sweep.metric.best(record.history), 6) if record.history else None
        spent = times.get(record.name)
        seconds = ["", ""] if spent is None else [f"{spent.wall:.1f}", f"{spent.epochs:.1f}"]
        values = [_cell(record.values.get(name)) for name in names]
        run = f"{folder}/{record.name}"
        rows.append([record.name, record.state, *values, best, len(record.history), *seconds, run, record.reason])
    write_csv(path, header, rows)


def _cell(value: Any) -> Any:
    """Return a parameter's value for the table: a number, or text."""
    if isinstance(value, float):
        return _round(value, 8)
    return value if value is None or isinstance(value, bool | int | str) else as_text(value)


def _round(value: float, digits: int) -> float | int:
    """Return `value` to so many significant digits, as an integer where that is one."""
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded


def best_recipe(sweep: SweepSpec, best: TrialRecord, name: str, trials: int) -> str:
    """Return the text of `best.yaml`: the settings of the best trial, ready to be trained and tested."""
    value = sweep.metric.best(best.history)
    searched = ", ".join(f"{key} {_cell(part)}" for key, part in best.values.items())
    head = (
        f"# The best of {trials} trials of the sweep {printable(name)}: {sweep.metric.name} {value:.6g} ({best.name}).\n"
        f"#\n#   harness run --recipe PATH/TO/{BEST}\n#\n# Searched: {printable(searched)}\n"
    )
    return head + yaml_io.dump_yaml(differing_settings(sweep.config(best.values)))


def differing_settings(config: Config) -> dict[str, Any]:
    """Return the shipped recipe that a configuration starts from, and the settings that differ from it."""
    recipe = config.recipe if config.recipe in recipe_paths() else Config().recipe
    defaults = make_config({}, recipe).to_dict()
    return {
        "recipe": recipe,
        **{
            key: value
            for key, value in config.to_dict().items()
            if value != defaults[key] and key not in PER_RUN_SETTINGS
        },
    }


def write_summary(
    path: Path,
    sweep: SweepSpec,
    records: Sequence[TrialRecord],
    best: TrialRecord | None,
    importances: Mapping[str, float],
    times: Mapping[str, TrialTimes],
) -> None:
    """Write the summary of a sweep; what `final_runs` has added to an earlier one stays."""
    summary = read_json(path) | {
        "name": sweep.name,
        "method": sweep.method,
        "metric": {"name": sweep.metric.name, "goal": "maximize" if sweep.metric.maximise else "minimize"},
        "trials": {state: sum(record.state == state for record in records) for state in TrialStatus},
        "best": None,
        "importance": dict(importances),
        "time": time_summary(times),
    }
    if best is not None:
        summary["best"] = {
            "trial": best.name,
            "value": sweep.metric.best(best.history),
            "parameters": dict(best.values),
            "folder": f"{RUNS}/{best.name}",
        }
    write_json(path, summary)


def time_summary(times: Mapping[str, TrialTimes]) -> dict[str, float]:
    """Return how many seconds the trials took, and how much of it was not training; empty without any epoch."""
    trained = [each for each in times.values() if each.count]
    if not trained:
        return {}
    wall, epochs = sum(each.wall for each in trained), sum(each.epochs for each in trained)
    return {
        "seconds": round(wall, 1),
        "training_s": round(epochs, 1),
        "fraction_not_training": round(1 - epochs / wall, 4),
        "median_overhead_s": round(statistics.median(each.wall - each.epochs for each in trained), 2),
    }


def final_summary(trial: str, result: SeedsResult) -> dict[str, Any]:
    """Return what the summary keeps of the final runs: each result, and the test accuracy over the seeds."""
    summary: dict[str, Any] = {"trial": trial, "seeds": [{"seed": run.seed, **run.result} for run in result.seeds]}
    if (accuracy := result.figures.get("test/acc")) is not None:
        summary |= {
            "test/acc_mean": accuracy.mean,
            "test/acc_sd": accuracy.sd or 0.0,
            "test/acc_min": accuracy.least,
            "test/acc_max": accuracy.most,
        }
        if accuracy.low is not None:
            summary["test/acc_interval"] = [accuracy.low, accuracy.high]
    return summary
