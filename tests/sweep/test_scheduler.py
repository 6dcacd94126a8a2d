"""Which trials are run again, and what each run is told, with programs that end at once in place of `harness run`."""

import io
import re
import resource
import shlex
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.config import yaml_io
from harness.sweep import results, schema
from harness.sweep.launcher import Launcher, final_runs
from harness.sweep.requeue import MAX_TRIES
from harness.sweep.search import run_search
from harness.sweep.selection import TrialRecord
from harness.tracking.journal import Journal
from harness.tracking.records import Record
from harness.utils.errors import HarnessError, ResourceError
from harness.utils.files import read_json, write_json
from harness.utils.signals import Interrupted, StopRequests
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
        pytest.param("exit 138", MAX_TRIES, marks=pytest.mark.slow),
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
    assert (row["trial"], row["state"]) == ("trial-0000", "failed") and row["reason"], row
    assert {each["name"] for each in program.starts()} == {"trial-0000"}


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self):
        return True


def test_the_table_of_a_terminal_shows_a_trial_while_it_runs_and_at_last_how_it_has_ended(
    tmp_path, program, monkeypatch
):
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    program("sleep 0.3; exit 1")
    with pytest.raises(HarnessError, match="every trial failed"):
        run_search(sweep("grid", GRID, command=LINE), b"", output=tmp_path / "runs", fork=False)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())  # without colours and movements of the cursor
    states = re.findall(r"trial-0000 +│.*?(running|failed)", shown)
    assert states[0] == "running" and states[-1] == "failed"


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


BEST = TrialRecord(0, "trial-0000", "complete", {"lr_max": 0.1}, [0.5], "")


def launcher_of(tmp_path, line=("harness", "run", "${args}")):
    return Launcher(sweep("grid", GRID, command=list(line)), tmp_path / "sweep", 1, fork=False)


def write_status(launcher, name, **status):
    (launcher.runs / name).mkdir(parents=True)
    (launcher.runs / name / "config.yaml").write_text("recipe: digits\n")
    write_json(launcher.runs / name / "status.json", status)


def test_a_final_run_that_fails_ends_the_sweep_with_its_reason_and_a_finished_one_is_not_run_again(tmp_path, program):
    program("echo 'error: no network' >&2; exit 3")
    launcher, said = launcher_of(tmp_path, LINE), []
    write_status(launcher, "final-0000-s0", state="finished")
    write_json(launcher.runs / "final-0000-s0" / "summary.json", {"result": {"test/acc": 0.75}})
    with StopRequests() as stop_requests:
        result = final_runs(launcher, BEST, 1, stop_requests, said.append)
        assert not (tmp_path / "words.txt").exists() and result.figures["test/acc"].mean == 0.75
        with pytest.raises(HarnessError, match=r"^the final run with seed 1 failed: no network \(exit status 3\)$"):
            final_runs(launcher, BEST, 2, stop_requests, said.append)
        with pytest.raises(HarnessError, match="no trial logged the metric, so there is no best configuration to test"):
            final_runs(launcher, None, 2, stop_requests, said.append)
    assert [each["name"] for each in program.starts()] == ["final-0000-s1"]


def test_the_reason_of_a_failure_is_that_of_the_status_or_the_last_error_of_the_log(tmp_path):
    launcher = launcher_of(tmp_path)
    assert (
        launcher.failure_reason("t", 3) == "exit status 3" and launcher.failure_reason("t", -9) == "killed by signal 9"
    )
    (launcher.folder / "logs/t.log").write_text("error: first\nerror: last\n\nsomething after it\n")
    assert launcher.failure_reason("t", 3) == "last (exit status 3)"
    (launcher.folder / "logs/t.log").write_text("Segmentation fault\n\n")
    assert launcher.failure_reason("t", -11) == "Segmentation fault (killed by signal 11)"
    write_status(launcher, "t", state="failed", reason="diverged at step 3")
    assert launcher.failure_reason("t", 5) == "diverged at step 3"


