"""Shell completion of commands, options, settings' values, runs and sweeps, without a heavy import."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.config import settings
from harness.config.names import BUILT_IN_DATASETS
from harness.config.recipe import recipe_paths

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

VARIABLE = "_HARNESS_COMPLETE"  # what click's scripts set
OURS = ("custom_resnet", "resnet18_cifar")
DEVICES = ("auto", "cpu", "cuda", "mps")
CAMS = ("hirescam", "gradcam", "gradcam++", "xgradcam", "layercam", "eigencam", "eigengradcam", "gradcamelementwise",
        "scorecam", "ablationcam", "none")  # fmt: skip


def values_of(name: str, incomplete: str) -> list[CompletionItem]:
    """Return the values of a setting that begin with what has been typed."""
    match name:
        case "recipe":
            return _plain([*recipe_paths(), *_paths("*.yaml")], incomplete) or _other("file", incomplete)
        case "model":
            return _plain([*OURS, *timm_models()], incomplete)
        case "resume":
            return [*_plain(("auto", "never"), incomplete), *run_completions(incomplete)]
        case "data_dir" | "output":
            return _other("dir", incomplete)
        case "lr_min" | "lr_max":
            return _plain((settings.FIND,), incomplete)
    choices = settings.setting_fields()[name].metadata["choices"]
    values = {"data": BUILT_IN_DATASETS, "device": DEVICES, "cam": CAMS}.get(name) or choices
    if settings.is_switch(name):
        is_open = settings.setting_fields()[name].default is None
        values = ("auto", "True", "False") if is_open else ("True", "False")
    return _plain(values, incomplete)


def options_of(command: click.Command, context: click.Context, incomplete: str) -> list[CompletionItem]:
    """Return the options of a command in their dashed spelling, whatever spelling was begun."""
    from click.shell_completion import CompletionItem

    typed, items = settings.normalize_name(incomplete), []
    for parameter in command.get_params(context):
        is_given = context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        if not isinstance(parameter, click.Option) or parameter.hidden or (is_given and not parameter.multiple):
            continue
        for name in (*parameter.opts, *parameter.secondary_opts):
            if name.startswith("--") and settings.normalize_name(name).startswith(typed):
                items.append(CompletionItem(name, help=(parameter.help or "").split(". ")[0]))
    return items


def run_completions(incomplete: str) -> list[CompletionItem]:
    """Return run directories: those in `runs`, or in the folder that is being typed; else any path."""
    folder = Path(incomplete.rpartition("/")[0] or "/") if "/" in incomplete else Path("runs")
    directories = [str(path.parent) for path in sorted(folder.expanduser().glob("*/config.yaml"))]
    return _plain(directories, incomplete) or _other("dir", incomplete)


def complete_run(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete an argument that is a run directory; click's `shell_complete`."""
    return run_completions(incomplete)


def complete_sweep(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete an argument that is a sweep file: those of `sweeps` and of this folder, else any; click's `shell_complete`."""
    return _plain([*_paths("sweeps/*.yaml"), *_paths("*.yaml")], incomplete) or _other("file", incomplete)


def timm_models() -> list[str]:
    """Return the names of timm's models, read from its source: importing it takes seconds."""
    spec = find_spec("timm")
    names: set[str] = set()
    for location in (spec.submodule_search_locations or []) if spec else []:
        for path in (Path(location) / "models").glob("*.py"):
            names.update(re.findall(r"^@register_model\ndef (\w+)\(", path.read_text(encoding="utf-8"), re.M))
    return sorted(names)


def script(program: click.Command, shell: str) -> str:
    """Return the script that makes a shell ask `harness` for completions, as click writes it.

    Args:
        shell: bash, zsh or fish.
    """
    from click.shell_completion import get_completion_class

    completion_class = get_completion_class(shell)
    assert completion_class is not None
    completer = completion_class(program, {}, "harness", VARIABLE)
    return completer.source_template % completer.source_vars()  # `source()` would run bash for its version


def prepare() -> None:
    """Make completion in bash understand `--option=value`, which bash passes as `--option`, `=` and `value`."""
    from click.shell_completion import BashComplete, add_completion_class

    class Bash(BashComplete):
        def get_completion_args(self) -> tuple[list[str], str]:
            args, incomplete = super().get_completion_args()
            return [argument for argument in args if argument != "="], "" if incomplete == "=" else incomplete

    add_completion_class(Bash, "bash")


def _plain(values: Iterable[str], incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(value) for value in dict.fromkeys(values) if value.startswith(incomplete)]


def _other(kind: str, incomplete: str) -> list[CompletionItem]:
    """Return what leaves the completion of files or folders to the shell."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type=kind)]


def _paths(pattern: str) -> list[str]:
    return [str(path) for path in sorted(Path().glob(pattern))]
