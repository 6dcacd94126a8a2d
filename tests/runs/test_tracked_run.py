"""The lifecycle of everything that is recorded: status, journal and W&B record how the body ended."""

import json
import shutil
from pathlib import Path

import pytest

from harness.config.settings import Config
from harness.runs.tracked_run import tracked_output, tracked_run
from harness.tracking import run_dir
from harness.tracking.journal import read_journal
from harness.tracking.records import Artifact, Record
from harness.training.loop import TrainerState
from harness.utils.errors import DivergedError, UsageError
from harness.utils.signals import Interrupted, StopRequests
from tests.support.reporters import Lines
from tests.support.wandb_files import offline_runs


@pytest.fixture
def config(tmp_path):
    return Config(recipe="digits", data="digits", output=str(tmp_path / "runs"), wandb="offline", name="one")


def run_body(config, body, state=None, checkpoint_step=20, **header):
    """Run `body` in a tracked run whose newest checkpoint is that of a step; return the directory, its status, the messages and the error that was raised."""
    header = {"environment": {}, **header}
    directory, reporter = run_dir.claim_run_dir(config), Lines()
    directory.checkpoint_step = checkpoint_step
    try:
        with (
            StopRequests() as stop_requests,
            tracked_run(config, directory, reporter, stop_requests, header=header, state=state) as tracked,
        ):
            body(tracked)
    except BaseException as error:
        raised = error
    else:
        raised = None
    finally:
        directory.close()
    return directory, json.loads((directory.path / "status.json").read_text()), reporter.lines, raised


def state_after_two_epochs():
    return TrainerState(step=20, history=[{"epoch": 1.0, "train/loss": 2.0}, {"epoch": 2.0, "train/loss": 1.0}])


def test_a_body_that_succeeds_leaves_a_finished_run(config):
    directory, status, lines, raised = run_body(
        config, lambda tracked: tracked.tracker.record(Record(20, 2, {"train/loss": 1.0})), state_after_two_epochs()
    )
    assert raised is None
    assert (status["state"], status["exit_code"], status["step"], status["epoch"]) == ("finished", 0, 20, 2)
    assert "resume" not in status and status["tracking"] == "offline" and status["sync"].startswith("harness sync ")
    contents = read_journal(directory.path)
    assert contents.status == "finished" and contents.whole and [record.step for record in contents.records] == [20]
    assert offline_runs(directory.path)[0].exit_code == 0
    assert (directory.path / "report.html").is_file()
    assert any(line.startswith("Run directory: ") and status["sync"] in line for line in lines)


