"""Command-line options made from `Config`.

`wandb agent` passes `--KEY=VALUE` as the sweep's YAML spells it, so any spelling of case, dash and underscore of an
option is that option. A boolean takes a value (`--compile=True`) or stands alone (`--compile`, `--no-compile`).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

import click

from harness.cli import completion
from harness.config import settings as config
from harness.config.names import MAPPINGS
from harness.config.recipe import read_recipe
from harness.config.words import LETTERS, read_words
from harness.utils import plugins

# Lists whose options may be given several times.
SEVERAL = ("freeze", "label_columns", "metrics", "milestones", "plugin", "tags", "tracker", "transforms")


class SettingOption(click.Option):
    """An option that stands for one setting; `Config` checks its value, not click."""

    def __init__(self, name: str) -> None:
        self.group = config.setting_fields()[name].metadata["group"]
        extra: dict[str, Any] = {}
        if alone := config.value_alone(name):
            extra = {"is_flag": False, "flag_value": alone}
        elif name in MAPPINGS or name in SEVERAL:
            extra = {"multiple": True}
        super().__init__(
            [*option_names(name), name],
            type=str,
            default=None,
            help=setting_help(name),
            metavar=_metavar(name),
            shell_complete=lambda context, parameter, incomplete: completion.values_of(name, incomplete),
            **extra,
        )


class NoOption(click.Option):
    """`--no-compile` for `--compile False`."""

    group = "hidden"

    def __init__(self, name: str) -> None:
        super().__init__([f"--no-{name.replace('_', '-')}", f"no_{name}"], is_flag=True, default=False, hidden=True)


class TrustOption(click.Option):
    """`--trust`: the plug-ins that a run, a checkpoint or a recipe names may be imported."""

    def __init__(self) -> None:
        about = "Import the installed modules that the run, the checkpoint or the recipe names as plug-ins; their code runs."
        super().__init__(["--trust", "trust"], is_flag=True, default=False, help=about)


class WordsArgument(click.Argument):
    """Settings as words, in the other forms in which W&B's agent passes the parameters of a sweep on: see `config.words`."""

    def __init__(self) -> None:
        super().__init__(["words"], nargs=-1, required=False, callback=_check_words)

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return nothing: the options are the usual way."""
        return []


def _check_words(context: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse words that have none of the forms, as click refuses the arguments of a command that takes none."""
    for word in words:
        if "=" not in word and not word.lstrip().startswith("{") and not word.endswith(".json"):
            whole = " ".join(words) if os.path.exists(" ".join(words)) else word  # a name with spaces, without quotes
            raise click.UsageError(f"Got unexpected extra argument ({whole})", context)
    return words


def words_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that takes settings the argument `words`; the settings in it join those of the options, which win."""

    def join(settings: dict[str, Any], words: tuple[str, ...], **values: Any) -> Any:
        return command(settings={**read_words(words), **settings}, **values)

    join.__doc__, join.__name__ = command.__doc__, command.__name__
    params = [*getattr(command, "__click_params__", []), WordsArgument()]
    setattr(join, "__click_params__", params)  # noqa: B010 - where click's decorators look for them
    return join


def option_names(setting: str) -> list[str]:
    """Return the options that mean a setting: its letter, its name, its short names."""
    letter = [LETTERS[setting]] if setting in LETTERS else []
    short = [f"--{alias}" for alias, name in config.SHORT_NAMES.items() if name == setting]
    return [*letter, f"--{setting.replace('_', '-')}", *short]


def setting_help(name: str) -> str:
    """Return a setting's help with its choices and its default."""
    about, default = config.setting_fields()[name].metadata, config.setting_fields()[name].default
    parts = [about["help"]]
    if about["choices"]:
        parts.append(f"One of {', '.join(about['choices'])}.")
    if about["from_data"]:
        parts.append("Or auto: chosen from the data.")
    own = _own_default(name)
    if config.is_switch(name) and default is None:
        parts.append(f"[{config.AUTO}]")
    elif isinstance(default, tuple) and default and isinstance(default[0], float):
        parts.append(f"[{','.join(f'{value:g}' for value in default)}{own}]")
    elif isinstance(default, str | int | float) and default != "":
        parts.append(f"[{default:g}{own}]" if isinstance(default, float) else f"[{default}{own}]")
    return " ".join(parts)


def _own_default(name: str) -> str:
    """Return what the help says of a setting whose default is another one for data of one's own, by the recipe `auto`."""
    value = _own_recipe().get(name)
    if name in ("recipe", "data") or value is None or value == config.setting_fields()[name].default:
        return ""
    return f"; your own images: {value}"


@functools.cache
def _own_recipe() -> dict[str, Any]:
    return read_recipe(config.AUTO)


# What an option's value is, where its type says too little.
METAVARS = {
    **dict.fromkeys(MAPPINGS, "KEY=VALUE,..."),
    **dict.fromkeys(("data_dir", "image_root", "output"), "FOLDER"),
    **dict.fromkeys(("lr_min", "lr_max"), "NUMBER|find"),
    "augment_pipeline": "FILE",
    "class_weights": "balanced|NUMBER,...|NAME=NUMBER,...",
    "extended": "STEP:EPOCHS,...",
    "freeze": "PATTERN,...",
    "grey_range": "LOW,HIGH",
    "label_columns": "COLUMN,...",
    "milestones": "EPOCH,...",
}
METAVAR_OF_TYPE = {
    int: "N", float: "NUMBER", float | None: "NUMBER", str: "TEXT", tuple[float, ...]: "NUMBER,...", tuple[str, ...]: "NAME,...",
}  # fmt: skip


def _metavar(name: str) -> str:
    if config.is_switch(name):
        return "BOOL"
    return METAVARS.get(name) or METAVAR_OF_TYPE[config.setting_types()[name]]


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for every setting; it receives those that were given as `settings={...}`."""
    return _with_options(command, config.setting_fields())


def setting_options_except(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return `setting_options` without some settings, which the command has another use for."""
    return lambda command: _with_options(command, [name for name in config.setting_fields() if name not in names])


def setting_options_only(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return `setting_options` of some settings only: the others have no effect on the command."""
    return lambda command: _with_options(command, names)


def _with_options(command: Callable[..., Any], names: Iterable[str]) -> Callable[..., Any]:
    names = list(names)

    def collect_options(**values: Any) -> Any:
        given: dict[str, Any] = {}
        if values.pop("trust", False):
            plugins.trust_files()
        for name in names:
            value, is_off = values.pop(name, None), values.pop(f"no_{name}", False)
            if value not in (None, ()):
                given[name] = _joined(name, value)
            if is_off:
                given[name] = "false"
        return command(settings=given, **values)

    collect_options.__doc__, collect_options.__name__ = command.__doc__, command.__name__
    params = [*getattr(command, "__click_params__", [])]
    if "plugin" in names:
        params.append(TrustOption())
    for name in reversed(names):
        if config.value_alone(name):
            params.append(NoOption(name))
        params.append(SettingOption(name))
    setattr(collect_options, "__click_params__", params)  # noqa: B010 - where click's decorators look for them
    return collect_options


def _joined(name: str, value: Any) -> Any:
    """Return the value of an option that may be given several times: lists are joined, mappings merged."""
    if not isinstance(value, tuple):
        return value
    parts = [config.coerce(name, part) for part in value]
    if name in MAPPINGS:
        merged: dict[str, Any] = {}
        for part in parts:
            merged |= part
        return merged
    return tuple(item for part in parts for item in part)
