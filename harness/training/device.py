"""Device, number format, threads and memory of the machine that trains."""

from __future__ import annotations

import contextlib
import gc
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

from harness.training.process_settings import abandon_failed_onednn
from harness.utils.environment import PACKAGES, git_state, processor, usable_cpus, version, world_size
from harness.utils.errors import ResourceError, UsageError, is_out_of_memory
from harness.utils.files import cache_folder, read_json, write_json
from harness.utils.plugins import plugin_packages


@contextlib.contextmanager
def evaluation_memory(num_images: int) -> Iterator[None]:
    """Raise ResourceError, with the remedy, where memory runs out in the context, an evaluation of that many images."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        abandon_failed_onednn(error)
        raise ResourceError(f"out of memory while evaluating {num_images:,} images; lower --eval-batch-size") from None


def pick_device(name: str) -> torch.device:
    """Return the device that a setting names; `auto` is a GPU where there is one.

    Raises:
        UsageError: this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device={name!r}: need auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(f"device={name!r}: this machine has {count} CUDA devices; use --device cpu or auto")
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device='mps': this machine has no Metal device; use --device cpu or auto")
    if device.type not in ("cpu", "mps"):
        raise UsageError(f"device={name!r}: need auto, cpu, cuda, cuda:N or mps")
    return device


def pick_precision(precision: str, device: torch.device) -> str:
    """Return the number format of a setting on a device: fp32, bf16 or fp16.

    `auto` is bf16 on a GPU that supports it, else fp16; on a CPU it is the format in which a convolution is measured to
    be faster.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and cpu_has_bf16() and measure_bf16_speedup() > 1.1:
        return "bf16"
    return "fp32"


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Return the dtype of autocast; None for float32."""
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def cpu_has_bf16() -> bool:
    """Return whether this processor has instructions for bfloat16; they may still be slower."""
    if platform.system() != "Linux":
        return False
    try:
        with open("/proc/cpuinfo") as file:
            return any(flag in line for line in file for flag in ("avx512_bf16", "amx_bf16", " bf16"))
    except OSError:
        return False


def measure_bf16_speedup() -> float:
    """Return how many times as fast as in float32 a convolution and its gradients are in bfloat16 on this CPU.

    It is measured (in about 0.1 s), since the processor's flags do not show it: two Zen 4 cores train the custom ResNet
    twice as fast in bfloat16, two Sapphire Rapids cores without AMX at 0.6 times the speed of float32. The result is kept
    in the user's cache, so that every run on a machine uses the same format.
    """
    key = f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    path = cache_folder() / "bf16_gain.json"
    results = read_json(path)
    if key not in results:
        results = {**results, key: _time_bf16_and_fp32()}
        with contextlib.suppress(ResourceError):  # without a writable home the next run measures again
            write_json(path, results)
    return float(results[key])


def _time_bf16_and_fp32() -> float:
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    generator = torch.Generator().manual_seed(0)
    images, weights = torch.randn(64, 64, 16, 16, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
    for _ in range(6):
        for precision in best:  # in turn, so that a busy moment affects both
            x, w = (
                t.to(precision).contiguous(memory_format=torch.channels_last).requires_grad_()
                for t in (images, weights)
            )
            started_at = time.perf_counter()
            torch.nn.functional.conv2d(x, w, padding=1).sum().backward()
            best[precision] = min(best[precision], time.perf_counter() - started_at)
    return round(best[torch.float32] / best[torch.bfloat16], 3)


def peak_memory(device: torch.device) -> float:
    """Return the peak memory so far in GiB: of the device's tensors on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if platform.system() == "Darwin" else 2**20)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all its work, so that a time measured next is right."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def autocast(device: torch.device, precision: torch.dtype | None) -> Iterator[None]:
    """Autocast to `precision`; do nothing for None. A generator must not yield inside: the mode would leak out."""
    if precision is None:
        yield
    else:
        with torch.autocast(device.type, dtype=precision):
            yield


@contextlib.contextmanager
def no_cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN choose its algorithms by rule instead of by measurement, for shapes that are computed only once or twice.

    Measuring them takes seconds for a whole network.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Disable Python's automatic garbage collection, and exempt the objects that exist already from any other one.

    A full collection examines all objects of the imported libraries and takes a few tenths of a second, in which a GPU
    runs out of work. Nested contexts are allowed; objects that were frozen before (`gc.freeze`) stay so.
    """
    was_enabled, was_frozen = gc.isenabled(), _Frozen.here or _are_objects_frozen()
    if not was_frozen:
        gc.freeze()
        _Frozen.here = True
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        if not was_frozen:
            gc.unfreeze()
            _Frozen.here = False


class _Frozen:
    """Who has exempted objects from garbage collection: `pause_garbage_collection`, or somebody before it."""

    here = False
    before = False


def _are_objects_frozen() -> bool:
    """Return whether objects are frozen; counting those of a forked process takes a twentieth of a second, so it is done once."""
    _Frozen.before = _Frozen.before or gc.get_freeze_count() > 0
    return _Frozen.before


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
    """Free what a finished run still holds: reference cycles, the GPU's cached memory, compiled code.

    torch.compile counts the models compiled from one forward method, and stops compiling it after a few.
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
        "packages": {name: installed for name in (*PACKAGES, *plugin_packages()) if (installed := version(name))},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cores": usable_cpus(),
        "threads": torch.get_num_threads(),
        **({"processes": world_size()} if world_size() > 1 else {}),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git": git_state(),
    }
