"""Packages with plug-ins that a run was made with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.tracking.journal import read_journal
from harness.utils.environment import PACKAGES, version
from harness.utils.errors import HarnessError, UsageError

PACKAGE = r"[A-Za-z0-9][\w.-]{0,99}"


@contextmanager
def missing_packages_named(run: Path | str) -> Iterator[None]:
    """Add to an error about a run the packages with plug-ins that it was made with and that are not installed here.

    Args:
        run: a run directory, or a value of the setting `resume`; one without a journal adds nothing.

    Raises:
        UsageError: the one in the context, with their names.
    """
    try:
        yield
    except UsageError as error:
        if not (packages := missing_packages(Path(run).expanduser())):
            raise
        names, verb = ", ".join(packages), "is" if len(packages) == 1 else "are"
        raise UsageError(
            f"{error}; the run used plug-ins of {names}, which {verb} not installed here: install {names} if you trust the author"
        ) from error


def missing_packages(run: Path) -> list[str]:
    """Return the packages with plug-ins that the journal of a run names and that are not installed; empty without a journal."""
    try:
        environment = read_journal(run).header.get("environment")
    except HarnessError:
        return []
    packages = environment.get("packages") if isinstance(environment, dict) else None
    names = [str(name) for name in packages] if isinstance(packages, dict) else []
    return [
        name for name in names if name not in PACKAGES and re.fullmatch(PACKAGE, name, re.ASCII) and not version(name)
    ]
