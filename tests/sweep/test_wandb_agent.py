"""The real `wandb sweep` and `wandb agent` start real runs of `harness`; a loopback server sees what arrives."""

import contextlib
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
from harness.config.settings import Config
from harness.tracking.journal import read_journal
from harness.utils.files import read_json
from tests.support.sweep_server import SweepServer, values
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
    """A server for one sweep, and the environment of a machine where `harness` is installed and logged in to it."""
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
    """`wandb sweep` of a file with these parameters, fixed ones as plain values; what the file says."""
    told = {
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
    (folder / "sweep.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
    started(folder, "sweep.yaml")
    return told


def started(folder, file):
    """`wandb sweep` of a file."""
    done = wandb("sweep", file, cwd=folder)
    said = ended(done)
    assert done.returncode == 0, said


def wandb(*words, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "wandb", *words], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@contextlib.contextmanager
def agent(folder, *words):
    """A `wandb agent` in its folder; it does not outlive the context."""
    process = wandb("agent", *words, f"e/p/{SweepServer.SWEEP}", cwd=folder)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        if not process.stdout.closed:
            process.communicate()


def ended(process, seconds=150):
    """What a process printed until it ended."""
    said, _ = process.communicate(timeout=seconds)
    return said


def until(claim, seconds=100):
    began = time.monotonic()
    while not claim():
        assert time.monotonic() - began < seconds
        time.sleep(0.05)


def training(folder, run_id="run1"):
    """The pid of a run, once it has saved."""
    path = folder / "runs" / run_id
    until(lambda: (path / "checkpoints/last.pt").exists())
    return read_json(path / "status.json")["pid"]


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def assert_history_whole(sweep, folder, run_id):
    """Every step of the run's journal once and in order, the sweep's metric once an epoch, plain numbers."""
    run, records = sweep.runs[run_id], read_journal(folder / "runs" / run_id).records
    epochs = [record for record in records if record.kind == "epoch"]
    assert run.steps == sorted(set(run.steps))
    # Every step that W&B was given lies in the epochs' lines, which are thinned out but end with the epoch's last.
    assert {record.step for record in epochs} <= set(run.steps)
    logged = sweep.metric(run)
    assert logged == pytest.approx([record.values["best/val_acc"] for record in epochs])
    assert [row["_step"] for row in run.history if "best/val_acc" in row] == [record.step for record in epochs]
    assert all(isinstance(value, float) for value in logged)
    assert run.summary["best/val_acc"] == logged[-1]


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_corner_of_a_shipped_sweep_is_a_run_that_harness_takes(path):
    written = yaml_io.read_yaml(path)
    assert written["command"] == COMMAND
    assert written["run_cap"] > 0
    assert written["metric"] == {"name": "best/val_acc", "goal": "maximize"}
    ends = {
        key: [about["min"], about["max"]] if "min" in about else values(about)
        for key, about in written["parameters"].items()
    }
    for worst in ("lr_max", "lr_min"):
        from harness.config.recipe import make_config

        chosen = {key: part[0] if key == worst else part[-1] for key, part in ends.items()}
        config = make_config(chosen)
        assert isinstance(config, Config)
        assert not config.test
        assert config.val_fraction > 0


def test_another_program_called_harness_first_on_the_path_is_not_started(sweep, tmp_path, monkeypatch):
    program = tmp_path / "elsewhere/harness"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{tmp_path}/started'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    shipped = yaml_io.read_yaml(ROOT / "sweeps/lr.yaml")["command"]
    upload(tmp_path, {"lr_max": 0.00005}, command=shipped)  # below lr_min: `harness run` refuses it at once
    with agent(tmp_path) as process:
        output = ended(process)
    assert not (tmp_path / "started").exists(), output
    assert sweep.runs["run1"].exit_code == 2, output
    assert "need lr_min <= lr_max" in sweep.runs["run1"].summary["reason"]


@pytest.mark.slow
def test_the_runs_of_an_agent_arrive_whole_and_a_refused_pair_is_one_failed_run(sweep, tmp_path):
    odd = {
        "LRMAX": {"values": [0.00005, 0.02]},  # the first lies below lr_min, which is refused
        "nesterov": False,
        "drop_last": True,
        "tags": ["a", "b c"],
        "notes": "why: 50 % of 'it'",
        "weight_decay": "1e-4",  # YAML's own number without a point is a word
        "momentum_min": None,
        "batch_size": 64.0,
    }
    told = upload(tmp_path, odd)
    assert sweep.config == told
    with agent(tmp_path) as process:
        said = ended(process)
    assert process.returncode == 0, said
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
    assert config["notes"] == odd["notes"]
    assert {**sweep.handed["run2"], "lr_max": 0.02}.items() <= good.config.items()

    assert_history_whole(sweep, tmp_path, "run2")
    assert (good.exit_code, good.summary["status"]) == (0, "finished")
    last = good.history[-1]
    kinds = {part["_type"] for part in last.values() if isinstance(part, dict) and "_type" in part}
    assert {"image-file", "table-file"} <= kinds
    assert any(name.startswith("media/images/") for name in good.files)
    kept = {artifact.kind: artifact for artifact in sweep.artifacts.values() if artifact.run == "run2"}
    assert kept["model"].files["model.safetensors"] == (folder / "checkpoints/model.safetensors").read_bytes()
    assert all(artifact.committed for artifact in kept.values())


@pytest.mark.slow
def test_an_early_terminated_run_ends_at_once_in_good_order_and_is_not_a_failure(sweep, tmp_path):
    upload(tmp_path, {"epochs": {"values": [500, 1]}})
    sweep.early = 1
    with agent(tmp_path, "--max-consecutive-failed-runs", "1") as process:
        until(lambda: "run1" in sweep.runs and sweep.runs["run1"].stopped)
        began = time.monotonic()
        until(lambda: sweep.runs["run1"].exit_code is not None, seconds=30)
        assert time.monotonic() - began < 20  # the agent asks for commands every five seconds
        said = ended(process)
    assert process.returncode == 0, said
    run = sweep.runs["run1"]
    assert (run.exit_code, run.preempting, run.summary["status"]) == (0, False, "stopped")
    assert run.summary["reason"] == "stopped by W&B"
    assert_history_whole(sweep, tmp_path, "run1")
    assert read_json(tmp_path / "runs/run1/status.json")["state"] == "interrupted"
    assert sweep.runs["run2"].exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "signals"),
    [
        ((), ["agent SIGTERM"]),
        ((), ["agent SIGKILL"]),
        ((), ["agent SIGINT", "agent SIGINT"]),
        (("--forward-signals",), ["agent SIGTERM"]),
        (("--forward-signals",), ["run SIGTERM", "agent SIGTERM"]),  # as a scheduler tells every process of a job
        ((), ["run SIGTERM"]),
    ],
    ids=["term", "kill", "ctrl-c twice", "forwarded", "forwarded to a told run", "the run alone"],
)
def test_a_run_whose_agent_is_stopped_saves_and_goes_on_under_its_id(sweep, tmp_path, words, signals):
    upload(tmp_path, {"epochs": 60, "gallery": 0})
    with agent(tmp_path, *words) as process:
        pid = training(tmp_path)
        began = time.monotonic()
        for word in signals:
            who, name = word.split()
            os.kill(process.pid if who == "agent" else pid, getattr(signal, name))
            time.sleep(2 if len(signals) > 1 and not words else 0)
        until(lambda: not alive(pid), seconds=30)
        print(f"{signals} {words}: the run was gone after {time.monotonic() - began:.1f} s")
        if signals[-1].startswith("agent"):
            ended(process, 30)
    run = sweep.runs["run1"]
    assert (run.exit_code, run.preempting) == (143, True)
    status = read_json(tmp_path / "runs/run1/status.json")
    assert status["state"] == "preempted"
    seen = list(run.steps)
    assert 0 < status["epoch"] < 60

    sweep.queue = [sweep.command("run1", "resume")]
    with agent(tmp_path) as process:
        said = ended(process)
    assert process.returncode == 0, said
    assert run.exit_code == 0
    assert len(sweep.metric(run)) == 60
    assert run.steps[: len(seen)] == seen
    assert_history_whole(sweep, tmp_path, "run1")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run1"]


@pytest.mark.slow
def test_the_shipped_quick_sweep_goes_through_an_agent(sweep, tmp_path):
    shutil.copy(ROOT / "sweeps/digits.yaml", tmp_path)
    started(tmp_path, "digits.yaml")
    with agent(tmp_path, "--count", "1") as process:
        said = ended(process)
    assert process.returncode == 0, said
    assert_history_whole(sweep, tmp_path, "run1")
    assert sweep.runs["run1"].exit_code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--lr-maxx", "1"], "no such option"),
        (["--epochs", "many"], "need a number"),
        (["--data", "folder", "--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_a_run_that_can_not_begin_is_a_failed_run_of_the_sweep_with_its_reason(
    sweep, tmp_path, monkeypatch, words, says
):
    monkeypatch.setenv("WANDB_SWEEP_ID", sweep.SWEEP)
    monkeypatch.setenv("WANDB_RUN_ID", "run1")
    command = [sys.executable, "-m", "harness", "run", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert says in done.stderr.lower()
    run = sweep.runs["run1"]
    assert run.exit_code == done.returncode > 0
    assert says in run.summary["reason"].lower()
    assert json.dumps(run.config).count(KEY) == 0
