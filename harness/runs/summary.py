"""The summary of a run as plain numbers and texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from harness.config.names import MACRO_METRICS, REPORTED_SPLITS, main_metric
from harness.config.settings import Config
from harness.models import factory
from harness.runs.advice import result_warnings
from harness.runs.components import Components, describe_data
from harness.tracking.metric_names import is_unbalanced
from harness.tracking.records import Scalar
from harness.training.loop import TrainerState
from harness.utils.multilabel import FIXED_THRESHOLD
from harness.utils.plain import sub_mapping
from harness.utils.text import counted, percent


def summarise(
    components: Components,
    state: TrainerState,
    metrics: Mapping[str, Scalar],
    environment: Mapping[str, Any],
    thresholds: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the contents of `summary.json` of a finished run.

    Args:
        metrics: the result's, `test/acc` and the like.
        environment: plain facts of the machine.
        thresholds: float64 [C], of the classes where images have several labels.
    """
    history, split, selection = state.history, components.eval_split, components.selection_split
    metric = components.config.select_by
    epoch, _ = best_epoch(history, split, metric) if history else (0, 0.0)
    chosen = f"best {selection}/{metric}" if selection else "last epoch"
    warning = " (chosen on the test set)" if split == "test" else ""
    config: Config = components.config
    return {
        "status": "finished",
        "result": {
            "epoch": epoch if selection else len(history),
            "chosen": chosen + (warning if selection == "test" else ""),
            **metrics,
        },
        **({} if thresholds is None else {"thresholds": _thresholds(components, thresholds)}),
        "best": _best(history, split, metric, f"best {split}/{metric}{warning}", main_metric(config.is_multilabel)),
        "last": history[-1] if history else {},
        "lr_min": config.lr_min,
        "lr_max": config.lr_max,
        "epochs": len(history),
        "steps": state.step,
        "parameters": factory.count_parameters(components.learner.model),
        "warnings": result_warnings(components, state, metrics),
        "grad_accumulation": components.learner.grad_accumulation,
        "seconds": {key: round(sum(row[f"time/{key}_s"] for row in history), 3) for key in ("train", "eval", "epoch")},
        "dataset": describe_data(components),
        "environment": dict(environment),
    }


def _thresholds(components: Components, thresholds: np.ndarray) -> dict[str, Any]:
    """Return the probability from which each class is predicted, and what chose it."""
    is_chosen = components.loaders.val is not None
    chosen = (
        "best F1 of each class on the validation split"
        if is_chosen
        else f"{FIXED_THRESHOLD:g} for every class, since there is no validation split"
    )
    return {"chosen": chosen, "classes": dict(zip(components.dataset.classes, thresholds.tolist(), strict=True))}


def _best(history: list[dict[str, float]], split: str, metric: str, chosen: str, main: str) -> dict[str, Any]:
    """Return the best epoch with its accuracy (mAP where images have several labels) and the metric that it was chosen by; empty where there is none."""
    if not history:
        return {}
    epoch, value = best_epoch(history, split, metric)
    acc = history[epoch - 1].get(f"{split}/{main}", math.nan) if epoch else math.nan
    return {"epoch": epoch, f"{split}/{main}": acc, f"{split}/{metric}": value, "chosen": chosen}


def last_accuracy(history: list[dict[str, float]]) -> dict[str, Any]:
    """Return the accuracy of the last epoch, or its mAP where images have several labels, as `last` of `status.json`, which lists read while a run trains."""
    last = history[-1] if history else {}
    names = [f"{split}/{metric}" for split in REPORTED_SPLITS for metric in ("acc", "map")]
    known = {name: last[name] for name in names if name in last}
    return {"last": known} if known else {}


def best_epoch(history: list[dict[str, float]], split: str, metric: str = "acc") -> tuple[int, float]:
    """Return (epoch counted from 1, value) of the first epoch with the best value of a metric on a split: the lowest loss, or
    the highest of the others.

    An epoch whose loss, accuracy or mAP is not finite is none; (0, NaN) where there is no other.
    """
    name, metrics = f"{split}/{metric}", (f"{split}/acc", f"{split}/loss", f"{split}/map")
    finite = [row for row in history if all(math.isfinite(row.get(name, 0.0)) for name in metrics)]
    if not finite:
        return 0, math.nan
    sign = -1 if metric == "loss" else 1
    row = max(finite, key=lambda row: sign * row.get(name, -sign * math.inf))
    return int(row["epoch"]), row.get(name, math.nan)


