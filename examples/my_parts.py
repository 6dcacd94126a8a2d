"""Register a schedule, a metric and a tracker of your own:

    harness run --recipe digits --plugin my_parts --schedule inverse_sqrt --schedule-args power=0.5 --warmup-epochs 0.5
        --metrics worst_recall --tracker lines

A plug-in is any importable Python module; a function or class is registered when the module is imported.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.evaluation import Predictions, register_metric
from harness.tracking import Backend, MeasuredRow, RunLabels, register_tracker
from harness.training import register_schedule


@register_schedule
def inverse_sqrt(step: float, steps: float, power: float = 0.5) -> float:
    """Return the position of the LR between LRMIN (0) and LRMAX (1) after `step` of `steps` updates.

    As in "Attention Is All You Need", https://arxiv.org/abs/1706.03762, section 5.3: `--warmup-epochs` is the warm-up.
    """
    return (1 + 9 * step / steps) ** -power


@register_metric
def worst_recall(predictions: Predictions) -> float:
    """Return the recall of the class that is recognised worst."""
    labels = predictions.labels
    return min(float(predictions.correct[labels == label].mean()) for label in np.unique(labels))


@register_tracker(name="lines")
class Lines(Backend):
    """Write a run to `lines.jsonl` in the run directory, one JSON object per line."""

    title = "Lines"

    def __init__(self, labels: RunLabels) -> None:
        self.run_id = labels.run_id or labels.name
        self.path = labels.folder / "lines.jsonl"
        self._write(name=labels.name, project=labels.project)

    def _write(self, **values: Any) -> None:
        with self.path.open("a") as file:
            print(json.dumps(values, default=str), file=file)

    def log(self, rows: Sequence[MeasuredRow]) -> None:
        """Write the numbers of some steps; pictures and histograms are left out."""
        for row in rows:
            self._write(step=row.step, **row.scalars)

    def config(self, values: Mapping[str, Any]) -> None:
        """Write settings."""
        self._write(config=values)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write what describes the whole run."""
        self._write(summary=values)

    def files(self, artifact: Any) -> None:
        """Write the names of files."""
        self._write(files=list(artifact.files))

    def close(self, status: str) -> None:
        """Write how the run ended."""
        self._write(status=status)
