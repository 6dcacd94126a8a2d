"""The process that trials are forked from."""

import os
import signal

import pytest

from harness.sweep.fork_server import ForkServer
from harness.tracking.run_dir import read_state
from harness.utils.errors import HarnessError
from harness.utils.files import read_json
from tests.support.forked import TINY
from tests.support.waiting import is_alive, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def environment():
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def server(environment):
    """Yield a server for the tests that leave it running."""
    server = ForkServer(environment)
    yield server
    server.close()


def begin_long_run(server, environment, folder):
    """Start a run that would take minutes; return it once it has saved a checkpoint."""
    trial = server.start(["run", *TINY, "--epochs", "5000", "--name", "long"], environment, folder, folder / "log")
    wait_until(lambda: trial.poll() is not None or (folder / "runs/long/checkpoints/last.pt").exists())
    assert trial.poll() is None, (folder / "log").read_text()
    return trial


def test_a_trial_has_its_own_environment_folder_log_and_exit_status(server, environment, tmp_path):
    (tmp_path / "log").write_text("earlier\n")
    trial = server.start(["run", "--epochs", "none"], environment, tmp_path, tmp_path / "log")
    wait_until(lambda: trial.poll() is not None)
    assert trial.poll() == 2
    log = (tmp_path / "log").read_text()
    assert log.startswith("earlier\nerror: ")
    assert "epochs" in log

    variables = {**environment, "HARNESS_TESTING": "1", "HARNESS_FAULT": "kill@step=3"}
    trial = server.start(["run", *TINY, "--name", "killed"], variables, tmp_path, tmp_path / "log")
    wait_until(lambda: trial.poll() is not None)
    assert trial.poll() == -signal.SIGKILL
    assert (tmp_path / "runs/killed").is_dir()


def test_a_stopped_trial_saves_its_state(server, environment, tmp_path):
    trial = begin_long_run(server, environment, tmp_path)
    trial.stop()
    wait_until(lambda: trial.poll() is not None)
    assert trial.poll() == 143
    assert read_state(tmp_path / "runs/long") == "preempted"


def test_a_stop_before_the_trial_has_begun_is_not_lost(server, environment, tmp_path):
    trial = server.start(["run", *TINY, "--epochs", "5000"], environment, tmp_path, tmp_path / "log")
    trial.stop()  # its process id is not known yet
    wait_until(lambda: trial.poll() is not None)
    assert trial.poll() in (143, -signal.SIGTERM)


def test_a_killed_server_is_noticed_and_its_trials_save_their_state(environment, tmp_path):
    server = ForkServer(environment)
    trial = begin_long_run(server, environment, tmp_path)
    pid = read_json(tmp_path / "runs/long/status.json")["pid"]
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: trial.poll() is not None)
    assert trial.poll() == -signal.SIGKILL
    with pytest.raises(HarnessError, match="give --no-fork"):
        server.start(["run"], environment, tmp_path, tmp_path / "log")
    wait_until(lambda: not is_alive(pid))
    assert read_state(tmp_path / "runs/long") == "preempted"
    server.close()
