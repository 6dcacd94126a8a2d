"""The names that settings, data and reports share."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

SplitName: TypeAlias = Literal["train", "val", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)
BUILT_IN_DATASETS = ("cifar10", "cifar100", "digits", "folder")
