"""The functions of plug-ins that a setting names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias

from harness.config.settings import no_choice, setting_fields
from harness.utils.errors import UsageError
from harness.utils.registry import find_registered, registered_names

Setting: TypeAlias = Literal["loss", "schedule"]
REGISTERED: Mapping[str, Setting] = {"loss": "loss", "schedule": "schedule"}  # the settings that name such functions


def registered_function(setting: Setting, name: str, modules: Iterable[str] = ()) -> Callable[..., Any] | None:
    """Return the function that a plug-in registers under the value of a setting; None for a value of `harness`.

    Args:
        modules: plug-ins of `--plugin`.

    Raises:
        UsageError: there is no such value; the message names the nearest.
    """
    if name in setting_fields()[setting].metadata["choices"]:
        return None
    function: Callable[..., Any] | None = find_registered(setting, name, modules)
    if function is None:
        raise UsageError(no_choice(setting, name, registered_names(setting)))
    return function
