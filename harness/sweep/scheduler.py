"""`harness sweep`: takes trials from the study, runs each as `harness run`, and stores the results."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.config.names import TrialStatus
from harness.reporting.figures import sweep as figures
from harness.reporting.html.sweep_reader import read_sweep
from harness.sweep import progress, results, workers
from harness.sweep.launcher import Launcher
from harness.sweep.results import TrialTimes
from harness.sweep.selection import TrialRecord, pareto_front
from harness.sweep.spec import SweepSpec
from harness.sweep.study import Study, Trial
from harness.tracking.journal import follow_journal
from harness.utils.errors import HarnessError, ResourceError, UsageError
from harness.utils.files import write_atomically
from harness.utils.signals import PREEMPTED, StopRequests
from harness.utils.text import duration

POLL_INTERVAL = 0.1  # seconds between two checks of the trials
COMPARE_INTERVAL = 2.0  # seconds after which a trial is compared again, though it has logged nothing new
MAX_FAILED_AT_START = 5  # the sweep itself is wrong when so many trials have ended and all of them failed


@dataclass
class RunningTrial:
    """A trial whose process runs.

    Attributes:
        share: index of its worker's share of the machine.
        journal_offset: up to where its journal was read, bytes.
        values: of the metric, so far.
        compared: when it was last compared with the other trials.
    """

    trial: Trial
    process: workers.TrialProcess
    share: int
    began: float
    journal_offset: int = 0
    values: list[float] = field(default_factory=list)
    compared: float = 0.0
    is_pruned: bool = False


class Scheduler:
    """Runs the trials of one `harness sweep` command.

    Args:
        folder: of the sweep.
        workers: trials at a time.
        fork: fork plain trials from a process that has imported everything.
    """

    def __init__(
        self, sweep: SweepSpec, folder: Path, study: Study, workers: int, display: progress.SweepLog, fork: bool = True
    ) -> None:
        self.sweep, self.folder, self.study, self.workers, self.display = sweep, folder, study, workers, display
        self.launcher = Launcher(sweep, folder, workers, fork)
        self._running: list[RunningTrial] = []
        self._times: dict[str, TrialTimes] = {}
        self._refused: set[str] = set()  # trials whose settings contradict each other; the sweep is not wrong for that
        self._began = time.monotonic()
        self._ended_count = 0

    @property
    def runs(self) -> Path:
        """Return where the run directories of the trials go."""
        return self.folder / results.RUNS

    def search(self, stop_requests: StopRequests) -> None:
        """Run trials until none is left.

        Raises:
            Interrupted: by a signal; the trials have saved, and the same command resumes them.
            HarnessError: the first trials all failed.
            ResourceError: the disk is full; the same command resumes the trials.
        """
        try:
            while True:
                stop_requests.check()
                self.study.heartbeat([running.trial for running in self._running])
                self._start_trials()
                self._poll_trials()
                if self.display.is_due():
                    self.display.update(self.study.records(), self.study.best(), self._time_left())
                if self._running and self.study.reached():
                    self.display.message("Target reached: stopping the other trials.")
                    self._stop_running()
                if not self._running and self.study.exhausted():
                    if not self.study.running_elsewhere([]) or self.study.reached():
                        return
                    self.study.requeue_stale()
                time.sleep(POLL_INTERVAL)
        finally:
            self._stop_running()
            self.launcher.close()
            self.write_results()
            self.display.update(self.study.records(), self.study.best(), "")  # how all of them have ended

    def _start_trials(self) -> None:
        """Start trials until every worker has one."""
        while len(self._running) < self.workers:
            trial = self.study.ask()
            if trial is None:
                return
            try:
                self.sweep.config(trial.values)
            except UsageError as error:  # such as lr_min > lr_max: one failed trial
                self._refused.add(trial.name)
                self._end(trial, TrialStatus.FAILED, str(error), 0.0)
                continue
            share = self.launcher.free_share(running.share for running in self._running)
            process = self.launcher.start_trial(trial, share)
            self.display.trial_started(trial.name, trial.values)
            self._running.append(RunningTrial(trial, process, share, time.monotonic()))

    def _poll_trials(self) -> None:
        """Read what the trials have logged, stop those that Hyperband stops, and store those that ended."""
        for running in list(self._running):
            code = running.process.poll()  # before the journal is read, so that it is complete once the trial has ended
            self._read_journal(running)
            if not running.is_pruned and code is None and self._is_due(running):
                running.compared = time.monotonic()
                if self.study.report(running.trial, running.values):
                    running.is_pruned = True
                    running.process.stop()
            if code is None and running.is_pruned and time.monotonic() - running.compared > workers.STOP_TIMEOUT:
                running.process.kill()
            if code is not None:
                self._running.remove(running)
                self._handle_exit(running, code)

    def _is_due(self, running: RunningTrial) -> bool:
        """Return whether to compare a trial with the others: it has new values, or they may have."""
        has_new_values = len(running.values) > len(running.trial.reported)
        return has_new_values or time.monotonic() - running.compared > COMPARE_INTERVAL

    def _read_journal(self, running: RunningTrial) -> None:
        offset = running.journal_offset
        records, running.journal_offset = follow_journal(self.runs / running.trial.name, offset)
        if running.journal_offset < offset:  # the journal was cut back to a checkpoint
            running.values.clear()
        for record in records:
            if record.kind != "epoch":
                continue
            for metric in self.sweep.metrics:
                value = record.scalars().get(metric.name)
                if isinstance(value, int | float) and math.isfinite(value):
                    running.trial.latest[metric.name] = float(value)
                    if metric is self.sweep.metric:
                        running.values.append(float(value))

    def _handle_exit(self, running: RunningTrial, code: int) -> None:
        trial = running.trial
        self.study.report(trial, running.values)
        seconds = time.monotonic() - running.began
        if code == 0:
            reason = self.launcher.why_not_its_run(trial.name, trial.values)
            self._end(trial, TrialStatus.FAILED if reason else TrialStatus.COMPLETE, reason, seconds)
        elif running.is_pruned:
            self._end(trial, TrialStatus.PRUNED, "", seconds)
        elif (code < 0 or code in PREEMPTED) and self.study.requeue(trial, counts=True):
            self.display.message(f"{trial.name}  stopped from outside (exit status {code}); it will be resumed")
        elif self.launcher.disk_was_full(trial.name, code):
            self.study.requeue(trial)  # its parameters are not to blame
            raise ResourceError(
                f"{trial.name}: {self.launcher.failure_reason(trial.name, code)}. The trials are queued again"
            )
        else:
            self._end(trial, TrialStatus.FAILED, self.launcher.failure_reason(trial.name, code), seconds)

    def _end(self, trial: Trial, state: str, reason: str, seconds: float) -> None:
        """Store the end of a trial.

        Raises:
            HarnessError: all of the first trials failed.
        """
        self.study.tell(trial, state, reason)
        self._ended_count += 1
        if seconds:
            self._times[trial.name] = results.read_trial_times(self.runs / trial.name, seconds)
        records = self.study.records()
        record = next((record for record in records if record.number == trial.number), None)
        if record is None:  # another machine took the trial over, as the heartbeat of this one had stopped
            return
        self.display.trial_ended(record, seconds, self.study.best(), self._time_left())
        self._write_trials(records)
        ended = [other for other in records if other.state != TrialStatus.RUNNING and other.name not in self._refused]
        all_failed = all(other.state == TrialStatus.FAILED for other in ended)
        if len(ended) >= MAX_FAILED_AT_START and all_failed and not self._running:
            raise HarnessError(f"the first {len(ended)} trials all failed; the last one: {record.reason}")

    def _stop_running(self) -> None:
        """Stop the running trials: each saves its state and is requeued."""
        stopping, self._running = self._running, []
        if not stopping:
            return
        workers.stop_all([running.process for running in stopping])
        for running in stopping:
            self._read_journal(running)
            if running.process.poll() == 0:
                self._handle_exit(running, 0)
            elif self.study.reached():
                running.is_pruned = True
                self._handle_exit(running, 143)
            else:
                self.study.requeue(running.trial)

    def _time_left(self) -> str:
        """Return an estimate of the time left, from the trials so far."""
        remaining = self.study.remaining()
        if remaining is None or not self._ended_count:
            return "" if remaining is None else f"{remaining} to start"
        seconds_per_trial = (time.monotonic() - self._began) / self._ended_count
        seconds = seconds_per_trial * (remaining + len(self._running) / 2)
        return f"about {duration(seconds, 0)} left" if remaining or self._running else ""

    def write_results(self) -> None:
        """Write `trials.csv`, `best.yaml`, `sweep.json` and the figures."""
        records, best, importances = self.study.records(), self.study.best(), self.study.importances()
        self._write_trials(records)
        if best is not None:
            self._write_recipe(results.BEST, best, len(records))
        if len(self.sweep.metrics) > 1:
            self._write_front(pareto_front(records, self.sweep.metrics), len(records))
        results.write_summary(self.folder / results.SUMMARY, self.sweep, records, best, importances, self.times())
        figures.draw_sweep(read_sweep(self.folder), self.folder / results.FIGURES)

    def _write_front(self, front: Sequence[TrialRecord], count: int) -> None:
        """Write a recipe of each trial on the Pareto front; those of trials that are no longer on it are removed."""
        recipes = {f"{record.name}.yaml": record for record in front}
        for path in (self.folder / results.PARETO).glob("*.yaml"):
            if path.name not in recipes:
                path.unlink()
        for name, record in recipes.items():
            self._write_recipe(f"{results.PARETO}/{name}", record, count)

    def _write_recipe(self, name: str, record: TrialRecord, count: int) -> None:
        config = self.launcher.config_of(record)
        recipe = results.best_recipe(self.sweep, record, self.sweep.name, count, config, name)
        (self.folder / name).parent.mkdir(exist_ok=True)
        write_atomically(self.folder / name, recipe)

    def _write_trials(self, records: Sequence[TrialRecord]) -> None:
        results.write_trials(self.folder / results.TRIALS, self.sweep, records, self.times(), results.RUNS)

    def times(self) -> dict[str, TrialTimes]:
        """Return the times of the trials that ran on this machine, under this command and earlier ones."""
        return results.update_times(self.folder, self._times)
