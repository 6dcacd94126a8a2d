"""Public names of a package that are imported when they are first used, so that `import harness` stays light."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_attributes(package: str, sources: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` (PEP 562) that imports public names on first use.

    Args:
        package: name of the package, for the error of an unknown name.
        sources: public name -> `module` or `module:attribute`, where the two names differ.
    """

    def __getattr__(name: str) -> Any:
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = sources[name].partition(":")
        return getattr(import_module(module), attribute or name)

    return __getattr__
