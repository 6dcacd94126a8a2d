"""`--precision auto` may be a measurement: it decides the format of a new run, and never which run is found again."""

import pytest
import torch

import harness
from harness.runs.progress import ProgressReporter
from harness.tracking.journal import read_journal
from harness.training import device
from harness.training.device import pick_precision
from harness.utils.environment import processor
from harness.utils.files import write_json

SMALL = {"recipe": "digits", "image_size": 16, "model_args": {"width": 4}, "epochs": 2, "peak_epoch": 1, "gallery": 0, "threads": 1,
         "wandb": "disabled", "report": False, "device": "cpu", "precision": "auto"}  # fmt: skip


class StopAfter(ProgressReporter):
    """Ends a run by an error after its first epoch."""

    def on_epoch(self, record, epochs):
        raise RuntimeError("ended by the test")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that makes this the machine of another home folder, on which bfloat16 has a given speed."""
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)

    def become(speedup):
        cache = tmp_path / f"home-{speedup}"
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        key = f"{processor()}, 1 threads, torch {torch.__version__}"
        write_json(cache / "harness/bf16_gain.json", {key: speedup})

    return become


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "mine"])
def test_a_run_is_resumed_in_its_precision_where_another_one_is_measured_to_be_faster(machine, tmp_path, name):
    config = harness.make_config({**SMALL, "name": name, "output": str(tmp_path / "runs")})
    machine(2.0)
    assert pick_precision("auto", torch.device("cpu")) == "bf16"
    with pytest.raises(RuntimeError, match="ended by the test"):
        harness.run(config, StopAfter())
    machine(0.5)
    assert pick_precision("auto", torch.device("cpu")) == "fp32"
    result = harness.run(config, ProgressReporter())
    (folder,) = (tmp_path / "runs").iterdir()
    assert result.folder == folder
    saved = harness.make_config({"recipe": str(folder / "config.yaml")})
    assert (saved.precision, result.summary["epochs"]) == ("bf16", 2)
    epochs = [record.epoch for record in read_journal(folder).records if record.kind == "epoch"]
    assert epochs == [1, 2]


@pytest.mark.slow
def test_a_precision_that_is_named_is_not_replaced_by_that_of_another_run(machine, tmp_path):
    settings = {**SMALL, "output": str(tmp_path / "runs")}
    machine(2.0)
    with pytest.raises(RuntimeError):
        harness.run(harness.make_config(settings), StopAfter())
    result = harness.run(harness.make_config({**settings, "precision": "fp32"}), ProgressReporter())
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert harness.make_config({"recipe": str(result.folder / "config.yaml")}).precision == "fp32"


@pytest.mark.slow
def test_seeds_that_finished_on_another_machine_are_not_trained_again(machine, tmp_path):
    config = harness.make_config({**SMALL, "epochs": 1, "output": str(tmp_path / "runs")})
    machine(2.0)
    first = harness.run_seeds(config, 1, ProgressReporter())
    machine(0.5)
    assert harness.run_seeds(config, 1, ProgressReporter()).seeds == first.seeds
    more = harness.run_seeds(config, 2, ProgressReporter())
    assert more.seeds[0] == first.seeds[0] and more.config.precision == "bf16"
