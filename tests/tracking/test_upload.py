"""What `harness sync` gives to W&B's own command, what it makes of that one's end, and of a model that W&B refuses."""

import errno
import os
import sys
import time
from types import SimpleNamespace

import pytest

from harness.config.settings import Config
from harness.tracking.journal import JournalContents
from harness.tracking.records import Artifact
from harness.tracking.wandb import artifacts, offline_log, sync, upload
from harness.tracking.wandb.api import wandb_api_errors
from harness.tracking.wandb.arrived import Arrived
from harness.tracking.wandb.session import Session
from harness.utils.errors import TrackingError
from harness.utils.files import read_json
from tests.tracking.test_run_logs import artifact, listed, load, protobuf, row, staged, write_log

# In place of `python -m wandb sync ... LOG`: it keeps the folder of the log, which is removed afterwards.
PROGRAM = """#!/bin/sh
for log; do :; done
cp -r "$(dirname "$log")" "$KEPT"
{ending}
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Return a function that uploads a run with a command of the given end, and the folder that it was given."""
    folder, kept = tmp_path / "run", tmp_path / "kept"
    inner = write_log(folder, listed("media/a.png"), row(1), row(2))
    (inner / "files/media/a.png").write_text("picture")
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("KEPT", str(kept))

    def send(ending="", timeout=60.0, keys=()):
        program.write_text(PROGRAM.format(ending=ending))
        program.chmod(0o755)
        content = load(folder)
        options = {"rows": [2], "files": content.files, "artifacts": keys, "after": 0.0}
        why = upload.upload(content, "abc", folder / "wandb", changes={}, timeout=timeout, **options)
        assert not list((folder / "wandb").glob(".sync-*"))
        return why, kept

    send.folder = folder
    return send


@pytest.mark.parametrize("has_links", [True, False])
def test_the_log_has_the_rows_that_are_sent_and_its_files_beside_it(command, monkeypatch, has_links):
    if not has_links:

        def refuse(*paths, **options):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refuse)
    why, kept = command()
    assert why == "" and (kept / "files/media/a.png").read_text() == "picture"
    records = list(offline_log.read_log(kept / "run-abc.wandb"))
    assert [offline_log.step_of(each.history) for each in records if each.HasField("history")] == [2]
    assert [each.num for each in records] == list(range(1, len(records) + 1))


def test_the_manifest_of_an_artifact_of_many_files_has_their_present_paths(command):
    staged(command.folder, "weights")
    staged(
        command.folder, "manifest", '{"contents": {"a": {"local_path": "/elsewhere/wandb/data/weights", "size": 1}}}'
    )
    log = next((command.folder / "wandb").glob("*run-*")) / "run-abc.wandb"
    record = protobuf.Record(artifact=artifact("d", manifest="/elsewhere/wandb/data/manifest"))
    log.write_bytes(offline_log.encode_log([*offline_log.records(log.read_bytes()), record.SerializeToString()]))
    _, kept = command(keys=[("m", "d")])
    (sent,) = [each.artifact for each in offline_log.read_log(kept / "run-abc.wandb") if each.HasField("artifact")]
    contents = read_json(kept / os.path.basename(sent.manifest.manifest_file_path))["contents"]
    assert contents == {"a": {"local_path": str(command.folder / "wandb/data/weights"), "size": 1}}


@pytest.mark.parametrize(
    ("ending", "why"),
    [
        ("echo 'Syncing: ok'", ""),
        ("echo 'wandb: ERROR first'; echo 'wandb: ERROR  refused'; echo done; exit 1", "wandb: ERROR refused"),
    ],
)
def test_why_wandb_refuses_a_run_is_the_last_error_that_its_command_prints(command, ending, why):
    assert " ".join(command(ending)[0].split()) == why


def test_what_describes_another_run_does_not_reach_the_command(command, monkeypatch):
    for name in ("WANDB_NAME", "WANDB_RUN_ID", "WANDB_MODE", "WANDB_RESUME_FROM", "WANDB_SILENT", "WANDB_SERVICE"):
        monkeypatch.setenv(name, "of another run")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    _, kept = command('env > "$KEPT/env"')
    variables = dict(line.partition("=")[::2] for line in (kept / "env").read_text().splitlines())
    assert "of another run" not in variables.values()
    assert variables["WANDB_BASE_URL"] == "http://127.0.0.1:1" and variables["WANDB_PROGRAM"] == "harness"
    assert (variables["WANDB_CONSOLE"], variables["PYTHONSAFEPATH"]) == ("off", "1")
    assert variables["WANDB_DIR"].startswith(str(command.folder / "wandb" / ".sync-"))


def test_a_command_that_does_not_end_is_ended_with_what_it_has_started(command, tmp_path):
    beats = tmp_path / "beats"
    why, _ = command(f"(while sleep 0.02; do echo >> {beats}; done) & wait", timeout=2)
    assert why.startswith("not uploaded within ") and beats.stat().st_size > 1
    size = beats.stat().st_size
    time.sleep(0.2)
    assert beats.stat().st_size == size


def test_without_wandb_nothing_is_looked_up(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrackingError, match=r"W&B is not installed .*; pip install wandb"), wandb_api_errors():
        pass


class Refusing:
    """What W&B shows of its artifacts, which it refuses to change."""

    def artifact(self, path):
        raise ValueError(f"no permission for {path}")


@pytest.mark.parametrize("link", ["", "registry/models"])
def test_a_model_that_wandb_lacks_or_refuses_is_an_error_only_where_a_link_was_requested(tmp_path, link):
    (tmp_path / "weights").write_text("x")
    journal = JournalContents(artifacts=[Artifact("m", "model", {"weights": tmp_path / "weights"})])
    staged(tmp_path, "weights")
    write_log(tmp_path, protobuf.Record(artifact=artifact("d", "/r/wandb/data/weights", aliases=["run-abc"])))
    lacking, content = load(tmp_path / "nothing"), load(tmp_path)
    for each, arrived, message in (
        (lacking, Arrived("e/p/abc"), "W&B lacks the model"),
        (content, Arrived("e/p/abc", artifacts={("m", "d"): 4}), "no permission for e/p/m:v4"),
        (content, Arrived("e/p/abc", artifacts=None), "no permission for e/p/m:run-abc"),
    ):
        if not link:
            sync._complete_model(Refusing(), "abc", arrived, journal, each, link)
            continue
        with pytest.raises(TrackingError, match=f"its model is not linked to registry/models: {message}"):
            sync._complete_model(Refusing(), "abc", arrived, journal, each, link)


def test_a_result_whose_version_cannot_be_changed_is_named_since_wandb_may_delete_it(tmp_path):
    def refuse():
        raise ValueError("read-only token")

    version = SimpleNamespace(name="m:v3", aliases=["epoch-3"], metadata={}, ttl=None, save=refuse)
    model, lines = Artifact("m", "model", {}, aliases=("latest",), metadata={"epoch": 3}), []
    for wait in (lambda timeout: version, lambda timeout: refuse()):  # the second: W&B does not show it
        session = Session(None, Config(), tmp_path, {}, None, lines.append, online=True, run_id="abc")
        session.result = (SimpleNamespace(wait=wait), model)
        artifacts.complete_result(session)
    assert lines == [
        "W&B had the model of the result already, from an epoch during a training, and may delete it (read-only token). "
        "In W&B, remove the TTL of m:v3"
    ]
    assert version.aliases == ["epoch-3", "run-abc", "latest"] and version.metadata == {"epoch": 3}
