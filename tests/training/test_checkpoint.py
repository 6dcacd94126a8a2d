"""Checkpoints: the newest intact one is found, nothing unsafe is loaded, and a thread writes what it was given, in order."""

import hashlib
import threading
import time

import pytest
import torch
from safetensors.torch import save_file

from harness.training import checkpoint
from harness.training.checkpoint import CheckpointWriter
from harness.training.loop import TrainerState
from harness.training.saved_progress import check_progress
from harness.utils.checksums import write_checked_json
from harness.utils.errors import CheckpointError, ResourceError
from harness.utils.files import read_json
from tests.support.training import CPU, learner, net, weights


def save(folder, step):
    one = learner(net())
    checkpoint.save_checkpoint(
        folder, {"learner": one.state_dict(), "progress": TrainerState(step=step).state_dict()}, {"step": step}
    )


def test_the_previous_checkpoint_is_used_where_the_newest_is_damaged(tmp_path, caplog):
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert checkpoint.checkpoint_info(checkpoint.newest_checkpoint(tmp_path))["step"] == 2
    content = bytearray((tmp_path / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "last.pt").write_bytes(content)
    assert checkpoint.checkpoint_info(checkpoint.newest_checkpoint(tmp_path))["step"] == 1
    assert "last.pt is damaged" in caplog.text
    (tmp_path / "previous.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        checkpoint.newest_checkpoint(tmp_path)


def test_a_save_that_ends_between_two_of_its_renames_leaves_the_newest_checkpoint(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "last.pt").rename(tmp_path / "incoming.pt")
    assert checkpoint.newest_checkpoint(tmp_path).name == "incoming.pt"
    (tmp_path / "previous.pt").unlink()
    assert checkpoint.newest_checkpoint(tmp_path).name == "incoming.pt"


class Canary:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_with_code_is_refused_and_the_code_does_not_run(tmp_path):
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    torch.save({"learner": Canary(canary), "progress": {}}, path)
    with pytest.raises(CheckpointError, match="more than tensors and plain values"):
        checkpoint.load_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 not a zip"])
def test_a_file_that_is_not_a_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.load_checkpoint(path)


def test_weights_of_another_shape_are_refused_by_name(tmp_path):
    model = net()
    other = {**weights(model), "5.weight": torch.zeros(4, 216)}
    with pytest.raises(CheckpointError, match=r"5\.weight \[4, 216\] instead of \[3, 216\]"):
        checkpoint.load_weights_strict(model, other, tmp_path / "x")


@pytest.fixture
def background_writer(monkeypatch):
    """A writer that uses its thread, as on a GPU."""
    monkeypatch.setenv("HARNESS_TESTING", "1")
    monkeypatch.setenv("HARNESS_SAVES", "background")
    return CheckpointWriter(CPU)


def test_a_state_is_written_as_it_was_when_it_was_given(background_writer):
    may_write, written = threading.Event(), []

    def write(state):
        may_write.wait(20)
        written.append(state)

    weights = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    background_writer.save({"weights": weights, "nested": [{"count": torch.tensor(1)}], "step": 1}, write)
    weights += 7  # the next update
    may_write.set()
    background_writer.flush()
    assert written[0]["weights"].sum() == 0 and written[0]["weights"].is_contiguous(memory_format=torch.channels_last)
    assert written[0]["nested"][0]["count"] == 1 and written[0]["step"] == 1


def test_one_thread_writes_the_states_in_order_and_always_the_newest_and_few_wait_in_memory(background_writer):
    steps, most_pending, is_free = [], 0, threading.Semaphore(1)

    def write(state):
        assert is_free.acquire(blocking=False)  # no other thread writes
        steps.append(state["step"])
        is_free.release()

    for step in range(20):
        background_writer.save({"step": step, "weights": torch.ones(1000)}, write)
        most_pending = max(most_pending, background_writer.num_pending)
    background_writer.flush()
    assert steps == sorted(set(steps)) and steps[-1] == 19 and most_pending <= 2


def test_a_save_does_not_wait_for_a_slow_disk_and_skips_only_older_states_of_the_same_kind(background_writer):
    may_write, has_started, written = threading.Event(), threading.Event(), []

    def write(state):
        has_started.set()
        assert may_write.wait(20)
        written.append(state["step"])

    background_writer.save({"step": 0}, write)
    assert has_started.wait(20)
    background_writer.save({"step": "weights"}, write, "weights")
    for step in range(1, 10):  # returns although nothing can be written
        background_writer.save({"step": step}, write)
    assert background_writer.num_pending == 3
    may_write.set()
    background_writer.flush()
    assert written == [0, "weights", 9]


def test_the_error_of_a_write_is_raised_by_the_next_save_or_flush(background_writer):
    def write(state):
        raise ResourceError("no space")

    background_writer.save({}, write)
    with pytest.raises(ResourceError, match="no space"):
        background_writer.flush()
    background_writer.save({}, write)
    with pytest.raises(ResourceError, match="no space"):
        for _ in range(2000):  # the thread may still be writing
            background_writer.save({}, lambda state: None, "weights")
            time.sleep(0.01)
    background_writer.flush()


def test_on_a_cpu_a_state_is_written_at_once():
    written = []
    CheckpointWriter(CPU).save({"step": 3}, written.append)
    assert written == [{"step": 3}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": -1}, "its step is -1"),
        ({"history": [{"epoch": 2}]}, "the epochs of its history are not those from 1 on"),
        ({"lrs": [float("nan")]}, "its learning rates are no numbers"),
        ({"sizes": [8]}, "its sizes of batches are no positive numbers, one for each learning rate"),
        ({"times": [float("inf")]}, "the times of its updates are no numbers"),
        ({"times": "now"}, "the times of its updates are no numbers"),
        ({"seconds": -2.0}, r"its seconds are -2\.0"),
        ({"random": {}}, "it has no random state"),
    ],
)
def test_a_position_that_makes_no_sense_is_refused_by_what_is_wrong(change, message):
    progress = TrainerState(step=3).state_dict()
    check_progress(progress)
    check_progress({key: value for key, value in progress.items() if key != "times"})  # as former checkpoints are
    with pytest.raises(ValueError, match=message):
        check_progress({**progress, **change})


def test_missing_checkpoints_and_weights_are_named(tmp_path):
    for load, name in ((checkpoint.load_checkpoint, "last.pt"), (checkpoint.load_weights, "model.safetensors")):
        with pytest.raises(CheckpointError, match=f"there is no checkpoint .*{name}"):
            load(tmp_path / name)


def test_a_checkpoint_that_its_index_does_not_know_is_damaged(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged: index\.json has another checksum"):
        checkpoint.load_checkpoint(tmp_path / "last.pt")


def test_a_run_killed_in_its_first_save_has_no_checkpoint(tmp_path):
    (tmp_path / "incoming.pt").write_bytes(b"PK\x03\x04 half of it")
    assert checkpoint.newest_checkpoint(tmp_path) is None


FACTS = {"config": {}, "classes": ["a"], "preprocess": {}}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"config": {}}, r"not a checkpoint of harness: model\.json with its settings is missing"),
        (FACTS, r"not a checkpoint of harness: model\.json has no format"),
        ({**FACTS, "format": True}, "has no format"),
        (
            {**FACTS, "format": 99},
            r"written by a newer version of harness \(format 99, this one reads \d+\); upgrade it",
        ),
    ],
)
def test_weights_whose_facts_are_not_those_of_harness_are_refused(tmp_path, facts, message):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    content = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **facts}
    write_checked_json(tmp_path / "model.json", content)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_weights(path)


def test_weights_that_are_written_over_damaged_ones_do_not_keep_the_facts_of_those(tmp_path):
    path, about = tmp_path / "model.safetensors", {**FACTS, "epoch": 1}
    checkpoint.save_weights(path, {"a": torch.zeros(2)}, about)
    checkpoint.save_weights(path, {"a": torch.ones(2)}, {**about, "epoch": 2})
    assert read_json(tmp_path / "model.json")[checkpoint.REPLACED]["epoch"] == 1
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    checkpoint.save_weights(path, {"a": torch.full((2,), 3.0)}, {**about, "epoch": 3})
    assert checkpoint.REPLACED not in read_json(tmp_path / "model.json")
    weights, facts = checkpoint.load_weights(path)
    assert weights["a"].tolist() == [3.0, 3.0] and facts["epoch"] == 3
