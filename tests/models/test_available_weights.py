"""Pretrained weights that are in the cache, can be downloaded, cannot, or are never answered for."""

import http.server
import socket
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from harness.config.recipe import make_config
from harness.models.available_weights import why_no_weights
from harness.models.factory import create_model
from harness.utils.errors import DataError, UsageError

NAME = "resnet18d.ra4_e3600_r224_in1k"
COMMIT = "0" * 40


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Let the hub's client use a server on the loopback and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def use(port):
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            f"http://127.0.0.1:{port}" + template[template.index("/{repo_id}") :],
        )

    return use


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

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            if not self.path.endswith(file):
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.end_headers()
                return
            self.send_response(200)
            for key, value in {"X-Repo-Commit": COMMIT, "ETag": '"1"', "Content-Length": len(content)}.items():
                self.send_header(key, str(value))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub(server.server_address[1])
        assert why_no_weights(NAME) == ""
        server.shutdown()
    path = huggingface_hub.try_to_load_from_cache(f"timm/{NAME}", file)
    assert Path(path).read_bytes() == content
    hub(1)
    assert why_no_weights(NAME) == ""
