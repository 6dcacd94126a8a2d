"""Classes of the commands: names in any spelling, aliases, a short help and the full one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import click

from harness.cli import completion
from harness.cli.terminal import broken_pipes
from harness.config import settings
from harness.config.other_names import meaning_of
from harness.config.settings import normalize_name
from harness.config.words import without_groups
from harness.tracking.wandb.failed_trial import send_failure
from harness.utils.errors import did_you_mean

# Second names of commands, as other trainers call them.
ALIASES = {"train": "run", "find": "lr-find", "val": "evaluate", "list": "runs", "plot-schedule": "plot"}

# What `--help` of a command that takes settings shows of them; `--help-all` shows all. For `run` and `lr-find`:
DAILY = (
    "recipe", "model", "model_args", "pretrained", "init",
    "data", "data_dir", "image_size", "val_fraction", "augment",
    "epochs", "batch_size", "optimizer", "weight_decay", "label_smoothing", "ema",
    "schedule", "lr_min", "lr_max", "peak_epoch",
    "seed", "device", "precision",
    "tracker", "wandb", "project", "name", "tags",
    "output", "resume",
)  # fmt: skip

CONTEXT = {"token_normalize_func": normalize_name, "help_option_names": ["-h", "--help"], "max_content_width": 110}


class CommandGroup(click.Group):
    """Commands under headings, found by any spelling of their names and by their aliases.

    Args:
        sections: heading -> commands, in the order of the help.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[click.Command]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        for command in (command for commands in sections.values() for command in commands):
            self.add_command(command)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the program's own options, of which `--help` and `--version` print."""
        with broken_pipes():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with broken_pipes():
            return super().invoke(ctx)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a command by its name or an alias, in any spelling; None when there is none."""
        names = {normalize_name(alias): command for alias, command in ALIASES.items()}
        names |= {normalize_name(command): command for command in self.commands}
        return self.commands.get(names.get(normalize_name(name), ""))

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command's proper name, the command and its arguments.

        Raises:
            UsageError: there is no such command; the nearest one is named.
        """
        command = self.get_command(context, args[0])
        if command is None and not args[0].startswith("-") and not context.resilient_parsing:
            hint = did_you_mean(args[0].lower(), [*self.commands, *ALIASES])
            raise click.UsageError(f"no such command {args[0]!r}{hint}", context)
        return super().resolve_command(context, args) if command is None else (command.name, command, args[1:])

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each section: the commands with their aliases and the whole first sentence of their help."""
        labels = {name: ", ".join([name, *aliases_of(name)]) for name in self.commands}
        width = max(map(len, labels.values()))
        for heading, commands in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [(labels[command.name or ""].ljust(width), command.get_short_help_str(300)) for command in commands]
                )


def aliases_of(command: str) -> list[str]:
    """Return the second names of a command."""
    return [alias for alias, name in ALIASES.items() if name == command]


class PlainCommand(click.Command):
    """A command whose options are completed in any spelling and listed under headings."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Return the options, where one is begun; else what click offers."""
        if incomplete.startswith("-"):
            return completion.options_of(self, ctx, incomplete)
        return super().shell_complete(ctx, incomplete)

    def format_help_text(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help, and the command's second names below it."""
        super().format_help_text(context, formatter)
        if aliases := aliases_of(self.name or ""):
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(f"Also called: {', '.join(f'harness {alias}' for alias in aliases)}.")

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then the settings group by group; the text above covers the arguments."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            if isinstance(parameter, click.Option) and not parameter.hidden and self.shows(parameter, context):
                groups.setdefault(getattr(parameter, "group", "Options"), []).append(help_record(parameter, context))
        for name in sorted(groups, key=lambda name: name != "Options"):
            with formatter.section(name):
                formatter.write_dl(groups[name], col_max=34)

    def shows(self, option: click.Option, context: click.Context) -> bool:
        """Return whether the help lists an option."""
        return True


def help_record(option: click.Option, context: click.Context) -> tuple[str, str]:
    """Return the names of an option with its kind of value, and its help with its default."""
    if option.is_flag or hasattr(option, "group"):
        return option.get_help_record(context) or ("", "")
    kinds = {"integer": "N", "integer range": "N", "float": "NUMBER", "text": "TEXT", "path": "PATH"}
    metavar = option.metavar or kinds.get(option.type.name, option.type.name.upper())
    about, default = option.help or "", option.get_default(context)
    shown = "" if "[" in about or not isinstance(default, int | float | str) or default == "" else f" [{default}]"
    return f"{', '.join(option.opts)} {metavar}", about + shown


class SettingsCommand(PlainCommand):
    """A command that takes settings.

    Args:
        shown: the settings that `--help` lists; `--help-all` lists every one.
    """

    def __init__(self, *args: Any, shown: Sequence[str] = DAILY, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shown = frozenset(shown)
        has_more = any(
            getattr(option, "group", "hidden") != "hidden" and option.name not in shown for option in self.params
        )
        self.params += has_more * [
            click.Option(
                ["--help-all"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_full_help,
                help="Show every setting and exit.",
            )
        ]

    def shows(self, option: click.Option, context: click.Context) -> bool:
        """Return whether the help lists an option: of the settings, the short help lists those of daily use."""
        return not hasattr(option, "group") or option.name in self.shown or full_help(context)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options; below the short help, how many settings are left out."""
        super().format_options(context, formatter)
        left_out = [
            option
            for option in self.params
            if isinstance(option, click.Option) and not option.hidden and not self.shows(option, context)
        ]
        if left_out:
            formatter.write_paragraph()
            formatter.write_text(
                f"These are the settings of daily use; {len(left_out)} more: harness {self.name} --help-all"
            )

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Parse arguments. An option that may stand alone is then true; the next argument is its value only if it can be.

        Raises:
            UsageError: an option or its value is wrong; a sweep whose trial this is hears of it.
        """
        optional = {normalize_name(name): name for name in settings.setting_fields() if settings.value_alone(name)}
        completed, args = [], without_groups(args)
        for argument, following in itertools.zip_longest(args, args[1:], fillvalue=""):
            name = optional.get(normalize_name(argument)) if argument.startswith("--") else None
            choices = settings.setting_fields()[name].metadata["choices"] if name else ()
            is_true = name is not None and following.lower() not in (*settings.BOOLEANS, settings.AUTO, *choices)
            completed.append(f"{argument}=true" if is_true else argument)
        takes_arguments = any(
            isinstance(parameter, click.Argument) and parameter.name != "words" for parameter in self.params
        )
        for argument, following in itertools.pairwise(completed):
            # `--flip maybe`: not a boolean, and the command has no argument that it could be.
            was_completed = argument.endswith("=true") and argument not in args
            if was_completed and not following.startswith("-") and not takes_arguments:
                name = argument[2:].removesuffix("=true")
                choices = settings.setting_fields()[settings.canonical_name(name)].metadata["choices"]
                needed = f"one of {', '.join(choices)}" if choices else "True or False"
                raise click.UsageError(f"{name}={following!r}: need {needed}", context)
        try:
            return super().parse_args(context, completed)
        except click.UsageError as error:
            send_failure(error.format_message(), error.exit_code)
            raise


def full_help(context: click.Context) -> bool:
    """Return whether the help was asked for with `--help-all`."""
    return bool(context.meta.get("harness.help_all"))


def _show_full_help(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        context.meta["harness.help_all"] = True
        click.echo(context.get_help())
        context.exit()


def nearest_option(error: click.NoSuchOption) -> str:
    """Return ` (did you mean '--x'?)` for the option nearest to one that does not exist, what to write instead, or nothing.

    What another trainer calls by that name comes before a similar spelling.
    """
    options = {
        normalize_name(name): name
        for parameter in (error.ctx.command.params if error.ctx else [])
        for name in parameter.opts
        if name.startswith("--")
    }
    typed = normalize_name(error.option_name)
    known = [name for name in settings.setting_fields() if normalize_name(name) in options]
    setting, remedy = meaning_of(typed, [*known, *(name[2:].replace("-", "_") for name in options.values())])
    if remedy:
        return f"; {remedy}"
    if setting:
        return f" (did you mean '--{setting.replace('_', '-')}'?)"
    words = error.option_name.lower().replace("_", "-").lstrip("-")  # the dashes would make any two options similar
    return did_you_mean(words, [name[2:] for name in options.values()], "--")
