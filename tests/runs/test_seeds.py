"""The same settings over several seeds: `harness run --seeds` and `harness.run_seeds`."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import special, stats

import harness
from harness import make_config, run_seeds
from harness.config.automatic import Choice
from harness.config.settings import Config
from harness.runs import seeds
from harness.runs.progress import ProgressReporter
from harness.runs.seeds import SeedRun, SeedsFailedError, SeedsResult, seeds_table
from harness.tracking.chosen_settings import write_choices
from harness.tracking.metric_names import interval_scale
from harness.tracking.run_dir import lock_folder, members
from harness.utils.errors import BusyError, DataError, UsageError
from harness.utils.files import read_json
from harness.utils.signals import Interrupted
from harness.utils.stats import mean_interval
from tests.support.commands import QUICK, command
from tests.support.reporters import Lines
from tests.support.shared import make_once
from tests.support.wandb_files import offline_runs

SMALL = {
    "recipe": "digits",
    "image_size": 16,
    "model_args": "width=4",
    "epochs": 1,
    "gallery": 0,
    "threads": 1,
    "precision": "fp32",
    "wandb": "disabled",
}


def settings(folder, **more):
    return make_config({**SMALL, "output": str(folder / "runs"), **more})


def result_of(path):
    """Return the result of a run, without its times."""
    return read_json(path / "summary.json")["result"]


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_mean_deviation_and_interval_are_those_of_numpy_and_scipy(values):
    interval = mean_interval(values)
    assert interval.n == len(values)
    assert interval.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert interval.sd == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert (interval.least, interval.most) == (min(values), max(values))
    error = stats.sem(values)
    if error > 1e-9 and len(values) > 2:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)
        assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_contains_the_true_mean_in_95_of_100_experiments():
    generator = np.random.default_rng(0)
    intervals = [mean_interval(row) for row in generator.normal(0.9, 0.01, (4000, 4))]
    assert np.mean([interval.low < 0.9 < interval.high for interval in intervals]) == pytest.approx(
        0.95, abs=3 * math.sqrt(0.95 * 0.05 / 4000)
    )


@given(st.lists(st.floats(0, 1), min_size=3, max_size=6), st.sampled_from(["log", "logit"]))
def test_an_interval_contains_the_mean_and_stays_in_the_range_of_its_scale(values, scale):
    interval = mean_interval(values, scale=scale)
    if interval.sd == 0:
        assert interval.low is None
        return
    assert 0 <= interval.low <= interval.mean <= interval.high
    assert scale == "log" or interval.high <= 1
    assert (interval.mean, interval.sd) == (mean_interval(values).mean, mean_interval(values).sd)


def test_an_interval_on_a_scale_is_students_there():
    values, losses = [0.97, 0.985, 0.99], [0.02, 0.1, 0.05]
    logits = special.logit(values)
    low, high = stats.t.interval(0.95, 2, np.mean(logits), stats.sem(logits))
    interval = mean_interval(values, scale="logit")
    assert (interval.low, interval.high) == pytest.approx((special.expit(low), special.expit(high)))
    assert mean_interval(values).high > 1 and interval.high < 1
    low, high = stats.t.interval(0.95, 2, np.mean(np.log(losses)), stats.sem(np.log(losses)))
    interval = mean_interval(losses, scale="log")
    assert (interval.low, interval.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert mean_interval(losses).low < 0 < interval.low
    # A value at the end counts as half-way to the nearest other one; where all are at an end, that says nothing more.
    assert mean_interval([1.0, 0.98, 0.96], scale="logit").high == mean_interval([0.99, 0.98, 0.96], scale="logit").high
    assert mean_interval([0.0, 1.0, 1.0], scale="logit").high == 1
    assert mean_interval([-1.0, 2.0], scale="log") == mean_interval([-1.0, 2.0])  # a loss that may be negative


def test_accuracies_and_losses_have_their_scale():
    assert [interval_scale(name) for name in ("test/acc", "val/acc_tta", "test/ece", "test/loss", "time/epoch_s")] == [
        "logit", "logit", "logit", "log", "linear",
    ]  # fmt: skip


def test_the_interval_of_an_accuracy_contains_it_in_95_of_100_experiments():
    generator = np.random.default_rng(1)
    values = special.expit(generator.normal(4.0, 0.5, (4000, 3)))  # about 98 %
    true = special.expit(4.0)
    intervals = [mean_interval(row, scale="logit") for row in values]
    share = np.mean([interval.low < true < interval.high for interval in intervals])
    assert share == pytest.approx(0.95, abs=0.012)


def test_one_value_has_no_interval_and_no_or_infinite_values_are_refused():
    assert (mean_interval([0.5]).mean, mean_interval([0.5]).sd, mean_interval([0.5]).low) == (0.5, None, None)
    for values in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite"):
            mean_interval(values)


@pytest.mark.parametrize("values", [[0.4, 0.6], [0.5, 0.5, 0.5], [1.0, 1.0, 1.0]])
@pytest.mark.parametrize("scale", ["linear", "log", "logit"])
def test_two_values_and_equal_ones_have_no_interval(values, scale):
    interval = mean_interval(values, scale=scale)
    assert (interval.low, interval.high) == (None, None)
    assert (interval.mean, interval.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def seeds_of(results):
    seeds = tuple(SeedRun(seed, "finished", result=result) for seed, result in enumerate(results))
    return SeedsResult(Path("seeds"), make_config({}, "digits"), seeds)


def test_the_figures_of_two_seeds_stand_in_columns_without_an_interval_and_those_of_three_have_one():
    results = [{"test/acc": 0.5 + share, "test/balanced_acc": 0.25, "val/loss": 1 - share} for share in (0, 0.1, 0.15)]
    two = seeds_table(seeds_of(results[:2])).splitlines()
    assert len({line.index(" mean ") for line in two if " mean " in line}) == 1
    assert two[-1] == "Two seeds have no 95 % interval that says anything; three or more have one."
    assert not any("95 % interval" in line for line in two[:-1]) and "from 50.00 % to 60.00 %" in two[2]
    three = {line.split()[0]: line for line in seeds_table(seeds_of(results)).splitlines()[3:]}
    assert "95 % interval" in three["test/acc"] and "95 % interval" in three["val/loss"]
    assert "95 % interval" not in three["test/balanced_acc"]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Seeds 4, 5 and 6 of the command, tracked offline: (the ended process, its output folder)."""
    words = ["run", *QUICK, *SHORT, "--seed", 4, "--seeds", 3]
    done, folder = make_once(tmp_path_factory, "three", lambda folder: command(*words, cwd=folder, check=0))
    return done, folder / "runs"


