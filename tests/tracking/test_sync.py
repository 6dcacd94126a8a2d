"""`harness sync` with a W&B server on the loopback."""

import json
import random
import re
import time
from dataclasses import replace

import pytest
from wandb.proto import wandb_internal_pb2

from harness.config.settings import Config
from harness.tracking.journal import Journal, read_journal
from harness.tracking.records import Artifact, Curve, Record
from harness.tracking.run_dir import RunDir, claim_run_dir
from harness.tracking.tracker import MultiTracker
from harness.tracking.wandb import from_journal, init, offline_log
from harness.tracking.wandb import sync as wandb_sync
from harness.tracking.wandb.offline_log import last_step
from harness.utils.errors import BusyError, DataError, TrackingError, UsageError
from tests.support import wandb_files
from tests.support.forked import harness as command
from tests.support.records import final
from tests.support.wandb_server import KEY
from tests.tracking.test_sync_content import train
from tests.tracking.test_wandb import SLIM


def epoch(number, steps=4):
    first = (number - 1) * steps
    losses = [1 / (first + step) for step in range(1, steps + 1)]
    lines = Curve("step", list(range(first + 1, first + steps + 1)), {"train/step_loss": losses})
    return Record(first + steps, number, {"epoch": number, "val/acc": number / 10}, lines)


@pytest.fixture
def killed(tmp_path):
    """The directory of a run that was killed after three epochs, its journal without its last line."""
    config = Config(output=str(tmp_path), wandb="offline", name="killed")
    folder = claim_run_dir(config)
    (folder.path / "config.yaml").write_text(config.to_yaml())
    journal = Journal(folder.path, {"config": config.to_dict()})
    for number in (1, 2, 3):
        journal.record(epoch(number))
    journal.finish("finished", 0)
    *lines, _ = journal.path.read_text().splitlines(keepends=True)
    journal.path.write_text("".join(lines))  # as after a kill
    folder.close()
    return folder.path


