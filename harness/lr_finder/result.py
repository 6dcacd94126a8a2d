"""The result of a range test in each of its forms: table, JSON, values for a tracker, command line, sweep."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.config.automatic import peak_of
from harness.config.names import FROM_PYTHON, data_name, main_metric
from harness.config.recipe import default_recipe, first_comparison, make_config
from harness.config.settings import AUTO, Config
from harness.lr_finder.analysis import LRCurve
from harness.lr_finder.measure import Measure, measure_of
from harness.lr_finder.range_test import LRRange, ShortRun, median_curve
from harness.lr_finder.suggestion import RATIO_MOST, RuleEstimate, Suggestion, round_significant
from harness.tracking.records import Curve, Scalar, Table, Value
from harness.utils.errors import UsageError
from harness.utils.text import counted

MAX_ROWS = 10_000  # of the table of steps
SWEEP_FACTOR = 4.0  # how far a sweep searches around LRMAX and LRMIN
RUN_CAP = 20  # trials of a sweep over two parameters
SHORTEST_WITH_EARLY_END = 12  # epochs; a shorter run is over before a comparison could save much
NOT_INHERITED = ("recipe", "name", "resume", "lr_min", "lr_max", "lr_min_ratio", "job_type", "notes")


@dataclass(frozen=True)
class LRFinderResult:
    """A finished range test.

    Attributes:
        folder: the run directory that it belongs to.
        lr_min, lr_max: what to train with, of the best short run where there are any; None where none was found.
        held_out_images: how many training images were held out for evaluation.
        remarks: what else to know about how it was measured.
        has_val_split: whether the data has a validation split without `val_fraction`.
    """

    folder: Path
    config: Config
    lr_range: LRRange
    lr_min: float | None
    lr_max: float | None
    suggestion: Suggestion
    curves: Sequence[LRCurve]
    short_runs: Sequence[ShortRun]
    held_out_images: int
    remarks: tuple[str, ...] = ()
    has_val_split: bool = False

    @property
    def measure(self) -> Measure:
        """What was measured beside the loss."""
        return measure_of(self.config.is_multilabel)

    @property
    def command(self) -> str:
        """The command that trains with the learning rates; empty where none was found, or only Python has the data."""
        if self.lr_max is None or self.config.data.startswith(FROM_PYTHON):
            return ""
        options = [
            text
            for name, value in inherited_settings(self.config).items()
            for text in (f"--{name.replace('_', '-')}", _option_value(value))
        ]
        recipe = [] if self.config.recipe == default_recipe(self.config.data) else ["--recipe", self.config.recipe]
        lrs = ["--lr-max", f"{self.lr_max:g}", "--lr-min", f"{self.lr_min:g}"]
        return shlex.join(["harness", "run", *recipe, *options, *lrs])

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why these learning rates."""
        return (*self.suggestion.reasons, *self._short_run_reason())

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to doubt them."""
        texts = [caution.text for caution in self.suggestion.cautions]
        lr_maxes = [run.lr_max for run in self.short_runs]
        if len(lr_maxes) > 2 and self.lr_max in (min(lr_maxes), max(lr_maxes)):
            texts.append("the best short run is the outermost one: a learning rate beyond it may be better still")
        return tuple(texts)

    def _short_run_reason(self) -> tuple[str, ...]:
        if not self.short_runs:
            return ()
        best, name = max(self.short_runs, key=lambda run: run.acc), self.measure.held_out_name
        error = math.sqrt(max(best.acc * (1 - best.acc), 1e-9) / max(self.held_out_images, 1))
        share = f"{100 * best.acc:.1f} %" if name == "accuracy" else f"{name} {100 * best.acc:.1f} %"
        text = f"short run with LRMAX {best.lr_max:.2g}: {share} of {self.held_out_images} held-out images"
        near = [run for run in self.short_runs if run is not best and best.acc - run.acc < 2 * error]
        if len(self.short_runs) > 1:
            text += f", the best of {len(self.short_runs)}"
        is_known = name == "accuracy"  # the standard error of a mean average precision is not
        return (text + (f"; {len(near)} more are within two standard errors of it" if near and is_known else ""),)

    def chosen(self) -> dict[str, float]:
        """Return LRMIN and LRMAX by name; empty where none was found."""
        return {} if self.lr_max is None or self.lr_min is None else {"LRMIN": self.lr_min, "LRMAX": self.lr_max}

    def estimates(self) -> dict[str, float]:
        """Return the learning rate of each rule that gives one, by name."""
        return {rule.rule: rule.lr for rule in self.suggestion.rules if rule.lr is not None}

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as they stand in `lr_finder.json`; what is not finite is null."""
        suggestion = self.suggestion
        return {
            "lr_min": self.lr_min,
            "lr_max": self.lr_max,
            "begins": suggestion.begins,
            "divergence": suggestion.divergence,
            "interval": list(suggestion.interval) if suggestion.interval else None,
            "sure": suggestion.confidence,
            "reasons": list(self.reasons),
            "warnings": [*self.warnings, *self.remarks],
            "command": self.command,
            "digest": self.config.digest(),
            "rules": [vars(rule) for rule in suggestion.rules],
            "trials": [_run_json(run, self.measure) for run in self.short_runs],
            "window": vars(self.lr_range),
            "held_images": self.held_out_images,
            "seeds": [_seed_json(curve, self.measure) for curve in self.curves],
            "config": self.config.to_dict(),
        }

    def steps_table(self) -> Table:
        """Return every step of every seed for a tracker; every second one, every third, ... where they are too many."""
        rows = []
        for curve in self.curves:
            columns = (curve.lrs, curve.losses, curve.smoothed, curve.accs, curve.norms)
            for index, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
                cells = (*values, *curve.val_points.get(index, (None, None)))
                rows.append((curve.seed, index + 1, *map(_finite_or_none, cells)))
        measure = self.measure
        names = (
            "seed", "step", "lr", "loss", "smoothed", measure.key, "grad_norm", "held_loss", f"held_{measure.held_out_key}",
        )  # fmt: skip
        return Table(names, rows[:: -(-len(rows) // MAX_ROWS) or 1])

    def details(self) -> dict[str, Value]:
        """Return values for the journal: curves with the points marked, tables, and the learning rates as plain numbers."""
        marks = {**self.estimates(), **self.chosen()}
        values: dict[str, Value] = {}
        loss, acc, measure = median_curve(self.curves, "level"), median_curve(self.curves, "acc_level"), self.measure
        for key, curve, title in (("find/loss", loss, "smoothed loss"), (f"find/{measure.key}", acc, measure.name)):
            values[key] = Curve(curve.x_name, curve.x, curve.lines, title=f"range test: {title}", marks=marks)
        values["find/rules"] = Table(
            ("rule", "lr", "low", "high", "note"),
            [(rule.rule, rule.lr, rule.low, rule.high, rule.note) for rule in self.suggestion.rules],
        )
        if self.short_runs:
            rows = [(run.lr_max, run.lr_min, run.acc, _finite_or_none(run.loss)) for run in self.short_runs]
            values["find/trials"] = Table(("lr_max", "lr_min", measure.held_out_key, "loss"), rows)
        return {**values, **self.scalars()}

    def scalars(self) -> dict[str, Scalar]:
        """Return the learning rates and the confidence in them, for a tracker's summary."""
        scalars: dict[str, Scalar] = {}
        if self.lr_max is not None and self.lr_min is not None:
            scalars = {"find/lr_max": self.lr_max, "find/lr_min": self.lr_min}
        return {**scalars, "find/sure": self.suggestion.confidence}


def result_table(result: LRFinderResult) -> str:
    """Return the result for a terminal: every rule, what was chosen and why, and the command that trains with it."""
    steps = [len(curve.lrs) for curve in result.curves]
    highest = max(float(curve.lrs[-1]) for curve in result.curves)
    lines = [
        f"range test: {counted(len(result.curves), 'seed', 'seeds')}, {min(steps)} to {max(steps)} steps each, learning rates {result.lr_range.low:.2g} to {highest:.2g}",
        "",
        f"{'rule':<18}{'LR':>9}  {'over the seeds':<20}  what it is",
    ]
    lines += [_rule_line(rule) for rule in result.suggestion.rules]
    if result.short_runs:
        lines += ["", f"{'short run':<18}{'LRMAX':>9}  held-out {result.measure.held_out_name}"]
        lines += [f"{f'{run.steps} steps':<18}{run.lr_max:>9.2g}  {_outcome(run)}" for run in result.short_runs]
    chosen = "LRMIN and LRMAX: none" if result.lr_max is None else f"LRMIN {result.lr_min:g}   LRMAX {result.lr_max:g}"
    lines += ["", f"{chosen}   {result.suggestion.confidence}"]
    lines += [f"  {text}" for text in result.reasons]
    lines += [f"  warning: {text}" for text in result.warnings]
    lines += [f"  note: {text}" for text in result.remarks]
    return "\n".join([*lines, *(["", result.command] if result.command else [])])


def sweep_definition(result: LRFinderResult) -> dict[str, Any]:
    """Return a W&B sweep over LRMIN and LRMAX around the result; every sample of it is a valid configuration.

    Raises:
        UsageError: the test found no learning rates, or no trial could load the data.
    """
    check_sweepable(result.config)
    if result.lr_max is None or result.lr_min is None:
        reason = next(iter(result.reasons), "set another --low and --high, or more --steps")
        raise UsageError(f"the range test found no learning rates, so there is no sweep to write: {reason}")
    config, divergence = result.config, result.suggestion.divergence
    interval = result.suggestion.interval or (result.lr_max, result.lr_max)
    lr_max_high = max(SWEEP_FACTOR * result.lr_max, interval[1])
    if divergence is not None:  # never beyond where the loss diverged, but always above LRMAX
        lr_max_high = max(min(lr_max_high, divergence), 1.5 * result.lr_max)
    lr_max_low = round_significant(min(result.lr_max / SWEEP_FACTOR, interval[0]))
    # LRMIN as a fraction of LRMAX: no sample has LRMIN above LRMAX, and no region of the pairs is cut off.
    ratio = result.lr_min / result.lr_max
    ratio_low, ratio_high = min(ratio / SWEEP_FACTOR, SWEEP_FACTOR / RATIO_MOST), min(SWEEP_FACTOR * ratio, 1.0)
    left_to_the_user = ("wandb", "output", "group")  # whoever runs the sweep decides where it goes
    fixed = {"recipe": config.recipe, **inherited_settings(config)}
    fixed = {name: value for name, value in fixed.items() if name not in left_to_the_user}
    if not config.val_fraction and not result.has_val_split:
        fixed["val_fraction"] = 0.1
    fixed |= {"test": False, "gallery": 0}  # trials are compared on the validation split
    document: dict[str, Any] = {
        "name": f"learning rates of {config.model} on {data_name(config.data, config.data_dir)}",
        "description": f"LRMAX, and LRMIN as a fraction of it, around the result of a range test (LRMAX {result.lr_max:g}, LRMIN {result.lr_min:g})",
        "project": fixed.pop("project", config.project),
        **({"entity": fixed.pop("entity")} if fixed.get("entity") else {}),
        "method": "bayes",
        "metric": {"name": f"best/val_{main_metric(config.is_multilabel)}", "goal": "maximize"},
        "run_cap": RUN_CAP,
        "command": ["${env}", "${interpreter}", "-m", "harness", "run", "${args}"],
    }
    if (first := first_band(config)) is not None:
        document["early_terminate"] = {"type": "hyperband", "min_iter": first, "eta": 2}
    searched = {
        "lr_max": (lr_max_low, round_significant(lr_max_high)),
        "lr_min_ratio": (round_significant(ratio_low), round_significant(ratio_high)),
    }
    document["parameters"] = {
        **{name: {"value": _sweep_value(value)} for name, value in fixed.items()},
        **{
            name: {"distribution": "log_uniform_values", "min": low, "max": high}
            for name, (low, high) in searched.items()
        },
    }
    return document


def check_sweepable(config: Config) -> None:
    """Refuse data that was given as a Python object, which the processes of a sweep do not have.

    Raises:
        UsageError: it was.
    """
    if config.data.startswith(FROM_PYTHON):
        raise UsageError(
            f"write_sweep: the trials of a sweep cannot load {config.data}, which is an object of this process; register it in a plug-in (harness.data.register_dataset)"
        )


def first_band(config: Config) -> int | None:
    """Return the epoch after which early termination may compare runs; None where a run is too short for it."""
    first = first_comparison(config)
    return first if config.epochs >= SHORTEST_WITH_EARLY_END and first < config.epochs else None


def sweep_yaml(result: LRFinderResult, path: Path) -> str:
    """Return the text of the sweep's YAML file, with a comment that says what it is and how to run it."""
    definition, file = sweep_definition(result), shlex.quote(str(path))
    confidence = result.suggestion.confidence.split(":")[0]
    return (
        f"# LRMIN {result.lr_min:g} and LRMAX {result.lr_max:g} are the result of a range test ({confidence}).\n#\n"
        f"#   harness sweep {file}    on this machine, without account or network; {RUN_CAP} trials\n"
        f"#   wandb sweep {file}      on a W&B server; start its runs with: wandb agent ID\n"
        + yaml_io.dump_yaml(definition)
    )


def inherited_settings(config: Config) -> dict[str, Any]:
    """Return the settings that differ from the recipe's, without the learning rates and what belongs to a single run."""
    try:
        recipe = make_config({}, config.recipe)
    except UsageError:  # the recipe's file no longer exists
        recipe = Config()
    usual = recipe.to_dict()
    left_out = [*NOT_INHERITED]
    if usual["peak_epoch"] == AUTO and config.peak_epoch == peak_of(config.epochs, config.freeze_epochs):
        left_out.append("peak_epoch")  # follows from the epochs, which a trial may have others of
    return {name: value for name, value in config.to_dict().items() if value != usual[name] and name not in left_out}


def _sweep_value(value: Any) -> Any:
    """Return a value as a sweep can hold it: an agent passes it on as one argument."""
    return _option_value(value) if isinstance(value, list | dict) or value is None else value


def _option_value(value: Any) -> str:
    """Return a setting as the command line takes it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict) and all(re.fullmatch(r"[\w.+-]+", f"{item}") for item in value.values()):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _run_json(run: ShortRun, measure: Measure) -> Mapping[str, Any]:
    values = {measure.held_out_key if key == "acc" else key: value for key, value in vars(run).items()}
    return {key: _finite_or_none(value) for key, value in values.items()}


def _seed_json(curve: LRCurve, measure: Measure) -> Mapping[str, Any]:
    columns = {
        f"{measure.key}s" if name == "accs" else name: [
            _finite_or_none(value) for value in getattr(curve, name).tolist()
        ]
        for name in ("lrs", "losses", "smoothed", "accs", "norms")
    }
    held = [
        {"step": index, "lr": float(curve.lrs[index]), "loss": _finite_or_none(loss), measure.held_out_key: acc}
        for index, (loss, acc) in curve.val_points.items()
    ]
    return {"seed": curve.seed, "end": curve.end, **columns, "held": held}


def _rule_line(rule: RuleEstimate) -> str:
    if rule.lr is None:
        return f"{rule.rule:<18}{'-':>9}  {'':<20}  {rule.note}"
    return f"{rule.rule:<18}{rule.lr:>9.2g}  {f'{rule.low:.2g} to {rule.high:.2g}':<20}  {rule.note}"


def _outcome(run: ShortRun) -> str:
    if math.isnan(run.loss):
        return "diverged"
    return f"{100 * run.acc:.1f} %  (loss {run.loss:.3f}, LRMIN {run.lr_min:.2g})"
