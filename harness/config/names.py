"""The names that settings, data, sweeps and reports share, each defined once."""

from __future__ import annotations

import os
import re
from enum import StrEnum
from typing import Literal, TypeAlias, get_args

SplitName: TypeAlias = Literal["train", "val", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)
REPORTED_SPLITS: tuple[SplitName, ...] = ("test", "val")  # what a result is about, the test set first
SPLIT_LABELS: dict[str, str] = {"train": "training", "val": "validation", "test": "test"}
BUILT_IN_DATASETS = ("cifar10", "cifar100", "digits", "folder")


def data_name(data: str, data_dir: str) -> str:
    """Return a short name of a data set: that of the folder or archive for `folder`, else the last part of its own."""
    if data != "folder":
        return data.rsplit("/", 1)[-1]
    name = os.path.basename(os.path.normpath(data_dir))
    if name in ("", ".", ".."):
        name = os.path.basename(os.path.abspath(data_dir))
    return re.sub(r"\.(tar(\.\w+)?|tgz|txz)$", "", name, flags=re.IGNORECASE) or data


class TrialStatus(StrEnum):
    """The state of a sweep's trial, as in `trials.csv` and `sweep.json`."""

    COMPLETE = "complete"
    PRUNED = "pruned"  # early termination
    FAILED = "failed"
    RUNNING = "running"
