"""A signal stops a run within seconds, with its state saved and its exit status; resumed, it is bit-identical."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.utils.files import read_json
from tests.support.forked import TINY, begin, harness
from tests.support.resume import SAVING, assert_same
from tests.support.wandb_files import payloads
from tests.support.wandb_server import KEY

SIGNALS = {"int": (130, "interrupted"), "term": (143, "preempted"), "usr1": (138, "preempted")}


@pytest.mark.parametrize(
    ("action", "point"),
    [
        ("int", "step=2"),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in [("term", "evaluation=3"), ("term", "step=22"), ("usr1", "step=13"), ("usr1", "phase=2")]
        ),
    ],
)
def test_a_signal_at_any_point_saves_exits_with_its_status_and_the_run_resumes(uninterrupted, tmp_path, action, point):
    code, state = SIGNALS[action]
    ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault=f"{action}@{point}", check=code)
    status = read_json(tmp_path / "runs/r/status.json")
    assert (status["state"], status["exit_code"]) == (state, code)
    (line,) = [line for line in ended.err.splitlines() if line.lower().startswith("stopped")]  # once
    assert line.endswith(f"; the state is saved. Resume with: {status['resume']}")
    assert line.startswith(
        f"Stopped at step {status['step']} by {'Ctrl-C (SIGINT)' if action == 'int' else 'SIG' + action.upper()}"
    )
    number = int(point.partition("=")[2])
    if point.startswith("step"):
        assert status["step"] == number, "saved at once, not at the next checkpoint"
    if point.startswith("evaluation"):
        assert status["step"] == 22, "not trained on in the middle of an evaluation"
    again = harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=0)
    assert f"from step {status['step']}" in again.err
    assert_same(tmp_path, uninterrupted)


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once_and_leaves_the_last_checkpoint(tmp_path):
    ended = harness(
        "run", *SAVING, "--name", "r", cwd=tmp_path, fault="int@step=6,int@write=7"
    )  # the first write after the stop
    assert ended.code == 130
    assert read_json(tmp_path / "runs/r/status.json")["step"] == 4
    harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=0)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_while_the_data_is_loaded_exits_with_its_status(tmp_path, name):
    number = signal.Signals[name]
    running = begin("run", *TINY, cwd=tmp_path)
    running.until(lambda: (tmp_path / "runs").exists())
    running.signal(number)
    assert running.end(20).code == 128 + number


@pytest.fixture
def hanging():
    """A server that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.slow
def test_a_stop_while_waiting_for_the_server_takes_effect_within_seconds(tmp_path, hanging):
    variables = {"WANDB_BASE_URL": hanging, "WANDB_API_KEY": KEY}
    running = begin("run", *TINY[:-1], "auto", "--name", "r", cwd=tmp_path, variables=variables)
    running.until(lambda: (tmp_path / "runs/r/wandb").exists())
    time.sleep(1)
    running.signal(signal.SIGTERM)
    began = time.monotonic()
    ended = running.end(60)
    assert ended.code == 143, ended.err
    assert time.monotonic() - began < 15
    assert read_json(tmp_path / "runs/r/status.json")["state"] == "preempted"
    harness("run", *TINY, "--name", "r", cwd=tmp_path, check=0)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["r"]


@pytest.mark.slow
@pytest.mark.parametrize("action", ["term", "usr1"])
def test_a_preempted_run_of_a_sweep_is_marked_so_that_wandb_queues_it_again(tmp_path, action):
    variables = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "abcd1234", "WANDB_PROJECT": "p"}
    words = ["run", *TINY[:-1], "offline"]
    harness(*words, cwd=tmp_path, fault=f"{action}@step=3", variables=variables, check=SIGNALS[action][0])
    (log,) = (tmp_path / "runs/abcd1234/wandb").glob("offline-run-*/run-*.wandb")
    assert "preempting" in kinds(log)
    harness(*words, cwd=tmp_path, variables=variables, check=0)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["abcd1234"]


@pytest.mark.slow
def test_a_preempted_run_of_a_cluster_job_is_marked_and_one_of_a_users_shell_is_not(tmp_path):
    for name, variables in (("job", {"SLURM_JOB_ID": "7"}), ("shell", {})):
        harness(
            "run",
            *TINY[:-1],
            "offline",
            "--name",
            name,
            cwd=tmp_path,
            fault="term@step=3",
            variables=variables,
            check=143,
        )
        (log,) = (tmp_path / "runs" / name / "wandb").glob("offline-run-*/run-*.wandb")
        assert ("preempting" in kinds(log)) == (name == "job")


def kinds(log):
    """Return the kinds of the records in a W&B log."""
    from wandb.proto import wandb_internal_pb2

    kinds = set()
    for data in payloads(log.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kinds.add(record.WhichOneof("record_type"))
    return kinds


def test_a_stop_from_another_thread_is_a_stop(tmp_path):
    """W&B calls its stop function in a thread of its own."""
    from harness.utils.signals import Interrupted, StopRequests

    with StopRequests() as stop_requests:
        thread = threading.Thread(target=stop_requests.stop)
        thread.start()
        thread.join()
        with pytest.raises(Interrupted) as caught:
            stop_requests.check()
    assert caught.value.exit_code == 130


def start(folder, *words, ignored=()):
    """Start `harness` in a new process, as a shell does."""

    def reset():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    return subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "harness", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=reset,
    )


@pytest.mark.slow
@pytest.mark.parametrize("module", ["click", "torch._C", "wandb"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_during_the_imports_ends_with_its_status_and_without_a_traceback(tmp_path, module, number, code):
    """Sent when the module has been imported, by the list of imports that Python prints; those after it still run."""
    process = start(tmp_path, "run", "--recipe", "digits", "--epochs", "500", "--wandb", "offline")
    lines = []
    for line in process.stderr:
        if line.startswith("import time:"):
            if line.split("|")[-1].strip() == module:
                process.send_signal(number)
        else:
            lines.append(line)
    process.communicate(timeout=60)
    assert process.returncode == code, lines
    assert "Traceback" not in "".join(lines) and "Error" not in "".join(lines)


@pytest.mark.slow
def test_a_run_under_nohup_survives_the_end_of_its_terminal(tmp_path):
    words = ["run", *TINY, "--epochs", "400", "--name", "r"]
    process = start(tmp_path, *words, ignored=[signal.SIGHUP])
    reader = threading.Thread(target=process.stderr.read, daemon=True)
    reader.start()
    checkpoint = tmp_path / "runs/r/checkpoints/last.pt"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    changed = checkpoint.stat().st_mtime_ns
    while checkpoint.exists() and checkpoint.stat().st_mtime_ns == changed:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    reader.join(10)
    process.stdout.close()
    process.stderr.close()
    assert process.returncode == 143
