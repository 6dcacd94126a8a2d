"""Hostile or broken input: one clear line, the exit status, no code executed, nothing written outside, no secret anywhere."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch

from harness.cli.main import main
from harness.config.settings import Config
from harness.tracking.journal import read_journal
from harness.utils.errors import HarnessError, UsageError
from harness.utils.files import write_json
from tests.support.broken_images import broken, odd, picture_folder
from tests.support.checkpoints import vouch_for
from tests.support.faulty_server import FaultyServer
from tests.support.forked import TINY, harness

FOLDER = [
    "--recipe", "digits", "--model-args", "width=4", "--threads", "1", "--precision", "fp32", "--data", "folder", "--data-dir",
    "data", "--image-size", "32", "--workers", "0", "--batch-size", "4", "--epochs", "1", "--peak-epoch", "0.5",
    "--wandb", "disabled", "--name", "r",
]  # fmt: skip
HOSTILE = "../../x/<script>alert(1)</script>'\"; $(touch canary) 🎉 =cmd()"


def command(words, capfd, monkeypatch, tmp_path):
    """Run `harness` in this process, through its real entry point; return its exit status and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["harness", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, capfd.readouterr().err


def refused(words, code, capfd, monkeypatch, tmp_path):
    """Run a command that is to be refused, and return the one line of its error."""
    status, errors = command(words, capfd, monkeypatch, tmp_path)
    assert status == code, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob("canary"))
    return line


# --- pictures


@pytest.mark.parametrize("name", broken())
def test_a_broken_image_is_named_and_refused(tmp_path, name, capfd, monkeypatch):
    picture_folder(tmp_path / "data")
    (tmp_path / "data/train/cat" / name).write_bytes(broken()[name])
    line = refused(["run", *FOLDER], 3, capfd, monkeypatch, tmp_path)
    assert name in line and "--bad-images skip" in line
    assert not (tmp_path / "runs/r").exists()


@pytest.mark.slow
def test_a_folder_full_of_broken_and_unusual_images_trains_on_the_readable_ones_and_counts_the_rest(tmp_path):
    picture_folder(tmp_path / "data")
    for name, content in {**broken(), **odd()}.items():
        (tmp_path / "data/train/cat" / name).write_bytes(content)
    (tmp_path / "data/train/dog/gone.png").symlink_to(tmp_path / "data/nowhere.png")
    ended = harness("run", *FOLDER, "--bad-images", "skip", cwd=tmp_path, check=0)
    assert f"{len(broken()) + 1} unreadable images: train/cat/bomb.png, " in ended.err
    facts = read_journal(tmp_path / "runs/r").header["dataset"]
    assert facts["images"]["train"] == 16 + len(odd())
    assert facts["skipped"] == len(broken()) + 1


def test_a_link_out_of_the_data_folder_is_refused(tmp_path, capfd, monkeypatch):
    picture_folder(tmp_path / "data")
    picture_folder(tmp_path / "private")
    (tmp_path / "data/train/cat/theirs").symlink_to(tmp_path / "private/train/dog")
    line = refused(["run", *FOLDER], 3, capfd, monkeypatch, tmp_path)
    assert "a link that leaves the data folder" in line


@pytest.mark.slow
def test_classes_runs_and_projects_of_any_name_stay_inside_and_are_never_markup(tmp_path):
    """In the name of the run directory, the journal, the figures, the model card and the table of predictions."""
    classes = ("<img src=x onerror=alert(1)>", "=1+1 🎉 \"quoted\", 'and'", "%2e%2e", "-rf")
    parent = tmp_path / "deep/inside"
    parent.mkdir(parents=True)
    picture_folder(parent / "data", classes=classes, count=4)
    before = set(tmp_path.rglob("*"))
    words = [*FOLDER[:-3], "offline", "--name", HOSTILE, "--project", "p", "--gallery", "4", "--tags", "<b>,'"]
    harness("run", *words, cwd=parent, check=0)
    new = {path for path in set(tmp_path.rglob("*")) - before if "inside-logs" not in str(path)}
    assert all(path.is_relative_to(parent / "runs") for path in new)
    (folder,) = (parent / "runs").iterdir()
    assert folder.name.isascii() and not set(folder.name) & set("<>'\"/ $;")
    assert read_journal(folder).header["dataset"]["classes"] == sorted(classes)
    assert read_journal(folder).header["config"]["name"] == HOSTILE
    card = (folder / "checkpoints/README.md").read_text()
    assert "<img" not in card and "<script" not in card
    for table in ("predictions.csv", "per_class.csv"):
        for line in (folder / table).read_text().splitlines():
            assert not any(cell.strip('"').startswith(("=", "+", "@")) for cell in line.split(",")), line
    harness("evaluate", folder, cwd=parent, check=0)


# --- checkpoints


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was stopped after 6 updates."""
    folder = tmp_path_factory.mktemp("stopped")
    harness("run", *TINY, "--checkpoint-every", 2, "--name", "r", cwd=folder, fault="int@step=6", check=130)
    return folder


@pytest.fixture
def copied(stopped, tmp_path):
    shutil.copytree(stopped / "runs", tmp_path / "runs")
    return tmp_path / "runs/r/checkpoints"


RESUME = ["run", *TINY, "--checkpoint-every", 2, "--name", "r"]


class Code:
    """An object that creates a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("canary", "w"))