def plain_metrics(history: list[dict[str, float]], epoch: int) -> dict[str, float]:
    """Return the metrics that the weights without their moving average had after an epoch, counted from 1; empty without an average."""
    row = history[epoch - 1] if epoch else {}
    return {name: value for name, value in row.items() if name.endswith("_plain")}


def flatten_summary(summary: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Return the numbers and texts of a summary under `part/key` names, without environment, data and thresholds."""
    flat: dict[str, Scalar] = {}
    for key, value in summary.items():
        if key in ("environment", "dataset", "thresholds"):
            continue
        if isinstance(value, Mapping):
            flat |= flatten_summary(value, "" if key == "last" else f"{prefix}{key}/")
        elif isinstance(value, int | float | str):
            flat[f"{prefix}{key}"] = value
    return flat


HEADLINE_SHARES = {
    "acc_plain": "without EMA",
    "acc_tta": "with TTA",
    "acc5": "top 5",
    "balanced_acc": "balanced",
    "f1_macro": "macro F1",
}


def _multilabel_rows(summary: Mapping[str, Any], split: str) -> list[tuple[str, str]]:
    """Return the headline metrics of a split whose images have several labels."""
    result = summary["result"]
    chosen = f"loss {result[f'{split}/loss']:.4f}; {result['chosen']}, epoch {result['epoch']}"
    at = sub_mapping(summary, "thresholds").get("chosen", "")
    variants = [
        (f"  {name}", percent(result[f"{split}/{key}"], 2))
        for key, name in (("map_plain", "without EMA"), ("map_tta", "with TTA"))
        if f"{split}/{key}" in result
    ]
    return [
        (f"{split} mAP", f"{percent(result[f'{split}/map'], 2)}  ({chosen})"),
        *variants,
        ("  macro F1", f"{percent(result[f'{split}/f1_macro'], 2)}  (thresholds: {at})"),
        ("  exact match", percent(result[f"{split}/exact_match"], 2)),
    ]


def summary_table(summary: Mapping[str, Any]) -> str:
    """Return the headline metrics of a finished run as text."""
    result, best = summary["result"], summary["best"]
    rows = []
    for split in REPORTED_SPLITS:
        if f"{split}/map" in result and f"{split}/acc" not in result:
            rows += _multilabel_rows(summary, split)
            continue
        if f"{split}/acc" in result:
            accuracy, loss = percent(result[f"{split}/acc"], 2), result[f"{split}/loss"]
            chosen = f"{result['chosen']}, epoch {result['epoch']}"
            rows.append((f"{split} accuracy", f"{accuracy}  (loss {loss:.4f}; {chosen})"))
        shows_macro = is_unbalanced(*(result.get(f"{split}/{key}", math.nan) for key in ("acc", "balanced_acc")))
        for key, name in HEADLINE_SHARES.items():
            if f"{split}/{key}" in result and (key not in MACRO_METRICS or shows_macro):
                rows.append((f"  {name}", percent(result[f"{split}/{key}"], 2)))
        if f"{split}/ece" in result:
            rows.append(("  ECE", f"{percent(result[f'{split}/ece'])}  (expected calibration error)"))
    key = next((key for key in best if key.endswith(("/acc", "/map"))), "")
    if key and best["epoch"] != result["epoch"]:
        rows.append(("best epoch", f"{percent(best[key], 2)}  ({best['chosen']}, epoch {best['epoch']})"))
    rows.append(("parameters", f"{summary['parameters']:,}"))
    rows.append(
        (
            "training",
            f"{counted(summary['epochs'], 'epoch', 'epochs')}, {counted(summary['steps'], 'step', 'steps')}, {summary['seconds']['epoch']:.1f} s",
        )
    )
    return "\n".join(f"{name:<14} {text}" for name, text in rows)
