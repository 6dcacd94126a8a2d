"""What a range test found, in each of its forms: table, JSON, values for a tracker, command line, sweep."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.lr_finder.analysis import LRCurve
from harness.lr_finder.range_test import LRRange, ShortRun, median_curve
from harness.lr_finder.suggestion import RATIO_MOST, RuleEstimate, Suggestion, round_significant
from harness.tracking.records import Curve, Scalar, Table, Value
from harness.utils.errors import UsageError

SWEEP_FACTOR = 4.0  # how far a sweep looks around LRMAX and LRMIN
NEVER_PASSED_ON = ("recipe", "name", "resume", "lr_min", "lr_max", "job_type", "notes")


@dataclass(frozen=True)
class LRFinderResult:
    """A finished range test.

    Attributes:
        lr_min, lr_max: what to train with; None where nothing was found. Where short runs were made, the best of them.
        held_images: how many training images were held out to be evaluated on.
        remarks: what else there is to know about how it was measured.
        brings_val: whether the data has a validation split without `val_fraction`.
    """

    folder: Path
    config: Config
    window: LRRange
    lr_min: float | None
    lr_max: float | None
    suggestion: Suggestion
    curves: Sequence[LRCurve]
    trials: Sequence[ShortRun]
    held_images: int
    remarks: tuple[str, ...] = ()
    brings_val: bool = False

    @property
    def command(self) -> str:
        """The line that trains with it; empty where nothing was found."""
        if self.lr_max is None:
            return ""
        words = [
            word
            for name, value in inherited_settings(self.config).items()
            for word in (f"--{name.replace('_', '-')}", _word(value))
        ]
        recipe = [] if self.config.recipe == Config().recipe else ["--recipe", self.config.recipe]
        rates = ["--lr-max", f"{self.lr_max:g}", "--lr-min", f"{self.lr_min:g}"]
        return shlex.join(["harness", "run", *recipe, *words, *rates])

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why these rates."""
        return (*self.suggestion.reasons, *self._trial_reason())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What there is to doubt."""
        edge: tuple[str, ...] = ()
        if len(self.trials) > 2 and self.lr_max in (
            min(t.lr_max for t in self.trials),
            max(t.lr_max for t in self.trials),
        ):
            edge = ("the best short run is the outermost one: a rate beyond it may be better still",)
        return (*(caution.text for caution in self.suggestion.cautions), *edge)

    def _trial_reason(self) -> tuple[str, ...]:
        if not self.trials:
            return ()
        best = max(self.trials, key=lambda trial: trial.acc)
        error = math.sqrt(max(best.acc * (1 - best.acc), 1e-9) / max(self.held_images, 1))
        text = f"short run with LRMAX {best.lr_max:.2g}: {100 * best.acc:.1f} % of {self.held_images} held-out images"
        near = [trial for trial in self.trials if trial is not best and best.acc - trial.acc < 2 * error]
        if len(self.trials) > 1:
            text += f", the best of {len(self.trials)}"
        return (text + (f"; {len(near)} more are within two standard errors of it" if near else ""),)

    def marks(self) -> dict[str, float]:
        """The chosen rates by name."""
        return {} if self.lr_max is None or self.lr_min is None else {"LRMIN": self.lr_min, "LRMAX": self.lr_max}

    def others(self) -> dict[str, float]:
        """What the rules say, by name."""
        return {rule.rule: rule.lr for rule in self.suggestion.rules if rule.lr is not None}

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite is null."""
        said = self.suggestion
        return {
            "lr_min": self.lr_min,
            "lr_max": self.lr_max,
            "begins": said.begins,
            "divergence": said.divergence,
            "interval": list(said.interval) if said.interval else None,
            "sure": said.sure,
            "reasons": list(self.reasons),
            "warnings": [*self.warnings, *self.remarks],
            "command": self.command,
            "digest": self.config.digest(),
            "rules": [vars(rule) for rule in said.rules],
            "trials": [{key: _number(value) for key, value in vars(trial).items()} for trial in self.trials],
            "window": vars(self.window),
            "held_images": self.held_images,
            "seeds": [_seed_json(trace) for trace in self.curves],
            "config": self.config.to_dict(),
        }

    def values(self) -> dict[str, Value]:
        """For a tracker: curves with the points marked, tables, and the rates as plain numbers."""
        marks = {**self.others(), **self.marks()}
        values: dict[str, Value] = {}
        for key, what, title in (("find/loss", "level", "smoothed loss"), ("find/acc", "acc_level", "batch accuracy")):
            curve = median_curve(self.curves, what)  # type: ignore[arg-type]
            values[key] = Curve(curve.x_name, curve.x, curve.lines, title=f"range test: {title}", marks=marks)
        values["find/steps"] = _steps_table(self.curves)
        values["find/rules"] = Table(
            ("rule", "lr", "low", "high", "note"),
            [(rule.rule, rule.lr, rule.low, rule.high, rule.note) for rule in self.suggestion.rules],
        )
        if self.trials:
            rows = [(trial.lr_max, trial.lr_min, trial.acc, _number(trial.loss)) for trial in self.trials]
            values["find/trials"] = Table(("lr_max", "lr_min", "acc", "loss"), rows)
        return {**values, **self.scalars()}

    def scalars(self) -> dict[str, Scalar]:
        """The rates and how sure they are."""
        rates = (
            {}
            if self.lr_max is None or self.lr_min is None
            else {"find/lr_max": self.lr_max, "find/lr_min": self.lr_min}
        )
        return {**rates, "find/sure": self.suggestion.sure}


