"""`harness sync` with a W&B server on the loopback."""

import json
from dataclasses import replace

import pytest

from harness.config.settings import Config
from harness.tracking.journal import Journal
from harness.tracking.records import Curve, Record
from harness.tracking.run_dir import RunDir, claim_run_dir
from harness.tracking.tracker import MultiTracker
from harness.tracking.wandb import init
from harness.tracking.wandb import sync as wandb_sync
from harness.utils.errors import BusyError, DataError, UsageError
from tests.support.forked import harness as command
from tests.support.records import final
from tests.support.wandb_server import KEY


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
    assert wandb_sync.sync(killed, print).sent == 0
    assert server.steps == list(range(1, 13))
    assert not any(KEY in path.read_text(errors="ignore") for path in killed.rglob("*") if path.is_file())


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
