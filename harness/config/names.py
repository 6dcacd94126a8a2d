"""The names that settings, data, sweeps and reports share, each defined once."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeAlias, get_args

SplitName: TypeAlias = Literal["train", "val", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)
REPORTED_SPLITS: tuple[SplitName, ...] = ("test", "val")  # what a result is about, the test set first
SPLIT_LABELS: dict[str, str] = {"train": "training", "val": "validation", "test": "test"}
BUILT_IN_DATASETS = ("cifar10", "cifar100", "digits", "folder")


class TrialStatus(StrEnum):
    """The state of a sweep's trial, as in `trials.csv` and `sweep.json`."""

    COMPLETE = "complete"
    PRUNED = "pruned"  # early termination
    FAILED = "failed"
    RUNNING = "running"
