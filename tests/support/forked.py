"""Run `harness` in processes that start at once: forked from a server that has done the heavy imports.

They are complete processes: signals work, and their exit status is that of `cli.main`.
"""

from __future__ import annotations

import faulthandler
import fcntl
import functools
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # the server imports this checkout, wherever it is started
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.support.preloaded"])
# In the temporary folder of the session; a session of another copy of the tree, which a test may start, has another one.
SERVER = f"forkserver-{zlib.crc32(__file__.encode()):08x}.json"

# The quickest run: 11 updates per epoch, evaluated on 359 images in 2 batches; a seventh of a second per epoch.
TINY = [
    "--recipe", "digits", "--image-size", "16", "--model-args", "width=4", "--threads", "1", "--precision", "fp32",
    "--batch-size", "128", "--eval-batch-size", "200", "--epochs", "3", "--gallery", "0", "--wandb", "disabled",
]  # fmt: skip


@dataclass
class Ended:
    """The exit status and output of a process.

    Attributes:
        code: exit status; the negative number of the signal that killed it.
    """

    code: int
    out: str
    err: str

    @property
    def returncode(self) -> int:
        """As in `subprocess.CompletedProcess`, like `stdout` and `stderr`."""
        return self.code

    @property
    def stdout(self) -> str:
        return self.out

    @property
    def stderr(self) -> str:
        return self.err

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


@dataclass
class Running:
    """A running process."""

    process: multiprocessing.Process
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        return int(self.process.pid or 0)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def until(self, happened: Callable[[], object], seconds: float = 100) -> None:
        """Wait until something has happened, or the process has ended."""
        began = time.monotonic()
        while not happened() and self.process.is_alive():
            assert time.monotonic() - began < seconds, self.err.read_text()
            time.sleep(0.002)

    def end(self, seconds: float = 150) -> Ended:
        """Wait for the end of the process, and fail after `seconds`."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.signal(signal.SIGUSR2)  # prints its stack
            self.process.join(2)
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self.err.read_text()}")
        ended = Ended(int(self.process.exitcode or 0), self.out.read_text(), self.err.read_text())
        self.process.close()
        return ended


@functools.cache
def join_server() -> None:
    """Use the server of the session, whichever worker of pytest-xdist has started it: its imports take ten seconds.

    Python has no public interface for that, so that from 3.14 on, where it is another one, each worker has its own.
    """
    shared = os.environ.get("HARNESS_TESTS_TMP", "")
    if not shared or sys.version_info >= (3, 14) or not Path("/proc/self/fd").is_dir():
        return
    server = forkserver._forkserver
    # Where its socket will be; the folder of multiprocessing itself is removed when the worker that made it ends.
    multiprocessing.current_process()._config["tempdir"] = shared
    with open(Path(shared, f"{SERVER}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            address, pid, alive = json.loads(Path(shared, SERVER).read_text())
            # As long as a process has this pipe open the server lives.
            server._forkserver_alive_fd = os.open(f"/proc/{pid}/fd/{alive}", os.O_WRONLY)
        except OSError:  # there is none, or its worker has ended
            server.ensure_running()
            about = [server._forkserver_address, os.getpid(), server._forkserver_alive_fd]
            Path(shared, SERVER).write_text(json.dumps(about))
        else:
            server._forkserver_address = address
            server.ensure_running = resource_tracker.ensure_running  # it is no child of this process


def begin(
    *arguments: object,
    cwd: Path,
    fault: str = "",
    variables: Mapping[str, str] | None = None,
    file_size: int = 0,
    memory: int = 0,
    method: str = "fork",
    account: bool = True,
) -> Running:
    """Start `harness` with these arguments.

    Args:
        fault: HARNESS_FAULT of the process.
        file_size: maximum size of a file, bytes.
        memory: bytes that the process may allocate beyond what it has.
        method: how the process starts processes of its own, `fork` or `forkserver`.
        account: whether it inherits the WANDB_ variables of the test.
    """
    environment = (
        {name: value for name, value in os.environ.items() if account or not name.startswith("WANDB_")}
        | {"WANDB_ERROR_REPORTING": "false"}
        | dict(variables or {})
    )
    if fault:
        environment |= {"HARNESS_TESTING": "1", "HARNESS_FAULT": fault}
    logs = Path(cwd).parent / f"{Path(cwd).name}-logs"
    logs.mkdir(exist_ok=True)
    number = len(list(logs.iterdir())) // 2
    out, err = logs / f"{number}.out", logs / f"{number}.err"
    out.touch()
    err.touch()
    join_server()
    process = context.Process(
        target=_child,
        args=(
            [str(argument) for argument in arguments],
            str(cwd),
            environment,
            str(out),
            str(err),
            file_size,
            memory,
            method,
        ),
    )
    process.start()
    return Running(process, out, err)


def harness(*arguments: object, cwd: Path, check: int | None = None, seconds: float = 150, **how: object) -> Ended:
    """Run `harness` until it ends, and check its exit status."""
    ended = begin(*arguments, cwd=cwd, **how).end(seconds)
    if check is not None:
        assert ended.code == check, f"{ended.code}: {ended.err}\n{ended.out}"
    return ended


def _child(
    arguments: list[str],
    cwd: str,
    environment: dict[str, str],
    out: str,
    err: str,
    file_size: int,
    memory: int,
    method: str,
) -> None:
    """Become the `harness` command."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_TRUNC), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = ["harness", *arguments]
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    multiprocessing.set_start_method(method, force=True)  # of loader processes, as outside a test
    # A forked process inherits the server's signal handlers; restore those of a new process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
    signal.set_wakeup_fd(-1)
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    if memory:
        import torch

        torch.zeros(1)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, resource.RLIM_INFINITY))
    from harness.cli.main import main

    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