def test_a_full_disk_is_known_by_the_reason_of_a_trial_or_by_trying(tmp_path):
    launcher = launcher_of(tmp_path)
    launcher.folder.mkdir()
    assert not launcher.disk_was_full("t", 5) and not launcher.disk_was_full("t", 6)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        is_full = launcher.disk_was_full("t", 6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert is_full and not (launcher.folder / ".probe").exists()
    write_status(launcher, "t", state="failed", reason="no space to write last.pt in x (0.0 MB free); free some space")
    assert launcher.disk_was_full("t", 6) and not launcher.disk_was_full("t", 1)


def test_a_trial_that_has_finished_is_not_run_again_and_its_run_is_compared_with_the_parameters(tmp_path, program):
    program("exit 0")
    launcher = launcher_of(tmp_path, LINE)
    write_status(launcher, "trial-0000", state="finished")
    trial = SimpleNamespace(name="trial-0000", values={"lr_max": 0.1})
    assert launcher.start_trial(trial, 0).poll() == 0 and not (tmp_path / "words.txt").exists()
    config = launcher.sweep.config(trial.values)
    for lr_max, reason in ((0.1, ""), (0.2, "the run did not have the sweep's parameters: lr_max")):
        (launcher.runs / "trial-0000" / "config.yaml").write_text(config.replace(lr_max=lr_max).to_yaml())
        assert launcher.why_not_its_run("trial-0000", trial.values).partition("=")[0] == reason


def test_the_parameters_of_a_trial_are_in_the_file_that_its_command_names(tmp_path, program):
    program("exit 0")
    launcher = launcher_of(tmp_path, ["./train.sh", "${args_json_file}"])
    process = launcher.start_trial(SimpleNamespace(name="trial-0000", values={"lr_max": 0.1}), 0)
    while process.poll() is None:
        time.sleep(0.01)
    file = (tmp_path / "words.txt").read_text().split()[0]
    assert file == str(launcher.folder.absolute() / "parameters" / "trial-0000.json")
    expected = {"recipe": "digits", "val_fraction": 0.2, "lr_max": 0.1, "lr_min": 0.01}
    assert read_json(Path(file)) == expected


# The program leaves the run that was prepared for its learning rate.
LEAVES_RUN = """
for word; do case $word in --name=*) name=${word#*=};; --output=*) output=${word#*=};; --lr_max=*) lr=${word#*=};; esac; done
mkdir -p "$output/$name"; cp prepared-$lr/* "$output/$name"/
"""


def prepare(folder, spec, histories):
    """Write what a run leaves for each learning rate: a record for each value of the metric."""
    for lr_max, history in histories.items():
        path = folder / f"prepared-{lr_max}"
        config = spec.config({"lr_max": lr_max})
        journal = Journal(path, {"config": config.to_dict()})
        for number, value in enumerate(history, start=1):
            journal.record(Record(number, number, {"best/val_acc": value, "val/acc": 0.0}))
        journal.finish("finished", 0)
        (path / "config.yaml").write_text(config.to_yaml())
        write_json(path / "status.json", {"state": "finished"})
        write_json(path / "summary.json", {"result": {"test/acc": 0.75}})


def search(spec, tmp_path, **options):
    return run_search(spec, b"name: x", output=tmp_path / "runs", name="s", fork=False, **options)


def states(folder):
    return {float(row["lr_max"]): row["state"] for row in read_trials(folder)}


def test_a_sweep_finds_the_best_of_its_trials_writes_its_recipe_and_tests_it_again(tmp_path, program):
    program(LEAVES_RUN)
    spec = sweep("grid", {"lr_max": {"values": [0.1, 0.2, 0.001]}, "lr_min": {"value": 0.01}}, command=LINE)
    prepare(tmp_path, spec, {0.1: [0.3, 0.6], 0.2: [0.7, 0.8]})
    folder, summary = search(spec, tmp_path, final=2)
    assert folder == tmp_path / "runs" / "s" and states(folder) == {0.1: "complete", 0.2: "complete", 0.001: "failed"}
    reasons = {float(row["lr_max"]): row["reason"] for row in read_trials(folder)}
    assert reasons[0.001].startswith("need lr_min <= lr_max, got lr_min=0.01, lr_max=0.001")
    assert {each["lr_max"] for each in program.starts()} == {"0.1", "0.2"}  # the refused one is not started
    best = read_json(folder / "sweep.json")["best"]
    assert (best["value"], best["parameters"]["lr_max"]) == (0.8, 0.2)
    assert (
        yaml_io.read_yaml(folder / "best.yaml")["lr_max"] == 0.2 and (folder / "sweep.yaml").read_bytes() == b"name: x"
    )
    finals = [each for each in program.starts() if each["job_type"] == "final"]
    assert [(each["lr_max"], each["seed"]) for each in finals] == [("0.2", "0"), ("0.2", "1")]
    assert f"best        best/val_acc 0.8000 ({best['trial']})" in summary and "final runs of the best:" in summary
    starts = len(program.starts())
    assert search(spec, tmp_path)[0] == folder and len(program.starts()) == starts  # it is over


def test_a_trial_that_reaches_the_target_stops_the_others(tmp_path, program):
    program('case "$*" in *lr_max=0.2*) trap "exit 143" TERM; while :; do sleep 0.05; done;; esac' + LEAVES_RUN)
    spec = sweep(
        "grid",
        {"lr_max": {"values": [0.2, 0.1]}, "lr_min": {"value": 0.01}},
        command=LINE,
        metric={"name": "best/val_acc", "goal": "maximize", "target": 0.75},
    )
    prepare(tmp_path, spec, {0.1: [0.5, 0.8]})
    folder, summary = search(spec, tmp_path, workers=2)
    assert states(folder) == {0.1: "complete", 0.2: "pruned"} and "1 complete" in summary
    assert read_json(folder / "sweep.json")["best"]["value"] == 0.8


def test_a_stopped_sweep_says_how_to_go_on_and_its_trial_is_run_again(tmp_path, program):
    program("kill -TERM $PPID; trap 'exit 143' TERM; while :; do sleep 0.05; done")
    spec = sweep("grid", GRID, command=LINE)
    prepare(tmp_path, spec, {0.1: [0.5]})
    with pytest.raises(Interrupted, match=r"SIGTERM; the trials have saved their state in .*/s\. Resume with") as stop:
        search(spec, tmp_path)
    assert stop.value.exit_code == 143 and not read_trials(tmp_path / "runs/s")
    program(LEAVES_RUN)
    assert states(search(spec, tmp_path)[0]) == {0.1: "complete"}
    assert [each["name"] for each in program.starts()] == ["trial-0000"] * 2


def test_a_trial_that_finds_no_space_ends_the_sweep_and_is_run_again(tmp_path, program):
    program("echo 'error: no space to write last.pt in x (0.0 MB free); free some space' >&2; exit 6")
    spec = sweep("grid", GRID, command=LINE)
    prepare(tmp_path, spec, {0.1: [0.5]})
    with pytest.raises(ResourceError, match=r"trial-0000: no space .* \(exit status 6\)\. The trials are queued again"):
        search(spec, tmp_path)
    program(LEAVES_RUN)
    assert states(search(spec, tmp_path)[0]) == {0.1: "complete"}
