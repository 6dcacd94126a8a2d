"""A process with everything imported that forks runs: `harness sweep` starts its trials from it.

Importing torch, timm and W&B takes seconds, which a short trial would spend again and again. Each line on standard
input asks for one run; each line on standard output says that one began or ended. When standard input closes, because
whoever asked has ended or was killed, the runs are told to save and stop.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
from typing import Any

from harness.utils.signals import die_with_parent

WAIT = 0.05  # seconds between two looks at who has ended
PRELOADED = (
    "harness.runs.run",
    "harness.runs.lr_find",
    "sklearn.datasets",
    "matplotlib.backends.backend_agg",
    "matplotlib.font_manager",
)


def main() -> None:
    """Serve until standard input closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for name in PRELOADED:
        importlib.import_module(name)
    from harness.reporting.figures import style
    from harness.tracking.wandb import init

    init.preload()
    style.warm_up()
    gc.collect()
    gc.freeze()  # what is shared with the runs stays shared
    serve(sys.stdin.fileno(), sys.stdout.fileno())


def serve(asks: int, answers: int) -> None:
    """Fork a run for every line that arrives, and say when each has ended."""
    running: dict[int, str] = {}
    rest, is_open = b"", True
    while is_open or running:
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _say(answers, {"id": running.pop(pid), "code": os.waitstatus_to_exitcode(status)})
        if not is_open:
            select.select([], [], [], WAIT)
            continue
        if not select.select([asks], [], [], WAIT)[0]:
            continue
        data = os.read(asks, 65536)
        if not data:
            is_open = False
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            ask = json.loads(line)
            pid = _fork(ask, (asks, answers))
            running[pid] = ask["id"]
            _say(answers, {"id": ask["id"], "pid": pid})


def _fork(ask: dict[str, Any], pipes: tuple[int, int]) -> int:
    """A child process that does what `harness WORDS` does, its output in the file `log`."""
    parent = os.getpid()
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(
        signal.SIG_BLOCK, signals
    )  # until the child has its own handlers: a stop is not lost in between
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        return pid
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        os.setsid()
        die_with_parent(parent)
        log = os.open(ask["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        for pipe in pipes:
            if pipe > 2:
                os.close(pipe)
        os.environ.clear()
        os.environ.update(ask["environment"])
        os.chdir(ask["folder"])
        sys.argv = ["harness", *ask["words"]]
        from harness.cli.main import main as command

        command()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:  # noqa: BLE001 - the last door of the child, which must not return into the parent's loop
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _say(answers: int, told: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(answers, json.dumps(told).encode() + b"\n")


if __name__ == "__main__":
    main()
