"""What a shell offers for a half-typed command line. Nothing heavy is imported: an answer takes a fraction of a second."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.config import settings
from harness.config.recipe import recipe_paths

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

VARIABLE = "_HARNESS_COMPLETE"  # what click's scripts set
OURS = ("custom_resnet", "resnet18_cifar")
DATA = ("cifar10", "cifar100", "digits", "folder")
DEVICES = ("auto", "cpu", "cuda", "mps")
CAMS = ("hirescam", "gradcam", "gradcam++", "xgradcam", "layercam", "eigencam", "eigengradcam", "gradcamelementwise",
        "scorecam", "ablationcam", "none")  # fmt: skip


def values_of(name: str, incomplete: str) -> list[CompletionItem]:
    """What a setting may be, as far as it has been typed."""
    about = settings.setting_fields()[name].metadata
    match name:
        case "recipe":
            return _plain([*recipe_paths(), *_paths("*.yaml")], incomplete) or _other("file", incomplete)
        case "model":
            return _plain([*OURS, *timm_models()], incomplete)
        case "resume":
            return [*_plain(("auto", "never"), incomplete), *runs(incomplete)]
        case "data_dir" | "output":
            return _other("dir", incomplete)
        case "lr_min" | "lr_max":
            return _plain((settings.FIND,), incomplete)
    known = {"data": DATA, "device": DEVICES, "cam": CAMS}.get(name) or about["choices"]
    if settings.setting_types()[name] is bool:
        known = ("True", "False")
    return _plain(known, incomplete)


def options_of(command: click.Command, context: click.Context, incomplete: str) -> list[CompletionItem]:
    """The options of a command in their dashed spelling, whatever spelling was begun."""
    from click.shell_completion import CompletionItem

    typed, found = _spelling(incomplete), []
    for parameter in command.get_params(context):
        given = context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        if not isinstance(parameter, click.Option) or parameter.hidden or (given and not parameter.multiple):
            continue
        for name in (*parameter.opts, *parameter.secondary_opts):
            if name.startswith("--") and _spelling(name).startswith(typed):
                found.append(CompletionItem(name, help=(parameter.help or "").split(". ")[0]))
    return found


def runs(incomplete: str) -> list[CompletionItem]:
    """Run folders: those in `runs`, or in the folder that is being typed; else any path."""
    folder = Path(incomplete.rpartition("/")[0] or "/") if "/" in incomplete else Path("runs")
    found = [str(path.parent) for path in sorted(folder.expanduser().glob("*/config.yaml"))]
    return _plain(found, incomplete) or _other("dir", incomplete)


def complete_run(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`shell_complete` of an argument that is a run folder."""
    return runs(incomplete)


def complete_sweep(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`shell_complete` of an argument that is a sweep file: those of `sweeps` and of this folder, else any file."""
    return _plain([*_paths("sweeps/*.yaml"), *_paths("*.yaml")], incomplete) or _other("file", incomplete)


def timm_models() -> list[str]:
    """The names of timm's models, read from its source: importing it takes seconds."""
    spec = find_spec("timm")
    found: set[str] = set()
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in (Path(place) / "models").glob("*.py"):
            found.update(re.findall(r"^@register_model\ndef (\w+)\(", path.read_text(encoding="utf-8"), re.M))
    return sorted(found)


def script(program: click.Command, shell: str) -> str:
    """The shell's script that asks us, as click writes it.

    Args:
        shell: bash, zsh or fish.
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    asker = made(program, {}, "harness", VARIABLE)
    return asker.source_template % asker.source_vars()  # `source()` would run bash for its version


def prepare() -> None:
    """Let bash's answers follow `--option=value`: bash hands over `--option`, `=` and `value` as three words."""
    from click.shell_completion import BashComplete, add_completion_class

    class Bash(BashComplete):
        def get_completion_args(self) -> tuple[list[str], str]:
            args, incomplete = super().get_completion_args()
            return [word for word in args if word != "="], "" if incomplete == "=" else incomplete

    add_completion_class(Bash, "bash")


def _spelling(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "")


def _plain(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(word) for word in dict.fromkeys(words) if word.startswith(incomplete)]


def _other(kind: str, incomplete: str) -> list[CompletionItem]:
    """The shell's own completion of files or folders."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type=kind)]


def _paths(pattern: str) -> list[str]:
    return [str(path) for path in sorted(Path().glob(pattern))]
