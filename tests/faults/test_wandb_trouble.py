"""Faults of W&B: training continues, the fault is reported once, nothing is lost; `wandb=online` refuses to start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.tracking.journal import read_journal
from harness.utils.files import read_json
from tests.support.faulty_server import FaultyServer, has_steps
from tests.support.forked import TINY, begin, harness
from tests.support.wandb_files import offline_runs
from tests.support.wandb_server import KEY

AUTO = [*TINY[:-1], "auto", "--name", "r"]
LAST = 34  # 33 updates, and the row of the result
SLIM = {
    "WANDB_X_DISABLE_STATS": "true", "WANDB_X_SAVE_REQUIREMENTS": "false", "WANDB_DISABLE_GIT": "true",
    "WANDB_X_DISABLE_MACHINE_INFO": "true",
}  # fmt: skip


@contextmanager
def server_with(fault):
    """The environment variables of a server that has this fault from the start."""
    if fault in ("refusing", "hanging"):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            if fault == "hanging":
                listener.listen(50)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "WANDB_INIT_TIMEOUT": "2", **SLIM}
    else:
        with FaultyServer(page=fault == "page", status=200 if fault == "page" else int(fault)) as server:
            yield server.variables | SLIM


FAULTS = ["refusing", "hanging", "401", "403", "429", "500", "page"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_from_the_start_makes_the_run_offline(tmp_path, fault):
    with server_with(fault) as variables:
        began = time.monotonic()
        ended = harness("run", *AUTO, cwd=tmp_path, variables=variables, check=0)
        assert time.monotonic() - began < 60
    reports = [line for line in ended.err.splitlines() if "W&B is offline" in line]
    assert len(reports) == 1 and "harness sync" in reports[0]
    folder = tmp_path / "runs/r"
    assert read_json(folder / "status.json")["tracking"] == "offline"
    (offline_run,) = offline_runs(folder)
    assert offline_run.steps == list(range(1, LAST + 1))
    assert read_journal(folder).whole
    assert_uploaded_by_sync(folder)


@pytest.mark.parametrize("fault", [pytest.param(name, marks=pytest.mark.slow) for name in FAULTS])
def test_online_by_name_is_refused_before_the_first_step(tmp_path, fault):
    with server_with(fault) as variables:
        ended = harness("run", *TINY[:-1], "online", "--name", "r", cwd=tmp_path, variables=variables, check=7)
    assert len(ended.errors) == 1 and KEY not in ended.err
    assert not (tmp_path / "runs").exists()


def assert_uploaded_by_sync(folder, last=LAST):
    """`harness sync` uploads the run to a server without faults: each step once, with its values."""
    with FaultyServer() as server:
        done = harness("sync", folder, cwd=folder, variables=server.variables | SLIM, check=0)
        assert has_steps(server, last)
        assert f"{last} of {last} steps are there" in done.out
    journal = [record.values["test/acc"] for record in read_journal(folder).records if record.kind == "epoch"]
    assert [row["test/acc"] for row in server.history if "test/acc" in row] == pytest.approx(journal)


@pytest.mark.parametrize(
    ("stream_status", "dies_after"),
    [
        pytest.param(401, 0, marks=pytest.mark.slow),
        pytest.param(403, 0, marks=pytest.mark.slow),
        pytest.param(404, 0, marks=pytest.mark.slow),
        pytest.param(500, 0, marks=pytest.mark.slow),
        pytest.param(429, 0, marks=pytest.mark.slow),
        pytest.param(200, 1, marks=pytest.mark.slow),
    ],
)
def test_a_server_that_fails_during_the_run_is_reported_and_the_journal_is_uploaded_later(
    tmp_path, stream_status, dies_after
):
    with FaultyServer(stream_status=stream_status, dies_after=dies_after) as server:
        began = time.monotonic()
        ended = harness("run", *AUTO, "--finish-timeout", 5, cwd=tmp_path, variables=server.variables | SLIM, check=0)
        assert time.monotonic() - began < 60
    reports = [line for line in ended.err.splitlines() if "W&B stopped accepting the run" in line]
    assert len(reports) == 1 and "harness sync" in reports[0]
    folder = tmp_path / "runs/r"
    assert read_json(folder / "status.json")["tracking"] == "incomplete"
    assert read_journal(folder).whole
    assert_uploaded_by_sync(folder)


@pytest.mark.slow
def test_a_server_that_is_overloaded_for_a_while_gets_everything(tmp_path):
    with FaultyServer(stream_status=429) as server:
        running = begin("run", *AUTO, cwd=tmp_path, variables=server.variables | SLIM)
        running.until(lambda: sum(b"/file_stream" in sent for sent in server.received) > 1)  # it has tried again
        server.stream_status = 200
        ended = running.end()
        assert ended.code == 0 and "stopped accepting" not in ended.err
        assert has_steps(server, LAST)


def cores(pid):
    """Return the ids of W&B's processes below a process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.slow
