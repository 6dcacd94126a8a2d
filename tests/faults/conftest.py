"""What the tests of faults share."""

import pytest

from tests.fuzz import run_folders
from tests.support.forked import harness
from tests.support.resume import SAVING, contents_of
from tests.support.shared import make_once


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """The contents of a run that nothing interrupted."""

    def make(folder):
        harness("run", *SAVING, "--name", "r", cwd=folder, check=0)
        return contents_of(folder / "runs/r")

    contents, _ = make_once(tmp_path_factory, "uninterrupted", make)
    return contents


@pytest.fixture(scope="session")
def runs_and_picture(tmp_path_factory):
    """A folder with the runs `done`, `other` and `stopped`, and a picture; to be copied, not changed."""
    _, folder = make_once(tmp_path_factory, "foreign", run_folders.make_runs)
    return folder
