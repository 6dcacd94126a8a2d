"""The search itself, on Optuna: who has been tried, what comes next, who is stopped; in a storage that several share.

Each trial is a row of the storage before its process starts. A coordinator that dies leaves rows that nobody beats
the heart of any more; whoever works on the search next gives them back as trials to be run again.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from harness.sweep.distributions import Parameter, as_text
from harness.sweep.schema import SweepSpec
from harness.utils.errors import UsageError
from harness.utils.seeding import seed_for

HEARTBEAT, GRACE = 10, 45  # seconds between two beats; after how many without one a trial's coordinator is dead
OPENINGS = 4  # tries to open a storage
MAX_TRIES = 4  # of one trial whose coordinators die
SURPLUS, OWNER, VALUES, POINT, AGAIN_OF, TRY, FIRST, REASON = (
    "surplus",
    "owner",
    "values",
    "point",
    "again of",
    "try",
    "first",
    "reason",
)
DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass
class Trial:
    """A trial that this coordinator has taken on.

    Attributes:
        number: of the row in the storage.
        name: of its run; the same when a trial is run again.
        values: searched value by parameter name.
    """

    number: int
    name: str
    values: dict[str, Any]
    trial: optuna.Trial
    reported: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TrialRecord:
    """What is known of one trial.

    Attributes:
        state: running, complete, pruned or failed.
        history: values of the metric, in order.
    """

    number: int
    name: str
    state: str
    values: Mapping[str, Any]
    history: Sequence[float]
    reason: str


class Study:
    """The search of one sweep.

    Args:
        cap: trials in all; None: until the grid is through.
        shared: whether other coordinators may work on it too.

    Raises:
        UsageError: the storage can not be opened, or holds another sweep of that name.
    """

    def __init__(
        self, sweep: SweepSpec, name: str, storage: str, cap: int | None, seed: int = 0, shared: bool = False
    ) -> None:
        self.sweep, self.cap, self._seed, self._shared = sweep, cap, seed, shared
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._points = sweep.grid() if sweep.method == "grid" else []
        self._beaten = self._swept = 0.0
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._storage, self._study, ours = self._connect(name, storage)
        if self._study.user_attrs.get("digest", sweep.digest()) != sweep.digest():
            raise UsageError(f"the storage holds another sweep named {name}; choose another --name")
        self._fill(ours)

    def _connect(self, name: str, url: str) -> tuple[optuna.storages.RDBStorage, optuna.Study, bool]:
        """The storage and the study in it; whether this coordinator made the study."""
        for tries_left in reversed(range(OPENINGS)):
            try:
                with _quiet():
                    self._storage = optuna.storages.RDBStorage(
                        url,
                        heartbeat_interval=HEARTBEAT,
                        grace_period=GRACE,
                        failed_trial_callback=lambda study, trial: self._again(trial),
                        engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None,
                    )
                    return self._storage, *self._open(name)
            except Exception as error:  # SQLAlchemy's, the driver's, Optuna's
                if not tries_left:
                    raise UsageError(
                        f"the storage {_without_password(url)} can not be opened: {first_line(error)}"
                    ) from error
                time.sleep(0.5 + random.random())  # noqa: S311 - two that make the tables of an empty database at once get in each other's way
        raise AssertionError("returned or raised")

    def _open(self, name: str) -> tuple[optuna.Study, bool]:
        direction = "maximize" if self.sweep.metric.maximise else "minimize"
        sampler = optuna.samplers.RandomSampler(seed=0)  # another one is set for each trial
        try:
            study = optuna.create_study(
                study_name=name,
                storage=self._storage,
                direction=direction,
                sampler=sampler,
                pruner=optuna.pruners.NopPruner(),
            )
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(
                study_name=name, storage=self._storage, sampler=sampler, pruner=optuna.pruners.NopPruner()
            )
            return study, False
        study.set_user_attr("digest", self.sweep.digest())
        return study, True

    def _fill(self, ours: bool) -> None:
        """Lay the points of a grid out as waiting trials, up to the cap, each once."""
        if self.sweep.method != "grid":
            return
        began = time.monotonic()
        while not ours and not self._study.user_attrs.get("filled") and time.monotonic() - began < GRACE:
            time.sleep(0.5)  # whoever made the study is at it
        there = {trial.user_attrs.get(POINT) for trial in self._study.get_trials(deepcopy=False)}
        for place, values in enumerate(self._points[: self.cap]):
            if place not in there:
                self._study.enqueue_trial(_encoded(self.sweep.searched, values), user_attrs={POINT: place})
        self._study.set_user_attr("filled", True)

    def ask(self) -> Trial | None:
        """The next trial, taken on; None when there is none to be had now (see `exhausted`)."""
        self.requeue_stale()
        if self.exhausted():
            return None
        with _quiet():
            self._study.sampler = self._sampler()
            trial = self._study.ask()
            trial.set_user_attr(OWNER, self._owner)
            self._storage.record_heartbeat(trial._trial_id)
            values = {axis.name: self._suggest(trial, axis) for axis in self.sweep.searched}
            values = self._points[trial.user_attrs[POINT]] if POINT in trial.user_attrs else values
            trial.set_user_attr(VALUES, values)
        if self._is_surplus(trial):
            trial.set_user_attr(SURPLUS, True)
            self._study.tell(trial, state=TrialState.FAIL)
            return self.ask()
        first = trial.user_attrs.get(FIRST, trial.number)
        if FIRST not in trial.user_attrs:
            trial.set_user_attr(FIRST, first)
        return Trial(trial.number, f"trial-{first:04d}", values, trial)

    def _suggest(self, trial: optuna.Trial, axis: Parameter) -> Any:
        match _distribution(axis):
            case CategoricalDistribution(choices=choices):
                return _decoded(axis, trial.suggest_categorical(axis.name, choices))
            case IntDistribution(low=low, high=high):
                return trial.suggest_int(axis.name, low, high)
            case FloatDistribution(low=low, high=high, log=log) if _is_native(axis):
                return trial.suggest_float(axis.name, low, high, log=log)
        return axis.at(trial.suggest_float(f"u({axis.name})", 1e-12, 1 - 1e-12))

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """A sampler seeded by (seed, number of trials): the same search again, and never two workers with one stream."""
        token = (self._owner, random.getrandbits(32)) if self._shared else ()
        seed = seed_for(self._seed, "sweep", len(self._study.get_trials(deepcopy=False)), *token) % 2**32
        if self.sweep.method != "bayes":
            return optuna.samplers.RandomSampler(seed=seed)
        first = 10 if self.cap is None else max(4, min(10, self.cap // 3))
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=first)

    def report(self, proposal: Trial, values: Sequence[float]) -> bool:
        """Add to the history of a trial; whether it is to be stopped.

        Args:
            values: all of the metric's so far; those reported already come first.
        """
        for value in values[len(proposal.reported) :]:
            try:
                proposal.trial.report(value, len(proposal.reported) + 1)
            except UpdateFinishedTrialError:  # taken from this machine, which was not heard of for too long
                return True
            proposal.reported.append(value)
        if self.sweep.hyperband is None or not values:
            return False
        others = [row.history for row in self.rows() if row.history and row.number != proposal.number]
        own = proposal.reported
        return self.sweep.hyperband.stops(own, [*others, own], maximise=self.sweep.metric.maximise)

    def tell(self, proposal: Trial, state: str, reason: str = "") -> None:
        """How a trial ended: `complete`, `pruned` or `failed`; its value is the best of its history.

        A trial that another machine has taken over meanwhile stays that one's.
        """
        with contextlib.suppress(UpdateFinishedTrialError, ValueError):
            self._tell(proposal, state, reason)

    def _tell(self, proposal: Trial, state: str, reason: str) -> None:
        if reason:
            proposal.trial.set_user_attr(REASON, reason[:500])
        value = self.sweep.metric.best(proposal.reported) if proposal.reported else None
        if state == "complete" and value is None:
            state = "failed"
            proposal.trial.set_user_attr(REASON, reason or f"it logged no {self.sweep.metric.name}")
        with _quiet():
            match state:
                case "complete":
                    self._study.tell(proposal.trial, value)
                case "pruned":
                    self._study.tell(proposal.trial, state=TrialState.PRUNED)
                case _:
                    self._study.tell(proposal.trial, state=TrialState.FAIL)

    def requeue(self, proposal: Trial, counts: bool = False) -> bool:
        """A trial that was stopped before its end: whoever comes next goes on with it. Whether it could be given back.

        Args:
            counts: as one of the tries that a trial has.
        """
        frozen = self._study.get_trials(deepcopy=False)[proposal.number]
        if counts and frozen.user_attrs.get(TRY, 1) >= MAX_TRIES:
            return False
        self._give_back(proposal.number, counts)
        return True

    def _give_back(self, number: int, counts: bool = True) -> None:
        with _quiet():
            frozen = self._study.get_trials(deepcopy=False)[number]
            try:
                self._study.tell(number, state=TrialState.FAIL)
            except ValueError:  # somebody else was quicker
                return
            self._again(frozen, counts)

    def _again(self, trial: FrozenTrial, counts: bool = True) -> None:
        """A waiting trial with the values of one whose coordinator is gone."""
        tries = trial.user_attrs.get(TRY, 1) + (1 if counts else 0)
        params = trial.params or trial.system_attrs.get("fixed_params", {})
        if tries > MAX_TRIES or SURPLUS in trial.user_attrs or not {VALUES, POINT} & set(trial.user_attrs):
            return
        kept = {key: value for key, value in trial.user_attrs.items() if key not in (OWNER, REASON)}
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={**kept, AGAIN_OF: trial.number, TRY: tries, FIRST: kept.get(FIRST, trial.number)},
                system_attrs={"fixed_params": params},
            )
        )

    def heartbeat(self, proposals: Sequence[Trial]) -> None:
        """Say that these trials are being worked on; to be called more often than every `HEARTBEAT` seconds."""
        if time.monotonic() - self._beaten >= HEARTBEAT / 2:
            self._beaten = time.monotonic()
            for proposal in proposals:
                self._storage.record_heartbeat(proposal.trial._trial_id)

    def requeue_stale(self) -> None:
        """Give back the trials of dead coordinators: at once those of this machine, else after `GRACE` seconds."""
        if time.monotonic() - self._swept < HEARTBEAT / 2:
            return
        self._swept = time.monotonic()
        for trial in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            nobodys = OWNER not in trial.user_attrs and time.time() - begun > GRACE  # killed while it took the trial on
            if nobodys or _is_dead(str(trial.user_attrs.get(OWNER, ""))):
                self._give_back(trial.number)
        with _quiet():
            optuna.storages.fail_stale_trials(self._study)

    def exhausted(self) -> bool:
        """Whether no trial will come any more, other than those that run elsewhere and may be given back."""
        return self.reached() or (not self._waiting() and self._all_begun())

    def reached(self) -> bool:
        """Whether a trial came to the metric's target."""
        if self.sweep.metric.target is None:
            return False
        return any(self.sweep.metric.reached(value) for row in self.rows() for value in row.history)

    def running_elsewhere(self, own: Sequence[Trial]) -> int:
        """How many trials other coordinators work on."""
        mine = {proposal.number for proposal in own}
        return sum(row.state == "running" and row.number not in mine for row in self.rows())

    def remaining(self) -> int | None:
        """How many trials are still to begin; None: no end is set."""
        if self.sweep.method == "grid" or self.cap is None:
            return len(self._waiting()) if self.sweep.method == "grid" else None
        return max(0, self.cap - sum(trial.state != TrialState.WAITING for trial in self._counted()))

    def _all_begun(self) -> bool:
        return self.sweep.method == "grid" or (self.cap is not None and len(self._counted()) >= self.cap)

    def _waiting(self) -> list[FrozenTrial]:
        """Trials that wait to be taken on: points of a grid, and those given back."""
        return self._study.get_trials(deepcopy=False, states=[TrialState.WAITING])

    def _is_surplus(self, trial: optuna.Trial) -> bool:
        """Whether two coordinators went for the last trial at once, and this is one too many."""
        if AGAIN_OF in trial.user_attrs:
            return False
        before = [other for other in self._counted() if other.number < trial.number]
        if self.sweep.method == "grid":
            point = trial.user_attrs.get(POINT)
            return point is None or any(other.user_attrs.get(POINT) == point for other in before)
        return self.cap is not None and len(before) >= self.cap

    def _counted(self) -> list[FrozenTrial]:
        """The trials that count: of one that is run again the last try; none that was surplus or never had values."""
        trials = self._study.get_trials(deepcopy=False)
        left_out = {trial.user_attrs.get(AGAIN_OF) for trial in trials}
        left_out |= {trial.number for trial in trials if SURPLUS in trial.user_attrs}
        left_out |= {trial.number for trial in trials if trial.state in DONE and VALUES not in trial.user_attrs}
        return [trial for trial in trials if trial.number not in left_out]

    def rows(self) -> list[TrialRecord]:
        """Every trial that counts and has begun, by its name."""
        found = [_row(trial) for trial in self._counted() if trial.state != TrialState.WAITING]
        return sorted(found, key=lambda row: row.name)

    def best(self) -> TrialRecord | None:
        """The complete trial with the best value; one that was stopped counts only where none is complete."""
        for states in (("complete",), ("pruned",)):
            rows = [row for row in self.rows() if row.state in states and row.history]
            if rows:
                metric = self.sweep.metric
                return (max if metric.maximise else min)(rows, key=lambda row: metric.best(row.history))
        return None

    def importances(self) -> dict[str, float]:
        """Share of the metric's variance that each searched parameter explains (fANOVA); empty with too few trials."""
        complete = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        with _quiet():
            try:
                found = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
            except (RuntimeError, ValueError):  # every value of a parameter is the same
                return {}
        return {name.removeprefix("u(").removesuffix(")"): float(share) for name, share in found.items()}

    def close(self) -> None:
        """Let go of the storage."""
        self._storage.remove_session()
        self._storage.engine.dispose()


