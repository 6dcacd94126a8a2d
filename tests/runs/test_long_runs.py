"""Longer runs, in CI: kills at any moment, and the first command of the README at full size."""

import json
import signal
import time

import pytest

from harness.tracking.journal import read_journal
from tests.support.commands import QUICK, begun, command, wait_for_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("kills", [(0.0,), (0.3, 0.1), (1.2,), (2.0, 0.5)])
def test_a_run_killed_at_any_moment_resumes_with_bit_identical_results(finished, kills, tmp_path):
    """Kill it some seconds after its first checkpoint: in a save, between updates, in an evaluation, at the end."""
    _, uninterrupted = finished
    arguments = ["run", *QUICK, "--epochs", "3", "--checkpoint-every", "1", "--wandb", "offline"]
    for seconds in kills:
        process = begun(*arguments, cwd=tmp_path)
        wait_for_checkpoint(process, tmp_path)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    command(*arguments, cwd=tmp_path, check=0)
    folder = min((tmp_path / "runs").iterdir())  # a run that had ended before its kill is followed by a second, `-2`
    assert (folder / "checkpoints/model.safetensors").read_bytes() == (
        uninterrupted / "checkpoints/model.safetensors"
    ).read_bytes()
    assert (folder / "predictions.csv").read_bytes() == (uninterrupted / "predictions.csv").read_bytes()
    epochs, expected = (
        [
            (record.step, record.values["train/loss"], record.values["test/acc"], record.steps)
            for record in read_journal(path).records
            if record.kind == "epoch"
        ]
        for path in (folder, uninterrupted)
    )
    assert epochs == expected


def test_the_digits_recipe_reaches_97_percent_at_full_size(tmp_path):
    command("run", "--recipe", "digits", "--wandb", "offline", cwd=tmp_path, check=0, timeout=800)
    summary = json.loads(next(tmp_path.glob("runs/*/summary.json")).read_text())
    assert summary["parameters"] == 6_573_130
    assert summary["result"]["test/acc"] >= 0.97


def test_a_compiled_run_has_the_losses_of_a_plain_run(tmp_path):
    """The learning rate is so low that rounding errors do not grow."""
    arguments = [*QUICK[:2], "--model-args", "width=4", "--precision", "fp32", "--lr-max", "1e-4", "--lr-min", "1e-5"]
    for name in ("plain", "compiled"):
        options = [
            "--compile",
            name == "compiled",
            "--name",
            name,
            "--epochs",
            1,
            "--gallery",
            4,
            "--wandb",
            "disabled",
        ]
        command("run", *arguments, *options, cwd=tmp_path, check=0, timeout=600)
    plain, compiled = (read_journal(tmp_path / "runs" / name).records[0].values for name in ("plain", "compiled"))
    assert compiled["train/loss"] == pytest.approx(plain["train/loss"], rel=1e-3)
    assert compiled["test/loss"] == pytest.approx(plain["test/loss"], rel=1e-3)
