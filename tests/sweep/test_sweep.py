"""`harness sweep` as a user runs it: real processes on digits."""

import json
import os
import signal
import sqlite3
import sys
import time

import pytest

from harness.config import yaml_io
from harness.tracking.journal import read_journal
from harness.tracking.run_dir import read_state
from tests.support.commands import begun
from tests.support.commands import command as harness
from tests.support.sweeps import read_trials, sweep_folder, write_sweep
from tests.support.waiting import wait_until
from tests.support.wandb_files import offline_runs

pytestmark = pytest.mark.timeout(400)


@pytest.mark.slow
def test_a_sweep_writes_all_its_results(tmp_path):
    write_sweep(tmp_path)
    done = harness("sweep", "sweep.yaml", "--count", 3, "--final", 2, cwd=tmp_path, check=0)
    folder = sweep_folder(tmp_path)
    rows = read_trials(folder)
    assert [row["state"] for row in rows] == ["complete"] * 3
    for row in rows:
        run = folder / row["folder"]
        config = yaml_io.read_yaml(run / "config.yaml")
        assert f"{config['lr_max']:.8g}" == row["lr_max"]
        assert (config["test"], config["model_args"], config["wandb"]) == (False, {"width": 4}, "offline")
        values = [record.values for record in read_journal(run).records if record.kind == "epoch"]
        assert f"{values[-1]['best/val_acc']:.6g}" == row["best/val_acc"]
        assert not any(
            key.startswith(("test/", "result/test")) for record in read_journal(run).records for key in record.values
        )
        (offline_run,) = offline_runs(run)  # an offline W&B run, ready to sync, in one group
        assert (offline_run.group, offline_run.exit_code, offline_run.job_type) == (folder.name, 0, "trial")
        assert offline_run.config["lr_max"] == config["lr_max"]
        assert [one["type"] for one in offline_run.artifacts if one["type"] in ("dataset", "model")] == ["dataset"]
    summary = json.loads((folder / "sweep.json").read_text())
    best = max(rows, key=lambda row: float(row["best/val_acc"]))
    assert summary["best"]["trial"] == best["trial"]
    assert {path.name for path in (folder / "figures").iterdir()} == {"history.png", "scatter.png", "parallel.png"}
    assert f"standard deviation {100 * summary['final']['test/acc_sd']:.2f} points" in done.stdout
    assert "Upload later with" in done.stderr and "Upload later with" not in done.stdout
    scores = [
        json.loads((path / "summary.json").read_text())["result"]["test/acc"]
        for path in sorted(folder.glob("runs/final-*-s?"))
    ]
    assert summary["final"]["test/acc_mean"] == pytest.approx(sum(scores) / 2)
    # The file leaves galleries and page out of the trials; the final runs have them, also in W&B.
    final_run = next(folder.glob("runs/final-*-s0"))
    assert (final_run / "figures/gradcam.png").is_file() and (final_run / "report.html").is_file()
    (offline_run,) = offline_runs(final_run)
    assert offline_run.job_type == "final"
    assert any("gallery/gradcam" in key for row in offline_run.rows for key in row)

    # best.yaml trains the best again: with the seed of the first final run, bit-identical.
    harness(
        "run",
        "--recipe",
        folder / "best.yaml",
        "--name",
        "again",
        "--wandb",
        "disabled",
        "--gallery",
        0,
        cwd=tmp_path,
        check=0,
    )
    weights = [
        next(path.glob("checkpoints/model.safetensors")).read_bytes()
        for path in (tmp_path / "runs/again", next(folder.glob("runs/final-*-s0")))
    ]
    assert weights[0] == weights[1]

    # The same command with a larger count continues the search.
    harness("sweep", "sweep.yaml", "--count", 4, cwd=tmp_path, check=0)
    assert [row["lr_max"] for row in read_trials(folder)][:3] == [row["lr_max"] for row in rows]
    assert len(read_trials(folder)) == 4
    listed = harness("runs", cwd=tmp_path, check=0).stdout
    assert f"{folder.name}" in listed and "4 complete" in listed


