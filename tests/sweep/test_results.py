"""What a sweep writes of its trials, where a trial's last value is not its best and its best not the highest."""

import csv
import dataclasses
import json
import statistics

import pytest

from harness.config import yaml_io
from harness.config.names import TrialStatus
from harness.config.settings import Config
from harness.runs.seeds import SeedRun, SeedsResult
from harness.sweep import results
from harness.sweep.metric import read_metrics
from harness.sweep.results import TrialTimes
from harness.sweep.selection import TrialRecord
from tests.sweep.test_study import sweep

HISTORIES = {
    0: [0.9, 0.4, 0.6],
    1: [0.5, 0.45, 0.8],
    2: [],
}  # lowest 0.4 and 0.45, highest 0.9 and 0.8, last 0.6 and 0.8


def records():
    return [
        TrialRecord(
            number, f"trial-{number:04d}", TrialStatus.COMPLETE if history else TrialStatus.FAILED,
            {"lr_max": 0.1 * (number + 1), "lr_min": 0.001}, history, "" if history else "no data",
        )
        for number, history in HISTORIES.items()
    ]  # fmt: skip


def searched(goal):
    return sweep(metric={"name": "val/loss" if goal == "minimize" else "val/acc", "goal": goal})


@pytest.mark.parametrize(("goal", "best"), [("minimize", ["0.4", "0.45", ""]), ("maximize", ["0.9", "0.8", ""])])
def test_the_table_of_trials_has_the_best_value_of_each_by_the_goal(tmp_path, goal, best):
    spec = searched(goal)
    times = {"trial-0000": TrialTimes(12.0, 9.0, 3)}
    results.write_trials(tmp_path / "trials.csv", spec, records(), times, "runs")
    with open(tmp_path / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row[spec.metric.name] for row in rows] == best
    assert [row["values"] for row in rows] == ["3", "3", "0"]
    assert [row["lr_max"] for row in rows] == ["0.1", "0.2", "0.3"]
    assert [(row["seconds"], row["training_s"]) for row in rows] == [("12.0", "9.0"), ("", ""), ("", "")]
    assert [(row["state"], row["reason"], row["folder"]) for row in rows] == [
        ("complete", "", "runs/trial-0000"), ("complete", "", "runs/trial-0001"), ("failed", "no data", "runs/trial-0002")
    ]  # fmt: skip


@pytest.mark.parametrize(("goal", "value"), [("minimize", 0.4), ("maximize", 0.9)])
def test_the_summary_and_the_recipe_name_the_best_value_and_not_the_last_one(tmp_path, goal, value):
    spec, best = searched(goal), records()[0]
    results.write_summary(tmp_path / "sweep.json", spec, records(), best, {"lr_max": 1.0}, {})
    summary = json.loads((tmp_path / "sweep.json").read_text())
    assert summary["best"]["value"] == value and summary["best"]["trial"] == "trial-0000"
    assert summary["metric"] == {"name": spec.metric.name, "goal": goal}
    assert summary["trials"] == {"running": 0, "complete": 2, "pruned": 0, "failed": 1}
    recipe = results.best_recipe(spec, best, "mine", 3, spec.config(best.values))
    assert f"{spec.metric.name} {value:g} (trial-0000)" in recipe.splitlines()[0]
    assert yaml_io.parse_yaml(recipe)["lr_max"] == 0.1


def test_the_time_of_a_sweep_is_that_of_all_trials_and_what_of_it_was_not_training():
    times = {"a": TrialTimes(10.0, 6.0, 2), "b": TrialTimes(20.0, 18.0, 2), "c": TrialTimes(3.0, 0.0, 0)}
    assert results.time_summary(times) == {
        "seconds": 30.0, "training_s": 24.0, "fraction_not_training": 0.2, "median_overhead_s": 3.0
    }  # fmt: skip
    assert results.time_summary({"c": times["c"]}) == {}


def test_the_times_of_earlier_commands_stay_and_those_of_a_trial_run_again_are_replaced(tmp_path):
    results.update_times(tmp_path, {"a": TrialTimes(1.0, 0.5, 1), "b": TrialTimes(2.0, 1.0, 1)})
    together = results.update_times(tmp_path, {"b": TrialTimes(4.0, 3.0, 2)})
    assert together == {"a": TrialTimes(1.0, 0.5, 1), "b": TrialTimes(4.0, 3.0, 2)}
    assert results.update_times(tmp_path, {}) == together


def test_the_description_of_a_sweep_and_the_final_runs_of_its_best_are_in_its_summary(tmp_path):
    spec = sweep(description="narrow and wide")
    results.write_summary(tmp_path / "sweep.json", spec, records(), None, {}, {})
    assert json.loads((tmp_path / "sweep.json").read_text())["description"] == "narrow and wide"
    accuracies = [0.5, 0.75, 0.7]
    runs = tuple(SeedRun(n, "finished", tmp_path, {"test/acc": each}) for n, each in enumerate(accuracies))
    result = SeedsResult(tmp_path, Config(), runs)
    summary = results.final_summary("trial-0001", result)
    assert [each["test/acc"] for each in summary["seeds"]] == accuracies and summary["trial"] == "trial-0001"
    figures = [summary[f"test/acc_{name}"] for name in ("mean", "sd", "min", "max")]
    assert figures == pytest.approx([statistics.mean(accuracies), statistics.stdev(accuracies), 0.5, 0.75])
    low, high = summary["test/acc_interval"]
    assert low < figures[0] < high
    one = results.final_summary("trial-0001", SeedsResult(tmp_path, Config(), runs[:1]))
    assert one["test/acc_sd"] == 0 and "test/acc_interval" not in one


def test_the_summary_of_several_metrics_names_the_goal_of_each():
    goals = [{"name": "best/val_acc", "goal": "maximize"}, {"name": "time/train_s", "goal": "minimize"}]
    metrics = read_metrics({"metrics": goals}, "custom")
    assert results._front_summary(dataclasses.replace(sweep(), metrics=metrics), [])["metrics"] == goals
