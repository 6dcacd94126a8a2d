"""Pretrained weights that are in the cache, can be downloaded, cannot, or are never answered for."""

import json
import socket
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models import save_for_hf

from harness.config.recipe import make_config
from harness.evaluation.initial_weights import read_initial_weights
from harness.models import available_weights
from harness.models.available_weights import why_no_weights
from harness.models.factory import create_model
from harness.models.names import input_side
from harness.utils.errors import DataError, UsageError
from tests.support.hub_server import COMMIT, serving, use_hub
from tests.support.training import assert_equal

NAME = "resnet18d.ra4_e3600_r224_in1k"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Let the hub's client use a server on the loopback and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    return lambda port: use_hub(monkeypatch, port)


def test_weights_that_nobody_has_are_none():
    assert why_no_weights("custom_resnet") == "custom_resnet has no pretrained weights"
    with pytest.raises(UsageError, match="there is no model"):
        why_no_weights("resnet18e")


def test_a_refused_connection_is_the_reason_at_once(hub):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        hub(probe.getsockname()[1])  # bound, but nobody listens
        began = time.monotonic()
        reason = why_no_weights(NAME)
    assert "cannot be downloaded" in reason and "\n" not in reason and time.monotonic() - began < 5


def test_a_run_that_asks_for_weights_is_refused_at_once_and_without_retries(hub, caplog):
    hub(1)
    began = time.monotonic()
    with pytest.raises(
        DataError, match=f"'{NAME}' cannot be loaded: .*downloaded.*; set --init RUN_OR_FILE .* --pretrained False"
    ):
        create_model(make_config({"model": NAME, "pretrained": True}), 10)
    assert time.monotonic() - began < 5 and not caplog.messages


@pytest.mark.parametrize(
    "options", [{"model": "hf-hub:timm/resnet18"}, {"init": "hf-hub:timm/resnet18", "model": "resnet18"}]
)
def test_a_model_or_weights_of_a_hub_that_cannot_be_reached_are_refused_at_once_and_without_retries(
    hub, caplog, options
):
    hub(1)
    began = time.monotonic()
    with pytest.raises(
        DataError, match=r"hf-hub:timm/resnet18' cannot be loaded.*: its configuration cannot be downloaded"
    ):
        read_initial_weights(options["init"]) if "init" in options else create_model(make_config(options), 10)
    assert time.monotonic() - began < 5 and not caplog.messages


def test_a_server_that_never_answers_is_waited_for_a_limited_time(hub):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub(silent.getsockname()[1])
        began = time.monotonic()
        reason = why_no_weights(NAME, answer_seconds=0.5)
    assert "cannot be downloaded" in reason and time.monotonic() - began < 5


def test_a_hub_that_is_switched_off_is_not_asked(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in why_no_weights(NAME)


def test_weights_in_the_cache_need_no_network(hub, tmp_path):
    folder = tmp_path / "hub/models--timm--resnet18d.ra4_e3600_r224_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, folder / "snapshots" / COMMIT / "model.safetensors")
    hub(1)
    assert why_no_weights(NAME) == ""


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_a_server_has_are_in_the_cache_afterwards(hub, tmp_path, file):
    save_file({"a": torch.arange(3.0)}, tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()

    with serving({file: content}) as port:
        hub(port)
        assert why_no_weights(NAME) == ""
    path = huggingface_hub.try_to_load_from_cache(f"timm/{NAME}", file)
    assert Path(path).read_bytes() == content
    hub(1)
    assert why_no_weights(NAME) == ""


def test_a_repository_without_a_file_of_weights_is_the_reason(hub):
    with serving({"README.md": b"later"}) as port:
        hub(port)
        reason = why_no_weights(NAME)
    assert reason.startswith("its pretrained weights cannot be downloaded (404 ") and "\n" not in reason


def test_weights_of_a_folder_are_not_asked_for_and_those_of_a_repository_are(hub, tmp_path):
    hub(1)
    (tmp_path / "config.json").write_text("{}")
    assert why_no_weights(f"local-dir:{tmp_path}") == ""
    assert "cannot be downloaded" in why_no_weights("hf-hub:somebody/net")


def test_weights_that_timm_downloads_from_an_address_are_in_torchs_cache_or_asked_for_there(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with serving({"net.pth": b"weights"}) as port:
        address = f"http://127.0.0.1:{port}"
        assert available_weights._why_not_from_url(f"{address}/net.pth", 5) == ""
        reason = available_weights._why_not_from_url(f"{address}/other.pth", 5)
        assert reason == "its pretrained weights cannot be downloaded (HTTP Error 404: Not Found)"
    assert "cannot be downloaded" in available_weights._why_not_from_url(f"{address}/net.pth", 5)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints/net.pth").write_bytes(b"weights")
    assert available_weights._why_not_from_url(f"{address}/net.pth", 5) == ""


def test_a_model_of_the_hub_has_the_input_side_of_its_configuration(hub, monkeypatch):
    content = {"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 48, 48]}}
    with serving({"config.json": json.dumps(content).encode()}) as port:
        hub(port)
        assert input_side("hf-hub:somebody/net") == 48
        assert input_side("hf-hub:somebody/net") == 48  # without asking again
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert input_side("hf-hub:somebody/third") == 0


def test_a_run_starts_from_weights_of_the_hub(hub, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=2)
    save_for_hf(model, str(tmp_path / "x"), model_config={"label_names": ["cat", "dog"]}, safe_serialization=True)
    files = {name: (tmp_path / "x" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    with serving(files) as port:
        hub(port)
        weights = read_initial_weights("hf-hub:somebody/net")
    assert_equal(dict(weights.weights), dict(model.state_dict()))
    assert weights.classes == ("cat", "dog") and weights.preprocess.size == model.pretrained_cfg["input_size"][-1]


def test_weights_of_the_hub_without_its_package_name_the_package(hub, monkeypatch):
    hub(1)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert why_no_weights(NAME) == "pretrained weights need the package huggingface_hub"


def test_weights_of_timm_that_are_not_on_the_hub_are_looked_for_in_torchs_cache(monkeypatch, tmp_path):
    cfg = timm.models.get_pretrained_cfg("gcvit_tiny.in1k")
    assert cfg.url and not cfg.hf_hub_id
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints" / cfg.url.rpartition("/")[2]).write_bytes(b"weights")
    assert why_no_weights("gcvit_tiny.in1k") == ""
