"""The search by itself: what it tries, what it stores, what it requeues."""

import contextlib
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.distributions import IntDistribution

from harness.sweep import locked_database, schema, storage
from harness.sweep.requeue import MAX_TRIES, requeue_trial
from harness.sweep.stored_trials import OWNER, parameter_importances
from harness.sweep.study import Study
from harness.utils.errors import UsageError
from tests.support import forked

BOTH = {
    "lr_max": {"distribution": "log_uniform_values", "min": 0.01, "max": 1.0},
    "lr_min": {"distribution": "log_uniform_values", "min": 0.0001, "max": 0.01},
}


def sweep(method="bayes", parameters=BOTH, **more):
    document = {
        "method": method,
        "metric": {"name": "best/val_acc", "goal": "maximize"},
        "command": ["harness", "run", "${args}"],
        "parameters": {"recipe": {"value": "digits"}, "val_fraction": {"value": 0.2}, **parameters},
        **more,
    }
    return schema.parse_sweep(document, "x", {})


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


def score(values):
    """Return a score whose maximum, 1, is at LRMAX 0.1 and LRMIN 0.001."""
    distance = (math.log10(values["lr_max"]) + 1) ** 2 + (math.log10(values["lr_min"]) + 3) ** 2
    return 1 - distance / 2


def search(study, evaluate=score):
    while (trial := study.ask()) is not None:
        study.report(trial, [evaluate(trial.values)])
        study.tell(trial, "complete")
    return study.records()


@pytest.mark.slow
def test_bayes_finds_better_values_than_random(tmp_path):
    def mean_of_best_half(method, seed):
        study = Study(sweep(method), "x", f"sqlite:///{tmp_path}/{method}{seed}.db", 30, seed)
        scores = [record.history[0] for record in search(study)][15:]
        study.close()
        return sum(scores) / len(scores)

    gained = [mean_of_best_half("bayes", seed) - mean_of_best_half("random", seed) for seed in range(3)]
    assert min(gained) > 0
    assert sum(gained) / 3 > 0.1


@pytest.mark.slow
def test_a_search_is_repeated_by_its_seed(tmp_path):
    def values(seed, file):
        study = Study(sweep(), "x", f"sqlite:///{tmp_path}/{file}.db", 8, seed)
        values = [dict(record.values) for record in search(study)]
        study.close()
        return values

    assert values(0, "a") == values(0, "b") != values(1, "c")


GRID = {
    "lr_max": {"values": [0.1, 0.2, 0.1000001]},
    "momentum": {"distribution": "q_uniform", "min": 0.5, "max": 0.9, "q": 0.1},
    "epochs": {"distribution": "int_uniform", "min": 2, "max": 3},
    "model_args": {"values": [{"width": 4}, {"width": 8}]},
}


@pytest.mark.parametrize(
    ("changes", "points"), [({"momentum": {"value": 0.9}}, 12), pytest.param({}, 48, marks=pytest.mark.slow)]
)
def test_a_grid_visits_every_point_once_also_over_a_restart(url, changes, points):
    grid = sweep("grid", {**GRID, **changes})
    first, seen = Study(grid, "x", url, None), []
    for _ in range(7):
        trial = first.ask()
        seen.append(str(trial.values))
        first.report(trial, [0.5])
        first.tell(trial, "complete")
    first.close()
    second = Study(grid, "x", url, None)
    assert second.remaining() == points - 7
    search(second, lambda values: seen.append(str(values)) or 0.5)
    assert second.exhausted()
    second.close()
    assert sorted(seen) == sorted(str(point) for point in grid.grid())
    assert len(set(seen)) == points


def test_a_grid_begun_in_the_order_of_its_file_is_finished_in_it(url):
    grid = sweep("grid", {"momentum": {"values": [0.5, 0.6]}, "epochs": {"values": [3, 2]}})
    Study(grid, "x", url, None).close()
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:  # as earlier versions left it
        database.execute("delete from study_user_attributes where key = 'order of the grid'")
    study, seen = Study(grid, "x", url, None), []
    search(study, lambda values: seen.append(dict(values)) or 0.5)
    study.close()
    assert seen == grid.grid(in_file_order=True) != grid.grid()


