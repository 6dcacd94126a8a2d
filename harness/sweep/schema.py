"""A sweep's YAML in W&B's own format, read, checked and understood before any trial."""

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
from harness.config.settings import FOLDER_LIKE, Config, canonical_name, coerce, setting_fields
from harness.sweep import command
from harness.sweep.distributions import Parameter, nested, read_parameters
from harness.sweep.hyperband import Hyperband, read_hyperband
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
# What every epoch's record says, beside the splits' loss and accuracy; a test holds it to a real run.
OTHER_METRICS = ("lr", "epoch", "time/train_s", "time/eval_s", "time/epoch_s", "throughput/images_per_s")
MAX_GRID_POINTS = 100_000


@dataclass(frozen=True)
class Metric:
    """What a sweep optimises.

    Attributes:
        target: the sweep ends when a run reaches it; None: it does not.
    """

    name: str
    maximise: bool
    target: float | None = None

    def better(self, value: float, other: float) -> bool:
        """Whether `value` beats `other`."""
        return value > other if self.maximise else value < other

    def reached(self, value: float) -> bool:
        """Whether `value` is as good as the target."""
        return self.target is not None and not self.better(self.target, value)

    def best(self, values: Sequence[float]) -> float:
        """The best of at least one value."""
        return max(values) if self.maximise else min(values)


@dataclass(frozen=True)
class SweepSpec:
    """A sweep that has been understood.

    Attributes:
        method: grid, random or bayes.
        document: the YAML as it was read.
        overrides: settings given by hand, under their names; they win over the file's constants.
    """

    name: str
    method: str
    metric: Metric
    axes: tuple[Parameter, ...]
    command: tuple[str, ...]
    hyperband: Hyperband | None
    run_cap: int | None
    document: Mapping[str, Any]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def searched(self) -> list[Parameter]:
        """The parameters that have more than one value."""
        return [axis for axis in self.axes if not axis.fixed]

    def parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of one trial as an agent passes them on: searched values by dotted name, and the constants."""
        return nested({axis.path: axis.spec["value"] if axis.fixed else values[axis.name] for axis in self.axes})

    def config(self, values: Mapping[str, Any]) -> Config:
        """The settings of one trial.

        Raises:
            UsageError: they do not fit each other.
        """
        return make_config({**self.parameters(values), **self.overrides})

    def grid(self) -> list[dict[str, Any]]:
        """Every point of the grid; the last parameter moves fastest."""
        axes = self.searched
        return [
            dict(zip((axis.name for axis in axes), point, strict=True))
            for point in itertools.product(*(axis.points() for axis in axes))
        ]

    def digest(self) -> str:
        """8 hexadecimal digits that stand for what is searched: not for how far, where or under what name."""
        searched = {
            key: value
            for key, value in self.document.items()
            if key not in ("run_cap", "name", "description", "project", "entity")
        }
        numbers = {
            name: value for name, value in self.overrides.items() if setting_fields()[name].metadata["affects_results"]
        }
        told = json.dumps([searched, numbers], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:8]


def read_sweep_file(path: Path, overrides: Mapping[str, Any] | None = None, *, on_test: bool = False) -> SweepSpec:
    """The sweep in a YAML file.

    Args:
        overrides: settings given by hand, under any spelling of their names.
        on_test: allow a metric of the test set.

    Raises:
        UsageError: with the place of the mistake and its remedy.
    """
    document = yaml_io.read_yaml(path)
    try:
        _same_numbers(document, path.read_text(encoding="utf-8-sig"))
        return parse_sweep(document, path.stem, overrides or {}, on_test=on_test)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def parse_sweep(
    document: Mapping[str, Any], name: str, overrides: Mapping[str, Any], *, on_test: bool = False
) -> SweepSpec:
    """The sweep in a mapping; see `read`."""
    if odd := [str(key) for key in document if key not in KEYS]:
        raise UsageError(f"a sweep has no key {odd[0]!r}{did_you_mean(odd[0], KEYS)}")
    method = document.get("method")
    if method not in METHODS:
        raise UsageError(f"method={method!r}: need one of grid, random, bayes{did_you_mean(str(method), METHODS)}")
    method = _scheduled(document, str(method))
    if "metrics" in document:
        raise UsageError("`metrics:` (several at once) is not searched here; give one `metric:`")
    axes = tuple(read_parameters(document.get("parameters")))
    given = {canonical_name(key): value for key, value in overrides.items()}
    axes = _settled(axes, given)
    block = document.get("early_terminate")
    sweep = SweepSpec(
        name=str(document.get("name") or name),
        method=method,
        metric=_metric(document.get("metric"), method),
        axes=axes,
        command=command.check(document.get("command"), document.get("program")),
        hyperband=None if block is None else read_hyperband(block),
        run_cap=_cap(document.get("run_cap")),
        document=document,
        overrides=given,
    )
    if method == "grid":
        count = math.prod(len(axis.points()) for axis in sweep.searched)
        if count > MAX_GRID_POINTS:
            raise UsageError(f"the grid has {count:,} points; take fewer values, or set method: random")
    _check_metric(sweep.metric.name, _some_config(sweep), on_test)
    return sweep


def _scheduled(document: Mapping[str, Any], method: str) -> str:
    """The method, with W&B's experimental `scheduler:` block taken into account."""
    block = document.get("scheduler")
    if block is None:
        if method == "custom":
            raise UsageError("method: custom needs a `scheduler:` block; or set method: bayes, random or grid")
        return method
    if not isinstance(block, Mapping) or block.get("engine") not in ("optuna", "wandb", "ax"):
        raise UsageError("scheduler: need `engine: optuna` or `engine: wandb`")
    if "early_terminate" in document:
        raise UsageError("scheduler and early_terminate do not go together in W&B; leave one out")
    if odd := [key for key in ("source", "optimizer", "search_space") if key in block]:
        raise UsageError(
            f"scheduler: {odd[0]} runs Python code of yours, which `harness sweep` does not; leave it out, or use `wandb sweep-scheduler`"
        )
    if block["engine"] == "ax":
        raise UsageError("scheduler: engine=ax is not to be had here; set engine: optuna, or method: bayes alone")
    if (block["engine"] == "optuna") != (method == "custom"):
        raise UsageError(
            f"scheduler: engine={block['engine']} with method={method}: optuna goes with custom, wandb with grid, random or bayes"
        )
    return "bayes" if method == "custom" else method


