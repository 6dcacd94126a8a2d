"""Trials as processes: started, watched, stopped, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from harness.utils.environment import usable_cpus
from harness.utils.errors import HarnessError
from harness.utils.signals import die_with_parent

STOP_TIMEOUT = 90.0  # seconds that a stopped trial may take to save


class TrialProcess(Protocol):
    """One trial."""

    def poll(self) -> int | None:
        """Its exit status (negative: of a signal); None while it runs."""

    def stop(self) -> None:
        """Ask it to save and end."""

    def kill(self) -> None:
        """End it."""


class FinishedTrial:
    """A trial that had come to its end before anybody wrote that down."""

    def poll(self) -> int | None:
        """See `TrialProcess`."""
        return 0

    def stop(self) -> None:
        """See `TrialProcess`."""

    def kill(self) -> None:
        """See `TrialProcess`."""


class SubprocessTrial:
    """A process started by its command line."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> None:
        with open(log, "ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - the sweep's own command, without a shell
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                cwd=folder,
                start_new_session=True,  # Ctrl-C reaches the sweep, which decides
                preexec_fn=partial(die_with_parent, os.getpid()),
            )

    def poll(self) -> int | None:
        """See `TrialProcess`."""
        return self._process.poll()

    def stop(self) -> None:
        """See `TrialProcess`."""
        _signal(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """See `TrialProcess`."""
        _signal(self._process.pid, signal.SIGKILL)
        self._process.wait()


class ForkedTrial:
    """A process forked from one that has everything imported."""

    def __init__(self, nest: ForkServer, name: str) -> None:
        self._nest, self._name = nest, name
        self._asked_to_stop = 0

    def poll(self) -> int | None:
        """See `TrialProcess`."""
        self._nest.listen()
        code = self._nest.codes.get(self._name)
        if code is None and self._asked_to_stop and self._name in self._nest.pids:
            _signal(self._nest.pids[self._name], self._asked_to_stop)
            self._asked_to_stop = 0
        return code

    def stop(self) -> None:
        """See `TrialProcess`."""
        self._asked_to_stop = signal.SIGTERM  # sent once it is known to have begun
        self.poll()

    def kill(self) -> None:
        """See `TrialProcess`."""
        self._asked_to_stop = signal.SIGKILL
        self.poll()


class ForkServer:
    """The process that trials are forked from; see `harness.cli.fork_server`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.cli.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._rest = b""
        self._count = 0
        self.pids: dict[str, int] = {}
        self.codes: dict[str, int] = {}

    def start(self, words: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> ForkedTrial:
        """A trial: `words` come after `harness`."""
        self._count += 1
        name = str(self._count)
        ask = {
            "id": name,
            "words": list(words),
            "environment": dict(environment),
            "folder": str(folder),
            "log": str(log),
        }
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(ask).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise HarnessError("the process that trials are forked from has died; give --no-fork") from None
        return ForkedTrial(self, name)

    def listen(self) -> None:
        """Take in who began and who ended."""
        while self._selector.select(0):
            assert self._process.stdout is not None
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                self._selector.unregister(self._process.stdout)
                for name in set(map(str, range(1, self._count + 1))) - set(self.codes):
                    self.codes[name] = -signal.SIGKILL  # they have lost their parent and were told to stop
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                told: dict[str, Any] = json.loads(line)
                if "pid" in told:
                    self.pids[told["id"]] = told["pid"]
                else:
                    self.codes[told["id"]] = told["code"]

    def close(self) -> None:
        """End it; what still runs is told to save and stop."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._selector.close()
        if self._process.stdout is not None:
            self._process.stdout.close()


def stop_all(processes: Sequence[TrialProcess], patience: float = STOP_TIMEOUT) -> None:
    """Ask all to save and end, and end those that do not within `patience` seconds."""
    for process in processes:
        process.stop()
    began = time.monotonic()
    while any(process.poll() is None for process in processes):
        if time.monotonic() - began > patience:
            for process in processes:
                if process.poll() is None:
                    process.kill()
            return
        time.sleep(0.05)


def device_environments(workers: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """For each worker, the variables that give it its share of the machine: a GPU, and CPU threads.

    GPUs are dealt out in turn, so that with fewer GPUs than workers several share one.
    """
    threads = str(max(1, usable_cpus() // workers))
    share = {} if "OMP_NUM_THREADS" in environment else {"OMP_NUM_THREADS": threads}
    cards = _cards(environment)
    return [
        {**share, **({"CUDA_VISIBLE_DEVICES": cards[place % len(cards)]} if cards else {})} for place in range(workers)
    ]


def _cards(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [word.strip() for word in environment["CUDA_VISIBLE_DEVICES"].split(",") if word.strip()]
    try:
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=True)  # noqa: S607
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(place) for place, line in enumerate(told.stdout.splitlines()) if line.startswith("GPU ")]


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
