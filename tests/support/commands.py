"""`harness` started as a user starts it: a process of its own, with no account."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.forked import harness

QUICK = ["--recipe", "digits", "--model-args", "width=8", "--threads", "1", "--precision", "fp32"]


def command(*words, cwd, check=None, timeout=200):
    """Run `harness` as a process of its own, with no account; forked where it can be, which spares the imports."""
    return harness(*words, cwd=cwd, check=check, seconds=timeout, account=False)


def begun(*words, cwd):
    """`harness` as a process that goes on; its output is read by `communicate`."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    line = [sys.executable, "-m", "harness", *map(str, words)]
    return subprocess.Popen(line, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(process, folder, seconds=200):
    """Until a run under `folder` has saved, or its process has ended."""
    began = time.monotonic()
    while not list(folder.glob("runs/*/checkpoints/last.pt")) and process.poll() is None:
        assert time.monotonic() - began < seconds
        time.sleep(0.01)
