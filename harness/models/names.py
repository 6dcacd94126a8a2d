"""Names of models: which ones timm knows."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg, split_model_name_tag

from harness.utils.errors import UsageError, did_you_mean
from harness.utils.files import read_json
from harness.utils.plain import sub_mapping
from harness.utils.plugins import import_installed_plugins, import_plugins

SMALL_SIZES = (
    "18",
    "_b0",
    "_tiny",
    "_small",
    "_nano",
)  # of a family's models: what may follow its name; the likeliest first


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
        raise UsageError(f"model {name!r} looks like a path; {_remedy_for_path(rest or name)}")
    base, tag = split_model_name_tag(name)
    if not timm.is_model(base):
        raise UsageError(f"there is no model {base!r}{_nearest(base)}")
    tags = timm.list_models(f"{base}.*", include_tags=True)
    if tag and name not in tags:
        known = [each.removeprefix(f"{base}.") for each in tags]
        need = (
            f"need one of {', '.join(known[:5])}{' ...' * (len(known) > 5)}, or leave the tag out"
            if known
            else "leave the tag out"
        )
        raise UsageError(f"model {base!r} has no weights {tag!r}{did_you_mean(name, tags)}; {need}")


def _nearest(base: str) -> str:
    """Return a small model of the family that a name is the beginning of, else the nearest name, and where to look."""
    family = timm.list_models(f"{base}*") if len(base) > 2 and not set("*?[]") & set(base) else []
    if len(family) < 2:
        return f"{did_you_mean(base, timm.list_models())}; see harness models"
    sizes = (re.compile(rf"{size}(_.*)?" if size.startswith("_") else size) for size in SMALL_SIZES)
    small = next((name for size in sizes for name in family if size.fullmatch(name.removeprefix(base))), "")
    return (
        f"{f' (did you mean {small!r}?)' if small else ''}; {len(family)} models begin with it: harness models {base}"
    )


def _remedy_for_path(path: str) -> str:
    """Return what to write in place of a folder or of the name of a repository of the Hugging Face Hub."""
    if Path(path).expanduser().exists() or path.count("/") != 1 or path.startswith((".", "~", "/")) or "\\" in path:
        return f"write local-dir:{path} for a folder that timm or harness export has written"
    owner, _, repository = path.partition("/")
    if owner == "timm":
        return f"write {repository}, or hf-hub:{path}"
    nearest = did_you_mean(repository.replace("-", "_").lower(), timm.list_models())
    return f"timm loads repositories of its own format, such as hf-hub:timm/resnet18.a1_in1k, and hf-hub:{path} only if it has that{nearest}"


def input_side(name: str) -> int:
    """Return the side of a model's default input in pixels, without building it; 0 where that is not known.

    A model of the Hugging Face Hub is asked for there.
    """
    source, colon, rest = name.partition(":")
    if not colon:
        try:
            cfg = get_pretrained_cfg(name)
        except RuntimeError:  # there are no weights of that name, which building the model says
            return 0
        return 0 if cfg is None else int(cfg.input_size[-1])
    try:
        exported = read_json(Path(rest) / "config.json") if source == "local-dir" else _hub_config(rest)
        return int(sub_mapping(exported, "pretrained_cfg")["input_size"][-1])
    except (IndexError, KeyError, TypeError, ValueError):
        return 0


@functools.cache  # several rules ask, and where there is no network each question would take its time
def _hub_config(name: str) -> dict[str, Any]:
    """Return timm's configuration of a model of the Hub; empty where it cannot be had: building the model says why."""
    from timm.models._hub import load_model_config_from_hf

    try:
        return {"pretrained_cfg": load_model_config_from_hf(name)[0]}
    except Exception:  # noqa: BLE001 - the network and the library raise anything
        return {}
