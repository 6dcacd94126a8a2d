"""The files that a sweep leaves: `trials.csv`, `best.yaml`, `sweep.json`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import yaml_io
from harness.config.names import TrialStatus, main_metric
from harness.config.recipe import make_config, recipe_paths
from harness.config.settings import Config
from harness.sweep.distributions import as_text
from harness.sweep.selection import TrialRecord, hypervolume, pareto_front, reference_point, seed_groups
from harness.sweep.spec import SweepSpec
from harness.tracking.journal import follow_journal
from harness.tracking.run_files import SWEEP_COPY
from harness.utils.files import read_json, write_json
from harness.utils.plain import number
from harness.utils.text import printable, write_csv

if TYPE_CHECKING:
    from harness.runs.seeds import SeedsResult

TRIALS, BEST, SUMMARY, FIGURES, RUNS, COPY = "trials.csv", "best.yaml", "sweep.json", "figures", "runs", SWEEP_COPY
TIMES, PARETO = "times.json", "pareto"
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
    names = sweep.searched_names([record.values for record in records])
    others = [metric.name for metric in sweep.metrics[1:]]
    header = ["trial", "state", *names, *others, sweep.metric.name]
    header += ["values", "seconds", "training_s", "folder", "reason"]
    rows = []
    for record in records:
        best = _round(_first_value(sweep, record), 6) if record.history else None
        further: list[Any] = [_round(value, 6) for value in record.objectives[1:]] or [""] * len(others)
        spent = times.get(record.name)
        seconds = ["", ""] if spent is None else [f"{spent.wall:.1f}", f"{spent.epochs:.1f}"]
        values = [_cell(record.values.get(name)) for name in names]
        run = f"{folder}/{record.name}"
        rows.append(
            [record.name, record.state, *values, *further, best, len(record.history), *seconds, run, record.reason]
        )
    write_csv(path, header, rows)


def _first_value(sweep: SweepSpec, record: TrialRecord) -> float:
    """Return a trial's value of the metric, of several the first."""
    return record.objectives[0] if record.objectives else sweep.metric.best(record.history)


def _cell(value: Any) -> Any:
    """Return a parameter's value for the table: a number, or text."""
    if isinstance(value, float):
        return _round(value, 8)
    return value if value is None or isinstance(value, bool | int | str) else as_text(value)


def _round(value: float, digits: int) -> float | int:
    """Return `value` to so many significant digits, as an integer where that is one."""
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded


def best_recipe(sweep: SweepSpec, best: TrialRecord, name: str, trials: int, config: Config, file: str = BEST) -> str:
    """Return the text of `best.yaml`: the settings of the best trial, ready to be trained and tested.

    Args:
        config: the settings of that trial.
        file: the name of the recipe, which its comment names.
    """
    what = "The best" if file == BEST else "A trial of the Pareto front"
    numbers = best.objectives or [_first_value(sweep, best)]
    scores = ", ".join(f"{each.name} {value:.6g}" for each, value in zip(sweep.metrics, numbers, strict=True))
    searched = ", ".join(f"{key} {_cell(part)}" for key, part in best.values.items())
    head = (
        f"# {what} of {trials} trials of the sweep {printable(name)}: {scores} ({best.name}).\n"
        f"#\n#   harness run --recipe PATH/TO/{file}\n#\n# Searched: {printable(searched)}\n"
    )
    settings = differing_settings(config)
    if sweep.seed_parameter:  # the seeds were only compared
        settings.pop("seed", None)
    return head + yaml_io.dump_yaml(settings)


def differing_settings(config: Config) -> dict[str, Any]:
    """Return the shipped recipe that a configuration starts from, and the settings that differ from it."""
    recipe = config.recipe if config.recipe in recipe_paths() else Config().recipe
    defaults = make_config({}, recipe).to_dict()
    return {
        "recipe": recipe,
        **{
            key: value
            for key, value in config.to_dict().items()
            if value != defaults[key]
            and key not in PER_RUN_SETTINGS
            and (key != "lr_min" or config.lr_min_ratio is None)  # it follows from the ratio
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
            "value": _first_value(sweep, best),
            "parameters": dict(best.values),
            "folder": f"{RUNS}/{best.name}",
        }
    if description := sweep.document.get("description"):
        summary["description"] = str(description)
    if sweep.seed_parameter:
        summary["seed_groups"] = [
            {
                "parameters": dict(group.values),
                "mean": group.mean,
                "sd": group.deviation,
                "seeds": len(group.scores),
                "trials": [record.name for record in group.records],
            }
            for group in seed_groups(records, sweep.metric, sweep.seed_parameter)
        ]
    if len(sweep.metrics) > 1:
        summary |= _front_summary(sweep, records)
    write_json(path, summary)


def _front_summary(sweep: SweepSpec, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """Return what the summary has of several metrics: their goals, the Pareto front and its hypervolume."""
    reference = reference_point(records, sweep.metrics)
    names = [metric.name for metric in sweep.metrics]
    return {
        "metrics": [
            {"name": metric.name, "goal": "maximize" if metric.maximise else "minimize"} for metric in sweep.metrics
        ],
        "pareto": [
            {
                "trial": record.name,
                "values": dict(zip(names, record.objectives, strict=True)),
                "parameters": dict(record.values),
                "folder": f"{RUNS}/{record.name}",
            }
            for record in pareto_front(records, sweep.metrics)
        ],
        "hypervolume": {
            "value": hypervolume(records, sweep.metrics, reference) if reference else 0.0,
            "reference": dict(zip(names, reference, strict=False)),
        },
    }


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
    main = f"test/{main_metric(result.config.is_multilabel)}"
    if (spread := result.figures.get(main)) is not None:
        summary |= {
            f"{main}_mean": spread.mean,
            f"{main}_sd": spread.sd or 0.0,
            f"{main}_min": spread.least,
            f"{main}_max": spread.most,
        }
        if spread.low is not None:
            summary[f"{main}_interval"] = [spread.low, spread.high]
    return summary
