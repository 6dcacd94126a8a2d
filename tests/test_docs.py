"""The documentation says what the code does."""

import importlib.util
import re
from pathlib import Path

from harness.cli import cli
from harness.config import recipes, settings

ROOT = Path(__file__).parent.parent


def test_the_page_of_settings_is_made_from_the_code():
    spec = importlib.util.spec_from_file_location("make", ROOT / "docs/make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == make.text(), "run: python docs/make.py"


def test_the_readme_names_commands_options_and_recipes_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"harness ([a-z]+)\b", " ".join(re.findall(r"`[^`]*`|```.*?```", text, re.S))))
    assert commands - {"run"} <= set(cli.commands), commands - set(cli.commands)
    for name in re.findall(r"--recipe ([a-z0-9-]+)\b", text):
        assert name in recipes()
    known = (
        {"help"}
        | {name.replace("_", "") for name in settings()}
        | {
            option.lstrip("-").replace("-", "").lower()
            for command in cli.commands.values()
            for parameter in command.params
            for option in parameter.opts
        }
    )
    for word in re.findall(r"(?<![\w-])--([a-zA-Z][\w-]*)", text):
        assert word.lower().replace("-", "").replace("_", "") in known, word


def test_every_link_in_the_documentation_leads_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


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
