"""The search by itself: what it tries, what it remembers, what it gives back."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.sweep import schema
from harness.sweep.study import Study
from harness.utils.errors import UsageError

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
    """A hill whose top, 1, is at LRMAX 0.1 and LRMIN 0.001."""
    far = (math.log10(values["lr_max"]) + 1) ** 2 + (math.log10(values["lr_min"]) + 3) ** 2
    return 1 - far / 2


def search(engine, judge=score):
    while (proposal := engine.ask()) is not None:
        engine.report(proposal, [judge(proposal.values)])
        engine.tell(proposal, "complete")
    return engine.rows()


def test_bayes_comes_nearer_to_the_top_than_random_does(tmp_path):
    def mean_of_best_half(method, seed):
        engine = Study(sweep(method), "x", f"sqlite:///{tmp_path}/{method}{seed}.db", 30, seed)
        scores = [row.history[0] for row in search(engine)][15:]
        engine.close()
        return sum(scores) / len(scores)

    gained = [mean_of_best_half("bayes", seed) - mean_of_best_half("random", seed) for seed in range(3)]
    assert min(gained) > 0
    assert sum(gained) / 3 > 0.1


def test_a_search_is_repeated_by_its_seed(tmp_path):
    def values(seed, file):
        engine = Study(sweep(), "x", f"sqlite:///{tmp_path}/{file}.db", 8, seed)
        found = [dict(row.values) for row in search(engine)]
        engine.close()
        return found

    assert values(0, "a") == values(0, "b") != values(1, "c")


GRID = {
    "lr_max": {"values": [0.1, 0.2, 0.1000001]},
    "momentum": {"distribution": "q_uniform", "min": 0.5, "max": 0.9, "q": 0.1},
    "epochs": {"distribution": "int_uniform", "min": 2, "max": 3},
    "model_args": {"values": [{"width": 4}, {"width": 8}]},
}


def test_a_grid_visits_every_point_once_also_over_a_restart(url):
    grid = sweep("grid", GRID)
    first, seen = Study(grid, "x", url, None), []
    for _ in range(7):
        proposal = first.ask()
        seen.append(str(proposal.values))
        first.report(proposal, [0.5])
        first.tell(proposal, "complete")
    first.close()
    second = Study(grid, "x", url, None)
    assert second.remaining() == 48 - 7
    search(second, lambda values: seen.append(str(values)) or 0.5)
    assert second.exhausted()
    second.close()
    assert sorted(seen) == sorted(str(point) for point in grid.grid())
    assert len(set(seen)) == 48


@pytest.mark.parametrize(("method", "parameters"), [("random", BOTH), ("grid", GRID)])
def test_no_more_trials_begin_than_the_cap_allows(url, method, parameters):
    engine = Study(sweep(method, parameters), "x", url, 5)
    assert len(search(engine, lambda values: 0.5)) == 5
    assert engine.exhausted()
    engine.close()
    more = Study(sweep(method, parameters), "x", url, 7)
    assert len(search(more, lambda values: 0.5)) == 7
    more.close()


def test_a_trial_given_back_comes_again_with_its_values_and_its_name_and_is_counted_once(url):
    engine = Study(sweep(), "x", url, 3)
    first = engine.ask()
    engine.report(first, [0.1])
    engine.requeue(first)
    again = engine.ask()
    assert (again.values, again.name) == (first.values, first.name)
    assert again.reported == []
    engine.report(again, [0.1, 0.7])
    engine.tell(again, "complete")
    rows = search(engine)
    assert len(rows) == 3
    assert rows[0].history == [0.1, 0.7]
    engine.close()


TAKES_ONE = """
import sys, time
sys.path[:0] = {paths!r}
from tests.sweep.test_study import sweep, BOTH, GRID
from harness.sweep.study import Engine
engine = Engine(sweep({method!r}, {parameters}), "x", {url!r}, 4)
print(engine.ask().name, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("method", "parameters"), [("bayes", "BOTH"), ("grid", "GRID")])
def test_the_trial_of_a_killed_coordinator_is_run_again_and_no_other(url, method, parameters):
    paths = [str(Path(__file__).parents[2])]
    code = TAKES_ONE.format(paths=paths, method=method, parameters=parameters, url=url)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    name = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    engine = Study(sweep(method, {"BOTH": BOTH, "GRID": GRID}[parameters]), "x", url, 4)
    names = []
    while (proposal := engine.ask()) is not None:
        names.append(proposal.name)
        engine.report(proposal, [0.5])
        engine.tell(proposal, "complete")
    assert names.count(name) == 1
    assert len(names) == len(set(names)) == len(engine.rows()) == 4
    assert all(row.state == "complete" for row in engine.rows())
    engine.close()


def test_a_trial_of_another_machine_is_left_alone_while_its_heart_beats(url):
    engine = Study(sweep(), "x", url, 2)
    proposal = engine.ask()
    proposal.trial.set_user_attr("owner", "elsewhere:1")
    engine._swept = 0.0
    engine.requeue_stale()
    assert engine.running_elsewhere([]) == 1
    other = engine.ask()
    assert other.name != proposal.name
    assert engine.ask() is None
    engine.close()


def test_a_target_ends_the_search(url):
    engine = Study(sweep(metric={"name": "val/loss", "goal": "minimize", "target": 0.2}), "x", url, 50)
    proposal = engine.ask()
    engine.report(proposal, [0.5, 0.2])
    engine.tell(proposal, "complete")
    assert engine.exhausted()
    assert engine.ask() is None
    engine.close()


def test_the_best_is_complete_and_a_failed_one_is_none(url):
    engine = Study(sweep(), "x", url, 4)
    for values, state in (([0.9], "pruned"), ([0.4, 0.6], "complete"), ([0.5], "complete"), ([], "complete")):
        proposal = engine.ask()
        engine.report(proposal, values)
        engine.tell(proposal, state)
    assert engine.best().history == [0.4, 0.6]
    assert [row.state for row in engine.rows()] == ["pruned", "complete", "complete", "failed"]
    assert "logged no best/val_acc" in engine.rows()[3].reason
    engine.close()


def test_the_parameter_that_matters_is_the_most_important_one(url):
    engine = Study(sweep("random"), "x", url, 25)
    search(engine, lambda values: math.log10(values["lr_max"]))
    shares = engine.importances()
    assert shares["lr_max"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    engine.close()


def test_a_storage_that_can_not_be_had_or_holds_another_sweep_is_refused(url, tmp_path):
    Study(sweep(), "x", url, 4).close()
    with pytest.raises(UsageError, match="holds another sweep"):
        Study(sweep("random"), "x", url, 4)
    with pytest.raises(UsageError, match="can not be opened"):
        Study(sweep(), "x", f"sqlite:///{tmp_path}/no/such/folder/s.db", 4)
    with pytest.raises(UsageError) as refused:
        Study(sweep(), "x", "postgresql+psycopg://me:secret@127.0.0.1:1/none", 4)
    assert "secret" not in str(refused.value)


def test_asking_is_quick_enough_for_short_trials(url):
    engine = Study(sweep(), "x", url, 60)
    began = time.process_time()
    search(engine)
    assert (time.process_time() - began) / 60 < 0.5
    engine.close()
    assert os.path.getsize(url.removeprefix("sqlite:///")) < 2_000_000
