"""The user's Python code that a sweep's `scheduler:` names: a study with its sampler and pruner, and a search space.

W&B's own scheduler (`wandb sweep-scheduler`, wandb 0.31) calls the same functions: `optimizer` takes a description of the
sweep and returns an Optuna study, or a pair of it and a function that ends the search; `search_space` takes an Optuna
trial and returns the parameters of a run, which may depend on each other.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna

from harness.sweep.metric import Metric
from harness.utils.errors import HarnessError, UsageError, did_you_mean, first_line

KEYS = ("engine", "source", "optimizer", "search_space")


@dataclass(frozen=True)
class SchedulerBlock:
    """The `scheduler:` of a sweep file.

    Attributes:
        source: path of a Python file, from the current folder; empty: none.
        optimizer, search_space: names of functions in it; empty: none.
    """

    source: str = ""
    optimizer: str = ""
    search_space: str = ""


@dataclass(frozen=True)
class SourceFunctions:
    """What the code of a sweep gives its search.

    Attributes:
        study: whose sampler and pruner the search uses; None: it uses its own.
        is_over: whether the search ends; None: it does not say.
        search_space: the parameters of a trial; None: those of the file.
    """

    study: optuna.Study | None = None
    is_over: Callable[[optuna.Study], bool] | None = None
    search_space: Callable[[optuna.Trial], Mapping[str, Any]] | None = None

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Return the parameters of a trial.

        Raises:
            optuna.TrialPruned: the user's function rules the trial out.
            HarnessError: the user's function fails, or returns no mapping.
        """
        assert self.search_space is not None  # the caller has asked
        values = _call(self.search_space, trial)
        if not isinstance(values, Mapping) or not values:
            raise HarnessError(f"scheduler.search_space returned {type(values).__name__}; need a dict of parameters")
        return {str(name): value for name, value in values.items()}


def read_scheduler(block: Any, method: str, has_early_terminate: bool) -> SchedulerBlock:
    """Return the `scheduler:` block of a sweep file.

    Raises:
        UsageError: it is not valid by W&B's schema, or names another engine than Optuna for `method: custom`.
    """
    if not isinstance(block, Mapping) or block.get("engine") not in ("optuna", "wandb", "ax"):
        raise UsageError("scheduler: need `engine: optuna` or `engine: wandb`")
    if unknown := [str(key) for key in block if key not in KEYS]:
        raise UsageError(f"scheduler: W&B has no key {unknown[0]!r}{did_you_mean(unknown[0], KEYS)}")
    if has_early_terminate:
        raise UsageError("scheduler and early_terminate do not go together in W&B; leave one out")
    engine, names = block["engine"], {key: block.get(key, "") for key in KEYS[1:]}
    if engine == "ax":
        raise UsageError("scheduler: engine=ax is not supported; set engine: optuna, or method: bayes alone")
    if (engine == "optuna") != (method == "custom"):
        raise UsageError(
            f"scheduler: engine={engine} with method={method}: optuna goes with custom, wandb with grid, random or bayes"
        )
    if not all(isinstance(name, str) for name in names.values()):
        raise UsageError("scheduler: source, optimizer and search_space are names")
    if engine == "wandb":
        return SchedulerBlock()  # W&B ignores the functions there, too
    if (names["optimizer"] or names["search_space"]) and not names["source"]:
        raise UsageError("scheduler: optimizer and search_space need `source:`, the Python file that they are in")
    return SchedulerBlock(**names)


def load_functions(
    block: SchedulerBlock, document: Mapping[str, Any], metrics: tuple[Metric, ...], *, trusted: bool
) -> SourceFunctions:
    """Return the functions of a sweep's code, which runs.

    Args:
        trusted: whether the user allows that.

    Raises:
        UsageError: it is not allowed, cannot be loaded, or does not return what W&B needs.
    """
    if not block.source or not (block.optimizer or block.search_space):
        return SourceFunctions()
    if not trusted:
        raise UsageError(
            f"scheduler: source={block.source!r} is Python code, which would run; if you trust it, give --trust"
        )
    module = _load(Path(block.source))
    study, is_over = None, None
    if block.optimizer:
        function = _function(module, block, block.optimizer)
        try:
            made = _call(function, _description(document))
        except optuna.TrialPruned as error:
            raise UsageError(f"scheduler: {block.optimizer!r} raised TrialPruned, and there is no trial yet") from error
        study, is_over = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(study, optuna.Study) or not (is_over is None or callable(is_over)):
            raise UsageError(
                f"scheduler: {block.optimizer!r} in {block.source} returned no optuna.Study, nor a pair of it and a function"
            )
        directions = [direction.name == "MAXIMIZE" for direction in study.directions]
        if directions != [metric.maximise for metric in metrics]:
            raise UsageError(f"scheduler: the study of {block.optimizer!r} has other directions than the sweep's goals")
    space = _function(module, block, block.search_space) if block.search_space else None
    return SourceFunctions(study, is_over, space)


def _load(path: Path) -> Any:
    name = f"wandb_sweep_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise UsageError(f"scheduler: there is no Python file {str(path)!r} in {Path.cwd()}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the file look it up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"scheduler: {path}: {type(error).__name__}: {first_line(error)}") from error
    return module


def _function(module: Any, block: SchedulerBlock, name: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"scheduler: {block.source} has no function {name!r}{did_you_mean(name, vars(module))}")
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        raise UsageError(f"scheduler: {name!r} in {block.source} must take one argument") from None
    return function


def _call(function: Callable[..., Any], argument: Any) -> Any:
    try:
        return function(argument)
    except optuna.TrialPruned:
        raise
    except Exception as error:
        name = getattr(function, "__name__", "the function")
        raise HarnessError(f"scheduler: {name!r} failed: {type(error).__name__}: {first_line(error)}") from error


def _description(document: Mapping[str, Any]) -> SimpleNamespace:
    """Return what W&B gives `optimizer`: its SweepInfo, without what only a server has."""
    name = str(document.get("name") or "")
    return SimpleNamespace(
        id="",
        name=name,
        entity=str(document.get("entity") or ""),
        project=str(document.get("project") or ""),
        config=dict(document),
        controller_run_name="",
    )