def test_a_killed_run_is_uploaded_completely_and_each_step_once(killed, server):
    first = wandb_sync.sync(killed, print)
    assert (first.records, first.sent) == (3, 3)
    assert server.steps == list(range(1, 13))
    assert [row["val/acc"] for row in server.history if "val/acc" in row] == pytest.approx([0.1, 0.2, 0.3])
    assert server.exit_code == 1  # it was killed
    assert wandb_sync.sync(killed, print).sent == 0
    assert server.steps == list(range(1, 13))
    assert not any(KEY in path.read_text(errors="ignore") for path in killed.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_run_whose_values_wandb_refuses_is_uploaded_with_corrected_ones(killed, server):
    journal = killed / "journal.jsonl"
    refused = {"project": "a/b:1", "tags": ["a" * 90]}
    header, *lines = journal.read_text().splitlines(keepends=True)
    document = json.loads(header)
    document["config"] |= refused  # as earlier versions began it
    journal.write_text(json.dumps(document) + "\n" + "".join(lines))
    with pytest.raises(UsageError, match=r"--project='a/b:1'.*give another value to harness sync"):
        wandb_sync.sync(killed, print)
    assert not server.runs
    done = command("sync", killed, "--project", "ab", "--tags", "short,tags", cwd=killed.parent, account=True, check=0)
    assert "3 of 3 records sent" in done.out
    assert server.steps == list(range(1, 13))
    assert next(iter(server.runs.values())).config["tags"] == ["short", "tags"]


@pytest.fixture
def half(killed, monkeypatch):
    """The run `killed` with W&B's log of its first epoch and an artifact, made with names and labels of the shell's."""
    own = {"PROJECT": "lab", "NAME": "chosen", "TAGS": "a,b", "RUN_GROUP": "g", "JOB_TYPE": "j", "NOTES": "n"}
    with monkeypatch.context() as shell:
        for name, value in own.items():
            shell.setenv(f"WANDB_{name}", value)
        config = Config(**json.loads((killed / "journal.jsonl").read_text().splitlines()[0])["config"])
        tracker = init.start(config.replace(name=""), killed, run_name="killed", run_id="abcd1234")
        tracker.record(epoch(1))
        tracker.artifact(Artifact("notes", "notes", {"config.yaml": killed / "config.yaml"}))
        tracker.finish("failed", 1)
    return killed


@pytest.mark.slow
def test_a_completed_run_keeps_its_own_project_name_and_labels(half, server, monkeypatch):
    for name in ("TAGS", "RUN_GROUP", "JOB_TYPE", "NOTES", "NAME", "HOST"):
        monkeypatch.setenv(f"WANDB_{name}", "of the upload")
    wandb_sync.sync(half, print)
    assert server.steps == list(range(1, 13))
    (run,) = server.runs.values()
    assert run.name == "chosen"
    said = run.upserted
    assert server.projects[0] == "lab", "later requests have the project that the server has answered with"
    assert (said["groupName"], said["jobType"], said["notes"]) == ("g", "j", "n")
    assert sorted(said["tags"]) == ["a", "b"] and said["host"] != "of the upload"
    assert {artifact.project for artifact in server.artifacts.values()} == {"lab"}


@pytest.mark.slow
def test_artifacts_go_where_their_run_is_uploaded(half, server):
    wandb_sync.sync(half, print, corrections={"project": "other"})
    assert server.projects[0] == "other"
    assert {artifact.project for artifact in server.artifacts.values()} == {"other"}


@pytest.mark.slow
def test_settings_that_the_run_has_determined_are_those_of_the_uploaded_run(killed, server):
    journal = Journal.resume(killed, 12)
    journal.settings({"lr_max": 0.125, "lr_max_requested": "find"})
    journal.finish("failed", 1)
    wandb_sync.sync(killed, print)
    (run,) = server.runs.values()
    assert (run.config["lr_max"], run.config["lr_max_requested"]) == (0.125, "find")


def media(run):
    """Return the content of the files that the rows of a run lead to."""
    return {name: content for name, content in run.files.items() if name.startswith("media/")}


@pytest.mark.slow
def test_tables_charts_and_layers_of_a_synced_run_are_those_of_the_online_run(tmp_path, server):
    config = Config(output=str(tmp_path), wandb="online", name="online")
    folder = claim_run_dir(config)
    (folder.path / "config.yaml").write_text(config.to_yaml())
    journal = Journal(folder.path, {"config": config.to_dict()})
    tracker = MultiTracker([journal, init.start(config, folder.path, run_name="online", run_id="online")])
    record = final(6)
    tracker.record(replace(record, values={key: value for key, value in record.values.items() if key != "gallery"}))
    tracker.finish("finished", 0)
    folder.close()
    wandb_sync.sync(folder.path, print, anew=True)
    online, synced = server.runs.values()
    assert media(online) == media(synced) and len(media(online)) > 8
    for key in ("visualize", "mask/class_labels"):
        assert online.config["_wandb"][key] == synced.config["_wandb"][key]
    assert [sorted(row) for row in online.history] == [sorted(row) for row in synced.history]
    contents = [
        {name: content for one in server.artifacts.values() if one.run == run_id for name, content in one.files.items()}
        for run_id in server.runs
    ]
    for files in contents:
        del files["manifest"]
    assert contents[0] == contents[1] and {"roc_table.table.json", "wrong.table.json"} <= set(contents[0])


@pytest.mark.slow
def test_a_server_that_lost_the_last_steps_is_sent_only_those(killed, server):
    wandb_sync.sync(killed, print)
    for line in list(server.rows)[8:]:
        del server.rows[line]
    assert wandb_sync.sync(killed, print).sent == 1
    assert server.steps == list(range(1, 13))


def test_a_run_that_is_still_being_written_is_refused(killed):
    held = claim_run_dir(Config(output=str(killed.parent), wandb="offline", name="killed"))
    assert isinstance(held, RunDir)
    assert held.path == killed
    with pytest.raises(BusyError, match="still being written"):
        wandb_sync.sync(killed, print)
    held.close()


def test_a_folder_without_a_journal_is_refused(tmp_path):
    with pytest.raises(DataError, match="journal"):
        wandb_sync.sync(tmp_path, print)


@pytest.mark.parametrize(("status", "exit_code"), [("finished", 0), ("stopped", 143), ("failed", 5)])
def test_the_log_that_is_made_of_a_journal_has_its_rows_summary_artifacts_and_exit_status(
    tmp_path, monkeypatch, status, exit_code
):
    for name, value in SLIM.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    config = Config(wandb="offline", name="mine", group="g", tags=("a",))
    (tmp_path / "weights.bin").write_bytes(b"weights")
    artifact = Artifact("model", "model", {"weights.bin": tmp_path / "weights.bin"}, ("best",), {"acc": 0.5})
    started = 1_700_000_000.0
    journal = Journal(tmp_path, {"config": config.to_dict(), "process": {"started": started, "host": "elsewhere"}})
    for number in (1, 2):
        times = [started + 10 * number + index for index in range(4)]
        journal.record(replace(epoch(number), time=times[-1] + 5, step_times=times))
    journal.settings({"lr_max": 0.125})
    journal.artifact(artifact)
    journal.summary({"result/acc": 0.75, "status": status})
    journal.finish(status, exit_code)
    contents = read_journal(tmp_path)
    target = {"project": "p", "entity": "", "run_id": "abcd1234"}
    identity = from_journal.run_identity(config, tmp_path, target, None)
    chosen = [(contents.records[0], {1, 2, 3, 4}), (contents.records[1], {7, 8})]
    from_journal.add_log(config, tmp_path, identity, contents, chosen, contents.artifacts, print)
    (log,) = wandb_files.offline_runs(tmp_path)
    assert log.steps == [1, 2, 3, 4, 7, 8]
    assert [row["_runtime"] for row in log.rows] == [10, 11, 12, 18, 22, 28]  # from the start of the run's own process
    assert log.rows[3]["val/acc"] == pytest.approx(0.1) and log.rows[5]["val/acc"] == pytest.approx(0.2)
    assert (log.summary["result/acc"], log.summary["status"]) == (0.75, status)
    assert log.exit_code == exit_code
    assert (log.run_id, log.name, log.group, log.tags, log.project) == ("abcd1234", "mine", "g", ["a"], "p")
    assert log.config["lr_max"] == 0.125
    (model,) = log.artifacts
    assert (model["name"], model["metadata"]) == ("model", {"acc": 0.5})


def test_a_run_that_has_logs_stays_the_run_that_they_describe_and_another_one_is_that_of_its_settings(tmp_path):
    config = Config(wandb="offline", group="g", job_type="train", notes="of the settings", tags=("a",))
    target = {"project": "p", "entity": "me", "run_id": "abcd1234"}
    logged = {
        "project": "former", "entity": "us", "display_name": "shown", "job_type": "j", "run_group": "h", "notes": "n",
        "host": "there", "sweep_id": "s",
    }  # fmt: skip
    known = wandb_internal_pb2.RunRecord(run_id="other", tags=["b", "c"], **logged)
    run = from_journal.run_identity(config, tmp_path, target, known)
    assert {name: getattr(run, name) for name in logged} == logged
    assert (run.run_id, list(run.tags)) == ("abcd1234", ["b", "c"])
    run = from_journal.run_identity(config, tmp_path, target, None)
    assert (run.project, run.entity, run.display_name, run.run_group) == ("p", "me", tmp_path.name, "g")
    assert (run.job_type, run.notes, list(run.tags)) == ("train", "of the settings", ["a"])


def test_the_step_of_a_row_is_its_own_item_where_it_has_one(tmp_path):
    def row(number, **items):
        record = wandb_internal_pb2.Record()
        record.history.step.num = number
        for key, value in items.items():
            record.history.item.add(key=key, value_json=value)
        return record

    rows = [row(3, _step="7", loss="0.5"), row(9, loss="0.25"), row(2, _step="no number")]
    assert [offline_log.step_of(each.history) for each in rows] == [7, 9, 2]
    log = tmp_path / "run-x.wandb"
    for kept, last in ((rows, 9), (rows[:1], 7), ([], -1)):
        log.write_bytes(offline_log.encode_log(each.SerializeToString() for each in kept))
        assert last_step(log) == last


# --- what has arrived is counted


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The directory of an offline run with pictures, tables and an artifact."""
    for name, value in SLIM.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    folder = tmp_path / "offline"
    train(folder, "offline")
    return folder


@pytest.mark.slow
def test_pictures_tables_and_artifacts_that_have_not_arrived_are_named_and_sent_again(offline, server, monkeypatch):
    monkeypatch.setattr(wandb_sync, "SETTLING", 0.5)
    server.upload_status = 403
    with pytest.raises(TrackingError, match=r"W&B lacks \d+ files \(.*\), \d+ artifacts \(.*harness sync --timeout"):
        wandb_sync.sync(offline, print)
    (run,) = server.runs.values()
    assert run.history
    assert not run.files
    server.upload_status = 200
    rows = dict(run.rows)
    result = wandb_sync.sync(offline, print)
    assert run.rows == rows
    assert {"model", "run_table"} <= {artifact.kind for artifact in server.artifacts.values() if artifact.committed}
    media = {name for row in run.history for name in re.findall(r'"(media/[^"]+)"', json.dumps(row))}
    assert media <= run.files.keys()
    assert len(media) >= 110
    assert (result.sent, result.files > 110, result.artifacts > 1) == (0, True, True)
    requests = server.requests
    assert wandb_sync.sync(offline, print).sent == 0
    assert server.requests - requests < 8  # it has asked, and sent nothing


@pytest.mark.slow
def test_files_that_the_server_has_lost_are_sent_alone(offline, server):
    wandb_sync.sync(offline, print)
    (run,) = server.runs.values()
    rows, files, summary = dict(run.rows), dict(run.files), run.summary
    lost = [name for name in files if name.startswith("media/")][::20]
    for name in lost:
        del run.files[name]
    server.uploaded.clear()
    wandb_sync.sync(offline, print)
    assert run.rows == rows
    assert {name: run.files[name] for name in lost} == {name: files[name] for name in lost}
    of_the_upload = {"config.yaml", "wandb-summary.json", "wandb-metadata.json"}
    assert set(server.uploaded) - of_the_upload == set(lost)
    assert run.summary.items() <= summary.items()  # `_step` comes with rows alone


@pytest.mark.slow
def test_a_slow_upload_has_the_time_that_its_bytes_need(offline, server):
    (offline / "big.bin").write_bytes(random.Random(0).randbytes(2_000_000))
    journal = Journal.resume(offline, 10**6)
    journal.artifact(Artifact("big", "model", {"big.bin": offline / "big.bin"}))
    journal.finish("finished", 0)
    server.seconds_per_mb = 2.0
    began = time.monotonic()
    wandb_sync.sync(offline, print, timeout=1.0)
    assert time.monotonic() - began > 4
    assert any(artifact.name == "big" and artifact.committed for artifact in server.artifacts.values())


@pytest.mark.slow
def test_a_killed_run_is_not_shown_as_finished(killed, server):
    wandb_sync.sync(killed, print)
    assert server.exit_code == 1


# --- the order of several logs


@pytest.mark.slow
def test_logs_made_under_other_clocks_are_sent_in_the_order_of_their_steps(tmp_path, server, monkeypatch):
    for name, value in SLIM.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    folder, now = tmp_path / "run", time.time
    train(folder, "offline", epochs=1, status="stopped")
    monkeypatch.setattr(time, "time", lambda: now() - 86_400)  # resumed on a machine whose clock is a day late
    train(folder, "offline", epochs=2, first=2)
    monkeypatch.setattr(time, "time", now)
    first, second = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert list(offline_log.read_log(first))  # by its name it is the older one
    assert last_step(first) > last_step(second)
    result = wandb_sync.sync(folder, print)
    assert server.steps == sorted(set(server.steps))
    assert result.steps == len(server.steps)
    assert server.exit_code == 0
    (run,) = server.runs.values()
    assert (run.summary["status"], run.summary["val/acc"]) == ("finished", 0.99)
    runtimes = [row["_runtime"] for row in run.history]
    assert runtimes == sorted(runtimes)


# --- a run directory from somebody else


@pytest.mark.slow
def test_only_files_of_the_run_directory_are_uploaded_whatever_its_log_names(offline, server, tmp_path):
    secret = tmp_path / "id_rsa"
    secret.write_text("SECRET")
    (log,) = (offline / "wandb").glob("offline-run-*/*.wandb")
    records = list(offline_log.read_log(log))
    for record in records:
        if record.HasField("artifact") and record.artifact.type == "model":
            record.artifact.manifest.contents[0].local_path = str(secret)
    files = next(record.files for record in records if record.HasField("files"))
    for path in ("../../../../id_rsa", str(secret), "linked.txt"):
        files.files.add(path=path)
    (log.parent / "files/linked.txt").symlink_to(secret)
    log.write_bytes(offline_log.encode_log(record.SerializeToString() for record in records))
    wandb_sync.sync(offline, print)
    everything = [data for run in server.runs.values() for data in run.files.values()]
    everything += [data for artifact in server.artifacts.values() for data in artifact.files.values()]
    assert not any(b"SECRET" in data for data in everything)
    assert any(data == b"weights" for data in everything)  # the artifact is made anew from the journal


@pytest.mark.parametrize(
    "sizes", [[0], [1, 32_754, 3], [32_755, 32_761, 32_768], [100_000, 7], list(range(0, 40_000, 991))]
)
def test_a_written_log_is_read_back(sizes):
    payloads = [random.Random(size).randbytes(size) for size in sizes]
    log = offline_log.encode_log(payloads)
    assert list(offline_log.records(log)) == payloads
    assert list(wandb_files.payloads(log)) == payloads  # by the reader of the tests


@pytest.mark.slow
def test_an_artifact_that_equals_a_version_of_another_run_has_arrived(offline, server):
    wandb_sync.sync(offline, print)
    model = next(artifact for artifact in server.artifacts.values() if artifact.kind == "model")
    model.run = "another"  # W&B lists a version with the run that made it first
    server.uploaded.clear()
    count = len(server.artifacts)
    wandb_sync.sync(offline, print)
    assert (server.uploaded, len(server.artifacts)) == ([], count)
