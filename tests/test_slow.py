"""Longer runs, in CI: kills at any moment, and the README's first command at full size."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from started import QUICK, command

from harness.tracking.journal import read

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("kills", [(0.0,), (0.3, 0.1), (1.2,), (2.0, 0.5)])
def test_a_run_killed_at_any_moments_goes_on_to_the_same_bits(finished, kills, tmp_path):
    """Seconds after its status says that it is running: in the first epoch, in a save, in an evaluation, at the end."""
    _, whole = finished
    words = [
        sys.executable,
        "-m",
        "harness",
        "run",
        *QUICK,
        "--epochs",
        "3",
        "--checkpoint-every",
        "1",
        "--wandb",
        "offline",
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    for wait in kills:
        process = subprocess.Popen(
            words, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        began = time.monotonic()
        while not list(tmp_path.glob("runs/*/checkpoints/last.pt")) and process.poll() is None:
            assert time.monotonic() - began < 200
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    command(*words[3:], cwd=tmp_path, check=0)
    folder = min((tmp_path / "runs").iterdir())  # a run that had ended before its kill is followed by a second, `-2`
    assert (folder / "checkpoints/model.safetensors").read_bytes() == (
        whole / "checkpoints/model.safetensors"
    ).read_bytes()
    assert (folder / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()
    mine, theirs = (
        [(r.step, r.values["train/loss"], r.values["test/acc"], r.steps) for r in read(f).records if r.kind == "epoch"]
        for f in (folder, whole)
    )
    assert mine == theirs


def test_the_digits_recipe_reaches_97_percent_at_full_size(tmp_path):
    command("run", "--recipe", "digits", "--wandb", "offline", cwd=tmp_path, check=0, timeout=800)
    summary = json.loads(next(tmp_path.glob("runs/*/summary.json")).read_text())
    assert summary["parameters"] == 6_573_130
    assert summary["result"]["test/acc"] >= 0.97


def test_a_compiled_run_ends_close_to_one_that_is_not(tmp_path):
    words = [
        *QUICK[:2],
        "--model-args",
        "width=4",
        "--precision",
        "fp32",
        "--epochs",
        1,
        "--gallery",
        4,
        "--wandb",
        "disabled",
    ]
    for name in ("plain", "compiled"):
        command("run", *words, "--compile", name == "compiled", "--name", name, cwd=tmp_path, check=0, timeout=600)
    plain, compiled = (read(tmp_path / "runs" / name).records[0].values for name in ("plain", "compiled"))
    assert compiled["train/loss"] == pytest.approx(plain["train/loss"], rel=0.02)
