"""The search of a sweep on Optuna: which trials there are, which comes next, which is stopped early.

Each trial is a row of the storage before its process starts. The trials of a scheduler that died have no heartbeat any
more; the next scheduler that works on the search puts them back into the queue.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from harness.config.names import TrialStatus
from harness.sweep import optuna_space
from harness.sweep.requeue import MAX_TRIES, enqueue_again, requeue_trial
from harness.sweep.sampling import make_pruner, make_sampler
from harness.sweep.selection import TrialRecord, best_record
from harness.sweep.source import SourceFunctions
from harness.sweep.spec import SweepSpec
from harness.sweep.storage import GRACE, HEARTBEAT, is_dead, open_study, owner_id, quiet
from harness.sweep.stored_trials import (
    AGAIN_OF,
    DONE,
    FIRST,
    HISTORY,
    OWNER,
    POINT,
    REASON,
    SURPLUS,
    TRY,
    VALUES,
    counted_trials,
    parameter_importances,
    read_record,
)
from harness.utils.errors import HarnessError, UsageError, first_line
from harness.utils.seeding import seed_for

log = logging.getLogger(__name__)

ORDER = "order of the grid"  # an attribute of the study


@dataclass
class Trial:
    """A trial that this scheduler runs.

    Attributes:
        number: of the row in the storage.
        name: of its run; the same when a trial is run again.
        values: searched value by parameter name.
        reported: values of the metric that the storage has.
        latest: the last value of each metric, of several.
    """

    number: int
    name: str
    values: dict[str, Any]
    optuna_trial: optuna.Trial
    reported: list[float] = field(default_factory=list)
    latest: dict[str, float] = field(default_factory=dict)


class Study:
    """The search of one sweep.

    Args:
        cap: trials in all; None: every point of the grid.
        shared: whether other schedulers may work on it too.
        notify: receives each line for the user.
        functions: the user's code that the sweep names.
        sampler, pruner: names of `sampling`; those of the user's study win.

    Raises:
        UsageError: the storage cannot be opened, or holds another sweep of that name.
    """

    def __init__(
        self,
        sweep: SweepSpec,
        name: str,
        storage: str,
        cap: int | None,
        seed: int = 0,
        shared: bool = False,
        notify: Callable[[str], None] = log.warning,
        functions: SourceFunctions | None = None,
        sampler: str = "auto",
        pruner: str = "none",
    ) -> None:
        self._functions, self._sampler_name = functions or SourceFunctions(), sampler
        self._pruner = None if pruner == "none" else make_pruner(pruner, sweep.sample_config())
        if self._functions.study is not None:
            self._pruner = self._functions.study.pruner
        self.sweep, self.cap, self._seed, self._shared = sweep, cap, seed, shared
        self._owner = owner_id()
        self._asked_at, self._is_ended = 0, False
        self._last_heartbeat = self._last_requeue = 0.0
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._storage, self._study, is_new = open_study(
            storage,
            name,
            digest=sweep.digest(),
            maximise=[metric.maximise for metric in sweep.metrics],
            on_stale=lambda trial: enqueue_again(self._study, trial),
            notify=notify,
        )
        if self._study.user_attrs.get("digest", sweep.digest()) != sweep.digest():
            raise UsageError(f"the storage holds another sweep named {name}; choose another --name")
        if self._pruner is not None:
            self._study.pruner = self._pruner
        if self._functions.study is not None and not is_new:
            self._functions.study.sampler.reseed_rng()  # else it would draw the same trials again
        self._points: list[dict[str, Any]] = []
        self._enqueue_grid(is_new)

    def _enqueue_grid(self, is_new: bool) -> None:
        """Enqueue each point of a grid once, up to the cap."""
        if self.sweep.method != "grid":
            return
        began = time.monotonic()
        while not is_new and not self._study.user_attrs.get("filled") and time.monotonic() - began < GRACE:
            time.sleep(0.5)  # the process that created the study is enqueueing them
        if is_new:
            self._study.set_user_attr(ORDER, "by name")
        is_former = ORDER not in self._study.user_attrs  # begun before there was W&B's order
        self._points = self.sweep.grid(in_file_order=is_former)
        enqueued = {trial.user_attrs.get(POINT) for trial in self._study.get_trials(deepcopy=False)}
        for index, values in enumerate(self._points[: self.cap]):
            if index not in enqueued:
                parameters = optuna_space.encode(self.sweep.searched, values)
                self._study.enqueue_trial(parameters, user_attrs={POINT: index})
        self._study.set_user_attr("filled", True)

    def ask(self) -> Trial | None:
        """Return the next trial, now owned by this scheduler; None where there is none now (see `exhausted`)."""
        while True:
            self.requeue_stale()
            if self.exhausted():
                return None
            if (trial := self._ask()) is not None:
                return trial

    def _ask(self) -> Trial | None:
        """Return the next trial; None where it is not run: another scheduler took the last one, or the user's code prunes it."""
        with quiet():
            self._study.sampler = self._sampler()
            trial = self._study.ask()
            trial.set_user_attr(OWNER, self._owner)
            self._storage.record_heartbeat(trial._trial_id)
            try:
                values = self._suggest(trial)
            except optuna.TrialPruned as error:  # as in a function that Optuna's own `optimize` calls
                trial.set_user_attr(VALUES, trial.params)
                trial.set_user_attr(REASON, first_line(error) or "pruned by scheduler.search_space")
                self._study.tell(trial, state=TrialState.PRUNED)
                return None
            values = self._points[trial.user_attrs[POINT]] if POINT in trial.user_attrs else values
            trial.set_user_attr(VALUES, values)
        if self._is_surplus(trial):
            trial.set_user_attr(SURPLUS, True)
            self._study.tell(trial, state=TrialState.FAIL)
            return None
        first = trial.user_attrs.get(FIRST, trial.number)
        if FIRST not in trial.user_attrs:
            trial.set_user_attr(FIRST, first)
        return Trial(trial.number, f"trial-{first:04d}", values, trial)

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        if self._functions.search_space is None:
            return {each.name: optuna_space.suggest_values(trial, each) for each in self.sweep.searched}
        try:
            return self._functions.suggest(trial)
        except HarnessError:
            self._study.tell(trial, state=TrialState.FAIL)
            raise

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """Return a sampler seeded by the seed and the number of trials; on a shared search also by the scheduler.

        The same search is thereby repeated, and no two schedulers draw the same stream.
        """
        if self._functions.study is not None:
            return self._functions.study.sampler
        token = (self._owner, random.getrandbits(32)) if self._shared else ()
        seed = seed_for(self._seed, "sweep", len(self._study.get_trials(deepcopy=False)), *token) % 2**32
        return make_sampler(
            self._sampler_name if self.sweep.method == "bayes" else "random",
            seed,
            self.cap,
            objectives=len(self.sweep.metrics),
            is_conditional=self._functions.search_space is not None,
        )

    def report(self, trial: Trial, values: Sequence[float]) -> bool:
        """Store the new values of a trial's metric; return whether the trial is to be stopped.

        Args:
            values: all values so far; those that were reported already come first.
        """
        if len(self.sweep.metrics) > 1:  # Optuna keeps no values of one step, and stops none early
            if len(values) > len(trial.reported):
                trial.reported = list(values)
                with contextlib.suppress(UpdateFinishedTrialError):
                    trial.optuna_trial.set_user_attr(HISTORY, trial.reported)
            return False
        for value in values[len(trial.reported) :]:
            try:
                trial.optuna_trial.report(value, len(trial.reported) + 1)
            except UpdateFinishedTrialError:  # another scheduler took it over, as this one's heartbeat had stopped
                return True
            trial.reported.append(value)
        if not values:
            return False
        if self.sweep.hyperband is None:
            return self._pruner is not None and trial.optuna_trial.should_prune()
        others = [record.history for record in self.records() if record.history and record.number != trial.number]
        return self.sweep.hyperband.stops(
            trial.reported, [*others, trial.reported], maximise=self.sweep.metric.maximise
        )

    def tell(self, trial: Trial, state: str, reason: str = "") -> None:
        """Store how a trial ended: `complete`, `pruned` or `failed`; its value is the best of its history.

        A trial that another scheduler has taken over meanwhile stays with that one.
        """
        with contextlib.suppress(UpdateFinishedTrialError, ValueError):
            try:
                self._tell(trial, state, reason)
            except RuntimeError as error:  # a sampler of the user's has no point left and stops the study
                if "Study.stop" not in str(error):
                    raise
                self._is_ended = True

    def _tell(self, trial: Trial, state: str, reason: str) -> None:
        if reason:
            trial.optuna_trial.set_user_attr(REASON, reason[:500])
        value: float | list[float] | None = self.sweep.metric.best(trial.reported) if trial.reported else None
        missing = [] if value is not None else [self.sweep.metric.name]
        if len(self.sweep.metrics) > 1:
            missing = [metric.name for metric in self.sweep.metrics if metric.name not in trial.latest]
            value = [trial.latest[metric.name] for metric in self.sweep.metrics if not missing]
        if state == TrialStatus.COMPLETE and missing:
            state = TrialStatus.FAILED
            trial.optuna_trial.set_user_attr(REASON, reason or f"it logged no {missing[0]}")
        with quiet():
            match state:
                case TrialStatus.COMPLETE:
                    self._study.tell(trial.optuna_trial, value)
                case TrialStatus.PRUNED:
                    self._study.tell(trial.optuna_trial, state=TrialState.PRUNED)
                case _:
                    self._study.tell(trial.optuna_trial, state=TrialState.FAIL)

    def requeue(self, trial: Trial, counts: bool = False) -> bool:
        """Put a trial that was stopped before its end back into the queue; return whether it has a try left.

        Args:
            counts: whether this was one of its `MAX_TRIES` tries.
        """
        stored = self._study.get_trials(deepcopy=False)[trial.number]
        if counts and stored.user_attrs.get(TRY, 1) >= MAX_TRIES:
            return False
        requeue_trial(self._study, trial.number, counts)
        return True

    def heartbeat(self, trials: Sequence[Trial]) -> None:
        """Record that these trials are running; to be called more often than every `HEARTBEAT` seconds."""
        if time.monotonic() - self._last_heartbeat >= HEARTBEAT / 2:
            self._last_heartbeat = time.monotonic()
            for trial in trials:
                self._storage.record_heartbeat(trial.optuna_trial._trial_id)

    def requeue_stale(self) -> None:
        """Requeue the trials of dead schedulers: those of this host at once, others after `GRACE` seconds."""
        if time.monotonic() - self._last_requeue < HEARTBEAT / 2:
            return
        self._last_requeue = time.monotonic()
        for trial in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            is_ownerless = OWNER not in trial.user_attrs and time.time() - begun > GRACE  # its scheduler died in `ask`
            if is_ownerless or is_dead(str(trial.user_attrs.get(OWNER, ""))):
                requeue_trial(self._study, trial.number)
        with quiet():
            optuna.storages.fail_stale_trials(self._study)

    def exhausted(self) -> bool:
        """Return whether no trial is left to begin, other than those that run elsewhere and may be requeued."""
        return self.reached() or (not self._waiting() and self._all_begun())

    def reached(self) -> bool:
        """Return whether a trial has reached the metric's target."""
        if self.sweep.metric.target is None:  # a file with several metrics has none
            return False
        return any(self.sweep.metric.reached(value) for record in self.records() for value in record.history)

    def running_elsewhere(self, trials: Sequence[Trial]) -> int:
        """Return how many trials other schedulers run; `trials` are those of this one."""
        numbers = {trial.number for trial in trials}
        return sum(record.state == TrialStatus.RUNNING and record.number not in numbers for record in self.records())

    def remaining(self) -> int | None:
        """Return how many trials are still to begin; None where there is no cap."""
        if self.sweep.method == "grid" or self.cap is None:
            return len(self._waiting()) if self.sweep.method == "grid" else None
        return max(0, self.cap - sum(trial.state != TrialState.WAITING for trial in self._counted()))

    def _all_begun(self) -> bool:
        if self._is_over():
            return True
        return self.sweep.method == "grid" or (self.cap is not None and len(self._counted()) >= self.cap)

    def _waiting(self) -> list[FrozenTrial]:
        """Return the trials in the queue: points of a grid, and requeued ones."""
        return self._study.get_trials(deepcopy=False, states=[TrialState.WAITING])

    def _is_surplus(self, trial: optuna.Trial) -> bool:
        """Return whether two schedulers took the last trial at once, and this is the one too many."""
        if AGAIN_OF in trial.user_attrs:
            return False
        before = [other for other in self._counted() if other.number < trial.number]
        if self.sweep.method == "grid":
            point = trial.user_attrs.get(POINT)
            return point is None or any(other.user_attrs.get(POINT) == point for other in before)
        return self.cap is not None and len(before) >= self.cap

    def _counted(self) -> list[FrozenTrial]:
        return counted_trials(self._study)

    def records(self) -> list[TrialRecord]:
        """Return every trial that counts and has begun, sorted by name."""
        records = [read_record(trial) for trial in self._counted() if trial.state != TrialState.WAITING]
        return sorted(records, key=lambda record: record.name)

    def _is_over(self) -> bool:
        """Return whether the user's own function ends the search, which is asked once for each trial that has ended."""
        if self._functions.is_over is None or self._is_ended:
            return self._is_ended
        count = len(self._study.get_trials(deepcopy=False, states=DONE))
        if count > self._asked_at:
            self._asked_at = count
            self._is_ended = bool(self._functions.is_over(self._study))
        return self._is_ended

    def best(self) -> TrialRecord | None:
        """Return the best trial; see `best_record`."""
        return best_record(self.records(), self.sweep.metrics, self.sweep.seed_parameter)

    def importances(self) -> dict[str, float]:
        """See `parameter_importances`."""
        return parameter_importances(self._study)

    def close(self) -> None:
        """Close the storage."""
        self._storage.remove_session()
        self._storage.engine.dispose()
