"""The same settings over several seeds: `harness run --seeds` and `harness.run_seeds`."""

import csv
import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import harness
from harness import make_config, run_seeds
from harness.runs.seeds import SeedsFailedError, seeds_table
from harness.tracking.run_dir import lock_folder, members
from harness.utils.errors import BusyError, UsageError
from harness.utils.files import read_json
from harness.utils.signals import Interrupted
from harness.utils.stats import mean_interval
from tests.support.commands import QUICK, command
from tests.support.wandb_files import offline_runs

SMALL = {
    "recipe": "digits",
    "model_args": "width=4",
    "epochs": 1,
    "gallery": 0,
    "threads": 1,
    "precision": "fp32",
    "wandb": "disabled",
}


def settings(folder, **more):
    return make_config({**SMALL, "output": str(folder / "runs"), **more})


def figures(path):
    """What a run came to, without its times."""
    return read_json(path / "summary.json")["result"]


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_mean_deviation_and_interval_are_those_of_numpy_and_scipy(values):
    found = mean_interval(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.sd == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert (found.least, found.most) == (min(values), max(values))
    error = stats.sem(values)
    if error > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_holds_the_true_mean_in_95_of_100_experiments():
    generator = np.random.default_rng(0)
    held = [
        found.low < 0.9 < found.high for found in (mean_interval(row) for row in generator.normal(0.9, 0.01, (4000, 4)))
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 4000))


