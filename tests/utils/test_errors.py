"""What a user sees of an error of the system: one line with the file and the remedy, and its exit status."""

import errno
import os

import pytest
import torch

from harness.utils.errors import UsageError, as_harness_error, did_you_mean


def of_system(number):
    return OSError(number, os.strerror(number), "runs/r/last.pt")


ERRORS = [
    (of_system(errno.ENOSPC), 6, "No space left on device: runs/r/last.pt; free some space"),
    (of_system(errno.EDQUOT), 6, "quota exceeded: runs/r/last.pt; free some space"),
    (RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos"), 6, "No space left on device; free"),
    (of_system(errno.EMFILE), 6, "Too many open files: runs/r/last.pt; close files or raise `ulimit -n`"),
    (of_system(errno.EROFS), 6, "Read-only file system: runs/r/last.pt"),
    (of_system(errno.EACCES), 2, "Permission denied: runs/r/last.pt; choose another file or folder"),
    (of_system(errno.EISDIR), 2, "Is a directory: runs/r/last.pt; choose another file or folder"),
    (MemoryError("no array of\n3 GiB"), 6, "out of memory (no array of 3 GiB); lower --batch-size"),
    (torch.OutOfMemoryError("CUDA out of memory."), 6, "out of memory (CUDA out of memory.); lower --batch-size"),
    (RuntimeError("could not create a primitive"), 6, "out of memory (could not create a primitive); lower"),
    (ImportError("x.so: failed to map segment from shared object"), 6, "out of memory while a library was loaded"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 6, "a data-loader worker died (DataLoader"),
]  # fmt: skip


@pytest.mark.parametrize("error, status, text", ERRORS)
def test_an_error_of_the_system_is_one_line_with_its_status(error, status, text):
    known = as_harness_error(error)
    assert known.exit_code == status and text in str(known) and "\n" not in str(known)


def test_an_error_of_harness_is_shown_as_it_is_and_a_bug_as_a_bug():
    error = UsageError("x")
    assert as_harness_error(error) is error
    for bug in (
        ValueError("x"),
        RuntimeError("shapes differ"),
        FileNotFoundError(errno.ENOENT, "none", "x"),
        KeyError(3),
    ):
        assert as_harness_error(bug) is None


def test_a_near_name_is_suggested_and_the_only_one_that_begins_so_however_long_it_is():
    assert did_you_mean("epoch", ["epochs", "seed"]) == " (did you mean 'epochs'?)"
    assert (
        did_you_mean("gra", ["gradient_checkpointing", "seed"], "--") == " (did you mean '--gradient_checkpointing'?)"
    )
    assert did_you_mean("gra", ["gradient_checkpointing", "grad_accumulation"]) == ""
    assert did_you_mean("zzz", ["epochs"]) == ""
