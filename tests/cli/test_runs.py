"""`harness runs` lists what was trained on what, how far it came, and what to do about it."""

import json
import os
import shutil
import sys
from dataclasses import replace
from datetime import datetime

import pytest

from harness import make_config
from harness import run as train
from harness.cli import runs
from harness.cli.main import main
from harness.reporting.html import facts, pages
from harness.reporting.html.run_data import read_run
from harness.runs.progress import ProgressReporter
from harness.tracking.run_dir import lock_folder
from harness.tracking.run_list import listed_runs
from harness.utils.files import read_json

SMALL = {
    "recipe": "digits",
    "image_size": 16,
    "model_args": "width=4",
    "gallery": 0,
    "threads": 1,
    "wandb": "disabled",
    "report": False,
}


@pytest.fixture
def folder(finished, tmp_path):
    """An output folder with the runs `a` (finished), `b` (stopped) and `c` (diverged), written in the order c, a, b."""
    for number, name in enumerate("cab"):
        run = tmp_path / "runs" / name
        shutil.copytree(finished[1], run, ignore=shutil.ignore_patterns("checkpoints", "wandb", "evaluation*", "*.png"))
        os.utime(run / "journal.jsonl", (1e9 + number, 1e9 + number))
    for name, status, lr in (
        ("b", {"state": "interrupted", "epoch": 1, "resume": "harness run"}, 0.05),
        ("c", {"state": "failed", "exit_code": 5, "epoch": 2, "resume": "harness run"}, 0.5),
    ):
        run = tmp_path / "runs" / name
        (run / "status.json").write_text(json.dumps(status))
        text = (run / "config.yaml").read_text().splitlines()
        text = [f"lr_max: {lr}" if line.startswith("lr_max:") else line for line in text]
        (run / "config.yaml").write_text("\n".join(text))
    (tmp_path / "runs/b/summary.json").write_text('{"last": {"test/acc": 0.25}}')
    (tmp_path / "runs/c/summary.json").write_text("{}")
    return tmp_path


def run(folder, capsys, monkeypatch, *arguments, code=0):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["harness", "runs", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr()
    assert (stop.value.code or 0) == code, shown.err
    return shown


def names(text):
    return [line.split()[0] for line in text.splitlines()[1:] if not line.startswith(" ")]


def test_the_table_says_what_was_trained_and_the_newest_run_is_last(folder, finished, capsys, monkeypatch):
    lines = run(folder, capsys, monkeypatch).out.splitlines()
    accuracy = json.loads((finished[1] / "summary.json").read_text())["result"]["test/acc"]
    assert lines[0].split() == ["run", "state", "last", "written", "model", "data", "LRMAX", "epoch", "accuracy"]
    diverged, advice, done, stopped, command = lines[1:]
    assert diverged.startswith("c ") and diverged.endswith("0.5    2/3    -")
    assert "diverged at lr_max=0.5" in advice and "--resume" not in advice
    assert done.startswith("a ") and "custom_resnet" in done and "digits" in done
    assert done.endswith(f"3/3    test {100 * accuracy:.2f} %")
    assert stopped.startswith("b ") and stopped.endswith("1/3    test 25.00 %")
    assert command.strip() == "harness run --recipe runs/b/config.yaml --resume runs/b"
    columns = {line.index(" digits") for line in (diverged, done, stopped)}
    assert len(columns) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--sort", "name"], "abc"),
        (["--sort", "accuracy"], "cba"),
        (["--sort", "lr"], "abc"),
        (["--sort", "epoch"], "bca"),
        (["--sort", "model"], "cab"),
        (["--state", "finished", "--state", "failed"], "ca"),
        (["--match", "B"], "b"),
        (["--match", "DIGITS", "--sort", "name"], "abc"),
    ],
)
def test_runs_are_sorted_and_chosen(arguments, expected, folder, capsys, monkeypatch):
    assert "".join(names(run(folder, capsys, monkeypatch, *arguments).out)) == expected


def test_json_has_the_same_runs_with_unknown_values_as_null(folder, capsys, monkeypatch):
    listed = json.loads(run(folder, capsys, monkeypatch, "--json").out)
    assert [one["path"] for one in listed] == ["runs/c", "runs/a", "runs/b"]
    assert [one["diverged"] for one in listed] == [True, False, False]
    assert listed[0]["accuracy"] is None and listed[2]["accuracy"] == 0.25
    assert listed[0]["lr_max"] == 0.5 and listed[0]["resume"] == ""
    assert [one["name"] for one in listed] == ["c", "a", "b"]
    assert datetime.fromisoformat(listed[1]["date"]).timestamp() == 1e9 + 1
    assert "lower --lr-max" in listed[0]["advice"] and listed[1]["advice"] == ""
    assert listed[2]["advice"] == listed[2]["resume"] != ""


@pytest.mark.parametrize("written_at", [0.0, -1.0, 1e18])
def test_a_time_that_makes_no_sense_is_no_date(folder, written_at):
    (run, *_) = listed_runs(folder / "runs")
    run = replace(run, written_at=written_at)
    assert runs._plain(run)["date"] is None and runs._cells(run)[2] == "-"


