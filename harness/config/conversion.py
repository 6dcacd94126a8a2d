"""Convert text from the command line, YAML values and Python values to the types of settings."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from harness.config import yaml_io

FIND = "find"
BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
NumberOrFind = float | Literal["find"]
BALANCED = "balanced"
# Nothing (""), `balanced`, a number for each class in their order, or numbers by the names of classes.
ClassWeights = str | tuple[float, ...] | dict[str, float]
MAX_WEIGHT = 1e6
A_MAPPING = "a mapping such as width=16,logit_scale=0.125, with lists in brackets such as betas=[0.9,0.98]"


def convert(kind: Any, value: Any) -> Any:
    """Convert `value` to the type `kind` of a setting.

    Raises:
        ValueError: it cannot be converted; the message is what is needed instead, such as "a whole number".
    """
    if kind == NumberOrFind:
        if isinstance(value, str) and value.strip().lower() == FIND:
            return FIND
        try:
            return convert(float, value)
        except ValueError as error:
            raise ValueError(f"{error}, or find") from None
    if kind == ClassWeights:
        return _to_class_weights(value)
    if kind is bool:
        if str(value).lower() not in BOOLEANS:
            raise ValueError("True or False")
        return BOOLEANS[str(value).lower()]
    if kind in (int, float):
        return _to_number(kind, value)
    if kind is str:
        if value is None or isinstance(value, dict | list | tuple | set):
            raise ValueError("a string")
        text = str(value)
        if any(ord(letter) < 32 and letter not in "\t\n" for letter in text):
            raise ValueError("text without control characters")
        return text
    if get_origin(kind) is tuple:
        return _to_list(get_args(kind)[0], value)
    return _to_mapping(value)


def _to_list(kind: type[str] | type[float], value: Any) -> tuple[Any, ...]:
    """Return a list of strings or of numbers; a number alone is a list of one, and `none` is an empty list of numbers."""
    of_numbers = kind is float
    if isinstance(value, str):
        items = value.strip("[]()").replace("'", "").replace('"', "").split(",")
        value = [item.strip() for item in items if item.strip() and not (of_numbers and item.strip().lower() == "none")]
    if of_numbers and isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ValueError("numbers with commas between them" if of_numbers else "a list of strings")
    if not of_numbers:
        return tuple(str(item) for item in value)
    try:
        return tuple(float(_to_number(float, item)) for item in value)
    except ValueError:
        raise ValueError("numbers with commas between them") from None


def _to_number(kind: type[int] | type[float], value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a number")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError("a finite number") from None
    except ValueError:
        raise ValueError("a number") from None
    if not math.isfinite(number):
        raise ValueError("a finite number")
    if kind is float:
        return number
    if number != int(number):
        raise ValueError("a whole number")
    # A float cannot hold every integer of 64 bits, for example a seed.
    is_integer_text = not isinstance(value, float) and str(value).strip().lstrip("+-").isdigit()
    return int(value) if is_integer_text else int(number)


def _to_class_weights(value: Any) -> ClassWeights:
    needed = "balanced, a number for each class such as 1,2.5, or NAME=NUMBER,... such as cat=2.5"
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "none")):
        return ""
    if isinstance(value, str):
        text = value.strip()
        if text.lower() == BALANCED:
            return BALANCED
        is_mapping = "=" in text or text.startswith("{")
        value = _to_mapping(text) if is_mapping else [item for item in text.strip("[]()").split(",") if item.strip()]
    try:
        if isinstance(value, Mapping):
            weights: tuple[float, ...] | dict[str, float]
            weights = {str(name): float(_to_number(float, weight)) for name, weight in value.items()}
            numbers = list(weights.values())
        else:
            numbers = [float(_to_number(float, each)) for each in value]
            weights = tuple(numbers)
    except (TypeError, ValueError):
        raise ValueError(needed) from None
    if not all(0 <= number <= MAX_WEIGHT for number in numbers):
        raise ValueError(f"weights from 0 to {MAX_WEIGHT:g}")
    return weights or ""


def _to_mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("{"):
            try:
                value = ast.literal_eval(text)  # W&B's agent passes the repr of a Python dict
            except (ValueError, SyntaxError):
                value = yaml_io.parse_yaml(text)
        else:
            pairs = [item.partition("=") for item in _split_at_commas(text) if item.strip()]
            if any(not equals_sign for _, equals_sign, _ in pairs):
                raise ValueError(A_MAPPING)
            value = {key.strip(): yaml_io.parse_yaml(item) for key, _, item in pairs}
    if not isinstance(value, Mapping):
        raise ValueError(A_MAPPING)
    try:
        json.dumps(value, allow_nan=False, sort_keys=True)  # as the digest of the settings does
    except (TypeError, ValueError):
        raise ValueError("a mapping of plain, finite values") from None
    return {str(key): item for key, item in value.items()}


def _split_at_commas(text: str) -> list[str]:
    """Return the parts of a text between commas; those inside of brackets and braces separate nothing, if all are closed."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return text.split(",") if depth else parts
