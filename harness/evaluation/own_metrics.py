"""Metrics that a plug-in registers: functions of the predictions of a split."""

from __future__ import annotations

import logging
from typing import Any

from harness.config.names import MULTILABEL_METRICS
from harness.config.settings import Config
from harness.evaluation.metrics import Predictions
from harness.evaluation.multilabel import MultilabelPredictions
from harness.tracking.metric_names import check_metric_names
from harness.utils.errors import UsageError, did_you_mean, first_line
from harness.utils.registry import find_registered, origin_of, register, registered_names

# Metrics that a result has anyway.
COMPUTED = (
    *("acc", "acc5", "acc_plain", "acc_tta", "balanced_acc", "ece", "loss", "loss_plain", "map_plain", "map_tta"),
    *MULTILABEL_METRICS,
)
log = logging.getLogger(__name__)


def register_metric(function: Any = None, *, name: str = "") -> Any:
    """Register a metric: `--metrics NAME --plugin MODULE` adds it to the result of a run and of `harness evaluate`.

    The function gets the `Predictions` of the evaluated split and returns a number. Where images have several labels it gets
    `MultilabelPredictions`: `labels` uint8 [N, C] of 0 and 1, `probabilities` float32 [N, C], `predicted` bool [N, C].

    Args:
        name: by default that of the function; letters, digits and _.

    Raises:
        UsageError: the name is one of a metric of `harness`, is none that W&B accepts, or another module has registered it.
    """

    def add(function: Any) -> Any:
        chosen = name or function.__name__
        try:
            check_metric_names([chosen])
        except ValueError as error:
            raise UsageError(f"{error}; the module {origin_of(function)} registers it") from None
        return register("metric", function, name=chosen, taken=COMPUTED)

    return add if function is None else add(function)


def check_metrics(config: Config) -> None:
    """Refuse a metric that no plug-in registers, before anything is trained.

    Raises:
        UsageError: there is none of that name; the message names the nearest.
    """
    for name in config.metrics:
        if find_registered("metric", name, config.plugin) is None:
            known = registered_names("metric")
            raise UsageError(
                f"metrics={name!r}: no plug-in registers it{did_you_mean(name, known)}; need a name that a module of --plugin registers"
            )


def own_metrics(config: Config, predictions: Predictions | MultilabelPredictions) -> dict[str, float]:
    """Return the metrics of plug-ins; one that is not at hand or fails is left out with a warning, since a result must not be lost."""
    values = {}
    for name in dict.fromkeys(config.metrics):
        try:
            function = find_registered("metric", name, config.plugin)
            if function is None:
                raise UsageError(
                    "no plug-in registers it; install the package that does, or name its module with --plugin"
                )
            values[name] = float(function(predictions))
        except Exception as error:  # noqa: BLE001 - code of the user
            several = f"; its labels are uint8 {list(predictions.labels.shape)} here, several per image"
            remark = several if isinstance(predictions, MultilabelPredictions) else ""
            kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
            log.warning("metric %s is left out: %s%s%s", name, kind, first_line(error), remark)
    return values
