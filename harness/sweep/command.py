"""The `command:` of a sweep file, as W&B's agent reads it, for commands that start `harness run`."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.utils.errors import UsageError, did_you_mean

# How the shipped sweeps start a run: another program named `harness` may come first on an agent's PATH.
START_RUN = ("${env}", "${interpreter}", "-m", "harness", "run", "${args}")
FORMER_START_RUN = ("${env}", "harness", "run", "${args}")  # how they started it before
EXAMPLE = '["${env}", "${interpreter}", -m, harness, run, "${args}"]'
PLAIN = (["harness", "run"], ["${interpreter}", "-m", "harness", "run"])
DEFAULT = ("${env}", "${interpreter}", "${program}", "${args}")
MACROS = (
    "${env}",
    "${interpreter}",
    "${program}",
    "${args}",
    "${args_no_hyphens}",
    "${args_no_equals}",
    "${args_no_boolean_flags}",
    "${args_json}",
    "${args_json_file}",
    "${args_append_hydra}",
    "${args_override_hydra}",
)
READABLE_ARGS = ("${args}", "${args_no_equals}", "${args_no_boolean_flags}")
VARIABLE = re.compile(r"\$\{envvar:([A-Za-z0-9_]*)\}")
PYTHON = re.compile(r"python[0-9.]*(\.exe)?")


def check(command: Any, program: Any) -> tuple[str, ...]:
    """Return the `command:` of a sweep file with its `program:` filled in.

    Raises:
        UsageError: it does not start `harness run`, or has a macro that `harness run` cannot read.
    """
    parts = DEFAULT if command is None else command
    if (
        isinstance(parts, str)
        or not isinstance(parts, Sequence)
        or not all(isinstance(part, str | int | float) for part in parts)
    ):
        raise UsageError(f"command: need a list of words, such as {EXAMPLE}")
    parts = tuple(str(program) if part == "${program}" and program else str(part) for part in parts)
    for part in parts:
        if part.startswith("${") and part not in MACROS and not VARIABLE.match(part):
            raise UsageError(f"command: unknown macro {part!r}{did_you_mean(part, MACROS)}")
        if part.startswith("${args") and part not in READABLE_ARGS:
            raise UsageError(f"command: `harness run` cannot read {part}; use ${{args}}")
    start = _start(parts)
    if start is None:
        raise UsageError(
            f"command: `{' '.join(parts)}` does not start `harness run`, the only program that `harness sweep` runs; write {EXAMPLE}, or use `wandb sweep` and `wandb agent`"
        )
    if settings := [part for part in parts[start + 2 :] if not part.startswith("${args")]:
        raise UsageError(
            f"command: {settings[0]!r} would be missing from the parameters and from best.yaml; move it to parameters, as a `value:`"
        )
    executable = next(part for part in parts if part != "${env}")
    is_known = executable in ("harness", "${interpreter}") or PYTHON.fullmatch(executable)
    if not is_known and shutil.which(executable) is None:
        raise UsageError(f"command: there is no program {executable!r} on this machine")
    if not any(part.startswith("${args") for part in parts):
        raise UsageError("command: ${args} is missing, so no trial would get its parameters")
    return parts


def is_plain(command: Sequence[str]) -> bool:
    """Return whether a command is `harness run` with its parameters and nothing else, so that a trial may be forked."""
    parts = [part for part in command if part not in ("${env}", "${args}")]
    return parts in PLAIN and command[-1] == "${args}"


def fill(command: Sequence[str], parameters: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Return the command line of one trial: macros filled in, and the Python that runs this process."""
    start = _start(command)
    assert start is not None  # `check` has refused such a command
    line: list[str] = []
    for index, part in enumerate(command):
        if part == "${env}":
            continue  # the environment is passed on unchanged
        if index == start and part == "harness" and (index == 0 or command[index - 1] != "-m"):
            line += [sys.executable, "-m", "harness"]
        elif part == "${interpreter}" or (index == 0 and PYTHON.fullmatch(part)):
            line.append(sys.executable)
        elif part.startswith("${args"):
            line += arguments(parameters, part)
        else:
            line.append(VARIABLE.sub(lambda match: environment.get(match[1], match[1]), part))
    return line


def arguments(parameters: Mapping[str, Any], macro: str = "${args}") -> list[str]:
    """Return the parameters as W&B's agent writes them on the command line."""
    options: list[str] = []
    for name, value in parameters.items():
        if macro == "${args_no_equals}":
            options += [f"--{name}", str(value)]
        elif macro == "${args_no_boolean_flags}" and isinstance(value, bool):
            options += [f"--{name}"] if value else []
        else:
            options.append(f"--{name}={value}")
    return options


def omitted(command: Sequence[str], parameters: Mapping[str, Any]) -> list[str]:
    """Return options for the false parameters that `${args_no_boolean_flags}` leaves out.

    Under W&B's agent `harness run` takes them from the agent's file of parameters.
    """
    if "${args_no_boolean_flags}" not in command:
        return []
    return [f"--{name}=False" for name, value in parameters.items() if value is False]


def _start(command: Sequence[str]) -> int | None:
    """Return the index of what `run` follows, in `harness run` or `python -m harness run`; None where there is none."""
    for index, part in enumerate(command[:-1]):
        path = Path(part)
        is_harness = path.name in ("harness", "harness.exe")
        is_module_file = path.name == "__main__.py" and path.parent.name == "harness"
        if (is_harness or is_module_file) and command[index + 1] == "run":
            return index
    return None
