"""A run killed at any moment and gone on with ends as one that was never killed, to the last bit."""

from __future__ import annotations

import random
import signal
import time

import pytest
import torch

from harness.tracking.journal import read_journal
from harness.tracking.run_dir import read_state
from tests.support.forked import TINY, begin, harness

SAVING = [*TINY, "--checkpoint-every", "4"]
UPDATES = 33  # in the whole run
TIMED = ("time/", "throughput", "memory/")


def whole_story(folder):
    """All that must be equal: weights, predictions, every figure of the journal but times, the last checkpoint."""
    records = [
        (
            record.kind,
            record.step,
            record.epoch,
            {key: value for key, value in record.scalars().items() if not key.startswith(TIMED)},
            record.steps,
        )
        for record in read_journal(folder).records
    ]
    state = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    progress = state["progress"]
    progress["history"] = [
        {key: value for key, value in row.items() if not key.startswith(TIMED)} for row in progress["history"]
    ]
    progress.pop("seconds")
    return {
        "weights": (folder / "checkpoints/model.safetensors").read_bytes(),
        "predictions": (folder / "predictions.csv").read_bytes(),
        "records": records,
        "state": flat({name: state[name] for name in ("learner", "progress")}),
    }


def flat(value, path=""):
    if isinstance(value, torch.Tensor):
        return {path: value.numpy().tobytes()}
    if isinstance(value, dict):
        return {key: part for name, inner in value.items() for key, part in flat(inner, f"{path}/{name}").items()}
    if isinstance(value, list | tuple):
        return {key: part for place, inner in enumerate(value) for key, part in flat(inner, f"{path}/{place}").items()}
    return {path: value}


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    harness("run", *SAVING, "--name", "r", cwd=folder, check=0)
    return whole_story(folder / "runs/r")


def check_same(folder, never_killed):
    assert [path.name for path in (folder / "runs").iterdir()] == ["r"]
    told = whole_story(folder / "runs/r")
    for part, value in never_killed.items():
        assert told[part] == value, part
    assert not list((folder / "runs/r").rglob("*.tmp"))


POINTS = [
    "step=2,kill@step=7,kill@step=11,kill@step=33",  # four times in a row
    "replaced=3",  # the first checkpoint, before the index has it
]
MORE_POINTS = [
    "evaluation=4",
    "journal=3",
    "chapter=3",
    "step=1",  # before anything is saved
    "step=22",  # the last update of an epoch
    "evaluation=1",
    "swap=1",
    "journal=1",
    "write=1",  # config.yaml
    "write=3",  # the first checkpoint
    "write=4",  # its index
]


@pytest.mark.parametrize("place", [*POINTS, *(pytest.param(place, marks=pytest.mark.slow) for place in MORE_POINTS)])
def test_a_run_killed_at_a_place_goes_on_to_the_same_bits(never_killed, tmp_path, place):
    ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault=f"kill@{place}")
    assert ended.code == -signal.SIGKILL, ended.err
    for kill in place.split(",")[1:]:
        assert harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault=kill).code == -signal.SIGKILL
    ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=0)
    if not place.startswith(("step=1", "evaluation=1", "journal=1", "write", "replaced")):
        assert "Resuming run in" in ended.err
    check_same(tmp_path, never_killed)


BEHIND = {"HARNESS_TESTING": "1", "HARNESS_SAVES": "background"}


@pytest.mark.parametrize(
    "place",
    [
        "step=14",
        *(pytest.param(place, marks=pytest.mark.slow) for place in (*POINTS, *MORE_POINTS, "write=9", "swap=2")),
    ],
)
def test_a_run_that_saves_in_the_background_and_is_killed_goes_on_to_the_same_bits(never_killed, tmp_path, place):
    """As on a GPU: the kill may meet a checkpoint that is being written, or one that waits to be."""
    for kill in place.split(","):
        fault = kill if kill.startswith("kill@") else f"kill@{kill}"
        ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault=fault, variables=BEHIND)
        assert ended.code == -signal.SIGKILL, ended.err
    harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=0, variables=BEHIND)
    check_same(tmp_path, never_killed)


def test_a_stop_waits_for_the_checkpoints_that_are_being_written(never_killed, tmp_path):
    ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault="term@step=14", variables=BEHIND)
    assert ended.code == 143, ended.err
    state = torch.load(tmp_path / "runs/r/checkpoints/last.pt", weights_only=True)
    assert state["progress"]["step"] == 14
    harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=0)
    check_same(tmp_path, never_killed)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["step", "write", "replaced", "journal", "swap", "evaluation", "chapter"])
def test_a_run_killed_at_every_passing_of_a_place_in_turn_still_ends_with_the_same_bits(never_killed, tmp_path, place):
    """Killed at the first passing, gone on with, killed at the second, and so on until there is no other."""
    killed = 0
    for number in range(1, 80):
        ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault=f"kill@{place}={number}")
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended.err
        killed += 1
        if read_state(tmp_path / "runs/r") == "finished":  # killed after its very last file
            break
    assert killed >= 3
    check_same(tmp_path, never_killed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_run_killed_from_outside_at_random_times_goes_on_to_the_same_bits(never_killed, tmp_path, seed):
    draw = random.Random(seed)
    for _ in range(3):
        running = begin("run", *SAVING, "--name", "r", cwd=tmp_path)
        time.sleep(draw.uniform(0.2, 2.5))
        if running.process.is_alive():
            running.signal(signal.SIGKILL)
        running.end()
        if read_state(tmp_path / "runs/r") == "finished":  # it may have been, when the kill came
            break
    else:
        harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=0)
    check_same(tmp_path, never_killed)
