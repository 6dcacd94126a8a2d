"""Names of metrics: which are valid in W&B, and the names that older run directories have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from harness.config.names import MACRO_METRICS, MULTILABEL_METRICS
from harness.utils.stats import Scale

METRIC_NAME = re.compile(r"[A-Za-z_/][A-Za-z0-9_/]*")

# Metric names of version 0.1, as they stand in older run directories -> their present names.
FORMER_METRIC_NAMES = {
    "time/epoch(s)": "time/epoch_s",
    "time/train(s)": "time/train_s",
    "time/eval(s)": "time/eval_s",
    "throughput(images/s)": "throughput/images_per_s",
    "memory/peak(GiB)": "memory/peak_gib",
}


def check_metric_names(names: Iterable[str]) -> None:
    """Refuse metric names that parts of W&B (charts, sweeps, reports) do not accept.

    Raises:
        ValueError: a name has other characters than letters, digits, `_` and `/`, or begins with a digit.
    """
    for name in names:
        if not METRIC_NAME.fullmatch(name):
            raise ValueError(f"metric name {name!r}: need letters, digits, _ and /, and no digit first")


def with_present_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics under their present names; a metric that was never renamed keeps its name."""
    return {FORMER_METRIC_NAMES.get(name, name): value for name, value in values.items()}


def is_share(name: str) -> bool:
    """Return whether a metric is a fraction 0..1, which users read in percent: an accuracy, an F1, a mAP or a calibration error."""
    last = name.rsplit("/", 1)[-1]
    return last in (*MULTILABEL_METRICS, "map_tta", "map_plain") or last.startswith(("acc", "ece", *MACRO_METRICS))


def is_unbalanced(accuracy: float, balanced_accuracy: float) -> bool:
    """Return whether the balanced accuracy is another number than the accuracy, as where classes have unlike numbers of images.

    NaN is a number that is not known.
    """
    return abs(accuracy - balanced_accuracy) >= 0.005


def interval_scale(name: str) -> Scale:
    """Return the scale of a metric's interval: it stays within 0..100 % for fractions, and above 0 for losses."""
    if is_share(name):
        return "logit"
    return "log" if name.rsplit("/", 1)[-1].endswith("loss") else "linear"
