"""A sweep file in W&B's format, read and checked before any trial starts."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness.config import yaml_io
from harness.config.recipe import make_config
from harness.config.settings import Config, canonical_name, coerce, setting_fields
from harness.sweep import command
from harness.sweep.distributions import MAX_GRID_POINTS, Parameter, nested, read_parameters
from harness.sweep.hyperband import Hyperband, read_hyperband
from harness.sweep.metric import Metric, check_metric, read_metric
from harness.tracking.backends.registry import check_trackers
from harness.tracking.wandb.limits import check_wandb_values
from harness.utils.errors import UsageError, did_you_mean

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
    overrides: Mapping[str, Any] = field(default_factory=dict)

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
        return make_config({**self.trial_parameters(values), **self.overrides})

    def destination(self) -> dict[str, str]:
        """Return the project and entity of the file, which its trials have unless a parameter or an option says other."""
        given = {canonical_name(parameter.path[0]) for parameter in self.parameters} | set(self.overrides)
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


def read_sweep_file(path: Path, overrides: Mapping[str, Any] | None = None, *, on_test: bool = False) -> SweepSpec:
    """Return the sweep of a YAML file.

    Args:
        overrides: settings given on the command line, under any spelling of their names.
        on_test: allow a metric of the test set.

    Raises:
        UsageError: with the key, what is wrong with it and the remedy.
    """
    document = yaml_io.read_yaml(path)
    try:
        _check_numbers(document, path.read_text(encoding="utf-8-sig"))
        return parse_sweep(document, path.stem, overrides or {}, on_test=on_test)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


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
    parameters = _check_parameters(read_parameters(document.get("parameters")), overrides)
    block = document.get("early_terminate")
    sweep = SweepSpec(
        name=str(document.get("name") or name),
        method=method,
        metric=read_metric(document.get("metric"), method),
        parameters=parameters,
        command=command.check(document.get("command"), document.get("program")),
        hyperband=None if block is None else read_hyperband(block),
        run_cap=_read_cap(document.get("run_cap")),
        document=document,
        overrides=overrides,
    )
    if method == "grid":
        count = math.prod(len(parameter.points()) for parameter in sweep.searched)
        if count > MAX_GRID_POINTS:
            raise UsageError(f"the grid has {count:,} points; take fewer values, or set method: random")
    sample = _sample_config(sweep)
    check_metric(sweep.metric.name, sample, on_test)
    destined = sample.replace(**sweep.destination())
    check_wandb_values(destined)
    check_trackers(destined)
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


def _check_parameters(parameters: Sequence[Parameter], overrides: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Return the parameters without those that `overrides` replaces.

    Raises:
        UsageError: one is no setting, has a value that the setting refuses, stands there twice, or is both searched
            and given on the command line.
    """
    spellings: dict[str, str] = {}
    kept = []
    for parameter in parameters:
        try:
            name = canonical_name(parameter.path[0])
        except UsageError as error:
            raise UsageError(f"parameters.{parameter.name}: {error}") from None
        if len(parameter.path) > 1 and name != "model_args":
            raise UsageError(
                f"parameters.{parameter.path[0]}: {name} is one value; only model_args has parameters of its own"
            )
        is_repeated = len(parameter.path) == 1 and [other.path for other in parameters].count(parameter.path) > 1
        if spellings.setdefault(name, parameter.path[0]) != parameter.path[0] or is_repeated:
            raise UsageError(
                f"parameters: {parameter.path[0]!r} and {spellings[name]!r} are one setting; keep one of them"
            )
        if name in overrides:
            if not parameter.is_fixed:
                raise UsageError(f"{name} is searched by the sweep; leave it out of the command line")
            continue
        if len(parameter.path) == 1:
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


def _check_numbers(document: Mapping[str, Any], text: str) -> None:
    """Refuse numbers that W&B, which reads YAML 1.1, takes for text (1e-3): they would be another sweep there.

    Raises:
        UsageError: with the key.
    """
    try:
        theirs = yaml.safe_load(text)  # without tags and aliases: `read_yaml` has refused those
    except (yaml.YAMLError, ValueError) as error:  # a date out of range, a lone `=`
        raise UsageError(f"W&B cannot read it: {' '.join(str(error).split())[:200]}") from None

    def compare(ours: Any, other: Any, where: str) -> None:
        key = where.rsplit(".", 1)[-1]
        if isinstance(ours, Mapping) and isinstance(other, Mapping):
            for (name, value), (_, other_value) in zip(ours.items(), other.items(), strict=False):
                compare(value, other_value, f"{where}.{name}" if where else str(name))
        elif isinstance(ours, list) and isinstance(other, list) and key != "values":
            for value, other_value in zip(ours, other, strict=False):
                compare(value, other_value, where)
        elif isinstance(ours, float) and isinstance(other, str) and key not in ("value", "values"):
            raise UsageError(f"{where}: W&B reads {other} as text; write {_with_point(other)}")

    compare(document, theirs, "")


def _with_point(number: str) -> str:
    """Return a number with an exponent as YAML 1.1 reads it."""
    mantissa, mark, exponent = number.lower().partition("e")
    sign = "" if exponent.startswith(("-", "+")) else "+"
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}{mark}{sign}{exponent}"
