"""The model of a run, by its timm name: ours, timm's own, or one that a plug-in registers."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, split_model_name_tag
from torch import nn

from harness.config.settings import Config
from harness.data.preprocess import Preprocess
from harness.models import cifar_resnet
from harness.utils.errors import DataError, UsageError, did_you_mean

OURS = "cifar_resnet"  # timm's name for the module that our models are defined in
CLASSES = {"custom_resnet": cifar_resnet.CustomResNet, "resnet18_cifar": cifar_resnet.CifarResNet}

# Arguments of timm.create_model that another setting decides, or that the rest of a run could not live with.
TAKEN = {
    "num_classes": "set --classes",
    "pretrained": "set --pretrained True",
    "features_only": "a run needs a classifier",
    "in_chans": "images are RGB: 3 channels",
    "device": "set --device",
    "dtype": "set --precision",
}


def create_model(config: Config, classes: int) -> nn.Module:
    """The model `config.model` with random or pretrained weights and one output per class, on the CPU.

    Raises:
        UsageError: there is no such model or plug-in, an argument does not suit it, or it has no pretrained weights.
        DataError: the pretrained weights could not be fetched or read.
    """
    import_plugins(config.plugin)
    name, arguments = config.model, config.model_args
    for word, remedy in TAKEN.items():
        if word in arguments:
            raise UsageError(f"model_args can not hold {word}; {remedy}")
    check_name(name)
    if config.pretrained:
        _check_weights(name)
    try:
        return timm.create_model(name, pretrained=config.pretrained, num_classes=classes, **arguments)
    except Exception as error:
        fetched = config.pretrained or ":" in name
        if not (fetched and isinstance(error, OSError)) and (told := _argument_at_fault(name, arguments, error)):
            raise UsageError(told) from error
        if fetched:
            remedy = "set --pretrained False" if config.pretrained else "choose a model of harness models"
            raise DataError(f"model {name!r} can not be loaded: {_line(error)}; {remedy}") from error
        raise


def import_plugins(modules: Iterable[str]) -> None:
    """Import modules that may register models with timm; those of the current folder are found too.

    Raises:
        UsageError: one can not be imported.
    """
    for module in modules:
        if module.endswith(".py") or "/" in module or os.sep in module:
            raise UsageError(f"plugin {module!r} must be a module's name, such as my_models, not a file")
        here = os.getcwd()
        if here not in sys.path:
            sys.path.insert(0, here)
        importlib.invalidate_caches()  # the file may be younger than Python's list of the folder
        try:
            importlib.import_module(module)
        except Exception as error:
            raise UsageError(f"can not import plugin {module!r}: {type(error).__name__}: {_line(error)}") from error


def check_name(name: str) -> None:
    """Refuse what `timm.create_model` would not know, with the nearest name.

    Raises:
        UsageError: no such model, tag, or folder of a `local-dir:` model.
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


def _check_weights(name: str) -> None:
    if ":" in name:
        return
    cfg = get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise UsageError(f"model {name!r} has no pretrained weights; set --pretrained False")


def _argument_at_fault(name: str, arguments: dict[str, Any], error: Exception) -> str:
    """What was wrong with `model_args`, or nothing when they can not be at fault."""
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unexpected and unexpected[1] in arguments:
        known = list(inspect.signature(CLASSES[name]).parameters) if name in CLASSES else []
        return (
            f"model {name!r} has no argument {unexpected[1]!r}{did_you_mean(unexpected[1], known)}; change --model-args"
        )
    if unexpected and isinstance(error, TypeError):
        return f"model {name!r} must take {unexpected[1]!r}: timm calls a registered model with it; add **kwargs"
    if not arguments:
        return ""
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"model {name!r} can not be made with {given}: {_line(error)}"


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def count_parameters(model: nn.Module) -> int:
    """Numbers that are learnt; a parameter that several layers share counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def model_names(filter: str = "") -> list[tuple[str, bool]]:
    """Models that can be trained and whether each is ours, ours first.

    Args:
        filter: part of a name, or a pattern with `*`.
    """
    pattern = filter if "*" in filter or not filter else f"*{filter}*"
    ours = set(timm.list_models(module=OURS))
    found = [(name, name in ours) for name in timm.list_models(pattern)]
    return sorted(found, key=lambda item: not item[1])


def timm_input(preprocess: Preprocess) -> dict[str, Any]:
    """What a model takes, in timm's words."""
    return {
        "input_size": (3, preprocess.size, preprocess.size),
        "mean": preprocess.mean,
        "std": preprocess.std,
        "crop_pct": preprocess.crop_pct,
        "interpolation": preprocess.interpolation,
    }


def write_timm_config(model: nn.Module, classes: Sequence[str], preprocess: Preprocess, path: Path) -> bool:
    """Write the `config.json` that makes a folder with `model.safetensors` one that stock timm loads.

    False: the model is none of timm's making, and timm could not rebuild it.
    """
    from timm.models._hub import save_config_for_hf  # private, but what timm.models.save_for_hf is made of

    if not hasattr(model, "pretrained_cfg") or not hasattr(model, "_model_args"):
        return False
    about = {"label_names": list(classes), "num_classes": len(classes)}
    try:
        save_config_for_hf(model, str(path), model_config=about, data_config=timm_input(preprocess))
    except (AttributeError, KeyError, TypeError, ValueError):  # a plug-in's configuration that timm can not write
        path.unlink(missing_ok=True)
        return False
    return True


def parameter_count_of(name: str) -> int:
    """How many parameters a timm model has as it is registered; built without memory for its weights."""
    with torch.device("meta"):
        return count_parameters(timm.create_model(name))


def is_ours(model: nn.Module) -> bool:
    """Whether the model, compiled or not, is one of this package's."""
    return isinstance(getattr(model, "_orig_mod", model), tuple(CLASSES.values()))


def with_sync_batchnorm(model: nn.Module) -> nn.Module:
    """The model with its batch normalisation over all processes (timm's combined layers too); same weights and names."""
    from timm.layers import convert_sync_batchnorm

    converted: nn.Module = convert_sync_batchnorm(model)
    return converted
