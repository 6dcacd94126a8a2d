"""A checkpoint is loaded only when it is whole, written by harness, and fits its model."""

import json
import shutil

import pytest

from harness.evaluation.initial_weights import read_initial_weights
from harness.evaluation.trained_model import load_trained_model
from harness.utils.checksums import write_checked_json
from harness.utils.errors import CheckpointError, UsageError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no checkpoint"),
        ({"x.safetensors": b"junk"}, "not a checkpoint of harness"),
        ({"x.pt": b"junk"}, "not a checkpoint of harness"),
        (
            {"x.safetensors": b"junk", "x.json": b'{"format": 1, "config": {}, "classes": ["a"], "preprocess": {}}'},
            "damaged",
        ),
    ],
)
def test_a_checkpoint_that_harness_did_not_write_is_refused(content, message, tmp_path):
    for name, data in (content or {}).items():
        (tmp_path / name).write_bytes(data)
    path = tmp_path / next(iter(content or {"nothing": 0}))
    with pytest.raises(CheckpointError, match=message):
        load_trained_model(path)


def test_weights_for_another_model_are_refused_by_key(finished, tmp_path):
    _, folder = finished
    shutil.copytree(folder / "checkpoints", tmp_path / "c")
    facts = json.loads((tmp_path / "c/model.json").read_text())
    facts["config"]["model_args"] = {"width": 16}
    write_checked_json(tmp_path / "c/model.json", facts)
    with pytest.raises(CheckpointError, match=r"does not fit the model: .*instead of"):
        load_trained_model(tmp_path / "c/model.safetensors")


def test_a_setting_that_the_checkpoint_decides_is_refused(finished):
    _, folder = finished
    with pytest.raises(UsageError, match="model: fixed by the checkpoint"):
        load_trained_model(folder, {"model": "resnet18"})


def test_a_precision_and_a_device_that_are_left_to_the_machine_are_decided_when_the_model_is_loaded(finished):
    trained = load_trained_model(finished[1], {"device": "auto", "precision": "auto"})
    assert trained.config.precision in ("fp32", "bf16", "fp16")
    assert trained.device.type in ("cpu", "cuda", "mps") and next(trained.model.parameters()).device == trained.device


def test_a_folder_without_a_checkpoint_and_facts_that_make_no_sense_are_refused(finished, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .*: need a run directory, a model\.safetensors or a last"
    ):
        load_trained_model(tmp_path)
    _, folder = finished
    shutil.copytree(folder / "checkpoints", tmp_path / "c")
    facts = json.loads((tmp_path / "c/model.json").read_text())
    for change, message in (
        ({"classes": []}, "its classes make no sense"),
        ({"classes": "ten"}, "its classes make no sense"),
        ({"preprocess": {**facts["preprocess"], "size": -3}}, "its preprocessing makes no sense"),
    ):
        write_checked_json(tmp_path / "c/model.json", {**facts, **change})
        with pytest.raises(CheckpointError, match=f"has no usable configuration .*{message}"):
            load_trained_model(tmp_path / "c/model.safetensors")
        if "preprocess" in change:
            with pytest.raises(CheckpointError, match=r"has no usable configuration .*it is not a checkpoint of this"):
                read_initial_weights(str(tmp_path / "c/model.safetensors"))