SHORT = ["--epochs", "1", "--gallery", "0", "--model-args", "width=4"]


def test_the_seeds_are_ordinary_runs_of_one_group_and_are_summarised_as_json_csv_text_and_page(three):
    done, output = three
    (path,) = output.glob("*/seeds.json")
    summary = read_json(path)
    assert [(seed["seed"], seed["state"]) for seed in summary["seeds"]] == [(seed, "finished") for seed in (4, 5, 6)]
    groups = set()
    for seed in summary["seeds"]:
        folder = output / seed["folder"]
        assert seed["result"] == result_of(folder)
        (offline_run,) = offline_runs(folder)
        groups.add(offline_run.group)
        assert (offline_run.config["seed"], offline_run.exit_code) == (seed["seed"], 0)
    assert groups == {summary["group"]} != {""}
    scores = [result_of(output / seed["folder"])["test/acc"] for seed in summary["seeds"]]
    assert len(set(scores)) > 1
    assert summary["figures"]["test/acc"]["mean"] == pytest.approx(np.mean(scores))
    with open(path.parent / "seeds.csv", newline="") as file:
        assert [float(row["test/acc"]) for row in csv.DictReader(file)] == scores
    with open(path.parent / "figures.csv", newline="") as file:
        rows = {row["figure"]: row for row in csv.DictReader(file)}
    assert float(rows["test/loss"]["sd"]) == pytest.approx(summary["figures"]["test/loss"]["sd"])
    assert f"mean {100 * np.mean(scores):.2f} % of 3 seeds" in done.stdout
    assert f"standard deviation {100 * np.std(scores, ddof=1):.2f} points" in done.stdout
    assert done.stderr.count("Upload all of them later with: harness sync") == 1
    page = (path.parent / "report.html").read_text(encoding="utf-8")
    assert all(seed["folder"] in page for seed in summary["seeds"])
    interval = summary["figures"]["test/acc"]
    assert f"{100 * interval['mean']:.2f} %" in page and "95 %" in page
    assert [path.name for path in members(path.parent)] == [seed["folder"] for seed in summary["seeds"]]
    command("report", path.parent, "-o", output.parent / "again.html", cwd=output.parent, check=0)
    assert "3 of 3 done" in command("runs", cwd=output.parent, check=0).stdout


