"""Which directory a run gets, what its status says of it, and what is done where another process is writing it."""

import errno
import fcntl
import json
import os
import resource
from pathlib import Path

import pytest

from harness.config.settings import Config
from harness.tracking import run_dir
from harness.tracking.run_dir import RunDir, RunState, claim_run_dir, mark_failed, planned_run_dir, saved_step
from harness.tracking.run_files import check_own_files, is_locked, lock_folder, make_folder
from harness.tracking.run_list import listed_runs
from harness.utils.errors import AlreadyFinished, BusyError, DataError, ResourceError, UsageError
from harness.utils.files import read_json, write_json
from tests.support.small_run import write_run


@pytest.fixture
def config(tmp_path):
    return Config(output=str(tmp_path / "runs"), name="r")


def begin(config, state="interrupted", **status):
    """Begin a run as `harness run` does, and leave it in a state; return its directory."""
    directory = claim_run_dir(config)
    (directory.path / "config.yaml").write_text(config.to_yaml())
    write_json(directory.path / "status.json", {"state": state, "pid": 4321, **status})
    directory.close()
    return directory.path


def test_an_unfinished_run_is_continued_unless_that_is_not_wanted_or_its_settings_differ(config):
    path = begin(config)
    for changes, name, is_resumed in (
        ({}, "r", True),
        ({"resume": "never"}, "r-2", False),
        ({"seed": 7}, "r-2", False),
        ({"name": "other"}, "other", False),
        ({"resume": str(path)}, "r", True),
    ):
        directory = claim_run_dir(config.replace(**changes))
        assert (directory.name, directory.resumed) == (name, is_resumed), changes
        directory.close()
        directory.discard()  # the new one
    assert [each.name for each in path.parent.iterdir()] == ["r"]


