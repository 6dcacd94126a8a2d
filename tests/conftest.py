"""Every test: no account, no network but the loopback, a home folder of its own, nothing left behind."""

import gc
import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
import warnings
from multiprocessing.util import Finalize
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from harness.training.device import pick_precision
from tests.support.commands import QUICK, command
from tests.support.shared import make_once, session_folder
from tests.support.wandb_server import KEY, Server

settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("steady")

# One thread a process: the workers of the suite share the cores, and one thread gives the same bits every time.
os.environ["OMP_NUM_THREADS"] = "1"
for name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[name]
os.environ["WANDB_ERROR_REPORTING"] = "false"


if "PYTEST_XDIST_WORKER" not in os.environ:
    # Removed when this process has ended: after its workers, and after multiprocessing has removed its own folder in it.
    os.environ["HARNESS_TESTS_TMP"] = tempfile.mkdtemp(prefix="harness-")
    os.chmod(os.environ["HARNESS_TESTS_TMP"], 0o711)  # PostgreSQL's server runs as another user
    Finalize(None, shutil.rmtree, (os.environ["HARNESS_TESTS_TMP"], True), exitpriority=-1000)


# What a machine of the CI may lack. Anything else that is missing there would let tests pass without being run.
MAY_BE_SKIPPED = re.compile(
    "this machine|no GPU|Triton|webdataset|'datasets'|mlflow|trackio|another C library|affinity|listed by git",
    re.IGNORECASE,
)


def _refuse_skip(report):
    """With HARNESS_CI=1, make a skipped test or file a failed one, unless the machine is the reason."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    is_skip = report.skipped and not hasattr(report, "wasxfail")
    if os.environ.get("HARNESS_CI") == "1" and is_skip and not MAY_BE_SKIPPED.search(reason):
        report.outcome, report.longrepr = "failed", f"{reason}; in the CI no test is skipped for that"
    return report


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts what runs in its background so; the processes of the tests would inherit it, and ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers():
    """Return the processes of `-n auto`: more than cores, since the tests wait for other processes and for disks."""
    cores = len(os.sched_getaffinity(0))
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else cores + (cores + 1) // 2


def pytest_collection_finish():
    """Spare the collector of garbage what all tests share: a million objects of the libraries and of pytest."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _refuse_skip((yield))


@pytest.fixture(scope="session", autouse=True)
def _temporary_folder(tmp_path_factory):
    """Where killed processes may leave temporary files; pytest's own folders have names too long for a socket."""
    tmp_path_factory.getbasetemp()  # pytest's own stays where it is
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", os.environ["HARNESS_TESTS_TMP"])
        patch.setattr(tempfile, "tempdir", os.environ["HARNESS_TESTS_TMP"])
        yield


_table_folders: set[str] = set()  # those that were there when this process last removed its own


@pytest.fixture(autouse=True)
def _tables_of_wandb():
    """Remove the folders of W&B's tables with the test that logged them.

    A table and its artifact refer to each other, so that the folder would be removed, with a warning, whenever garbage is
    collected: in the middle of another test. The search takes a tenth of a second, so it is made for new folders only.
    """
    yield
    module = sys.modules.get("wandb.sdk.artifacts._internal_artifact")
    if module is None or sys.modules["wandb"].run is not None:
        return
    folders = {name for name in os.listdir(os.environ["HARNESS_TESTS_TMP"]) if re.fullmatch(r"tmp\w{8}", name)}
    if folders - _table_folders:
        for artifact in gc.get_objects():
            if type(artifact) is module.InternalArtifact and artifact._tmp_dir is not None:
                artifact._tmp_dir.cleanup()
        _table_folders.update(folders)


@pytest.fixture(scope="session")
def speed_of_bfloat16(tmp_path_factory):
    """The file in which the speed of this CPU in bfloat16, measured once a session, is kept; None if it has none."""

    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(folder))
            pick_precision("auto", torch.device("cpu"))

    _, folder = make_once(tmp_path_factory, "bfloat16", make)
    return next(folder.rglob("*.json"), None)


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch, speed_of_bfloat16):
    """A temporary home folder, so that nothing is read from or left in the real one.

    What is measured or searched for once per machine, matplotlib's fonts and the speed of bfloat16, is so once per session.
    """
    # Not by mktemp, which looks at all folders of the earlier tests for the next number.
    folder = Path(tempfile.mkdtemp(prefix="home-", dir=tmp_path_factory.getbasetemp()))
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("MPLCONFIGDIR", str(session_folder(tmp_path_factory) / "matplotlib"))
    if speed_of_bfloat16:
        (folder / "harness").mkdir()
        os.link(speed_of_bfloat16, folder / "harness" / speed_of_bfloat16.name)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """One finished run of the quick recipe: (the ended process, the run directory)."""

    def make(folder):
        named = ["--tags", "a,b", "--group", "tests", "--notes", "why", "--project", "trial"]
        return command("run", *QUICK, "--epochs", 3, *named, cwd=folder, check=0)

    done, folder = make_once(tmp_path_factory, "with spaces and é", make)
    return done, next((folder / "runs").iterdir())


@pytest.fixture(scope="session")
def wandb_sweeps():
    """W&B's own search code (package `sweeps`), where it is installed; `.ci/run` installs it.

    Where it is not, its name leads to the folder of this repository, which has no modules.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("jsonref")
        pytest.importorskip("sweeps.params")
        return importlib.import_module("sweeps")


@pytest.fixture
def server(monkeypatch):
    """A W&B server on the loopback that keeps the history rows, and the environment that leads to it."""
    with Server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server
