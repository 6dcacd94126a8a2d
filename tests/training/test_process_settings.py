"""Whatever a run sets for its whole process is as before when it has ended."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch

import harness
from harness.config.settings import Config
from harness.training import process_settings
from harness.training.process_settings import configure_torch, restore_process_settings, restore_process_state
from harness.utils.errors import HarnessError

QUICK = {"recipe": "digits", "image_size": 16, "model_args": {"width": 4}, "epochs": 1, "peak_epoch": 1, "gallery": 0, "wandb": "disabled",
         "precision": "fp32", "report": False, "loader": "timm", "workers": 0, "augment": "albumentations"}  # fmt: skip

PREFIXES = ("CUBLAS", "NO_ALBUMENTATIONS", "OMP", "WANDB", "CUDA", "PYTORCH")


def state_of_the_process():
    cv2 = sys.modules.get("cv2")
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "TF32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "matmul": torch.get_float32_matmul_precision(),
        "random": (torch.get_rng_state().tolist(), torch.initial_seed()),
        # Not what the imports of libraries add for themselves.
        "environment": {name: value for name, value in os.environ.items() if name.startswith(PREFIXES)},
        "gradients": torch.is_grad_enabled(),
        "OpenCV": cv2 and cv2.getNumThreads(),
        "dtype": torch.get_default_dtype(),
        "path": list(sys.path),
    }


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_run_its_evaluation_and_a_failed_run_leave_the_settings_of_the_process_as_they_were(tmp_path, two_threads):
    import cv2  # noqa: F401 - else it is imported by the run, with settings of its own

    before = state_of_the_process()
    settings = {**QUICK, "output": str(tmp_path), "threads": 1, "deterministic": True}
    result = harness.run(harness.make_config(settings))
    assert state_of_the_process() == before
    harness.evaluate(result.folder, out=tmp_path / "evaluation")
    assert state_of_the_process() == before
    next(harness.predict(result.folder, [*result.folder.rglob("*.png")][:1]))
    assert state_of_the_process() == before
    harness.load_model(result.folder)
    assert state_of_the_process() == before
    with pytest.raises(HarnessError):
        harness.run(harness.make_config({**settings, "model_args": {"width": 5, "unknown": 1}}))
    assert state_of_the_process() == before


def test_the_threads_of_one_run_do_not_hold_for_the_next(two_threads):
    used = []
    for threads in (1, 0):
        with restore_process_settings():
            configure_torch(Config(threads=threads), torch.device("cpu"))
            used.append(torch.get_num_threads())
    assert used == [1, 2]


@pytest.mark.parametrize("allowed", [False, True])
def test_the_kernels_that_a_run_on_a_gpu_allows_are_as_before_afterwards(allowed):
    with restore_process_settings():
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.benchmark = allowed
        torch.use_deterministic_algorithms(allowed, warn_only=False)
        before = state_of_the_process()
        with restore_process_state():
            configure_torch(Config(deterministic=not allowed), torch.device("cuda"))
            torch.manual_seed(1)
            assert torch.backends.cuda.matmul.allow_tf32
            assert state_of_the_process() != before
        assert state_of_the_process() == before


@pytest.mark.slow
def test_the_precision_that_the_user_set_with_torchs_newer_interface_is_kept():
    """In a process of its own: torch raises where both interfaces were used."""
    code = """
import torch
from harness.config.settings import Config
from harness.training.process_settings import configure_torch, restore_process_settings
torch.backends.cuda.matmul.fp32_precision = "ieee"
torch.backends.cudnn.conv.fp32_precision = "ieee"
with restore_process_settings():
    configure_torch(Config(), torch.device("cuda"))
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision) == ("ieee", "ieee")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of another C library is left alone")
def test_freed_memory_is_kept_during_a_run_on_a_cpu_and_given_back_afterwards():
    """A block of 512 MB, larger than any hole that earlier tests have left in the heap, has its own mapping by glibc's
    default, which is gone when the block is freed."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )

    def is_mapped_after_free():
        pointer = libc.malloc(512 * 2**20)
        libc.free(pointer)
        with open("/proc/self/maps") as maps:
            ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
        return any(low <= pointer < high for low, high in ranges)

    process_settings.release_freed_memory()
    assert not is_mapped_after_free()
    with restore_process_settings():
        configure_torch(Config(), torch.device("cpu"))
        assert is_mapped_after_free()
        with restore_process_settings():  # an evaluation within the run
            configure_torch(Config(), torch.device("cpu"))
        assert is_mapped_after_free()
    assert not is_mapped_after_free()


@pytest.mark.parametrize("deterministic", [True, False])
def test_on_a_gpu_tf32_is_allowed_and_cudnn_measures_its_algorithms_unless_results_have_to_be_repeated(deterministic):
    """The settings are torch's, which takes them without a GPU too."""
    before = state_of_the_process()
    with restore_process_settings():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        configure_torch(Config(deterministic=deterministic), torch.device("cuda"))
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.benchmark != deterministic
        assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert state_of_the_process() == before
