"""Trials as processes: how they start, stop, and share the machine."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from harness.utils.environment import usable_cpus
from harness.utils.files import open_regular
from harness.utils.signals import die_with_parent

STOP_TIMEOUT = 90.0  # seconds that a trial may take to save and stop


class TrialProcess(Protocol):
    """The process of one trial."""

    def poll(self) -> int | None:
        """Return the exit status, minus the signal's number where a signal ended it; None while it runs."""

    def stop(self) -> None:
        """Ask it to save its state and stop."""

    def kill(self) -> None:
        """Kill it."""


class FinishedTrial:
    """A trial that finished under an earlier scheduler, which died before it stored the result."""

    def poll(self) -> int | None:
        """See `TrialProcess`."""
        return 0

    def stop(self) -> None:
        """See `TrialProcess`."""

    def kill(self) -> None:
        """See `TrialProcess`."""


class SubprocessTrial:
    """A trial started by its command line."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> None:
        with open(open_regular(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - the sweep's own command, without a shell
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                cwd=folder,
                start_new_session=True,  # Ctrl-C goes to the sweep alone, which stops its trials
                preexec_fn=partial(die_with_parent, os.getpid()),
            )

    def poll(self) -> int | None:
        """See `TrialProcess`."""
        return self._process.poll()

    def stop(self) -> None:
        """See `TrialProcess`."""
        send_signal(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """See `TrialProcess`."""
        send_signal(self._process.pid, signal.SIGKILL)
        self._process.wait()


def stop_all(processes: Sequence[TrialProcess], timeout: float = STOP_TIMEOUT) -> None:
    """Ask all processes to save and stop, and kill those that do not within `timeout` seconds."""
    for process in processes:
        process.stop()
    began = time.monotonic()
    while any(process.poll() is None for process in processes):
        if time.monotonic() - began > timeout:
            for process in processes:
                if process.poll() is None:
                    process.kill()
            return
        time.sleep(0.05)


def device_environments(workers: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the environment variables that give each worker its share of the machine: one GPU, and CPU threads.

    With fewer GPUs than workers, several workers share one. An OMP_NUM_THREADS in `environment` is left as it is.
    """
    threads = str(max(1, usable_cpus() // workers))
    share = {} if "OMP_NUM_THREADS" in environment else {"OMP_NUM_THREADS": threads}
    gpus = _visible_gpus(environment)
    return [
        {**share, **({"CUDA_VISIBLE_DEVICES": gpus[worker % len(gpus)]} if gpus else {})} for worker in range(workers)
    ]


def _visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [gpu.strip() for gpu in environment["CUDA_VISIBLE_DEVICES"].split(",") if gpu.strip()]
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=True)  # noqa: S607
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^GPU (\d+):", listing.stdout, re.MULTILINE)  # below each its MIG devices are listed


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process; nothing where it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
