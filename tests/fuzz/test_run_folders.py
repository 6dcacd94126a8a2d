"""Of a damaged run directory every command gives the right result, or one line: a sample of `python -m tests.fuzz.run_folders`."""

import pytest

from tests.fuzz import run_folders
from tests.support.shared import make_once


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    _, folder = make_once(tmp_path_factory, "foreign", run_folders.make_runs)
    return run_folders.Base(folder)


def cases(count, commands):
    """Return the numbers of the first cases of some commands."""
    numbers = (number for number in range(100_000) if run_folders.command_of(number, 0) in commands)
    return [next(numbers) for _ in range(count)]


@pytest.mark.parametrize(
    "number",
    [
        *cases(12, ["runs", "report", "predict"]),
        *(pytest.param(number, marks=pytest.mark.slow) for number in cases(300, list(run_folders.COMMANDS))),
    ],
)
def test_a_damaged_run_directory_gives_the_right_result_or_one_line(number, base, tmp_path):
    outcome = run_folders.run_case(base, number, tmp_path, seed=0)
    assert not outcome.wrong, f"{outcome.command} after {outcome.damage}: {outcome.wrong}\n{outcome.output}"
