"""Create models by their timm names: those of harness, timm's own, and those that a plug-in registers."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import timm
import torch
from torch import Tensor, nn

from harness.config.names import MODEL_ARGUMENTS
from harness.config.settings import Config
from harness.data.dataset import Dataset
from harness.data.image_io import RGB
from harness.data.preprocess import Preprocess, sample_images
from harness.models import cifar_resnet, speedrun_cnn
from harness.models.available_weights import LONGEST_DOWNLOAD, has_weights, why_no_config, why_no_weights
from harness.models.freezing import frozen_names, set_trained
from harness.models.names import check_name, import_model
from harness.models.outputs import return_logits_in_evaluation
from harness.models.pretrained import match_classes
from harness.models.prior_bias import set_prior_bias
from harness.models.whitening import whiten_first_layer
from harness.utils.errors import DataError, UsageError, did_you_mean
from harness.utils.files import write_atomically
from harness.utils.plain import sub_mapping
from harness.utils.plugins import import_installed_plugins, import_plugins

HARNESS_MODELS = {
    "custom_resnet": cifar_resnet.CustomResNet,
    "resnet18_cifar": cifar_resnet.CifarResNet,
    "speedrun_cnn": speedrun_cnn.SpeedrunCNN,
}

Origin: TypeAlias = Literal["harness", "plugin", "timm"]  # who defines a model
ORIGINS: tuple[Origin, ...] = get_args(Origin)
CLASS_MAP = "class_map.txt"
OTHER_MODELS = "choose a model of harness models, or local-dir:FOLDER for one that you have"
OTHER_WEIGHTS = "set --init RUN_OR_FILE to start from weights that you have, or --pretrained False to start from none"

# Arguments of timm.create_model that another setting decides, or that do not suit a run -> remedy.
REFUSED_ARGUMENTS = {
    "num_classes": "set --classes",
    "pretrained": "set --pretrained True",
    "features_only": "a run needs a classifier",
    "in_chans": "set --in-chans",
    "device": "set --device",
    "dtype": "set --precision",
}


def create_model(config: Config, classes: int) -> nn.Module:
    """Return the model `config.model` with random or pretrained weights and one output per class, on the CPU.

    Raises:
        UsageError: there is no such model or plug-in, it refuses an argument, or it has no pretrained weights.
        DataError: the pretrained weights could not be downloaded or read.
    """
    import_model(config.model, config.plugin)
    name, given = config.model, config.model_args
    for argument, remedy in REFUSED_ARGUMENTS.items():
        if argument in given:
            raise UsageError(f"model_args cannot hold {argument}; {remedy}")
    settings = {MODEL_ARGUMENTS[setting]: getattr(config, setting) for setting in MODEL_ARGUMENTS}
    arguments = {**given, **{argument: value for argument, value in settings.items() if value is not None}}
    if config.in_chans != RGB:
        arguments["in_chans"] = config.in_chans
    check_name(name)
    if config.pretrained:
        _check_weights(name, arguments)
    elif reason := why_no_config(name, download_seconds=LONGEST_DOWNLOAD):
        raise DataError(f"model {name!r} cannot be loaded: {reason}; {OTHER_MODELS}")
    try:
        model = timm.create_model(name, pretrained=config.pretrained, num_classes=classes, **arguments)
        return_logits_in_evaluation(model)
        return model
    except Exception as error:
        needs_download = config.pretrained or ":" in name
        if not (needs_download and isinstance(error, OSError)) and (message := _argument_error(name, arguments, error)):
            raise UsageError(message) from error
        if needs_download:
            remedy = OTHER_WEIGHTS if config.pretrained else OTHER_MODELS
            raise DataError(f"model {name!r} cannot be loaded: {_first_line(error)}; {remedy}") from error
        raise


def initialise_for(model: nn.Module, config: Config, data: Dataset, preprocess: Preprocess) -> None:
    """Give a new model what its initialisation takes from the data: the order of its classes, biases, and whitening filters.

    Parameters that `freeze` names are not trained afterwards.

    Raises:
        UsageError: the model does not fit the settings or the classes.
    """
    has_new_head = match_classes(model, data.classes) if config.pretrained else True
    if config.is_multilabel and config.prior_bias and has_new_head:
        set_prior_bias(model, config, data)
    if config.gradient_checkpointing:
        _checkpoint_gradients(model, config.model)
    if config.whitening:
        whiten_first_layer(model, sample_images(data.train, preprocess))
    set_trained(model, frozen_names(model, config.freeze), False)


def _checkpoint_gradients(model: nn.Module, name: str) -> None:
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, TypeError):  # timm's way to say that it is not supported
        raise UsageError(
            f"gradient_checkpointing=True, but {name} has no set_grad_checkpointing as timm's models have; leave --gradient-checkpointing out, or use --grad-accumulation"
        ) from None


def _check_weights(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse a model without pretrained weights, and at once where timm would try for a minute to download them."""
    if not has_weights(name):
        raise UsageError(f"model {name!r} has no pretrained weights; {OTHER_WEIGHTS}")
    if arguments.keys() & {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "checkpoint_path"}:
        return  # timm's own ways to name other weights and places
    if reason := why_no_weights(name, download_seconds=LONGEST_DOWNLOAD):
        raise DataError(f"model {name!r} cannot be loaded: {reason}; {OTHER_WEIGHTS}")


