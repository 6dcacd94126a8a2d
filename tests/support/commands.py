"""Run `harness` as a user does: in its own process, without a W&B account."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.forked import harness
from tests.support.waiting import wait_until

QUICK = ["--recipe", "digits", "--image-size", "16", "--model-args", "width=4", "--threads", "1", "--precision", "fp32"]


def command(*arguments, cwd, check=None, timeout=200):
    """Run `harness` in its own process, forked from one that has done the imports."""
    return harness(*arguments, cwd=cwd, check=check, seconds=timeout, account=False)


def begun(*arguments, cwd):
    """Start `harness` in a new process and return it while it runs; `communicate` returns its output."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    line = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.Popen(line, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(process, folder, seconds=200):
    """Wait until a run under `folder` has saved a checkpoint, or its process has ended."""
    wait_until(
        lambda: list(folder.glob("runs/*/checkpoints/last.pt")) or process.poll() is not None, seconds, pause=0.01
    )
