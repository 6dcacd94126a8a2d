"""A server process that imports what a run needs once, and forks each trial of a sweep from itself.

Importing torch, timm and W&B takes seconds, which every short trial would spend again. `ForkServer` starts
`python -m harness.sweep.fork_server` and exchanges JSON messages with it over a socket pair: requests to run
`harness ARGUMENTS`, and answers with the process id and the exit status of each trial. When the scheduler's end closes,
also because the scheduler was killed, the trials get SIGTERM: they save their state and stop.

`multiprocessing`'s fork server does not do: each of its children keeps the server alive, so that trials run on when the
scheduler is killed; `Process.start` waits for the server's imports; and a server that runs cannot be started again with
other environment variables, which torch reads its number of threads from.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from harness.sweep.workers import STOP_TIMEOUT, send_signal
from harness.utils.errors import HarnessError
from harness.utils.files import open_regular
from harness.utils.signals import die_with_parent

POLL_INTERVAL = 0.05  # seconds between two checks for ended trials
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}
PRELOADED = (
    "harness.cli.main",
    "harness.runs.run",
    "harness.runs.lr_find",
    "sklearn.datasets",
    "matplotlib.backends.backend_agg",
    "matplotlib.font_manager",
)


class ForkServer:
    """The scheduler's side: starts the server, asks it for trials, and keeps their process ids and exit statuses.

    Args:
        environment: of the server; what libraries read at import, such as OMP_NUM_THREADS, holds for every trial.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._connection, server_end = Pipe()
        with server_end:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, without a shell
                [sys.executable, "-m", "harness.sweep.fork_server", str(server_end.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=dict(environment),
                pass_fds=[server_end.fileno()],
                start_new_session=True,
            )
        self._count = 0
        self._is_connected = True
        self.pids: dict[int, int] = {}
        self.codes: dict[int, int] = {}

    @property
    def pid(self) -> int:
        """Return the process id of the server."""
        return self._process.pid

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> ForkedTrial:
        """Start `harness ARGUMENTS` in a folder, with its output appended to `log`.

        Raises:
            HarnessError: the server has died.
        """
        self._count += 1
        request = {
            "number": self._count,
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(folder),
            "log": str(log),
        }
        try:
            self._connection.send_bytes(json.dumps(request).encode())
        except OSError:
            raise HarnessError("the process that trials are forked from has died; give --no-fork") from None
        return ForkedTrial(self, self._count)

    def receive(self) -> None:
        """Read the answers that have arrived."""
        try:
            while self._is_connected and self._connection.poll():
                answer = json.loads(self._connection.recv_bytes())
                if "pid" in answer:
                    self.pids[answer["number"]] = answer["pid"]
                else:
                    self.codes[answer["number"]] = answer["code"]
        except (EOFError, OSError):  # the server has died, and its trials got SIGTERM
            self._is_connected = False
            for number in range(1, self._count + 1):
                self.codes.setdefault(number, -signal.SIGKILL)

    def close(self) -> None:
        """Stop the server, and with it the trials that still run."""
        self._connection.close()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class ForkedTrial:
    """A trial of a fork server."""

    def __init__(self, server: ForkServer, number: int) -> None:
        self._server, self._number = server, number
        self._pending_signal = 0

    def poll(self) -> int | None:
        """See `TrialProcess`."""
        self._server.receive()
        code = self._server.codes.get(self._number)
        if code is None and self._pending_signal and self._number in self._server.pids:
            send_signal(self._server.pids[self._number], self._pending_signal)
            self._pending_signal = 0
        return code

    def stop(self) -> None:
        """See `TrialProcess`."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """See `TrialProcess`."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        self._pending_signal = number  # sent as soon as the process id is known
        self.poll()


def main() -> None:
    """Import what runs need, then serve until the scheduler's end of the connection closes."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    for name in PRELOADED:
        importlib.import_module(name)
    from harness.reporting.figures import style
    from harness.reporting.html import pages
    from harness.tracking.wandb import init

    init.preload()
    style.warm_up()
    pages.precompile()
    gc.collect()
    gc.freeze()  # the collector of a trial does not touch, and so does not copy, the memory that it shares with the server
    serve(connection)


def serve(connection: Connection) -> None:
    """Fork a trial for every request, and answer when each has ended."""
    running: dict[int, int] = {}  # process id -> number of the trial
    is_open = True
    while is_open or running:
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _answer(connection, {"number": running.pop(pid), "code": os.waitstatus_to_exitcode(status)})
        if not is_open:
            time.sleep(POLL_INTERVAL)
            continue
        try:
            if not connection.poll(POLL_INTERVAL):
                continue
            request = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            is_open = False
            for pid in running:
                send_signal(pid, signal.SIGTERM)
            continue
        pid = _fork(request, connection)
        running[pid] = request["number"]
        _answer(connection, {"number": request["number"], "pid": pid})


def _fork(request: Mapping[str, Any], connection: Connection) -> int:
    """Fork a process that becomes the requested trial; return its id."""
    server = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # a stop must wait until the child has its own handlers
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return pid
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        os.setsid()
        die_with_parent(server)
        connection.close()
        _become_trial(request)
    except SystemExit as exit_request:
        status = exit_request.code if isinstance(exit_request.code, int) else 0
    except BaseException:  # noqa: BLE001 - the child must never return into the server's loop
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _become_trial(request: Mapping[str, Any]) -> None:
    """Run `harness ARGUMENTS` in this process, with the request's environment, folder and log."""
    log = open_regular(Path(request["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(log, stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["harness", *request["arguments"]]
    runpy.run_module("harness", run_name="__main__")


def _answer(connection: Connection, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the scheduler has ended
        connection.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    main()
