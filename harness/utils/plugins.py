"""Plug-ins: Python modules of the user, which register models, data sets, schedules and the like when they are imported.

A module's code runs when it is imported. The name of a plug-in that stands in a file (the configuration of a run or a
checkpoint, a recipe) may come from somebody else, and the module may lie beside that file; so only those modules are
imported that the user named, on the command line or in Python, and those that the user has installed as plug-ins of this
package: entry points of the group `vision_harness.plugins`.
"""

from __future__ import annotations

import importlib
import importlib.util
import keyword
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from harness.utils.errors import UsageError, first_line

ENTRY_POINTS = "vision_harness.plugins"
log = logging.getLogger(__name__)
_named: set[str] = set()  # by the user, so that they are looked for in the current directory too
_trusts_files = [False]
_appended: set[str] = set()  # directories of plug-ins on the path, in which no packages are installed
_installed: dict[str, str] = {}  # modules of entry points -> their package; empty where they cannot be imported


def allow_plugins(modules: Iterable[str]) -> None:
    """Allow `import_plugins` to import these modules, from the current directory too: the user named them."""
    _named.update(modules)


def trust_files() -> None:
    """Allow `import_plugins` to import every module that a file names, if it is installed: the user said `--trust`."""
    _trusts_files[0] = True


def are_files_trusted() -> bool:
    """Return whether the user said `--trust`."""
    return _trusts_files[0]


def import_plugins(modules: Iterable[str]) -> None:
    """Import modules that may register models with timm, or what `harness.utils.registry` keeps.

    Raises:
        UsageError: a module was named by a file only, is no module of a user, or cannot be imported.
    """
    for module in modules:
        _check_name(module)
        if module in sys.modules:
            continue
        if module not in _named and not _trusts_files[0]:
            raise UsageError(
                f"plugin {module!r} is named by a file, and importing it runs its code; if you trust it, add --plugin {module} (or --trust, for installed modules)"
            )
        try:
            _import(module)
        except UsageError:
            raise
        except ModuleNotFoundError as error:
            if not error.name or not f"{module}.".startswith(f"{error.name}."):  # it imports what is not installed
                raise UsageError(f"cannot import plugin {module!r}: {first_line(error)}; install it") from error
            raise UsageError(_not_found(module)) from error
        except Exception as error:
            raise UsageError(f"cannot import plugin {module!r}: {type(error).__name__}: {first_line(error)}") from error


def has_installed_plugins() -> bool:
    """Return whether an installed package lists plug-ins of this one."""
    return any(_entry_points())


def _entry_points() -> Iterator[metadata.EntryPoint]:
    """Yield what installed packages list; metadata in the current directory, which may be a foreign one, is not installed."""
    own = Path.cwd().resolve()
    path = [each for each in sys.path if each not in _appended and Path(each).resolve() != own]
    for package in metadata.distributions(path=path):
        yield from package.entry_points.select(group=ENTRY_POINTS)


def import_installed_plugins() -> None:
    """Import what installed packages list as plug-ins: the entry points of the group `vision_harness.plugins`, each once.

    One that fails is reported in a line and left out: it may have nothing to do with what is looked for.
    """
    for entry in _entry_points():
        if entry.value in _installed:
            continue
        _installed[entry.value] = ""
        try:
            entry.load()
            _installed[entry.value] = "" if entry.dist is None else entry.dist.name
        except Exception as error:  # noqa: BLE001 - code of any installed package
            package = "" if entry.dist is None else f" of the package {entry.dist.name}"
            log.warning(
                "the plug-in %s%s cannot be imported: %s: %s",
                entry.value,
                package,
                type(error).__name__,
                first_line(error),
            )


def plugin_packages() -> list[str]:
    """Return the packages whose plug-ins `import_installed_plugins` has imported."""
    return sorted(set(filter(None, _installed.values())))


def _check_name(module: str) -> None:
    if module.endswith(".py") or "/" in module or os.sep in module:
        raise UsageError(f"plugin {module!r} must be a module's name, such as my_models, not a file")
    parts = module.split(".")
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        raise UsageError(
            f"plugin {module!r} is no name of a module; need a name such as my_models or package.my_models"
        )
    if parts[0] in sys.stdlib_module_names:
        raise UsageError(f"plugin {module!r} is a module of Python itself; name one of your own, such as my_models")


def _not_found(module: str) -> str:
    """Return what to do about a plug-in that is no module here."""
    name = module.partition(".")[0]
    if module not in _named:
        return f"plugin {module!r} is not installed, and --trust looks at installed modules only; give --plugin {module} in the folder that has it, or install it with: pip install -e FOLDER"
    return (
        f"there is no plugin {module!r}, neither in this folder ({os.getcwd()}) nor installed; start in the folder that has "
        f"{name}.py, set PYTHONPATH to it, or install it with: pip install -e FOLDER (with a pyproject.toml)"
    )


def _import(module: str) -> None:
    """Import a module; one that the user named is looked for in the current directory first.

    Afterwards the directory stays at the end of the path, so that the module can import others beside it later, and no
    file there hides a library.
    """
    directory = os.getcwd()
    importlib.invalidate_caches()  # the file may be newer than Python's listing of the directory
    if module not in _named or directory in sys.path:
        importlib.import_module(module)
        return
    sys.path.insert(0, directory)
    try:
        importlib.import_module(module)
    finally:
        sys.path.remove(directory)
        sys.path.append(directory)
        _appended.add(directory)
