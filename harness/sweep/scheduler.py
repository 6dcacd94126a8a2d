"""`harness sweep`: asks the engine what to try, runs it as `harness run`, and keeps what comes of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from optuna.exceptions import StorageInternalError

from harness.reporting.figures import sweep as figures
from harness.reporting.html.sweep_data import read_sweep
from harness.sweep import progress, results
from harness.sweep import workers as processes
from harness.sweep.final import final_runs
from harness.sweep.launcher import Launcher
from harness.sweep.results import TrialTimes
from harness.sweep.schema import SweepSpec
from harness.sweep.study import Study, Trial, TrialRecord, first_line
from harness.tracking import run_dir
from harness.tracking.journal import follow_journal
from harness.utils.errors import HarnessError, ResourceError, UsageError
from harness.utils.files import read_json, write_atomically, write_json
from harness.utils.signals import PREEMPTED, Interrupted, StopRequests

POLL_INTERVAL = 0.1  # seconds between two looks at the trials
COMPARE_INTERVAL = 2.0  # seconds after which a trial is held against the others again, though it has said nothing new
MAX_FAILED_AT_START = 5  # failed trials at the start, and none that did not fail: the sweep is wrong, not they
DATABASE = "study.db"


@dataclass
class RunningTrial:
    """A trial whose process runs.

    Attributes:
        share: which worker's share of the machine it has.
        values: of the metric, so far. place: how far its journal was read. judged: when it was last held against others.
    """

    proposal: Trial
    process: processes.TrialProcess
    share: int
    began: float
    place: int = 0
    values: list[float] = field(default_factory=list)
    judged: float = 0.0
    pruned: bool = False


class Scheduler:
    """One `harness sweep` command.

    Args:
        folder: where everything of the sweep goes.
        workers: trials at a time.
        fork: start plain trials from a process that has everything imported.
    """

    def __init__(
        self, sweep: SweepSpec, folder: Path, engine: Study, workers: int, shown: progress.SweepLog, fork: bool = True
    ) -> None:
        self.sweep, self.folder, self.engine, self.workers, self.shown = sweep, folder, engine, workers, shown
        self.launcher = Launcher(sweep, folder, workers, fork)
        self._running: list[RunningTrial] = []
        self._spent: dict[str, TrialTimes] = {}
        self._refused: set[str] = set()  # trials whose settings do not fit each other: no sign that the sweep is wrong
        self._began = time.monotonic()
        self._ended_here = 0

    @property
    def runs(self) -> Path:
        """Where the trials' run folders go."""
        return self.folder / results.RUNS

    def search(self, stop_requests: StopRequests) -> None:
        """Run trials until there are no more.

        Raises:
            Interrupted: a signal stopped it; the trials have saved, and the same command goes on with them.
            HarnessError: the first trials all failed.
        """
        try:
            while True:
                stop_requests.check()
                self.engine.heartbeat([running.proposal for running in self._running])
                self._start_more()
                self._look()
                if self.shown.is_due():
                    self.shown.update(self.engine.rows(), self.engine.best(), self._left())
                if self._running and self.engine.reached():
                    self.shown.say("the target is reached: the other trials are stopped")
                    self._stop_rest()
                if not self._running and self.engine.exhausted():
                    if not self.engine.running_elsewhere([]) or self.engine.reached():
                        return
                    self.engine.requeue_stale()  # one of them may be given back
                time.sleep(POLL_INTERVAL)
        finally:
            self._stop_rest()
            self.launcher.close()
            self.keep()

    def _start_more(self) -> None:
        while len(self._running) < self.workers:
            proposal = self.engine.ask()
            if proposal is None:
                return
            try:
                self.sweep.config(proposal.values)
            except UsageError as error:  # such as lr_min > lr_max: one failed trial
                self._refused.add(proposal.name)
                self._end(proposal, "failed", str(error), 0.0)
                continue
            share = self.launcher.free_share(running.share for running in self._running)
            process = self.launcher.trial(proposal, share)
            self.shown.began(proposal.name, proposal.values)
            self._running.append(RunningTrial(proposal, process, share, time.monotonic()))

    def _look(self) -> None:
        """Read what the running trials have logged; stop those that Hyperband stops; take leave of those that ended."""
        for running in list(self._running):
            code = running.process.poll()  # before the journal is read, so that an ended one's is read whole
            self._read(running)
            if not running.pruned and code is None and self._is_due(running):
                running.judged = time.monotonic()
                if self.engine.report(running.proposal, running.values):
                    running.pruned = True
                    running.process.stop()
            if code is None and running.pruned and time.monotonic() - running.judged > processes.STOP_TIMEOUT:
                running.process.kill()
            if code is not None:
                self._running.remove(running)
                self._leave(running, code)

    def _is_due(self, running: RunningTrial) -> bool:
        """Whether the storage is to be asked about a trial: it has said something new, or others may have."""
        return (
            len(running.values) > len(running.proposal.reported) or time.monotonic() - running.judged > COMPARE_INTERVAL
        )

    def _read(self, running: RunningTrial) -> None:
        before = running.place
        records, running.place = follow_journal(self.runs / running.proposal.name, running.place)
        if running.place < before:
            running.values.clear()
        for record in records:
            value = record.scalars().get(self.sweep.metric.name)
            if record.kind == "epoch" and isinstance(value, int | float) and abs(value) < float("inf"):
                running.values.append(float(value))

    def _leave(self, running: RunningTrial, code: int) -> None:
        self.engine.report(running.proposal, running.values)
        seconds = time.monotonic() - running.began
        if code == 0:
            self._end(running.proposal, "complete", "", seconds)
        elif running.pruned:
            self._end(running.proposal, "pruned", "", seconds)
        elif (code < 0 or code in PREEMPTED) and self.engine.requeue(running.proposal, counts=True):
            self.shown.say(f"{running.proposal.name}  was stopped from outside (status {code}) and is gone on with")
        else:
            self._end(running.proposal, "failed", self.launcher.why(running.proposal.name, code), seconds)

    def _end(self, proposal: Trial, state: str, reason: str, seconds: float) -> None:
        self.engine.tell(proposal, state, reason)
        self._ended_here += 1
        if seconds:
            self._spent[proposal.name] = results.trial_times(self.runs / proposal.name, seconds)
        rows = self.engine.rows()
        row = next((row for row in rows if row.number == proposal.number), None)
        if row is None:  # this machine was not heard of for so long that another one has taken the trial
            return
        self.shown.ended(row, seconds, self.engine.best(), self._left())
        self._write_trials(rows)
        ended = [row for row in rows if row.state != "running" and row.name not in self._refused]
        if len(ended) >= MAX_FAILED_AT_START and all(row.state == "failed" for row in ended) and not self._running:
            raise HarnessError(
                f"the first {len(ended)} trials all failed, the last because: {row.reason}; nothing is searched like this"
            )

    def _stop_rest(self) -> None:
        """Stop what still runs: it saves, and its trials wait to be gone on with."""
        rest, self._running = self._running, []
        if not rest:
            return
        processes.stop_all([running.process for running in rest])
        for running in rest:
            self._read(running)
            if running.process.poll() == 0:
                self._leave(running, 0)
            elif self.engine.reached():
                running.pruned = True
                self._leave(running, 143)
            else:
                self.engine.requeue(running.proposal)

    def _left(self) -> str:
        """How long it may still take, from the trials so far."""
        remaining = self.engine.remaining()
        if remaining is None or not self._ended_here:
            return "" if remaining is None else f"{remaining} to begin"
        pace = (time.monotonic() - self._began) / self._ended_here
        seconds = pace * (remaining + len(self._running) / 2)
        return f"about {_duration(seconds)} left" if remaining or self._running else ""

    def keep(self) -> None:
        """Write `trials.csv`, `best.yaml`, `sweep.json` and the figures."""
        rows, best = self.engine.rows(), self.engine.best()
        self._write_trials(rows)
        if best is not None:
            write_atomically(
                self.folder / results.BEST, results.best_recipe(self.sweep, best, self.sweep.name, len(rows))
            )
        importances = self.engine.importances()
        told = read_json(self.folder / results.SUMMARY)
        told |= {
            "name": self.sweep.name,
            "method": self.sweep.method,
            "metric": {
                "name": self.sweep.metric.name,
                "goal": "maximize" if self.sweep.metric.maximise else "minimize",
            },
            "trials": {state: sum(row.state == state for row in rows) for state in progress.STATES},
            "best": None if best is None else _best(self.sweep, best),
            "importance": importances,
            "time": results.overhead(self.spent()),
        }
        write_json(self.folder / results.SUMMARY, told)
        figures.draw(read_sweep(self.folder), self.folder / results.FIGURES)

    def _write_trials(self, rows: Sequence[TrialRecord]) -> None:
        results.write_trials(self.folder / results.TRIALS, self.sweep, rows, self.spent(), results.RUNS)

    def spent(self) -> dict[str, TrialTimes]:
        """The time of each trial that ran on this machine, also under an earlier command."""
        earlier = {name: TrialTimes(*row) for name, row in read_json(self.folder / "times.json").items()}
        together = {**earlier, **self._spent}
        if self._spent:
            write_json(
                self.folder / "times.json",
                {name: [took.wall, took.epochs, took.count] for name, took in together.items()},
            )
        return together