def test_a_run_of_wandb_has_one_directory_whatever_its_state(config, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    path = begin(config)
    assert path.name == "abc" and begin(config) == path
    with pytest.raises(UsageError, match=r"its settings differ: seed: 0 -> 7; omit those options, or start a new run"):
        claim_run_dir(config.replace(seed=7))
    write_json(path / "status.json", {"state": "finished"})
    with pytest.raises(AlreadyFinished, match=r"already complete; show its result with: harness evaluate .*/abc"):
        claim_run_dir(config)


def test_a_directory_in_use_is_refused_and_names_the_process(config):
    path = begin(config)
    with lock_folder(path):
        for changes in ({}, {"resume": str(path)}):
            with pytest.raises(BusyError, match=r"in use by another process \(pid 4321\); wait until it ends, or give"):
                claim_run_dir(config.replace(**changes))
        unnamed = config.replace(name="")
        first = begin(unnamed)
        with lock_folder(first):
            assert begin(unnamed).name == f"{first.name}-2"


@pytest.mark.parametrize("is_named", [False, True])
def test_a_run_whose_settings_are_gone_is_not_begun_again(config, is_named):
    path = begin(config)
    (path / "config.yaml").unlink()
    with pytest.raises(UsageError, match="restore that file, or start a new run with --resume never"):
        claim_run_dir(config.replace(resume=str(path)) if is_named else config)


def test_the_planned_directory_is_the_one_that_is_claimed_then_and_nothing_is_made_for_it(config):
    planned = planned_run_dir(config)
    assert planned[1] is False and not planned[0].parent.exists()
    path = begin(config)
    assert planned == (path, False) and planned_run_dir(config) == (path, True)
    with lock_folder(path):
        assert planned_run_dir(config) == (path.with_name("r-2"), False)
    write_json(path / "status.json", {"state": "finished"})
    assert planned_run_dir(config) == (path.with_name("r-2"), False)
    directory = claim_run_dir(config)
    assert directory.path == path.with_name("r-2")
    directory.close()


def test_choices_that_make_no_sense_do_not_hide_the_run(config):
    path = begin(config)
    write_json(path / "automatic.json", {"epochs": {"requested": [], "value": 24, "reason": "nonsense"}})
    assert run_dir.changed_settings(path, config) == []
    assert [text.partition(":")[0] for text in run_dir.changed_settings(path, config.replace(seed=3))] == ["seed"]


def test_a_file_system_without_locks_is_named_and_no_folder_after_the_other_is_made(config, monkeypatch):
    def refuse(handle, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = r"cannot lock .*: Function not implemented; choose an --output on a file system that has locks"
    with pytest.raises(UsageError, match=message):
        claim_run_dir(config.replace(name=""))
    assert len(list(Path(config.output).iterdir())) == 1
    assert not is_locked(next(Path(config.output).iterdir()))


def test_only_a_run_that_should_be_running_and_is_not_is_marked_as_failed(config):
    path = begin(config, "running", epoch=3)
    with lock_folder(path):
        mark_failed(path, "killed", 1)
        assert read_json(path / "status.json")["state"] == "running"
    mark_failed(path, "killed", 6)
    assert read_json(path / "status.json") == {
        "state": "failed", "reason": "killed", "exit_code": 6, "epoch": 3, "pid": 4321,
    }  # fmt: skip
    assert not is_locked(path)
    write_json(path / "status.json", {"state": "finished"})
    mark_failed(path, "killed", 1)
    assert read_json(path / "status.json") == {"state": "finished"}


@pytest.mark.parametrize(
    ("status", "step"),
    [
        ({"state": "interrupted", "checkpoint_step": 8, "step": 9}, 8),
        ({"state": "interrupted", "step": 9}, 9),  # version 0.1
        ({"state": "failed", "step": 9}, 6),  # of the last epoch in the journal
        ({}, 6),
    ],
)
def test_the_step_of_the_newest_checkpoint_is_that_of_the_status_or_of_the_last_epoch(tmp_path, status, step):
    path = write_run(tmp_path / "r")
    write_json(path / "status.json", status)
    assert saved_step(path) == step
    (path / "journal.jsonl").unlink()
    assert saved_step(path) == (step if step != 6 else 0)


def test_what_cannot_be_written_for_want_of_space_is_said_and_the_former_status_stays(tmp_path):
    directory = RunDir(tmp_path / "r", resumed=False)
    directory.status(RunState.RUNNING, epoch=1)
    former = (directory.path / "status.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    errors = []
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as on a full disk
        for call in (lambda: directory.status(RunState.FINISHED), lambda: make_folder(tmp_path / "new")):
            try:
                call()
            except ResourceError as error:
                errors.append(str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (directory.path / "status.json").read_bytes() == former
    assert errors[0].startswith(f"no space to write status.json in {directory.path} (")
    assert errors[1].startswith(f"no space to write in {tmp_path / 'new'} (")
    assert errors[1].endswith("; free some space, or choose another --output") and not (tmp_path / "new").exists()


def test_a_run_of_a_sweep_that_is_a_link_is_refused_and_what_is_in_one_is_checked_when_it_is_used(tmp_path):
    (tmp_path / "runs" / "trial-0").mkdir(parents=True)
    (tmp_path / "runs" / "trial-0" / "config.yaml").symlink_to("/etc/hostname")
    check_own_files(tmp_path)
    with pytest.raises(DataError, match=r"config\.yaml is a symbolic link"):
        check_own_files(tmp_path / "runs" / "trial-0")
    (tmp_path / "runs" / "trial-1").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"runs/trial-1 is a symbolic link"):
        check_own_files(tmp_path)


def test_a_run_of_several_labels_is_listed_with_its_map_and_one_without_a_journal_is_listed_too(tmp_path):
    path = write_run(tmp_path / "r")
    write_json(path / "summary.json", {"result": {"test/map": 0.75, "val/map": 0.5}})
    (path / "journal.jsonl").unlink()
    (run,) = listed_runs(tmp_path)
    assert (run.split, run.accuracy, run.written_at) == ("test mAP", 0.75, 0.0)
    write_json(path / "summary.json", json.loads('{"result": {"test/map": 0.75, "test/acc": 0.25}}'))
    assert [(each.split, each.accuracy) for each in listed_runs(tmp_path)] == [("test", 0.25)]


def test_the_states_are_those_that_other_programs_read():
    assert [state.value for state in RunState][:5] == ["running", "finished", "failed", "preempted", "interrupted"]