def _row(trial: FrozenTrial) -> TrialRecord:
    history = [value for _, value in sorted(trial.intermediate_values.items())]
    states = {TrialState.FAIL: "failed", TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    return TrialRecord(
        number=trial.number,
        name=f"trial-{trial.user_attrs.get(FIRST, trial.number):04d}",
        state=states.get(trial.state, "running"),
        values=trial.user_attrs.get(VALUES, {}),
        history=history,
        reason=str(trial.user_attrs.get(REASON, "")),
    )


def _is_native(axis: Parameter) -> bool:
    """Whether Optuna has the distribution itself; the others are searched by their quantile."""
    if axis.kind == "categorical":
        return axis.spec["probabilities"] is None
    if axis.kind in ("uniform", "log_uniform_values"):
        return bool(axis.spec["min"] < axis.spec["max"])
    return axis.kind == "int_uniform"


def _distribution(axis: Parameter) -> BaseDistribution:
    if not _is_native(axis):
        return FloatDistribution(1e-12, 1 - 1e-12)
    match axis.kind:
        case "categorical":
            return CategoricalDistribution(_words(axis))
        case "int_uniform":
            return IntDistribution(axis.spec["min"], axis.spec["max"])
    return FloatDistribution(axis.spec["min"], axis.spec["max"], log=axis.kind == "log_uniform_values")


def _words(axis: Parameter) -> list[Any]:
    """The values as Optuna takes them: as they are where it can tell them apart, else as JSON."""
    values = axis.spec["values"]
    if all(isinstance(value, str | int | float | bool) for value in values) and len(set(values)) == len(values):
        return list(values)
    return [as_text(value) for value in values]


def _decoded(axis: Parameter, word: Any) -> Any:
    return axis.spec["values"][_words(axis).index(word)]


def _encoded(axes: Sequence[Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """A grid's point as Optuna's parameters."""
    told: dict[str, Any] = {}
    for axis in axes:
        if axis.kind == "categorical":
            told[axis.name] = as_text(values[axis.name]) if _words(axis) != axis.spec["values"] else values[axis.name]
        elif axis.kind == "q_uniform":  # by the quantile that gives the point
            low, high = axis.spec["min"], axis.spec["max"]
            told[f"u({axis.name})"] = min(max((values[axis.name] - low) / max(high - low, 1e-300), 1e-12), 1 - 1e-12)
        else:
            told[axis.name] = values[axis.name]
    return told


def _is_dead(owner: str) -> bool:
    """Whether a coordinator of this machine has ended; one of another machine is not known to."""
    host, _, pid = owner.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def _quiet() -> Any:
    """Optuna's notes on what is experimental kept off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _without_password(url: str) -> str:
    before, at, after = url.rpartition("@")
    scheme, _, who = before.partition("://")
    return f"{scheme}://{who.split(':')[0]}:***@{after}" if at else url


def first_line(error: Exception) -> str:
    """What a storage says, without SQLAlchemy's page around it."""
    error = error if error.__cause__ is None or not isinstance(error.__cause__, Exception) else error.__cause__
    text = str(getattr(error, "orig", None) or error).strip()
    return (text.splitlines() or [type(error).__name__])[0][:300]
