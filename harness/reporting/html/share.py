"""The page that a run or a sweep leaves at its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from harness.utils.errors import as_harness_error

PAGE = "report.html"
log = logging.getLogger(__name__)


def write_run_page(folder: Path, say: Callable[[str], None], state: str = "") -> None:
    """Write the page of a run's or a sweep's folder; where that fails, say why: what was trained is kept all the same.

    Args:
        state: of a run whose status does not say it yet.
    """
    from harness.reporting.html import pages

    try:
        pages.write_page([folder], state=state)
    except Exception as error:
        meant = as_harness_error(error)
        if meant is None:
            log.exception("while writing the page of %s", folder)
        say(f"no page was written: {meant or error}; `harness report {folder}` makes it")
