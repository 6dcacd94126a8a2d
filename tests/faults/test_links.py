"""No command writes through a symbolic link whose name the user has not given: not in a run or sweep directory, not in a
folder of a default name. A link in place of a file is refused, or replaced by the file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.evaluation.trained_model import find_checkpoint, run_folder
from harness.sweep.fork_server import _become_trial
from harness.sweep.workers import SubprocessTrial
from harness.tracking.run_files import check_output_folder, check_own_files
from harness.utils.errors import DataError
from tests.faults.test_hostile import command
from tests.support.forked import TINY
from tests.support.shared import copy_folder
from tests.support.sweeps import write_sweep

SWEEP = ["sweep", "../sweep.yaml", "--name", "s", "--count", "1", "--output", ".", "--fork"]
CHECKPOINT = "done/checkpoints/model.safetensors"
# The link, relative to the folder of the runs; the working directory, relative to it; the command.
REFUSED = [
    *(
        (f"done/{name}", where, words)
        for name in ("evaluation-test", "evaluation-test/figures", "evaluation-test/wandb", "figures", "wandb/cache")
        for where, words in [
            (".", ["evaluate", "done/checkpoints"]),
            (".", ["evaluate", CHECKPOINT]),
            ("done/checkpoints", ["evaluate", "last.pt"]),
        ]
    ),
    ("weights/evaluation-test", ".", ["evaluate", "weights"]),
    ("weights/evaluation-test", ".", ["evaluate", "weights/model.safetensors"]),
    ("weights/out/figures", ".", ["evaluate", "weights", "--out", "weights/out"]),
    ("done/explained", "done", ["explain", ".", "../../picture.png"]),
    ("done/explained/wandb", "done", ["explain", ".", "../../picture.png", "--wandb", "offline"]),
    ("done/explained/tensorboard", "done", ["explain", ".", "../../picture.png", "--tracker", "tensorboard"]),
    ("done/tensorboard", ".", ["evaluate", "done", "--tracker", "tensorboard"]),
    ("done/runs/plot-lr", "done", ["plot", "--recipe", "digits", "--wandb", "offline", "-o", "lr.png"]),
    ("new", ".", ["run", *TINY, "--name", "new", "--output", "."]),
    ("new", ".", ["lr-find", *TINY, "--name", "new", "--output", ".", "--seeds", "1"]),
    ("n-seeds-0-1", ".", ["run", *TINY, "--name", "n", "--output", ".", "--seeds", "2"]),
    *(
        (f"n-seeds-0-1/{name}", ".", ["run", *TINY, "--name", "n", "--output", ".", "--seeds", "2"])
        for name in ("seeds.json", "seeds.csv", "figures.csv", "report.html", ".lock")
    ),
    ("s", ".", SWEEP),
    *(
        (f"s/{name}", ".", SWEEP)
        for name in (
            "logs", "logs/00.log", "runs", "runs/00", "figures", "wandb", "pareto", "parameters", "study.db", "study.db-journal", "study.db-wal",
            "sweep.json", "sweep.yaml", "best.yaml", "trials.csv", "times.json", "report.html", ".lock",
        )
    ),
    *(
        (f"done/{name}", ".", words)
        for name in ("report.html", "journal.replaced.jsonl", "SHA256SUMS", "lr_finder.json", "checkpoints/README.md")
        for words in (["report", "done"], ["export", "done", "--timm", "out"])
    ),
]  # fmt: skip
REPLACED = [
    ("report.html", ".", ["report", "done", "other"]),
    ("lr.png", ".", ["plot", "--recipe", "digits"]),
    ("done/explained/picture.png", "done", ["explain", ".", "../../picture.png"]),
    *(
        (f"out/{name}", ".", ["export", "done", "--timm", "out"])
        for name in ("model.safetensors", "config.json", "README.md", "class_map.txt")
    ),
]
FILES = (".json", ".csv", ".yaml", ".html", ".lock", ".log", ".db", "-journal", "-wal", ".jsonl", "SUMS", ".md", ".txt", ".png", ".safetensors")  # fmt: skip


@pytest.fixture
def runs(runs_and_picture, tmp_path):
    """A copy of the folder with the runs, and in it the folder `weights`."""
    runs = copy_folder(runs_and_picture, tmp_path / "downloaded") / "runs"
    (runs / "weights").mkdir()
    for name in ("model.safetensors", "model.json", "config.json"):
        shutil.copy(runs / "done/checkpoints" / name, runs / "weights")
    write_sweep(runs.parent)
    return runs


def linked(path: Path, outside: Path) -> None:
    """Replace a file or folder by a link to one with the same content at `outside`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path):
        shutil.move(path, outside)
    elif path.name.endswith(FILES):
        outside.write_text("kept")
    else:
        outside.mkdir()
    path.symlink_to(outside)


