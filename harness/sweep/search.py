"""One `harness sweep` command: its folder, its study, its scheduler, and the final runs of the best configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO

from optuna.exceptions import StorageInternalError

from harness.config.names import TrialStatus
from harness.sweep import progress, results
from harness.sweep.launcher import final_runs
from harness.sweep.scheduler import Scheduler
from harness.sweep.source import SourceFunctions
from harness.sweep.spec import SweepSpec
from harness.sweep.storage import describe_error
from harness.sweep.study import Study
from harness.tracking import run_dir
from harness.tracking.run_files import DATABASE, check_output_folder, check_own_files
from harness.tracking.run_names import slug
from harness.utils.errors import HarnessError, ResourceError, UsageError
from harness.utils.files import write_atomically
from harness.utils.signals import Interrupted, StopRequests


def sweep_folder(sweep: SweepSpec, output: Path, name: str) -> Path:
    """Return the folder of a sweep: the same for the same search, so that the same command resumes it."""
    return output / slug(name or f"{slug(sweep.name)}-{sweep.digest()}")


def run_search(
    sweep: SweepSpec,
    source: bytes,
    *,
    output: Path,
    name: str = "",
    count: int | None = None,
    workers: int = 1,
    storage: str = "",
    final: int = 0,
    seed: int = 0,
    fork: bool = True,
    sampler: str = "auto",
    pruner: str = "none",
    functions: SourceFunctions | None = None,
) -> tuple[Path, str]:
    """Run a sweep, write its results, and test the best configuration, as `harness sweep` does.

    Args:
        source: the bytes of the sweep file, which are copied to the sweep's folder.
        count: trials in all, over every command that works on the search; None: the file's `run_cap`.
        storage: a database URL that several machines share, or a SQLite file; empty: one in the sweep's folder.
        final: seeds to train and test the best configuration with; 0: none.
        sampler, pruner: names of `sampling`.
        functions: the user's code that the file names.

    Returns:
        the sweep's folder, and a summary as text.

    Raises:
        UsageError: the search would never end.
        Interrupted: by a signal; the same call resumes the sweep.
        HarnessError: no trial could run, or a final run failed.
    """
    cap = count if count is not None else sweep.run_cap
    if cap is None and sweep.method != "grid":
        raise UsageError(f"a {sweep.method} search never ends by itself; give --count N, or run_cap: N in the file")
    folder = sweep_folder(sweep, output, name)
    check_output_folder(folder, is_named=False)
    run_dir.make_folder(folder)
    check_own_files(folder)
    lock: IO[str] | None = run_dir.lock_folder(folder)
    url = storage if "://" in storage else f"sqlite:///{Path(storage or folder / DATABASE).expanduser().resolve()}"
    display = progress.SweepTable(sweep) if sys.stderr.isatty() else progress.SweepLog(sweep)
    try:
        study = Study(
            sweep,
            folder.name,
            url,
            cap,
            seed,
            shared=bool(storage) or lock is None,
            notify=display.message,
            functions=functions,
            sampler=sampler,
            pruner=pruner,
        )
    except BaseException:
        display.close()
        raise
    write_atomically(folder / results.COPY, source)
    scheduler = Scheduler(sweep, folder, study, workers, display, fork)
    try:
        with StopRequests() as stop_requests:
            scheduler.search(stop_requests)
            records = study.records()
            times = results.time_summary(scheduler.times())
            summary = progress.sweep_summary(sweep, records, study.best(), times)
            if records and all(record.state == TrialStatus.FAILED for record in records):
                raise HarnessError(f"every trial failed; the last one: {records[-1].reason}")
            if final:
                from harness.runs.seeds import seeds_table

                display.close()
                result = final_runs(scheduler.launcher, study.best(), final, stop_requests, display.message)
                summary += f"\nfinal runs of the best:\n{seeds_table(result)}"
    except Interrupted as stop:
        raise Interrupted(
            f"{stop}; the trials have saved their state in {folder}. Resume with the same command.", stop.exit_code
        ) from stop
    except StorageInternalError as error:
        raise ResourceError(
            f"the storage of the search cannot be reached ({describe_error(error)}); the trials were asked to save. Resume with the same command."
        ) from error
    finally:
        display.close()
        study.close()
        if lock is not None:
            lock.close()
    return folder, summary
