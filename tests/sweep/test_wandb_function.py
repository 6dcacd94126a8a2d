"""The real `wandb.agent(sweep_id, function)`, as notebooks call it, with `harness.run` in the function."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config import yaml_io
from harness.tracking.journal import read_journal
from harness.utils.files import read_json
from tests.support.sweep_server import SweepServer
from tests.support.wandb_server import KEY

ROOT = Path(__file__).parents[2]
SETTINGS = {"recipe": "digits", "model_args": {"width": 4}, "threads": 1, "precision": "fp32", "gallery": 0}
SETTINGS |= {"val_fraction": 0.2, "test": False, "report": False, "schedule": "constant"}
SCRIPT = """
import json, os, sys, wandb, harness

def train():
    settings = {settings!r}
    {body}

wandb.agent({sweep!r}, function=train, entity="e", project="p", count={count})
print("alive", json.dumps(sorted(name for name in os.environ if name.startswith("WANDB_SWEEP"))))
"""
PLAIN = "harness.run(harness.make_config(settings))"
ACTIVE = """run = wandb.init()
    run.log({"mine/first": 1.0})
    harness.run(harness.make_config(settings))
    assert wandb.run is run, "the run was closed"
    run.log({"mine/last": 2.0})
    run.finish()"""


@pytest.fixture
def sweep(monkeypatch):
    """Yield a server for one sweep, in the environment of a user who is logged in to it."""
    with SweepServer() as server:
        for name in ("X_DISABLE_STATS", "DISABLE_GIT", "X_DISABLE_MACHINE_INFO"):
            monkeypatch.setenv(f"WANDB_{name}", "true")
        monkeypatch.setenv("WANDB_X_SAVE_REQUIREMENTS", "false")
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        yield server


def run_agent(sweep, folder, body, parameters, count):
    """Upload a grid over `parameters`, and run it with `wandb.agent` and a function; return the ended process."""
    sweep.take({"method": "grid", "metric": {"name": "best/val_acc", "goal": "maximize"}, "parameters": parameters})
    script = SCRIPT.format(settings=SETTINGS, body=body, sweep=SweepServer.SWEEP, count=count)
    (folder / "agent.py").write_text(script)
    line = [sys.executable, "agent.py"]
    return subprocess.run(line, cwd=folder, env=dict(os.environ), capture_output=True, text=True, timeout=200)


def assert_trained_with_its_parameters(sweep, folder, run_id):
    """Check that the optimizer had the learning rate that W&B shows for the run, and that every row arrived."""
    run, drawn = sweep.runs[run_id], sweep.handed[run_id]
    assert drawn.items() <= run.config.items()
    used = [row["lr"] for row in run.history if "lr" in row]  # read back from the optimizer
    assert used == pytest.approx([run.config["lr_max"]] * len(used), rel=1e-5)
    records = [record for record in read_journal(folder / "runs" / run_id).records if record.kind == "epoch"]
    assert len(records) == run.config["epochs"]
    assert sweep.metric(run) == pytest.approx([record.values["best/val_acc"] for record in records])
    assert {record.step for record in records} <= set(run.steps)
    settings = yaml_io.read_yaml(folder / "runs" / run_id / "config.yaml")
    assert {name: settings[name] for name in ("lr_max", "epochs", "nesterov")} == {
        name: run.config[name] for name in ("lr_max", "epochs", "nesterov")
    }


@pytest.mark.slow
@pytest.mark.parametrize("body", [PLAIN, ACTIVE], ids=["harness opens the run", "the function has opened the run"])
def test_every_trial_of_an_agents_function_trains_with_the_values_that_wandb_shows(sweep, tmp_path, body):
    parameters = {"lr_max": {"values": [0.02, 0.05]}, "epochs": {"value": 2}, "nesterov": {"value": False}}
    done = run_agent(sweep, tmp_path, body, parameters, count=2)
    assert done.returncode == 0, done.stderr
    assert "alive []" in done.stdout
    assert "errored" not in done.stderr, done.stderr
    assert len(sweep.runs) == 2
    for run_id in sweep.handed:
        assert_trained_with_its_parameters(sweep, tmp_path, run_id)
        run = sweep.runs[run_id]
        assert (run.exit_code, run.summary["status"]) == (0, "finished")
        if body == ACTIVE:
            assert run.history[0]["mine/first"] == 1.0
            assert run.history[-1]["mine/last"] == 2.0


@pytest.mark.slow
def test_a_parameter_that_the_run_cannot_have_is_refused_and_is_a_failed_run(sweep, tmp_path):
    done = run_agent(sweep, tmp_path, PLAIN, {"lr_mxa": {"value": 0.02}}, count=1)
    (run,) = sweep.runs.values()
    assert run.exit_code == 2
    assert "'lr_mxa' would have no effect" in run.summary["reason"]
    assert "'lr_max'" in run.summary["reason"]
    assert not (tmp_path / "runs").exists(), done.stderr


@pytest.mark.slow
def test_a_refused_trial_in_an_open_run_has_its_reason_and_leaves_the_run_to_its_owner(sweep, tmp_path):
    parameters = {"recipe": {"value": "resnet18"}, "mine": {"value": 3}}
    done = run_agent(sweep, tmp_path, ACTIVE, parameters, count=1)
    assert "'mine' is no setting of harness" in done.stderr
    (run,) = sweep.runs.values()
    assert run.exit_code == 1  # W&B's own, for an exception in the function
    assert run.summary["status"] == "failed"
    assert "the sweep has recipe='resnet18'" in run.summary["reason"]
    assert run.history[0]["mine/first"] == 1.0


@pytest.mark.slow
def test_a_run_that_wandb_stops_early_in_an_agents_function_is_stopped_and_not_failed(sweep, tmp_path):
    sweep.early = 1
    done = run_agent(sweep, tmp_path, PLAIN, {"epochs": {"values": [400, 1]}, "lr_max": {"value": 0.02}}, count=2)
    assert done.returncode == 0, done.stderr
    first, second = sweep.runs["run1"], sweep.runs["run2"]
    assert (first.exit_code, first.summary["status"]) == (0, "stopped")
    assert first.summary["reason"] == "stopped by W&B"
    status = read_json(tmp_path / "runs/run1/status.json")
    assert status["state"] == "interrupted"
    assert 0 < status["epoch"] < 400
    assert (second.exit_code, second.summary["status"]) == (0, "finished"), json.dumps(second.summary)


@pytest.mark.slow
def test_the_notebooks_cell_for_an_agent_trains_each_trial_with_the_values_that_wandb_shows(
    sweep, tmp_path, monkeypatch
):
    cells = json.loads((ROOT / "examples/notebook.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (code,) = [source for source in sources if "wandb.agent(" in source]
    parameters = {"lr_max": {"values": [0.02, 0.05]}, "epochs": {"value": 1}, "nesterov": {"value": False}}
    sweep.take({"method": "grid", "metric": {"name": "best/val_acc", "goal": "maximize"}, "parameters": parameters})
    (tmp_path / "cell.py").write_text(f"import harness\n{code}\n")
    monkeypatch.setenv("SWEEP", f"e/p/{SweepServer.SWEEP}")
    done = subprocess.run([sys.executable, "cell.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(sweep.handed) == 2
    for run_id in sweep.handed:
        assert_trained_rates(sweep, tmp_path, run_id)


def assert_trained_rates(sweep, folder, run_id):
    """Check that the highest rate of the optimizer is the one that W&B shows for the run."""
    records = [record for record in read_journal(folder / "runs" / run_id).records if record.steps]
    highest = max(max(record.steps.lines["lr"]) for record in records)
    shown = sweep.runs[run_id].config["lr_max"]
    assert 0.9 * shown < highest <= shown  # the peak may fall between two steps
    assert sweep.handed[run_id].items() <= sweep.runs[run_id].config.items()
