"""Names that are imported when they are first used: our own, so that `import harness` stays light, and a library's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
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


@contextmanager
def deferred_imports(*modules: str) -> Iterator[None]:
    """Have libraries that are imported inside take functions and classes of these modules without importing them.

    A module is imported when something that was taken of it is first called. One that is imported already is used as it is.

    Args:
        modules: dotted names; of what is taken of them nothing may be subclassed.
    """
    stubs = {name: _Deferred(name) for name in modules if name not in sys.modules}
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name, stub in stubs.items():
            if sys.modules.get(name) is stub:
                del sys.modules[name]


class _Deferred(ModuleType):
    """A module whose functions import the real module when they are called."""

    def __getattr__(self, attribute: str) -> Callable[..., Any]:
        if attribute.startswith("__"):  # it is no package, and has no specification
            raise AttributeError(attribute)
        name = self.__name__

        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(import_module(name), attribute)(*args, **kwargs)

        return call
