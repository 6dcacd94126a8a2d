"""Functions and classes that plug-ins register, by kind and name.

A plug-in is a module that `--plugin` names, or one that an installed package lists in its entry points of the group
`vision_harness.plugins`. Its functions are registered when it is imported. Each kind has a function of its own that users
call (`register_dataset`, `register_schedule`, ...), beside the code that uses what is registered.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable
from typing import Any, Literal, TypeAlias

from harness.utils.errors import UsageError
from harness.utils.plugins import import_installed_plugins, import_plugins

Kind: TypeAlias = Literal["dataset", "loss", "metric", "schedule", "tracker", "transform"]
NAME = r"[A-Za-z][\w.-]*"
TITLES: dict[Kind, str] = {"dataset": "data set"}  # where users call a kind otherwise
_registered: dict[Kind, dict[str, Any]] = {}


def register(kind: Kind, function: Any = None, *, name: str = "", taken: Collection[str] = ()) -> Any:
    """Register a function or class under a name; without one, return the decorator that does.

    One that a module registers again (it was edited in a notebook) replaces the former.

    Args:
        name: by default that of the function.
        taken: names that have a meaning already.

    Raises:
        UsageError: the name is taken, also by another module, or is none.
    """

    def add(function: Any) -> Any:
        chosen, title = name or getattr(function, "__name__", ""), TITLES.get(kind, kind)
        if chosen in taken or not re.fullmatch(NAME, chosen, re.ASCII):
            raise UsageError(
                f"{title} {chosen!r} cannot be registered by {origin_of(function)}: need a name of letters, digits, _, . and - that no {title} of harness has"
            )
        former = _registered.setdefault(kind, {}).get(chosen)
        if former is not None and origin_of(former) != origin_of(function):
            raise UsageError(
                f"{title} {chosen!r} is registered by {origin_of(former)} and by {origin_of(function)}; rename one of them"
            )
        _registered[kind][chosen] = function
        return function

    return add if function is None else add(function)


def origin_of(function: Any) -> str:
    """Return the module of a function, a class or an object of one; of a `functools.partial`, that of its function."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__module__", None) or type(function).__module__)


def find_registered(kind: Kind, name: str, modules: Iterable[str] = ()) -> Any:
    """Return what is registered under a name; None where there is nothing.

    Args:
        modules: plug-ins of `--plugin`, which are imported where the name is not registered yet. Installed plug-ins are
            imported only where none of these has it, so that they cost nothing and break nothing where they are not used.

    Raises:
        UsageError: one of the modules cannot be imported, or is named by a file only.
    """
    if name not in _registered.get(kind, {}):
        import_plugins(modules)
    if name not in _registered.get(kind, {}):
        import_installed_plugins()
    return _registered.get(kind, {}).get(name)


def registered_names(kind: Kind) -> list[str]:
    """Return the names that the plug-ins imported so far have registered."""
    return sorted(_registered.get(kind, {}))
