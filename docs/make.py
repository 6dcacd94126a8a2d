"""Write the reference pages from the code: `python docs/make.py`.

Tests compare the pages with what this writes.
"""

import inspect
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from harness.cli.commands import PlainCommand, SettingsCommand, aliases_of, help_record
from harness.cli.main import EXIT_STATUSES, cli
from harness.cli.options import option_names
from harness.config.recipe import make_config, recipe_paths
from harness.config.settings import Config, is_switch, setting_fields

sys.path.insert(0, str(Path(__file__).parent))
import api
import reference

SETTINGS = """# Settings

Generated from `harness/config/settings.py` by `python docs/make.py`. Each setting is an option of `harness run` in any spelling
of case, dash and underscore, a key of a recipe, of `config.yaml`, of W&B's `run.config` and of the journal's first line.

An option wins over the recipe, the recipe over the default. A setting marked + changes the numbers of a run: an
unfinished run is resumed only when all of those are equal.
"""

COMMANDS = """# Commands

Generated from the commands by `python docs/make.py`. `harness COMMAND --help` shows the same in the terminal. A command that takes
settings shows those of daily use with `--help` and all of [settings.md](settings.md) with `--help-all`. Options are understood in any
spelling of case, dash and underscore; a boolean takes a value (`--compile True`) or stands alone (`--compile`, `--no-compile`).
`--debug` with any command shows the traceback of an error. Results go to standard output, progress and errors to standard error.
"""

EXITS = """## Exit statuses

No command ends in a traceback because of a user's mistake: it writes one line to standard error and exits with a status that says
what kind of mistake it was.
"""

FILES = """# Files

Generated from `docs/reference.py` by `python docs/make.py`; tests compare it with real runs, in both directions. A star stands for any
name. Where the last column names a condition, the file exists only then.

## A run directory

`runs/NAME/`, from `harness run`; from `harness lr-find` with the files of a range test.
"""

SWEEP = """
## A sweep directory

`runs/NAME-DIGEST/`, from `harness sweep`.
"""

SEEDS = """
## Several seeds

`runs/NAME-seeds-FROM-TO/`, from `harness run --seeds`; the run directories of the seeds lie beside it.
"""

METRICS = """# Metrics

Generated from `docs/reference.py` by `python docs/make.py`; tests compare it with the journals of real runs, in both directions. The
keys are the same in the journal, in W&B's history and in `RunResult.history`. Accuracies are fractions, never percentages. The axis is
the step: optimizer updates done. In W&B every row has its time, `epoch` and `images_seen` as other axes.

Where images may have several labels (`--label-separator`, `--label-columns`), mAP, macro F1 and exact matches stand in place of
`acc`, `balanced_acc`, `ece` and the confusion and calibration charts, and a loss is the binary cross-entropy, summed over the classes,
mean over the images. Average precision is scikit-learn's, without a threshold; a class without images in the split counts in no mean.
`f1_macro` and `exact_match` need a threshold for each class: the one with the best F1 on the validation split, of the weights that are
evaluated. After an epoch `val/f1_macro` is therefore of thresholds that were chosen on the same images, and somewhat too good;
`result/test/f1_macro` uses those of the validation split. Without a validation split every threshold is 0.5.
"""


def settings_page() -> str:
    """Return every setting with its default, group by group, and what the recipes change."""
    parts, defaults = [SETTINGS], Config()
    for group in dict.fromkeys(setting.metadata["group"] for setting in setting_fields().values()):
        parts.append(f"\n## {group}\n\n| setting | default | what it is |\n| --- | --- | --- |")
        for name, setting in setting_fields().items():
            if setting.metadata["group"] == group:
                parts.append(_setting_row(name, getattr(defaults, name)))
    parts.append("\n## Recipes\n\n| recipe | what it sets |\n| --- | --- |")
    for name in recipe_paths():
        values, plain = make_config({}, name).to_dict(), defaults.to_dict()
        changed = ", ".join(f"{key} {values[key]}" for key in values if values[key] != plain[key] and key != "recipe")
        parts.append(f"| {name} | {changed or 'the defaults'} |")
    return "\n".join(parts) + "\n"