def _best(sweep: SweepSpec, best: TrialRecord) -> dict[str, Any]:
    return {
        "trial": best.name,
        "value": sweep.metric.best(best.history),
        "parameters": dict(best.values),
        "folder": f"{results.RUNS}/{best.name}",
    }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def sweep_folder(sweep: SweepSpec, output: Path, name: str) -> Path:
    """Where a sweep goes: the same for the same search, so that the same command goes on with it."""
    return output / run_dir.slug(name or f"{run_dir.slug(sweep.name)}-{sweep.digest()}")


def run_sweep(
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
) -> tuple[Path, str]:
    """Search, keep, and test the best: the same as `harness sweep`.

    Args:
        source: the YAML file's bytes, kept beside the results.
        count: trials in all, over every command that works on the search; the file's `run_cap` when None.
        storage: a database URL that several machines share, or a SQLite file; one in the sweep's folder when empty.
        final: seeds to train and test the best configuration with; 0: none.

    Returns:
        the sweep's folder, and what it came to, for a person.

    Raises:
        UsageError: the search has no end. Interrupted: the same command goes on.
    """
    cap = count if count is not None else sweep.run_cap
    if cap is None and sweep.method != "grid":
        raise UsageError(f"a {sweep.method} search has no end of its own; give --count N, or run_cap: N in the file")
    folder = sweep_folder(sweep, output, name)
    run_dir.make_folder(folder)
    lock: IO[str] | None = run_dir.lock_folder(folder)
    url = storage if "://" in storage else f"sqlite:///{Path(storage or folder / DATABASE).expanduser().resolve()}"
    engine = Study(sweep, folder.name, url, cap, seed, shared=bool(storage) or lock is None)
    write_atomically(folder / results.COPY, source)
    shown = progress.SweepTable(sweep) if sys.stderr.isatty() else progress.SweepLog(sweep)
    coordinator = Scheduler(sweep, folder, engine, workers, shown, fork)
    try:
        with StopRequests() as stop_requests:
            coordinator.search(stop_requests)
            told = progress.sweep_summary(sweep, engine.rows(), engine.best(), results.overhead(coordinator.spent()))
            if not any(row.history for row in engine.rows()) and any(row.state == "failed" for row in engine.rows()):
                raise HarnessError(f"every trial failed, the last because: {engine.rows()[-1].reason}")
            if final:
                shown.close()
                table = final_runs(coordinator.launcher, engine.best(), final, stop_requests, shown.say)
                told += f"\nfinal       test accuracy {100 * table.get('test/acc mean', float('nan')):.2f} % over {final} seeds, standard deviation {100 * table.get('test/acc standard deviation', 0.0):.2f} points"
    except Interrupted as stop:
        raise Interrupted(
            f"{stop}; the trials have saved in {folder}, and the same command goes on", stop.exit_code
        ) from stop
    except StorageInternalError as error:
        raise ResourceError(
            f"the search's storage can not be reached ({first_line(error)}); the trials were told to save, and the same command goes on"
        ) from error
    finally:
        shown.close()
        engine.close()
        if lock is not None:
            lock.close()
    return folder, told
