"""Settings as words of a command line, in each form in which W&B's agent writes the parameters of a sweep.

`--lr-max=0.1` and `--lr-max 0.1` (`${args}`, `${args_no_equals}`), `lr_max=0.1` (`${args_no_hyphens}`), `+lr_max=0.1` and
`++lr_max=0.1` (for Hydra), a JSON object (`${args_json}`) or the path of a file with one (`${args_json_file}`). A nested
parameter that is no setting is a group of settings: `optim={'lr_max': 0.1}` is `lr_max=0.1`.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.config.settings import BOOLEANS, canonical_name, value_alone
from harness.utils.errors import UsageError

LETTERS = {"batch_size": "-b", "recipe": "-c"}
GROUP_DEPTH = 8  # of groups of settings inside each other


def read_words(words: Sequence[str]) -> dict[str, Any]:
    """Return the settings that words of a command line give: setting -> value.

    Raises:
        UsageError: a word is no setting, or two words are one setting with different values.
    """
    given: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        for key, value in _read_word(word, rest).items():
            if key in given and str(given[key]) != str(value):
                raise UsageError(f"{word!r}: {key} is given twice, as {given[key]!r} and {value!r}; keep one of them")
            given[key] = value
    return given


def _read_word(word: str, rest: list[str]) -> dict[str, Any]:
    """Return the settings of one word; the value of an option is taken from the words behind it where it has none."""
    if word.lstrip().startswith("{"):
        return settings_of(_mapping(word, word))
    if word.startswith("-"):
        return settings_of(_read_option(word, rest))
    key, equals, text = word.lstrip("+").partition("=")
    if equals and key:
        return settings_of({key: text})
    if Path(word).suffix == ".json" and Path(word).is_file():
        values = settings_of(yaml_io.read_yaml(word))  # JSON is YAML
        if (
            values.pop("plugin", None) and "WANDB_SWEEP_PARAM_PATH" not in os.environ
        ):  # else the agent's own file has it
            raise UsageError(f"{word}: it names a plugin, whose code would run; if you trust it, give --plugin NAME")
        return values
    raise UsageError(
        f"unexpected argument {word!r}; settings are options such as --epochs 3, or words such as epochs=3"
    )


def _read_option(word: str, rest: list[str]) -> dict[str, Any]:
    name, equals, text = word.partition("=")
    letter = {letter: setting for setting, letter in LETTERS.items()}.get(word[:2])
    if letter and not word.startswith("--"):
        name, equals, text = letter, "=" if word[2:] else "", word[2:].removeprefix("=")
    key = name.lstrip("-")
    if equals:
        return {key: text}
    following = rest[0] if rest else ""
    if key.lower().startswith("no-") and not _is_setting(key):
        setting = canonical_name(key[3:])
        if value_alone(setting):
            return {setting: "false"}
    stands_alone = _is_setting(key) and value_alone(canonical_name(key))
    if stands_alone and following.lower() not in (*BOOLEANS, "auto", stands_alone):
        return {key: stands_alone}
    if not rest:
        raise UsageError(f"{word}: its value is missing")
    return {key: rest.pop(0)}


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values under the names of their settings, those of groups among them.

    Raises:
        UsageError: a name is no setting and no group, or two names are one setting.
    """
    given: dict[str, Any] = {}
    for key, value in ungrouped(values).items():
        name = canonical_name(key)
        if name in given:
            raise UsageError(f"{name} is given twice; keep one of them")
        given[name] = value
    return given


def ungrouped(values: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Return values with each group replaced by the values in it; other values keep their spelling.

    A group is a mapping, or the text of one as an agent passes it on, under a name that is no setting.

    Raises:
        UsageError: two groups have a value of one name, or groups stand in each other too deeply.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = None if _is_setting(key) else _as_group(value)
        if inner is not None and depth >= GROUP_DEPTH:
            raise UsageError(f"{key}: groups of settings are nested deeper than {GROUP_DEPTH} levels")
        for name, part in ({key: value} if inner is None else ungrouped(inner, depth + 1)).items():
            if name in flat:
                raise UsageError(f"{name} is given twice, once in {key}; keep one of them")
            flat[name] = part
    return flat


def without_groups(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with each option that is a group replaced by the options in it."""
    result: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.partition("=")
        is_option = word.startswith("--") and len(name) > 2 and not _is_setting(name)
        value = text if equals else rest[0] if is_option and rest else ""
        group = _as_group(value) if is_option and value.startswith("{") else None
        if group is None:
            result.append(word)
            continue
        if not equals:
            rest.pop(0)
        result += [f"--{key}={part}" for key, part in ungrouped(group).items()]
    return result


def _is_setting(name: str) -> bool:
    try:
        canonical_name(str(name).lstrip("-"))
    except UsageError:
        return False
    return True


def _as_group(value: Any) -> Mapping[str, Any] | None:
    """Return a mapping, or what a text that looks like one says; None for any other value."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = _mapping(value, value)
        except UsageError:
            return None
    return value if isinstance(value, Mapping) else None


def _mapping(text: str, word: str) -> Mapping[str, Any]:
    """Return a mapping from its text: JSON, or the form in which Python writes a dictionary.

    Raises:
        UsageError: it is neither.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
    if not isinstance(value, Mapping):
        raise UsageError(f'{word[:80]!r}: need a JSON object such as {{"epochs": 3}}')
    return {str(key): part for key, part in value.items()}
