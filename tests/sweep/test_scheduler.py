"""Which trials are run again, and what each run is told, with programs that end at once in place of `harness run`."""

import shlex

import pytest

from harness.sweep import results, schema
from harness.sweep.launcher import Launcher, final_runs
from harness.sweep.requeue import MAX_TRIES
from harness.sweep.search import run_search
from harness.sweep.selection import TrialRecord
from harness.utils.errors import HarnessError
from harness.utils.signals import StopRequests
from tests.support.sweeps import read_trials, sweep_folder
from tests.sweep.test_study import sweep

# Notes its words, and ends with the exit status or by the signal of the test.
PROGRAM = """#!/bin/sh
# exec harness run "$@"
printf '%s\\n' "$*" >> words.txt
{ending}
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Write the program, and return a function that gives the words of each of its starts."""
    monkeypatch.chdir(tmp_path)

    def write(ending):
        (tmp_path / "train.sh").write_text(PROGRAM.format(ending=ending))
        (tmp_path / "train.sh").chmod(0o755)

    def starts():
        options = []
        for line in (tmp_path / "words.txt").read_text().splitlines():
            pairs = [word.removeprefix("--").partition("=") for word in shlex.split(line)]
            options.append({name.replace("-", "_"): value for name, _, value in pairs})
        return options

    write.starts = starts
    return write


GRID = {"lr_max": {"values": [0.1]}, "lr_min": {"value": 0.01}}
LINE = ["./train.sh", "${args}"]


@pytest.mark.parametrize(
    ("ending", "starts"),
    [
        ("exit 143", MAX_TRIES),  # SIGTERM, after it has saved: a job that its cluster has stopped
        ("exit 138", MAX_TRIES),
        ("kill -9 $$", MAX_TRIES),
        ("exit 1", 1),
        ("exit 130", 1),  # Ctrl-C is the user's own, and stops the sweep as well
    ],
)
def test_a_trial_that_was_stopped_from_outside_is_run_again_and_one_that_failed_is_not(
    tmp_path, program, ending, starts
):
    program(ending)
    with pytest.raises(HarnessError, match="every trial failed"):
        run_search(sweep("grid", GRID, command=LINE), b"", output=tmp_path / "runs", fork=False)
    assert len(program.starts()) == starts
    (row,) = read_trials(sweep_folder(tmp_path))
    assert (row["trial"], row["state"]) == ("trial-0000", "failed")
    assert {each["name"] for each in program.starts()} == {"trial-0000"}


def test_a_command_that_leaves_no_run_is_a_failed_trial_and_the_sweep_goes_through_the_others(tmp_path, program):
    program("exit 0")
    with pytest.raises(HarnessError, match="every trial failed"):
        run_search(
            sweep("grid", {**GRID, "lr_max": {"values": [0.1, 0.2]}}, command=LINE),
            b"",
            output=tmp_path / "runs",
            fork=False,
        )
    rows = read_trials(sweep_folder(tmp_path))
    assert [(row["state"], row["lr_max"]) for row in rows] == [("failed", "0.1"), ("failed", "0.2")]
    assert all(row["reason"].startswith("the command has left no run that can be read") for row in rows)
    assert len(program.starts()) == 2


def test_trials_do_not_read_the_test_set_and_the_final_runs_do_each_with_a_seed_of_its_own(tmp_path, program):
    program("exit 0")
    spec = sweep("grid", GRID, command=LINE)
    with pytest.raises(HarnessError, match=r"every trial failed.*left no run"):
        run_search(spec, b"", output=tmp_path / "runs", fork=False)
    (trial,) = program.starts()
    folder = sweep_folder(tmp_path)
    assert (trial["test"], trial["job_type"], trial["gallery"], trial["report"]) == ("False", "trial", "0", "False")
    assert (trial["group"], trial["lr_max"], trial["val_fraction"]) == (folder.name, "0.1", "0.2")
    (tmp_path / "words.txt").unlink()
    best = TrialRecord(0, "trial-0000", "complete", {"lr_max": 0.1}, [0.5], "")
    with StopRequests() as stop_requests:
        final_runs(Launcher(spec, folder, 2, fork=False), best, 3, stop_requests, lambda text: None)
    finals = sorted(program.starts(), key=lambda each: each["name"])
    assert [(each["seed"], each["name"]) for each in finals] == [(str(n), f"final-0000-s{n}") for n in range(3)]
    assert {(each["test"], each["job_type"], each["lr_max"]) for each in finals} == {("True", "final", "0.1")}
    assert (folder / results.SUMMARY).is_file()


@pytest.mark.parametrize("name", ["test/acc", "best/test_acc"])
def test_trials_read_the_test_set_only_where_the_metric_is_one_of_it(tmp_path, program, name):
    program("exit 1")
    document = {**sweep("grid", GRID, command=LINE).document, "metric": {"name": name, "goal": "maximize"}}
    document["parameters"] = {**document["parameters"], "val_fraction": {"value": 0}}
    spec = schema.parse_sweep(document, "x", {}, on_test=True)
    with pytest.raises(HarnessError, match="every trial failed"):
        run_search(spec, b"", output=tmp_path / "runs", fork=False)
    assert "test" not in program.starts()[0]
