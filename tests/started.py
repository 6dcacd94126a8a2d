"""`harness` started as a user starts it: a process of its own, with no account."""

import os
import subprocess
import sys
from pathlib import Path

QUICK = ["--recipe", "digits", "--model-args", "width=8", "--threads", "1", "--precision", "fp32"]


def command(*words, cwd, check=None, timeout=200, **more):
    """Run `harness` as a process of its own, with no account."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | {
        "WANDB_ERROR_REPORTING": "false"
    }
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", "harness", *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        **more,
    )
    if check is not None:
        assert done.returncode == check, done.stderr + done.stdout
    return done
