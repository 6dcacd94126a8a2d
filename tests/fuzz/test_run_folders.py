"""Of a damaged run directory every command gives the right result, or one line: a sample of `python -m tests.fuzz.run_folders`."""

import pytest

from tests.fuzz import run_folders
from tests.support.shared import make_once


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    _, folder = make_once(tmp_path_factory, "foreign", run_folders.make_runs)
    return run_folders.Base(folder)


@pytest.mark.parametrize(
    "number",
    [
        *run_folders.cases_of(["runs", "report", "predict"], 12),
        *(pytest.param(number, marks=pytest.mark.slow) for number in run_folders.cases_of(run_folders.COMMANDS, 300)),
    ],
)
def test_a_damaged_run_directory_gives_the_right_result_or_one_line(number, base, tmp_path):
    outcome = run_folders.run_case(base, number, tmp_path, seed=0)
    assert not outcome.wrong, f"{outcome.command} after {outcome.damage}: {outcome.wrong}\n{outcome.output}"
