"""Load a trained model from a run directory or one of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.config.names import DECIDED_ARGUMENTS
from harness.config.recipe import data_of
from harness.config.settings import WANDB, Config, canonical_name, coerce
from harness.data.preprocess import Preprocess
from harness.evaluation.multilabel import fixed_thresholds, stored_thresholds
from harness.models import factory
from harness.tracking.run_dir import RunState
from harness.tracking.run_files import CHECKPOINTS, STATUS, check_own_files, is_run
from harness.tracking.run_packages import missing_packages_named
from harness.training import checkpoint
from harness.training.device import pick_device, pick_precision
from harness.training.process_settings import configure_torch, configured_torch, restore_process_state
from harness.utils import plugins
from harness.utils.checksums import changed_files
from harness.utils.errors import CheckpointError, HarnessError, UsageError
from harness.utils.files import read_json

# Settings that a checkpoint decides and that no option can change.
FIXED_BY_CHECKPOINT = {"model", "model_args", "image_size", "in_chans", "classes", "recipe", "pretrained", "init"}


@dataclass(frozen=True)
class TrainedModel:
    """A model from a checkpoint, in evaluation mode on its device, and what is known of it.

    Attributes:
        path: of the checkpoint.
        config: the settings it was trained with, device and precision resolved, overrides applied.
        facts: what stands in the checkpoint beside the weights.
        thresholds: float64 [C], the probabilities from which each class is predicted, where images have several labels: those
            that the run has chosen, else 0.5; None where an image has one label.
    """

    path: Path
    config: Config
    model: nn.Module
    classes: tuple[str, ...]
    preprocess: Preprocess
    device: torch.device
    facts: Mapping[str, Any]
    thresholds: np.ndarray | None = None

    @property
    def is_multilabel(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.thresholds is not None

    def probabilities(self, logits: torch.Tensor) -> np.ndarray:
        """Return the probabilities of the classes, float32 [B, C]: of each by itself where images have several labels."""
        logits = logits.float()
        return (logits.sigmoid() if self.is_multilabel else logits.softmax(1)).cpu().numpy()

    def configured(self) -> AbstractContextManager[None]:
        """Return a context in which the process has the threads and kernels of the model's settings."""
        return configured_torch(self.config, self.device)


@restore_process_state()
def load_trained_model(path: Path | str, overrides: Mapping[str, Any] | None = None) -> TrainedModel:
    """Return the model in a `model.safetensors`, a `last.pt` or a run directory, with its training configuration.

    Args:
        overrides: settings that replace the checkpoint's (device, precision, data, galleries ...). A plug-in that the
            checkpoint names is imported only if `plugin` names it too.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, not written by harness, or unsafe.
        UsageError: an override is fixed by the checkpoint.
    """
    path = find_checkpoint(Path(path).expanduser())
    weights, facts = checkpoint.load_weights(path) if path.suffix == ".safetensors" else weights_of_state(path)
    try:
        saved = Config(**facts["config"])
        preprocess = Preprocess.from_facts(facts)
        if not isinstance(facts["classes"], list | tuple) or not facts["classes"]:
            raise ValueError("its classes make no sense")
        if preprocess.channels != saved.in_chans:
            raise ValueError("its number of channels")
        classes = tuple(map(str, facts["classes"]))
    except (HarnessError, AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has no usable configuration ({error}); it is not a checkpoint of this harness"
        ) from None
    named = {canonical_name(key): value for key, value in (overrides or {}).items()}
    if "data_dir" in named and "data" not in named:
        named["data"] = data_of(str(named["data_dir"]), saved.data)
    plugins.allow_plugins(coerce("plugin", named.get("plugin", ())))
    if fixed := FIXED_BY_CHECKPOINT & named.keys():
        raise UsageError(f"{', '.join(sorted(fixed))}: fixed by the checkpoint; leave the option out")
    forms = {"label_separator": "", "label_columns": ()}
    named_forms = [name for name in forms if coerce(name, named.get(name, ""))]
    if len(named_forms) == 1:  # a table of the other form; both, where both are named, are refused below
        named = {**{name: value for name, value in forms.items() if name not in named}, **named}
        if named_forms == ["label_columns"]:
            named.setdefault("label_column", "")
    given = {name: coerce(name, named.get(name, getattr(saved, name))) for name in ("label_separator", "label_columns")}
    if any(given.values()) != saved.is_multilabel:
        has, others = ("several labels", "one") if saved.is_multilabel else ("one label", "several")
        remedy = "set one of" if saved.is_multilabel else "leave out"
        raise UsageError(
            f"{path} was trained on images with {has} each, and these settings give them {others}; {remedy} --label-separator and --label-columns"
        )
    # The trackers of the training run are no request to track an evaluation in them.
    config = saved.replace(**{"device": "auto", "tracker": (WANDB,), **named})
    thresholds = None
    if saved.is_multilabel:
        stored = stored_thresholds(facts, len(classes), path)
        thresholds = fixed_thresholds(len(classes)) if stored is None else stored
    device = pick_device(config.device)
    configure_torch(config, device)
    config = config.replace(precision=pick_precision(config.precision, device))
    # Those that the user names, and those of the checkpoint, which have to be among them.
    modules = tuple(dict.fromkeys([*config.plugin, *saved.plugin]))
    as_built = _as_built(saved, facts, path).replace(plugin=modules)
    with missing_packages_named(run_folder(path)):
        model = factory.create_model(as_built, saved.classes or len(classes))
    checkpoint.load_weights_strict(model, weights, path)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout).to(device).eval()
    return TrainedModel(path, config, model, classes, preprocess, device, facts, thresholds)


