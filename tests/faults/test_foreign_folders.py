"""A run directory from somebody else: no code of it runs, nothing is read or written through its links, no text moves the
cursor, and nothing that it holds ends in a traceback. `tests/fuzz` tries thousands of such directories."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import harness.cli as cli_package
from harness.tracking.journal import Journal, read_journal
from harness.tracking.records import Artifact, Record, Table
from harness.tracking.run_dir import list_runs, read_state, read_summary, resume_command
from harness.tracking.run_files import check_own_files, is_locked, lock_folder
from harness.tracking.wandb import sync as wandb_sync
from harness.utils import plugins
from harness.utils.errors import DataError, UsageError
from harness.utils.files import open_regular, read_json, write_atomically, write_json
from harness.utils.plain import from_plain, json_text, number, parse_json
from tests.faults.test_hostile import command, refused
from tests.fuzz import run_folders
from tests.fuzz.damage import DEEP, ESCAPES, sign_anew
from tests.support.checkpoints import vouch_for
from tests.support.forked import TINY, harness
from tests.support.records import image
from tests.support.shared import copy_folder

MODULE = "setup_data_of_a_test"


@pytest.fixture
def folder(runs_and_picture, tmp_path):
    """A copy of them."""
    return copy_folder(runs_and_picture, tmp_path / "downloaded")


@pytest.fixture
def planted(folder, monkeypatch):
    """The same with a module beside the run that creates a file when it is imported, named as a plug-in by every file."""
    monkeypatch.setattr(plugins, "_named", set())
    monkeypatch.setattr(plugins, "_trusts_files", [False])
    monkeypatch.setattr(sys, "path", [*sys.path])
    for run in (folder / "runs/done", folder / "runs/stopped"):
        (run / f"{MODULE}.py").write_text("open('canary', 'w').close()\n")
        settings = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump(settings | {"plugin": [MODULE]}))
        for name in ("last.pt", "previous.pt"):
            state = torch.load(run / "checkpoints" / name, weights_only=True)
            state["config"]["plugin"] = [MODULE]
            torch.save(state, run / "checkpoints" / name)
        vouch_for(run / "checkpoints/last.pt")
        lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
        header = json.loads(lines[0])
        header["config"]["plugin"] = [MODULE]
        (run / "journal.jsonl").write_text("".join([json.dumps(header) + "\n", *lines[1:]]))
    about = folder / "runs/done/checkpoints/model.json"
    facts = json.loads(about.read_text())
    facts["config"]["plugin"] = [MODULE]
    sign_anew(about, facts)
    yield folder
    sys.modules.pop(MODULE, None)


# --- code


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "."],
        ["evaluate", "checkpoints/last.pt"],
        ["predict", ".", "../../picture.png"],
        ["explain", ".", "../../picture.png"],
        ["export", ".", "--timm", "out"],
        ["verify", "."],
        ["run", "--recipe", "config.yaml"],
        ["run", "--resume", "../stopped"],
    ],
    ids=" ".join,
)
def test_no_command_imports_a_plugin_that_only_a_downloaded_file_names(words, planted, capfd, monkeypatch):
    run = planted / "runs/done"
    line = refused(words, 2, capfd, monkeypatch, run)
    assert repr(MODULE) in line and f"--plugin {MODULE}" in line and "--trust" in line
    assert not list(planted.rglob("canary"))


@pytest.mark.parametrize("words", [["predict", ".", "../../picture.png"], ["export", ".", "--timm", "out"]])
def test_a_plugin_that_the_user_names_is_imported_from_the_current_folder(words, planted, capfd, monkeypatch):
    status, errors = command([*words, "--plugin", MODULE], capfd, monkeypatch, planted / "runs/done")
    assert status == 0, errors
    assert (planted / "runs/done/canary").exists()


def test_trust_imports_installed_modules_and_none_of_the_current_folder(planted, capfd, monkeypatch, tmp_path):
    run = planted / "runs/done"
    line = refused(["export", ".", "--timm", "out", "--trust"], 2, capfd, monkeypatch, run)
    assert "is not installed" in line and f"--plugin {MODULE}" in line
    assert not list(planted.rglob("canary"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "installed")])
    (tmp_path / "installed").mkdir()
    (tmp_path / f"installed/{MODULE}.py").write_text("")
    status, errors = command(["export", ".", "--timm", "out", "--trust"], capfd, monkeypatch, run)
    assert status == 0, errors


@pytest.mark.parametrize(
    "name", ["sys", "os.path", "antigravity", "../x", "a/b", "x.py", ".x", "a..b", "", "a b", "class", "a;b"]
)
def test_a_plugin_of_python_itself_or_one_that_is_no_module_name_is_refused(name):
    plugins.allow_plugins([name])
    with pytest.raises(UsageError, match="plugin"):
        plugins.import_plugins([name])


def test_a_plugin_from_the_current_folder_hides_no_library_afterwards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "plugin_beside_a_library.py").write_text("import helper_beside_it\n")
    (tmp_path / "helper_beside_it.py").write_text("")
    plugins.allow_plugins(["plugin_beside_a_library"])
    plugins.import_plugins(["plugin_beside_a_library"])
    assert sys.path[-1] == str(tmp_path) and str(tmp_path) not in sys.path[:-1]


@pytest.mark.parametrize("module", ["harness", "harness.sweep.fork_server"])
def test_python_m_harness_imports_no_library_from_the_current_folder(tmp_path, module):
    """Neither one that it uses nor a part of Python."""
    names = {"click", "yaml", "torch", "timm", "numpy"} | (set(sys.stdlib_module_names) - set(sys.builtin_module_names))
    for name in names:
        (tmp_path / f"{name}.py").write_text("open(__name__ + '.canary', 'w').close()\n")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = ["--version"] if module == "harness" else ["no number"]
    done = subprocess.run([sys.executable, "-m", module, *words], cwd=tmp_path, env=environment, capture_output=True)
    assert not list(tmp_path.glob("*.canary")), done.stderr
    assert done.returncode == (0 if module == "harness" else 1)


def test_the_command_that_resumes_a_run_names_its_plugins_and_a_listed_one_does_not(tmp_path):
    assert resume_command(tmp_path, plugins=["mine"]).endswith(" --plugin mine")
    assert "--plugin" not in resume_command(tmp_path, {"resume": "harness run --plugin mine"})


# --- links and pipes


@pytest.mark.parametrize("kind", ["link", "fifo"])
@pytest.mark.parametrize(
    "name",
    ["checkpoints", "media", "figures", "wandb", ".lock", "journal.jsonl", "config.yaml", "status.json", "report.html"],
)
@pytest.mark.parametrize("words", [["evaluate", "runs/stopped"], pytest.param(["report", "runs/stopped"], marks=pytest.mark.slow), ["run", "--resume", "runs/stopped"]], ids=lambda words: words[0])  # fmt: skip
def test_nothing_in_a_run_directory_is_read_or_written_through_a_link_or_a_pipe(
    words, name, kind, folder, capfd, monkeypatch
):
    path, outside = folder / "runs/stopped" / name, folder / "outside"
    if path.is_dir():
        shutil.move(path, outside)
    else:
        outside.write_bytes(path.read_bytes() if path.exists() else b"")
        path.unlink(missing_ok=True)
    before = {inner: inner.stat().st_mtime_ns for inner in [outside, *outside.rglob("*")]}
    if kind == "link":
        path.symlink_to(outside)
    else:
        os.mkfifo(path)
    status, errors = command(words, capfd, monkeypatch, folder)
    assert status in (2, 3) and len(errors.splitlines()) == 1, errors
    assert name in errors
    assert {inner: inner.stat().st_mtime_ns for inner in [outside, *outside.rglob("*")]} == before


def test_an_image_that_is_a_link_is_never_uploaded(tmp_path, server):
    """The journal's image, and the files of its artifact."""
    run, secret = tmp_path / "run", tmp_path / "secret.png"
    journal = Journal(run, {"config": {"wandb": "online"}})
    picture = image(7)
    journal.record(Record(1, 1, {"explain/x": Table(("image",), [(picture,)])}))
    journal.artifact(Artifact("a", "model", {"x": run / "config.yaml"}))
    journal.finish("finished", 0)
    (run / "config.yaml").write_text("x: 1\n")
    (media,) = (run / "media").glob("*.png")
    shutil.move(media, secret)
    media.symlink_to(secret)
    with pytest.raises(DataError, match=r"media/.* is a symbolic link"):
        wandb_sync.sync(run, print)
    assert not server.runs
    (stored,) = read_journal(run).records[0].values["explain/x"].rows[0]
    with pytest.raises(OSError, match="link"):
        _ = stored.pixels
    media.unlink()
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(secret)
    assert not read_journal(run).artifacts


