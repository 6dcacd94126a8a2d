"""The names that settings, data, sweeps and reports share, each defined once."""

from __future__ import annotations

import os
import re
from enum import StrEnum
from typing import Literal, TypeAlias, get_args

WANDB = "wandb"  # a tracker
# Learning-rate schedules, beside those that plug-ins register.
SCHEDULES = ("one_cycle", "cyclic", "cosine", "polynomial", "step", "multi_step", "plateau", "constant")
SplitName: TypeAlias = Literal["train", "val", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)
REPORTED_SPLITS: tuple[SplitName, ...] = ("test", "val")  # what a result is about, the test set first
SPLIT_LABELS: dict[str, str] = {"train": "training", "val": "validation", "test": "test"}
MACRO_METRICS = ("balanced_acc", "f1_macro")  # that count every class the same, however many images it has
MULTILABEL_METRICS = ("map", "f1_macro", "exact_match")  # of images with several labels, the main one first
# By which epochs can be compared.
SELECTION_METRICS = ("acc", *MACRO_METRICS, "loss", "map", "exact_match")
SELECTION_TEXTS = {
    "acc": "accuracy", "balanced_acc": "balanced accuracy", "f1_macro": "macro F1", "loss": "loss", "map": "mAP",
    "exact_match": "exact match",
}  # fmt: skip
# Settings that are arguments by name, and may be given one at a time.
MAPPINGS = ("model_args", "optimizer_args", "schedule_args", "loss_args", "transform_args")
# Settings that name the weights to start from, of which a run has one -> the value of the other that it replaces.
OTHER_WEIGHTS = {"init": ("pretrained", False), "pretrained": ("init", "")}
# Settings that are arguments of a timm model.
MODEL_ARGUMENTS = {"drop": "drop_rate", "drop_path": "drop_path_rate"}
# Arguments of a timm model that a run decides by other settings.
DECIDED_ARGUMENTS = ("num_classes", "pretrained", "in_chans", "device", "dtype")
# How folders, files and columns call a split, in lower case.
SPLIT_WORDS: dict[str, SplitName] = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "val": "val", "valid": "val",
    "validation": "val", "dev": "val", "development": "val", "eval": "val", "evaluation": "val",
}  # fmt: skip
FIXED_DATASETS = ("cifar10", "cifar100", "digits")  # known splits, none of them for validation
BUILT_IN_DATASETS = (*FIXED_DATASETS, "folder", "table")
TIMM_PREFIXES = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")  # of the names of data sets that timm reads
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
FROM_PYTHON = "python/"  # what the name of a data set begins with that was given as an object


def main_metric(is_multilabel: bool) -> str:
    """Return the metric that a result is named by: accuracy, or mean average precision where images have several labels."""
    return MULTILABEL_METRICS[0] if is_multilabel else "acc"


def may_bring_validation(data: str) -> bool:
    """Return whether a data set may have a validation split of its own, so that val_fraction=0 does not imply that there is none."""
    return data.startswith(FROM_PYTHON) or ("/" not in data and data not in FIXED_DATASETS)


def data_of_path(data_dir: str) -> str:
    """Return the data set that a path stands for by itself: `table` for the name of a table, else nothing."""
    return "table" if data_dir.lower().endswith(TABLE_SUFFIXES) else ""


def data_name(data: str, data_dir: str) -> str:
    """Return a short name of a data set: that of the folder, archive or table that holds it, else the last part of its own."""
    if data not in ("folder", "table"):
        return data.rsplit("/", 1)[-1]
    name = os.path.basename(os.path.normpath(data_dir))
    if name in ("", ".", ".."):
        name = os.path.basename(os.path.abspath(data_dir))
    return re.sub(r"\.(tar(\.\w+)?|tgz|txz|csv|tsv|jsonl|parquet)$", "", name, flags=re.IGNORECASE) or data


class TrialStatus(StrEnum):
    """The state of a sweep's trial, as in `trials.csv` and `sweep.json`."""

    COMPLETE = "complete"
    PRUNED = "pruned"  # early termination
    FAILED = "failed"
    RUNNING = "running"
