"""A run that is killed at any moment and resumed is bit-identical to an uninterrupted one."""

from __future__ import annotations

import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from harness.tracking.journal import read_journal
from harness.tracking.run_dir import RunState, read_state
from tests.runs.test_evaluate_other_data import write_digits
from tests.support.forked import TINY, begin, harness
from tests.support.image_folders import save_image
from tests.support.resume import SAVING, assert_same, contents_of

POINTS = [
    "step=7,kill@step=33",  # twice
    "replaced=3",  # the first checkpoint, before the index has it
]
MORE_POINTS = [
    "step=2,kill@step=7,kill@step=11,kill@step=33",  # four times in a row
    "evaluation=4",
    "journal=3",  # before anything is saved
    "journal=4",
    "phase=3",
    "step=1",  # before anything is saved
    "step=22",  # the last update of an epoch
    "evaluation=1",
    "swap=1",
    "journal=1",
    "write=1",  # config.yaml
    "write=3",  # the first checkpoint
    "write=4",  # its index
]


@pytest.mark.parametrize("point", [*POINTS, *(pytest.param(point, marks=pytest.mark.slow) for point in MORE_POINTS)])
def test_a_run_killed_at_any_point_resumes_to_bit_identical_results(uninterrupted, tmp_path, point):
    ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault=f"kill@{point}")
    assert ended.code == -signal.SIGKILL, ended.err
    for kill in point.split(",")[1:]:
        assert harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault=kill).code == -signal.SIGKILL
    ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=0)
    if not point.startswith(("step=1", "evaluation=1", "journal=1", "journal=3", "write", "replaced")):
        assert "Resuming run in" in ended.err
    assert "is lost" not in ended.err
    assert_same(tmp_path, uninterrupted)


IN_BACKGROUND = {"HARNESS_TESTING": "1", "HARNESS_SAVES": "background"}


@pytest.mark.parametrize(
    "point",
    [
        *(
            pytest.param(point, marks=pytest.mark.slow)
            for point in ("step=14", *POINTS, *MORE_POINTS, "write=9", "swap=2")
        )
    ],
)
def test_a_killed_run_that_saves_in_the_background_resumes_to_bit_identical_results(uninterrupted, tmp_path, point):
    """As on a GPU: the kill may come while a checkpoint is being written, or is waiting to be."""
    for kill in point.split(","):
        fault = kill if kill.startswith("kill@") else f"kill@{kill}"
        ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault=fault, variables=IN_BACKGROUND)
        assert ended.code == -signal.SIGKILL, ended.err
    harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=0, variables=IN_BACKGROUND)
    assert_same(tmp_path, uninterrupted)


@pytest.mark.slow
def test_a_stop_waits_for_the_checkpoints_that_are_being_written(uninterrupted, tmp_path):
    ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault="term@step=14", variables=IN_BACKGROUND)
    assert ended.code == 143, ended.err
    state = torch.load(tmp_path / "runs/r/checkpoints/last.pt", weights_only=True)
    assert state["progress"]["step"] == 14
    harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=0)
    assert_same(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["step", "write", "replaced", "journal", "swap", "evaluation", "phase"])
def test_a_run_killed_at_every_occurrence_of_a_point_in_turn_ends_in_bit_identical_results(
    uninterrupted, tmp_path, point
):
    """Killed at the first occurrence, resumed, killed at the second, and so on until there is no other."""
    killed = 0
    for number in range(1, 80):
        ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault=f"kill@{point}={number}")
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended.err
        killed += 1
        if read_state(tmp_path / "runs/r") == RunState.FINISHED:  # killed after its very last file
            break
    assert killed >= 3
    assert_same(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_run_killed_from_outside_at_random_times_resumes_to_bit_identical_results(uninterrupted, tmp_path, seed):
    draw = random.Random(seed)
    for _ in range(3):
        running = begin("run", *SAVING, "--name", "r", cwd=tmp_path)
        time.sleep(draw.uniform(0.2, 2.5))
        if running.process.is_alive():
            running.signal(signal.SIGKILL)
        running.end()
        if read_state(tmp_path / "runs/r") == RunState.FINISHED:  # it may have ended before the kill
            break
    else:
        harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=0)
    assert_same(tmp_path, uninterrupted)


