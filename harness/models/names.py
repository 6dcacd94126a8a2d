"""Names of models: which ones timm knows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import timm
from timm.models import split_model_name_tag

from harness.utils.errors import UsageError, did_you_mean
from harness.utils.plugins import import_installed_plugins, import_plugins


def import_model(name: str, modules: Iterable[str]) -> None:
    """Import the plug-ins `modules`, and the installed ones too where none of them or of timm has a model of that name.

    Raises:
        UsageError: one of the modules cannot be imported, or is named by a file only.
    """
    import_plugins(modules)
    if not timm.is_model(split_model_name_tag(name)[0]) and not {":", "/"} & set(name):
        import_installed_plugins()


def check_name(name: str) -> None:
    """Refuse a name that `timm.create_model` does not know, and suggest the nearest.

    Raises:
        UsageError: there is no such model, tag, or folder of a `local-dir:` model.
    """
    source, colon, rest = name.partition(":")
    if colon and source in ("hf-hub", "local-dir") and rest:
        if source == "local-dir" and not (Path(rest) / "config.json").is_file():
            raise UsageError(f"model {name!r} needs a folder with a config.json, and {rest!r} is none")
        return
    if colon or "/" in name or "\\" in name:
        raise UsageError(f"model {name!r} looks like a path; write hf-hub:{rest or name} or local-dir:{rest or name}")
    base, tag = split_model_name_tag(name)
    if not timm.is_model(base):
        raise UsageError(f"there is no model {base!r}{did_you_mean(base, timm.list_models())}; see harness models")
    tags = timm.list_models(f"{base}.*", include_tags=True)
    if tag and name not in tags:
        raise UsageError(f"model {base!r} has no weights {tag!r}{did_you_mean(name, tags)}")