def _setting_row(name: str, default: object) -> str:
    metadata = setting_fields()[name].metadata
    choices = f" One of {', '.join(metadata['choices'])}." if metadata["choices"] else ""
    about = metadata["help"] + choices + _bounds(name)
    about += " Or `auto`: chosen from the data." if metadata["from_data"] else ""
    if others := [option for option in option_names(name) if option != f"--{name.replace('_', '-')}"]:
        about += f" Also {', '.join(f'`{option}`' for option in others)}."
    empty = "auto" if is_switch(name) else "none"
    if isinstance(default, tuple):
        default = ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in default)
    shown = {"": "", "{}": "", "None": empty}.get(str(default), str(default))
    return f"| `{name}`{' +' if metadata['affects_results'] else ''} | {shown} | {about.replace('|', '/')} |"


def _bounds(name: str) -> str:
    metadata = setting_fields()[name].metadata
    if is_switch(name):
        return ""
    signs = (("low", "≥"), ("above", ">"), ("high", "≤"), ("below", "<"))
    bounds = [f"{sign} {metadata[key]:g}" for key, sign in signs if metadata[key] is not None]
    return f" ({', '.join(bounds)})" if bounds else ""


def commands_page() -> str:
    """Return every command, section by section: how it is called, what it does, its options; and the exit statuses."""
    parts = [COMMANDS.rstrip()]
    for heading, commands in cli.sections.items():
        parts += [f"## {heading}", *map(_command, commands)]
    statuses = _table(("status", "meaning"), [(str(status), meaning) for status, meaning in EXIT_STATUSES.items()])
    return "\n\n".join([*parts, EXITS.rstrip(), statuses])


def _command(command: PlainCommand) -> str:
    name, context = command.name or "", click.Context(command, info_name=command.name)
    arguments = [one.make_metavar(context) for one in command.params if isinstance(one, click.Argument)]
    usage = " ".join(["harness", name, "[OPTIONS]", *arguments])
    parts = [f"### harness {name}", f"`{usage}`", *_help(command)]
    if aliases := aliases_of(name):
        parts.append(f"Also called {', '.join(f'`harness {alias}`' for alias in aliases)}.")
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    settings = [option for option in options if hasattr(option, "group")]
    own = [option for option in options if not hasattr(option, "group")]
    if own:
        parts.append(_table(("option", "what it is"), [_option(option, context) for option in own]).rstrip())
    if isinstance(command, SettingsCommand):
        shown = [option for option in settings if option.name in command.shown]
        listed = ", ".join(f"`--{(option.name or '').replace('_', '-')}`" for option in shown)
        rest = len(settings) - len(shown)
        more = f"; `--help-all` shows {rest} more" if rest else " and no others"
        parts.append(f"Settings ([settings.md](settings.md)): {listed}{more}.")
    return "\n\n".join(parts)


def _option(option: click.Option, context: click.Context) -> tuple[str, str]:
    """Return the names of an option with the kind of its value, and its help with its default."""
    names, about = help_record(option, context)
    return ", ".join(f"`{name}`" for name in names.replace(" / ", ", ").split(", ")), about


def _help(command: click.Command) -> list[str]:
    """Return the paragraphs of a command's help; what stands after `\\b` becomes a block of code."""
    paragraphs = []
    for part in inspect.cleandoc(command.help or "").split("\n\n"):
        lines = part.rstrip().split("\n")
        paragraphs.append("\n".join(["```", *lines[1:], "```"] if lines[0].strip() == "\b" else lines))
    return paragraphs


def files_page() -> str:
    """Return what the directories of a run, of a sweep and of several seeds hold."""
    parts = ((FILES, reference.RUN), (SWEEP, reference.SWEEP), (SEEDS, reference.SEEDS))
    header = ("file", "what is in it", "only with")
    return "".join(
        text + "\n" + _table(header, [(f"`{file.pattern}`", file.about, file.when) for file in files])
        for text, files in parts
    )


def metrics_page() -> str:
    """Return every key that is recorded, with its unit."""
    rows = [(f"`{metric.key}`", metric.unit, metric.about, metric.when, metric.where) for metric in reference.METRICS]
    return METRICS + "\n" + _table(("key", "unit", "what it is", "only with", "only in"), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in line)} |\n" for line in lines)


PAGES = {
    "settings.md": settings_page,
    "commands.md": commands_page,
    "files.md": files_page,
    "metrics.md": metrics_page,
    "api.md": api.api_page,
}

if __name__ == "__main__":
    for page, write in PAGES.items():
        Path(__file__).with_name(page).write_text(write(), encoding="utf-8")