def _argument_error(name: str, arguments: dict[str, Any], error: Exception) -> str:
    """Return what is wrong with `model_args`; empty when they are not the cause of the error."""
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unexpected and unexpected[1] in arguments:
        settings = {argument: setting for setting, argument in MODEL_ARGUMENTS.items()} | {"in_chans": "in_chans"}
        if setting := settings.get(unexpected[1], ""):
            option = setting.replace("_", "-")
            return f"model {name!r} has no argument {unexpected[1]!r}, which {setting} sets; leave --{option} out"
        known = list(inspect.signature(HARNESS_MODELS[name]).parameters) if name in HARNESS_MODELS else []
        return (
            f"model {name!r} has no argument {unexpected[1]!r}{did_you_mean(unexpected[1], known)}; change --model-args"
        )
    if unexpected and isinstance(error, TypeError):
        return f"model {name!r} must take {unexpected[1]!r}: timm calls a registered model with it; add **kwargs"
    if not arguments:
        return ""
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"model {name!r} cannot be made with {given}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters; one that several layers share counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_frozen(model: nn.Module) -> int:
    """Return the number of parameters that are not trained."""
    return sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)


def model_names(filter: str = "", plugins: Iterable[str] = ()) -> list[tuple[str, Origin]]:
    """Return the names of models and who defines them: first harness's own, then those of plug-ins, then timm's.

    Args:
        filter: part of a name, or a pattern with `*`.
        plugins: modules to import first.

    Raises:
        UsageError: a plug-in cannot be imported.
    """
    import_plugins(plugins)
    import_installed_plugins()
    pattern = filter if "*" in filter or not filter else f"*{filter}*"
    names = [(name, _origin(name)) for name in timm.list_models(pattern)]
    return sorted(names, key=lambda item: ORIGINS.index(item[1]))


def _origin(name: str) -> Origin:
    if name in HARNESS_MODELS:
        return "harness"
    return "timm" if timm.model_entrypoint(name).__module__.startswith("timm.") else "plugin"


def timm_input(preprocess: Preprocess) -> dict[str, Any]:
    """Return a model's preprocessing under timm's names."""
    return {
        "input_size": (preprocess.channels, preprocess.size, preprocess.size),
        "mean": preprocess.mean,
        "std": preprocess.std,
        "crop_pct": preprocess.crop_pct,
        "interpolation": preprocess.interpolation,
        "crop_mode": preprocess.crop_mode,
    }


def multilabel_facts(thresholds: Sequence[float] | None) -> dict[str, Any]:
    """Return what a `config.json` for timm says of a model that predicts several labels per image; empty for other models.

    timm keeps such entries, and ignores them.

    Args:
        thresholds: probabilities from which each class is predicted; None: an image has one label.
    """
    if thresholds is None:
        return {}
    return {"problem_type": "multi_label_classification", "thresholds": list(thresholds)}


def write_timm_config(
    model: nn.Module,
    classes: Sequence[str],
    preprocess: Preprocess,
    path: Path,
    thresholds: Sequence[float] | None = None,
) -> bool:
    """Write the `config.json` with which stock timm loads the `model.safetensors` beside it.

    Args:
        thresholds: those of `multilabel_facts`.

    Returns:
        False, and nothing is written, when timm did not create the model and could not rebuild it.
    """
    from timm.models._hub import save_config_for_hf  # private, but what timm.models.save_for_hf is made of

    if not hasattr(model, "pretrained_cfg") or not hasattr(model, "_model_args"):
        return False
    about = {"label_names": list(classes), "num_classes": len(classes), **multilabel_facts(thresholds)}
    try:
        save_config_for_hf(model, str(path), model_config=about, data_config=timm_input(preprocess))
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ):  # timm cannot write the configuration of this plug-in's model
        path.unlink(missing_ok=True)
        return False
    return True


def write_class_map(classes: Sequence[str], path: Path) -> None:
    """Write the classes in the order of the logits, one a line, as timm's `--class-map` reads them."""
    write_atomically(path, "".join(f"{name}\n" for name in classes).encode())


def parameter_count_of(name: str) -> int:
    """Return the number of parameters of a timm model as registered; built without memory for its weights."""
    with torch.device("meta"):
        return count_parameters(timm.create_model(name))


def module_of(facts: Mapping[str, Any]) -> str:
    """Return the module whose import registers a model of harness with timm; empty for other models.

    Args:
        facts: the contents of `model.json`: the settings and, of a model from a folder or the Hub, its architecture.
    """
    name = str(sub_mapping(facts, "architecture").get("name") or sub_mapping(facts, "config").get("model"))
    return HARNESS_MODELS[name].__module__ if name in HARNESS_MODELS else ""


def is_ours(model: nn.Module) -> bool:
    """Return whether the model, compiled or not, is one that harness defines."""
    return isinstance(getattr(model, "_orig_mod", model), tuple(HARNESS_MODELS.values()))


def with_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Return the model with batch normalisation over all processes (timm's combined layers too); same weights and names."""
    from timm.layers import convert_sync_batchnorm

    converted: nn.Module = convert_sync_batchnorm(model)
    return converted


def make_training_forward(config: Config, model: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """Return a forward pass for training in kernels made for the model, or None where only torch's fit.

    Raises:
        UsageError: `fused=True`, and there are no such kernels for the model or the device.
    """
    if config.fused is False:
        return None
    reason: str | None = None
    if device.type != "cuda":
        reason = f"device={device} is not a CUDA GPU"
    elif config.precision == "fp32":
        reason = "precision=fp32"
    elif config.gradient_checkpointing:
        reason = "gradient_checkpointing=True computes the layers one by one"
    elif config.freeze or config.freeze_epochs:
        reason = "batch normalisation of frozen layers is not in these kernels"
    elif importlib.util.find_spec("triton") is None:
        reason = "Triton is not installed"
    else:
        from harness.models import fused  # imports Triton

        reason = fused.why_not_fused(model, config.channels_last)
        if reason is None:
            return fused.FusedForward(model)  # type: ignore[arg-type]
    if config.fused:
        raise UsageError(f"fused=True, but {reason}; leave --fused out")
    return None
