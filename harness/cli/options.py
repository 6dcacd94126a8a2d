"""Command-line options made from `Config`, and the manners of every command.

Any spelling of case, dash and underscore of an option is the same option, since `wandb agent` passes
`--KEY=VALUE` as the sweep's YAML writes it; a boolean takes a value (`--compile=True`) or stands alone
(`--compile`, `--no-compile`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from harness.cli import completion
from harness.config import settings as config
from harness.config.recipe import make_config
from harness.tracking.wandb.failed_trial import send_failure
from harness.utils.errors import UsageError

CONTEXT = {
    "token_normalize_func": lambda word: word.lower().replace("-", "").replace("_", ""),
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
}


class SettingOption(click.Option):
    """An option that stands for one setting; its value is checked by `Config`, not by click."""

    def __init__(self, name: str) -> None:
        kind, about = config.setting_types()[name], config.setting_fields()[name].metadata
        self.group = about["group"]
        extra: dict[str, Any] = {}
        if kind is bool:
            extra = {"is_flag": False, "flag_value": "true"}
        elif name in ("model_args", "plugin", "tags"):
            extra = {"multiple": True}
        super().__init__(
            [f"--{name.replace('_', '-')}", name],
            type=str,
            default=None,
            help=describe(name),
            metavar=_metavar(name),
            shell_complete=lambda context, parameter, incomplete: completion.values_of(name, incomplete),
            **extra,
        )


class NoOption(click.Option):
    """`--no-compile` for `--compile False`."""

    group = "hidden"

    def __init__(self, name: str) -> None:
        super().__init__([f"--no-{name.replace('_', '-')}", f"no_{name}"], is_flag=True, default=False, hidden=True)


# Second names of commands, as other trainers call them.
ALIASES = {"train": "run", "find": "lr-find", "val": "evaluate", "list": "runs", "plot-schedule": "plot"}


class CommandGroup(click.Group):
    """Commands in groups, by what they are for.

    Args:
        sections: title -> commands, in the order of the help.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[click.Command]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        for command in (command for commands in sections.values() for command in commands):
            self.add_command(command)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a command by its name or by an alias of it."""
        return super().get_command(context, ALIASES.get(name, name))

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Each section with the whole first sentence of its commands' help."""
        width = max(len(name) for name in self.commands)
        for title, commands in self.sections.items():
            with formatter.section(title):
                told = [((command.name or "").ljust(width), command.get_short_help_str(300)) for command in commands]
                formatter.write_dl(told)


class PlainCommand(click.Command):
    """A command whose options are completed in any spelling."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Options, where one is begun; else what click has."""
        if incomplete.startswith("-"):
            return completion.options_of(self, ctx, incomplete)
        return super().shell_complete(ctx, incomplete)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Our own options first, then the settings group by group; arguments are told in the text above."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            if isinstance(parameter, click.Option) and not parameter.hidden:
                groups.setdefault(getattr(parameter, "group", "Options"), []).append(_record(parameter, context))
        for name in sorted(groups, key=lambda name: name != "Options"):
            with formatter.section(name):
                formatter.write_dl(groups[name], col_max=34)


def _record(option: click.Option, context: click.Context) -> tuple[str, str]:
    """The names and the help of an option, with its kind of value and its default written as those of the settings."""
    if isinstance(option, SettingOption) or option.is_flag:
        return option.get_help_record(context) or ("", "")
    kinds = {"integer": "N", "integer range": "N", "float": "NUMBER", "text": "WORD", "path": "PATH"}
    metavar = option.metavar or kinds.get(option.type.name, option.type.name.upper())
    about, default = option.help or "", option.get_default(context)
    shown = "" if "[" in about or not isinstance(default, int | float | str) or default == "" else f" [{default}]"
    return f"{', '.join(option.opts)} {metavar}", about + shown


class SettingsCommand(PlainCommand):
    """A command that takes settings; its help lists them in groups."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """A boolean that stands alone is true: the word after it is its value only when it is a boolean word."""
        plain = {name.replace("_", "") for name, kind in config.setting_types().items() if kind is bool}
        told = []
        for word, after in zip(args, [*args[1:], ""][: len(args)], strict=True):
            alone = word.startswith("--") and word[2:].lower().replace("-", "").replace("_", "") in plain
            told.append(f"{word}=true" if alone and after.lower() not in config.BOOLEANS else word)
        for word, after in itertools.pairwise(told):
            # `--flip maybe`: no value, and no argument is left that it could be.
            takes = any(isinstance(parameter, click.Argument) for parameter in self.params)
            if word.endswith("=true") and word not in args and not after.startswith("-") and not takes:
                raise click.UsageError(f"{word[2:-5]}={after!r}: need True or False", context)
        try:
            return super().parse_args(context, told)
        except click.UsageError as error:
            send_failure(error.format_message(), error.exit_code)
            raise


def describe(name: str) -> str:
    """A setting's help with its choices and its default in the default recipe."""
    about, default = config.setting_fields()[name].metadata, getattr(_defaults(), name)
    words = [about["help"]]
    if about["choices"]:
        words.append(f"One of {', '.join(about['choices'])}.")
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    if shown not in ("", None, {}):
        words.append(f"[{shown:g}]" if isinstance(shown, float) else f"[{shown}]")
    return " ".join(words)


def _defaults() -> config.Config:
    return config.Config()


def _metavar(name: str) -> str:
    kind = config.setting_types()[name]
    if kind is bool:
        return "BOOL"
    if name in ("data_dir", "output"):
        return "FOLDER"
    return {int: "N", float: "NUMBER", str: "WORD"}.get(
        kind, "KEY=VALUE,..." if name == "model_args" else "WORD,..." if name in ("plugin", "tags") else "NUMBER"
    )


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for every setting; it receives those that were given as `settings={...}`."""
    return setting_options_except()(command)


def setting_options_except(*without: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`settings` without those that the command has another use for."""
    return lambda command: _with_options(command, [name for name in config.setting_fields() if name not in without])


def _with_options(command: Callable[..., Any], names: list[str]) -> Callable[..., Any]:

    def collect_options(**values: Any) -> Any:
        given: dict[str, Any] = {}
        for name in names:
            value, off = values.pop(name, None), values.pop(f"no_{name}", False)
            if value not in (None, ()):
                given[name] = _joined(name, value)
            if off:
                given[name] = "false"
        return command(settings=given, **values)

    collect_options.__doc__, collect_options.__name__ = command.__doc__, command.__name__
    params = [*getattr(command, "__click_params__", [])]
    for name in reversed(names):
        if config.setting_types()[name] is bool:
            params.append(NoOption(name))
        params.append(SettingOption(name))
    setattr(collect_options, "__click_params__", params)  # noqa: B010 - where click's decorators look for them
    return collect_options


def _joined(name: str, value: Any) -> Any:
    """Options given several times: lists are joined, mappings merged."""
    if not isinstance(value, tuple):
        return value
    parts = [config.coerce(name, part) for part in value]
    if name == "model_args":
        merged: dict[str, Any] = {}
        for part in parts:
            merged |= part
        return merged
    return tuple(word for part in parts for word in part)


def config_from_options(given: Mapping[str, Any]) -> config.Config:
    """The effective configuration for the options of a command."""
    try:
        return make_config(given)
    except UsageError:
        raise
    except TypeError as error:
        raise UsageError(str(error)) from None
