"""Shell completion: by the printed script in bash, and by the environment variables that the script sets."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import timm

from harness.cli import completion
from harness.cli.main import cli

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


def completions(*words):
    """Return the completions of the last word of a command line."""
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
    ("words", "expected"),
    [
        (("ver",), ["verify"]),
        (("run", "--lr_M"), ["--lr-min", "--lr-min-ratio", "--lr-max"]),
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
def test_a_word_is_completed(words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert completions(*words) == expected


def test_runs_and_sweeps_are_completed_by_their_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/first", "runs/second", "other/third"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "lr.yaml").write_text("")
    assert completions("evaluate", "runs/") == ["runs/first", "runs/second"]
    assert completions("verify", "other/t") == ["other/third"]
    assert completions("sync", "runs/first", "runs/s") == ["runs/second"]
    assert completions("sweep", "sw") == ["sweeps/lr.yaml"]


def test_values_that_are_no_choices_are_completed_by_what_they_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/config.yaml").touch()

    def values(name, incomplete):
        return [(item.value, item.type) for item in completion.values_of(name, incomplete)]

    assert values("resume", "") == [("auto", "plain"), ("never", "plain"), ("runs/a", "plain")]
    assert values("resume", "r") == [("runs/a", "plain")]
    assert values("lr_max", "f") == values("lr_min", "") == [("find", "plain")] and values("lr_max", "0.") == []
    # The shell itself completes folders and files.
    assert values("data_dir", "pic") == values("output", "pic") == [("pic", "dir")]
    assert values("recipe", "mine/") == [("mine/", "file")]
    plain = cli.commands["completion"]
    assert plain.shell_complete(click.Context(plain), "zs") == []  # the argument is completed by itself


def test_the_models_of_completion_are_those_that_timm_has():
    known = set(completion.timm_models())
    timms_own = {name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm.")}
    assert timms_own <= known
    assert len(known) > 1000


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_with_the_printed_script(harness):
    script = subprocess.run([harness, "completion", "bash"], capture_output=True, text=True, check=True).stdout
    line = 'COMP_WORDS=(harness run --recipe dig); COMP_CWORD=3; _harness_completion harness; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", f"{script}\n{line}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "digits"


def test_completion_takes_less_than_half_a_second_of_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for complete in (lambda: completions("run", "--model", "resnet"), lambda: completions("run", "--")):
        times = []
        for _ in range(3):
            before = os.times().children_user
            complete()
            times.append(os.times().children_user - before)
        assert min(times) < 0.5
