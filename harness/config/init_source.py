"""The model that the weights of `init` belong to, as far as plain files beside them name it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.config.names import DECIDED_ARGUMENTS
from harness.config.settings import coerce
from harness.utils.errors import UsageError
from harness.utils.files import read_json
from harness.utils.plain import sub_mapping

HUB = "hf-hub:"  # what a name of the Hugging Face Hub begins with, as timm writes it
FOLDER = "local-dir:"  # and a folder
# Where a folder has its weights: that of a run, of a run's checkpoints or an export, of another program for the Hub.
WEIGHT_FILES = ("checkpoints/model.safetensors", "model.safetensors", "pytorch_model.bin")


def path_of(init: str) -> Path | None:
    """Return the file or folder that `init` names; None for a name of the Hub."""
    return None if init.startswith(HUB) else Path(init.removeprefix(FOLDER)).expanduser()


def model_of(init: str) -> dict[str, Any]:
    """Return the settings of the model that the weights belong to: `model`, `model_args`, and `plugin` where it has one.

    Empty where nothing beside the weights names it. Only plain files are read, and nothing of them is trusted: the settings
    are checked as those of any recipe.

    Raises:
        UsageError: they make no sense.
    """
    path = path_of(init)
    if path is None:
        return {"model": init, "model_args": {}}
    folder = path if path.is_dir() else path.absolute().parent
    for place in (folder, folder / "checkpoints"):
        name = path.stem if path.suffix == ".safetensors" and not path.is_dir() else "model"
        facts = read_json(place / f"{name}.json")
        if "config" in facts:
            return _of_run(sub_mapping(facts, "config"), sub_mapping(facts, "architecture"), init)
    run = folder if path.is_dir() else folder.parent if folder.name == "checkpoints" else None
    if run is not None and (run / "config.yaml").is_file() and not (run / "config.yaml").is_symlink():
        return _of_run(yaml_io.read_yaml(run / "config.yaml"), {}, init)  # it has not finished
    exported = read_json(folder / "config.json")
    if isinstance(exported.get("architecture"), str) and (path.is_dir() or path.name in WEIGHT_FILES):
        return _checked(exported["architecture"], sub_mapping(exported, "model_args"), (), init)
    return {}


def _of_run(config: Mapping[str, Any], architecture: Mapping[str, Any], init: str) -> dict[str, Any]:
    """Return the settings of the model of a run; that of a folder or the Hub is built by its architecture alone."""
    name, arguments = str(config.get("model", "")), sub_mapping(config, "model_args")
    if ":" in name and isinstance(architecture.get("name"), str):
        name, arguments = architecture["name"], {**sub_mapping(architecture, "args"), **arguments}
    return _checked(name, arguments, config.get("plugin", ()), init) if name else {}


def _checked(name: str, arguments: Mapping[str, Any], plugins: Any, init: str) -> dict[str, Any]:
    try:
        plain = {key: value for key, value in arguments.items() if key not in DECIDED_ARGUMENTS}
        settings: dict[str, Any] = {"model": coerce("model", name), "model_args": coerce("model_args", plain)}
        return {**settings, **({"plugin": modules} if (modules := coerce("plugin", plugins)) else {})}
    except UsageError as error:
        raise UsageError(f"init={init!r} names a model that makes no sense ({error}); set --model") from None