def test_one_value_has_no_interval_and_none_or_infinite_ones_no_spread():
    assert (mean_interval([0.5]).mean, mean_interval([0.5]).sd, mean_interval([0.5]).low) == (0.5, None, None)
    for wrong in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite"):
            mean_interval(wrong)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Seeds 4, 5 and 6 by the command, tracked offline; (what it printed, its output folder)."""
    folder = tmp_path_factory.mktemp("three")
    done = command("run", *QUICK, *SHORT, "--seed", 4, "--seeds", 3, cwd=folder, check=0)
    return done, folder / "runs"


SHORT = ["--epochs", "1", "--gallery", "0", "--model-args", "width=4"]


def test_the_seeds_are_ordinary_runs_of_one_group_and_their_summary_is_in_every_form(three):
    done, output = three
    (summary,) = output.glob("*/seeds.json")
    told = read_json(summary)
    assert [(seed["seed"], seed["state"]) for seed in told["seeds"]] == [(seed, "finished") for seed in (4, 5, 6)]
    groups = set()
    for seed in told["seeds"]:
        folder = output / seed["folder"]
        assert seed["result"] == figures(folder)
        (offline_run,) = offline_runs(folder)
        groups.add(offline_run.group)
        assert (offline_run.config["seed"], offline_run.exit_code) == (seed["seed"], 0)
    assert groups == {told["group"]} != {""}
    scores = [figures(output / seed["folder"])["test/acc"] for seed in told["seeds"]]
    assert len(set(scores)) > 1
    assert told["figures"]["test/acc"]["mean"] == pytest.approx(np.mean(scores))
    with open(summary.parent / "seeds.csv", newline="") as file:
        assert [float(row["test/acc"]) for row in csv.DictReader(file)] == scores
    with open(summary.parent / "figures.csv", newline="") as file:
        rows = {row["figure"]: row for row in csv.DictReader(file)}
    assert float(rows["test/loss"]["sd"]) == pytest.approx(told["figures"]["test/loss"]["sd"])
    assert f"mean {100 * np.mean(scores):.2f} % of 3 seeds" in done.stdout
    assert f"standard deviation {100 * np.std(scores, ddof=1):.2f} points" in done.stdout
    assert done.stderr.count("Upload all of them later with: harness sync") == 1
    page = (summary.parent / "report.html").read_text(encoding="utf-8")
    assert (all(seed["folder"] in page for seed in told["seeds"]) and "Student" in page) or "95 %" in page
    assert [path.name for path in members(summary.parent)] == [seed["folder"] for seed in told["seeds"]]
    command("report", summary.parent, "-o", output.parent / "again.html", cwd=output.parent, check=0)
    assert "3 of 3 done" in command("runs", cwd=output.parent, check=0).stdout


def test_each_seed_has_the_figures_of_a_single_run_of_that_seed(three, tmp_path):
    _, output = three
    for seed in read_json(next(output.glob("*/seeds.json")))["seeds"][1:]:
        alone = harness.run(settings(tmp_path, seed=seed["seed"]))
        assert figures(alone.folder) == seed["result"]


def test_the_same_again_trains_nothing_and_more_seeds_train_only_the_new_ones(tmp_path):
    config = settings(tmp_path, name="trial")
    first = run_seeds(config, 2)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("trial-s*/summary.json")}
    assert [seed.folder for seed in first.seeds] == ["trial-s0", "trial-s1"]
    assert run_seeds(config, 2).seeds == first.seeds
    assert run_seeds(config, 3).seeds[:2] == first.seeds
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    others = {path.name for path in (tmp_path / "runs").glob("trial-s*")}
    assert others == {"trial-s0", "trial-s1", "trial-s2", "trial-seeds-0-1", "trial-seeds-0-2"}
    # Other figures of the same runs are other runs; nothing is written over.
    assert {seed.folder for seed in run_seeds(settings(tmp_path, name="trial", tta=True), 1).seeds} == {"trial-s0-2"}


def test_a_seed_that_diverges_is_said_and_the_others_train(tmp_path):
    told = run_seeds(settings(tmp_path, lr_max=1e5, lr_min=1e4, label_smoothing=0.1), 2)
    assert [seed.state for seed in told.seeds] == ["failed", "failed"]
    with pytest.raises(SeedsFailedError, match="2 of 2 seeds failed; seed 0: training diverged") as caught:
        told.check()
    assert caught.value.exit_code == 5
    assert told.figures == {}
    assert all((tmp_path / "runs" / seed.folder).is_dir() and seed.folder for seed in told.seeds)
    assert "diverged" in seeds_table(told)


@pytest.mark.slow
def test_one_seed_that_fails_of_three_leaves_the_figures_of_two(tmp_path):
    config = settings(tmp_path, name="one")
    busy = tmp_path / "runs" / "one-s1"
    busy.mkdir(parents=True)
    held = lock_folder(busy)  # another process is at this seed
    told = run_seeds(config, 3)
    held.close()
    assert [seed.state for seed in told.seeds] == ["finished", "failed", "finished"]
    scores = [figures(tmp_path / "runs" / f"one-s{seed}")["test/acc"] for seed in (0, 2)]
    assert told.figures["test/acc"].mean == pytest.approx(np.mean(scores))
    assert "without the 1 that failed" in seeds_table(told)
    assert run_seeds(config, 3).seeds[1].state == "finished"  # the same again mends it


@pytest.mark.parametrize(
    ("variables", "more", "count", "words"),
    [
        ({"WANDB_SWEEP_ID": "s"}, {}, 2, "parameter of the sweep"),
        ({"WANDB_RUN_ID": "r"}, {}, 2, "unset it"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, {}, 2, "one of several"),
        ({}, {"resume": "runs/that"}, 2, "leave it out"),
        ({}, {"seed": 2**63 - 2}, 3, "lower one"),
        ({}, {}, 0, "at least 1"),
    ],
)
def test_what_seeds_can_not_go_with_is_refused_before_anything_is_made(
    tmp_path, monkeypatch, variables, more, count, words
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=words):
        run_seeds(settings(tmp_path, **more), count)
    assert not (tmp_path / "runs").exists()


def test_two_processes_do_not_train_the_same_seeds(tmp_path):
    config = settings(tmp_path, name="both")
    folder = tmp_path / "runs" / "both-seeds-0-1"
    folder.mkdir(parents=True)
    held = lock_folder(folder)
    with pytest.raises(BusyError, match="another process"):
        run_seeds(config, 2)
    held.close()


@pytest.mark.slow
def test_ctrl_c_between_the_seeds_stops_all_of_them_and_says_how_to_go_on(tmp_path, monkeypatch):
    config = settings(tmp_path, name="stopped")

    class Display:
        def tick(self, tick): ...

        def record(self, record, epochs): ...

        def say(self, text):
            if text.startswith("seed 1"):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="1 of 2 seeds are finished; resume with: harness run --recipe") as caught:
        run_seeds(config, 2, Display())
    assert caught.value.exit_code == 130
    told = read_json(tmp_path / "runs/stopped-seeds-0-1/seeds.json")
    assert [seed["state"] for seed in told["seeds"]] == ["finished", "interrupted"]
    again = run_seeds(make_config({"recipe": str(tmp_path / "runs/stopped-seeds-0-1/recipe.yaml")}), 2)
    assert [seed.folder for seed in again.seeds] == ["stopped-s0", "stopped-s1"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill@evaluation=4", "kill@phase=6", "term@evaluation=4"])
def test_a_command_that_was_stopped_in_the_second_seed_goes_on_to_the_same_numbers(tmp_path, fault):
    words = ["run", *QUICK, "--model-args", "width=4", "--epochs", "2", "--gallery", "0", "--seeds", "2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    command(*words, cwd=whole, check=0)
    environment = os.environ | {
        "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
        "HARNESS_TESTING": "1",
        "HARNESS_FAULT": fault,
    }
    stopped = subprocess.run(
        [sys.executable, "-m", "harness", *words], cwd=broken, env=environment, capture_output=True, text=True
    )
    assert stopped.returncode == {"kill": -signal.SIGKILL, "term": 143}[fault[:4]], stopped.stderr
    told = read_json(next(broken.glob("runs/*/seeds.json")))
    first = broken / "runs" / told["seeds"][0]["folder"] / "summary.json"
    stamp = first.stat().st_mtime_ns
    assert told["seeds"][0]["state"] == "finished" != told["seeds"][1]["state"]
    assert next(iter(told["seeds"][0]["result"]))
    again = command(*words, cwd=broken, check=0)
    assert "finished before" in again.stderr
    assert first.stat().st_mtime_ns == stamp
    one, other = (json.loads(next(folder.glob("runs/*/seeds.json")).read_text())["seeds"] for folder in (whole, broken))
    assert one == other
    assert len(list(broken.glob("runs/digits-*-s?-*"))) == 2


def test_a_summary_of_seeds_leads_to_no_folder_but_its_neighbours(tmp_path):
    folder = tmp_path / "runs/x"
    folder.mkdir(parents=True)
    names = ["../../etc", "/etc", "a b", "", 3, None, "good-s1"]
    (folder / "seeds.json").write_text(json.dumps({"seeds": [{"folder": name} for name in names] + ["odd"]}))
    assert members(folder) == [tmp_path / "runs/good-s1"]
    (folder / "seeds.json").write_text(json.dumps({"seeds": "odd"}))
    assert members(folder) == [folder]
