"""The parameters of a sweep: their distributions, and the value at any quantile.

The distributions are W&B's (package `sweeps`, `params.py`): a value is the inverse of the cumulative distribution
function at u, 0 < u < 1; for a `q_` distribution it is rounded to a multiple of q.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.utils.errors import UsageError, did_you_mean

# Distribution -> (required keys, optional keys with their defaults).
_Q = {"q": 1.0}
DISTRIBUTIONS: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
    "constant": (("value",), {}),
    "categorical": (("values",), {}),
    "categorical_w_probabilities": (("values", "probabilities"), {}),
    "int_uniform": (("min", "max"), {}),
    "uniform": (("min", "max"), {}),
    "q_uniform": (("min", "max"), _Q),
    "log_uniform": (("min", "max"), {}),
    "log_uniform_values": (("min", "max"), {}),
    "q_log_uniform": (("min", "max"), _Q),
    "q_log_uniform_values": (("min", "max"), _Q),
    "inv_log_uniform": (("min", "max"), {}),
    "inv_log_uniform_values": (("min", "max"), {}),
    "normal": ((), {"mu": 0.0, "sigma": 1.0}),
    "q_normal": ((), {"mu": 0.0, "sigma": 1.0, **_Q}),
    "log_normal": ((), {"mu": 0.0, "sigma": 1.0}),
    "q_log_normal": ((), {"mu": 0.0, "sigma": 1.0, **_Q}),
    "beta": ((), {"a": 1.0, "b": 1.0}),
    "q_beta": ((), {"a": 1.0, "b": 1.0, **_Q}),
}
NUMBERS = ("min", "max", "mu", "sigma", "q", "a", "b")
MAX_GRID_POINTS = 100_000
MAX_EXPONENT = 700.0  # exp() of more overflows a double


@dataclass(frozen=True)
class Parameter:
    """One parameter of a sweep.

    Attributes:
        path: its name, after the names of the parameters that it is nested in.
        kind: a key of `DISTRIBUTIONS`; `categorical` with and without probabilities.
        spec: the numbers or values of the distribution, defaults filled in.
        is_implied: whether the file names no distribution.
    """

    path: tuple[str, ...]
    kind: str
    spec: Mapping[str, Any]
    is_implied: bool = False

    @property
    def name(self) -> str:
        """Return the path, joined by dots."""
        return ".".join(self.path)

    @property
    def has_mixed_bounds(self) -> bool:
        """Return whether one bound is an integer and the other not, and no distribution is named."""
        return self.is_implied and {type(self.spec.get("min")), type(self.spec.get("max"))} == {int, float}

    @property
    def is_fixed(self) -> bool:
        """Return whether the parameter has one value, so that it is not searched."""
        return self.kind == "constant"

    @property
    def choices(self) -> Sequence[Any] | None:
        """Return the listed values; None for a range."""
        return {"constant": [self.spec.get("value")], "categorical": self.spec.get("values")}.get(self.kind)

    def points(self) -> Sequence[Any]:
        """Return every value that a grid visits, as W&B's grid does: an equal value once, `q_uniform` without its end.

        Raises:
            UsageError: they are too many, or W&B's grid does not take the distribution.
        """
        if self.choices is not None and self.spec.get("probabilities") is None:
            return list({_grid_key(value): value for value in self.choices}.values())
        if self.kind in ("int_uniform", "q_uniform"):
            low, high, step = self.spec["min"], self.spec["max"], self.spec.get("q", 1)
            if (high - low) / step > MAX_GRID_POINTS:
                raise UsageError(
                    f"parameters.{self.name}: a grid of {(high - low) / step:,.0f} values; take a larger q or a smaller range, or set method: random"
                )
            if self.kind == "int_uniform":
                return range(low, high + 1)
            points: list[Any] = np.arange(low, high, step).tolist()  # rounds as W&B's own code
            return points
        raise UsageError(
            f"parameters.{self.name}: a grid takes value, values, int_uniform and q_uniform, not {self.kind}"
            f"{' with probabilities' if self.kind == 'categorical' else ''}; list its values, or set method: random"
        )

    def at(self, u: float) -> Any:
        """Return the value at the quantile `u`, 0 < u < 1."""
        spec = self.spec
        match self.kind.removeprefix("q_"):
            case "constant":
                return spec["value"]
            case "categorical":
                return spec["values"][_choose(u, len(spec["values"]), spec["probabilities"])]
            case "int_uniform":
                return spec["min"] + _index(u, spec["max"] - spec["min"] + 1)
            case "uniform":
                value = spec["min"] + u * (spec["max"] - spec["min"])
            case "log_uniform":
                value = math.exp(spec["min"] + u * (spec["max"] - spec["min"]))
            case "inv_log_uniform":
                value = math.exp(-(spec["max"] - u * (spec["max"] - spec["min"])))
            case "log_uniform_values" | "inv_log_uniform_values":
                low, high = math.log(spec["min"]), math.log(spec["max"])
                value = min(max(math.exp(low + u * (high - low)), spec["min"]), spec["max"])
            case "normal" | "log_normal":
                from scipy.special import ndtri

                value = spec["mu"] + spec["sigma"] * float(ndtri(u))
                value = math.exp(min(value, MAX_EXPONENT)) if "log" in self.kind else value
            case _:  # beta
                from scipy.special import betaincinv

                value = float(betaincinv(spec["a"], spec["b"], u))
        if self.kind.startswith("q_"):
            return _as_type_of(round(value / spec["q"]) * spec["q"], spec["q"])
        return value


def _as_type_of(value: float, step: float) -> float | int:
    """Return a multiple of `step` as an int where the step is one."""
    return int(value) if isinstance(step, int) else value


def _grid_key(value: Any) -> str:
    """Return what tells two values of a grid apart; to W&B, 3.0 and 3 are one."""
    return as_text(int(value) if isinstance(value, float) and value.is_integer() else value)


def _index(u: float, count: int) -> int:
    """Return the quantile `u` of the uniform distribution over 0 .. count - 1: the lowest index i with u <= (i + 1) / count."""
    index = min(max(math.ceil(u * count) - 1, 0), count - 1)
    return index - 1 if index and index / count >= u else index


def _choose(u: float, count: int, probabilities: Sequence[float] | None) -> int:
    """Return the index of the value at the quantile `u`."""
    if probabilities is None:
        return _index(u, count)
    cumulative = 0.0
    for index, probability in enumerate(probabilities):
        cumulative += probability
        if u < cumulative:
            return index
    return max(index for index, probability in enumerate(probabilities) if probability > 0)


def read_parameters(parameters: Any, where: str = "parameters", path: tuple[str, ...] = ()) -> list[Parameter]:
    """Return every parameter of a sweep in the order of the file, nested ones under their path.

    Args:
        where: the key that `parameters` stands under, for messages.

    Raises:
        UsageError: with the parameter's name, what is wrong and what is needed.
    """
    if not isinstance(parameters, Mapping) or not parameters:
        raise UsageError(f"{where}: need a mapping of parameters, such as lr_max: {{min: 0.001, max: 0.1}}")
    result: list[Parameter] = []
    for key, spec in parameters.items():
        location = f"{where}.{key}"
        if not isinstance(spec, Mapping):
            raise UsageError(f"{location}: need `value:`, `values:` or `min:` and `max:`, got {spec!r}")
        if "parameters" in spec:
            if extra := set(spec) - {"parameters"}:
                raise UsageError(
                    f"{location}: nested parameters stand alone, without {', '.join(sorted(map(str, extra)))}"
                )
            result += read_parameters(spec["parameters"], location, (*path, str(key)))
        else:
            result.append(_read_parameter((*path, str(key)), spec, location))
    return result


def _read_parameter(path: tuple[str, ...], spec: Mapping[Any, Any], where: str) -> Parameter:
    kind = spec.get("distribution") or _implied_kind(spec, where)
    if kind == "categorical" and "probabilities" in spec and "distribution" in spec:
        raise UsageError(f"{where}: probabilities go with distribution: categorical_w_probabilities; or leave it out")
    if not isinstance(kind, str) or kind not in DISTRIBUTIONS:
        raise UsageError(f"{where}: there is no distribution {kind!r}{did_you_mean(str(kind), DISTRIBUTIONS)}")
    required, optional = DISTRIBUTIONS[kind]
    known = {*required, *optional}
    if missing := [key for key in required if key not in spec]:
        raise UsageError(f"{where}: {kind} needs {' and '.join(missing)}")
    if unknown := [str(key) for key in spec if key != "distribution" and key not in known]:
        raise UsageError(
            f"{where}: {kind} takes {', '.join(sorted(known))}, not {unknown[0]!r}{did_you_mean(unknown[0], known)}"
        )
    values = {**optional, **{key: spec[key] for key in spec if key != "distribution"}}
    for key in NUMBERS:
        if key in values and not _is_number(values[key]):
            raise UsageError(
                f"{where}: {key}={values[key]!r}: need a number (W&B reads 1e-3 as text: write 0.001 or 1.0e-3)"
            )
    _check_numbers(kind, values, where)
    if kind.startswith("categorical"):
        _check_values(values, where)
        kind = "categorical"
        values.setdefault("probabilities", None)
    return Parameter(path, kind, values, "distribution" not in spec)


def _implied_kind(spec: Mapping[Any, Any], where: str) -> str:
    """Return the distribution that W&B takes where none is named."""
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if "min" in spec and "max" in spec:  # one integer among them: W&B's schema reads a range of real numbers
        return "int_uniform" if {type(spec[key]) for key in ("min", "max")} == {int} else "uniform"
    known = ("value", "values", "min", "max", "distribution", "parameters")
    unknown = next((str(key) for key in spec if key not in known), "")
    hint = f"; unknown key {unknown!r}{did_you_mean(unknown, known)}" if unknown else ""
    raise UsageError(f"{where}: need `value:`, `values:`, `min:` and `max:`, or a distribution{hint}")


def _check_numbers(kind: str, values: Mapping[str, Any], where: str) -> None:
    if "min" in values and not values["min"] < values["max"]:
        raise UsageError(
            f"{where}: W&B needs min < max, got {values['min']!r} and {values['max']!r}; for one value, write `value:`"
        )
    if kind == "int_uniform" and not (isinstance(values["min"], int) and isinstance(values["max"], int)):
        raise UsageError(f"{where}: int_uniform needs integers, got {values['min']!r} and {values['max']!r}")
    if kind.endswith("log_uniform_values") and values["min"] <= 0:
        raise UsageError(f"{where}: {kind} needs min > 0, got {values['min']!r}")
    if kind.endswith("log_uniform") and max(abs(values["min"]), abs(values["max"])) > MAX_EXPONENT:
        raise UsageError(
            f"{where}: min and max of {kind} are exponents of e; for the values themselves use {kind}_values"
        )
    if values.get("q") is not None and values["q"] <= 0:
        raise UsageError(f"{where}: need q > 0, got {values['q']!r}")
    if values.get("sigma") is not None and values["sigma"] <= 0:  # at 0 W&B draws NaN
        raise UsageError(
            f"{where}: need sigma > 0, got {values['sigma']!r}, with which W&B draws no number; for one value, write `value:`"
        )
    if kind.endswith("beta") and not (values["a"] > 0 and values["b"] > 0):
        raise UsageError(
            f"{where}: need a > 0 and b > 0, got {values['a']!r} and {values['b']!r}, with which W&B draws no number"
        )


def _check_values(values: Mapping[str, Any], where: str) -> None:
    listed, probabilities = values["values"], values.get("probabilities")
    if not isinstance(listed, list) or not listed:
        raise UsageError(f"{where}: need a list of at least one value, got {listed!r}")
    if probabilities is None:
        return
    if (
        not isinstance(probabilities, list)
        or len(probabilities) != len(listed)
        or not all(_is_number(probability) and probability >= 0 for probability in probabilities)
    ):
        raise UsageError(f"{where}: need one probability, 0 or more, for each of the {len(listed)} values")
    if abs(sum(probabilities) - 1) > 1e-5 + 1e-8:  # as W&B's own code
        raise UsageError(f"{where}: the probabilities add up to {sum(probabilities):g}; they must add up to 1")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def nested(values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return values by path as a nested mapping, as an agent passes it on."""
    result: dict[str, Any] = {}
    for path, value in values.items():
        level = result
        for name in path[:-1]:
            level = level.setdefault(name, {})
        level[path[-1]] = value
    return result


def as_text(value: Any) -> str:
    """Return a value as JSON: for tables, and to tell values apart that Python calls equal (1, 1.0, true)."""
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
