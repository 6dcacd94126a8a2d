"""The share of the machine that each worker gets."""

import os
import signal
import subprocess
import sys
import time

import pytest

from harness.sweep.workers import FinishedTrial, SubprocessTrial, device_environments, stop_all
from harness.utils import environment

NO_GPUS = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(("limit", "workers", "threads"), [(6.0, 2, "3"), (6.0, 4, "1"), (2.5, 1, "3"), (1.0, 3, "1")])
def test_workers_share_the_cores_that_the_control_group_allows(monkeypatch, limit, workers, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(environment, "cgroup_cpu_limit", lambda: limit)
    assert device_environments(workers, NO_GPUS) == [{"OMP_NUM_THREADS": threads}] * workers


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_a_worker_has_no_more_threads_than_cores_to_run_on():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from harness.sweep.workers import device_environments\n"
        f"print([share['OMP_NUM_THREADS'] for share in device_environments(2, {NO_GPUS!r})])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['1', '1']"


def test_the_threads_that_the_user_set_are_left_as_they_are():
    assert device_environments(2, {**NO_GPUS, "OMP_NUM_THREADS": "5"}) == [{}, {}]


def test_visible_gpus_are_dealt_out_in_turn():
    shares = device_environments(3, {"CUDA_VISIBLE_DEVICES": "4, GPU-abc"})
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["4", "GPU-abc", "4"]


@pytest.mark.parametrize(("ending", "gpus"), [("exit 0", ["0", "1", "0"]), ("exit 9", [])])
def test_without_the_variable_the_gpus_are_those_that_nvidia_smi_lists(monkeypatch, tmp_path, ending, gpus):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho 'GPU 0: H100 (UUID: GPU-1)'\necho '  MIG 1g'\necho 'GPU 1: H100'\n{ending}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    shares = device_environments(3, {})
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares if "CUDA_VISIBLE_DEVICES" in share] == gpus


def test_trials_that_do_not_stop_in_time_are_killed(tmp_path):
    def begin(name, trap):
        script = f"trap '{trap}' TERM; : > {name}; while :; do sleep 0.05; done"
        return SubprocessTrial(["/bin/sh", "-c", script], dict(os.environ), tmp_path, tmp_path / f"{name}.log")

    polite, deaf = begin("polite", "exit 143"), begin("deaf", "")
    began = time.monotonic()
    while not all((tmp_path / name).exists() for name in ("polite", "deaf")):
        assert time.monotonic() - began < 60
        time.sleep(0.01)
    stop_all([FinishedTrial(), polite, deaf], timeout=3)  # the polite one needs 0.05 s, and more on a busy machine
    assert (FinishedTrial().poll(), polite.poll(), deaf.poll()) == (0, 143, -signal.SIGKILL)
    stop_all([polite, deaf], timeout=0)  # which have ended
