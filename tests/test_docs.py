"""The documentation says what the code does."""

import configparser
import importlib.util
import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from started import QUICK, command

from harness.cli import cli
from harness.config import recipes
from harness.search import sweepfile

ROOT = Path(__file__).parent.parent


def _made():
    spec = importlib.util.spec_from_file_location("make", ROOT / "docs/make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = _made()


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


@pytest.mark.parametrize("page", sorted(made.PAGES))
def test_a_page_of_the_reference_is_made_from_the_code(page):
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == made.PAGES[page](), "run: python docs/make.py"


def test_every_file_of_a_real_run_is_in_the_reference_and_the_other_way_round(finished):
    _check_files(
        finished[1], left_out=("`--lr-max find` or `--lr-min find`", "`--explain-every`", "`harness evaluate`")
    )


def test_every_metric_of_a_real_run_is_in_the_reference_and_the_other_way_round(finished):
    there = _keys(finished[1])
    for key in there:
        assert any(fnmatch(key, metric.key) for metric in made.reference.METRICS), key
    always = {
        metric.key for metric in made.reference.METRICS if metric.when in ("", "a test set", "no validation split")
    }
    assert always <= there, always - there


@pytest.mark.slow
def test_a_run_with_validation_and_a_range_test_leaves_what_the_reference_says_of_it(tmp_path):
    asked = ["--val-fraction", 0.2, "--tta", "--clip-grad", 1, "--lr-max", "find", "--explain-every", 1]
    command("run", *QUICK, "--epochs", 2, *asked, "--name", "whole", cwd=tmp_path, check=0)
    folder = tmp_path / "runs/whole"
    command("evaluate", folder, "--split", "train", cwd=tmp_path, check=0)
    _check_files(folder, left_out=())
    without = ("no validation split", "more than ten classes", "`harness find --confirm`")
    expected = {
        metric.key
        for metric in made.reference.METRICS
        if metric.when not in without and "--test false" not in metric.when
    }
    there = _keys(folder)
    for key in there:
        assert any(fnmatch(key, metric.key) for metric in made.reference.METRICS), key
    for key in expected:
        assert any(fnmatch(name, key) for name in there), key


def _check_files(folder, left_out):
    """Every file is in the reference, and every file of the reference but those of the named conditions is there."""
    there = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    for path in there:
        assert any(fnmatch(path, _below(file.pattern)) for file in made.reference.FILES), path
    for file in made.reference.FILES:
        if file.when not in left_out:
            assert any(fnmatch(path, _below(file.pattern)) for path in there), file.pattern


def _below(pattern):
    return f"{pattern}/*" if pattern.endswith("-*") else pattern


def _keys(folder):
    records = [json.loads(line) for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    records = [record for record in records if record["kind"] in ("epoch", "final", "find")]
    return {key for one in records for key in [*one["values"], *((one.get("steps") or {}).get("lines") or {})]}


PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*.md")]
)


def _commands(text):
    """Every `harness ...` line in the code of a page, with comments and what follows a pipe left out."""
    code = "\n".join(re.findall(r"```[a-z]*\n(.*?)```", text, re.S)).replace("\\\n", " ")
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    for line in [*code.splitlines(), *inline]:
        for piece in re.split(r"&&|\|\s|;", re.sub(r"\s{2,}.*$|\s#.*$", "", line.strip())):
            if found := re.search(r"(?:^|-m |\benv )harness ([a-z]+)((?: .*)?)$", piece.strip()):
                yield found[1], found[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_page_is_understood(page):
    if page.name == "commands.md":
        pytest.skip("made from the commands")
    for name, rest in _commands(page.read_text(encoding="utf-8")):
        assert name in cli.commands, f"{page.name}: harness {name}"
        options = {
            option.lstrip("-").replace("-", "").lower()
            for parameter in cli.commands[name].params
            for option in (*parameter.opts, *parameter.secondary_opts)
        } | {"help", "h"}
        for word in re.findall(r"(?<![\w-])--?([a-zA-Z][\w-]*)", rest):
            plain = word.lower().replace("-", "").replace("_", "")
            assert plain in options, f"{page.name}: harness {name} --{word}"
        for file in re.findall(r"(?<!\S)((?:sweeps|examples|docs)/[\w./-]+)(?!\S)", rest):
            if "mine" not in file:
                assert (ROOT / file).exists(), f"{page.name}: {file}"
        for recipe in re.findall(r"--recipe ([a-z0-9-]+)(?=\s|$)", rest):
            assert recipe in recipes(), f"{page.name}: {recipe}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_the_citation_names_the_version_of_the_package():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    made_of = configparser.ConfigParser()
    made_of.read(ROOT / "setup.cfg", encoding="utf-8")
    assert cited["version"] == made_of["metadata"]["version"]
    assert {"cff-version", "message", "title", "authors", "type"} <= set(cited)


def test_the_sweep_of_the_how_to_is_one_that_can_be_run(tmp_path):
    code = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/howto/own-sweep.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "mine.yaml").write_text(code[0], encoding="utf-8")
    read = sweepfile.read(tmp_path / "mine.yaml", {}, on_test=False)
    assert read.metric.name == "best/val_acc" and {"lr_max", "lr_min", "optimizer"} <= {axis.name for axis in read.axes}


def test_the_settings_of_the_hooks_name_tools_of_the_test_environment():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    asked = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    for hook in hooks:
        assert f"    {hook['entry'].split()[0]}>=" in asked, hook["id"]
