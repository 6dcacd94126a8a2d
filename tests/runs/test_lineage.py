"""The lineage of a run and of what is done with its model, as a W&B server on the loopback has it."""

import json
import os

import numpy as np
import pytest
import wandb
from PIL import Image

import harness
from harness.cli.main import main  # noqa: F401 - imported before W&B's environment is set
from harness.config.recipe import make_config
from harness.runs import export, inference, model_log
from tests.support.lineage_server import LineageServer
from tests.support.wandb_files import offline_runs
from tests.support.wandb_server import KEY

TINY = {
    "recipe": "digits", "image_size": 16, "model_args": {"width": 4}, "threads": 1, "precision": "fp32", "epochs": 2, "batch_size": 256,
    "peak_epoch": 1, "val_fraction": 0.2, "gallery": 0, "cam": "none", "report": False, "finish_timeout": 30,
}  # fmt: skip
SLIM = {
    "X_DISABLE_STATS": "true",
    "DISABLE_GIT": "true",
    "X_DISABLE_MACHINE_INFO": "true",
    "X_SAVE_REQUIREMENTS": "false",
}


@pytest.fixture
def server(monkeypatch, tmp_path):
    with LineageServer() as server:
        variables = {"BASE_URL": server.url, "API_KEY": KEY, **SLIM}
        for name, value in variables.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        monkeypatch.chdir(tmp_path)
        yield server


def train(**settings):
    """Train a tiny network and return its run directory."""
    return harness.run(make_config({**TINY, **settings})).folder


def picture(folder):
    path = folder / "picture.png"
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(path)
    return path


@pytest.mark.slow
def test_every_use_of_a_model_leads_back_to_its_run_and_its_data(server, tmp_path):
    folder = train()
    (training,) = server.runs
    model, data = server.version("custom_resnet-digits:latest"), server.version("digits:v0")
    assert (model.run, model.used_by, data.used_by) == (training, [], [training])
    assert set(model.aliases) == {"latest", "best", f"run-{training}", f"epoch-{model.metadata['epoch']}"}
    summary = json.loads((folder / "summary.json").read_text())
    assert model.metadata["accuracy"] == model.metadata["test/acc"] == summary["result"]["test/acc"]
    assert model.metadata["score"] == summary["best"]["val/acc"]
    assert model.metadata["fingerprint"] == summary["dataset"]["fingerprint"] == data.metadata["fingerprint"]
    assert (model.metadata["classes"], model.metadata["settings"]["batch_size"]) == (10, 256)
    assert model.files["model.safetensors"] == (folder / "checkpoints/model.safetensors").read_bytes()
    assert json.loads(data.files["dataset.json"])["classes"] == [str(digit) for digit in range(10)]
    uploaded = server.uploaded_bytes()

    # As docs/wandb.md shows it: the version is a model on any machine.
    downloaded = wandb.Api().artifact("e/p/custom_resnet-digits:best").download(str(tmp_path / "model"))
    wandb.teardown()  # what follows starts W&B's process itself
    path, here = f"{downloaded}/model.safetensors", picture(tmp_path)
    trained = harness.load_model(path)
    assert trained.classes == tuple(str(digit) for digit in range(10))
    ((there, here),) = zip(harness.predict(path, [here]), harness.predict(folder, [here]), strict=True)
    assert np.array_equal(there.probabilities, here.probabilities)

    inference.evaluate(folder, {"wandb": "online", "gallery": 0})
    list(inference.explain(folder, picture(tmp_path), {"wandb": "online"}, out=tmp_path / "maps"))
    export.export_timm(folder, tmp_path / "timm", {})
    export.track_export(folder, export.timm_files(tmp_path / "timm"), "timm", {"wandb": "online"})
    _, evaluated, explained, exported = server.runs
    assert model.used_by == [evaluated, explained, exported]
    assert data.used_by == [training, evaluated]
    assert len(server.versions("custom_resnet-digits")) == len(server.versions("digits")) == 1
    made = server.version("custom_resnet-digits-timm:latest")
    assert made.run == exported and "model.safetensors" in made.files
    tables = sum(
        len(file) for one in server.artifacts.values() if one.kind == "run_table" for file in one.files.values()
    )
    added = sum(len(file) for file in made.files.values())
    assert server.uploaded_bytes() - uploaded <= tables + added


@pytest.mark.slow
def test_what_an_offline_model_is_used_for_leads_to_it_after_both_are_uploaded(server, tmp_path):
    folder = train(wandb="offline")
    inference.evaluate(folder, {"wandb": "offline", "gallery": 0})
    assert not server.runs
    for run in [*offline_runs(folder), *offline_runs(folder / "evaluation-test")]:
        assert os.system(f"python -m wandb sync --yes '{run.folder}' > /dev/null 2>&1") == 0
    training, evaluated = server.runs
    (model,) = server.versions("custom_resnet-digits")
    assert (model.run, model.used_by) == (training, [evaluated])
    assert {"latest", f"run-{training}"} <= set(model.aliases)
    (data,) = server.versions("digits")
    assert data.used_by == [training, evaluated]


@pytest.mark.slow
def test_new_best_epochs_are_logged_during_training_on_request(server, monkeypatch):
    monkeypatch.setattr(model_log, "INTERVAL", 0.0)
    train(epochs=4, log_model="best", model_ttl=5)
    *early, result = server.versions("custom_resnet-digits")
    assert early and all(version.ttl == 5 * 86_400 for version in early)
    assert all(version.metadata["classes"] == 10 for version in (*early, result))
    assert [version.metadata["epoch"] for version in early] == sorted({v.metadata["epoch"] for v in early})
    scores = [version.metadata["score"] for version in early]
    assert scores == sorted(scores) and result.metadata["score"] >= scores[-1]
    assert result.ttl is None and {"best", "latest"} <= set(result.aliases)
    assert not any({"best", "latest"} & set(version.aliases) for version in early)


@pytest.mark.slow
def test_models_during_training_are_logged_at_intervals(server):
    train(log_model="best", epochs=3)
    assert len(server.versions("custom_resnet-digits")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"log_model": "never"}, {"job": "trial"}])
def test_a_model_is_not_logged_where_nobody_asked_for_it(server, monkeypatch, settings):
    if settings.pop("job", ""):
        monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    folder = train(**settings)
    assert {version.kind for version in server.artifacts.values()} & {"model", "dataset"} == {"dataset"}
    assert not [one for one in harness_journal(folder).artifacts if one.kind == "model"]


def harness_journal(folder):
    from harness.tracking.journal import read_journal

    return read_journal(folder)
