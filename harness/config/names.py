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
# Arguments of a timm model that a run decides by other settings.
DECIDED_ARGUMENTS = ("num_classes", "pretrained", "in_chans", "device", "dtype")
BUILT_IN_DATASETS = ("cifar10", "cifar100", "digits", "folder")


# How other trainers call a setting, in lower case and without dashes: its name here, for messages.
NAMES_ELSEWHERE = {
    "amp": "precision", "arch": "model", "architecture": "model", "backbone": "model", "baselr": "lr_max",
    "batch": "batch_size", "bs": "batch_size", "cfg": "recipe", "checkpoint": "resume", "ckpt": "resume",
    "classificationdataset": "data", "dataset": "data", "datasetname": "data", "datapath": "data_dir", "dropout": "model_args",
    "dropoutrate": "model_args", "droppath": "model_args", "droprate": "model_args", "earlystopping": "early_stop",
    "earlystoppingpatience": "early_stop", "evalbatch": "eval_batch_size", "experiment": "name", "finallr": "lr_min",
    "fp16": "precision", "gpu": "device", "gpus": "device", "gradclip": "clip_grad", "gradientaccumulationsteps": "grad_accumulation",
    "imgsize": "image_size", "imgsz": "image_size", "initialcheckpoint": "init", "initlr": "lr_max", "inputsize": "image_size", "learningrate": "lr_max",
    "logdir": "output", "lr0": "lr_max", "maxepochs": "epochs", "maxlr": "lr_max", "minlr": "lr_min", "mixedprecision": "precision",
    "modelema": "ema", "modelname": "model", "mom": "momentum", "nepochs": "epochs", "networkname": "model", "numclasses": "classes",
    "numepochs": "epochs", "numtrainepochs": "epochs", "numworkers": "workers", "optargs": "optimizer_args", "optbetas": "optimizer_args", "opteps": "optimizer_args", "optim": "optimizer", "outdir": "output",
    "outputdir": "output", "patience": "early_stop", "randomseed": "seed", "root": "data_dir", "runname": "name", "sched": "schedule",
    "scheduler": "schedule", "smoothing": "label_smoothing", "trainbatchsize": "batch_size", "wandbproject": "project",
    "warmup": "peak_epoch", "warmupepochs": "peak_epoch", "weights": "init",
}  # fmt: skip


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