@pytest.mark.parametrize(
    ("error", "state", "exit_code"),
    [
        (UsageError("lr_max=7 is wrong"), "failed", 2),
        (DivergedError("training diverged"), "failed", 5),
        (RuntimeError("a bug"), "failed", 1),
        (Interrupted("stopped by Ctrl-C (SIGINT)", 130), "interrupted", 130),
        (Interrupted("stopped by SIGTERM", 143), "preempted", 143),
        (Interrupted("stopped by SIGUSR1", 138), "preempted", 138),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_a_body_that_fails_is_recorded_everywhere_and_its_error_is_raised(config, error, state, exit_code):
    def body(tracked):
        raise error

    directory, status, lines, raised = run_body(config, body, state_after_two_epochs())
    assert raised is error
    assert (status["state"], status["exit_code"], status["reason"]) == (state, exit_code, str(error))
    assert status["resume"] == directory.resume_command
    summary = json.loads((directory.path / "summary.json").read_text())
    stopped = isinstance(error, Interrupted)
    assert (summary["status"], summary["reason"]) == ("stopped" if stopped else "failed", str(error))
    assert (summary["epochs"], summary["steps"], summary["last"]["train/loss"]) == (2, 20, 1.0)
    assert read_journal(directory.path).exit_code == exit_code
    (offline_run,) = offline_runs(directory.path)
    assert offline_run.exit_code == exit_code
    assert (offline_run.summary["status"], offline_run.summary["reason"]) == (summary["status"], str(error))
    stop_lines = [line for line in lines if "Resume with: " in line]
    reason = str(error).removeprefix("stopped ")
    expected = f"Stopped at step 20 {reason}; the state is saved. Resume with: {directory.resume_command}"
    assert stop_lines == ([expected] if stopped else [])
    assert (directory.path / "report.html").is_file() == isinstance(error, DivergedError)


@pytest.mark.parametrize(
    ("checkpoint_step", "text"), [(10, "the last saved state is that of step 10"), (0, "no state is saved yet")]
)
def test_a_stopped_run_whose_last_state_could_not_be_saved_says_so(config, checkpoint_step, text):
    def body(tracked):
        raise Interrupted("stopped by SIGTERM", 143)

    directory, _, lines, _ = run_body(config, body, state_after_two_epochs(), checkpoint_step)
    expected = f"Stopped at step 20 by SIGTERM; {text}. Resume with: {directory.resume_command}"
    assert [line for line in lines if line.startswith("Stopped")] == [expected]


def test_a_failed_range_test_has_no_resume_command_and_no_summary(config):
    def body(tracked):
        raise UsageError("no learning rate")

    directory, status, _, _ = run_body(config, body)
    assert (status["state"], status["step"]) == ("failed", 0) and "resume" not in status
    assert not (directory.path / "summary.json").exists()


def test_an_output_is_a_wandb_run_only_if_enabled(config, tmp_path):
    with tracked_output(config, tmp_path / "out", job_type="plot", name="curve", enabled=False) as tracker:
        tracker.record(Record(0, 0, {"x": 1.0}, kind="final"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError), tracked_output(config, tmp_path / "out", job_type="plot", name="curve") as tracker:
        tracker.record(Record(0, 0, {"plot/x": 1.0}, kind="final"))
        raise UsageError("a body that fails")
    (segment,) = offline_runs(tmp_path / "out")
    assert segment.exit_code == 2 and segment.rows[0]["plot/x"] == 1.0


def test_the_data_of_a_resumed_run_is_declared_again_in_wandb_and_once_in_the_journal(config):
    data = {"name": "digits", "classes": ["0", "1"], "images": {"train": 3}, "fingerprint": "ab"}

    def stop(tracked):
        raise Interrupted("stopped by SIGTERM", 143)

    directory, _, _, _ = run_body(config, stop, TrainerState(step=0), dataset=data)
    again, _, _, raised = run_body(config, lambda tracked: None, TrainerState(step=0), dataset=data)
    assert raised is None and again.resumed and again.path == directory.path
    (artifact,) = read_journal(again.path).artifacts
    assert (artifact.kind, artifact.is_input, artifact.metadata["classes"]) == ("dataset", True, 2)
    assert json.loads((again.path / "dataset.json").read_text())["classes"] == ["0", "1"]
    assert [[one["name"] for one in run.artifacts] for run in offline_runs(again.path)] == [["digits"], ["digits"]]


def test_the_first_error_is_raised_although_closing_the_run_fails(config):
    config = config.replace(wandb="disabled")  # whose service would write to the folder meanwhile

    def body(tracked):
        shutil.rmtree(config.output)
        Path(config.output).write_text("a file in place of the folder")
        raise DivergedError("training diverged")

    directory, reporter = run_dir.claim_run_dir(config), Lines()
    with (
        StopRequests() as stop_requests,
        pytest.raises(DivergedError, match="training diverged"),
        tracked_run(
            config, directory, reporter, stop_requests, header={"environment": {}}, state=state_after_two_epochs()
        ) as tracked,
    ):
        body(tracked)
    directory.close()


def test_the_models_and_data_that_an_output_is_of_are_its_inputs_in_wandb(config, tmp_path):
    (tmp_path / "w.txt").write_text("weights")
    used = Artifact("net", "model", {"w.txt": tmp_path / "w.txt"}, is_input=True)
    with tracked_output(config, tmp_path / "out", job_type="export", name="x", inputs=lambda: [used]) as tracker:
        tracker.record(Record(0, 0, {"plot/x": 1.0}, kind="final"))
    (recorded,) = offline_runs(tmp_path / "out")
    assert [one["name"] for one in recorded.artifacts] == ["net"] and recorded.exit_code == 0
