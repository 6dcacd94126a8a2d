"""The `command:` of a sweep, as W&B's agent reads it, for commands that start `harness run`."""

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
SHOWN = '["${env}", "${interpreter}", -m, harness, run, "${args}"]'
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
VARIABLE = re.compile(r"\$\{envvar:([A-Za-z0-9_]*)\}")
PYTHON = re.compile(r"python[0-9.]*(\.exe)?")


def check(command: Any, program: Any) -> tuple[str, ...]:
    """The command as a tuple of words.

    Raises:
        UsageError: it does not start `harness run`, or has a macro that `harness run` can not read.
    """
    words = DEFAULT if command is None else command
    if (
        isinstance(words, str)
        or not isinstance(words, Sequence)
        or not all(isinstance(word, str | int | float) for word in words)
    ):
        raise UsageError(f"command: need a list of words, such as {SHOWN}")
    words = tuple(str(program) if word == "${program}" and program else str(word) for word in words)
    for word in words:
        if word.startswith("${") and word not in MACROS and not VARIABLE.match(word):
            raise UsageError(f"command: there is no macro {word!r}{did_you_mean(word, MACROS)}")
    if unread := [
        word
        for word in words
        if word.startswith("${args") and word not in ("${args}", "${args_no_equals}", "${args_no_boolean_flags}")
    ]:
        raise UsageError(f"command: `harness run` does not read {unread[0]}; use ${{args}}")
    if _start(words) is None:
        shown = " ".join(words)
        raise UsageError(
            f'command: `{shown}` does not start `harness run`, which is what `harness sweep` runs; write {SHOWN}, or use `wandb sweep` and `wandb agent`'
        )
    start = _start(words)
    assert start is not None
    own = [word for word in words[start + 2 :] if not word.startswith("${args")]
    if own:
        raise UsageError(
            f"command: {own[0]!r} is a setting outside the parameters, so the search and best.yaml would not know of it; write it under parameters as a `value:`"
        )
    begin = next(word for word in words if word != "${env}")
    if begin not in ("harness", "${interpreter}") and not PYTHON.fullmatch(begin) and shutil.which(begin) is None:
        raise UsageError(f"command: there is no program {begin!r} here")
    if not any(word.startswith("${args") for word in words):
        raise UsageError("command: ${args} is missing, so no trial would get its parameters")
    return words


def is_plain(command: Sequence[str]) -> bool:
    """Return whether a command is `harness run` with its parameters and nothing else, so that a trial may be forked."""
    parts = [part for part in command if part not in ("${env}", "${args}")]
    return parts in PLAIN and command[-1] == "${args}"


def fill(words: Sequence[str], parameters: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    """The command line of one trial, in the environment that this process runs in."""
    told: list[str] = []
    start = _start(words)
    assert start is not None  # checked when the sweep was read
    for place, word in enumerate(words):
        if word == "${env}":
            continue  # the environment is handed over as it is
        if place == start and word == "harness" and (place == 0 or words[place - 1] != "-m"):
            told += [sys.executable, "-m", "harness"]
        elif word == "${interpreter}" or (place == 0 and PYTHON.fullmatch(word)):
            told.append(sys.executable)
        elif word.startswith("${args"):
            told += arguments(parameters, word)
        else:
            told.append(VARIABLE.sub(lambda found: environment.get(found[1], found[1]), word))
    return told


def arguments(parameters: Mapping[str, Any], macro: str = "${args}") -> list[str]:
    """The parameters as W&B's agent passes them on."""
    told: list[str] = []
    for name, value in parameters.items():
        if macro == "${args_no_equals}":
            told += [f"--{name}", str(value)]
        elif macro == "${args_no_boolean_flags}" and isinstance(value, bool):
            told += [f"--{name}"] if value else []
        else:
            told.append(f"--{name}={value}")
    return told


def _start(words: Sequence[str]) -> int | None:
    """The place of the word after which `run` comes: `harness run`, or `python -m harness run`; None: it does neither."""
    for place, word in enumerate(words[:-1]):
        if Path(word).name in ("harness", "harness.exe") and words[place + 1] == "run":
            return place
        if Path(word).name == "__main__.py" and Path(word).parent.name == "harness" and words[place + 1] == "run":
            return place
    return None
