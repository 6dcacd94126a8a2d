"""What the tests of faults share."""

import pytest

from tests.support.forked import harness
from tests.support.resume import SAVING, contents_of


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """The contents of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    harness("run", *SAVING, "--name", "r", cwd=folder, check=0)
    return contents_of(folder / "runs/r")
