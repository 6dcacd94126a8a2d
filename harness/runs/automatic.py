"""Choose the settings that are `auto` for a run: facts of its data and machine, the choices, and where they are kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from harness.config.automatic import Choice, DataFacts, choose_settings, with_choices
from harness.config.settings import Config
from harness.data.dataset import Dataset, spread_indices
from harness.data.multilabel import class_counts
from harness.data.registry import load_dataset
from harness.evaluation.initial_weights import read_initial_weights
from harness.models import factory
from harness.models.available_weights import why_no_weights
from harness.models.names import import_model, input_side
from harness.training.device import pick_device
from harness.training.distributed import SingleProcess

SAMPLED_IMAGES = 64  # whose sizes are looked at, evenly spread


@dataclass(frozen=True)
class Decided:
    """Settings without `auto`.

    Attributes:
        choices: those made now; empty where nothing was `auto`, or an unfinished run had decided before.
        dataset: the data that was read for it; None where it was not needed.
    """

    config: Config
    choices: Mapping[str, Choice] = field(default_factory=dict)
    dataset: Dataset | None = None


def decide_settings(
    config: Config,
    processes: SingleProcess | None = None,
    kept: Callable[[Config], Config | None] = lambda config: None,
) -> Decided:
    """Return the settings with a plain value for each that is `auto`: the same for the same data.

    Args:
        processes: the main one decides.
        kept: returns the settings of the unfinished run that these resume, if any: they stay as they are.

    Raises:
        DataError: the data is missing or unreadable.
        UsageError: settings and data do not fit together.
    """
    if not config.undecided:
        return Decided(config)
    processes = processes or SingleProcess()
    import_model(config.model, config.plugin)  # the rules ask about it
    stored = kept(config) if processes.is_main else None
    plain = processes.broadcast(None if stored is None else stored.to_dict())
    if plain is not None:
        return Decided(Config(**plain))
    with processes.main_first():
        dataset = load_dataset(config)
    made = choose_settings(config, data_facts(config, dataset)) if processes.is_main else {}
    choices = {
        name: Choice(**entry) for name, entry in processes.broadcast({n: vars(c) for n, c in made.items()}).items()
    }
    return Decided(with_choices(config, choices), choices, dataset)


def data_facts(config: Config, dataset: Dataset) -> DataFacts:
    """Return what the rules know: sizes of the training split and of its images, and the memory of the device."""
    train = dataset.train
    pictures = [train.picture(index) for index in spread_indices(len(train), SAMPLED_IMAGES)]
    sides = [min(picture.shape[:2]) for picture in pictures] or [32]
    side = int(np.median(sides))
    counts = class_counts(train.labels)
    counts = counts[counts > 0]
    return DataFacts(
        data=config.data,
        images=len(train),
        classes=dataset.classes,
        side=side,
        is_uniform=all(picture.shape[:2] == (side, side) for picture in pictures),
        memory=_total_memory(pick_device(config.device)),
        why_no_weights=why_no_weights,
        is_ours=lambda name: name in factory.HARNESS_MODELS,
        imbalance=float(counts.max() / counts.min()) if len(counts) else 1.0,
        weights_side=_weights_side(config),
        input_side=input_side,
    )


def _weights_side(config: Config) -> int:
    """Return the side of the input that the weights of `init` were trained with, in pixels; 0: not known, or not asked."""
    if not config.init or (config.image_size and "image_size" not in config.undecided):
        return 0
    preprocess = read_initial_weights(config.init).preprocess
    return 0 if preprocess is None else preprocess.size


def choices_table(choices: Mapping[str, Choice]) -> str:
    """Return the choices as text: a line for each, with its reason."""
    values = {name: _shown(choice.value) for name, choice in choices.items()}
    name_width, value_width = (max(map(len, texts), default=0) for texts in (values, values.values()))
    lines = [
        f"  {name:<{name_width}}  {values[name]:<{value_width}}  {choice.reason}" for name, choice in choices.items()
    ]
    return "\n".join(["Chosen from the data (an option of yours replaces any of them):", *lines])


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _total_memory(device: torch.device) -> int:
    """Return the memory of the device in bytes, free or not, so that the same machine decides the same; 0: not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
