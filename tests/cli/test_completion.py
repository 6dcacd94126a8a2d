"""Completion, asked as a shell asks: by the script in bash, and by the environment that it sets."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm

from harness.cli import completion
from harness.models import cifar_resnet

ROOT = Path(__file__).parents[2]


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """`harness` on the PATH, in an empty folder."""
    program = tmp_path / "bin" / "harness"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m harness "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return program


def offered(*words):
    """What is offered for the last word."""
    environment = os.environ | {
        "COMP_WORDS": " ".join(("harness", *words)),
        "COMP_CWORD": str(len(words)),
        completion.VARIABLE: "bash_complete",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "harness"], env=environment, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return [line.split(",", 1)[1] for line in done.stdout.splitlines() if line.startswith("plain,")]


@pytest.mark.parametrize(
    ("words", "among"),
    [
        (("ver",), ["verify"]),
        (("run", "--lr_M"), ["--lr-min", "--lr-max"]),
        (("run", "--recipe", "d"), ["dawnbench", "digits"]),
        (("run", "--recipe", "=", "dig"), ["digits"]),
        (("run", "--schedule", "c"), ["cyclic", "cosine", "constant"]),
        (("run", "--flip", "F"), ["False"]),
        (("run", "--model", "resnet18_c"), ["resnet18_cifar"]),
        (("run", "--wandb", "o"), ["online", "offline"]),
        (("evaluate", "--split", "t"), ["train", "test"]),
        (("completion", "z"), ["zsh"]),
    ],
)
def test_what_is_offered(words, among, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert offered(*words) == among


def test_runs_and_sweeps_are_offered_by_their_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/first", "runs/second", "other/third"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "lr.yaml").write_text("")
    assert offered("evaluate", "runs/") == ["runs/first", "runs/second"]
    assert offered("verify", "other/t") == ["other/third"]
    assert offered("sync", "runs/first", "runs/s") == ["runs/second"]
    assert offered("sweep", "sw") == ["sweeps/lr.yaml"]


def test_the_models_offered_are_those_that_timm_has():
    ours = set(timm.list_models(module=cifar_resnet.__name__.rsplit(".", 1)[-1]))
    registered = {name for name in timm.list_models() if "harness" not in sys.modules[timm.model_entrypoint(name).__module__].__name__}  # fmt: skip
    known = set(completion.timm_models())
    assert registered - ours <= known | {name for name in registered if name.startswith("twice_")}
    assert len(known) > 1000


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_with_the_printed_script(harness):
    script = subprocess.run([harness, "completion", "bash"], capture_output=True, text=True, check=True).stdout
    asked = 'COMP_WORDS=(harness run --recipe dig); COMP_CWORD=3; _harness_completion harness; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "digits"


def test_an_answer_and_help_take_less_than_half_a_second_of_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for ask in (lambda: offered("run", "--model", "resnet"), lambda: offered("run", "--")):
        times = []
        for _ in range(3):
            before, _ = os.times().children_user, time.monotonic()
            ask()
            times.append(os.times().children_user - before)
        assert min(times) < 0.5
