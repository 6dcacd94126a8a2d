"""What a run came to, as plain figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.runs.components import Components, describe_data
from harness.training.loop import TrainerState
from harness.tracking.records import Scalar
from harness.models import factory


def summarise(
    parts: Components, progress: TrainerState, final: Mapping[str, Scalar], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What `summary.json` holds of a finished run.

    Args:
        final: the result's figures. facts: of the machine.
    """
    history, watched, selects = progress.history, parts.watched, parts.selects
    epoch, acc = best_epoch(history, watched) if history else (0, 0.0)
    chosen = f"best {selects}/acc" if selects else "last epoch"
    warning = " (chosen on the test set)" if watched == "test" else ""
    return {
        "status": "finished",
        "result": {
            "epoch": epoch if selects else len(history),
            "chosen": chosen + (warning if selects == "test" else ""),
            **final,
        },
        "best": {"epoch": epoch, f"{watched}/acc": acc, "chosen": f"best {watched}/acc{warning}"} if history else {},
        "last": history[-1] if history else {},
        "lr_min": parts.config.lr_min,
        "lr_max": parts.config.lr_max,
        "epochs": len(history),
        "steps": progress.step,
        "parameters": factory.count_parameters(parts.learner.model),
        "grad_accumulation": parts.learner.grad_accumulation,
        "seconds": {key: round(sum(row[f"time/{key}_s"] for row in history), 3) for key in ("train", "eval", "epoch")},
        "dataset": describe_data(parts),
        "environment": dict(facts),
    }


def best_epoch(history: list[dict[str, float]], split: str) -> tuple[int, float]:
    """(epoch counted from 1, accuracy) of the first epoch with the highest accuracy on a split."""
    row = max(history, key=lambda row: row.get(f"{split}/acc", float("-inf")))
    return int(row["epoch"]), row.get(f"{split}/acc", float("nan"))


def flatten_summary(summary: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """The numbers and words of a summary under `part/key` names; the environment and the data stay out."""
    plain: dict[str, Scalar] = {}
    for key, value in summary.items():
        if key in ("environment", "dataset"):
            continue
        if isinstance(value, Mapping):
            plain |= flatten_summary(value, "" if key == "last" else f"{prefix}{key}/")
        elif isinstance(value, int | float | str):
            plain[f"{prefix}{key}"] = value
    return plain
