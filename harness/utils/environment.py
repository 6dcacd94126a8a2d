"""Where a run ran: versions, hardware, code. No secrets and no environment variables."""

from __future__ import annotations

import math
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("vision-harness", "torch", "torchvision", "timm", "wandb", "grad-cam", "albumentations", "numpy")


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


def usable_cpus() -> int:
    """Return how many CPU cores this process may use: its affinity and the limit of its control group, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cgroup_cpu_limit()
    return max(1, min(cores, math.ceil(limit)) if limit is not None else cores)


def cgroup_cpu_limit(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the CPU limit of this process's control group in cores; None where there is none.

    Args:
        root: where the control groups are mounted, version 2 (`cpu.max`) or 1 (`cpu.cfs_quota_us`).
    """
    limits = []
    for folder in _cgroup_folders(root):
        for name in ("cpu.max", "cpu/cpu.cfs_quota_us", "cpu.cfs_quota_us"):
            try:
                words = (folder / name).read_text().split()
                period = words[1] if len(words) > 1 else (folder / name).with_name("cpu.cfs_period_us").read_text()
                quota = float(words[0])  # `max` is no number: no limit
                if quota > 0:
                    limits.append(quota / float(period))
            except (OSError, ValueError, IndexError, ZeroDivisionError):
                continue
    return min(limits, default=None)


def _cgroup_folders(root: Path) -> list[Path]:
    """Return the folders of this process's control group and all above it, up to the mount."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    own = [line.split(":", 2)[2].strip("/") for line in lines if line.startswith("0::")]
    path = root / own[0] if own else root
    return [path, *(parent for parent in path.parents if parent == root or root in parent.parents)]


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
        "cores": usable_cpus(),
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