def result_table(finding: LRFinderResult) -> str:
    """The finding for a person: every rule, what was chosen and why, and the line to train with."""
    steps = [len(trace.lrs) for trace in finding.curves]
    reached = max(float(trace.lrs[-1]) for trace in finding.curves)
    lines = [
        f"range test: {len(finding.curves)} seeds, {min(steps)} to {max(steps)} steps each, rates {finding.window.low:.2g} to {reached:.2g}",
        "",
        f"{'rule':<18}{'LR':>9}  {'over the seeds':<20}  what it is",
    ]
    lines += [_rule_line(rule) for rule in finding.suggestion.rules]
    if finding.trials:
        lines += ["", f"{'short run':<18}{'LRMAX':>9}  held-out accuracy"]
        lines += [f"{f'{trial.steps} steps':<18}{trial.lr_max:>9.2g}  {_outcome(trial)}" for trial in finding.trials]
    chosen = (
        "LRMIN and LRMAX: none" if finding.lr_max is None else f"LRMIN {finding.lr_min:g}   LRMAX {finding.lr_max:g}"
    )
    lines += ["", f"{chosen}   {finding.suggestion.sure}"]
    lines += [f"  {text}" for text in finding.reasons]
    lines += [f"  warning: {text}" for text in finding.warnings]
    lines += [f"  note: {text}" for text in finding.remarks]
    return "\n".join([*lines, *(["", finding.command] if finding.command else [])])


