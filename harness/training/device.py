"""What a machine can do for training: device, number format, threads, memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import resource
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.config.settings import Config
from harness.utils.environment import PACKAGES, git_state, processor, usable_cpus, version, world_size
from harness.utils.errors import ResourceError, UsageError
from harness.utils.files import read_json, write_json


def pick_device(word: str) -> torch.device:
    """The device that a setting names; `auto` takes a GPU where there is one.

    Raises:
        UsageError: there is no such device here.
    """
    if word == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(word)
    except RuntimeError:
        raise UsageError(f"device={word!r}: need auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(f"device={word!r}: this machine has {count} CUDA devices; use --device cpu or auto")
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device='mps': there is no Metal device here; use --device cpu or auto")
    if device.type not in ("cpu", "mps"):
        raise UsageError(f"device={word!r}: need auto, cpu, cuda, cuda:N or mps")
    return device


def pick_precision(word: str, device: torch.device) -> str:
    """The number format that a setting means on a device: fp32, bf16 or fp16.

    `auto` is bf16 on a GPU that has it, and on a CPU the format in which a convolution really is quicker here.
    """
    if word != "auto":
        return word
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and cpu_has_bf16() and measure_bf16_speedup() > 1.1:
        return "bf16"
    return "fp32"


def autocast_dtype(precision: str) -> torch.dtype | None:
    """What autocast casts to; None for float32 throughout."""
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def cpu_has_bf16() -> bool:
    """Whether this processor has instructions for bfloat16; it may still be slower in them."""
    if platform.system() != "Linux":
        return False
    try:
        with open("/proc/cpuinfo") as file:
            return any(flag in line for line in file for flag in ("avx512_bf16", "amx_bf16", " bf16"))
    except OSError:
        return False


def measure_bf16_speedup() -> float:
    """How many times as fast as in float32 a convolution and its gradients are in bfloat16 on this CPU.

    Measured (about 0.1 s), since the flags do not tell: two Zen 4 cores train the custom ResNet twice as fast in
    bfloat16, two Sapphire Rapids cores without AMX at 0.6 times the speed of float32. The verdict is kept in the
    user's cache, so that every run on a machine is told the same.
    """
    key = f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness" / "bf16_gain.json"
    known = read_json(path)
    if key not in known:
        known = {**known, key: _measure_bf16_gain()}
        with contextlib.suppress(ResourceError):  # a home that can not be written costs the next run 0.1 s
            write_json(path, known)
    return float(known[key])


def _measure_bf16_gain() -> float:
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    generator = torch.Generator().manual_seed(0)
    images, weights = torch.randn(64, 64, 16, 16, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
    for _ in range(6):
        for precision in best:  # in turn, so that a busy moment meets both
            x, w = (
                t.to(precision).contiguous(memory_format=torch.channels_last).requires_grad_()
                for t in (images, weights)
            )
            began = time.perf_counter()
            torch.nn.functional.conv2d(x, w, padding=1).sum().backward()
            best[precision] = min(best[precision], time.perf_counter() - began)
    return round(best[torch.float32] / best[torch.bfloat16], 3)


def keep_freed_memory() -> bool:
    """Tell glibc to keep the memory of freed tensors for the next step; whether it was told.

    Each step at batch 512 otherwise maps and unmaps 64 to 134 MB tensors and pays for every page anew, 19 to 26 %
    of a training step on two Zen 4 cores.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    return all(mallopt(*pair) == 1 for pair in ((mmap_max, 0), (trim_threshold, -1), (top_pad, 256 * 2**20)))


def configure_torch(config: Config, device: torch.device) -> None:
    """Set up the process for one run: threads, memory, which kernels are allowed."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = not config.deterministic
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to be deterministic
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)


def peak_memory(device: torch.device) -> float:
    """The most memory used so far, GiB: of the device's tensors on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if platform.system() == "Darwin" else 2**20)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given, so that a clock read next is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def autocast(device: torch.device, precision: torch.dtype | None) -> Iterator[None]:
    """Autocast to `precision`; nothing for None. Never yield records from inside: the mode would leak out."""
    if precision is None:
        yield
    else:
        with torch.autocast(device.type, dtype=precision):
            yield


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model into evaluation mode; afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def release_memory() -> None:
    """Give back what a run that is over still holds: its cycles, the GPU's cached memory, its compiled code.

    torch.compile counts the models that came through one forward, and gives up on it after a few.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return the machine, the versions and the code of this process, without secrets or environment variables."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed for name in PACKAGES if (installed := version(name))},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cores": usable_cpus(),
        "threads": torch.get_num_threads(),
        **({"processes": world_size()} if world_size() > 1 else {}),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git": git_state(),
    }