def test_a_settings_file_of_wandb_in_a_downloaded_run_does_not_choose_the_server(tmp_path, server, monkeypatch):
    """W&B reads `wandb/settings` of the current directory, and would send the API key to the server that it names."""
    journal = Journal(tmp_path, {"config": {"wandb": "online"}})
    journal.finish("finished", 0)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="wandb/settings"):
        wandb_sync.sync(Path("."), print)


def test_a_file_is_opened_only_if_it_is_a_regular_one(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    os.close(open_regular(tmp_path / "file"))
    for name in ("link", "pipe", ".", "nothing"):
        with pytest.raises(OSError, match=r"link|regular|No such"):
            open_regular(tmp_path / name)
    assert read_json(tmp_path / "pipe") == {}


def test_the_temporary_file_of_a_write_is_never_one_that_was_there(tmp_path):
    (tmp_path / "outside").write_text("kept")
    (tmp_path / f".x.json.{os.getpid()}.tmp").symlink_to(tmp_path / "outside")
    write_atomically(tmp_path / "x.json", "new")
    assert (tmp_path / "outside").read_text() == "kept" and (tmp_path / "x.json").read_text() == "new"


def test_a_lock_is_seen_without_writing_and_through_no_link(tmp_path):
    assert not is_locked(tmp_path) and not list(tmp_path.iterdir())
    held = lock_folder(tmp_path)
    assert is_locked(tmp_path)
    held.close()
    assert not is_locked(tmp_path)
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="link"):
        lock_folder(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_the_directories_that_harness_and_wandb_leave_are_not_refused(finished, runs_and_picture):
    check_own_files(finished[1])
    for run in (runs_and_picture / "runs").iterdir():
        check_own_files(run)


# --- text for the terminal


def test_a_listing_shows_printable_text_and_commands_of_its_own_making(folder, capfd, monkeypatch):
    run = folder / "runs/stopped"
    status = read_json(run / "status.json")
    write_json(run / "status.json", status | {"state": ESCAPES, "epoch": ESCAPES, "resume": f"rm -rf ~ {ESCAPES}"})
    write_json(run / "summary.json", {"result": {"test/acc": ESCAPES, ESCAPES: 1}})
    (folder / f"runs/{ESCAPES.replace(chr(13), '').replace(chr(10), '')}").mkdir()
    write_json(folder / "runs/done/seeds.json", {"resume": f"rm -rf ~ {ESCAPES}", "seeds": [{"state": ESCAPES}, 5]})
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["harness", "runs"])
    with pytest.raises(SystemExit) as stop:
        harness_main()
    shown = capfd.readouterr()
    assert stop.value.code in (0, None) and not shown.err
    assert all(letter.isprintable() or letter == "\n" for letter in shown.out)
    assert "rm -rf" not in shown.out
    assert "harness run --recipe runs/stopped/config.yaml --resume runs/stopped" in shown.out
    assert "harness run --recipe runs/done/recipe.yaml --seeds 2" in shown.out


