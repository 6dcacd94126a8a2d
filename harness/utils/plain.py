"""Plain values and strict JSON: the one way in which every JSON file of this package is written and read.

NaN and infinity are not JSON. They are written as the texts "NaN", "Infinity" and "-Infinity", as W&B writes them, and
come back as numbers; a text that is one of these words gets a leading `~`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_UNCHANGED = (int, bool, type(None))
MAX_DEPTH = 64  # of lists and mappings in each other; deeper JSON is refused, since reading it takes a call per level


def to_plain(value: Any) -> Any:
    """Return text, numbers, lists and mappings in terms of strict JSON."""
    kind = type(value)
    if (kind is float and math.isfinite(value)) or kind in _UNCHANGED:  # nearly all of the values of a table or a curve
        return value
    if kind.__module__ == "numpy":
        value = value.tolist()  # of a scalar: the Python number
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, float):
        return (
            value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        )
    if isinstance(value, str):
        return f"~{value}" if value.lstrip("~") in SPECIAL else value
    if isinstance(value, Mapping):
        return {str(key): to_plain(part) for key, part in value.items()}
    if isinstance(value, Sequence):
        return [to_plain(part) for part in value]
    return str(value)


def from_plain(value: Any, depth: int = 0) -> Any:
    """Return what `to_plain` was given, with lists for any sequence.

    Raises:
        ValueError: it is nested deeper than `MAX_DEPTH`.
    """
    if isinstance(value, str):
        if value in SPECIAL:
            return SPECIAL[value]
        return value[1:] if value.startswith("~") and value.lstrip("~") in SPECIAL else value
    if isinstance(value, list | dict) and depth >= MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, list):
        return [from_plain(part, depth + 1) for part in value]
    if isinstance(value, dict):
        return {key: from_plain(part, depth + 1) for key, part in value.items()}
    return value


def json_text(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """Return `value` as strict JSON, compact where there is no `indent`."""
    separators = (",", ":") if indent is None else None
    return json.dumps(to_plain(value), allow_nan=False, ensure_ascii=ascii_only, indent=indent, separators=separators)


def parse_json(text: str | bytes) -> Any:
    """Return the value that `json_text` was given.

    Raises:
        ValueError: it is no JSON, or nested deeper than `MAX_DEPTH`.
    """
    try:
        return from_plain(json.loads(text))
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None


def sub_mapping(mapping: Any, key: str) -> Mapping[str, Any]:
    """Return the mapping under a key of a mapping; empty where there is none."""
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float:
    """Return a plain number as a float, anything else as NaN."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        return math.nan


def setting_text(value: Any) -> str:
    """Return the value of a setting as a person reads it: lists and mappings with commas, numbers without needless digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={setting_text(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(setting_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
