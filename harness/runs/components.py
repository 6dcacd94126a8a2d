"""What a run is made of: data, model, learner, batches and schedule, held against each other before anything is written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from harness.config.settings import Config
from harness.utils.errors import UsageError, did_you_mean
from harness.training import device as machine
from harness.training.distributed import SingleProcess
from harness.training.learner import Learner, make_learner
from harness.training.schedule import Schedule, make_schedule
from harness.evaluation import gradcam
from harness.data import loaders
from harness.models import factory
from harness.data.registry import Dataset, load_dataset
from harness.data.mixup import make_mixup
from harness.data.preprocess import Preprocess, make_preprocess


@dataclass(frozen=True)
class Components:
    """What a run is made of."""

    config: Config
    data: Dataset
    learner: Learner
    preprocess: Preprocess
    batches: loaders.Loaders
    schedule: Schedule

    @property
    def selects(self) -> str:
        """The split whose accuracy chooses the epoch that is kept; empty: the last epoch is kept."""
        match self.config.select:
            case "best-on-test":
                return "test"
            case "auto" | "best" if self.batches.val is not None:
                return "val"
        return ""

    @property
    def watched(self) -> str:
        """The split evaluated after every epoch: validation where there is one, else the test set."""
        return "val" if self.batches.val is not None else "test"


def build_components(config: Config, processes: SingleProcess | None = None) -> Components:
    """Every part of a run, checked against the others; nothing is written."""
    processes = processes or SingleProcess()
    device = machine.pick_device(config.device)
    machine.configure_torch(config, device)
    # The leader's, since it may be measured.
    config = config.replace(precision=processes.broadcast(machine.pick_precision(config.precision, device)))
    with processes.main_first():
        data = load_dataset(config)
    if not config.test:
        data = dataclasses.replace(data, test=None)
    classes = config.classes or len(data.classes)
    if classes < len(data.classes):
        raise UsageError(
            f"classes={classes}, but the data has {len(data.classes)}: {', '.join(data.classes[:5])} ...; leave --classes out"
        )
    torch.manual_seed(config.seed)
    model = factory.create_model(config, classes)
    preprocess = make_preprocess(config, model, data)
    if config.sync_bn and processes.world_size > 1 and device.type == "cuda":
        model = factory.with_sync_batchnorm(model)
    batches = loaders.make_loaders(config, data, preprocess, device, processes)
    _try_model(model, preprocess, config)
    _check_cam(model, config)
    learner = make_learner(
        config, model, device, machine.autocast_dtype(config.precision), make_mixup(config, classes), processes
    )
    _check_choices(config, batches)
    return Components(config, data, learner, preprocess, batches, make_schedule(config, batches.train.steps))


def _try_model(model: nn.Module, preprocess: Preprocess, config: Config) -> None:
    """One image through the model, so that sizes that do not fit are found before training."""
    try:
        with machine.eval_mode(model), torch.no_grad():
            shape = tuple(model(torch.zeros(1, 3, preprocess.size, preprocess.size)).shape)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{config.model} can not take images of {preprocess.size} pixels: {reason}; set --image-size or --model-args img_size={preprocess.size}"
        ) from None
    if len(shape) != 2:
        raise UsageError(
            f"{config.model} gives {list(shape)} instead of logits [1, classes]; it is no image classifier"
        )


def _check_cam(model: nn.Module, config: Config) -> None:
    """Find a method or layer that does not exist before training, not after it."""
    if config.cam != "none":
        gradcam.canonical_method(config.cam)
    layers = [name for name, _ in model.named_modules() if name]
    if config.cam_layer != "auto" and config.cam_layer not in layers:
        raise UsageError(
            f"cam_layer={config.cam_layer!r}: {config.model} has no such module{did_you_mean(config.cam_layer, layers)}"
        )


def _check_choices(config: Config, batches: loaders.Loaders) -> None:
    needs = config.schedule == "plateau" or config.early_stop or config.select == "best"
    if needs and batches.val is None:
        raise UsageError(
            "the schedule, early_stop or select needs a validation split, and the data brings none; set --val-fraction 0.1"
        )
    if config.select == "best-on-test" and batches.val is not None:
        raise UsageError("select=best-on-test, but there is a validation split to choose by; set --select best")
    if batches.val is None and batches.test is None:
        raise UsageError("the data has neither a validation nor a test split; set --val-fraction 0.1")


def describe_data(parts: Components) -> dict[str, Any]:
    """What the data is: sizes of the splits, classes, fingerprint, and how it is loaded."""
    data = parts.data
    sizes = {split.name: len(split) for split in (data.train, data.val, data.test) if split is not None}
    return {
        "name": data.name,
        "classes": list(data.classes),
        "images": sizes,
        "fingerprint": data.fingerprint,
        "skipped": len(data.skipped),
        "loader": parts.batches.kind,
    }
