"""What W&B, which reads YAML 1.1, makes of the values of a sweep file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from harness.utils.errors import UsageError

AS_WORDS = ("value", "values", "command")  # keys under which a number and its text are the same to `harness run`


def as_wandb_reads(document: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return a document with W&B's values for the words that YAML 1.1 reads otherwise: `yes`, `off`, `1_000`, `0x10`.

    Args:
        document: what `read_yaml` has made of `text`, whose tags and aliases it has checked.

    Raises:
        UsageError: a number has another meaning or none to W&B: `010`, `1e-3` as a bound, a date.
    """
    try:
        theirs = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a date out of range, a lone `=`
        raise UsageError(f"W&B cannot read it: {' '.join(str(error).split())[:200]}") from None
    result: dict[str, Any] = _merge(dict(document), theirs, "", "")
    return result


def _merge(ours: Any, theirs: Any, where: str, key: str) -> Any:
    """Return a value as W&B reads it.

    Args:
        where: its path in the document. key: the last key of the path, without places in lists.
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        merged = {}
        for (name, value), (other, other_value) in zip(ours.items(), theirs.items(), strict=True):
            if name != other or type(name) is not type(other):
                raise UsageError(f"{where or 'the file'}: W&B reads the key {name!r} as {other!r}; put it in quotes")
            merged[name] = _merge(value, other_value, f"{where}.{name}" if where else str(name), str(name))
        return merged
    if isinstance(ours, list) and isinstance(theirs, list):
        return [_merge(value, other, where, key) for value, other in zip(ours, theirs, strict=True)]
    if type(ours) is type(theirs) and (ours == theirs or ours != ours):
        return ours
    if isinstance(ours, str) and isinstance(theirs, bool | int | float):
        return theirs
    if isinstance(ours, int | float) and isinstance(theirs, str):
        if key == "command":
            return theirs
        if key in AS_WORDS:
            return ours
        raise UsageError(f"{where}: W&B reads {theirs} as text; write {_with_point(theirs)}")
    if isinstance(ours, int) and isinstance(theirs, int):
        raise UsageError(
            f"{where}: W&B reads {ours} with a leading zero as {theirs}; write {theirs}, or {ours} without it"
        )
    raise UsageError(f"{where}: W&B reads {str(ours)[:40]!r} as a {type(theirs).__name__}; put it in quotes")


def _with_point(number: str) -> str:
    """Return a number with an exponent as YAML 1.1 reads it."""
    mantissa, mark, exponent = number.lower().partition("e")
    if not mark:  # 08, which is no octal number
        return number.lstrip("0") or "0"
    sign = "" if exponent.startswith(("-", "+")) else "+"
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}{mark}{sign}{exponent}"
