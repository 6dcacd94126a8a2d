"""What a run shows is a file of the run and in W&B, without the progress bar; so are uncommitted changes and, on request, code."""

import io
import json
import logging
import os
import re
import subprocess
import sys

import pytest

from harness.config.recipe import make_config
from harness.runs.console_log import ConsoleLog
from harness.runs.progress import BarReporter, LineReporter, ProgressReporter, epoch_line
from harness.runs.run import run
from harness.runs.summary import summary_table
from harness.tracking.journal import read_journal
from harness.tracking.records import Record
from harness.utils.environment import git_diff
from harness.utils.errors import DivergedError
from harness.utils.files import read_json
from tests.support import wandb_files
from tests.support.waiting import wait_until

SLIM = {f"WANDB_{name}": "true" for name in ("X_DISABLE_STATS", "X_DISABLE_MACHINE_INFO", "SILENT")}
TINY = {
    "recipe": "digits", "image_size": 16, "model_args": "width=4", "threads": 1, "precision": "fp32", "batch_size": 128, "gallery": 0,
    "epochs": 2, "peak_epoch": 1, "report": False, "name": "r",
}  # fmt: skip
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (.*)")


def line_of(epoch, epochs, **more):
    """The line of an epoch of 30 seconds, with other metrics named as `val__f1_macro`."""
    values = {"train/loss": 1.2, "train/acc": 0.5, "val/loss": 1.0, "val/acc": 0.6, "lr": 0.1, "val/balanced_acc": 0.25}
    values |= {"throughput/images_per_s": 100.0, "time/epoch_s": 30.0, "best/val_acc": 0.6, "val/f1_macro": 0.125}
    values |= {name.replace("__", "/"): value for name, value in more.items()}
    return epoch_line(Record(epoch, epoch, values), epochs)


def test_the_line_of_an_epoch_shows_the_metric_that_chooses_the_best_one():
    assert "balanced" not in line_of(1, 2) and "macro" not in line_of(1, 2)
    assert "val 1.0000  60.00 %  balanced accuracy  25.00 %  lr" in line_of(1, 2, best__val_balanced_acc=0.25)
    assert "val 1.0000  60.00 %  macro F1  12.50 %  lr" in line_of(1, 2, best__val_f1_macro=0.125)
    assert line_of(1, 2, best__val_loss=1.0) == line_of(1, 2)


@pytest.mark.parametrize(("epoch", "left"), [(1, "about 60 min left"), (119, "60 s left"), (120, ""), (121, "")])
def test_the_line_of_an_epoch_says_how_long_the_others_take_from_a_minute_on(epoch, left):
    line = line_of(epoch, 121)
    assert line.endswith(left) if left else line.endswith("30.0 s")


class Shown(ProgressReporter):
    def __init__(self):
        self.lines = []

    def on_epoch(self, record, epochs):
        self.lines.append(epoch_line(record, epochs))


@pytest.mark.slow
def test_a_run_shows_the_metric_of_select_by_in_each_epoch(tmp_path):
    shown = Shown()
    chosen = {**TINY, "val_fraction": 0.2, "select_by": "balanced_acc", "wandb": "disabled", "test": False}
    result = run(make_config({**chosen, "output": str(tmp_path)}), shown)
    for line, row in zip(shown.lines, result.history, strict=True):
        assert f"balanced accuracy {100 * row['val/balanced_acc']:6.2f} %" in line


@pytest.fixture
def slim(monkeypatch):
    for name, value in SLIM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_X_SAVE_REQUIREMENTS", "false")