def harness_main():
    from harness.cli.main import main

    main()


def test_the_number_of_processes_of_a_resumed_run_is_all_that_a_stored_command_decides():
    path = Path("runs/x")
    tail = "run --recipe runs/x/config.yaml --resume runs/x"
    for stored, expected in {
        "harness run": f"harness {tail}",
        "rm -rf ~; harness run": f"harness {tail}",
        "torchrun --standalone --nproc-per-node 2 -m harness run x": f"torchrun --standalone --nproc-per-node 2 -m harness {tail}",
        "torchrun --nnodes 2 --nproc-per-node 8 -m harness run ;x": f"torchrun --nnodes 2 --nproc-per-node 8 -m harness {tail}",
        "torchrun --standalone --nproc-per-node 2;x -m harness run": f"harness {tail}",
        "": "",
    }.items():
        assert resume_command(path, {"resume": stored}) == expected
    assert resume_command(path, {"resume": ["x"]}) == resume_command(path, {}) == ""


def test_the_command_line_prints_by_one_function_only():
    """Which replaces what is not printable; scripts for a shell and help texts come from no file."""
    for path in Path(cli_package.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "click.echo", "click.secho"):
                allowed = ("script(", "context.get_help()", "printable(")
                assert ast.unparse(node.args[0]).startswith(allowed), f"{path.name}: {ast.unparse(node)}"