@pytest.mark.parametrize(("method", "parameters"), [("random", BOTH), ("grid", GRID)])
def test_no_more_trials_begin_than_the_cap_allows(url, method, parameters):
    study = Study(sweep(method, parameters), "x", url, 5)
    assert len(search(study, lambda values: 0.5)) == 5
    assert study.exhausted()
    study.close()
    more = Study(sweep(method, parameters), "x", url, 7)
    assert len(search(more, lambda values: 0.5)) == 7
    more.close()


def test_a_requeued_trial_keeps_its_values_and_its_name_and_is_counted_once(url):
    study = Study(sweep(), "x", url, 3)
    first = study.ask()
    study.report(first, [0.1])
    study.requeue(first)
    again = study.ask()
    assert (again.values, again.name) == (first.values, first.name)
    assert again.reported == []
    study.report(again, [0.1, 0.7])
    study.tell(again, "complete")
    records = search(study)
    assert len(records) == 3
    assert records[0].history == [0.1, 0.7]
    study.close()


TAKES_ONE = """
import sys, time
sys.path[:0] = {paths!r}
from tests.sweep.test_study import sweep, BOTH, GRID
from harness.sweep.study import Study
study = Study(sweep({method!r}, {parameters}), "x", {url!r}, 4)
print(study.ask().name, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("method", "parameters"), [("bayes", "BOTH"), ("grid", "GRID")])
def test_the_trial_of_a_killed_scheduler_is_run_again_and_no_other(url, method, parameters):
    paths = [str(Path(__file__).parents[2])]
    code = TAKES_ONE.format(paths=paths, method=method, parameters=parameters, url=url)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    name = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    study = Study(sweep(method, {"BOTH": BOTH, "GRID": GRID}[parameters]), "x", url, 4)
    names = []
    while (trial := study.ask()) is not None:
        names.append(trial.name)
        study.report(trial, [0.5])
        study.tell(trial, "complete")
    assert names.count(name) == 1
    assert len(names) == len(set(names)) == len(study.records()) == 4
    assert all(record.state == "complete" for record in study.records())
    study.close()


def test_a_trial_of_another_machine_is_left_alone_while_it_has_a_heartbeat(url):
    study = Study(sweep(), "x", url, 2)
    trial = study.ask()
    trial.optuna_trial.set_user_attr("owner", "elsewhere:1")
    study.close()
    other = Study(sweep(), "x", url, 2)
    other.requeue_stale()
    assert other.running_elsewhere([]) == 1
    assert other.ask().name != trial.name
    assert other.ask() is None
    other.close()


def test_a_target_ends_the_search(url):
    study = Study(sweep(metric={"name": "val/loss", "goal": "minimize", "target": 0.2}), "x", url, 50)
    trial = study.ask()
    study.report(trial, [0.5, 0.2])
    study.tell(trial, "complete")
    assert study.exhausted()
    assert study.ask() is None
    study.close()


def test_a_value_short_of_the_target_does_not_end_the_search(url):
    study = Study(sweep(metric={"name": "val/loss", "goal": "minimize", "target": 0.2}), "x", url, 50)
    trial = study.ask()
    study.report(trial, [0.5, 0.21])
    study.tell(trial, "complete")
    assert not study.reached() and not study.exhausted()
    assert study.ask() is not None
    study.close()


@pytest.mark.parametrize(("goal", "best", "worst"), [("minimize", 0.25, 0.9), ("maximize", 0.9, 0.25)])
def test_a_search_is_told_its_goal_and_its_best_trial_is_that_of_the_goal(url, goal, best, worst):
    study = Study(sweep(metric={"name": "val/loss", "goal": goal}), "x", url, 3)
    for values in ([0.5, 0.6], [0.9], [0.25]):
        trial = study.ask()
        study.report(trial, values)
        study.tell(trial, "complete")
    assert study.best().history == [best]
    study.close()
    stored = optuna.load_study(study_name="x", storage=url)
    assert stored.direction.name.lower() == goal
    assert stored.best_value == best
    values = [0.5, 0.9, 0.25] if goal == "minimize" else [0.6, 0.9, 0.25]
    assert [trial.value for trial in stored.trials] == values


class Overtaken(Study):
    """A scheduler that another one overtakes once, between its check that a trial is left and its taking it."""

    other = None

    def _sampler(self):
        if self.other is not None:
            other, self.other = self.other, None
            assert other.ask() is not None
        return super()._sampler()


@pytest.mark.parametrize(("method", "parameters"), [("random", BOTH), ("grid", {"momentum": {"values": [0.5, 0.6]}})])
def test_of_two_schedulers_that_take_the_last_trial_at_once_one_gets_none(url, method, parameters):
    spec = sweep(method, parameters)
    first, second = Overtaken(spec, "x", url, 2), Study(spec, "x", url, 2)
    assert first.ask() is not None
    first.other = second
    assert first.ask() is None
    assert len(first.records()) == 2
    assert len({str(record.values) for record in first.records()}) == 2
    first.close()
    second.close()


def test_the_best_trial_is_a_complete_one(url):
    study = Study(sweep(), "x", url, 4)
    for values, state in (([0.9], "pruned"), ([0.4, 0.6], "complete"), ([0.5], "complete"), ([], "complete")):
        trial = study.ask()
        study.report(trial, values)
        study.tell(trial, state)
    assert study.best().history == [0.4, 0.6]
    assert [record.state for record in study.records()] == ["pruned", "complete", "complete", "failed"]
    assert "logged no best/val_acc" in study.records()[3].reason
    study.close()


@pytest.mark.slow
def test_the_parameter_that_matters_is_the_most_important_one(url):
    study = Study(sweep("random"), "x", url, 25)
    search(study, lambda values: math.log10(values["lr_max"]))
    shares = study.importances()
    assert shares["lr_max"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    study.close()


@pytest.mark.slow
def test_a_storage_that_can_not_be_opened_or_holds_another_sweep_is_refused(url, tmp_path):
    Study(sweep(), "x", url, 4).close()
    with pytest.raises(UsageError, match="holds another sweep"):
        Study(sweep("random"), "x", url, 4)
    with pytest.raises(UsageError, match="cannot open the storage"):
        Study(sweep(), "x", f"sqlite:///{tmp_path}/no/such/folder/s.db", 4)
    with pytest.raises(UsageError) as refused:
        Study(sweep(), "x", "postgresql+psycopg://me:secret@127.0.0.1:1/none", 4)
    assert "secret" not in str(refused.value)


def test_a_search_with_one_value_of_each_parameter_has_no_importances():
    study = optuna.create_study()
    for value in range(6):
        study.add_trial(optuna.create_trial(value=value, params={"a": 1}, distributions={"a": IntDistribution(1, 9)}))
    assert parameter_importances(study) == {}
    for _ in range(6):
        study.add_trial(optuna.create_trial(value=0, params={"a": 9}, distributions={"a": IntDistribution(1, 9)}))
    assert parameter_importances(study).keys() == {"a"}


def test_no_password_of_a_storage_is_in_a_message():
    for text in ("postgresql+psycopg://me:secret@host:5432/db", "postgresql+psycopg://me:se:cr@et@host/db"):
        assert storage._without_password(text).startswith("postgresql+psycopg://me:***@host")
    for text in ("sqlite:////tmp/study.db", "postgresql+psycopg://me@host/db"):
        assert "***" not in storage._without_password(text) or ":***@host/db" in storage._without_password(text)
    error = RuntimeError("(background on this error at: https://sqlalche.me/e/20/e3q8)")
    error.__cause__ = ValueError("could not connect\nto the server")
    assert storage.describe_error(error) == "could not connect"
    assert storage.describe_error(KeyError()) == "KeyError"


def test_a_trial_that_another_scheduler_has_taken_over_is_stopped_and_stays_with_that_one(url):
    study = Study(sweep(), "x", url, 3)
    trial = study.ask()
    assert study.remaining() == 2
    requeue_trial(study._study, trial.number)  # as the other one does
    requeue_trial(study._study, trial.number)  # a third one is too late
    assert study.report(trial, [0.5])
    study.tell(trial, "complete")
    again = study.ask()
    assert (again.name, again.values) == (trial.name, trial.values) and study.remaining() == 2
    assert [record.state for record in study.records()] == ["running"]
    study.close()


def test_a_trial_whose_schedulers_die_one_after_the_other_is_given_up(url):
    study = Study(sweep("grid", {"lr_max": {"values": [0.1]}}), "x", url, None)
    for _ in range(MAX_TRIES):
        trial = study.ask()
        assert trial.name == "trial-0000"
        requeue_trial(study._study, trial.number)
    assert study.ask() is None and study.exhausted()
    study.close()


def test_hyperband_stops_a_trial_that_is_not_among_the_best_at_a_band(url):
    spec = sweep("random", early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2})
    study = Study(spec, "x", url, 4)
    for history in ([0.5, 0.9, 0.91], [0.5, 0.8, 0.9]):
        trial = study.ask()
        assert not study.report(trial, history)
        study.tell(trial, "complete")
    trial = study.ask()
    assert not study.report(trial, [0.1])  # before the first band
    assert study.report(trial, [0.1, 0.2])
    study.tell(trial, "pruned")
    trial = study.ask()
    assert not study.report(trial, [0.1, 0.95])
    study.close()


LOCK = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("begin exclusive")
print("locked", flush=True)
sys.stdin.readline()
database.execute("rollback")
"""


