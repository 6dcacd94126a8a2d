"""A run whose steps are recorded while an epoch is trained has each of them once, however it was stopped and resumed."""

import io
import json
import os
import signal

import pytest

from harness.config.recipe import make_config
from harness.runs import trainer
from harness.runs.progress import LineReporter
from harness.runs.run import run
from harness.utils.signals import Interrupted
from tests.support import wandb_files
from tests.support.resume import contents_of

SETTINGS = {
    "recipe": "digits", "image_size": 16, "model_args": "width=4", "threads": 1, "precision": "fp32", "batch_size": 128, "gallery": 0,
    "eval_batch_size": 200, "epochs": 3, "report": False, "wandb": "offline", "name": "r", "checkpoint_every": 4,
}  # fmt: skip
STEPS = 33


class KilledError(Exception):
    """Ends a run as an error of the training would: nothing is saved, nothing of the last seconds is recorded."""


class Stopping(LineReporter):
    """Stops the run after an update: by a signal, or as if it was killed."""

    def __init__(self, step=0, how="signal"):
        super().__init__(io.StringIO())
        self.step, self.how = step, how

    def on_step(self, info):
        if info.step == self.step and self.how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        elif info.step == self.step:
            raise KilledError


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(make_config({**SETTINGS, "wandb": "disabled", "output": folder}), Stopping())
    return contents_of(folder / "r")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["signal", "killed"])
def test_a_resumed_run_is_bit_identical_and_has_every_step_once_in_the_journal_and_in_wandb(
    uninterrupted, tmp_path, monkeypatch, how
):
    monkeypatch.setattr(trainer, "LIVE_SECONDS", 0.0)  # a record after every update
    for name in ("X_DISABLE_STATS", "DISABLE_GIT", "X_DISABLE_MACHINE_INFO"):
        monkeypatch.setenv(f"WANDB_{name}", "true")
    config = make_config({**SETTINGS, "output": tmp_path})
    for step in (6, 19):  # within the first and the second epoch, between checkpoints
        with pytest.raises(Interrupted if how == "signal" else KilledError):
            run(config, Stopping(step, how))
    run(config, Stopping())
    contents = contents_of(tmp_path / "r")
    for part, value in uninterrupted.items():
        assert contents[part] == value, part
    lines = [json.loads(line) for line in (tmp_path / "r/journal.jsonl").read_text().splitlines()]
    assert [step for line in lines if "steps" in line for step in line["steps"]["x"]] == list(range(1, STEPS + 1))
    assert sum(line["kind"] == "steps" for line in lines) > 10
    runs = wandb_files.offline_runs(tmp_path / "r")
    rows = [row for part in runs for row in part.rows]
    assert len(runs) == 3 and [row["_step"] for row in rows] == list(range(1, STEPS + 2))
    losses = [loss for record in uninterrupted["records"] if record[4] for loss in record[4].lines["train/step_loss"]]
    assert [row["train/step_loss"] for row in rows[:-1]] == losses
