"""Writes the reference from the code: `python docs/make.py`. A test holds the pages to what this gives."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from harness.cli import cli
from harness.config import Config, kinds, recipes, resolve, settings

sys.path.insert(0, str(Path(__file__).parent))
import reference

HEAD = """# Settings

Made from `harness/config.py` by `python docs/make.py`. Each is an option of `harness run` in any spelling of case, dash
and underscore, a key of a recipe, of `config.yaml`, of W&B's `run.config` and of the journal's first line.

An option wins over the recipe, the recipe over the default. A setting marked + changes the numbers of a run: an
unfinished run is gone on with only when all of those are equal.
"""


def text() -> str:
    """The whole page."""
    parts, default = [HEAD], Config()
    for group in dict.fromkeys(setting.metadata["group"] for setting in settings().values()):
        parts.append(f"\n## {group}\n\n| setting | default | what it is |\n| --- | --- | --- |")
        for name, setting in settings().items():
            if setting.metadata["group"] == group:
                parts.append(_row(name, getattr(default, name)))
    parts.append("\n## Recipes\n\n| recipe | what it sets |\n| --- | --- |")
    for name in recipes():
        made, plain = resolve({}, name).to_dict(), default.to_dict()
        changed = ", ".join(f"{key} {made[key]}" for key in made if made[key] != plain[key] and key != "recipe")
        parts.append(f"| {name} | {changed or 'the defaults'} |")
    return "\n".join(parts) + "\n"


def _row(name: str, default: object) -> str:
    about = settings()[name].metadata
    words = about["help"] + (f" One of {', '.join(about['choices'])}." if about["choices"] else "") + _bounds(name)
    shown = {"": "", "()": "", "{}": "", "None": "none"}.get(str(default), str(default))
    return f"| `{name}`{' +' if about['counts'] else ''} | {shown} | {words.replace('|', '/')} |"


def _bounds(name: str) -> str:
    about = settings()[name].metadata
    signs = (("low", "≥"), ("above", ">"), ("high", "≤"), ("below", "<"))
    bounds = [
        f"{sign} {about[word]:g}" for word, sign in signs if about[word] is not None and kinds()[name] is not bool
    ]
    return f" ({', '.join(bounds)})" if bounds else ""


COMMANDS = """# Commands

Made from the commands by `python docs/make.py`. `harness COMMAND --help` says the same. Where a command takes settings, every
setting of [settings.md](settings.md) is an option of it.
"""

FOLDER = """# Files of a run folder

Made from `docs/reference.py` by `python docs/make.py`. A test holds it against real runs, in both directions.

| file | what is in it | only with |
| --- | --- | --- |
"""

KEYS = """# Metrics

Made from `docs/reference.py` by `python docs/make.py`. A test holds it against real runs' journals. The keys are the same in
the journal, in W&B's history and in `Result.history`. Accuracies are shares, never percent; the x axis is the
step (optimizer updates done).

| key | unit | what it is | only with |
| --- | --- | --- | --- |
"""


def commands() -> str:
    """The page of commands."""
    return "\n".join([COMMANDS, *(_command(name, one) for name, one in _walk("harness", cli))])


def files() -> str:
    """The page of the files of a run folder."""
    rows = [f"| `{file.pattern}` | {file.about} | {file.when} |" for file in reference.FILES]
    return FOLDER + "\n".join(rows) + "\n"


def metrics() -> str:
    """The page of metric keys."""
    rows = [f"| `{one.key}` | {one.unit} | {one.about} | {one.when} |" for one in reference.METRICS]
    return KEYS + "\n".join(rows) + "\n"


def _walk(name: str, group: click.Group) -> Iterator[tuple[str, click.Command]]:
    for word, command in sorted(group.commands.items()):
        yield f"{name} {word}", command
        if isinstance(command, click.Group):
            yield from _walk(f"{name} {word}", command)


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    own = [one for one in command.get_params(context) if not getattr(one, "group", "") and "--help" not in one.opts]
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"## {name}", "", f"`{name} {usage}`", "", _help(command)]
    rows = [record for one in own if isinstance(one, click.Option) and (record := one.get_help_record(context))]
    if rows:
        parts += ["| option | what it is |", "| --- | --- |"]
        parts += [f"| `{_cell(left)}` | {_cell(right)} |" for left, right in rows]
        parts.append("")
    if any(getattr(one, "group", "hidden") != "hidden" for one in command.get_params(context)):
        parts += ["It takes settings.", ""]
    return "\n".join(parts)


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "/")


def _help(command: click.Command) -> str:
    """The command's help: paragraphs as they are, what stands after `\\b` as code."""
    said = []
    for part in inspect.cleandoc(command.help or "").split("\n\n"):
        words = part.rstrip().split("\n")
        said.append("\n".join(["```", *words[1:], "```"] if words[0].strip() == "\b" else words))
    return "\n\n".join(said) + "\n"


PAGES = {"settings.md": text, "commands.md": commands, "files.md": files, "metrics.md": metrics}

if __name__ == "__main__":
    for page, write in PAGES.items():
        Path(__file__).with_name(page).write_text(write(), encoding="utf-8")
