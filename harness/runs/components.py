"""The components of a run: data, model, learner, loaders and schedule, checked against each other before anything is written."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.config.settings import Config
from harness.data import loaders
from harness.data.balance import class_weights
from harness.data.dataset import Dataset
from harness.data.listing import short_list
from harness.data.mixup import make_mixup
from harness.data.own_transforms import find_transforms
from harness.data.preprocess import Preprocess, make_preprocess, preprocess_notes
from harness.data.registry import load_dataset
from harness.evaluation import gradcam
from harness.evaluation.initial_weights import InitialWeights, give_initial_weights, read_initial_weights
from harness.evaluation.own_metrics import check_metrics
from harness.models import factory
from harness.runs.automatic import decide_settings
from harness.runs.model_check import check_model, smallest_part
from harness.training.device import autocast_dtype, pick_device, pick_precision
from harness.training.distributed import SingleProcess
from harness.training.learner import Learner, make_learner
from harness.training.lookahead import Lookahead
from harness.training.optimizer import check_optimizer
from harness.training.own_losses import check_loss, try_loss
from harness.training.own_schedules import find_shape
from harness.training.process_settings import configure_torch
from harness.training.schedule import Schedule, make_schedule
from harness.training.unused_taps import train_unused_taps_in_float32
from harness.utils.errors import UsageError, did_you_mean

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Components:
    """What a run is made of.

    Attributes:
        initial: where the weights come from that training starts with; None where it starts anew or is resumed.
        initial_note: what was taken of them, in a line.
    """

    config: Config
    dataset: Dataset
    learner: Learner
    preprocess: Preprocess
    loaders: loaders.Loaders
    schedule: Schedule
    initial: InitialWeights | None = None
    initial_note: str = ""

    @property
    def selection_split(self) -> str:
        """The split whose accuracy selects the epoch that is kept; empty: the last epoch is kept."""
        match self.config.select:
            case "best-on-test":
                return "test"
            case "auto" | "best" if self.loaders.val is not None:
                return "val"
        return ""

    @property
    def eval_split(self) -> str:
        """The split evaluated after every epoch: validation where there is one, else the test set."""
        return "val" if self.loaders.val is not None else "test"


def build_components(
    config: Config,
    processes: SingleProcess | None = None,
    resumed: Preprocess | None = None,
    dataset: Dataset | None = None,
) -> Components:
    """Build every component of a run and check them against each other; nothing is written.

    Args:
        resumed: the preprocessing in the checkpoint of a run that is resumed, whose weights come from there: those of
            `init` are not read again, and may have gone.
        dataset: what `load_dataset` returns for these settings, where it has been read already.

    Raises:
        UsageError: settings, data and model do not fit together.
        DataError: the data is missing or unreadable.
        CheckpointError: the weights of `init` are missing or unsafe, or do not fit.
    """
    processes = processes or SingleProcess()
    check_optimizer(config)
    check_metrics(config)
    check_loss(config)
    find_transforms(config)
    find_shape(config)  # refuses a schedule that does not exist before anything takes time
    if config.undecided:
        decided = decide_settings(config, processes)
        config, dataset = decided.config, decided.dataset
    device = pick_device(config.device)
    configure_torch(config, device)
    # The main process decides, since the choice may be measured.
    config = config.replace(precision=processes.broadcast(pick_precision(config.precision, device)))

    if dataset is None:
        with processes.main_first():
            dataset = load_dataset(config)
    if not config.test:
        dataset = dataclasses.replace(dataset, test=None)
    classes = _number_of_classes(config, dataset)
    initial = read_initial_weights(config.init) if config.init and resumed is None else None

    torch.manual_seed(config.seed)
    model = factory.create_model(config, classes)
    preprocess = resumed or make_preprocess(config, model, dataset, None if initial is None else initial.preprocess)
    factory.initialise_for(model, config, dataset, preprocess)
    initial_note = (
        "" if initial is None else give_initial_weights(model, initial, dataset.classes, config.model, config.in_chans)
    )
    notes = preprocess_notes(config, model, dataset, preprocess)
    dataset = dataclasses.replace(dataset, notes=[*dataset.notes, *notes])
    for note in notes if processes.is_main else ():
        log.warning("%s", note)
    if initial is not None:
        initial = dataclasses.replace(initial, weights={})  # the model has them: free their memory
    if config.sync_bn and processes.world_size > 1 and device.type == "cuda":
        model = factory.with_sync_batchnorm(model)

    made = loaders.make_loaders(config, dataset, preprocess, device, processes)
    precision = autocast_dtype(config.precision)
    shape = (preprocess.channels, preprocess.size, preprocess.size)
    check_model(config, model.to(device), shape, classes, device, precision, made.train, processes)
    if device.type == "cpu" and precision == torch.bfloat16:
        train_unused_taps_in_float32(model, shape)
    mixup = make_mixup(config, classes)
    learner = make_learner(
        config,
        model,
        device,
        precision,
        mixup,
        processes,
        forward=factory.make_training_forward(config, model, device),
        images_on_device=made.kind == "resident",
        class_weights=class_weights(config, dataset.train.labels, dataset.classes, classes),
    )
    images = smallest_part(made.train, config.grad_accumulation, processes.world_size)
    try_loss(config, learner.loss, classes, images, device)
    schedule = make_schedule(config, made.train.steps)
    if config.lookahead:
        learner.lookahead = Lookahead(learner.model, config.lookahead, schedule.steps)
    components = Components(config, dataset, learner, preprocess, made, schedule, initial, initial_note)
    _check(components)
    return components


def describe_data(components: Components) -> dict[str, Any]:
    """Return plain facts of the data: sizes of the splits, classes, fingerprint, and the loader."""
    dataset = components.dataset
    sizes = {split.name: len(split) for split in (dataset.train, dataset.val, dataset.test) if split is not None}
    return {
        "name": dataset.name,
        "classes": list(dataset.classes),
        "images": sizes,
        "fingerprint": dataset.fingerprint,
        "skipped": len(dataset.skipped),
        **({"skipped_images": short_list(dataset.skipped)} if dataset.skipped else {}),
        "loader": components.loaders.kind,
        **_describe_labels(dataset),
        **_describe_weights(components),
        "notes": dataset.notes,
    }


def _describe_labels(dataset: Dataset) -> dict[str, Any]:
    """Return how many labels a training image has, where it may have several; empty where each has one."""
    if not dataset.train.is_multilabel:
        return {}
    counts = dataset.train.labels.sum(1, dtype=np.int64)
    return {"labels_per_image": {"mean": round(float(counts.mean()), 4), "without": int((counts == 0).sum())}}


def _describe_weights(components: Components) -> dict[str, Any]:
    """Return the weights of the classes in the loss by name, as `class_weights` of the facts; empty where there are none."""
    dataset = components.dataset
    weights = class_weights(components.config, dataset.train.labels, dataset.classes, len(dataset.classes))
    if weights is None:
        return {}
    return {
        "class_weights": {
            name: float(f"{weight:.4g}") for name, weight in zip(dataset.classes, weights.tolist(), strict=True)
        }
    }


def _number_of_classes(config: Config, dataset: Dataset) -> int:
    """Return the width of the model's head: the setting, or as many as the data has classes."""
    classes = config.classes or len(dataset.classes)
    if classes < len(dataset.classes):
        raise UsageError(
            f"classes={classes}, but the data has {len(dataset.classes)}: {', '.join(dataset.classes[:5])} ...; leave --classes out"
        )
    return classes