@pytest.mark.slow
def test_each_seed_has_the_result_of_a_single_run_of_that_seed(three, tmp_path):
    _, output = three
    for seed in read_json(next(output.glob("*/seeds.json")))["seeds"][1:]:
        single = harness.run(settings(tmp_path, seed=seed["seed"]))
        assert result_of(single.folder) == seed["result"]


@pytest.mark.slow
def test_the_same_call_trains_nothing_again_and_more_seeds_train_only_the_new_ones(tmp_path):
    config = settings(tmp_path, name="trial")
    first = run_seeds(config, 2)
    modified = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("trial-s*/summary.json")}
    assert [seed.folder for seed in first.seeds] == ["trial-s0", "trial-s1"]
    assert run_seeds(config, 2).seeds == first.seeds
    assert run_seeds(config, 3).seeds[:2] == first.seeds
    assert {path: path.stat().st_mtime_ns for path in modified} == modified
    others = {path.name for path in (tmp_path / "runs").glob("trial-s*")}
    assert others == {"trial-s0", "trial-s1", "trial-s2", "trial-seeds-0-1", "trial-seeds-0-2"}
    # Runs with other metrics are other runs; nothing is overwritten.
    assert {seed.folder for seed in run_seeds(settings(tmp_path, name="trial", tta=True), 1).seeds} == {"trial-s0-2"}


def test_a_seed_that_diverges_is_reported_and_the_others_train(tmp_path):
    result = run_seeds(settings(tmp_path, lr_max=1e5, lr_min=1e4, label_smoothing=0.1), 2)
    assert [seed.state for seed in result.seeds] == ["failed", "failed"]
    with pytest.raises(SeedsFailedError, match="2 of 2 seeds failed; seed 0: training diverged") as caught:
        result.check()
    assert caught.value.exit_code == 5
    assert result.figures == {}
    assert all((tmp_path / "runs" / seed.folder).is_dir() and seed.folder for seed in result.seeds)
    assert "diverged" in seeds_table(result)


@pytest.mark.slow
def test_with_one_failed_seed_of_three_the_metrics_are_those_of_two(tmp_path):
    config = settings(tmp_path, name="one")
    busy = tmp_path / "runs" / "one-s1"
    busy.mkdir(parents=True)
    lock = lock_folder(busy)  # another process trains this seed
    result = run_seeds(config, 3)
    lock.close()
    assert [seed.state for seed in result.seeds] == ["finished", "failed", "finished"]
    scores = [result_of(tmp_path / "runs" / f"one-s{seed}")["test/acc"] for seed in (0, 2)]
    assert result.figures["test/acc"].mean == pytest.approx(np.mean(scores))
    assert "1 failed seed is left out of these figures" in seeds_table(result)
    assert run_seeds(config, 3).seeds[1].state == "finished"  # the same call tries it again


