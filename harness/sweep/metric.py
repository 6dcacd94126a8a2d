"""The metrics that a sweep optimises: one, or several at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.config.names import MACRO_METRICS, MULTILABEL_METRICS, SELECTION_METRICS, main_metric, may_bring_validation
from harness.config.settings import Config
from harness.utils.errors import UsageError, did_you_mean

# What the record of every epoch holds beside loss and accuracy of the splits; a test compares it with a real run.
OTHER_METRICS = ("lr", "epoch", "time/train_s", "time/eval_s", "time/epoch_s", "throughput/images_per_s")
# Split -> the metrics of it that the record of an epoch may hold.
METRICS_OF = {
    split: tuple(f"{start}{key}" for start in (f"{split}/", f"best/{split}_") for key in SELECTION_METRICS)
    for split in ("val", "test")
}


@dataclass(frozen=True)
class Metric:
    """The metric that a sweep optimises.

    Attributes:
        target: the value at which the sweep ends; None: it does not.
        takes_last: whether the last value that a trial logged counts, as in W&B's scheduler; otherwise its best one, as in
            W&B's own search.
    """

    name: str
    maximise: bool
    target: float | None = None
    takes_last: bool = False

    def better(self, value: float, other: float) -> bool:
        """Return whether `value` is better than `other`."""
        return value > other if self.maximise else value < other

    def reached(self, value: float) -> bool:
        """Return whether `value` is as good as the target."""
        return self.target is not None and not self.better(self.target, value)

    def best(self, values: Sequence[float]) -> float:
        """Return the one of a trial's values that counts."""
        if self.takes_last:
            return values[-1]
        return max(values) if self.maximise else min(values)


def read_metrics(document: Mapping[str, Any], method: str) -> tuple[Metric, ...]:
    """Return the metrics of a sweep file, from its `metric:` or `metrics:`.

    Args:
        method: of the file, before `scheduler:` is resolved.

    Raises:
        UsageError: they are not valid, or missing where the method needs them.
    """
    takes_last = method == "custom"
    if "metrics" not in document:
        return (_read_metric(document.get("metric"), method, takes_last),)
    blocks = document["metrics"]
    if "metric" in document:
        raise UsageError("metric and metrics do not go together in W&B; leave one out")
    if method != "custom":
        raise UsageError(
            f"metrics (several at once) with method={method}: W&B needs method: custom and scheduler: {{engine: optuna}}"
        )
    if not isinstance(blocks, list) or len(blocks) < 2:
        raise UsageError("metrics: need a list of two or more metrics; for one, write metric:")
    metrics = tuple(_read_metric(block, method, takes_last) for block in blocks)
    if len({metric.name for metric in metrics}) < len(metrics):
        raise UsageError("metrics: one of them is listed twice")
    if any(metric.target is not None for metric in metrics):
        raise UsageError("metrics: a target ends a sweep of one metric only; leave it out")
    return metrics


def _read_metric(block: Any, method: str, takes_last: bool) -> Metric:
    if block is None and method == "custom":
        raise UsageError("scheduler: it needs a metric: add metric: {name: best/val_acc, goal: maximize}")
    if block is None and method != "bayes":  # W&B needs none for a grid or a random search
        return Metric("best/val_acc", True)
    if block is None:
        raise UsageError(
            "bayes needs a metric, for W&B's own search too: add metric: {name: best/val_acc, goal: maximize}"
        )
    if not isinstance(block, Mapping) or not isinstance(block.get("name"), str):
        raise UsageError("metric: need `name:` and `goal:`, such as {name: best/val_acc, goal: maximize}")
    known = ("name", "goal", "target", "impute", "impute_while_running")
    if unknown := [str(key) for key in block if key not in known]:
        raise UsageError(f"metric: unknown key {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    goal, target = block.get("goal", "minimize"), block.get("target")
    if goal not in ("minimize", "maximize"):
        raise UsageError(
            f"metric: goal={goal!r}: need minimize or maximize{did_you_mean(str(goal), ('minimize', 'maximize'))}"
        )
    if target is not None and (isinstance(target, bool) or not isinstance(target, int | float)):
        raise UsageError(f"metric: target={target!r}: need a number")
    return Metric(block["name"], goal == "maximize", None if target is None else float(target), takes_last)


def check_metric(name: str, config: Config, on_test: bool) -> None:
    """Check that runs with these settings log the metric `name`, and that it may choose between them.

    Args:
        on_test: allow a metric of the test set.

    Raises:
        UsageError: no run logs it, or it is one of the test set.
    """
    brings_val = may_bring_validation(config.data)
    has_val = config.val_fraction > 0 or brings_val
    splits = ["train", *(["val"] if has_val else []), *(["test"] if not has_val or brings_val else [])]
    main = main_metric(config.is_multilabel)
    held_out = [split for split in splits if split != "train"]
    if config.is_multilabel:
        known = ["train/exact_match", *(f"{split}/loss" for split in splits)]
        known += [f"{split}/{key}" for split in held_out for key in MULTILABEL_METRICS]
    else:
        known = [f"{split}/{key}" for split in splits for key in ("acc", "loss")]
        known += [f"{split}/{key}" for split in held_out for key in MACRO_METRICS]
    known += [f"best/{split}_{key}" for split in held_out for key in dict.fromkeys((main, config.select_by))]
    reads_test = reads_test_set(name)
    if name not in (*known, *OTHER_METRICS):
        if name in METRICS_OF["val"] and not has_val:
            raise UsageError(
                f"metric: {name} needs a validation split; add val_fraction: {{value: 0.1}} to the parameters"
            )
        key = name.partition("_")[2]
        of_one_label = {"acc", "balanced_acc"}
        is_foreign = key in (of_one_label if config.is_multilabel else {*MULTILABEL_METRICS} - {*MACRO_METRICS})
        if name.startswith("best/") and is_foreign:
            several = "several labels" if config.is_multilabel else "one label"
            raise UsageError(
                f"metric: no run on images with {several} logs {name}; set metric: {{name: best/{held_out[0]}_{main}, goal: maximize}}"
            )
        if name.startswith("best/") and key in SELECTION_METRICS and key not in (main, config.select_by):
            raise UsageError(
                f"metric: {name} is logged with select_by={key}; add select_by: {{value: {key}}} to the parameters"
            )
        if not reads_test:
            raise UsageError(
                f"metric: no run logs {name!r}{did_you_mean(name, (*known, *OTHER_METRICS))}; metrics are {', '.join(known)}"
            )
    if reads_test and has_val and not brings_val:
        raise UsageError(f"metric: {name} is not logged with a validation split; use best/val_{main}")
    if reads_test and not on_test:
        raise UsageError(
            f"metric: {name} would choose by the test set; use best/val_{main} with val_fraction: {{value: 0.1}}, or give --choose-on-test"
        )


def reads_test_set(name: str) -> bool:
    """Return whether a metric is one of the test set."""
    return name in METRICS_OF["test"]
