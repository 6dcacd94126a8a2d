"""The environment of a process: versions, processor, usable CPUs, git state and the processes of torchrun."""

from __future__ import annotations

import math
import os
import platform
import re
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

CGROUP_ROOT, CGROUP_MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
CPUINFO = Path("/proc/cpuinfo")
MAX_DIFF = 10_000_000  # bytes
PACKAGES = ("vision-harness", "torch", "torchvision", "timm", "wandb", "grad-cam", "albumentations", "numpy")


def world_size() -> int:
    """Return the number of processes that torchrun started for this run; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE") or 1) if os.environ.get("RANK") else 1


def rank() -> int:
    """Return the rank of this process; 0 is the main process."""
    return int(os.environ.get("RANK") or 0) if world_size() > 1 else 0


def launch_command() -> list[str]:
    """Return the command up to `run`: harness, or torchrun with the present number of processes."""
    if world_size() == 1:
        return ["harness"]
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    is_single_node = local_world_size == world_size()
    nodes = ["--standalone"] if is_single_node else ["--nnodes", str(world_size() // local_world_size)]
    return ["torchrun", *nodes, "--nproc-per-node", str(local_world_size), "-m", "harness"]


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use, at least 1: its affinity, or the limit of its cgroup if lower."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cgroup_cpu_limit()
    return max(1, min(cpus, math.ceil(limit)) if limit is not None else cpus)


def cgroup_cpu_limit(root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> float | None:
    """Return the CPU limit of this process's cgroup and of those above it, in CPUs; None where there is no limit.

    Args:
        root: where cgroups are mounted: version 2 (`cpu.max`), or 1 (`cpu.cfs_quota_us` of the controller `cpu`).
        membership: the file that names the cgroups of this process.
    """
    limits = []
    for folder in _cgroup_folders(root, membership):
        try:
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if float(quota) > 0:  # version 1 writes -1 for no limit; version 2 writes `max`, a ValueError
                limits.append(float(quota) / float(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return min(limits, default=None)


def _cgroup_folders(root: Path, membership: Path) -> list[Path]:
    """Return the folders of this process's cgroups and of all cgroups above them.

    In a container the folder that `membership` names is often not mounted: then the limit is in the mount itself.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    mounts = [(root, ""), (root / "cpu", ""), (root / "cpu,cpuacct", "")]
    for line in lines:  # 0::/a/b for version 2, 4:cpu,cpuacct:/a/b for version 1
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts.append((root, path))
        elif "cpu" in controllers.split(","):
            mounts += [(root / "cpu", path), (root / controllers, path)]
    folders: dict[Path, None] = {}
    for mount, path in mounts:
        parts = [part for part in path.split("/") if part and part != ".."]
        folders |= dict.fromkeys(mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1))
    return list(folders)


def version(package: str) -> str:
    """Return the installed version of a package; empty if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def processor(cpuinfo: Path = CPUINFO) -> str:
    """Return the name of the CPU; its architecture where the system names no model."""
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_state() -> dict[str, Any]:
    """Return the commit of the working directory and whether files differ from it; empty outside a git repository."""
    try:
        return {"commit": _git("rev-parse", "HEAD").strip(), "changed": bool(_git("status", "--porcelain").strip())}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}


def git_diff() -> str:
    """Return the uncommitted changes of the files that git knows in the repository of the working directory, as a patch.

    Empty where there are none, outside a repository, where git is disabled (WANDB_DISABLE_GIT), and where the patch would have
    over `MAX_DIFF` bytes.
    """
    if os.environ.get("WANDB_DISABLE_GIT", "").lower() in ("1", "true", "yes", "on"):
        return ""
    try:
        # No program that the repository names is run, and all files are there from wherever in it harness is started.
        diff = _git("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--submodule=short", "HEAD", "--", ":/")
    except (OSError, subprocess.SubprocessError, ValueError):  # ValueError: a changed file is not UTF-8
        return ""
    return diff if len(diff) <= MAX_DIFF else ""


def describe_process() -> dict[str, Any]:
    """Return where, when and how this process was started: what W&B notes of a run, for one that is uploaded later.

    A password in the address of the git remote is left out.
    """
    commit, remote = (_git_or_nothing(*words) for words in (("rev-parse", "HEAD"), ("remote", "get-url", "origin")))
    return {
        "started": round(time.time(), 3),  # seconds since 1970
        "host": socket.gethostname(),
        "program": os.path.abspath(sys.argv[0]),
        "args": sys.argv[1:],
        "root": os.getcwd(),
        "executable": sys.executable,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "os": platform.platform(),
        "cpu_count": os.cpu_count() or 1,
        "git": {"commit": commit, "remote": re.sub(r"//[^/@]*@", "//", remote)},
    }


def _git_or_nothing(*arguments: str) -> str:
    try:
        return _git(*arguments).strip()
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""


def _git(*arguments: str) -> str:
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    result = subprocess.run(command, capture_output=True, timeout=10, check=True)  # noqa: S603
    return result.stdout.decode("utf-8", "strict")
