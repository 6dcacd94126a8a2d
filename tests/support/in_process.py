"""Run `harness` in this process, through its real entry point: cheap, for thousands of commands that start no threads."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from tests.support.forked import Ended


class HangError(BaseException):
    """The command took too long; no `except Exception` of the command catches it."""


def _hang(number: int, frame: FrameType | None) -> None:
    raise HangError


def run_in_process(
    *arguments: object, cwd: Path, seconds: float = 100, variables: Mapping[str, str] | None = None
) -> Ended:
    """Run a command with its output in files, and return its exit status and output.

    Raises:
        AssertionError: it took longer than `seconds`.
    """
    from harness.cli.main import main

    before, argv, here = dict(os.environ), sys.argv, os.getcwd()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        former = signal.signal(signal.SIGALRM, _hang)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        code: object = None
        try:
            os.environ.update(variables or {})
            os.chdir(cwd)
            sys.argv = ["harness", *map(str, arguments)]
            main()
        except SystemExit as stop:
            code = stop.code
        except HangError:
            raise AssertionError(f"still running after {seconds} s") from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
            os.chdir(here)
            sys.argv = argv
            os.environ.clear()
            os.environ.update(before)
        out.seek(0)
        err.seek(0)
        texts = [file.read().decode("utf-8", "replace") for file in (out, err)]
    return Ended(int(code) if isinstance(code, int) else 0, *texts)
