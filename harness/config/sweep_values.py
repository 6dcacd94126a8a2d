"""The parameters that a W&B sweep has drawn for this process; what the sweep records has to be what runs.

W&B's agent writes them to the file that WANDB_SWEEP_PARAM_PATH names, for a program that it starts as well as for the
function of `wandb.agent(sweep_id, function)`. A command line need not have all of them: `${args_no_boolean_flags}` leaves
out every false one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.config.names import MAPPINGS
from harness.config.recipe import replaced_weights, scaled_schedule
from harness.config.settings import AUTO, Config, canonical_name, coerce
from harness.config.words import ungrouped
from harness.utils.errors import UsageError


def read_sweep_values() -> dict[str, Any]:
    """Return the drawn parameters, name as the sweep spells it -> value; empty outside a sweep.

    Raises:
        UsageError: the agent's file cannot be read.
    """
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if not path or not os.environ.get("WANDB_SWEEP_ID"):
        return {}
    try:
        document = yaml_io.read_yaml(Path(path))
    except UsageError as error:
        raise UsageError(f"the parameters of the sweep cannot be read: {error}") from None
    return {
        key: entry["value"]
        for key, entry in document.items()
        if isinstance(entry, Mapping) and "value" in entry and not key.startswith("_")
    }


def complete_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a command line with the drawn parameters that it lacks.

    Args:
        given: setting -> value.

    Raises:
        UsageError: a parameter is no setting, or the command line has another value for it.
    """
    drawn = _by_setting(read_sweep_values(), None)
    for name, value in drawn.items():
        if name in given and coerce(name, given[name]) != coerce(name, value):
            raise UsageError(
                f"{name}: the sweep has {value!r} and the command line {given[name]!r}; W&B would record the former. "
                "Remove it from the sweep's command, or from its parameters"
            )
    return {**drawn, **given}


def with_sweep_values(config: Config, notify: Callable[[str], None], is_own: bool = False) -> Config:
    """Return the settings with the drawn parameters applied; unchanged outside a sweep.

    Args:
        notify: receives one line about what was changed.
        is_own: whether the caller has opened the sweep's run, so that a parameter which is no setting may be its own.

    Raises:
        UsageError: a parameter cannot be applied.
    """
    drawn = _by_setting(read_sweep_values(), notify if is_own else None)
    changes = {name: value for name, value in drawn.items() if not _is_applied(name, value, config)}
    if "recipe" in changes:
        raise UsageError(
            f"the sweep has recipe={changes['recipe']!r}, and the settings were made from {config.recipe!r}; "
            "make them with harness.make_config, from the sweep's recipe"
        )
    if not changes:
        return config
    if "epochs" in changes:
        values = config.to_dict()
        changes |= scaled_schedule(values, {*drawn, *config.undecided}, values["epochs"], changes["epochs"])
    if "lr_min" in changes and "lr_min_ratio" not in drawn:
        changes["lr_min_ratio"] = None
    changes |= {name: without for name, without in replaced_weights(changes).items() if name not in drawn}
    for name in MAPPINGS:
        if name in changes:
            changes[name] = {**getattr(config, name), **coerce(name, changes[name])}
    notify(f"From the sweep: {', '.join(f'{name}={value}' for name, value in changes.items())}")
    return config.replace(**changes)


def differing_values(parameters: Mapping[str, Any], config: Config) -> list[str]:
    """Return `setting=value instead of value` for each parameter whose value a run did not have.

    Args:
        parameters: setting in any spelling -> value that the sweep records.
        config: the settings of the run.
    """
    differing = []
    for name, value in _by_setting(parameters, None).items():
        wanted, actual = coerce(name, value), getattr(config, name)
        # The run stores what it chose in place of these.
        is_resolved = wanted == AUTO or (name, wanted) == ("log_every", 0)
        if not _is_applied(name, value, config) and not is_resolved:
            differing.append(f"{name}={actual!r} instead of {wanted!r}")
    return differing


def _is_applied(name: str, value: Any, config: Config) -> bool:
    """Return whether the settings have a parameter's value; of `model_args`, whether they have all of its arguments."""
    wanted = coerce(name, value)
    actual: Any = AUTO if name in config.undecided else getattr(config, name)
    if isinstance(wanted, Mapping):
        return {**actual, **wanted} == actual
    return bool(wanted == actual)


def _by_setting(values: Mapping[str, Any], notify: Callable[[str], None] | None) -> dict[str, Any]:
    """Return the values under the names of their settings.

    Args:
        notify: receives a line about each value that belongs to no setting; None: such a value is refused.
    """
    by_setting: dict[str, Any] = {}
    for key, value in ungrouped(values).items():
        try:
            by_setting[canonical_name(key)] = value
        except UsageError as error:
            if notify is None:
                raise UsageError(f"the sweep's parameter {key!r} would have no effect: {error}") from None
            notify(f"The sweep's parameter {key!r} is no setting of harness; only your own code can apply it.")
    return by_setting
