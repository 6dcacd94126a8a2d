"""The real `wandb sweep` and `wandb agent` start real runs of `harness`; a loopback server sees what arrives."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from harness.config import yaml_io
from harness.config.recipe import make_config
from harness.tracking.journal import read_journal
from harness.utils.files import read_json
from tests.support.sweep_server import SweepServer, values
from tests.support.waiting import is_alive, wait_until
from tests.support.wandb_server import KEY

ROOT = Path(__file__).parents[2]
QUICK = {
    "recipe": "digits",
    "model_args": {"width": 4},
    "epochs": 2,
    "threads": 1,
    "precision": "fp32",
    "gallery": 4,
    "val_fraction": 0.2,
    "test": False,
}
COMMAND = ["${env}", "${interpreter}", "-m", "harness", "run", "${args}"]
SLIM = ("X_DISABLE_STATS", "DISABLE_GIT", "X_DISABLE_MACHINE_INFO")


@pytest.fixture
def sweep(monkeypatch):
    """Yield a server for one sweep, in the environment of a machine where `harness` is installed and logged in to it."""
    with SweepServer() as server:
        for name in SLIM:
            monkeypatch.setenv(f"WANDB_{name}", "true")
        monkeypatch.setenv("WANDB_X_SAVE_REQUIREMENTS", "false")
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        yield server


def upload(folder, parameters, **more):
    """Write a sweep file with these parameters, fixed ones as plain values; upload it, and return its content."""
    document = {
        "program": "harness",
        "command": COMMAND,
        "method": "grid",
        "metric": {"name": "best/val_acc", "goal": "maximize"},
        **more,
        "parameters": {
            key: value if isinstance(value, dict) and "values" in value else {"value": value}
            for key, value in {**QUICK, **parameters}.items()
        },
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    upload_file(folder, "sweep.yaml")
    return document


def upload_file(folder, file):
    """Run `wandb sweep` on a file."""
    process = wandb("sweep", file, cwd=folder)
    output = output_of(process)
    assert process.returncode == 0, output


def wandb(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "wandb", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextlib.contextmanager
def agent(folder, *options):
    """Run a `wandb agent` in a folder; it does not outlive the context."""
    process = wandb("agent", *options, f"e/p/{SweepServer.SWEEP}", cwd=folder)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        if not process.stdout.closed:
            process.communicate()


def output_of(process, seconds=400):
    """Wait for a process to end and return what it printed."""
    output, _ = process.communicate(timeout=seconds)
    return output


def wait_for_training(folder, run_id="run1"):
    """Return the process id of a run, once it has saved a checkpoint."""
    path = folder / "runs" / run_id
    wait_until(lambda: (path / "checkpoints/last.pt").exists())
    return read_json(path / "status.json")["pid"]


def assert_complete_history(sweep, folder, run_id):
    """Check that W&B has each step of the journal once and in order, and the sweep's metric once an epoch."""
    run, records = sweep.runs[run_id], read_journal(folder / "runs" / run_id).records
    epochs = [record for record in records if record.kind == "epoch"]
    assert run.steps == sorted(set(run.steps))
    # The curves are thinned out, but the last step of each epoch is always logged.
    assert {record.step for record in epochs} <= set(run.steps)
    logged = sweep.metric(run)
    assert logged == pytest.approx([record.values["best/val_acc"] for record in epochs])
    assert [row["_step"] for row in run.history if "best/val_acc" in row] == [record.step for record in epochs]
    assert all(isinstance(value, float) for value in logged)
    assert run.summary["best/val_acc"] == logged[-1]


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_corner_of_a_shipped_sweep_is_a_valid_run(path):
    document = yaml_io.read_yaml(path)
    assert document["command"] == COMMAND
    assert document["run_cap"] > 0
    assert document["metric"] == {"name": "best/val_acc", "goal": "maximize"}
    ends = {
        key: [parameter["min"], parameter["max"]] if "min" in parameter else values(parameter)
        for key, parameter in document["parameters"].items()
    }
    corners = list(itertools.product(*([each[0], each[-1]][: len(each)] for each in ends.values())))
    assert len(corners) >= 2
    for corner in corners:
        config = make_config(dict(zip(ends, corner, strict=True)))
        lr_min, lr_max = config.rates()
        assert 0 < lr_min <= lr_max and config.val_fraction > 0 and not config.test


