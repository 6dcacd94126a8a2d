"""The weights that `init` names: read them from a run, a file, an export or the Hugging Face Hub, and give them to a model."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from harness.config.init_source import HUB, WEIGHT_FILES, path_of
from harness.data.image_io import RGB
from harness.data.preprocess import Preprocess
from harness.evaluation.trained_model import find_checkpoint, run_folder, weights_of_state
from harness.models.available_weights import LONGEST_DOWNLOAD, why_no_config, why_no_weights
from harness.models.pretrained import adapt_input, classifier_names, is_in, label_names, output_order, reorder_outputs
from harness.models.weight_files import COMPILED, PREFIXES, read_weight_file, state_key, state_of, without_prefixes
from harness.tracking.run_files import CHECKPOINTS, is_run
from harness.training import checkpoint
from harness.training.finite import first_not_finite, infinite_buffers
from harness.utils.errors import CheckpointError, DataError, first_line
from harness.utils.files import read_json
from harness.utils.text import escape_unprintable

MAX_NAMED = 5  # names of weights in a message
COUNTER = "num_batches_tracked"  # of batch normalisation; weights of PyTorch before 1.0 have none
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialWeights:
    """Weights to start from, and what is known of them.

    Attributes:
        name: as the settings name them.
        weights: name -> tensor on the CPU.
        classes: names of the outputs in their order; empty where they are not known.
        preprocess: of the images that the weights were trained with; None where it is not known.
        run: the run directory whose result they are; None for others.
        key: of the checkpoint under which they were; empty for its top level.
    """

    name: str
    weights: Mapping[str, Tensor]
    classes: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    run: Path | None = None
    key: str = ""


def read_initial_weights(init: str) -> InitialWeights:
    """Return the weights that the setting `init` names. No code of a file is run.

    Raises:
        CheckpointError: there are none, or they are damaged, unsafe, links or of an unknown format.
        DataError: the Hub cannot be reached, or a run directory has links in place of files.
    """
    path = path_of(init)
    if path is None:
        return _from_hub(init)
    if not path.exists():
        raise CheckpointError(
            f"init={init!r}: there is no such file or folder; need a run directory, a .safetensors, .pth, .pt or .bin file, an exported folder, or {HUB}NAME"
        )
    if path.is_dir():
        if is_run(path) or (path / CHECKPOINTS).is_dir():
            return _from_harness(init, find_checkpoint(path))
        file = next((path / name for name in WEIGHT_FILES if (path / name).exists()), None)
        if file is None:
            raise CheckpointError(f"init={init!r}: the folder has no {' or '.join(WEIGHT_FILES)}")
        path = file
    if path.suffix == ".safetensors" and "config" in read_json(path.with_suffix(".json")):
        return _from_harness(init, find_checkpoint(path))
    content = read_weight_file(path)
    if {"learner", "progress"} <= content.keys():
        return _from_harness(init, find_checkpoint(path))
    classes, preprocess = _of_export(read_json(path.with_name("config.json")) if path.name in WEIGHT_FILES else {})
    return InitialWeights(init, state_of(content), classes, preprocess, key=state_key(content))


def _from_harness(init: str, path: Path) -> InitialWeights:
    """Return the weights of a run's result, or of the newest checkpoint of one that has not finished."""
    is_result = path.suffix == ".safetensors"
    weights, facts = checkpoint.load_weights(path) if is_result else weights_of_state(path)
    try:
        preprocess = Preprocess.from_facts(facts)
        classes = tuple(map(str, facts["classes"]))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has no usable configuration ({error}); it is not a checkpoint of this harness"
        ) from None
    folder = run_folder(path)
    return InitialWeights(init, weights, classes, preprocess, folder if is_result and is_run(folder) else None)


def _from_hub(init: str) -> InitialWeights:
    from timm.models._hub import load_model_config_from_hf, load_state_dict_from_hf  # what `hf-hub:` models are made of

    def refused(reason: str) -> DataError:
        return DataError(
            f"init={init!r} cannot be loaded from the Hugging Face Hub: {reason}; check the name and the connection, or name a file"
        )

    if reason := why_no_config(init) or why_no_weights(init, download_seconds=LONGEST_DOWNLOAD):
        raise refused(reason)
    try:
        cfg, *_ = load_model_config_from_hf(init.removeprefix(HUB))
        weights = load_state_dict_from_hf(init.removeprefix(HUB), weights_only=True)
    except Exception as error:
        raise refused(first_line(error)) from error
    classes, preprocess = _of_export({"pretrained_cfg": cfg, **cfg})
    return InitialWeights(init, state_of(weights), classes, preprocess)


def _of_export(config: Mapping[str, Any]) -> tuple[tuple[str, ...], Preprocess | None]:
    """Return the class names and the preprocessing in a `config.json` of timm; nothing where it has none."""
    cfg = config.get("pretrained_cfg")
    if not isinstance(cfg, Mapping):
        return (), None
    names = tuple(label_names({**cfg, **{key: config[key] for key in ("label_names",) if key in config}}))
    try:
        preprocess = Preprocess(
            size=cfg["input_size"][-1],
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            crop_pct=cfg.get("crop_pct") or 0.875,
            interpolation=cfg.get("interpolation") or "bicubic",
            crop_mode=cfg.get("crop_mode") or "center",
        )
        preprocess.check()
    except (IndexError, KeyError, OverflowError, TypeError, ValueError):
        return names, None
    return names, preprocess


