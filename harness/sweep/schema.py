"""A sweep file in W&B's format, read and checked before any trial starts."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.config.names import MAPPINGS
from harness.config.registered import REGISTERED, registered_function
from harness.config.settings import TRACKERS, Config, canonical_name, coerce
from harness.config.words import read_words
from harness.sweep import command
from harness.sweep.distributions import MAX_GRID_POINTS, Parameter, read_parameters
from harness.sweep.hyperband import read_hyperband
from harness.sweep.metric import check_metric, read_metrics, reads_test_set
from harness.sweep.source import SchedulerBlock, read_scheduler
from harness.sweep.spec import SweepSpec, setting_of
from harness.sweep.yaml_1_1 import as_wandb_reads
from harness.tracking.backends.registry import check_trackers
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


def read_sweep_file(
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    on_test: bool = False,
    notify: Callable[[str], None] = log.warning,
) -> SweepSpec:
    """Return the sweep of a YAML file.

    Args:
        overrides: settings given on the command line, under any spelling of their names; mappings are added to the file's.
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
    method, scheduler = str(method), SchedulerBlock()
    if document.get("scheduler") is not None:
        scheduler = read_scheduler(document["scheduler"], method, "early_terminate" in document)
    elif method == "custom":
        raise UsageError("method: custom needs a `scheduler:` block; or set method: bayes, random or grid")
    metrics = read_metrics(document, method)
    method = "bayes" if method == "custom" else method
    overrides = {canonical_name(key): value for key, value in overrides.items()}
    words = command.check(document.get("command"), document.get("program"))
    fixed = _fixed_settings(words)
    # With a function that draws the parameters W&B passes on what it returns, and none of the file's.
    listed = [] if scheduler.search_space else read_parameters(document.get("parameters"))
    parameters = _check_parameters(listed, fixed, overrides)
    overrides = _with_constants(overrides, listed, fixed)
    block = document.get("early_terminate")
    if block is not None and "metric" not in document:
        raise UsageError("early_terminate needs a metric, for W&B's own Hyperband too; add metric:")
    sweep = SweepSpec(
        name=str(document.get("name") or name),
        method=method,
        metrics=metrics,
        parameters=parameters,
        command=words,
        hyperband=None if block is None else read_hyperband(block),
        run_cap=_read_cap(document.get("run_cap")),
        document=document,
        fixed=fixed,
        overrides=overrides,
        scheduler=scheduler,
    )
    if method == "grid":
        count = math.prod(len(parameter.points()) for parameter in sweep.searched)
        if count > MAX_GRID_POINTS:
            raise UsageError(f"the grid has {count:,} points; take fewer values, or set method: random")
    sample = sweep.sample_config()
    for metric in sweep.metrics:
        if not scheduler.search_space:
            check_metric(metric.name, sample, on_test)
        elif reads_test_set(metric.name) and not on_test:
            raise UsageError(
                f"metric: {metric.name} would choose by the test set; use a metric of validation such as best/val_acc, or give --choose-on-test"
            )
    destined = sample.replace(**sweep.destination())
    check_wandb_values(destined)
    _check_registered(sweep, destined)
    return sweep


def _check_registered(sweep: SweepSpec, config: Config) -> None:
    """Refuse trackers, losses and schedules that do not exist, unless a plug-in may register them, which the trials import.

    Raises:
        UsageError: there is no such tracker, loss or schedule, or a tracker's package is missing.
    """
    trackers = tuple(name for name in config.tracker if name in TRACKERS) if config.plugin else config.tracker
    check_trackers(config.replace(tracker=trackers))
    for parameter in () if config.plugin else sweep.parameters:
        setting = REGISTERED.get(setting_of(parameter)[0])
        if setting is not None:
            for name in parameter.choices or ():
                registered_function(setting, str(name))


def _read_cap(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1 or value % 1:
        raise UsageError(f"run_cap={value!r}: need an integer of 1 or more")
    return int(value)


def _fixed_settings(words: Sequence[str]) -> dict[str, Any]:
    """Return the settings in the words of a command, as every trial has them.

    Raises:
        UsageError: a word is no setting of a run.
    """
    try:
        return read_words([command.with_variables(word, os.environ) for word in command.fixed_words(words)])
    except UsageError as error:
        raise UsageError(f"command: {error}") from None


def _with_constants(
    overrides: Mapping[str, Any], parameters: Sequence[Parameter], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of the command line, mappings such as `model_args` added to the constants of the file, as to a recipe's."""
    merged = dict(overrides)
    for name in (name for name in MAPPINGS if name in overrides):
        constants = [dict(coerce(name, fixed[name]))] if name in fixed else []
        for parameter in parameters:
            setting, depth = setting_of(parameter)
            if setting == name and parameter.is_fixed:
                value: Any = parameter.spec["value"]
                for key in reversed(parameter.path[depth:]):
                    value = {key: value}
                constants.append(dict(coerce(name, value)))
        base = dict(item for constant in constants for item in constant.items())
        if base:
            merged[name] = {**base, **coerce(name, overrides[name])}
    return merged


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
