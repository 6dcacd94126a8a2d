"""Check the position of a run in a checkpoint, which may come from somebody else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.utils.plain import number, sub_mapping

TENSOR_FIELDS = ("losses", "corrects", "norms")  # of a `TrainerState`: a number for each update of the unfinished epoch


def check_progress(state: Any) -> None:
    """Check what a checkpoint holds of a `TrainerState`.

    Raises:
        ValueError: a value has another type or makes no sense.
    """
    if not isinstance(state, Mapping):
        raise ValueError("its progress is no mapping")
    step, history, lrs, sizes = (state.get(name) for name in ("step", "history", "lrs", "sizes"))
    if type(step) is not int or step < 0:
        raise ValueError(f"its step is {step!r:.40}")
    if not isinstance(history, list) or not all(
        isinstance(row, dict) and all(isinstance(key, str) and _is_plain_number(value) for key, value in row.items())
        for row in history
    ):
        raise ValueError("its history is no list of numbers with names")
    if any(number(row.get("epoch")) != epoch for epoch, row in enumerate(history, 1)):
        raise ValueError("the epochs of its history are not those from 1 on")
    if not isinstance(lrs, list) or not all(math.isfinite(number(lr)) for lr in lrs):
        raise ValueError("its learning rates are no numbers")
    if (
        not isinstance(sizes, list)
        or len(sizes) != len(lrs)
        or not all(type(size) is int and size > 0 for size in sizes)
    ):
        raise ValueError("its sizes of batches are no positive numbers, one for each learning rate")
    times = state.get("times", [])  # former checkpoints have none
    if not isinstance(times, list) or not all(math.isfinite(number(value)) for value in times):
        raise ValueError("the times of its updates are no numbers")
    if not 0 <= number(state.get("seconds")) < math.inf:
        raise ValueError(f"its seconds are {state.get('seconds')!r:.40}")
    for name in TENSOR_FIELDS:
        values = state.get(name)
        if values is None and (name == "norms" or not lrs):
            continue
        if (
            not isinstance(values, Tensor)
            or values.layout != torch.strided
            or values.shape != (len(lrs),)
            or values.is_complex()
        ):
            raise ValueError(f"its {name} are not one number for each update of the epoch")
    random = sub_mapping(state, "random")
    if (
        not all(isinstance(value, Tensor) and value.dtype == torch.uint8 for value in random.values())
        or "cpu" not in random
    ):
        raise ValueError("it has no random state")


def _is_plain_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**53)
