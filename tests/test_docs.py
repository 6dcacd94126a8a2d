"""The documentation says what the code does."""

import ast
import configparser
import importlib.util
import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import click
import pytest
import yaml

import harness
from harness.cli.commands import CONTEXT
from harness.cli.main import cli
from harness.config.recipe import make_config, recipe_paths
from harness.config.settings import Config, normalize_name, setting_fields
from tests.support.commands import QUICK, command
from tests.support.multilabel import make_squares, write_separated

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page for where in (".", "docs", "docs/howto", "benchmarks", "examples") for page in (ROOT / where).glob("*.md")
)
# Options that stand in the text by themselves and are of other programs.
FOREIGN = {"--class-map", "--forward-signals", "--quick"}
NEW_FILES = {"sweeps/mine.yaml"}  # what a command of the text writes


def _load_generator():
    spec = importlib.util.spec_from_file_location("make", ROOT / "docs/make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generator = _load_generator()
reference = generator.reference
TRACKERS = (reference.TENSORBOARD, reference.MLFLOW, reference.TRACKIO)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@pytest.mark.parametrize("name", sorted(generator.PAGES))
def test_a_page_of_the_reference_is_generated_from_the_code(name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert text == generator.PAGES[name](), "run: python docs/make.py"


def test_the_api_page_has_every_public_name_and_nothing_that_does_not_exist(monkeypatch):
    page = generator.PAGES["api.md"]()
    for name in harness.__all__:
        assert f"### harness.{name}\n" in page
    monkeypatch.setattr(harness, "__all__", [*harness.__all__, "not_there_yet"])
    assert generator.PAGES["api.md"]() == page


def test_every_file_of_a_run_is_in_the_reference_and_the_other_way_round(finished):
    absent = (
        reference.FIND, reference.EVERY, reference.EVALUATE, reference.CHANGES, reference.TRACKED_EXPORT, *TRACKERS,
        reference.AUTOMATIC, reference.MULTILABEL,
    )  # fmt: skip
    _compare_files(finished[1], reference.RUN, without=absent)


def test_every_metric_of_a_run_is_in_the_reference_and_the_other_way_round(finished):
    _compare_metrics(finished[1], {"", reference.SEEN, reference.MAPS, reference.NO_VAL, reference.TEST})


@pytest.mark.slow
def test_a_run_with_every_option_on_leaves_what_the_reference_says(tmp_path):
    options = [
        "--tracker",
        "wandb,tensorboard",
        "--val-fraction",
        0.2,
        "--tta",
        "--clip-grad",
        1,
        "--lr-max",
        "find",
        "--explain-every",
        1,
        "--watch",
        "all",
        "--weight-decay",
        "auto",
    ]
    command("run", *QUICK, "--epochs", 2, *options, "--name", "whole", cwd=tmp_path, check=0)
    folder = tmp_path / "runs/whole"
    command("evaluate", folder, "--split", "train", cwd=tmp_path, check=0)
    command("export", folder, "--timm", "exported", "--wandb", "offline", cwd=tmp_path, check=0)
    absent = (reference.CHANGES, reference.MLFLOW, reference.TRACKIO, reference.MULTILABEL)
    _compare_files(folder, reference.RUN, without=absent)
    conditions = {"", reference.SEEN, reference.MAPS, reference.VAL, reference.TEST, reference.CLIP, reference.FIND}
    conditions |= {reference.WATCH}
    _compare_metrics(folder, conditions | {f"{reference.TEST}, {reference.TTA}"})


def test_a_run_on_several_labels_per_image_leaves_what_the_reference_says(tmp_path):
    table = write_separated(tmp_path, make_squares(tmp_path))
    options = [
        "--data-dir",
        table,
        "--label-separator",
        "|",
        "--val-fraction",
        0.2,
        "--tta",
        "--recipe",
        "custom-resnet",
    ]
    options += ["--model-args", "width=4", "--image-size", 16, "--epochs", 1, "--peak-epoch", 1, "--batch-size", 32]
    command("run", *options, "--threads", 1, "--wandb", "offline", "--name", "several", cwd=tmp_path, check=0)
    absent = (
        reference.FIND, reference.EVERY, reference.EVALUATE, reference.CHANGES, reference.TRACKED_EXPORT, *TRACKERS,
        reference.AUTOMATIC, reference.ONE_LABEL, reference.MAPS, "more than one save",
    )  # fmt: skip
    _compare_files(tmp_path / "runs/several", reference.RUN, without=absent)
    several = reference.MULTILABEL
    conditions = {several, f"{reference.VAL}, {several}", f"{reference.TEST}, {several}"}
    _compare_metrics(tmp_path / "runs/several", {*conditions, f"{reference.TEST}, {reference.TTA}, {several}"})


@pytest.mark.slow
def test_a_sweep_and_several_seeds_leave_what_the_reference_says(tmp_path):
    small = ["--model-args", "width=4", "--epochs", 1, "--threads", 1]
    command("sweep", ROOT / "sweeps/digits.yaml", "--count", 4, "--final", 1, *small, cwd=tmp_path, check=0)
    command("run", *QUICK, *small, "--gallery", 0, "--seeds", 2, cwd=tmp_path, check=0)
    [study], [seeds] = tmp_path.glob("runs/*/study.db"), tmp_path.glob("runs/*/seeds.json")
    _compare_files(study.parent, reference.SWEEP, without=(reference.ENOUGH, reference.SEVERAL))
    _compare_files(seeds.parent, reference.SEEDS)


@each_page
def test_every_command_of_a_page_is_understood(page):
    lines, mentions = _commands(page.read_text(encoding="utf-8"))
    for name, arguments in lines:
        context = _command(name).make_context(name, arguments, **CONTEXT)  # refuses what the command line would refuse
        _check_settings(context.params)
    for name, arguments in mentions:
        options = _options(_command(name))
        for argument in arguments:
            assert not argument.startswith("--") or _plain(argument) in options, f"harness {name} {argument}"


@each_page
def test_every_option_that_stands_by_itself_on_a_page_is_one(page):
    known = {option for one in (cli, *cli.commands.values()) for option in _options(one)} | set(map(_plain, FOREIGN))
    for name in re.findall(r"`(--[a-zA-Z][\w-]*)", page.read_text(encoding="utf-8")):
        assert _plain(name) in known, name


@each_page
def test_every_file_and_link_of_a_page_is_there(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    folders, suffixes = "sweeps|docs|benchmarks|examples|tests|harness", "py|yaml|md|ipynb"
    for name in re.findall(rf"(?<![\w/.])((?:{folders})/[\w./-]+\.(?:{suffixes}))\b", text):
        assert name in NEW_FILES or (ROOT / name).exists(), name


def test_every_page_is_reached_from_the_map():
    text = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages <= set(re.findall(r"\]\(([\w.]+\.md)", text))


def test_the_citation_names_the_version_of_the_package():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    package = configparser.ConfigParser()
    package.read(ROOT / "setup.cfg", encoding="utf-8")
    assert cited["version"] == package["metadata"]["version"]
    assert cited["license"] == package["metadata"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(cited)


def test_every_extra_that_is_named_is_one_and_every_one_for_users_is_named():
    package = configparser.ConfigParser()
    package.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = set(package["options.extras_require"])
    named = {}
    for path in [*PAGES, *(ROOT / "harness").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"), ROOT / ".ci/run"]:
        for match in re.findall(r"(?:vision-harness|'\.)\[([\w,]+)\]", path.read_text(encoding="utf-8")):
            named |= dict.fromkeys(match.split(","), path)
    assert named.keys() <= extras, {name: str(path) for name, path in named.items() if name not in extras}
    users = set(re.findall(r"\w+", package["options.extras_require"]["all"].partition("[")[2]))
    in_code = {name for name, path in named.items() if path.suffix == ".py"}
    assert users == {"arrow", "onnx", "postgres", "reports", "tensorboard"} <= in_code


def test_every_fault_in_the_table_of_reliability_has_its_test_and_every_test_of_a_fault_is_in_the_table():
    table = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/reliability.md").read_text(encoding="utf-8")))

    def tests_in(folder):
        return {
            name
            for path in (ROOT / folder).rglob("test_*.py")
            for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
        }

    tests = tests_in("tests/faults")
    assert table <= tests_in("tests"), table - tests_in("tests")
    assert tests - table <= {
        "test_an_output_folder_that_becomes_read_only_is_one_line",  # only where the machine lets a disk be remounted
        "test_an_option_that_looks_like_a_secret_is_no_option",
        "test_yaml_of_any_depth_in_an_option_is_refused_too",
        "test_any_text_as_the_name_of_a_setting_names_one_or_is_refused",
        # The other side of a refusal, and the parts that the tests in the table rest on.
        "test_a_plugin_that_the_user_names_is_imported_from_the_current_folder",
        "test_a_plugin_from_the_current_folder_hides_no_library_afterwards",
        "test_trust_imports_installed_modules_and_none_of_the_current_folder",
        "test_the_command_that_resumes_a_run_names_its_plugins_and_a_listed_one_does_not",
        "test_the_directories_that_harness_and_wandb_leave_are_not_refused",
        "test_a_run_that_is_refused_leaves_the_folders_that_were_there",
        "test_a_file_is_opened_only_if_it_is_a_regular_one",
        "test_the_undamaged_runs_are_resumed_and_exported",
        "test_the_card_of_a_configuration_without_a_setting_has_its_default",
        "test_only_a_folder_without_journal_status_and_checkpoints_has_no_run",
        "test_an_unfinished_run_is_evaluated_from_its_last_checkpoint",
        "test_the_log_of_a_trial_is_appended_to",
        "test_links_that_wandb_makes_in_an_evaluation_are_not_refused",
        "test_an_output_folder_that_the_user_names_may_be_a_link",
        "test_the_run_of_a_checkpoint_is_known_from_every_folder",
        "test_the_temporary_file_of_a_write_is_never_one_that_was_there",
        "test_a_lock_is_seen_without_writing_and_through_no_link",
        "test_the_command_line_prints_by_one_function_only",
        "test_no_file_of_the_package_writes_json_but_the_strict_writer",
    }


def _compare_files(folder, listed, without=()):
    """Assert that every file is listed, and every listed one exists but those of the conditions in `without`."""
    paths = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    for path in paths:
        assert any(fnmatch(path, file.pattern) for file in listed), path
    for file in listed:
        assert file.when in without or any(fnmatch(path, file.pattern) for path in paths), file.pattern


def _compare_metrics(folder, conditions):
    """Assert that every recorded key is listed, and every key listed under one of the conditions is recorded."""
    lines = (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "values" in record]
    parts = [
        {**one["values"], **one.get("details", {}), **((one.get("steps") or {}).get("lines") or {})} for one in records
    ]
    keys = {key for part in parts for key in part}
    for key in keys:
        assert any(fnmatch(key, metric.key) for metric in reference.METRICS), key
    for metric in reference.METRICS:
        assert metric.when not in conditions or any(fnmatch(key, metric.key) for key in keys), metric.key


def _commands(text):
    """Return (name, arguments) of each whole `harness ...` line of a page's blocks of code, and of each mention in its text."""
    block = re.compile(r"^ *```\w*\n(.*?)^ *```", re.S | re.M)
    blocks = [re.sub(r" *\\\n *", " ", code) for code in block.findall(text)]
    lines = [command for code in blocks for line in code.splitlines() for command in _in_line(line)]
    mentions = re.findall(r"`([^`]+)`", block.sub("", text))
    return lines, [command for code in mentions for command in _in_line(" ".join(code.split()))]


def _in_line(line):
    """Yield the `harness` commands of a line of a shell; two spaces or `#` begin a remark."""
    for part in re.split(r"&&|\|\|?|;|>", re.split(r"\s{2,}|\s#\s", line.strip())[0]):
        if match := re.match(r"(?:.*(?:-m|srun|env) )?harness ([a-z][a-z-]*)(?: (.*))?$", part.strip()):
            yield match[1], [argument for argument in shlex.split(match[2] or "") if not argument.startswith("[")]


def _command(name):
    with click.Context(cli) as context:
        found = cli.get_command(context, name)
    assert found is not None, f"harness {name}"
    return found


def _check_settings(given):
    """Raise if the settings among the parsed options are refused; the file of a recipe or of a pipeline need not exist."""
    given = {name: value for name, value in given.items() if isinstance(value, str) or (name == "plugin" and value)}
    chosen = {name: value for name, value in given.items() if name in setting_fields()}
    for name in [name for name in chosen if setting_fields()[name].metadata["is_file"]]:
        assert chosen.pop(name).endswith((".yaml", ".json"))
    recipe = chosen.get("recipe", Config().recipe)
    if recipe in recipe_paths():
        make_config(chosen)
    else:
        assert recipe.endswith(".yaml"), recipe


def _options(command):
    return {"help"} | {_plain(option) for one in command.params for option in (*one.opts, *one.secondary_opts)}


def _plain(option):
    return normalize_name(option.split("=")[0])


def test_every_file_and_test_in_the_table_of_what_is_not_covered_exists_and_a_slow_test_is_slow():
    slow, others, files_of_tests = set(), set(), set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        files_of_tests.add(path.stem)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        marks = [
            ast.unparse(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
        ]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                is_slow = any("mark.slow" in mark for mark in [*marks, *map(ast.unparse, node.decorator_list)])
                (slow if is_slow else others).add(node.name)
    rows = re.findall(r"^\| `(.*?)` \| (.*) \| (.*) \|$", (ROOT / "docs/testing.md").read_text(), re.M)
    assert len(rows) > 100
    for files, _, why in rows:
        assert all((ROOT / "harness" / file).is_file() for file in files.split("`, `")), files
        for name in re.findall(r"`(test_\w+)(?:\.py)?`", why):
            assert name in files_of_tests | slow | others, name
            assert "slow test" not in why or name not in others - slow, name