@pytest.mark.slow
def test_another_program_called_harness_first_on_the_path_is_not_started(sweep, tmp_path, monkeypatch):
    program = tmp_path / "elsewhere/harness"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{tmp_path}/started'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    shipped = yaml_io.read_yaml(ROOT / "sweeps/lr.yaml")["command"]
    upload(tmp_path, {"lr_max": 0.00005}, command=shipped)  # below lr_min: `harness run` refuses it at once
    with agent(tmp_path) as process:
        output = output_of(process)
    assert not (tmp_path / "started").exists(), output
    assert sweep.runs["run1"].exit_code == 2, output
    assert "need lr_min <= lr_max" in sweep.runs["run1"].summary["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("macro", ["${args_json_file}", "${args_no_hyphens}", "${args_override_hydra}"])
def test_a_run_of_the_agent_has_the_drawn_values_in_each_form_groups_and_fixed_words_included(sweep, tmp_path, macro):
    command = ["${env}", "OMP_NUM_THREADS=1", *COMMAND[1:-1], "--cutout", "3", macro]
    drawn = {"epochs": 1, "gallery": 0, "LR-Max": 0.02, "optim": {"weight_decay": 0.001, "flip": False}}
    upload(tmp_path, drawn, command=command)
    with agent(tmp_path) as process:
        output = output_of(process)
    assert process.returncode == 0, output
    config = yaml_io.read_yaml(tmp_path / "runs/run1/config.yaml")
    wanted = {"cutout": 3, "weight_decay": 0.001, "flip": False, "lr_max": 0.02, "model_args": {"width": 4}}
    assert {name: config[name] for name in wanted} == wanted
    assert wanted.items() <= sweep.runs["run1"].config.items()
    assert sweep.runs["run1"].config["optim"] == drawn["optim"]  # as W&B has recorded it


@pytest.mark.slow
def test_a_range_test_that_an_agent_starts_has_the_drawn_values(sweep, tmp_path):
    command = [*COMMAND[:-2], "lr-find", "--seeds", "1", "--steps", "12", "${args_no_boolean_flags}"]
    upload(tmp_path, {"gallery": 0, "batch_size": 32, "nesterov": False}, command=command)
    with agent(tmp_path) as process:
        output = output_of(process)
    assert process.returncode == 0, output
    assert (tmp_path / "runs").exists(), output
    config = yaml_io.read_yaml(tmp_path / "runs/run1/config.yaml")
    assert (config["batch_size"], config["nesterov"], config["job_type"]) == (32, False, "find")
    assert sweep.runs["run1"].config["batch_size"] == 32
    assert "find/steps" in sweep.runs["run1"].summary


@pytest.mark.slow
def test_the_runs_of_an_agent_arrive_complete_and_a_refused_pair_is_one_failed_run(sweep, tmp_path):
    unusual = {
        "LRMAX": {"values": [0.00005, 0.02]},  # the first is below lr_min, which is refused
        "nesterov": False,
        "drop_last": True,
        "tags": ["a", "b c"],
        "notes": "why: 50 % of 'it'",
        "weight_decay": "1e-4",  # YAML 1.1 reads a number without a point as text
        "momentum_min": None,
        "batch_size": 64.0,
    }
    document = upload(tmp_path, unusual)
    assert sweep.config == document
    with agent(tmp_path) as process:
        output = output_of(process)
    assert process.returncode == 0, output
    refused, good = sweep.runs["run1"], sweep.runs["run2"]
    assert [run.sweep for run in (refused, good)] == [sweep.SWEEP] * 2

    assert refused.exit_code == 2
    assert "need lr_min <= lr_max" in refused.summary["reason"]
    assert (refused.summary["status"], refused.config["LRMAX"], refused.preempting) == ("failed", 0.00005, False)

    folder = tmp_path / "runs/run2"
    config = yaml_io.read_yaml(folder / "config.yaml")
    plain = {"epochs": 2, "nesterov": False, "drop_last": True, "test": False, "val_fraction": 0.2, "lr_max": 0.02}
    assert plain.items() <= config.items()
    assert (config["model_args"], config["tags"]) == ({"width": 4}, ["a", "b c"])
    assert (config["weight_decay"], config["momentum_min"], config["batch_size"]) == (1e-4, None, 64)
    assert config["notes"] == unusual["notes"]
    assert {**sweep.handed["run2"], "lr_max": 0.02}.items() <= good.config.items()

    assert_complete_history(sweep, tmp_path, "run2")
    assert (good.exit_code, good.summary["status"]) == (0, "finished")
    last = good.history[-1]
    kinds = {part["_type"] for part in last.values() if isinstance(part, dict) and "_type" in part}
    assert {"image-file", "table-file"} <= kinds
    assert any(name.startswith("media/images/") for name in good.files)
    kept = {artifact.kind: artifact for artifact in sweep.artifacts.values()}
    assert "model" not in kept  # of thirty trials one model is wanted, which is trained again
    assert json.loads(kept["dataset"].files["dataset.json"]) == json.loads((folder / "dataset.json").read_text())
    assert all(artifact.committed for artifact in kept.values())


@pytest.mark.slow
def test_false_values_that_the_command_line_leaves_out_are_those_of_the_run(sweep, tmp_path):
    command = [*COMMAND[:-1], "${args_no_boolean_flags}"]
    upload(tmp_path, {"nesterov": False, "flip": False, "drop_last": True, "epochs": 1}, command=command)
    with agent(tmp_path) as process:
        output = output_of(process)
    run = sweep.runs["run1"]
    assert run.exit_code == 0, output
    config = yaml_io.read_yaml(tmp_path / "runs/run1/config.yaml")
    for name in ("nesterov", "flip", "drop_last", "test"):
        assert config[name] is sweep.handed["run1"][name] is run.config[name]


@pytest.mark.slow
def test_an_early_terminated_run_stops_at_once_and_is_not_a_failure(sweep, tmp_path):
    upload(tmp_path, {"epochs": {"values": [500, 1]}})
    sweep.early = 1
    with agent(tmp_path, "--max-consecutive-failed-runs", "1") as process:
        wait_until(lambda: "run1" in sweep.runs and sweep.runs["run1"].stopped)
        began = time.monotonic()
        wait_until(lambda: sweep.runs["run1"].exit_code is not None, seconds=30)
        assert time.monotonic() - began < 20  # the agent asks for commands every five seconds
        output = output_of(process)
    assert process.returncode == 0, output
    run = sweep.runs["run1"]
    assert (run.exit_code, run.preempting, run.summary["status"]) == (0, False, "stopped")
    assert run.summary["reason"] == "stopped by W&B"
    assert_complete_history(sweep, tmp_path, "run1")
    assert read_json(tmp_path / "runs/run1/status.json")["state"] == "interrupted"
    assert sweep.runs["run2"].exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "signals"),
    [
        ((), ["agent SIGTERM"]),
        ((), ["agent SIGKILL"]),
        ((), ["agent SIGINT", "agent SIGINT"]),
        (("--forward-signals",), ["agent SIGTERM"]),
        (("--forward-signals",), ["run SIGTERM", "agent SIGTERM"]),  # as a scheduler signals every process of a job
        ((), ["run SIGTERM"]),
    ],
    ids=["term", "kill", "ctrl-c twice", "forwarded", "forwarded to a signalled run", "the run alone"],
)
def test_a_run_whose_agent_is_stopped_saves_and_is_resumed_under_its_id(sweep, tmp_path, options, signals):
    upload(tmp_path, {"epochs": 120, "gallery": 0})
    with agent(tmp_path, *options) as process:
        pid = wait_for_training(tmp_path)
        began = time.monotonic()
        for entry in signals:
            target, name = entry.split()
            os.kill(process.pid if target == "agent" else pid, getattr(signal, name))
            time.sleep(2 if len(signals) > 1 and not options else 0)
        wait_until(lambda: not is_alive(pid), seconds=90)
        print(f"{signals} {options}: the run had ended after {time.monotonic() - began:.1f} s")
        if signals[-1].startswith("agent"):
            output_of(process, 30)
    run = sweep.runs["run1"]
    assert (run.exit_code, run.preempting) == (143, True)
    status = read_json(tmp_path / "runs/run1/status.json")
    assert status["state"] == "preempted"
    before = list(run.steps)
    assert 0 < status["epoch"] < 120

    sweep.queue = [sweep.command("run1", "resume")]
    with agent(tmp_path) as process:
        output = output_of(process)
    assert process.returncode == 0, output
    assert run.exit_code == 0
    assert len(sweep.metric(run)) == 120
    assert run.steps[: len(before)] == before
    assert_complete_history(sweep, tmp_path, "run1")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run1"]


