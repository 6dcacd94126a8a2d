"""Writes the reference, settings, commands, files and metrics, from the code: `python docs/make.py`.

Tests hold the pages to what this gives.
"""

import inspect
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from harness.cli.main import cli
from harness.config.recipe import make_config, recipe_paths
from harness.config.settings import Config, setting_fields, setting_types

sys.path.insert(0, str(Path(__file__).parent))
import reference

SETTINGS = """# Settings

Made from `harness/config.py` by `python docs/make.py`. Each is an option of `harness run` in any spelling of case, dash
and underscore, a key of a recipe, of `config.yaml`, of W&B's `run.config` and of the journal's first line.

An option wins over the recipe, the recipe over the default. A setting marked + changes the numbers of a run: an
unfinished run is gone on with only when all of those are equal.
"""


def settings_page() -> str:
    """Every setting with its default, group by group, and what the recipes change."""
    parts, default = [SETTINGS], Config()
    for group in dict.fromkeys(setting.metadata["group"] for setting in setting_fields().values()):
        parts.append(f"\n## {group}\n\n| setting | default | what it is |\n| --- | --- | --- |")
        for name, setting in setting_fields().items():
            if setting.metadata["group"] == group:
                parts.append(_row(name, getattr(default, name)))
    parts.append("\n## Recipes\n\n| recipe | what it sets |\n| --- | --- |")
    for name in recipe_paths():
        made, plain = make_config({}, name).to_dict(), default.to_dict()
        changed = ", ".join(f"{key} {made[key]}" for key in made if made[key] != plain[key] and key != "recipe")
        parts.append(f"| {name} | {changed or 'the defaults'} |")
    return "\n".join(parts) + "\n"


def _row(name: str, default: object) -> str:
    about = setting_fields()[name].metadata
    words = about["help"] + (f" One of {', '.join(about['choices'])}." if about["choices"] else "") + _bounds(name)
    shown = {"": "", "()": "", "{}": "", "None": "none"}.get(str(default), str(default))
    return f"| `{name}`{' +' if about['counts'] else ''} | {shown} | {words.replace('|', '/')} |"


def _bounds(name: str) -> str:
    about = setting_fields()[name].metadata
    signs = (("low", "≥"), ("above", ">"), ("high", "≤"), ("below", "<"))
    bounds = [
        f"{sign} {about[word]:g}"
        for word, sign in signs
        if about[word] is not None and setting_types()[name] is not bool
    ]
    return f" ({', '.join(bounds)})" if bounds else ""


COMMANDS = """# Commands

Made from the commands by `python docs/make.py`. `harness COMMAND --help` says the same, in the terminal. Where a command takes
settings, each of [settings.md](settings.md) is an option of it too. Options are understood in any spelling of case, dash and
underscore.
"""

FILES = """# Files

Made from `docs/reference.py` by `python docs/make.py`; tests hold it against real runs, in both directions. A star stands for any
name. Where a column says "only with", the file is there only then.

## A run folder

`runs/NAME/`, from `harness run`; from `harness lr-find` with what a range test leaves.
"""

SWEEP = """
## A sweep folder

`runs/NAME-DIGEST/`, from `harness sweep`.
"""

SEEDS = """
## Several seeds

`runs/NAME-seeds-FROM-TO/`, from `harness run --seeds`; the runs themselves lie beside it.
"""

METRICS = """# Metrics

Made from `docs/reference.py` by `python docs/make.py`; tests hold it against real runs' journals, in both directions. The keys are
the same in the journal, in W&B's history and in `Result.history`. Accuracies are shares, never percent. The axis is the
step: optimizer updates done.
"""


def commands_page() -> str:
    """Every command: how it is called, what it does, its own options."""
    return (
        "\n\n".join([COMMANDS.rstrip(), *(_command(name, cli.commands[name]) for name in sorted(cli.commands))]) + "\n"
    )


def files_page() -> str:
    """What the folders of a run, of a sweep and of several seeds hold."""
    parts = ((FILES, reference.RUN), (SWEEP, reference.SWEEP), (SEEDS, reference.SEEDS))
    head = ("file", "what is in it", "only with")
    return "".join(
        said + "\n" + _table(head, [(f"`{file.pattern}`", file.about, file.when) for file in listed])
        for said, listed in parts
    )


def metrics_page() -> str:
    """Every key that is recorded, with its unit."""
    rows = [(f"`{one.key}`", one.unit, one.about, one.when) for one in reference.METRICS]
    return METRICS + "\n" + _table(("key", "unit", "what it is", "only with"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in line)} |\n" for line in lines)


def _command(name: str, command: click.Command) -> str:
    arguments = " ".join(
        one.make_metavar(click.Context(command)) for one in command.params if isinstance(one, click.Argument)
    )
    options = [
        one for one in command.params if isinstance(one, click.Option) and not hasattr(one, "group") and not one.hidden
    ]
    parts = [f"## harness {name}", f"`{' '.join(f'harness {name} [OPTIONS] {arguments}'.split())}`", *_help(command)]
    if options:
        parts.append(_table(("option", "what it is"), map(_option, options)).rstrip())
    if any(getattr(one, "group", "hidden") != "hidden" for one in command.params):
        parts.append("And every setting of [settings.md](settings.md).")
    return "\n\n".join(parts)


def _option(option: click.Option) -> tuple[str, str]:
    """Names with the kind of value, and the help with its default."""
    kinds = {"integer": "N", "integer range": "N", "float": "NUMBER", "text": "WORD", "path": "PATH"}
    value = "" if option.is_flag else f" {option.metavar or kinds.get(option.type.name, option.type.name.upper())}"
    names = ", ".join(f"`{name}{value}`" for name in (*option.opts, *option.secondary_opts))
    about, default = option.help or "", option.to_info_dict()["default"]
    known = isinstance(default, str | int | float) and not isinstance(default, bool) and default != ""
    return names, about + (f" [{default}]" if known and "[" not in about else "")


def _help(command: click.Command) -> list[str]:
    """Paragraphs of a command's help; what stands after `\\b` is code."""
    said = []
    for part in inspect.cleandoc(command.help or "").split("\n\n"):
        lines = part.rstrip().split("\n")
        said.append("\n".join(["```", *lines[1:], "```"] if lines[0].strip() == "\b" else lines))
    return said


PAGES = {"settings.md": settings_page, "commands.md": commands_page, "files.md": files_page, "metrics.md": metrics_page}

if __name__ == "__main__":
    for page, write in PAGES.items():
        Path(__file__).with_name(page).write_text(write(), encoding="utf-8")
