"""A signal stops a run after the current update; signals of one request do not count as two."""

import os
import signal
import subprocess
import sys
import time

import pytest

from harness.utils import signals
from harness.utils.signals import Interrupted, StopRequests
from tests.support.waiting import wait_until


def test_signals_that_come_together_are_one_request():
    with StopRequests() as stop_requests:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match="SIGTERM") as caught:
            stop_requests.check()
    assert caught.value.exit_code == 143


def test_a_signal_after_a_stop_in_wandb_is_the_first_signal():
    with StopRequests() as stop_requests:
        stop_requests.stop()
        with pytest.raises(Interrupted, match="stopped in W&B") as caught:
            stop_requests.check()
        assert caught.value.exit_code == 130
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM") as caught:
            stop_requests.check()
    assert caught.value.exit_code == 143


def test_a_second_signal_stops_at_once():
    script = (
        "import os, signal, time; from harness.utils import signals; signals.SAME_REQUEST_SECONDS = 0.1\n"
        "with signals.StopRequests():\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.3); os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(20)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 143


@pytest.mark.parametrize("in_sweep", [True, False])
def test_a_run_stops_when_its_parent_is_gone_only_inside_a_sweep(monkeypatch, in_sweep):
    if in_sweep:
        monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setattr(signals, "PARENT_CHECK_SECONDS", 0.01)
    parent = os.getppid()
    with StopRequests() as stop_requests:
        time.sleep(0.1)
        assert not stop_requests.pending  # the parent lives
        monkeypatch.setattr(os, "getppid", lambda: parent + 1)  # another process has adopted this one
        if not in_sweep:
            time.sleep(0.3)
            assert not stop_requests.pending
        else:
            wait_until(lambda: stop_requests.pending)
            with pytest.raises(Interrupted, match="agent") as caught:
                stop_requests.check()
            assert caught.value.exit_code == 143


def test_a_wait_is_interrupted_by_the_first_signal_and_by_one_that_came_before_it():
    with StopRequests() as stop_requests:
        with stop_requests.at_once():
            pass
        with pytest.raises(Interrupted, match="SIGTERM") as caught, stop_requests.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
        assert caught.value.exit_code == 143
        with pytest.raises(Interrupted, match="SIGTERM"), stop_requests.at_once():
            raise AssertionError("the wait has begun")
    with StopRequests() as stop_requests:
        with pytest.raises(KeyboardInterrupt), stop_requests.at_once():
            raise KeyboardInterrupt  # of a library's own; no stop was requested
        os.kill(os.getpid(), signal.SIGTERM)  # after the wait a signal sets the flag only
        assert stop_requests.pending
