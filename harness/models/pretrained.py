"""What a model brings along from a folder or the Hugging Face Hub: its architecture, and the order of its classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.config.names import DECIDED_ARGUMENTS
from harness.utils.errors import UsageError
from harness.utils.plain import json_text, parse_json
from harness.utils.text import escape_unprintable

log = logging.getLogger(__name__)


def architecture_of(model: nn.Module, name: str) -> dict[str, Any] | None:
    """Return the name and the arguments with which timm builds a model again, where `name` is a folder or a repository.

    None for a model that its name alone describes, and for one that does not say how timm builds it.
    """
    cfg: Any = getattr(model, "pretrained_cfg", None)
    arguments = getattr(model, "_model_args", None)
    if (
        ":" not in name
        or not isinstance(cfg, Mapping)
        or "architecture" not in cfg
        or not isinstance(arguments, Mapping)
    ):
        return None
    plain = {key: value for key, value in arguments.items() if key not in DECIDED_ARGUMENTS}
    return {"name": str(cfg["architecture"]), "args": parse_json(json_text(plain))}


def match_classes(model: nn.Module, classes: Sequence[str]) -> bool:
    """Put the outputs of a pretrained model into the order of `classes`, by the names that its configuration gives them.

    Outputs without a class of the data, as `--classes` may ask for, come last. A model without names, or whose last layer
    is new since its weights had another number of outputs, is left as it is. Where the names do not fit the outputs, or
    the data has classes that they do not name, the last layer is initialised anew.

    Returns:
        Whether the last layer is new, and not that of the pretrained weights.

    Raises:
        UsageError: the order differs, and the last layer cannot be rearranged.
    """
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    names = label_names(cfg)
    outputs = int(getattr(model, "num_classes", len(classes)))
    has_other_size = cfg.get("num_classes", len(names) or outputs) != outputs
    if not names or has_other_size:
        return has_other_size
    is_new = len(names) != outputs or len(set(names)) < len(names) or not set(classes) <= set(names)
    if is_new:
        log.warning(
            "the pretrained model has other classes (%s) than the data (%s): its last layer is initialised anew",
            ", ".join(names[:3]), ", ".join(list(classes)[:3]),
        )  # fmt: skip
        model.reset_classifier(outputs)  # type: ignore[operator]
    elif (ordered := output_order(names, classes)) != names:
        reorder_outputs(model, names, ordered)
    # The exported configuration must not keep names in their former order.
    model.pretrained_cfg = {key: value for key, value in cfg.items() if not key.startswith("label_")}  # type: ignore[assignment]
    return is_new


def adapt_input(model: nn.Module, weights: Mapping[str, Tensor], channels: int) -> tuple[dict[str, Tensor], str]:
    """Return weights whose first convolution takes images of `channels` channels, and in words what was done; empty: nothing.

    It is timm's rule: for one channel the filters of all are added, for others they are repeated and scaled.

    Args:
        model: that takes such images; its configuration names the first convolution, as those of timm's models do.
    """
    from timm.models import adapt_input_conv

    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    adapted, modules, done = dict(weights), dict(model.named_modules()), ""
    for name in _as_tuple(cfg.get("first_conv") or ()):
        module, weight = modules.get(name), adapted.get(f"{name}.weight")
        if not isinstance(module, nn.Conv2d) or weight is None or weight.ndim != 4 or module.in_channels % channels:
            continue
        per_channel = module.in_channels // channels  # more than one where the stem moves pixels into channels
        source, rest = divmod(weight.shape[1], per_channel)
        if rest or source in (0, channels) or weight.shape[2:] != module.weight.shape[2:] or module.groups != 1:
            continue
        try:
            adapted[f"{name}.weight"] = adapt_input_conv(channels, weight, base_chans=source)
        except NotImplementedError:  # the shapes are reported as those of other weights
            continue
        done = f"{name} adapted from {source} to {channels} channel{'s' * (channels != 1)}"
    return adapted, done


def output_order(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return the names of the outputs of a model in the order of `classes`; those that are none of them come last."""
    return [*classes, *(name for name in names if name not in set(classes))]


def reorder_outputs(model: nn.Module, names: Sequence[str], ordered: Sequence[str]) -> None:
    """Put the outputs of a model, whose names are `names`, into another order.

    Raises:
        UsageError: the last layer cannot be rearranged.
    """
    order = torch.tensor([list(names).index(name) for name in ordered])
    for layer in _classifiers(model, len(names)):
        with torch.no_grad():
            for parameter in (layer.weight, layer.bias):
                if isinstance(parameter, Tensor):
                    parameter.copy_(parameter[order].clone())


def label_names(cfg: Mapping[str, Any]) -> list[str]:
    """Return the names of the outputs in their order; none where the configuration has none, or has gaps."""
    names = cfg.get("label_names")
    if isinstance(names, Mapping):
        try:
            by_index = {int(index): name for index, name in names.items()}
            names = [by_index[index] for index in range(len(by_index))]
        except (KeyError, TypeError, ValueError):
            return []
    return [escape_unprintable(str(name)) for name in names] if isinstance(names, list | tuple) else []


def is_in(name: str, modules: Sequence[str]) -> bool:
    """Return whether a name is one of these modules or parameters, or lies below one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def classifier_names(model: nn.Module) -> list[str]:
    """Return the names of the modules that make the logits; empty where the model does not name them, as timm's do."""
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    names = cfg.get("classifier") or ()
    modules = dict(model.named_modules())
    listed = [name for name in ([names] if isinstance(names, str) else names) if name in modules]
    if listed or not callable(get_classifier := getattr(model, "get_classifier", None)):
        return listed
    made = get_classifier()  # several for a distilled model
    return [name for name, module in modules.items() if any(module is each for each in _as_tuple(made))]


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _classifiers(model: nn.Module, classes: int) -> list[Any]:
    """Return the layers that make the logits: linear, or convolutions of one pixel."""
    modules = dict(model.named_modules())
    layers = [modules[name] for name in classifier_names(model)]
    if not layers or any(
        not isinstance(layer, nn.Linear | nn.Conv2d) or len(layer.weight) != classes for layer in layers
    ):
        raise UsageError(
            "the pretrained model has the classes of the data in another order, and its last layer cannot be rearranged; rename the class folders, or leave --pretrained and --init out"
        )
    return layers