@pytest.mark.parametrize(
    ("variables", "more", "count", "message"),
    [
        ({"WANDB_SWEEP_ID": "s"}, {}, 2, "parameter of the sweep"),
        ({"WANDB_RUN_ID": "r"}, {}, 2, "unset it"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, {}, 2, "one of several"),
        ({}, {"resume": "runs/that"}, 2, "leave it out"),
        ({}, {"seed": 2**63 - 2}, 3, "lower one"),
        ({}, {}, 0, "at least 1"),
    ],
)
def test_settings_that_exclude_several_seeds_are_refused_before_anything_is_written(
    tmp_path, monkeypatch, variables, more, count, message
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        run_seeds(settings(tmp_path, **more), count)
    assert not (tmp_path / "runs").exists()


def test_two_processes_do_not_train_the_same_seeds(tmp_path):
    config = settings(tmp_path, name="both")
    folder = tmp_path / "runs" / "both-seeds-0-1"
    folder.mkdir(parents=True)
    lock = lock_folder(folder)
    with pytest.raises(BusyError, match="another process"):
        run_seeds(config, 2)
    lock.close()


@pytest.mark.slow
def test_ctrl_c_between_the_seeds_stops_all_of_them_and_names_the_command_that_resumes(tmp_path, monkeypatch):
    config = settings(tmp_path, name="stopped")

    class Reporter(ProgressReporter):
        def message(self, text):
            if text.startswith("Seed 1"):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="1 of 2 seeds are finished; resume with: harness run --recipe") as caught:
        run_seeds(config, 2, Reporter())
    assert caught.value.exit_code == 130
    summary = read_json(tmp_path / "runs/stopped-seeds-0-1/seeds.json")
    assert [seed["state"] for seed in summary["seeds"]] == ["finished", "interrupted"]
    resumed = run_seeds(make_config({"recipe": str(tmp_path / "runs/stopped-seeds-0-1/recipe.yaml")}), 2)
    assert [seed.folder for seed in resumed.seeds] == ["stopped-s0", "stopped-s1"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill@evaluation=4", "kill@phase=6", "term@evaluation=4"])
def test_a_command_stopped_in_the_second_seed_resumes_with_the_same_results(tmp_path, fault):
    arguments = ["run", *QUICK, "--model-args", "width=4", "--epochs", "2", "--gallery", "0", "--seeds", "2"]
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    uninterrupted.mkdir()
    interrupted.mkdir()
    command(*arguments, cwd=uninterrupted, check=0)
    environment = os.environ | {
        "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
        "HARNESS_TESTING": "1",
        "HARNESS_FAULT": fault,
    }
    stopped = subprocess.run(
        [sys.executable, "-m", "harness", *arguments], cwd=interrupted, env=environment, capture_output=True, text=True
    )
    assert stopped.returncode == {"kill": -signal.SIGKILL, "term": 143}[fault[:4]], stopped.stderr
    summary = read_json(next(interrupted.glob("runs/*/seeds.json")))
    first = interrupted / "runs" / summary["seeds"][0]["folder"] / "summary.json"
    modified = first.stat().st_mtime_ns
    assert summary["seeds"][0]["state"] == "finished" != summary["seeds"][1]["state"]
    assert next(iter(summary["seeds"][0]["result"]))
    resumed = command(*arguments, cwd=interrupted, check=0)
    assert "already finished" in resumed.stderr
    assert first.stat().st_mtime_ns == modified
    seeds, expected = (
        json.loads(next(folder.glob("runs/*/seeds.json")).read_text())["seeds"]
        for folder in (interrupted, uninterrupted)
    )
    assert seeds == expected
    assert len(list(interrupted.glob("runs/digits-*-s?-*"))) == 2


def test_a_summary_of_seeds_refers_only_to_folders_beside_it(tmp_path):
    folder = tmp_path / "runs/x"
    folder.mkdir(parents=True)
    names = ["../../etc", "/etc", "a b", "", 3, None, "good-s1"]
    (folder / "seeds.json").write_text(json.dumps({"seeds": [{"folder": name} for name in names] + ["odd"]}))
    assert members(folder) == [tmp_path / "runs/good-s1"]
    (folder / "seeds.json").write_text(json.dumps({"seeds": "odd"}))
    assert members(folder) == [folder]


class Pictures:
    """A data set as an object: 30 grey images of 8 x 8 pixels in 3 classes, with noise of its own."""

    def __init__(self, seed):
        self.pixels = np.random.default_rng(seed).integers(0, 255, (30, 8, 8, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return Image.fromarray(self.pixels[index]), index % 3


def folders_of(result):
    return [seed.folder for seed in result.finished]


@pytest.mark.slow
def test_seeds_of_other_data_of_the_same_class_are_trained_anew(tmp_path):
    config = settings(tmp_path, batch_size=8, report=False)
    results = [run_seeds(config, 1, Lines(), data=Pictures(seed)) for seed in (0, 1)]
    lines = Lines()
    again = [run_seeds(config, 1, lines, data=Pictures(seed)) for seed in (0, 1)]
    assert sum("already finished" in line for line in lines.lines) == 2
    assert [folders_of(one) for one in again] == [folders_of(one) for one in results]
    assert [one.folder for one in again] == [one.folder for one in results]
    assert folders_of(results[0]) != folders_of(results[1]) and results[0].folder != results[1].folder


@pytest.mark.slow
def test_seeds_of_the_same_table_with_other_images_are_trained_anew(tmp_path):
    rows = [f"{index}.png,{'abc'[index % 3]}" for index in range(30)]
    (tmp_path / "x.csv").write_text("\n".join(["path,label", *rows]))
    for seed, root in enumerate("AB"):
        (tmp_path / root).mkdir()
        for index, (picture, _) in enumerate(map(Pictures(seed).__getitem__, range(30))):
            picture.save(tmp_path / root / f"{index}.png")
    table = {"data": "table", "data_dir": str(tmp_path / "x.csv"), "batch_size": 8, "report": False}
    results = [run_seeds(settings(tmp_path, **table, image_root=str(tmp_path / root)), 1, Lines()) for root in "AAB"]
    assert folders_of(results[0]) == folders_of(results[1]) != folders_of(results[2])


def test_the_number_of_failed_seeds_is_said():
    finished = [SeedRun(seed, "finished", result={"test/acc": 0.5}) for seed in range(2)]
    for failed, text in (
        (1, "1 failed seed is left out of these figures"),
        (2, "2 failed seeds are left out of these figures"),
    ):
        seeds = (*finished, *(SeedRun(9 + seed, "failed", reason="diverged") for seed in range(failed)))
        assert text in seeds_table(SeedsResult(Path("seeds"), make_config({}, "digits"), seeds))
    assert "left out" not in seeds_table(SeedsResult(Path("seeds"), make_config({}, "digits"), tuple(finished)))


def test_a_result_that_was_changed_since_its_run_ended_is_no_seed_of_a_summary(three, tmp_path):
    _, output = three
    (folder, *_) = sorted(path for path in output.iterdir() if (path / "summary.json").exists())
    shutil.copytree(folder, tmp_path / "r", symlinks=True)
    assert seeds._finished_seed(4, tmp_path / "r").result == result_of(folder)
    (tmp_path / "r/summary.json").write_text('{"result": {"test/acc": 1.0}}')
    with pytest.raises(
        DataError, match=r"summary\.json has changed since the run ended; restore it, or train again with"
    ):
        seeds._finished_seed(4, tmp_path / "r")


def test_seeds_with_different_choices_are_named_with_the_values_of_each(tmp_path):
    for seed, (batch, epochs) in enumerate(((8, 3), (16, 3), (8, 3))):
        (tmp_path / f"r{seed}").mkdir()
        write_choices(
            tmp_path / f"r{seed}", {"batch_size": Choice(batch, "few images"), "epochs": Choice(epochs, "few")}
        )
    runs = tuple(SeedRun(seed, "finished", f"r{seed}") for seed in range(3))
    result = SeedsResult(tmp_path / "all", make_config({}, "digits"), runs)
    assert seeds._differing_choices(result) == (
        "the seeds have different settings, so their mean is that of no one setting: "
        "batch_size (8 in seed 0, 16 in seed 1); give these settings and train again"
    )
    assert seeds._differing_choices(SeedsResult(tmp_path / "all", result.config, runs[::2])) == ""


def test_the_result_as_plain_values_has_each_seed_each_metric_and_the_command_that_resumes(tmp_path):
    seeds = tuple(SeedRun(n, "finished", tmp_path, {"test/acc": acc}) for n, acc in enumerate((0.5, 0.7)))
    unfinished = SeedRun(2, "interrupted", tmp_path, {})
    values = SeedsResult(tmp_path, Config(group="g"), (*seeds, unfinished)).to_json()
    assert [seed["state"] for seed in values["seeds"]] == ["finished", "finished", "interrupted"]
    assert values["figures"]["test/acc"]["mean"] == pytest.approx(0.6)
    assert (values["group"], values["confidence"], values["config"]["group"]) == ("g", 0.95, "g")
    assert "--seeds 3" in values["resume"] and SeedsResult(tmp_path, Config(), seeds).to_json()["resume"] == ""
