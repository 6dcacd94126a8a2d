"""Every test: no account, no network but the loopback, a home folder of its own, nothing left behind."""

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.support.commands import QUICK, command
from tests.support.wandb_server import KEY, Server

settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("steady")

# One thread a process: the workers of the suite share the cores, and one thread gives the same bits every time.
os.environ["OMP_NUM_THREADS"] = "1"
for name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[name]
os.environ["WANDB_ERROR_REPORTING"] = "false"


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """A temporary home folder, so that nothing is read from or left in the real one."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("MPLCONFIGDIR", str(folder / "matplotlib"))
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """One finished run of the quick recipe: (the ended process, the run directory)."""
    folder = tmp_path_factory.mktemp("with spaces and é")
    named = ["--tags", "a,b", "--group", "tests", "--notes", "why", "--project", "trial"]
    done = command("run", *QUICK, "--epochs", 3, *named, cwd=folder, check=0)
    return done, next((folder / "runs").iterdir())


@pytest.fixture
def server(monkeypatch):
    """A W&B server on the loopback that keeps the history rows, and the environment that leads to it."""
    with Server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server