@contextlib.contextmanager
def locked_elsewhere(url):
    """Have another process hold the database's lock until the function that is yielded is called."""
    line = [sys.executable, "-c", LOCK, url.removeprefix("sqlite:///")]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process.stdin.close


@pytest.mark.slow
def test_a_database_that_another_process_has_locked_is_waited_for_and_reported(url, monkeypatch):
    monkeypatch.setattr(locked_database, "FIRST_MESSAGE", 0.2)
    monkeypatch.setattr(locked_database, "TIMEOUT", 0.1)
    said, release = [], []

    def notify(line):
        said.append(line)
        while release:  # the database is free as soon as the user has been told that it is not
            release.pop()()

    study = Study(sweep(), "x", url, 8, notify=notify)
    trial = study.ask()
    for call in (
        lambda: study.report(trial, [0.5]),
        lambda: study.tell(trial, "complete"),
        study.records,
        study.ask,
        lambda: Study(sweep(), "x", url, 8, notify=notify).close(),
    ):
        said.clear()
        with locked_elsewhere(url) as unlock:
            release.append(unlock)
            call()
        assert len(said) == 2, said
        assert said[0].startswith("Waiting for the database of the search since")
        assert "another process has locked it" in said[0]
        assert said[1].startswith("The database of the search was free after")
    assert [record.state for record in study.records()] == ["complete", "running"]
    study.close()