# --- JSON


@pytest.mark.parametrize(
    "content",
    [DEEP, '{"a":' * 100_000, "[]", "5", "NaN", '"x"', "", "\0", '{"state": [[]], "epoch": {}, "resume": 5, "pid": []}',
     '{"result": [1], "seconds": 5, "dataset": null, "environment": "x"}', '{"state": ' + "9" * 5000 + "}"],
    ids=lambda content: content[:12],
)  # fmt: skip
@pytest.mark.parametrize("name", ["status.json", "summary.json", "seeds.json", "sweep.json", "checkpoints/index.json"])
def test_a_folder_with_hostile_json_hides_no_other_run_and_ends_in_no_traceback(
    name, content, folder, capfd, monkeypatch
):
    (folder / "runs/stopped" / name).write_text(content)
    read_state(folder / "runs/stopped")
    read_summary(folder / "runs/stopped")
    assert [path.name for path, _, _ in list_runs(folder / "runs")] == ["done", "other", "stopped"]
    monkeypatch.setattr(sys, "argv", ["harness", "runs", str(folder / "runs")])
    with pytest.raises(SystemExit):
        harness_main()
    shown = capfd.readouterr()
    assert "Traceback" not in shown.err
    assert any(line.startswith("other ") and "finished" in line for line in shown.out.splitlines())


def test_what_python_reads_and_writes_beyond_json_is_refused_or_expressed_in_json():
    value = {"a": [float("nan"), float("inf"), -float("inf"), "NaN", "~Infinity"], "b": (1, None)}
    text = json_text(value)
    assert json.loads(text, parse_constant=pytest.fail)["a"] == ["NaN", "Infinity", "-Infinity", "~NaN", "~~Infinity"]
    assert str(parse_json(text)) == str({"a": value["a"], "b": [1, None]})
    for deep in (DEEP, "[" * 65 + "]" * 65, '{"a":' * 70 + "1" + "}" * 70):
        with pytest.raises(ValueError, match="nested"):
            parse_json(deep)
    assert parse_json("[" * 60 + "]" * 60)
    assert from_plain("~~NaN") == "~NaN"
    assert number(10**400) != number(10**400)


