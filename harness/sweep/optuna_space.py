"""The parameters of a sweep as Optuna's distributions, and their values as Optuna's parameters.

Optuna searches uniform, log-uniform, integer and categorical parameters itself. Every other distribution is searched
by its quantile, a uniform parameter named `u(NAME)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from harness.sweep.distributions import Parameter, as_text

LOWEST_QUANTILE = 1e-12  # at 0 and 1 the normal distributions have no value


def suggest_values(trial: optuna.Trial, parameter: Parameter) -> Any:
    """Return the value that the sampler of `trial` chooses for a parameter."""
    match distribution(parameter):
        case CategoricalDistribution(choices=choices):
            choice = trial.suggest_categorical(parameter.name, choices)
            return parameter.spec["values"][_choices(parameter).index(choice)]
        case IntDistribution(low=low, high=high):
            return trial.suggest_int(parameter.name, low, high)
        case FloatDistribution(low=low, high=high, log=log) if _is_native(parameter):
            return trial.suggest_float(parameter.name, low, high, log=log)
    return parameter.at(trial.suggest_float(_quantile_name(parameter), LOWEST_QUANTILE, 1 - LOWEST_QUANTILE))


def distribution(parameter: Parameter) -> BaseDistribution:
    """Return Optuna's distribution of a parameter, or of its quantile."""
    if not _is_native(parameter):
        return FloatDistribution(LOWEST_QUANTILE, 1 - LOWEST_QUANTILE)
    match parameter.kind:
        case "categorical":
            return CategoricalDistribution(_choices(parameter))
        case "int_uniform":
            return IntDistribution(parameter.spec["min"], parameter.spec["max"])
    return FloatDistribution(parameter.spec["min"], parameter.spec["max"], log=parameter.kind == "log_uniform_values")


def encode(parameters: Sequence[Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point of a grid as Optuna's parameters."""
    encoded: dict[str, Any] = {}
    for parameter in parameters:
        value = values[parameter.name]
        if parameter.kind == "categorical":
            is_json = _choices(parameter) != parameter.spec["values"]
            encoded[parameter.name] = as_text(value) if is_json else value
        elif parameter.kind == "q_uniform":
            low, high = parameter.spec["min"], parameter.spec["max"]
            quantile = (value - low) / max(high - low, 1e-300)
            encoded[_quantile_name(parameter)] = min(max(quantile, LOWEST_QUANTILE), 1 - LOWEST_QUANTILE)
        else:
            encoded[parameter.name] = value
    return encoded


def parameter_name(optuna_name: str) -> str:
    """Return the name of a parameter from the name that Optuna has it under."""
    return optuna_name.removeprefix("u(").removesuffix(")")


def _quantile_name(parameter: Parameter) -> str:
    return f"u({parameter.name})"


def _is_native(parameter: Parameter) -> bool:
    """Return whether Optuna has the distribution itself."""
    if parameter.kind == "categorical":
        return parameter.spec["probabilities"] is None
    if parameter.kind in ("uniform", "log_uniform_values"):
        return bool(parameter.spec["min"] < parameter.spec["max"])
    return parameter.kind == "int_uniform"


def _choices(parameter: Parameter) -> list[Any]:
    """Return the listed values as they are where Optuna can store and tell them apart, else as JSON."""
    values = parameter.spec["values"]
    if all(isinstance(value, str | int | float | bool) for value in values) and len(set(values)) == len(values):
        return list(values)
    return [as_text(value) for value in values]