def contents(path: Path) -> dict[Path, bytes | None]:
    """Return the content of a file, or of everything in a folder."""
    return {inner: inner.read_bytes() if inner.is_file() else None for inner in [path, *path.rglob("*")]}


@pytest.mark.parametrize(
    ("link", "where", "words"), REFUSED, ids=[f"{link}-{words[0]}-{words[1]}" for link, _, words in REFUSED]
)
def test_nothing_is_written_through_a_link_of_a_name_that_the_user_has_not_given(
    link, where, words, runs, tmp_path, capfd, monkeypatch
):
    linked(runs / link, tmp_path / "outside")
    before = contents(tmp_path / "outside")
    status, errors = command(words, capfd, monkeypatch, runs / where)
    assert status == 3 and "Traceback" not in errors, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert Path(link).name in line and "is a symbolic link" in line
    assert contents(tmp_path / "outside") == before


@pytest.mark.parametrize(("link", "where", "words"), REPLACED, ids=[link for link, _, _ in REPLACED])
def test_a_link_in_place_of_a_file_that_is_written_is_replaced(link, where, words, runs, tmp_path, capfd, monkeypatch):
    linked(runs / link, tmp_path / "outside")
    before = contents(tmp_path / "outside")
    status, errors = command(words, capfd, monkeypatch, runs / where)
    assert status == 0, errors
    assert contents(tmp_path / "outside") == before
    assert (runs / link).is_file() and not (runs / link).is_symlink()


def test_an_output_folder_that_the_user_names_may_be_a_link(runs, tmp_path, capfd, monkeypatch):
    linked(runs / "mine", tmp_path / "outside")
    words = ["explain", "done", "../picture.png", "--out", "mine"]
    status, errors = command(words, capfd, monkeypatch, runs)
    assert status == 0, errors
    assert (tmp_path / "outside/picture.png").is_file()


def test_the_log_of_a_trial_is_never_written_through_a_link(tmp_path):
    """Even where the link appears after the sweep has checked its folder."""
    linked(tmp_path / "00.log", tmp_path / "outside.log")
    with pytest.raises(OSError, match="symbolic link"):
        SubprocessTrial([sys.executable, "-c", "print(1)"], os.environ, tmp_path, tmp_path / "00.log")
    with pytest.raises(OSError, match="symbolic link"):
        _become_trial({"log": str(tmp_path / "00.log")})
    assert (tmp_path / "outside.log").read_text() == "kept"


def test_the_log_of_a_trial_is_appended_to(tmp_path):
    for text in ("a", "b"):
        trial = SubprocessTrial([sys.executable, "-Sc", f"print({text!r})"], os.environ, tmp_path, tmp_path / "00.log")
        while trial.poll() is None:
            pass
    assert (tmp_path / "00.log").read_text() == "a\nb\n"


def test_links_that_wandb_makes_in_an_evaluation_are_not_refused(runs, tmp_path):
    """An evaluation with `--wandb offline` is followed by another command on the same run."""
    code = "import wandb; wandb.init(mode='offline', dir='.').finish()"
    folder = runs / "done/evaluation-test"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    assert any(path.is_symlink() for path in (folder / "wandb").iterdir())
    check_own_files(runs / "done")
    check_output_folder(folder, is_named=False)
    (folder / "wandb/data").symlink_to(tmp_path)
    with pytest.raises(DataError, match="wandb/data is a symbolic link"):
        check_own_files(runs / "done")


def test_the_run_of_a_checkpoint_is_known_from_every_folder(runs, monkeypatch):
    assert run_folder(find_checkpoint(runs / "done")) == runs / "done"
    assert run_folder(find_checkpoint(runs / CHECKPOINT)) == runs / "done"
    assert run_folder(find_checkpoint(runs / "weights")) == runs / "weights"
    monkeypatch.chdir(runs / "done/checkpoints")
    for path in (".", "last.pt", "../checkpoints"):
        assert run_folder(find_checkpoint(Path(path))).resolve() == runs / "done"