def test_no_file_of_the_package_writes_json_but_the_strict_writer():
    """`json` itself writes what is no file: digests, keys, messages of a pipe, the data of a page's charts."""
    allowed = {"utils/plain.py", "config/settings.py", "config/conversion.py", "data/decoded_cache.py", "reporting/html/pages.py", "reporting/html/groups.py",
               "sweep/spec.py", "sweep/command.py", "sweep/distributions.py", "sweep/fork_server.py", "utils/checksums.py"}  # fmt: skip
    package = Path(cli_package.__path__[0]).parent
    for path in package.rglob("*.py"):
        if path.relative_to(package).as_posix() not in allowed:
            calls = {
                ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
            }
            assert not calls & {"json.dump", "json.dumps"}, path


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "epoch", "step": "3", "epoch": 1, "values": {}},
        {"kind": "epoch", "step": 3, "epoch": True, "values": {}},
        {"kind": "epoch", "step": 10**30, "epoch": 1, "values": {}},
        {"kind": "epoch", "step": 3, "epoch": 1, "values": []},
        {"kind": "epoch", "step": 3, "epoch": 1, "values": {"a": [1]}},
        {"kind": "epoch", "step": 3, "epoch": 1, "values": {"a": {"curve": {"x_name": "s", "x": "ab", "lines": {"l": "cd"}, "title": "", "marks": {}}}}},
        {"kind": "epoch", "step": 3, "epoch": 1, "values": {"a": {"scores": {"classes": ["a"], "shape": [1, 1], "labels": [7], "probabilities": [[1]]}}}},
        {"kind": "epoch", "step": 3, "epoch": 1, "values": {"a": {"table": {"columns": ["a"], "rows": [[[1]]]}}}},
        {"kind": "epoch", "step": 3, "epoch": 1, "values": {"a": 2**63}},
        {"kind": "epoch", "step": 3, "epoch": 1, "values": {"a": {"chart": {"kind": "pie", "title": "", "table": {"columns": ["x", "y", "z"], "rows": []}}}}},
        {"kind": "epoch", "step": 3, "epoch": 1, "values": {"a": {"histogram": {"counts": "12", "edges": [1, 2, 3]}}}},
        {"kind": "epoch", "step": 3, "epoch": 1, "values": {"a": {"histogram": {"counts": [1, 2], "edges": [1, 2]}}}},
        {"kind": "epoch", "step": 3, "epoch": 1, "values": {"a": {"image": "media/../../x.png"}}},
        {"kind": "epoch", "step": 3, "epoch": 1, "values": {"a": {"image": f"media/{'0' * 16}.png", "masks": {"m": {"image": f"media/{'1' * 16}.png", "labels": {"256": "x"}}}}}},
        {"kind": "summary", "status": {}, "summary": [], "exit_code": 0},
    ],
    ids=lambda line: json.dumps(line)[:60],
)  # fmt: skip
def test_a_line_of_a_journal_with_other_types_than_a_record_is_damage(line, tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"kind": "header"}\n' + json.dumps(line) + "\n")
    contents = read_journal(tmp_path)
    assert not contents.whole and not contents.records


def test_a_run_with_a_loss_that_is_not_a_number_leaves_json_that_others_can_read(tmp_path):
    words = ["run", *TINY, "--lr-max", "1e6", "--lr-min", "1e5", "--name", "r"]
    harness(*words, cwd=tmp_path, check=5)
    for path in (tmp_path / "runs/r").rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("content", [None, "epochs: [", "- a list\n", "\xff"])
def test_an_unreadable_configuration_never_starts_a_run_again_without_a_word(content, folder, capfd, monkeypatch):
    config = folder / "runs/stopped/config.yaml"
    if content is None:
        config.unlink()
        line = refused(["run", "--resume", "runs/stopped"], 2, capfd, monkeypatch, folder)
        assert "config.yaml cannot be read" in line and "--resume never" in line
        return
    config.write_text(content, encoding="latin-1")
    refused(["run", "--resume", "runs/stopped"], 2, capfd, monkeypatch, folder)
    line = refused(["run", *run_folders.SETTINGS, "--name", "stopped"], 2, capfd, monkeypatch, folder)
    assert "config.yaml cannot be read" in line and "--resume never" in line
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["done", "other", "stopped"]
