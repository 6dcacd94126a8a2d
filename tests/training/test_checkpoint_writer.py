"""Checkpoints written by a thread: what is on the disk is what was given, in order, and errors are heard."""

import threading

import pytest
import torch

from harness.training.checkpoint_writer import WAITING, CheckpointWriter
from harness.utils.errors import ResourceError

CPU = torch.device("cpu")


@pytest.fixture
def background(monkeypatch):
    monkeypatch.setenv("HARNESS_TESTING", "1")
    monkeypatch.setenv("HARNESS_SAVES", "background")
    return CheckpointWriter(CPU)


def test_a_state_is_written_as_it_was_when_it_was_given(background):
    let_go, written = threading.Event(), []

    def write(state):
        let_go.wait(20)
        written.append(state)

    weights = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    background.save({"weights": weights, "deep": [{"count": torch.tensor(1)}], "step": 1}, write)
    weights += 7  # training goes on
    let_go.set()
    background.flush()
    assert written[0]["weights"].sum() == 0 and written[0]["weights"].is_contiguous(memory_format=torch.channels_last)
    assert written[0]["deep"][0]["count"] == 1 and written[0]["step"] == 1


def test_states_are_written_in_order_by_one_thread_and_few_are_kept_in_memory(background):
    steps, most, inside = [], 0, threading.Semaphore(1)

    def write(state):
        assert inside.acquire(blocking=False)  # nobody else writes
        steps.append(state["step"])
        inside.release()

    for step in range(20):
        background.save({"step": step, "weights": torch.ones(1000)}, write)
        most = max(most, len(background._pending))
    background.flush()
    assert steps == list(range(20)) and most <= WAITING


def test_a_write_that_failed_is_heard_at_the_next_save_or_at_the_end(background):
    def write(state):
        raise ResourceError("no space")

    background.save({}, write)
    with pytest.raises(ResourceError, match="no space"):
        background.flush()
    background.save({}, write)
    background._pending[0].exception(20)
    with pytest.raises(ResourceError, match="no space"):
        background.save({}, write)
    background.flush()


def test_on_a_cpu_a_state_is_written_before_training_goes_on():
    written = []
    CheckpointWriter(CPU).save({"step": 3}, written.append)
    assert written == [{"step": 3}]
