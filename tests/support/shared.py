"""Expensive results are made once, for all worker processes of pytest-xdist."""

import fcntl
import os
import pickle
import shutil
from pathlib import Path


def session_folder(tmp_path_factory):
    """Return a folder that all workers of this session share; a session without workers has its own."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def make_once(tmp_path_factory, name, make):
    """Return the value of `make(folder)`, and a copy of the folder for this worker.

    Args:
        name: of the folder.
        make: called in the first worker that comes here, while the others wait; its value can be pickled.
    """
    shared = session_folder(tmp_path_factory) / "shared" / name
    value = shared.with_name(f"{name}.value")
    shared.parent.mkdir(exist_ok=True)
    with open(shared.with_name(f"{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not value.exists():
            shutil.rmtree(shared, ignore_errors=True)
            shared.mkdir()
            value.write_bytes(pickle.dumps(make(shared)))
    folder = tmp_path_factory.mktemp(name)
    shutil.copytree(shared, folder, dirs_exist_ok=True)
    return pickle.loads(value.read_bytes()), folder


def copy_folder(source, target):
    """Copy a folder and return its path; the pictures in it, which are never changed in place, are hard links."""

    def copy(source, target):
        return os.link(source, target) if str(source).endswith(".png") else shutil.copy2(source, target)

    return Path(shutil.copytree(source, target, copy_function=copy))
