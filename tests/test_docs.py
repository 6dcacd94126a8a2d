"""The documentation says what the code does."""

import configparser
import importlib.util
import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from harness.cli.main import cli
from harness.config.recipe import make_config, recipe_paths
from harness.config.settings import Config, setting_fields
from tests.support.commands import QUICK, command

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page for where in (".", "docs", "docs/howto", "benchmarks", "examples") for page in (ROOT / where).glob("*.md")
)
# Options that stand in the text by themselves and are of other programs.
FOREIGN = {"--forward-signals", "--quick"}
NEW_FILES = {"sweeps/mine.yaml"}  # what a command of the text writes


def _made():
    spec = importlib.util.spec_from_file_location("make", ROOT / "docs/make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = _made()
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@pytest.mark.parametrize("name", sorted(made.PAGES))
def test_a_page_of_the_reference_is_made_from_the_code(name):
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == made.PAGES[name](), "run: python docs/make.py"


def test_every_file_of_a_run_is_in_the_reference_and_the_other_way_round(finished):
    here = made.reference
    _compare_files(finished[1], here.RUN, without=(here.FIND, here.EVERY, here.EVALUATE))


def test_every_metric_of_a_run_is_in_the_reference_and_the_other_way_round(finished):
    here = made.reference
    _compare_metrics(finished[1], {"", here.SEEN, here.MAPS, here.NO_VAL, here.TEST})


@pytest.mark.slow
def test_a_run_with_everything_asked_for_leaves_what_the_reference_says(tmp_path):
    asked = ["--val-fraction", 0.2, "--tta", "--clip-grad", 1, "--lr-max", "find", "--explain-every", 1]
    command("run", *QUICK, "--epochs", 2, *asked, "--name", "whole", cwd=tmp_path, check=0)
    folder, here = tmp_path / "runs/whole", made.reference
    command("evaluate", folder, "--split", "train", cwd=tmp_path, check=0)
    _compare_files(folder, here.RUN)
    with_tta = f"{here.TEST}, {here.TTA}"
    _compare_metrics(folder, {"", here.SEEN, here.MAPS, here.VAL, here.TEST, with_tta, here.CLIP, here.FIND})


@pytest.mark.slow
def test_a_sweep_and_several_seeds_leave_what_the_reference_says(tmp_path):
    few = ["--model-args", "width=4", "--epochs", 1, "--threads", 1]
    command("sweep", ROOT / "sweeps/digits.yaml", "--count", 4, "--final", 1, *few, cwd=tmp_path, check=0)
    command("run", *QUICK, *few, "--gallery", 0, "--seeds", 2, cwd=tmp_path, check=0)
    [of_sweep], [of_seeds] = tmp_path.glob("runs/*/study.db"), tmp_path.glob("runs/*/seeds.json")
    _compare_files(of_sweep.parent, made.reference.SWEEP, without=(made.reference.ENOUGH,))
    _compare_files(of_seeds.parent, made.reference.SEEDS)


@each_page
def test_every_command_of_a_page_is_understood(page):
    lines, mentions = _commands(page.read_text(encoding="utf-8"))
    for name, words in lines:
        assert name in cli.commands, f"harness {name}"
        context = cli.commands[name].make_context(name, words)  # refuses what the command line would refuse
        _check_settings(context.params)
    for name, words in mentions:
        assert name in cli.commands, f"harness {name}"
        for word in words:
            assert not word.startswith("--") or _plain(word) in _options(name), f"harness {name} {word}"


@each_page
def test_every_option_that_stands_by_itself_on_a_page_is_one(page):
    known = {option for name in cli.commands for option in _options(name)} | {_plain(word) for word in FOREIGN}
    for word in re.findall(r"`(--[a-zA-Z][\w-]*)", page.read_text(encoding="utf-8")):
        assert _plain(word) in known, word


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
    there = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert there <= set(re.findall(r"\]\(([\w.]+\.md)", text))


def test_the_citation_names_the_version_of_the_package():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    package = configparser.ConfigParser()
    package.read(ROOT / "setup.cfg", encoding="utf-8")
    assert cited["version"] == package["metadata"]["version"]
    assert cited["license"] == package["metadata"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(cited)


def test_every_fault_in_the_table_of_reliability_has_its_test_and_every_test_of_a_fault_is_in_the_table():
    table = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/reliability.md").read_text(encoding="utf-8")))
    there = {
        name
        for path in (ROOT / "tests/faults").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    assert table <= there, table - there
    assert there - table <= {
        "test_an_output_folder_that_becomes_read_only_is_one_line",  # only where the machine lets a disk be remounted
        "test_an_option_that_looks_like_a_secret_is_no_option",
        "test_yaml_of_any_depth_in_an_option_is_refused_too",
        "test_any_word_as_the_name_of_a_setting_is_one_or_is_refused",
    }


def _compare_files(folder, listed, without=()):
    """Every file there is listed, and every file listed is there but those of the named conditions."""
    there = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    for path in there:
        assert any(fnmatch(path, file.pattern) for file in listed), path
    for file in listed:
        assert file.when in without or any(fnmatch(path, file.pattern) for path in there), file.pattern


def _compare_metrics(folder, conditions):
    """Every key recorded is listed, and every key listed under one of the conditions is recorded."""
    lines = (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "values" in record]
    there = {key for one in records for key in [*one["values"], *((one.get("steps") or {}).get("lines") or {})]}
    for key in there:
        assert any(fnmatch(key, metric.key) for metric in made.reference.METRICS), key
    for metric in made.reference.METRICS:
        assert metric.when not in conditions or any(fnmatch(key, metric.key) for key in there), metric.key


def _commands(text):
    """(name, words) of each whole `harness ...` line of a page's blocks of code, and of each mention in its text."""
    block = re.compile(r"^ *```\w*\n(.*?)^ *```", re.S | re.M)
    blocks = [code.replace("\\\n", " ") for code in block.findall(text)]
    lines = [found for code in blocks for line in code.splitlines() for found in _in_line(line)]
    mentions = re.findall(r"`([^`]+)`", block.sub("", text))
    return lines, [found for code in mentions for found in _in_line(" ".join(code.split()))]


def _in_line(line):
    """The `harness` commands of a line of a shell; two spaces or `#` begin a remark."""
    for part in re.split(r"&&|\|\|?|;|>", re.split(r"\s{2,}|\s#\s", line.strip())[0]):
        if found := re.match(r"(?:.*(?:-m|srun|env) )?harness ([a-z]+)(?: (.*))?$", part.strip()):
            yield found[1], [word for word in shlex.split(found[2] or "") if not word.startswith("[")]


def _check_settings(given):
    """Raises where the settings among the parsed options are refused; a recipe's file need not be there."""
    chosen = {name: value for name, value in given.items() if name in setting_fields() and isinstance(value, str)}
    recipe = chosen.get("recipe", Config().recipe)
    if recipe in recipe_paths():
        make_config(chosen)
    else:
        assert recipe.endswith(".yaml"), recipe


def _options(name):
    parameters = cli.commands[name].params
    return {"help"} | {_plain(option) for one in parameters for option in (*one.opts, *one.secondary_opts)}


def _plain(word):
    return word.split("=")[0].lower().replace("-", "").replace("_", "")
