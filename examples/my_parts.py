"""Register a transform, a loss, a schedule, a metric and a tracker of your own:

    harness run --recipe digits --plugin my_parts --transforms jpeg --transform-args lowest=50 --loss poly1
        --loss-args epsilon=2 --schedule inverse_sqrt --schedule-args power=0.5 --warmup-epochs 0.5 --metrics worst_recall --tracker lines

A plug-in is any importable Python module; a function or class is registered when the module is imported.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from harness.data import register_transform
from harness.evaluation import Predictions, register_metric
from harness.tracking import Backend, MeasuredRow, RunLabels, register_tracker
from harness.training import register_loss, register_schedule


@register_transform
def jpeg(image: np.ndarray, generator: np.random.Generator, lowest: int = 30) -> np.ndarray:
    """Return an image, uint8 [H, W, 3], as JPEG compression of a random quality from `lowest` to 95 leaves it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(generator.integers(lowest, 96)))
    return np.array(Image.open(file))


@register_loss
def poly1(logits: Tensor, targets: Tensor, epsilon: float = 1.0, class_weights: Tensor | None = None) -> Tensor:
    """Return the Poly-1 loss: cross-entropy + epsilon (1 - p) with the probability p of the label, a mean over the images.

    Source: Leng et al., https://arxiv.org/abs/2204.12511, section 4.
    """
    soft = targets if targets.ndim == 2 else F.one_hot(targets, logits.shape[1]).float()  # float32 [B, C]
    by_image = F.cross_entropy(logits, targets, reduction="none") + epsilon * (1 - (soft * logits.softmax(1)).sum(1))
    if class_weights is not None:
        by_image = by_image * (soft @ class_weights)
    return by_image.mean()


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