def test_no_advice_is_to_continue_a_diverged_run(folder, capsys, monkeypatch):
    """Neither of a run, nor of several seeds, nor on the page of a run."""
    seeds = [
        {"seed": 0, "state": "finished", "folder": "a"},
        {"seed": 1, "state": "failed", "exit_code": 5, "folder": "c"},
    ]
    summary = {"seeds": seeds, "resume": "harness run", "config": {"lr_max": 0.5}}
    summary["figures"] = {
        "test/acc": {"mean": 0.9125, "sd": 0.0052},
        "val/acc": {"mean": 0.5, "sd": 0.0},
        "lr": {"mean": 0.5},
    }
    (folder / "runs/ac-seeds-0-1").mkdir()
    (folder / "runs/ac-seeds-0-1/seeds.json").write_text(json.dumps(summary))
    lines = run(folder, capsys, monkeypatch, "--match", "seeds").out.splitlines()
    assert lines[0].split()[1:5] == ["seeds", "1", "of", "2"]
    assert (
        "test 91.25 % ± 0.52" in lines[0]
        and "val 50.00 %" in lines[0]
        and "50.00 % ±" not in lines[0]
        and " lr" not in lines[0]
    )
    assert lines[1].strip().startswith("1 of 2 seeds diverged at lr_max=0.5: start it anew with a lower --lr-max")
    assert len(lines) == 2
    seeds.append({"seed": 2, "state": "interrupted", "folder": "b"})
    (folder / "runs/ac-seeds-0-1/seeds.json").write_text(json.dumps(summary))
    assert "--seeds 3" in run(folder, capsys, monkeypatch, "--match", "seeds").out.splitlines()[2]
    diverged, stopped = (pages.write_page(folder / "runs" / name).read_text() for name in "cb")
    assert "Resume it with" not in diverged and "--resume runs/c" not in diverged
    assert "Resume it with" in stopped


def test_a_run_that_trains_is_listed_with_its_last_accuracy_and_no_command_to_resume_it(folder, capsys, monkeypatch):
    """Neither of a run, nor of several seeds."""
    status = {"state": "running", "step": 9, "epoch": 1, "last": {"test/acc": 0.5}, "resume": "harness run"}
    (folder / "runs/b/status.json").write_text(json.dumps(status))
    (folder / "runs/b/summary.json").unlink()
    seeds = [{"seed": seed, "state": state} for seed, state in enumerate(("finished", "waiting"))]
    (folder / "runs/bb").mkdir()
    (folder / "runs/bb/seeds.json").write_text(json.dumps({"seeds": seeds, "resume": "harness run"}))
    with lock_folder(folder / "runs/b"), lock_folder(folder / "runs/bb"):
        out = run(folder, capsys, monkeypatch, "--match", "b").out
    assert "running" in out and "1/3    test 50.00 %" in out and "1 of 2 done" in out and "harness run" not in out
    stopped = run(folder, capsys, monkeypatch, "--match", "b").out  # its process has gone
    assert "1/3    test 50.00 %" in stopped and stopped.count("harness run") == 2


@pytest.mark.slow
def test_the_status_of_a_run_has_its_accuracy_after_every_epoch(tmp_path):
    seen = []

    class Looks(ProgressReporter):
        def on_step(self, info):
            if info.epoch and info.batch == 1:
                seen.extend((read_json(one.path / "status.json"), one) for one in listed_runs(tmp_path))

    result = train(make_config({**SMALL, "epochs": 3, "val_fraction": 0.1, "output": str(tmp_path)}), Looks())
    last, shown = seen[-1]
    epoch = int(last["epoch"])  # that of the last checkpoint which has been written
    assert epoch and last["last"] == {"val/acc": result.history[epoch - 1]["val/acc"]}
    assert (shown.split, shown.accuracy, shown.state, shown.advice) == ("val", last["last"]["val/acc"], "running", "")


def test_a_range_test_is_listed_with_the_rate_that_it_found_and_no_epochs(folder, capsys, monkeypatch):
    (folder / "runs/a/summary.json").unlink()
    (folder / "runs/a/status.json").write_text('{"state": "finished", "step": 0}')
    (folder / "runs/a/lr_finder.json").write_text('{"lr_max": 0.24, "lr_min": 0.008}')
    (line,) = run(folder, capsys, monkeypatch, "--match", "a").out.splitlines()[1:]
    assert line.split()[-4:] == ["0.24", "-", "range", "test"]
    configuration = dict(facts.configuration(read_run(folder / "runs/a")))
    assert "Training" in configuration  # it has epochs
    (folder / "runs/a/lr_finder.json").write_text('{"lr_max": [], "lr_min": 0.008}')
    assert run(folder, capsys, monkeypatch, "--match", "a").out.splitlines()[1].endswith("-      range test")


def test_nothing_that_matches_and_a_state_that_does_not_exist_are_said(folder, capsys, monkeypatch):
    assert "no runs in runs that match" in run(folder, capsys, monkeypatch, "--match", "nothing").err
    shown = run(folder, capsys, monkeypatch, "--state", "done", code=2)
    assert "--state done: need one of running, finished" in shown.err


def test_settings_that_make_no_sense_hide_no_run(folder):
    (folder / "runs/a/config.yaml").write_text('model: [1, {x: 2}]\ndata: folder\ndata_dir: "a\\0b"\nlr_max: find\n')
    (folder / "runs/b/config.yaml").write_text("[" * 2000)
    assert sorted(one.name for one in listed_runs(folder / "runs")) == ["a", "b", "c"]
