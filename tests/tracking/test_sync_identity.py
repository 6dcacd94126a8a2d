"""What `harness sync` completes from the journal changes neither whose run it is nor which of its models is the result."""

import json
import shutil

import pytest

from harness.config.settings import Config
from harness.tracking import lineage
from harness.tracking.journal import Journal, read_journal
from harness.tracking.records import Artifact
from harness.tracking.tracker import MultiTracker
from harness.tracking.wandb import from_journal, init, run_logs
from harness.tracking.wandb import sync as wandb_sync
from tests.support.records import epoch
from tests.tracking.test_wandb import SLIM

OF_THE_RUN = {"PROJECT": "foo", "NAME": "mine", "TAGS": "t", "RUN_GROUP": "g", "JOB_TYPE": "j", "NOTES": "n"}


@pytest.fixture(autouse=True)
def slim(monkeypatch):
    """W&B without system statistics and git, which take time."""
    for name, value in SLIM.items():
        monkeypatch.setenv(f"WANDB_{name}", value)


def lacking(folder, *artifacts, process=None, records=1):
    """Write an offline run, whose journal has some records more than W&B's log."""
    config = Config(epochs=2, peak_epoch=1, wandb="offline")
    journal = Journal(folder, {"config": config.to_dict(), "process": process or {}})
    tracker = init.start(config, folder, run_name="by default", run_id="r", notify=print)
    MultiTracker([journal, tracker]).record(epoch(1))
    for artifact in artifacts:
        tracker.artifact(artifact)
    tracker.finish("failed", 1)
    for number in range(records):
        journal.record(epoch(2 + number))
    return journal


def model(folder, name, **about):
    path = folder / f"{name}.bin"
    path.write_bytes(name.encode())
    return Artifact("m", "model", {"w.bin": path}, **about)


def test_a_run_that_is_completed_keeps_the_identity_that_variables_gave_it(tmp_path, server, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OF_THE_RUN.items():
            patch.setenv(f"WANDB_{name}", value)
        lacking(tmp_path).finish("failed", 1)
    before = run_logs.load(tmp_path).run
    for name in ("TAGS", "RUN_GROUP", "JOB_TYPE", "NOTES", "HOST"):
        monkeypatch.setenv(f"WANDB_{name}", "uploader")
    wandb_sync.sync(tmp_path, print)
    after = run_logs.load(tmp_path).run
    for name in from_journal.IDENTITY:
        assert getattr(after, name) == getattr(before, name), name
    (run,) = server.runs.values()
    assert server.steps == [1, 2, 3, 4, 5, 6]
    assert (run.upserted["displayName"], run.upserted["groupName"]) == ("mine", "g")


@pytest.mark.slow
def test_a_run_that_was_completed_is_looked_up_in_the_same_project_the_next_time(tmp_path, server, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_PROJECT", "foo")
        lacking(tmp_path).finish("failed", 1)
    projects, look_up = [], wandb_sync.look_up_arrived
    monkeypatch.setattr(wandb_sync, "look_up_arrived", lambda *where: projects.append(where[1]) or look_up(*where))
    wandb_sync.sync(tmp_path, print)
    wandb_sync.sync(tmp_path, print)
    assert set(projects) == {"foo"}


@pytest.mark.parametrize("records", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_summary_of_the_journal_arrives_whether_rows_were_lacking_or_not(tmp_path, server, records):
    journal = lacking(tmp_path, records=records)
    journal.summary({"best/val_acc": 0.75, "status": "failed"})
    journal.finish("failed", 1)
    wandb_sync.sync(tmp_path, print)
    (run,) = server.runs.values()
    assert (run.summary["best/val_acc"], run.summary["status"]) == (0.75, "failed")


@pytest.mark.slow
def test_a_run_without_logs_gets_nothing_of_the_process_that_uploads_it(tmp_path, server, monkeypatch):
    lacking(tmp_path).finish("failed", 1)
    shutil.rmtree(tmp_path / "wandb")
    for name in ("TAGS", "RUN_GROUP", "JOB_TYPE", "NOTES", "HOST"):
        monkeypatch.setenv(f"WANDB_{name}", "uploader")
    wandb_sync.sync(tmp_path, print)
    (run,) = server.runs.values()
    assert "uploader" not in json.dumps(run.upserted)


def test_the_artifacts_of_a_run_follow_it_to_another_project_and_id(tmp_path):
    (tmp_path / "run").mkdir()
    lacking(tmp_path / "run", model(tmp_path / "run", "result")).finish("finished", 0)
    content = run_logs.load(tmp_path / "run")
    changes = {"run_id": "new", "project": "other", "entity": "team"}
    chosen = run_logs.select(content, rows=[], files=[], artifacts=list(content.artifacts), after=0.0, changes=changes)
    artifacts = [record.artifact for record in chosen if record.HasField("artifact")]
    assert [(one.run_id, one.project, one.entity) for one in artifacts] == [("new", "other", "team")]


def test_an_interim_model_does_not_stand_for_that_of_the_result(tmp_path, server):
    interim = model(tmp_path, "interim", aliases=("epoch-1",), is_interim=True)
    journal = lacking(tmp_path, interim)
    journal.artifact(model(tmp_path, "result"))
    journal.finish("finished", 0)
    wandb_sync.sync(tmp_path, print)
    files = {one.files["w.bin"]: one.aliases for one in server.artifacts.values() if one.name == "m"}
    assert files.keys() == {b"interim", b"result"} and "run-r" in files[b"result"]


def test_the_facts_of_a_foreign_process_are_left_out_where_wandb_cannot_express_them(tmp_path, server):
    foreign = {"started": 1e300, "cpu_count": -3, "host": "\ud800", "args": ["\ud800"]}
    lacking(tmp_path, process=foreign).finish("failed", 1)
    wandb_sync.sync(tmp_path, print)
    assert server.steps == [1, 2, 3, 4, 5, 6]


def test_a_journal_whose_config_is_a_list_names_no_project_of_its_model(tmp_path):
    journal = Journal(tmp_path, {"config": [1]})
    journal.artifact(model(tmp_path, "result"))
    journal.finish("finished", 0)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/harness-sent.json").write_text('{"run_id": "r", "step": 1}')
    assert read_journal(tmp_path).artifacts
    assert lineage.model_of_run(tmp_path).version == "m:run-r"