def epochs_of(folder):
    return [record.epoch for record in read_journal(folder).records if record.kind == "epoch"]


@pytest.mark.slow
def test_a_journal_with_a_damaged_line_is_mended_from_the_checkpoint_when_its_run_is_resumed(uninterrupted, tmp_path):
    """Killed in the third epoch, whose first two records were damaged since."""
    harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault="kill@step=30")
    journal = tmp_path / "runs/r/journal.jsonl"
    header, dataset, *lines = journal.read_bytes().splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines, 1) if b'"kind":"epoch"' in line]
    first, second = (
        lines[: ends[0]],
        lines[ends[0] : ends[1]],
    )  # with the steps written before, where the machine is slow
    second[-1] = second[-1].replace(b'"train/acc":0', b'"train/acc":9', 1)
    journal.write_bytes(header + dataset + b"".join(second + first))
    ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=0)
    assert "1 line is damaged; the metrics of epoch 2 are restored from the checkpoint" in ended.err
    assert epochs_of(tmp_path / "runs/r") == [1, 2, 3]
    records, expected = contents_of(tmp_path / "runs/r")["records"], uninterrupted["records"]
    assert records[0] == expected[0] and records[2:] == expected[2:]
    (_, step, epoch, values, curve) = records[1]
    assert (step, epoch, curve is None) == (22, 2, len(second) == 1)
    assert values == {name: value for name, value in expected[1][3].items() if not name.startswith("best/")}


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_gone_is_not_started_over_without_being_asked(tmp_path):
    harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault="kill@step=14")
    shutil.rmtree(tmp_path / "runs/r/checkpoints")
    journal = (tmp_path / "runs/r/journal.jsonl").read_bytes()
    ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=4)
    assert len(ended.errors) == 1 and "the last one of step 12" in ended.errors[0]
    assert "--resume never" in ended.errors[0]
    assert (tmp_path / "runs/r/journal.jsonl").read_bytes() == journal
    harness("run", *SAVING, "--name", "r", "--resume", "never", cwd=tmp_path, check=0)
    assert epochs_of(tmp_path / "runs/r-2") == [1, 2, 3]


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_says_that_it_starts_from_the_beginning(tmp_path):
    harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault="kill@step=3")
    ended = harness("run", *SAVING, "--name", "r", "--epochs", 3, cwd=tmp_path, check=0)
    assert "has no checkpoint yet: the run starts from step 0" in ended.err


@pytest.mark.slow
def test_a_lost_newest_checkpoint_is_reported(tmp_path):
    harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault="kill@step=14")
    (tmp_path / "runs/r/checkpoints/last.pt").unlink()
    ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=0)
    assert "The checkpoint of step 12 is lost; the one before it is of step 11." in ended.err
    assert epochs_of(tmp_path / "runs/r") == [1, 2, 3]


def test_a_run_whose_images_have_changed_since_it_was_stopped_is_not_resumed(tmp_path):
    write_digits(tmp_path / "data", classes=(0, 1), count=20)
    words = [
        "run",
        *TINY,
        "--data",
        "folder",
        "--data-dir",
        "data",
        "--test-fraction",
        "0.2",
        "--batch-size",
        "8",
        "--name",
        "r",
    ]
    assert harness(*words, cwd=tmp_path, fault="term@step=5").code == 143
    checkpoint = (tmp_path / "runs/r/checkpoints/last.pt").read_bytes()
    picture = next((tmp_path / "data/0").iterdir())
    before = picture.read_bytes()
    save_image(picture, 255 - np.asarray(Image.open(picture)))
    ended = harness(*words, cwd=tmp_path)
    (line,) = ended.errors
    assert ended.code == 2 and "the data has changed since" in line and "--resume never" in line
    assert (tmp_path / "runs/r/checkpoints/last.pt").read_bytes() == checkpoint
    picture.write_bytes(before)
    assert "Resuming run in" in harness(*words, cwd=tmp_path, check=0).err