def lines_of(folder):
    """Return the lines of a console log without their times."""
    return [LINE.fullmatch(line)[1] for line in (folder / "console.log").read_text().splitlines()]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with an uncommitted change of one file, as the working directory."""
    folder = tmp_path / "repository"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.py").write_text("width = 64\n")
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    (folder / "model.py").write_text("width = 128\n")
    monkeypatch.chdir(folder / "inner")
    return folder


@pytest.mark.slow
def test_the_lines_of_a_run_and_its_uncommitted_changes_are_files_of_the_run_and_in_wandb(repository, server, slim):
    shown = io.StringIO()
    run(make_config({**TINY, "wandb": "online", "output": repository / "runs"}), LineReporter(shown))
    folder = repository / "runs/r"
    table = summary_table(read_json(folder / "summary.json")).splitlines()
    assert table[0].startswith("test accuracy")
    lines = lines_of(folder)
    begin = lines.index(table[0])
    assert lines[begin : begin + len(table)] == table
    assert lines[:begin] + lines[begin + len(table) :] == shown.getvalue().splitlines()
    epochs = [line for line in shown.getvalue().splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 2
    (online,) = server.runs.values()
    wait_until(lambda: len(online.console) >= 3, 30)
    console = "\n".join(online.console[number] for number in sorted(online.console))
    assert all(line in console for line in epochs)
    patch = (folder / "diff.patch").read_bytes()
    assert b"-width = 64" in patch and b"+width = 128" in patch
    assert online.files["diff.patch"] == patch
    subprocess.run(["git", "checkout", "-q", "--", "."], cwd=repository, check=True)
    subprocess.run(["git", "apply", str(folder / "diff.patch")], cwd=repository, check=True)
    assert (repository / "model.py").read_text() == "width = 128\n"


def test_no_patch_is_made_without_changes_or_with_git_disabled(repository, monkeypatch):
    assert git_diff()
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    assert not git_diff()
    monkeypatch.delenv("WANDB_DISABLE_GIT")
    subprocess.run(["git", "checkout", "-q", "--", "."], cwd=repository, check=True)
    assert not git_diff()
    monkeypatch.chdir("/")
    assert not git_diff()


def test_a_patch_runs_no_program_that_the_repository_names(repository):
    program = repository / "program"
    program.write_text(f"#!/bin/sh\ntouch {repository}/has-run\n")
    program.chmod(0o755)
    (repository / ".gitattributes").write_text("*.py diff=mine\n")
    for name in ("diff.external", "diff.mine.command", "diff.mine.textconv", "core.fsmonitor", "core.pager"):
        subprocess.run(["git", "config", name, str(program)], cwd=repository, check=True)
    assert "+width = 128" in git_diff()
    assert not (repository / "has-run").exists()


def test_the_log_has_messages_from_before_it_was_opened_warnings_and_no_progress_bar(tmp_path):
    sent = []
    reporter = ConsoleLog(BarReporter(io.StringIO()))
    reporter.message("before")
    logger = logging.getLogger("harness.some.module")
    with reporter.written_to(tmp_path / "console.log", sent.append):
        reporter.message("first\nsecond \x1b[2J")
        logger.warning("without a graph: %s", "reason")
        logger.info("not shown")
    logger.warning("after")
    reporter.message("after")
    assert lines_of(tmp_path) == ["before", "first", "second  [2J", "without a graph: reason"]
    assert sent == ["before", "first\nsecond  [2J", "without a graph: reason"]


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "console.log").symlink_to(tmp_path / "elsewhere")
    shown = io.StringIO()
    reporter = ConsoleLog(LineReporter(shown))
    with reporter.written_to(tmp_path / "console.log", lambda text: None):
        reporter.message("line")
    assert shown.getvalue() == "line\n" and not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(("alerts", "titles"), [("none", []), ("diverged", ["training diverged"])])
def test_a_run_that_diverges_says_so_in_its_log_and_alerts_as_requested(tmp_path, slim, alerts, titles):
    config = make_config({**TINY, "lr_max": 1e6, "wandb": "offline", "output": tmp_path, "alerts": alerts})
    with pytest.raises(DivergedError):
        run(config, LineReporter(io.StringIO()))
    assert lines_of(tmp_path / "r")[-1].startswith("error: training diverged")
    assert [title for title, _ in read_journal(tmp_path / "r").alerts] == titles
    assert [title for title, _ in wandb_files.offline_runs(tmp_path / "r")[0].alerts] == titles


@pytest.mark.slow
@pytest.mark.parametrize(("alerts", "titles"), [("failed", []), ("ended", ["run finished"])])
def test_a_run_that_finishes_alerts_on_request(tmp_path, alerts, titles):
    run(make_config({**TINY, "wandb": "disabled", "output": tmp_path, "alerts": alerts}), LineReporter(io.StringIO()))
    assert [title for title, _ in read_journal(tmp_path / "r").alerts] == titles


@pytest.mark.slow
def test_the_code_of_a_package_and_of_the_calling_script_is_saved_on_request(tmp_path, slim):
    (tmp_path / "mine/models").mkdir(parents=True)
    (tmp_path / "mine/__init__.py").write_text("")
    (tmp_path / "mine/models/net.py").write_text("# a network\n")
    settings = {
        **TINY,
        "epochs": 0,
        "wandb": "offline",
        "output": str(tmp_path / "runs"),
        "log_code": True,
        "plugin": ["mine"],
    }
    script = tmp_path / "train.py"
    script.write_text(f"import harness\nharness.run(harness.make_config({settings!r}))\n")
    environment = {**os.environ, "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{tmp_path}"}
    subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=120
    )
    (offline_run,) = wandb_files.offline_runs(tmp_path / "runs/r")
    (code,) = (artifact for artifact in offline_run.artifacts if artifact["type"] == "code")
    assert sorted(code["files"]) == ["mine/__init__.py", "mine/models/net.py", "train.py"]
    assert json.loads((tmp_path / "runs/r/status.json").read_text())["state"] == "finished"


def test_steps_and_the_end_are_passed_on_to_what_shows_them(tmp_path):
    class Shown(ProgressReporter):
        calls: list[object]

        def on_step(self, info):
            self.calls.append(info)

        def close(self):
            self.calls.append("closed")

    shown = Shown()
    shown.calls = []
    reporter = ConsoleLog(shown)
    reporter.on_step("a step")
    reporter.close()
    assert shown.calls == ["a step", "closed"]
