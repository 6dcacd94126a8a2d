"""A run directory of which files are gone, or were changed together with their checksums: one line, never another result."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch

from harness.evaluation.trained_model import load_trained_model
from harness.models.model_card import model_card
from harness.tracking.run_dir import RunState, list_runs, read_state
from harness.training import checkpoint
from harness.utils.checksums import SUMS
from harness.utils.errors import CheckpointError
from harness.utils.files import read_json, write_json
from tests.faults.test_hostile import command, refused
from tests.fuzz import run_folders
from tests.fuzz.damage import sign_anew
from tests.support.checkpoints import vouch_for
from tests.support.forked import harness
from tests.support.shared import copy_folder

BY_NAME = ["run", *run_folders.SETTINGS, "--name", "stopped"]


@pytest.fixture
def folder(runs_and_picture, tmp_path):
    """A copy of them."""
    return copy_folder(runs_and_picture, tmp_path / "altered")


def contents(run):
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}


# --- files that are gone


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [BY_NAME, ["run", "--recipe", "digits", "--resume", "runs/stopped"]], ids=["name", "resume"]
)
def test_a_run_without_its_settings_is_neither_started_over_nor_written_to(words, folder, capfd, monkeypatch):
    run = folder / "runs/stopped"
    (run / "config.yaml").unlink()
    before = contents(run)
    line = refused(words, 2, capfd, monkeypatch, folder)
    assert "config.yaml cannot be read" in line and "--resume never" in line
    assert contents(run) == before
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["done", "other", "stopped"]


def test_a_run_without_its_settings_is_listed_with_no_command_that_resumes_it(folder, capfd, monkeypatch):
    (folder / "runs/stopped/config.yaml").unlink()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["harness", "runs"])
    with pytest.raises(SystemExit):
        from harness.cli.main import main

        main()
    lines = capfd.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["stopped", "unreadable"] for line in lines)
    assert not any("--resume" in line for line in lines)


@pytest.mark.parametrize("left", [[], ["journal.jsonl"], ["status.json"], ["checkpoints"]])
def test_only_a_folder_without_journal_status_and_checkpoints_has_no_run(left, folder):
    run = folder / "runs/stopped"
    for name in {"config.yaml", "journal.jsonl", "status.json", "checkpoints"} - set(left):
        (shutil.rmtree if (run / name).is_dir() else Path.unlink)(run / name)
    assert read_state(run) == (RunState.UNREADABLE if left else RunState.NONE)
    assert ("stopped" in {path.name for path, _, _ in list_runs(folder / "runs")}) == bool(left)


def test_a_run_whose_checkpoints_and_status_are_gone_is_not_started_over(folder, capfd, monkeypatch):
    run = folder / "runs/stopped"
    shutil.rmtree(run / "checkpoints")
    (run / "status.json").unlink()
    before = contents(run)
    line = refused(BY_NAME, 4, capfd, monkeypatch, folder)
    assert "are gone, the last one of step 11;" in line and "--resume never" in line
    assert contents(run) == {**before, Path(".lock"): b""}


@pytest.mark.parametrize("gone", ["status.json", SUMS])
def test_a_finished_run_without_the_weights_of_its_result_is_not_evaluated_from_another_checkpoint(gone, folder):
    """Either of the status and the checksums tells that there were such weights."""
    run = folder / "runs/done"
    (run / "checkpoints/model.safetensors").unlink()
    (run / gone).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors with the weights of the result is gone; .*last\.pt"):
        load_trained_model(run)
    assert load_trained_model(run / "checkpoints/last.pt").path.name == "last.pt"


def test_an_unfinished_run_is_evaluated_from_its_last_checkpoint(folder):
    assert load_trained_model(folder / "runs/stopped").path.name == "last.pt"


# --- checksums that were taken out


def rewrite(path, change):
    """Change the values of a JSON file without its checksum."""
    facts = read_json(path)
    change(facts)
    write_json(path, facts)


def without_sums(facts, version):
    for key in ("sha256", "checksum"):
        facts.pop(key, None)
    facts["format"] = version
    facts["preprocess"]["mean"][0] += 0.25


@pytest.mark.parametrize("version", [1, 2])
def test_facts_whose_checksums_were_taken_out_are_refused_where_the_run_lists_them(version, folder):
    run = folder / "runs/done"
    rewrite(run / "checkpoints/model.json", lambda facts: without_sums(facts, version))
    with pytest.raises(CheckpointError, match=r"is damaged: .*checksum"):
        load_trained_model(run)


@pytest.mark.parametrize("key", ["sha256", "checksum"])
def test_facts_of_the_present_format_have_both_checksums(key, folder):
    run = folder / "runs/done"
    assert read_json(run / "checkpoints/model.json")["format"] == checkpoint.WEIGHTS_FORMAT == 2
    if key == "sha256":
        facts = read_json(run / "checkpoints/model.json")
        del facts[key]
        sign_anew(run / "checkpoints/model.json", facts)
    else:
        rewrite(run / "checkpoints/model.json", lambda facts: facts.pop(key))
        (run / SUMS).unlink()
    with pytest.raises(CheckpointError, match="is damaged: it has no checksums"):
        load_trained_model(run)


def test_weights_of_version_0_1_are_loaded_and_one_line_tells_that_they_were_not_verified(folder, caplog):
    path = folder / "runs/done/checkpoints/model.safetensors"
    expected, _ = checkpoint.load_weights(path)
    rewrite(path.with_suffix(".json"), lambda facts: without_sums(facts, 1))
    (folder / "runs/done" / SUMS).unlink()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            weights, _ = checkpoint.load_weights(path)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "model.safetensors has no checksums, as in version 0.1: it was not verified" in message


def test_a_flipped_bit_of_weights_without_own_checksums_is_noticed_by_those_of_the_run(folder):
    path = folder / "runs/done/checkpoints/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    rewrite(path.with_suffix(".json"), lambda facts: without_sums(facts, 1))
    with pytest.raises(CheckpointError, match="is damaged: SHA256SUMS has another checksum"):
        load_trained_model(path)


# --- values that were changed together with their checksums


def no_epochs(facts):
    del facts["config"]["epochs"]


FACTS = {
    "crop mode a list": (lambda facts: facts["preprocess"].update(crop_mode=["x"]), 4),
    "crop mode unknown": (lambda facts: facts["preprocess"].update(crop_mode="evil"), 4),
    "mean beyond a float": (lambda facts: facts["preprocess"].update(mean=[10**400, 0, 0]), 4),
    "result a text": (lambda facts: facts.update(result="x"), 0),
    "epoch and chosen markup": (lambda facts: facts.update(epoch="<b>", result={"<b>": 0.5, "chosen": "<b>\n"}), 0),
    "no epochs": (no_epochs, 0),
}


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("file", ["model.json", "last.pt"])
def test_signed_facts_with_other_values_are_refused_or_exported(file, name, folder, capfd, monkeypatch):
    change, status = FACTS[name]
    path = folder / "runs/done/checkpoints" / file
    if file == "model.json":
        facts = read_json(path)
        change(facts)
        sign_anew(path, facts)
        path = folder / "runs/done"
    else:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)
        vouch_for(path)
    words = ["export", path, "--timm", "out"]
    if status:
        assert "has no usable configuration" in refused(words, status, capfd, monkeypatch, folder)
    else:
        ended, errors = command(words, capfd, monkeypatch, folder)
        assert ended == 0, errors
        assert "<b>" not in (folder / "out/README.md").read_text()


def test_the_card_of_a_configuration_without_a_setting_has_its_default(folder):
    facts = read_json(folder / "runs/done/checkpoints/model.json")
    del facts["config"]["seed"]
    assert "seed 0." in model_card(facts)


def dense(state):
    return state["learner"]["model"], next(iter(state["learner"]["model"]))


def with_weight(make):
    def change(state):
        weights, name = dense(state)
        weights[name] = make(weights[name])

    return change


WEIGHTS = {
    "a number": (with_weight(lambda weight: 5), "int instead of a tensor"),
    "sparse": (with_weight(torch.Tensor.to_sparse), "instead of a dense tensor"),
    "complex": (with_weight(lambda weight: weight.to(torch.complex64)), "torch.complex64 instead of torch.float32"),
    "integer": (with_weight(torch.Tensor.long), "torch.int64 instead of torch.float32"),
    "without data": (with_weight(lambda weight: weight.to("meta")), "instead of a dense tensor"),
    "no mapping": (lambda state: state["learner"].update(model=5), "no"),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("run", ["done", "stopped"])
def test_a_checkpoint_whose_weights_are_no_dense_tensors_of_the_models_kind_is_refused(
    run, name, folder, capfd, monkeypatch
):
    """By evaluate, and by a resume."""
    change, message = WEIGHTS[name]
    path = folder / "runs" / run / "checkpoints/last.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    vouch_for(path)
    words = BY_NAME if run == "stopped" else ["export", path, "--timm", "out"]
    assert message in refused(words, 4, capfd, monkeypatch, folder)


def buffer(state):
    return next(iter(state["learner"]["optimizer"]["state"].values()))


def sparse_buffer(state):
    buffers = buffer(state)
    buffers["momentum_buffer"] = buffers["momentum_buffer"].to_sparse()


POSITIONS = {
    "step a text": lambda state: state["progress"].update(step="x"),
    "step negative": lambda state: state["progress"].update(step=-3),
    "step true": lambda state: state["progress"].update(step=True),
    "step of another epoch": lambda state: state["progress"].update(step=10**6),
    "empty": lambda state: state.update(progress={}),
    "a number": lambda state: state.update(progress=7),
    "history of texts": lambda state: state["progress"].update(history=[{"epoch": 1.0, "val/acc": "x"}]),
    "history of a huge integer": lambda state: state["progress"]["history"][0].update({"test/acc": 10**400}),
    "history without epochs": lambda state: state["progress"]["history"][0].pop("epoch"),
    "rates of texts": lambda state: state["progress"].update(lrs=["x"] * len(state["progress"]["lrs"])),
    "a size of zero": lambda state: state["progress"].update(sizes=[0] * len(state["progress"]["sizes"])),
    "losses gone": lambda state: state["progress"].update(losses=None),
    "losses sparse": lambda state: state["progress"].update(losses=state["progress"]["losses"].to_sparse()),
    "seconds NaN": lambda state: state["progress"].update(seconds=float("nan")),
    "random a text": lambda state: state["progress"].update(random={"cpu": "x"}),
    "optimizer sparse": sparse_buffer,
}


@pytest.mark.parametrize(
    "name", [name if n % 2 else pytest.param(name, marks=pytest.mark.slow) for n, name in enumerate(POSITIONS)]
)
def test_a_checkpoint_whose_position_makes_no_sense_is_refused_before_it_trains(name, folder, capfd, monkeypatch):
    path = folder / "runs/stopped/checkpoints/last.pt"
    state = torch.load(path, weights_only=True)
    POSITIONS[name](state)
    torch.save(state, path)
    vouch_for(path)
    line = refused(BY_NAME, 4, capfd, monkeypatch, folder)
    assert "--resume never" in line


@pytest.mark.slow
def test_the_undamaged_runs_are_resumed_and_exported(folder):
    harness(*BY_NAME, cwd=folder, check=0)
    harness("export", "runs/done", "--timm", "out", cwd=folder, check=0)