def test_training_continues_when_the_wandb_service_is_killed(tmp_path):
    with FaultyServer() as server:
        running = begin("run", *AUTO, "--epochs", 6, cwd=tmp_path, variables=server.variables | SLIM)
        folder = tmp_path / "runs/r"
        running.until(lambda: list(folder.glob("checkpoints/last.pt")))
        (core,) = cores(running.pid)
        os.kill(core, signal.SIGKILL)
        ended = running.end()
    assert ended.code == 0, ended.err
    assert len([line for line in ended.err.splitlines() if "W&B stopped accepting the run" in line]) == 1
    assert read_journal(folder).whole and len(read_journal(folder).records) == 7
    assert_uploaded_by_sync(folder, 67)


@pytest.mark.slow
def test_a_killed_online_run_resumes_as_the_same_wandb_run_with_each_step_once(tmp_path):
    with FaultyServer() as server:
        words = ["run", *AUTO, "--checkpoint-every", 4]
        for point in ("step=14", "evaluation=3"):
            ended = harness(*words, cwd=tmp_path, variables=server.variables | SLIM, fault=f"kill@{point}")
            assert ended.code == -signal.SIGKILL
        harness(*words, cwd=tmp_path, variables=server.variables | SLIM, check=0)
        assert has_steps(server, LAST), server.steps
        ids = set(server.names)
    assert len(ids) == 1


@pytest.mark.slow
@pytest.mark.parametrize("points", [("step=26",), ("evaluation=3", "phase=3")])
def test_the_offline_run_directories_of_a_killed_run_sync_into_one_complete_history(tmp_path, points):
    """By `wandb sync` of the offline run directories, oldest first, where `harness sync` is not at hand."""
    words = ["run", *TINY[:-1], "offline", "--name", "r", "--checkpoint-every", 4]
    for point in points:
        assert harness(*words, cwd=tmp_path, variables=SLIM, fault=f"kill@{point}").code == -signal.SIGKILL
        *_, log = sorted((tmp_path / "runs/r/wandb").glob("offline-run-*/run-*.wandb"))
        os.truncate(log, log.stat().st_size * 2 // 3)  # how much W&B has not flushed is random; here it is a third
    ended = harness(*words, cwd=tmp_path, variables=SLIM, check=0)
    folders = sorted((tmp_path / "runs/r/wandb").glob("offline-run-*"))
    assert len(folders) == 1 + len(points)
    assert "harness sync" in ended.err
    with FaultyServer() as server:
        for folder in folders:
            subprocess.run(
                [sys.executable, "-m", "wandb", "sync", str(folder)],
                env=dict(os.environ) | server.variables,
                cwd=tmp_path,
                check=True,
                capture_output=True,
                timeout=60,
            )
        assert has_steps(server, LAST), server.steps
    journal = [
        record.values["test/acc"] for record in read_journal(tmp_path / "runs/r").records if record.kind == "epoch"
    ]
    assert [row["test/acc"] for row in server.history if "test/acc" in row] == pytest.approx(journal)


@pytest.mark.slow
def test_steps_missing_in_wandb_are_reported_and_the_run_can_be_sent_anew(tmp_path):
    folder = tmp_path / "runs/r"
    with FaultyServer() as server:
        harness("run", *AUTO, cwd=tmp_path, variables=server.variables | SLIM, check=0)
        server.rows = dict(enumerate(server.history[10:]))  # as after a crash at their end
        ended = harness("sync", folder, cwd=tmp_path, variables=server.variables | SLIM, check=7, seconds=200)
        assert f"W&B has 24 of {LAST} steps" in ended.errors[0]
        server.rows = {}
        ended = harness("sync", "--anew", folder, cwd=tmp_path, variables=server.variables | SLIM, check=0)
        assert has_steps(server, LAST)
        assert len(server.names) == 2