@pytest.mark.slow
def test_a_trial_that_did_not_have_the_sweeps_parameters_is_a_failed_one(tmp_path):
    # A wrapper that drops an option, as a script of the user's may.
    wrapper = tmp_path / "python3"
    drop = 'for word; do shift; [ "$word" = --nesterov=False ] || set -- "$@" "$word"; done'
    wrapper.write_text(f'#!/bin/sh\n{drop}\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    line = ["${env}", str(wrapper), "-m", "harness", "run", "${args}"]
    write_sweep(tmp_path, parameters={"nesterov": {"value": False}, "epochs": {"value": 1}}, command=line)
    done = harness("sweep", "sweep.yaml", "--count", 1, cwd=tmp_path)
    assert done.returncode == 1
    (row,) = read_trials(sweep_folder(tmp_path))
    assert row["state"] == "failed"
    assert row["reason"] == "the run did not have the sweep's parameters: nesterov=True instead of False"


@pytest.mark.slow
def test_false_values_are_not_lost_with_flags_for_booleans(tmp_path):
    line = ["${env}", "${interpreter}", "-m", "harness", "run", "${args_no_boolean_flags}"]
    parameters = {"flip": {"value": False}, "nesterov": {"values": [False]}, "drop_last": {"value": True}}
    write_sweep(tmp_path, parameters={**parameters, "epochs": {"value": 1}}, command=line)
    harness("sweep", "sweep.yaml", "--count", 1, cwd=tmp_path, check=0)
    (row,) = read_trials(sweep_folder(tmp_path))
    config = yaml_io.read_yaml(sweep_folder(tmp_path) / row["folder"] / "config.yaml")
    assert (config["flip"], config["nesterov"], config["drop_last"], row["state"]) == (False, False, True, "complete")


COMMANDS = {
    "a wrapper script with a setting of its own": ["./train.sh", "${args}"],
    "a variable, a wrapper and a setting": ["${env}", "OMP_NUM_THREADS=1", "nice", "${interpreter}", "-m", "harness", "run", "${args}", "--cutout", 3],
    "a file of parameters": ["${env}", "${interpreter}", "-m", "harness", "run", "--cutout=3", "${args_json_file}"],
    "words without hyphens": ["${interpreter}", "-m", "harness", "run", "${args_no_hyphens}", "cutout=3"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS)
def test_a_trial_has_the_parameters_and_the_fixed_settings_whatever_form_the_command_has(tmp_path, line):
    script = tmp_path / "train.sh"
    script.write_text(f'#!/bin/sh\n# exec harness run "$@"\nexec {sys.executable} -m harness run --cutout 3 "$@"\n')
    script.chmod(0o755)
    group = {"parameters": {"weight_decay": {"value": 0.001}, "flip": {"values": [False]}}}
    write_sweep(tmp_path, parameters={"epochs": {"value": 1}, "optim": group}, command=line)
    harness("sweep", "sweep.yaml", "--count", 1, cwd=tmp_path, check=0)
    (row,) = read_trials(sweep_folder(tmp_path))
    config = yaml_io.read_yaml(sweep_folder(tmp_path) / row["folder"] / "config.yaml")
    assert (config["cutout"], config["weight_decay"], config["flip"], row["state"]) == (3, 0.001, False, "complete")
    assert f"{config['lr_max']:.8g}" == row["lr_max"]
    best = yaml_io.read_yaml(sweep_folder(tmp_path) / "best.yaml")
    assert (best["cutout"], best["weight_decay"], best["lr_max"]) == (3, 0.001, config["lr_max"])


@pytest.mark.slow
def test_a_sweep_for_accuracy_and_time_writes_a_recipe_of_each_trial_on_the_front(tmp_path):
    metrics = [{"name": "best/val_acc", "goal": "maximize"}, {"name": "time/train_s", "goal": "minimize"}]
    write_sweep(tmp_path, method="custom", scheduler={"engine": "optuna"}, metrics=metrics, metric=None,
                parameters={"model_args": {"parameters": {"width": {"values": [4, 16]}}}})  # fmt: skip
    done = harness("sweep", "sweep.yaml", "--count", 4, "--sampler", "nsga2", cwd=tmp_path, check=0)
    folder = sweep_folder(tmp_path)
    rows, summary = read_trials(folder), json.loads((folder / "sweep.json").read_text())
    for row in rows:
        records = [each.values for each in read_journal(folder / row["folder"]).records if each.kind == "epoch"]
        assert float(row["best/val_acc"]) == pytest.approx(records[-1]["best/val_acc"], rel=1e-5)
        assert float(row["time/train_s"]) == pytest.approx(records[-1]["time/train_s"], rel=1e-5)
    front = {each["trial"] for each in summary["pareto"]}
    points = {row["trial"]: (-float(row["best/val_acc"]), float(row["time/train_s"])) for row in rows}
    worse = {
        name
        for name, (a, b) in points.items()
        if any(c <= a and d <= b and (c, d) != (a, b) for c, d in points.values())
    }
    assert front == set(points) - worse
    assert {path.stem for path in (folder / "pareto").iterdir()} == front
    assert (folder / "figures/pareto.png").exists() and "Pareto" in done.stdout
    assert summary["best"]["trial"] == min(points, key=lambda name: points[name])
    (folder / "pareto/99.yaml").write_text("of a trial that has left the front")
    harness("sweep", "sweep.yaml", "--count", 4, "--sampler", "nsga2", cwd=tmp_path, check=0)
    assert {path.stem for path in (folder / "pareto").iterdir()} == front


@pytest.mark.slow
def test_a_grid_over_seeds_names_the_configuration_with_the_best_mean(tmp_path):
    write_sweep(tmp_path, method="grid", parameters={"lr_max": {"values": [0.05, 0.00002]}, "lr_min": {"value": 0.00001},
                "seed": {"values": [0, 1]}, "epochs": {"value": 1}})  # fmt: skip
    done = harness("sweep", "sweep.yaml", cwd=tmp_path, check=0)
    summary = json.loads((sweep_folder(tmp_path) / "sweep.json").read_text())
    assert [(group["parameters"], group["seeds"]) for group in summary["seed_groups"]] == [
        ({"lr_max": 0.05}, 2), ({"lr_max": 0.00002}, 2)
    ]  # fmt: skip
    assert summary["best"]["parameters"]["lr_max"] == 0.05
    assert "seeds       2: mean" in done.stdout
    assert "seed" not in yaml_io.read_yaml(sweep_folder(tmp_path) / "best.yaml")


@pytest.mark.slow
def test_a_forked_trial_is_the_same_run_as_one_started_by_its_command(tmp_path):
    write_sweep(tmp_path)
    harness("sweep", "sweep.yaml", "--count", 1, "--name", "forked", cwd=tmp_path, check=0)
    harness("sweep", "sweep.yaml", "--count", 1, "--name", "started", "--no-fork", cwd=tmp_path, check=0)
    one, other = (
        (tmp_path / "runs" / name / "runs/trial-0000/checkpoints/model.safetensors").read_bytes()
        for name in ("forked", "started")
    )
    assert one == other


@pytest.mark.slow
def test_hyperband_stops_a_bad_trial_promptly_and_a_failing_trial_does_not_end_the_sweep(tmp_path):
    write_sweep(
        tmp_path,
        method="grid",
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2},
        parameters={
            "lr_max": {"values": [0.05, 0.0000011, 0.0001]},
            "lr_min": {"values": [0.000001, 0.01]},
            "epochs": {"value": 6},
            "wandb": {"value": "disabled"},
        },
    )
    done = harness("sweep", "sweep.yaml", cwd=tmp_path, check=0)
    rows = {(row["lr_max"], row["lr_min"]): row for row in read_trials(sweep_folder(tmp_path))}
    assert rows["0.05", "1e-06"]["state"] == "complete"
    slow = rows["1.1e-06", "1e-06"]
    assert (slow["state"], int(slow["values"]) < 6) == ("pruned", True)
    assert (
        read_state(sweep_folder(tmp_path) / slow["folder"]) == "preempted"
    )  # it saved its state, and could be resumed
    wrong = rows["1.1e-06", "0.01"]
    assert (wrong["state"], wrong["values"]) == ("failed", "0")
    assert "need lr_min <= lr_max" in wrong["reason"]
    assert len(rows) == 6
    assert "best/val_acc" in done.stdout


@pytest.mark.slow
def test_refused_pairs_at_the_start_do_not_stop_a_sweep_and_count_may_go_beyond_run_cap(tmp_path):
    rates = {"lr_max": {"values": [0.001, 0.05]}, "lr_min": {"values": [0.002, 0.003, 0.004, 0.005, 0.006, 0.0005]}}
    write_sweep(tmp_path, method="grid", run_cap=5, parameters={**rates, "epochs": {"value": 1}})
    done = harness("sweep", "sweep.yaml", cwd=tmp_path, check=1)
    assert "every trial failed" in done.stderr
    harness("sweep", "sweep.yaml", "--count", 7, cwd=tmp_path, check=0)  # continues the same search
    assert [row["state"] for row in read_trials(sweep_folder(tmp_path))] == ["failed"] * 5 + ["complete"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("loader", [{}, {"loader": {"value": "timm"}, "workers": {"value": 2}}])
def test_a_trial_killed_from_outside_is_run_again_from_its_checkpoint(tmp_path, loader):
    """Also at once, while its loader processes still live."""
    write_sweep(tmp_path, parameters={"epochs": {"value": 8}, **loader})
    process = begun("sweep", "sweep.yaml", "--count", 1, "--no-fork", cwd=tmp_path)
    wait_for(lambda: list(tmp_path.glob("runs/*/runs/trial-0000/checkpoints/last.pt")), process)
    status = json.loads(next(tmp_path.glob("runs/*/runs/trial-0000/status.json")).read_text())
    os.kill(status["pid"], signal.SIGKILL)
    output = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert [(row["trial"], row["state"], row["values"]) for row in read_trials(sweep_folder(tmp_path))] == [
        ("trial-0000", "complete", "8")
    ]
    assert "it will be resumed" in output[1]


@pytest.mark.slow
def test_a_sweep_whose_trials_all_fail_says_why_and_stops(tmp_path):
    write_sweep(
        tmp_path,
        parameters={"data": {"value": "folder"}, "data_dir": {"value": "nowhere"}, "val_fraction": {"value": 0.1}},
    )
    done = harness("sweep", "sweep.yaml", "--count", 50, cwd=tmp_path, check=1)
    assert "the first 5 trials all failed" in done.stderr
    assert "nowhere" in done.stderr
    assert len(read_trials(sweep_folder(tmp_path))) == 5


def wait_for(condition, process, seconds=120):
    began = time.monotonic()
    while not condition():
        assert process.poll() is None and time.monotonic() - began < seconds
        time.sleep(0.02)


def processes_of(folder):
    """Return the ids of the processes whose working directory is a folder."""
    pids = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/cwd") == str(folder.resolve()):
                pids.append(int(name))
        except OSError:
            continue
    return pids


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_or_killed_sweep_resumes_the_trial_that_ran(tmp_path, number, status):
    write_sweep(tmp_path, parameters={"epochs": {"value": 8}})
    arguments = ["sweep", "sweep.yaml", "--count", 2]
    process = begun(*arguments, cwd=tmp_path)
    wait_for(
        lambda: (
            any("epoch" in path.read_text() for path in tmp_path.glob("runs/*/runs/trial-0000/status.json"))
            and list(tmp_path.glob("runs/*/runs/trial-0000/checkpoints/last.pt"))
        ),
        process,
    )
    process.send_signal(number)
    process.communicate(timeout=90)
    assert process.returncode == status
    # The trials are stopped, also when the sweep was killed.
    wait_until(lambda: not processes_of(tmp_path), 30, pause=0.1)
    status_file = sweep_folder(tmp_path) / "runs/trial-0000/status.json"
    before = json.loads(status_file.read_text())
    assert before["state"] in ("preempted", "finished")
    done = harness(*arguments, cwd=tmp_path, check=0)
    rows = read_trials(sweep_folder(tmp_path))
    assert [row["state"] for row in rows] == ["complete", "complete"]
    assert [row["values"] for row in rows] == ["8", "8"]
    log = (sweep_folder(tmp_path) / "logs/trial-0000.log").read_text()
    assert before["state"] == "finished" or "Resuming run in" in log, done.stderr
    steps = [
        step
        for record in read_journal(sweep_folder(tmp_path) / "runs/trial-0000").records
        if record.steps
        for step in record.steps.x
    ]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
def test_a_trial_that_ended_just_before_its_scheduler_died_is_not_run_again(tmp_path):
    write_sweep(tmp_path)
    harness("sweep", "sweep.yaml", "--count", 1, "--name", "s", cwd=tmp_path, check=0)
    folder = tmp_path / "runs/s"
    with sqlite3.connect(folder / "study.db") as database:  # as if the end of the trial had not been stored
        database.execute("UPDATE trials SET state = 'RUNNING'")
        database.execute("DELETE FROM trial_values")
    database.close()
    before = (folder / "runs/trial-0000/journal.jsonl").read_bytes()
    harness("sweep", "sweep.yaml", "--count", 1, "--name", "s", cwd=tmp_path, check=0)
    assert [(row["trial"], row["state"], row["values"]) for row in read_trials(folder)] == [
        ("trial-0000", "complete", "2")
    ]
    assert (folder / "runs/trial-0000/journal.jsonl").read_bytes() == before
    assert [path.name for path in (folder / "runs").iterdir()] == ["trial-0000"]


@pytest.mark.slow
def test_two_workers_share_one_search_without_a_trial_lost_or_run_twice(tmp_path):
    write_sweep(tmp_path, method="bayes")
    harness("sweep", "sweep.yaml", "--count", 6, "--workers", 2, cwd=tmp_path, check=0)
    rows = read_trials(sweep_folder(tmp_path))
    assert [row["trial"] for row in rows] == [f"trial-{n:04d}" for n in range(6)]
    assert len({row["lr_max"] for row in rows}) == 6


@pytest.mark.slow
def test_a_sweep_without_final_runs_says_that_it_links_no_model(tmp_path):
    write_sweep(tmp_path)
    done = harness("sweep", "sweep.yaml", "--count", 1, "--link", "vision/digits", cwd=tmp_path, check=0)
    assert "link=vision/digits: only final runs are linked, and there are none; set --final 1" in done.stderr
