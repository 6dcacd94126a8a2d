"""The arguments that functions of the user take, checked by their signatures before they are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from harness.utils.errors import UsageError, did_you_mean


def check_arguments(
    subject: str,
    setting: str,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    positional: int,
    supplied: Collection[str] = (),
) -> None:
    """Refuse arguments that a function does not take, and settings that leave out one that it needs.

    A function whose signature Python does not know is not checked.

    Args:
        subject: what the function is called in messages, such as `loss=mine`.
        setting: that has the arguments, such as `loss_args`.
        positional: how many arguments the function gets before them, by position.
        supplied: arguments that it gets by name from elsewhere.

    Raises:
        UsageError: in one line, which argument.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    takes_any = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
    if not takes_any and sum(each.kind in by_position for each in parameters) < positional:
        raise UsageError(f"{subject} is a function of {_names(parameters)}; it must take {positional} arguments")
    keywords = [
        each
        for number, each in enumerate(parameters)
        if each.kind is inspect.Parameter.KEYWORD_ONLY
        or (each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and number >= positional)
    ]
    known = [each.name for each in keywords if each.name not in supplied]
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        for name, value in arguments.items():
            if name not in known:
                has = f"has only {', '.join(known)}" if known else "has no arguments"
                raise UsageError(f"{setting}={name}={value}: {subject} {has}{did_you_mean(name, known)}")
    for each in keywords:
        if each.default is inspect.Parameter.empty and each.name not in {*arguments, *supplied}:
            raise UsageError(f"{subject} needs the argument {each.name}; give it in {setting}: {each.name}=VALUE")


def takes_argument(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function has a parameter of this name that can be given by it."""
    try:
        parameter = inspect.signature(function).parameters.get(name)
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )


def _names(parameters: list[inspect.Parameter]) -> str:
    return f"({', '.join(str(each) for each in parameters)})"
