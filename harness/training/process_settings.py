"""What a run sets for its whole process (threads, kernels, allocator, environment), put back when it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from harness.config.settings import Config
from harness.training.rng import preserve_rng_state
from harness.utils.errors import ONEDNN_ERROR

VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "NO_ALBUMENTATIONS_UPDATE")
# glibc's names for its allocator's parameters, the values of a run, and glibc's defaults, which cannot be read.
M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -4, -1, -2
KEEPING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 256 * 2**20}
DEFAULTS = {M_MMAP_MAX: 65_536, M_TRIM_THRESHOLD: 128 * 2**10, M_TOP_PAD: 128 * 2**10}
_keeps_memory = [False]


def configure_torch(config: Config, device: torch.device) -> None:
    """Set the threads, the memory and the allowed kernels of the process for one run; see `restore_process_settings`."""
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


@contextlib.contextmanager
def configured_torch(config: Config, device: torch.device) -> Iterator[None]:
    """Configure the process for some computations of a run, and put everything back.

    A generator must not yield inside: the settings would leak out.
    """
    with restore_process_settings():
        configure_torch(config, device)
        yield


@contextlib.contextmanager
def restore_process_settings() -> Iterator[None]:
    """Put back, on leaving the context, what runs set for the whole process.

    These are torch's threads, deterministic and TF32 kernels, cuDNN's benchmark, the current GPU, OpenCV's threads,
    glibc's allocator and environment variables. oneDNN stays unused where it fails; see `abandon_failed_onednn`.
    """
    threads, variables = torch.get_num_threads(), {name: os.environ.get(name) for name in VARIABLES}
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, restore_tf32 = torch.backends.cudnn.benchmark, _tf32_restorer()
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    cv2_threads = _cv2().getNumThreads() if _cv2() else None
    kept_memory = _keeps_memory[0]
    try:
        yield
    except RuntimeError as error:
        abandon_failed_onednn(error)
        raise
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(is_deterministic, warn_only=warns_only)
        torch.backends.cudnn.benchmark = benchmark
        restore_tf32()
        if gpu is not None:
            torch.cuda.set_device(gpu)
        if _cv2():  # imported during the run, it had its default before: as many as it likes
            _cv2().setNumThreads(-1 if cv2_threads is None else cv2_threads)
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if _keeps_memory[0] and not kept_memory:
            release_freed_memory()


@contextlib.contextmanager
def restore_process_state() -> Iterator[None]:
    """Put back the settings of the process and the states of the global random generators, which a run seeds."""
    with preserve_rng_state(), restore_process_settings():
        yield


def keep_freed_memory() -> bool:
    """Make glibc keep the memory of freed tensors for the next step; return whether it does.

    Otherwise each step at batch size 512 maps and unmaps tensors of 64 to 134 MB, whose page faults take 19 to 26 % of a
    training step on two Zen 4 cores.
    """
    _keeps_memory[0] = _set_allocator(KEEPING)
    return _keeps_memory[0]


def release_freed_memory() -> None:
    """Give glibc's allocator its defaults again, and the memory that it keeps to the system.

    The threshold above which it maps memory is fixed from now on, whereas it grows with the program at first.
    """
    _keeps_memory[0] = False
    if _set_allocator(DEFAULTS):
        ctypes.CDLL(None).malloc_trim(0)


def abandon_failed_onednn(error: BaseException) -> bool:
    """Compute with torch's own kernels from now on if the error says that oneDNN could not make one; return whether it does.

    Its code generator fails for want of memory, and after that for ever in the same thread, however much memory there is
    (seen in oneDNN 3.12, with torch 2.14). In float32 torch's convolutions take about twice as long.
    """
    has_failed = ONEDNN_ERROR in str(error)
    if has_failed:
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    return has_failed


def _set_allocator(parameters: dict[int, int]) -> bool:
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*pair) == 1 for pair in parameters.items())


def _tf32_restorer() -> Callable[[], None]:
    """Return a function that allows TF32 as it is allowed now.

    torch has two interfaces for it, and raises where the first is read after the second was used.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    restore: list[Callable[[], None]] = []
    for module in (matmul, cudnn):
        with contextlib.suppress(RuntimeError):
            restore.append(_setter(module, "allow_tf32"))
    with contextlib.suppress(RuntimeError):
        precision = torch.get_float32_matmul_precision()
        restore.append(lambda: torch.set_float32_matmul_precision(precision))
    restore += [_setter(module, "fp32_precision") for module in (matmul, cudnn.conv, cudnn.rnn)]  # type: ignore[attr-defined]

    def restore_all() -> None:
        for function in restore:
            function()

    return restore_all


def _setter(module: Any, name: str) -> Callable[[], None]:
    value = getattr(module, name)
    return lambda: setattr(module, name, value)


def _cv2() -> Any:
    """Return OpenCV where it was imported; the pipeline of albumentations turns its threads off."""
    return sys.modules.get("cv2")
