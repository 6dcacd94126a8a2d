"""The `command:` of a sweep file, as W&B's agent reads it, for commands that start `harness run`.

Words behind `run` are settings that hold for every trial. A wrapper, such as `nice`, `torchrun` or a shell script that
passes its arguments on to `harness run`, may stand before it.
"""

from __future__ import annotations

import json
import os
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
ENV = "/usr/bin/env"  # what W&B's agent puts for ${env}
VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
PYTHON = re.compile(r"python[0-9.]*(\.exe)?")
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
STARTS_RUN = re.compile(r"\bharness(?:/__main__\.py)?['\"]?\s+run\b")  # in the text of a shell script
MAX_SCRIPT = 100_000  # bytes of a wrapper script that are searched for the start of a run


def check(command: Any, program: Any) -> tuple[str, ...]:
    """Return the `command:` of a sweep file with its `program:` filled in.

    Raises:
        UsageError: it does not start `harness run`, or has a macro that `harness run` cannot read.
    """
    parts = DEFAULT if command in (None, []) else command
    if (
        isinstance(parts, str)
        or not isinstance(parts, Sequence)
        or not all(isinstance(part, str | int | float) for part in parts)
    ):
        raise UsageError(f"command: need a list of words, such as {EXAMPLE}")
    parts = tuple(str(program) if part == "${program}" and program else str(part) for part in parts)
    for part in parts:
        if part.startswith("${") and part not in MACROS and not VARIABLE.match(part):
            raise UsageError(f"command: W&B's agent has no macro {part!r}{did_you_mean(part, MACROS)}")
    start = start_of_run(parts)
    if start is None and not _is_wrapper(parts):
        raise UsageError(
            f"command: `{' '.join(parts)}` does not start `harness run`, the only program that `harness sweep` runs; write {EXAMPLE}, or use `wandb sweep` and `wandb agent`"
        )
    executable = parts[_executable_index(parts)]
    is_known = executable in ("harness", "${interpreter}", "${env}") or PYTHON.fullmatch(executable)
    if not is_known and shutil.which(executable) is None:
        raise UsageError(f"command: there is no program {executable!r} on this machine")
    return parts


def _executable_index(parts: Sequence[str]) -> int:
    """Return the index of a command's executable, behind `${env}` and the variables that it sets."""
    if parts[0] not in ("${env}", "env", ENV):
        return 0
    index = next((index for index, part in enumerate(parts) if index and not ASSIGNMENT.fullmatch(part)), 0)
    return 0 if parts[index].startswith("-") else index  # `env -i`: env itself


def _is_wrapper(parts: Sequence[str]) -> bool:
    """Return whether a word of the command is a shell script that starts `harness run`, or the file of one."""
    return any(STARTS_RUN.search(part) or STARTS_RUN.search(_script(part)) for part in parts)


def _script(word: str) -> str:
    """Return the text of the file that a word names; empty where it is no small text file."""
    path = Path(word)
    try:
        if word.startswith("${") or not path.is_file() or path.stat().st_size > MAX_SCRIPT:
            return ""
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def fixed_words(command: Sequence[str]) -> list[str]:
    """Return the words behind `harness run` other than the parameters: settings of every trial."""
    start = start_of_run(command)
    if start is None:  # a script has them
        return []
    return [part for part in command[start + 2 :] if not part.startswith("${args")]


def is_plain(command: Sequence[str]) -> bool:
    """Return whether a command is `harness run` with settings and nothing before it, so that a trial may be forked."""
    start = start_of_run(command)
    return start is not None and [part for part in command[: start + 2] if part != "${env}"] in PLAIN


def fill(
    command: Sequence[str], parameters: Mapping[str, Any], environment: Mapping[str, str], json_file: Path | None = None
) -> list[str]:
    """Return the command line of one trial: macros filled in as W&B's agent does, and the Python that runs this process.

    Args:
        json_file: the file for `${args_json_file}`, which has to exist then.
    """
    start, executable = start_of_run(command), _executable_index(command)
    line: list[str] = []
    for index, part in enumerate(command):
        if part == "${env}":
            line += [ENV] if os.name != "nt" else []
        elif index == start and part == "harness" and (index == 0 or command[index - 1] != "-m"):
            line += [sys.executable, "-m", "harness"]
        elif part == "${interpreter}" or (index == executable and PYTHON.fullmatch(part)):
            line.append(sys.executable)
        elif part == "${args_json_file}":
            line.append(str(json_file))
        elif part.startswith("${args"):
            line += arguments(parameters, part)
        else:
            line.append(with_variables(part, environment))
    return line


def with_variables(word: str, environment: Mapping[str, str]) -> str:
    """Return a word with each `${envvar:NAME}` filled in; the name itself where there is no such variable."""
    return VARIABLE.sub(lambda match: environment.get(match[1], match[1]), word)


def run_arguments(
    command: Sequence[str], parameters: Mapping[str, Any], environment: Mapping[str, str], json_file: Path | None = None
) -> list[str]:
    """Return the words of one trial's command line from `run` on; see `fill`."""
    start = start_of_run(command)
    assert start is not None  # `is_plain` holds
    return fill(command[start:], parameters, environment, json_file)[3:]  # behind `python -m harness`


def arguments(parameters: Mapping[str, Any], macro: str = "${args}") -> list[str]:
    """Return the parameters as W&B's agent writes them on the command line."""
    match macro:
        case "${args_json}":
            return [json.dumps(parameters)]
        case "${args_no_equals}":
            return [word for name, value in parameters.items() for word in (f"--{name}", str(value))]
        case "${args_no_boolean_flags}":
            flags = {name: value for name, value in parameters.items() if value is not False}
            return [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items()]
    prefix = {"${args_no_hyphens}": "", "${args_append_hydra}": "+", "${args_override_hydra}": "++"}.get(macro, "--")
    return [f"{prefix}{name}={value}" for name, value in parameters.items()]


def omitted(command: Sequence[str], parameters: Mapping[str, Any]) -> list[str]:
    """Return options for the parameters that the command's macro does not pass on.

    Under W&B's agent `harness run` takes them from the agent's file of parameters.
    """
    if "${args_json_file}" in command and "plugin" in parameters:  # a file may not name the code that runs
        return [f"--plugin={parameters['plugin']}"]
    if not any(part.startswith("${args") for part in command):
        return arguments(parameters)
    if "${args_no_boolean_flags}" not in command:
        return []
    return [f"--{name}=False" for name, value in parameters.items() if value is False]


def start_of_run(command: Sequence[str]) -> int | None:
    """Return the index of what `run` follows, in `harness run` or `python -m harness run`; None where there is none."""
    for index, part in enumerate(command[:-1]):
        path = Path(part)
        is_harness = path.name in ("harness", "harness.exe")
        is_module_file = path.name == "__main__.py" and path.parent.name == "harness"
        if (is_harness or is_module_file) and command[index + 1] == "run":
            return index
    return None
