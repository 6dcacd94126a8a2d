"""Where a run ran: versions, hardware, code. No secrets and no environment variables."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("harness", "torch", "torchvision", "timm", "wandb", "grad-cam", "albumentations", "numpy")


def world_size() -> int:
    """How many processes torchrun has started for this run; 1 where it started none."""
    return int(os.environ.get("WORLD_SIZE") or 1) if os.environ.get("RANK") else 1


def rank() -> int:
    """The number of this process among them; 0 leads."""
    return int(os.environ.get("RANK") or 0) if world_size() > 1 else 0


def launch_command() -> list[str]:
    """The words of a command before `run`: harness, or torchrun with as many processes as now."""
    if world_size() == 1:
        return ["harness"]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    several = ["--standalone"] if here == world_size() else ["--nnodes", str(world_size() // here)]
    return ["torchrun", *several, "--nproc-per-node", str(here), "-m", "harness"]


def describe_environment(device: Any) -> dict[str, Any]:
    """Plain facts about the machine, the versions and the code of this process.

    Args:
        device: a torch.device.
    """
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := version(name))},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        **({"processes": world_size()} if world_size() > 1 else {}),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git": git_state(),
    }


def version(package: str) -> str:
    """The installed version of a package; empty when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def processor() -> str:
    """The name of the CPU."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_state() -> dict[str, Any]:
    """Commit and whether files differ from it, of the folder the command was given in; empty outside a checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=True)  # noqa: S603, S607
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}
