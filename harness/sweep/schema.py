"""A sweep file in W&B's format, read and checked before any trial starts."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.config.recipe import make_config
from harness.config.settings import Config, canonical_name, coerce, setting_fields
from harness.config.words import read_words, settings_of
from harness.sweep import command
from harness.sweep.distributions import MAX_GRID_POINTS, Parameter, nested, read_parameters
from harness.sweep.hyperband import Hyperband, read_hyperband
from harness.sweep.metric import Metric, check_metric, read_metric
from harness.sweep.yaml_1_1 import as_wandb_reads
from harness.tracking.wandb.limits import check_wandb_values
from harness.utils.errors import UsageError, did_you_mean

log = logging.getLogger(__name__)

METHODS = ("grid", "random", "bayes", "custom")
# As W&B's schema (package `sweeps`, `config/schema.json`).
KEYS = (
    "apiVersion",
    "kind",
    "controller",
    "description",
    "program",
    "job",
    "image_uri",
    "entity",
    "project",
    "method",
    "command",
    "name",
    "run_cap",
    "metric",
    "metrics",
    "scheduler",
    "early_terminate",
    "parameters",
)


@dataclass(frozen=True)
class SweepSpec:
    """A checked sweep.

    Attributes:
        method: grid, random or bayes.
        parameters: fixed and searched ones, in the order of the file.
        document: the YAML as it was read.
        fixed: settings that the words of `command` give every trial.
        overrides: settings given on the command line, under their names; they win over the file's constants.
    """

    name: str
    method: str
    metric: Metric
    parameters: tuple[Parameter, ...]
    command: tuple[str, ...]
    hyperband: Hyperband | None
    run_cap: int | None
    document: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> set[str]:
        """Return the settings that the file or the command line gives."""
        return {setting_of(parameter)[0] for parameter in self.parameters} | set(self.fixed) | set(self.overrides)

    @property
    def searched(self) -> list[Parameter]:
        """Return the parameters that have more than one value."""
        return [parameter for parameter in self.parameters if not parameter.is_fixed]

    def trial_parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of one trial, nested as an agent passes them on.

        Args:
            values: the searched values by dotted name.
        """
        return nested(
            {
                parameter.path: parameter.spec["value"] if parameter.is_fixed else values[parameter.name]
                for parameter in self.parameters
            }
        )

    def config(self, values: Mapping[str, Any]) -> Config:
        """Return the settings of one trial.

        Raises:
            UsageError: they contradict each other.
        """
        return make_config({**settings_of(self.trial_parameters(values)), **self.fixed, **self.overrides})

    def destination(self) -> dict[str, str]:
        """Return the project and entity of the file, which its trials have unless a parameter or an option says other."""
        given = self.settings
        return {
            key: str(self.document[key]) for key in ("project", "entity") if self.document.get(key) and key not in given
        }

    def grid(self, in_file_order: bool = False) -> list[dict[str, Any]]:
        """Return every point of the grid, in W&B's order: the parameters sorted by name, the last one varies fastest.

        Args:
            in_file_order: as before there was W&B's order: the parameters as the file has them, equal values repeated.
        """
        if in_file_order:
            lists = {each.name: each.choices or each.points() for each in self.searched}
        else:
            lists = {each.name: each.points() for each in sorted(self.searched, key=lambda each: each.path)}
        return [dict(zip(lists, point, strict=True)) for point in itertools.product(*lists.values())]

    def digest(self) -> str:
        """Return 8 hexadecimal digits that identify what is searched, whatever the cap, the place and the name."""
        document = dict(self.document)
        if tuple(document.get("command") or ()) == command.START_RUN:  # so that sweeps begun before are still found
            document["command"] = list(command.FORMER_START_RUN)
        searched = {
            key: value
            for key, value in document.items()
            if key not in ("run_cap", "name", "description", "project", "entity")
        }
        overrides = {
            name: value for name, value in self.overrides.items() if setting_fields()[name].metadata["affects_results"]
        }
        text = json.dumps([searched, overrides], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def setting_of(parameter: Parameter) -> tuple[str, int]:
    """Return the setting that a parameter stands for, and how many names of its path lead to it.

    Names before it are those of groups, which mean nothing to a run; names behind it are of arguments of the model.

    Raises:
        UsageError: no name of the path is a setting.
    """
    for index, name in enumerate(parameter.path, 1):
        with contextlib.suppress(UsageError):
            return canonical_name(name), index
    try:
        return canonical_name(parameter.path[-1]), len(parameter.path)
    except UsageError as error:
        raise UsageError(f"parameters.{parameter.name}: {error}") from None


def read_sweep_file(
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    on_test: bool = False,
    notify: Callable[[str], None] = log.warning,
) -> SweepSpec:
    """Return the sweep of a YAML file.

    Args:
        overrides: settings given on the command line, under any spelling of their names.
        on_test: allow a metric of the test set.
        notify: receives a line about what `wandb sweep` would refuse.

    Raises:
        UsageError: with the key, what is wrong with it and the remedy.
    """
    document = yaml_io.read_yaml(path, aliases=True)
    try:
        document = as_wandb_reads(document, path.read_text(encoding="utf-8-sig"))
        sweep = parse_sweep(document, path.stem, overrides or {}, on_test=on_test)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    for parameter in sweep.parameters:
        if parameter.has_mixed_bounds and len(parameter.path) == 1:
            low, high = (f"{float(parameter.spec[key])!r}" for key in ("min", "max"))
            notify(
                f"{path}: parameters.{parameter.name}: a range of real numbers, as in W&B's schema; the command `wandb sweep` asks for both bounds in one form: min: {low}, max: {high}"
            )
    return sweep


def parse_sweep(
    document: Mapping[str, Any], name: str, overrides: Mapping[str, Any], *, on_test: bool = False
) -> SweepSpec:
    """Return the sweep of a mapping; see `read_sweep_file`."""
    if unknown := [str(key) for key in document if key not in KEYS]:
        raise UsageError(f"a sweep has no key {unknown[0]!r}{did_you_mean(unknown[0], KEYS)}")
    method = document.get("method")
    if method not in METHODS:
        raise UsageError(f"method={method!r}: need one of grid, random, bayes{did_you_mean(str(method), METHODS)}")
    method = _resolve_scheduler(document, str(method))
    if "metrics" in document:
        raise UsageError("`metrics:` (several at once) is not supported; give one `metric:`")
    overrides = {canonical_name(key): value for key, value in overrides.items()}
    words = command.check(document.get("command"), document.get("program"))
    fixed = _fixed_settings(words)
    parameters = _check_parameters(read_parameters(document.get("parameters")), fixed, overrides)
    block = document.get("early_terminate")
    sweep = SweepSpec(
        name=str(document.get("name") or name),
        method=method,
        metric=read_metric(document.get("metric"), method),
        parameters=parameters,
        command=words,
        hyperband=None if block is None else read_hyperband(block),
        run_cap=_read_cap(document.get("run_cap")),
        document=document,
        fixed=fixed,
        overrides=overrides,
    )
    if method == "grid":
        count = math.prod(len(parameter.points()) for parameter in sweep.searched)
        if count > MAX_GRID_POINTS:
            raise UsageError(f"the grid has {count:,} points; take fewer values, or set method: random")
    sample = _sample_config(sweep)
    check_metric(sweep.metric.name, sample, on_test)
    check_wandb_values(sample.replace(**sweep.destination()))
    return sweep


def _resolve_scheduler(document: Mapping[str, Any], method: str) -> str:
    """Return the method that W&B's experimental `scheduler:` block stands for; without one, the file's own."""
    block = document.get("scheduler")
    if block is None:
        if method == "custom":
            raise UsageError("method: custom needs a `scheduler:` block; or set method: bayes, random or grid")
        return method
    if not isinstance(block, Mapping) or block.get("engine") not in ("optuna", "wandb", "ax"):
        raise UsageError("scheduler: need `engine: optuna` or `engine: wandb`")
    if "early_terminate" in document:
        raise UsageError("scheduler and early_terminate do not go together in W&B; leave one out")
    if unsupported := [key for key in ("source", "optimizer", "search_space") if key in block]:
        raise UsageError(
            f"scheduler: {unsupported[0]} runs your own Python code, which `harness sweep` does not; leave it out, or use `wandb sweep-scheduler`"
        )
    if block["engine"] == "ax":
        raise UsageError("scheduler: engine=ax is not supported; set engine: optuna, or method: bayes alone")
    if (block["engine"] == "optuna") != (method == "custom"):
        raise UsageError(
            f"scheduler: engine={block['engine']} with method={method}: optuna goes with custom, wandb with grid, random or bayes"
        )
    return "bayes" if method == "custom" else method


def _read_cap(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UsageError(f"run_cap={value!r}: need an integer of 1 or more")
    return value


def _fixed_settings(words: Sequence[str]) -> dict[str, Any]:
    """Return the settings in the words of a command, as every trial has them.

    Raises:
        UsageError: a word is no setting of a run.
    """
    try:
        return read_words([command.with_variables(word, os.environ) for word in command.fixed_words(words)])
    except UsageError as error:
        raise UsageError(f"command: {error}") from None


def _check_parameters(
    parameters: Sequence[Parameter], fixed: dict[str, Any], overrides: Mapping[str, Any]
) -> tuple[Parameter, ...]:
    """Return the parameters without those that `overrides` replaces; remove from `fixed` what they repeat.

    Raises:
        UsageError: one is no setting, has a value that the setting refuses, stands there twice, is given by the command
            with another value, or is both searched and given on the command line.
    """
    spellings: dict[str, str] = {}
    kept = []
    for parameter in parameters:
        name, depth = setting_of(parameter)
        spelling, is_whole = ".".join(parameter.path[:depth]), depth == len(parameter.path)
        if not is_whole and name != "model_args":
            raise UsageError(f"parameters.{spelling}: {name} is one value; only model_args has parameters of its own")
        is_repeated = is_whole and [other.path for other in parameters].count(parameter.path) > 1
        if spellings.setdefault(name, spelling) != spelling or is_repeated:
            raise UsageError(f"parameters: {spelling!r} and {spellings[name]!r} are one setting; keep one of them")
        if name in overrides:
            if not parameter.is_fixed:
                raise UsageError(f"{name} is searched by the sweep; leave it out of the command line")
            continue
        if name in fixed:
            is_equal = is_whole and parameter.is_fixed and coerce(name, fixed[name]) == coerce(name, parameter.at(0.5))
            if not is_equal:
                raise UsageError(
                    f"command: it has {name}={fixed[name]!r}, which parameters.{parameter.name} gives too; keep one of them"
                )
            del fixed[name]
        if is_whole:
            _check_values(parameter, name)
        kept.append(parameter)
    return tuple(kept)


def _check_values(parameter: Parameter, name: str) -> None:
    """Check each listed value, or both ends of a range, against the setting `name`."""
    values = parameter.choices
    if name in ("lr_min", "lr_max") and values is not None and "find" in values and not parameter.is_fixed:
        raise UsageError(f"parameters.{parameter.name}: `find` cannot be searched over; give numbers")
    if values is None:
        # A normal distribution has no ends; a value out of bounds is one failed trial.
        is_normal = parameter.kind.removeprefix("q_") in ("normal", "log_normal")
        values = [parameter.at(u) for u in ([0.5] if is_normal else [1e-9, 1 - 1e-9])]
    for value in values:
        if name == "recipe":
            continue
        try:
            coerce(name, value)
        except UsageError as error:
            raise UsageError(f"parameters.{parameter.name}: {error}") from None


def _sample_config(sweep: SweepSpec) -> Config:
    """Return the settings of the middle of the search space, or of another point where the middle is no valid run.

    Raises:
        UsageError: the middle and a hundred other points are no valid runs; it says what is wrong with the middle.
    """
    draw = random.Random(0)  # noqa: S311 - no secret
    points = [[0.5] * len(sweep.searched), *([draw.random() for _ in sweep.searched] for _ in range(100))]
    first_error: UsageError | None = None
    for quantiles in points:
        pairs = zip(sweep.searched, quantiles, strict=True)
        try:
            return sweep.config({parameter.name: parameter.at(u) for parameter, u in pairs})
        except UsageError as error:
            first_error = first_error or error
    raise UsageError(f"no trial could run: {first_error}")