def search_in_process(url, seed):
    """Search up to 40 trials as another scheduler of the sweep would."""
    study = Study(sweep(), "x", url, 40, seed=seed)
    search(study)
    study.close()


@pytest.mark.slow
def test_two_processes_that_write_at_once_wait_for_each_other(url):
    """A writer that has read first must not keep the read lock which the other one waits for."""
    study = Study(sweep(), "x", url, 40)
    forked.join_server()
    processes = [forked.context.Process(target=search_in_process, args=(url, seed)) for seed in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    # Read after both have ended: while one draws a trial too many, the other one sees it for a moment.
    records = study.records()
    study.close()
    assert {record.state for record in records} == {"complete"}
    assert len(records) == 40
    with sqlite3.connect(url.removeprefix("sqlite:///")) as base:
        owners = base.execute(
            "select value_json from trial_user_attributes where key = ? and trial_id in"
            " (select trial_id from trials where state = 'COMPLETE')",
            (OWNER,),
        ).fetchall()
    assert len(owners) == 40 and len(set(owners)) == 2  # both have run trials


@pytest.mark.slow
def test_a_trial_costs_less_than_half_a_second_of_search(url):
    study = Study(sweep(), "x", url, 60)
    began = time.process_time()
    search(study)
    assert (time.process_time() - began) / 60 < 0.5
    study.close()
    assert os.path.getsize(url.removeprefix("sqlite:///")) < 2_000_000


def test_trials_whose_length_the_data_decide_are_not_stopped_early_at_an_epoch_of_another_length(url):
    open_length = sweep(parameters={**BOTH, "recipe": {"value": "auto"}, "data": {"value": "digits"}})
    with pytest.raises(UsageError, match=r"epochs=auto.*give a number of epochs"):
        Study(open_length, "x", url, 4, pruner="median")
    Study(open_length, "x", url, 4)
    known = sweep(parameters={**BOTH, "recipe": {"value": "auto"}, "data": {"value": "digits"}, "epochs": {"value": 9}})
    Study(known, "y", url, 4, pruner="median")