@pytest.mark.slow
def test_an_agent_runs_the_shipped_quick_sweep(sweep, tmp_path):
    shutil.copy(ROOT / "sweeps/digits.yaml", tmp_path)
    upload_file(tmp_path, "digits.yaml")
    with agent(tmp_path, "--count", "1") as process:
        output = output_of(process)
    assert process.returncode == 0, output
    assert_complete_history(sweep, tmp_path, "run1")
    assert sweep.runs["run1"].exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr-max", "0.3"], "lr_max: the sweep has 0.02 and the command line '0.3'"),
        (["--lr-maxx", "1"], "no such option"),
        (["--epochs", "many"], "need a number"),
        (["--data", "folder", "--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_a_run_that_can_not_start_is_a_failed_run_of_the_sweep_with_its_reason(
    sweep, tmp_path, monkeypatch, options, message
):
    monkeypatch.setenv("WANDB_SWEEP_ID", sweep.SWEEP)
    monkeypatch.setenv("WANDB_RUN_ID", "run1")
    (tmp_path / "drawn.yaml").write_text("wandb_version: 1\nLRMAX: {value: 0.02}\n")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "drawn.yaml"))
    command = [sys.executable, "-m", "harness", "run", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert message in done.stderr.lower()
    run = sweep.runs["run1"]
    assert run.exit_code == done.returncode > 0
    assert message in run.summary["reason"].lower()
    assert json.dumps(run.config).count(KEY) == 0