def _check(components: Components) -> None:
    """Refuse components that do not fit together, before training instead of in the middle of it."""
    _check_cam(components)
    _check_splits(components)


def _check_cam(components: Components) -> None:
    """Refuse a Grad-CAM method or layer that does not exist."""
    config, model = components.config, components.learner.model
    if config.cam != "none":
        gradcam.canonical_method(config.cam)
    layers = [name for name, _ in model.named_modules() if name]
    if config.cam_layer != "auto" and config.cam_layer not in layers:
        raise UsageError(
            f"cam_layer={config.cam_layer!r}: {config.model} has no such module{did_you_mean(config.cam_layer, layers)}"
        )


def _check_splits(components: Components) -> None:
    """Refuse settings that need a split which the data does not have."""
    config, made = components.config, components.loaders
    if config.log_model == "best" and not components.selection_split:
        raise UsageError(
            "log_model=best logs epochs that a validation split selects, and the data has none; set --val-fraction 0.1, or --log-model end"
        )
    needs = {
        "schedule=plateau": config.schedule == "plateau",
        f"early_stop={config.early_stop}": config.early_stop > 0,
        "select=best": config.select == "best",
    }
    if made.val is None and any(needs.values()):
        wanted = " and ".join(text for text, is_set in needs.items() if is_set)
        verb = "needs" if sum(needs.values()) == 1 else "need"
        raise UsageError(f"{wanted} {verb} a validation split, and the data has none; set --val-fraction 0.1")
    if config.select == "best-on-test" and made.val is not None:
        raise UsageError("select=best-on-test, but there is a validation split to select by; set --select best")
    if made.val is None and made.test is None:
        raise UsageError("the data has neither a validation nor a test split; set --val-fraction 0.1")
