"""What a run has chosen for settings that were `auto`: kept in its directory beside the numbers in `config.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config.automatic import Choice
from harness.config.settings import setting_fields
from harness.utils.files import read_json, write_json

CHOSEN = "automatic.json"


def write_choices(folder: Path, choices: Mapping[str, Choice]) -> None:
    """Write the choices of a run into its directory; nothing where there are none."""
    if choices:
        write_json(folder / CHOSEN, {name: vars(choice) for name, choice in choices.items()})


def read_choices(folder: Path) -> dict[str, Choice]:
    """Return the choices of a run; empty where it made none, or the file is damaged."""
    choices = {}
    for name, entry in read_json(folder / CHOSEN).items():
        is_complete = isinstance(entry, Mapping) and {"value", "reason", "requested"} <= entry.keys()
        if is_complete and name in setting_fields():
            choices[name] = Choice(entry["value"], str(entry["reason"]), entry["requested"])
    return choices


def requested_values(folder: Path) -> dict[str, Any]:
    """Return setting -> what was requested before the choices were made."""
    return {name: choice.requested for name, choice in read_choices(folder).items()}
