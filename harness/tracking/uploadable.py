"""A run directory whose run can be written to a tracker from its journal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config.settings import Config
from harness.config.stored import with_former_defaults
from harness.tracking import run_dir
from harness.tracking.journal import JournalContents, read_journal
from harness.utils.checksums import SUMS
from harness.utils.errors import BusyError, DataError, HarnessError, first_line
from harness.utils.plain import number

MAX_TIME = 253_402_300_800.0  # seconds since 1970: the year 10000, the first that W&B's protocol cannot express


def valid_time(value: Any) -> float:
    """Return seconds since 1970; 0 where a value of a journal or log is none that a tracker can express."""
    seconds = number(value)
    return seconds if 0 < seconds < MAX_TIME else 0.0


def read_uploadable(folder: Path, corrections: Mapping[str, Any]) -> tuple[JournalContents, Config]:
    """Return the journal of a run that has ended, and its settings.

    Args:
        corrections: setting -> value, in place of what the run was started with.

    Raises:
        DataError: there is no journal, it has no settings, or a result has changed since the run ended.
        BusyError: the run is still being written.
        UsageError: a correction is no valid value.
    """
    run_dir.check_own_files(folder)
    journal = read_journal(folder)
    if "config" not in journal.header:
        raise DataError(f"{folder}: the journal has lost its first line, and with it the settings of the run")
    if run_dir.is_locked(folder):
        raise BusyError(f"{folder} is still being written; sync it when the run has ended")
    try:
        config = Config(**with_former_defaults(journal.header["config"]))
    except (HarnessError, TypeError) as error:
        raise DataError(f"{folder}: the journal's first line has no usable settings: {first_line(error)}") from None
    if changed := run_dir.changed_results(folder):
        raise DataError(
            f"{folder}: {', '.join(changed)} changed since the run ended; restore {'it' if len(changed) == 1 else 'them'}, or remove {SUMS} to upload the run as it is"
        )
    return journal, config.replace(wandb="auto", **corrections)