def sweep_definition(finding: LRFinderResult) -> dict[str, Any]:
    """A W&B sweep over LRMIN and LRMAX around what was found; every sample of it is a valid configuration.

    Raises:
        UsageError: nothing was found.
    """
    if finding.lr_max is None or finding.lr_min is None:
        raise UsageError(
            "the range test found no learning rates, so there is no sweep to write; give other --low and --high"
        )
    config, interval = finding.config, finding.suggestion.interval or (finding.lr_max, finding.lr_max)
    top = max(SWEEP_FACTOR * finding.lr_max, interval[1])
    if finding.suggestion.divergence is not None:  # never beyond where the loss diverged, but always above LRMAX
        top = max(min(top, finding.suggestion.divergence), 1.5 * finding.lr_max)
    least = round_significant(min(finding.lr_max / SWEEP_FACTOR, interval[0]))
    # LRMIN ends where LRMAX begins, so that no sample has them the wrong way round.
    lowest = round_significant(min(finding.lr_min / SWEEP_FACTOR, least / RATIO_MOST * SWEEP_FACTOR))
    highest = min(round_significant(SWEEP_FACTOR * finding.lr_min), least)
    own = ("wandb", "output", "group")  # whoever runs the sweep says where it goes
    fixed = {"recipe": config.recipe, **inherited_settings(config)}
    fixed = {name: value for name, value in fixed.items() if name not in own}
    if not config.val_fraction and not finding.brings_val:
        fixed["val_fraction"] = 0.1
    document: dict[str, Any] = {
        "name": f"learning rates of {config.model} on {config.data}",
        "project": fixed.pop("project", config.project),
        **({"entity": fixed.pop("entity")} if fixed.get("entity") else {}),
        "method": "bayes",
        "metric": {"name": "best/val_acc", "goal": "maximize"},
        "command": ["${env}", "${interpreter}", "-m", "harness", "run", "${args}"],
    }
    if config.epochs >= 4:
        document["early_terminate"] = {"type": "hyperband", "min_iter": max(2, config.epochs // 8), "eta": 3}
    searched = {"lr_max": (least, round_significant(top)), "lr_min": (lowest, highest)}
    document["parameters"] = {
        **{name: {"value": _plain(value)} for name, value in fixed.items()},
        **{
            name: {"distribution": "log_uniform_values", "min": low, "max": high}
            for name, (low, high) in searched.items()
        },
    }
    return document


def sweep_yaml(finding: LRFinderResult, path: Path) -> str:
    """The text of the sweep's YAML file, with what it is and how it is run."""
    word = shlex.quote(str(path))
    head = f"LRMIN {finding.lr_min:g} and LRMAX {finding.lr_max:g} were found by a range test ({finding.suggestion.sure.split(':')[0]})."
    return (
        f"# {head}\n#\n#   wandb sweep {word}      then: wandb agent ID\n#   harness sweep {word}    the same without a server\n"
        + yaml_io.dump_yaml(sweep_definition(finding))
    )


def inherited_settings(config: Config) -> dict[str, Any]:
    """The settings that differ from the recipe's, without the rates and what belongs to a single run."""
    try:
        start = make_config({}, config.recipe)
    except UsageError:  # the recipe's file is gone
        start = Config()
    here, there = config.to_dict(), start.to_dict()
    return {name: value for name, value in here.items() if value != there[name] and name not in NEVER_PASSED_ON}


def _plain(value: Any) -> Any:
    """A value as a sweep can hold it: an agent passes it on as one word."""
    return _word(value) if isinstance(value, list | dict) or value is None else value


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict) and all(re.fullmatch(r"[\w.+-]+", f"{word}") for word in value.values()):
        return ",".join(f"{key}={word}" for key, word in value.items())
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _seed_json(trace: LRCurve) -> Mapping[str, Any]:
    lines = {
        name: [_number(value) for value in getattr(trace, name).tolist()]
        for name in ("lrs", "losses", "smoothed", "accs", "norms")
    }
    held = [
        {"step": place, "lr": float(trace.lrs[place]), "loss": _number(loss), "acc": acc}
        for place, (loss, acc) in trace.held.items()
    ]
    return {"seed": trace.seed, "end": trace.end, **lines, "held": held}


def _steps_table(curves: Sequence[LRCurve]) -> Table:
    rows = []
    for trace in curves:
        smoothed = trace.smoothed
        for place in range(len(trace.lrs)):
            held_loss, held_acc = trace.held.get(place, (None, None))
            cells = (
                trace.lrs[place],
                trace.losses[place],
                smoothed[place],
                trace.accs[place],
                trace.norms[place],
                held_loss,
                held_acc,
            )
            rows.append((trace.seed, place + 1, *(None if cell is None else _number(float(cell)) for cell in cells)))
    return Table(("seed", "step", "lr", "loss", "smoothed", "acc", "grad_norm", "held_loss", "held_acc"), rows)


def _rule_line(rule: RuleEstimate) -> str:
    if rule.lr is None:
        return f"{rule.rule:<18}{'-':>9}  {'':<20}  {rule.note}"
    return f"{rule.rule:<18}{rule.lr:>9.2g}  {f'{rule.low:.2g} to {rule.high:.2g}':<20}  {rule.note}"


def _outcome(trial: ShortRun) -> str:
    return (
        "diverged"
        if math.isnan(trial.loss)
        else f"{100 * trial.acc:.1f} %  (loss {trial.loss:.3f}, LRMIN {trial.lr_min:.2g})"
    )
