"""The summary of a run as plain numbers and texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from harness.config.names import REPORTED_SPLITS
from harness.config.settings import Config
from harness.models import factory
from harness.runs.advice import result_warnings
from harness.runs.components import Components, describe_data
from harness.tracking.records import Scalar
from harness.training.loop import TrainerState
from harness.utils.text import counted, percent


def summarise(
    components: Components, state: TrainerState, metrics: Mapping[str, Scalar], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the contents of `summary.json` of a finished run.

    Args:
        metrics: the result's, `test/acc` and the like.
        environment: plain facts of the machine.
    """
    history, split, selection = state.history, components.eval_split, components.selection_split
    epoch, acc = best_epoch(history, split) if history else (0, 0.0)
    chosen = f"best {selection}/acc" if selection else "last epoch"
    warning = " (chosen on the test set)" if split == "test" else ""
    config: Config = components.config
    return {
        "status": "finished",
        "result": {
            "epoch": epoch if selection else len(history),
            "chosen": chosen + (warning if selection == "test" else ""),
            **metrics,
        },
        "best": {"epoch": epoch, f"{split}/acc": acc, "chosen": f"best {split}/acc{warning}"} if history else {},
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


def best_epoch(history: list[dict[str, float]], split: str) -> tuple[int, float]:
    """Return (epoch counted from 1, accuracy) of the first epoch with the highest accuracy on a split.

    An epoch whose loss or accuracy is not finite is none; (0, NaN) where there is no other.
    """
    metrics = (f"{split}/acc", f"{split}/loss")
    finite = [row for row in history if all(math.isfinite(row.get(name, 0.0)) for name in metrics)]
    if not finite:
        return 0, math.nan
    row = max(finite, key=lambda row: row.get(metrics[0], -math.inf))
    return int(row["epoch"]), row.get(metrics[0], math.nan)


def flatten_summary(summary: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Return the numbers and texts of a summary under `part/key` names, without environment and data."""
    flat: dict[str, Scalar] = {}
    for key, value in summary.items():
        if key in ("environment", "dataset"):
            continue
        if isinstance(value, Mapping):
            flat |= flatten_summary(value, "" if key == "last" else f"{prefix}{key}/")
        elif isinstance(value, int | float | str):
            flat[f"{prefix}{key}"] = value
    return flat


def summary_table(summary: Mapping[str, Any]) -> str:
    """Return the headline metrics of a finished run as text."""
    result, best = summary["result"], summary["best"]
    rows = []
    for split in REPORTED_SPLITS:
        if f"{split}/acc" in result:
            accuracy, loss = percent(result[f"{split}/acc"], 2), result[f"{split}/loss"]
            chosen = f"{result['chosen']}, epoch {result['epoch']}"
            rows.append((f"{split} accuracy", f"{accuracy}  (loss {loss:.4f}; {chosen})"))
        for key, name in (("acc_tta", "with TTA"), ("acc5", "top 5")):
            if f"{split}/{key}" in result:
                rows.append((f"  {name}", percent(result[f"{split}/{key}"], 2)))
        if f"{split}/ece" in result:
            rows.append(("  ECE", f"{percent(result[f'{split}/ece'])}  (expected calibration error)"))
    key = next((key for key in best if key.endswith("/acc")), "")
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