def give_initial_weights(
    model: nn.Module, source: InitialWeights, classes: Sequence[str], model_name: str, channels: int = RGB
) -> str:
    """Copy weights into a model, and return in a line what was taken and what was not.

    The last layer is taken where it has the outputs of the data, in the order of their names where these are known.
    Otherwise it stays as it is initialised. All other weights have to be there, in their shapes; those of the first
    convolution are adapted to the channels of the images.

    Args:
        classes: of the data, in the order of the model's outputs.
        model_name: as the settings name it, for messages.
        channels: of the images that the model takes.

    Raises:
        CheckpointError: weights are missing, unknown, of another shape, or not finite.
        UsageError: the last layer has the classes in another order, and cannot be rearranged.
    """
    expected = model.state_dict()
    modules = classifier_names(model)
    head = {name for name in expected if is_in(name, modules)}
    weights, foreign = without_prefixes(source.weights, expected)
    taken, adaptation = adapt_input(model, weights, channels)
    problems, is_converted = _problems(taken, expected, head, modules), False
    if problems and (converted := _converted(model, weights)) is not None:
        converted, converted_adaptation = adapt_input(model, converted, channels)
        others = _problems(converted, expected, head, modules)
        if len(others) < len(problems):
            taken, problems, is_converted, adaptation = converted, others, True, converted_adaptation
    if problems:
        more = f" and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise CheckpointError(
            f"the weights of init={source.name!r} do not fit {model_name}: {'; '.join(problems[:MAX_NAMED])}{more}; name the model that they belong to with --model (and --model-args)"
        )
    keeps_head, about = _compare_head(taken, expected, head, source.classes, classes)
    fitting = {name: taken[name] for name in expected if name in taken and (keeps_head or name not in head)}
    if name := first_not_finite(fitting, infinite_buffers(model)):
        raise CheckpointError(
            f"{name} in the weights of init={source.name!r} is NaN or infinite; start from other weights"
        )
    model.load_state_dict(fitting, strict=False)
    if keeps_head and source.classes and (order := output_order(source.classes, classes)) != list(source.classes):
        reorder_outputs(model, source.classes, order)
    parts = [f"Weights from {source.name}: {len(fitting)} of {len(expected)} tensors"]
    parts += [part for part in (adaptation, about) if part]
    parts += [f"from {source.key!r}"] if source.key else []
    removed = [
        prefix
        for prefix in (COMPILED, *PREFIXES)
        if any(prefix in name for name in source.weights) and not any(prefix in name for name in weights)
    ]
    parts += [f"prefix {' '.join(removed)} removed from the names"] if removed else []
    parts += [f"names and shapes converted by timm for {model_name}"] if is_converted else []
    if foreign:
        parts.append(f"{len(foreign)} of other parts left out, such as {escape_unprintable(foreign[0])[:60]}")
    return "; ".join(parts)


def _compare_head(
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    head: set[str],
    names: Sequence[str],
    classes: Sequence[str],
) -> tuple[bool, str]:
    """Return whether a model takes the last layer of the weights, and what becomes of it in words.

    Args:
        names: of the outputs of the weights; empty where they are not known.
    """
    if not head:
        return False, ""
    outputs, size = _outputs(weights, head), _outputs(expected, head)
    if any(name not in weights or weights[name].shape != expected[name].shape for name in head):
        return (
            False,
            f"head ({outputs} classes) replaced by one of {size}" if outputs else f"a new head of {size} classes",
        )
    if not names:
        return True, f"head of {size} classes kept, in the order of the file, which does not name them"
    if len(names) != outputs or len(set(names)) < len(names) or not set(classes) <= set(names):
        return False, f"head ({outputs} classes such as {names[0]}) replaced by one for the classes of the data"
    is_ordered = output_order(names, classes) == list(names)
    return True, f"head of {size} classes kept{'' if is_ordered else ', put into the order of the data'}"


def _problems(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], head: set[str], modules: Sequence[str]
) -> list[str]:
    """Return what keeps weights from fitting a model, apart from its last layer, which `modules` are."""
    body = {name: tensor for name, tensor in expected.items() if name not in head}
    problems = [f"{name} missing" for name in body if name not in weights and not name.endswith(COUNTER)]
    for name, tensor in weights.items():
        if name in expected and (kind := checkpoint.other_kind(tensor, expected[name])):
            problems.append(f"{name} {kind}")
        elif name in body and tensor.shape != body[name].shape:
            problems.append(f"{name} {list(tensor.shape)} instead of {list(body[name].shape)}")
        elif name not in expected and not is_in(name, modules):
            problems.append(f"{escape_unprintable(name)[:100]} unknown")
    return problems


def _converted(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return weights as timm converts those of the model's authors, and resizes position embeddings; None without such a
    function beside the model, or where it does not know them."""
    convert = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    if not callable(convert) or not type(model).__module__.startswith("timm."):
        return None
    try:
        arguments = (dict(weights), model) if len(inspect.signature(convert).parameters) > 1 else (dict(weights),)
        converted = convert(*arguments)
        return {str(name): value for name, value in converted.items() if isinstance(value, Tensor)}
    except Exception as error:  # noqa: BLE001 - it expects the names and shapes of its own format
        log.debug("%s cannot convert the weights: %s", convert, first_line(error))
        return None


def _outputs(weights: Mapping[str, Tensor], head: set[str]) -> int:
    """Return the number of outputs of a last layer; 0 where there is none."""
    sizes = [len(weights[name]) for name in sorted(head) if name in weights and weights[name].ndim]
    return sizes[0] if sizes else 0
