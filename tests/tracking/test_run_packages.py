"""A run whose plug-ins came with a package that is not installed any more says which package it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.tracking.run_packages import missing_packages, missing_packages_named
from harness.utils.errors import DataError, UsageError
from tests.support.commands import QUICK
from tests.support.small_run import write_run

PLUGIN = """
from timm.models import register_model
from torch import nn

@register_model
def net_of_a_package(pretrained=False, **settings):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, settings["num_classes"]))
"""


@pytest.fixture
def run(tmp_path):
    """A run directory whose journal names packages: three of them have plug-ins, of which one is installed."""
    run = write_run(tmp_path / "run")
    names = ["torch", "vision-harness", "not-installed", "hypothesis", "neither_is.this"]
    set_packages(run, dict.fromkeys(names, "1.0"))
    return run


def set_packages(run, packages):
    lines = (run / "journal.jsonl").read_text().splitlines()
    header = json.loads(lines[0])
    header["environment"]["packages"] = packages
    (run / "journal.jsonl").write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")


def test_the_missing_packages_are_named_behind_the_error_and_no_others(run):
    assert missing_packages(run) == ["not-installed", "neither_is.this"]
    end = "the run used plug-ins of not-installed, neither_is.this, which are not installed here: install .* trust the author$"
    with pytest.raises(UsageError, match=f"^there is no model 'x'; {end}"), missing_packages_named(run):
        raise UsageError("there is no model 'x'")
    with pytest.raises(DataError, match=r"^no images$"), missing_packages_named(run):
        raise DataError("no images")


@pytest.mark.parametrize(
    "packages", [None, [], {}, {"torch": "1"}, {"a b; rm": "1", "\x1b[2J": "1", "-x": "1", "": "1"}, "text"]
)
def test_a_run_that_names_none_or_something_else_changes_no_error(run, packages):
    set_packages(run, packages)
    for folder in (run, run / "none", "auto", "never"):
        with pytest.raises(UsageError, match=r"^wrong$"), missing_packages_named(folder):
            raise UsageError("wrong")


@pytest.mark.slow
def test_every_command_names_the_package_that_the_model_of_a_run_came_with(tmp_path):
    package = tmp_path / "site"
    info = package / "of_a_package-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "of_a_package.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: of-a-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vision_harness.plugins]\nmine = of_a_package\n")

    def harness(*words, installed=False, code=0):
        here = str(Path(__file__).parents[2])
        variables = os.environ | {"PYTHONPATH": os.pathsep.join([here, str(package)] if installed else [here])}
        line = [sys.executable, "-m", "harness", *map(str, words)]
        done = subprocess.run(line, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=200)
        assert done.returncode == code, done.stderr
        return done.stderr

    quick = [*QUICK[: QUICK.index("--model-args")], "--threads", 1, "--precision", "fp32", "--wandb", "disabled"]
    training = ["run", *quick, "--model", "net_of_a_package", "--name", "mine", "--gallery", 0]
    harness(*training, "--epochs", 1, installed=True)
    for words in (
        ["evaluate", "runs/mine"],
        ["predict", "runs/mine", "x.png"],
        ["run", "--resume", "runs/mine", "--epochs", 2],
    ):
        error = harness(*words, code=2).splitlines()[-1]
        assert (
            "there is no model 'net_of_a_package'" in error
            and "plug-ins of of-a-package, which is not installed" in error
        )
    harness("evaluate", "runs/mine", installed=True)