def _as_built(saved: Config, facts: Mapping[str, Any], path: Path) -> Config:
    """Return the settings that build the model without its pretrained weights, and without the folder or repository that
    it came from: a run must not need it.

    Raises:
        CheckpointError: the architecture in the checkpoint makes no sense.
    """
    architecture: Any = facts.get("architecture")
    if ":" in saved.model and not architecture:  # a run of an earlier version, which has it for timm
        config = read_json(path.with_name("config.json"))
        architecture = {"name": config.get("architecture"), "args": config.get("model_args", {})} if config else None
    if not architecture or ":" not in saved.model:
        return saved.replace(pretrained=False, init="")
    try:
        name, arguments = architecture["name"], dict(architecture["args"])
        if not isinstance(name, str) or ":" in name:
            raise ValueError("the name of its architecture")
        arguments = {key: value for key, value in arguments.items() if key not in DECIDED_ARGUMENTS}
        settings = {"model": name, "model_args": {**arguments, **saved.model_args}, "drop": None, "drop_path": None}
        return saved.replace(pretrained=False, init="", **settings)
    except (UsageError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has no usable architecture ({error})") from None


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path names: itself, or the resulting weights in a run directory.

    Raises:
        CheckpointError: there is none, or that of a finished run is gone.
        DataError: the directory, or the run directory that it belongs to, has links or pipes in place of a run's files.
    """
    checkpoint_file = _find_checkpoint(path)
    folder = run_folder(checkpoint_file)
    if is_run(folder):
        check_own_files(folder)
    return checkpoint_file


def run_folder(checkpoint_file: Path) -> Path:
    """Return the run directory that a checkpoint belongs to, or else the folder that it lies in."""
    for path in (
        checkpoint_file,
        checkpoint_file.absolute(),
    ):  # the name of the current folder is not in a relative path
        if path.parent.name == CHECKPOINTS:
            return path.parent.parent
    return checkpoint_file.parent


def _find_checkpoint(path: Path) -> Path:
    if path.is_dir():
        check_own_files(path)
        for file in (path / "checkpoints" / "model.safetensors", path / "model.safetensors"):
            if file.is_file():
                return file
        newest = checkpoint.newest_checkpoint(path / "checkpoints")
        if newest is None:
            raise CheckpointError(f"no checkpoint in {path}: need a run directory, a model.safetensors or a last.pt")
        result = f"{CHECKPOINTS}/model.safetensors"
        if read_json(path / STATUS).get("state") == RunState.FINISHED or changed_files(path, [result]):
            raise CheckpointError(
                f"{path / result} with the weights of the result is gone; restore it from a copy, or name {newest}, whose weights may be of another epoch"
            )
        return newest
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint {path}: need a run directory, a model.safetensors or a last.pt; `harness runs` lists the runs"
        )
    return path


def weights_of_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the weights in a `last.pt` that would be the result (the EMA where there is one), and the whole state."""
    state = checkpoint.load_checkpoint(path)
    try:
        learner = state["learner"]
        if learner.get("ema"):
            averaged = {key: value for key, value in learner["ema"].items() if key.startswith("module.")}
            return {key.removeprefix("module."): value for key, value in averaged.items()}, state
        return dict(learner["model"]), state
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path} is not a checkpoint of harness: it holds no model's weights") from None