def _metric(block: Any, method: str) -> Metric:
    if block is None and method != "bayes":  # W&B needs none to list a grid or to draw
        return Metric("best/val_acc", True)
    if not isinstance(block, Mapping) or not isinstance(block.get("name"), str):
        raise UsageError("metric: need `name:` and `goal:`, such as {name: best/val_acc, goal: maximize}")
    known = ("name", "goal", "target", "impute", "impute_while_running")
    if odd := [str(key) for key in block if key not in known]:
        raise UsageError(f"metric: there is no {odd[0]!r}{did_you_mean(odd[0], known)}")
    goal, target = block.get("goal", "minimize"), block.get("target")
    if goal not in ("minimize", "maximize"):
        raise UsageError(
            f"metric: goal={goal!r}: need minimize or maximize{did_you_mean(str(goal), ('minimize', 'maximize'))}"
        )
    if target is not None and (isinstance(target, bool) or not isinstance(target, int | float)):
        raise UsageError(f"metric: target={target!r}: need a number")
    return Metric(block["name"], goal == "maximize", None if target is None else float(target))


def _cap(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UsageError(f"run_cap={value!r}: need a whole number of 1 or more")
    return value


def _settled(axes: tuple[Parameter, ...], overrides: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """The parameters, each of them a setting, given once, and not given by hand while it is searched."""
    seen: dict[str, str] = {}
    kept = []
    for axis in axes:
        try:
            name = canonical_name(axis.path[0])
        except UsageError as error:
            raise UsageError(f"parameters.{axis.name}: {error}") from None
        if len(axis.path) > 1 and name != "model_args":
            raise UsageError(
                f"parameters.{axis.path[0]}: {name} is one value; only model_args has parameters of its own"
            )
        if seen.setdefault(name, axis.path[0]) != axis.path[0] or (
            len(axis.path) == 1 and [a.path for a in axes].count(axis.path) > 1
        ):
            raise UsageError(f"parameters: {axis.path[0]!r} and {seen[name]!r} are one setting; keep one of them")
        if name in overrides:
            if not axis.fixed:
                raise UsageError(f"{name} is searched by the sweep, so it can not be given by hand as well")
            continue
        if len(axis.path) == 1:
            _check_values(axis, name)
        kept.append(axis)
    return tuple(kept)


def _check_values(axis: Parameter, name: str) -> None:
    """Each value, or both ends of a range, as the setting takes it."""
    if name in ("lr_min", "lr_max") and axis.choices is not None and "find" in axis.choices and not axis.fixed:
        raise UsageError(f"parameters.{axis.name}: `find` is no value to search among; give numbers")
    values = axis.choices if axis.choices is not None else [axis.at(1e-9), axis.at(1 - 1e-9)]
    if axis.kind.removeprefix("q_") in ("normal", "log_normal"):  # no ends: what is out of bounds is one failed trial
        values = [axis.at(0.5)]
    for value in values:
        if name == "recipe":
            continue
        try:
            coerce(name, value)
        except UsageError as error:
            raise UsageError(f"parameters.{axis.name}: {error}") from None


def _some_config(sweep: SweepSpec) -> Config:
    """The settings of the middle of the search space; where that is no valid run, of another place in it.

    Raises:
        UsageError: what is wrong with the middle, if a hundred other places are wrong too.
    """
    draw = random.Random(0)  # noqa: S311 - no secret
    quantiles = [[0.5] * len(sweep.searched), *([draw.random() for _ in sweep.searched] for _ in range(100))]
    first: UsageError | None = None
    for row in quantiles:
        try:
            return sweep.config({axis.name: axis.at(u) for axis, u in zip(sweep.searched, row, strict=True)})
        except UsageError as error:
            first = first or error
    raise UsageError(f"no trial of it could run: {first}")


def _check_metric(name: str, config: Config, on_test: bool) -> None:
    has_val = config.val_fraction > 0 or config.data in FOLDER_LIKE
    splits = ["train", *(["val"] if has_val else []), *(["test"] if not has_val or config.data in FOLDER_LIKE else [])]
    known = [f"{split}/{what}" for split in splits for what in ("acc", "loss")]
    known += [f"best/{split}_acc" for split in splits if split != "train"]
    reads_test = name in ("test/acc", "test/loss", "best/test_acc")
    if name not in (*known, *OTHER_METRICS):
        if name in ("val/acc", "val/loss", "best/val_acc"):
            raise UsageError(
                f"metric: {name} needs a validation split; add val_fraction: {{value: 0.1}} to the parameters"
            )
        if not reads_test:
            raise UsageError(
                f"metric: no run logs {name!r}{did_you_mean(name, (*known, *OTHER_METRICS))}; there are {', '.join(known)}"
            )
    if reads_test and has_val and config.data not in FOLDER_LIKE:
        raise UsageError(f"metric: {name} is not logged where there is a validation split; use best/val_acc")
    if reads_test and not on_test:
        raise UsageError(
            f"metric: {name} would choose on the test set; use best/val_acc with val_fraction: {{value: 0.1}}, or give --choose-on-test"
        )


def _same_numbers(document: Mapping[str, Any], text: str) -> None:
    """A number that W&B, which reads YAML 1.1, would take for a word (1e-3) would make another sweep there.

    Raises:
        UsageError: naming the place.
    """
    try:
        theirs = yaml.safe_load(text)  # no tags and no aliases in it: `yamlfile` has refused those
    except (yaml.YAMLError, ValueError) as error:  # a date that is none, a lone `=`
        raise UsageError(f"W&B can not read it: {' '.join(str(error).split())[:200]}") from None

    def walk(ours: Any, other: Any, where: str) -> None:
        if isinstance(ours, Mapping) and isinstance(other, Mapping):
            for (key, value), (_, same) in zip(ours.items(), other.items(), strict=False):
                walk(value, same, f"{where}.{key}" if where else str(key))
        elif isinstance(ours, list) and isinstance(other, list) and where.rsplit(".", 1)[-1] != "values":
            for value, same in zip(ours, other, strict=False):
                walk(value, same, where)
        elif isinstance(ours, float) and isinstance(other, str) and where.rsplit(".", 1)[-1] not in ("value", "values"):
            raise UsageError(f"{where}: W&B reads {other} as a word; write {_with_point(other)}")

    walk(document, theirs, "")


def _with_point(word: str) -> str:
    mantissa, mark, exponent = word.lower().partition("e")
    sign = "" if exponent.startswith(("-", "+")) else "+"
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}{mark}{sign}{exponent}"