@pytest.mark.parametrize("where", ["learner", "optimizer", "config"])
def test_a_checkpoint_that_carries_code_is_refused_by_resume_and_by_evaluate(
    copied, tmp_path, where, capfd, monkeypatch
):
    state = torch.load(copied / "last.pt", weights_only=True)
    (state["learner"]["optimizer"] if where == "optimizer" else state if where == "config" else state["learner"])[
        "x"
    ] = Code()
    torch.save(state, copied / "last.pt")
    vouch_for(copied / "last.pt")
    assert "more than tensors and plain values" in refused(RESUME, 4, capfd, monkeypatch, tmp_path)
    words = ["evaluate", copied / "last.pt", "--wandb", "disabled"]
    assert "more than tensors and plain values" in refused(words, 4, capfd, monkeypatch, tmp_path)


def rewrite_member(path, name, change):
    """Change one file inside a zip archive."""
    with zipfile.ZipFile(path) as archive:
        parts = {item: archive.read(item) for item in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for item, content in parts.items():
            archive.writestr(item, change(content) if item.endswith(name) else content)


@pytest.mark.parametrize("kind", ["shapes", "model", "future", "optimizer", "buffer", "setting", "pickle", "no state"])
def test_a_checkpoint_of_something_else_is_refused_with_what_is_wrong(copied, tmp_path, kind, capfd, monkeypatch):
    path = copied / "last.pt"
    state = torch.load(path, weights_only=True)
    changes, message = {}, ""
    match kind:
        case "shapes":
            name = next(iter(state["learner"]["model"]))
            state["learner"]["model"][name] = torch.zeros(1, 2)
            message = f"{name} [1, 2] instead of"
        case "model":
            state["learner"]["model"] = torch.nn.Linear(2, 2).state_dict()
            message = "does not fit the model"
        case "future":
            changes, message = {"format": 99}, "written by a newer version of harness (format 99"
        case "optimizer":
            state["learner"]["optimizer"]["param_groups"][0]["params"] = [0]
            message = "optimizer"
        case "buffer":  # a fused kernel would write beyond its end
            state["learner"]["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3)
            message = "momentum_buffer [3] for a parameter"
        case "setting":
            state["learner"]["optimizer"]["param_groups"][0]["weight_decay"] = 0.5
            message = "weight_decay 0.5 instead of"
        case "no state":
            state = {"learner": {}, "progress": {}}
            message = "is not a checkpoint"
    torch.save(state, path)
    if kind == "pickle":
        rewrite_member(path, "data.pkl", lambda content: b"cos\nsystem\n(S'touch canary'\ntR.")
        message = "more than tensors and plain values"
    vouch_for(path, **changes)
    line = refused(RESUME, 4, capfd, monkeypatch, tmp_path)
    assert message in line


@pytest.mark.parametrize("cut", [*(pytest.param(cut, marks=pytest.mark.slow) for cut in (0, 1, -1)), 500])
def test_a_cut_checkpoint_is_named_and_the_one_before_it_is_used(copied, tmp_path, cut):
    content = (copied / "last.pt").read_bytes()
    (copied / "last.pt").write_bytes(content[:cut])
    ended = harness(*RESUME, cwd=tmp_path, check=0)
    assert "last.pt is damaged or incomplete; using the one before it" in ended.err
    assert "from step 4" in ended.err


def test_any_flipped_byte_of_a_checkpoint_is_noticed(copied):
    from harness.training import checkpoint

    content, draw = (copied / "last.pt").read_bytes(), np.random.default_rng(0)
    for index in draw.integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[index] ^= 1 << int(draw.integers(8))
        (copied / "last.pt").write_bytes(damaged)
        assert checkpoint.newest_checkpoint(copied) == copied / "previous.pt"


def test_a_damaged_status_summary_or_index_never_stops_a_resume_with_a_traceback(copied, tmp_path, capfd, monkeypatch):
    for name, content in {"status.json": b"[1]", "summary.json": b"\xff\xfe{", "checkpoints/index.json": b"{}"}.items():
        (copied.parent / name).write_bytes(content)
    line = refused(RESUME, 4, capfd, monkeypatch, tmp_path)
    assert "every checkpoint in" in line and "--resume never" in line
    write_json(copied / "index.json", {"checkpoints": [{"step": "x", "bytes": 1}, 3, None]})
    refused(RESUME, 4, capfd, monkeypatch, tmp_path)


# --- recipes and sweeps

YAML = {
    "python-call": ("lr_max: !!python/object/apply:os.system ['touch canary']", "not allowed"),
    "python-name": ("model: !!python/name:os.system", "not allowed"),
    "own-tag": ("model: !run x", "not allowed"),
    "binary": ("model: !!binary aGVsbG8=", "not allowed"),
    "aliases": ("a: &a [1]\nb: [*a, *a]", "aliases"),
    "bomb": ("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b]", "aliases"),
    "recursive": ("&a model: *a", "aliases"),
    "deep": ("model: " + "[" * 3000 + "]" * 3000, "nested deeper"),
    "unknown": ("learning_rate_max: 1", "no setting 'learning_rate_max'"),
    "typo": ("epocs: 3", "did you mean 'epochs'"),
    "nan": ("lr_max: .nan", "finite"),
    "nan-word": ("lr_max: nan", "finite"),
    "infinite": ("weight_decay: .inf", "finite"),
    "word-for-number": ("epochs: many", "a number"),
    "list-for-number": ("epochs: [1, 2]", "a number"),
    "mapping-for-string": ("model: {a: 1}", "a string"),
    "half-an-epoch": ("epochs: 2.5", "whole number"),
    "huge-number": ("epochs: 1e300", "<="),
    "twice": ("epochs: 1\nepochs: 2", "given twice"),
    "two-documents": ("epochs: 1\n---\nepochs: 2", "not valid YAML"),
    "a-list": ("- epochs", "one mapping"),
    "empty": ("", "one mapping"),
    "tabs": ("epochs:\t1\n\tseed: 2", "not valid YAML"),
    "control": ("model: \"a\\0b\"", "control characters"),
    "latin": (b"notes: caf\xe9", "not UTF-8"),
    "large": ("notes: " + "x" * 1_100_000, "at most"),
    "nan-inside": ("model_args: {width: .nan}", "finite"),
    "merge": ("<<: {epochs: 2}\nseed: 1", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", YAML)
def test_a_hostile_recipe_is_refused_in_one_line_and_nothing_is_made(name, tmp_path, capfd, monkeypatch):
    content, message = YAML[name]
    (tmp_path / "r.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused(["run", "--recipe", "r.yaml", "--wandb", "disabled"], 2, capfd, monkeypatch, tmp_path)
    assert message in line
    assert len(line) < 600
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_a_saved_configuration_that_was_tampered_with_is_refused(copied, tmp_path, capfd, monkeypatch):
    (copied.parent / "config.yaml").write_text("model: !!python/object/apply:os.system ['touch canary']\n")
    refused(["run", "--resume", copied.parent], 2, capfd, monkeypatch, tmp_path)


def test_a_journal_from_elsewhere_cannot_name_files_outside_its_directory(tmp_path):
    (tmp_path / "journal.jsonl").write_text(
        json.dumps({"kind": "header", "config": {}})
        + "\n"
        + json.dumps({"kind": "artifact", "name": "x", "type": "model", "aliases": [], "metadata": {}, "files": {"f": "../../etc/passwd"}})
        + "\n"
        + json.dumps({"kind": "artifact", "name": "x", "type": "model", "aliases": [], "metadata": {}, "files": {"f": "/etc/passwd"}})
        + "\n"
    )  # fmt: skip
    assert not read_journal(tmp_path).artifacts


# --- secrets

SECRET = "5ec2e7" * 6 + "abcd"


@pytest.mark.slow
def test_no_secret_of_the_environment_is_in_any_file_message_or_upload(tmp_path):
    """The W&B key, a password in the environment, and one in the address of the git remote."""
    import subprocess

    for words in (["init", "-q"], ["remote", "add", "origin", f"https://me:{SECRET}@example.org/x.git"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    home = tmp_path / "home"
    home.mkdir()
    variables = {
        "DATABASE_PASSWORD": SECRET,
        "MY_API_TOKEN": SECRET,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "HOME": str(home),
    }
    with FaultyServer() as server:
        online = {**server.variables, "WANDB_API_KEY": SECRET, **variables}
        words = [*TINY[:-1], "auto", "--epochs", "1", "--peak-epoch", "0.5", "--gallery", "4", "--name", "r"]
        one = harness("run", *words, cwd=tmp_path, variables=online, check=0)
        two = harness("sync", tmp_path / "runs/r", cwd=tmp_path, variables=online, check=0)
        sent = b"\n".join(server.received)
        assert server.steps
    three = harness("run", *words, cwd=tmp_path, variables=online, check=0)  # the server is gone: offline
    four = harness("--debug", "run", *TINY[:-1], "online", cwd=tmp_path, variables=online, check=7)
    bodies = b"\n".join(part.partition(b"\n\n")[2] for part in sent.split(b"Host: "))
    assert SECRET.encode() not in bodies
    for ended in (one, two, three, four):
        assert SECRET not in ended.out + ended.err
    assert len(list((tmp_path / "runs").iterdir())) >= 2
    for path in tmp_path.rglob("*"):
        if path.is_file() and ".git" not in path.parts:
            assert SECRET.encode() not in path.read_bytes(), path


def test_an_option_that_looks_like_a_secret_is_no_option(capfd, monkeypatch, tmp_path):
    line = refused(["run", "--wandb-api-key", SECRET], 2, capfd, monkeypatch, tmp_path)
    assert SECRET not in line


def test_yaml_of_any_depth_in_an_option_is_refused_too():
    with pytest.raises(UsageError):
        Config(model_args="{a: " + "[" * 200 + "]" * 200 + "}")
    with pytest.raises(HarnessError):
        Config(model_args="width=!!python/name:os.system")
