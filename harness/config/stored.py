"""The settings that a run has stored in its `config.yaml`, read as the version that wrote them meant them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.config.settings import Config, coerce
from harness.utils.errors import HarnessError

WHOLE = 60  # settings, of which every version has written more, and recipes have fewer


def is_whole(values: Mapping[str, Any]) -> bool:
    """Return whether a file has the settings of a run, which stores every one, rather than a recipe, which has a few."""
    return len(values) >= WHOLE


def with_former_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored settings of a run with those that did not exist when it was written, where their default is another.

    Before there was `bias_decay`, the weight decay applied to all parameters, also of a model with pretrained weights.
    """
    is_former = is_whole(values) and "bias_decay" not in values
    starts_from_weights = is_former and (coerce("pretrained", values.get("pretrained", False)) or values.get("init"))
    return {**values, **({"bias_decay": True} if starts_from_weights else {})}


def read_stored_config(path: Path) -> Config:
    """Return the settings in the `config.yaml` of a run.

    Raises:
        HarnessError: the file cannot be read, or a value is not allowed.
        TypeError: it has a name that is no setting.
    """
    return Config(**with_former_defaults(yaml_io.read_yaml(path)))


def stored_config_or_none(path: Path) -> Config | None:
    """Return the settings in the `config.yaml` of a run; None where they cannot be read."""
    try:
        return read_stored_config(path)
    except (HarnessError, TypeError):
        return None
