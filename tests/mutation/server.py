"""A process that has imported the libraries and is forked for each run of tests, which so begins seconds earlier.

It imports nothing of this repository, whose files change between the runs. It reads the words for pytest and the path of
the output as one line of JSON from standard input, and answers with the process id of the fork and with its exit status.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "timm", "sklearn.datasets", "matplotlib.pyplot", "click")


class TestServer:
    """The process, and the runs of tests that are asked of it, one at a time.

    Args:
        tree: folder in which the tests run.
        libraries: modules to import before; one that is not installed is left out.
    """

    __test__ = False

    def __init__(self, tree: Path, environment: Mapping[str, str], libraries: Sequence[str] = LIBRARIES) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *libraries], cwd=tree, env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip

    def run(self, words: Sequence[str], seconds: float) -> tuple[int | None, str]:
        """Run pytest with these words; return its exit status and its output.

        Args:
            seconds: after which it is killed, with its children; the status is None then.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.NamedTemporaryFile("r", errors="replace") as output:
            self._process.stdin.write(json.dumps([list(words), output.name]).encode() + b"\n")
            pid = int(self._process.stdout.readline())
            in_time = bool(select.select([self._process.stdout], [], [], seconds)[0])
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # what its tests have left running, too
            code = int(self._process.stdout.readline())
            return (code if in_time else None), output.read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve(libraries: Sequence[str]) -> None:
    """Fork for each line of standard input."""
    sys.path.pop(0)  # this file's folder
    import pytest  # noqa: F401

    # Importing W&B makes a temporary folder, which the first fork would remove at its end; timm does without.
    sys.modules["wandb"] = None  # type: ignore[assignment]
    for name in libraries:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    del sys.modules["wandb"]
    for line in sys.stdin:
        words, output = json.loads(line)
        pid = os.fork()
        if not pid:
            run(words, output)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def run(words: Sequence[str], output: str) -> None:
    """Become a process of pytest in a group of its own."""
    import pytest

    os.setsid()
    for stream, path, mode in ((0, os.devnull, os.O_RDONLY), (1, output, os.O_WRONLY), (2, output, os.O_WRONLY)):
        os.dup2(os.open(path, mode | (os.O_APPEND if stream else 0)), stream)
    sys.stdin, sys.argv = open(0, closefd=False), ["pytest", *words]  # noqa: SIM115 - for the whole process
    sys.exit(pytest.main(list(words)))


if __name__ == "__main__":
    serve(sys.argv[1:])
