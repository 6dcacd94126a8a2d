"""What a model says of labelled images, and every figure of merit that follows from it, in NumPy."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from harness.tracking.records import Scores, Table
from harness.utils.errors import DataError, DivergedError
from harness.utils.files import write_atomically

BINS = 15  # of the calibration error: equally wide, the usual number
COLUMNS = ("index", "id", "label", "prediction", "confidence", "loss", "margin")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell starts that a spreadsheet would run


@dataclass(frozen=True)
class Predictions:
    """The model's answers to N images of C classes, in the order of the data.

    Attributes:
        labels: int64 [N], the truth.
        probabilities: float32 [N, C], of the image as it is.
        losses: float32 [N], cross entropy, nats; without label smoothing.
        tta_probabilities: float32 [N, C], of the mean of the logits of the image and its mirror image.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray
    tta_probabilities: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> np.ndarray:
        """int64 [N], the class with the greatest probability."""
        return self.probabilities.argmax(1)

    @property
    def confidence(self) -> np.ndarray:
        """float32 [N], the probability of the predicted class."""
        return self.probabilities.max(1)

    @property
    def right(self) -> np.ndarray:
        """bool [N]."""
        return self.predicted == self.labels

    @property
    def margin(self) -> np.ndarray:
        """float32 [N], probability of the true class less the greatest other one: -1..1, negative where wrong."""
        rows = np.arange(len(self))
        others = self.probabilities.copy()
        others[rows, self.labels] = -1.0
        rival = others.max(1) if others.shape[1] > 1 else np.zeros(len(self), np.float32)
        return self.probabilities[rows, self.labels] - rival

    def scores(self, classes: Sequence[str]) -> Scores:
        """The same as a value that a tracker can write."""
        return Scores(self.labels, self.probabilities, tuple(classes))


@dataclass(frozen=True)
class PerClass:
    """One figure a class; 0 where it is not defined (a class never predicted, or without images).

    Attributes:
        accuracy: float64 [C], share of all images that are rightly said to be of the class or not.
        precision, recall, f1: float64 [C], shares.
        support: int64 [C], images of the class.
    """

    accuracy: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray

    def table(self, classes: Sequence[str]) -> Table:
        """A row a class."""
        shares = (self.accuracy, self.precision, self.recall, self.f1, self.support)
        columns = (column.tolist() for column in shares)
        names = ("class", "accuracy", "precision", "recall", "f1", "images")
        return Table(names, list(zip(classes, *columns, strict=True)))


@dataclass(frozen=True)
class Reliability:
    """How often the model is right, by how sure it says it is, in equally wide bins of confidence.

    Attributes:
        edges: float64 [bins + 1]; a confidence belongs to the bin with `low < confidence <= high`.
        counts: int64 [bins].
        confidence: float64 [bins], mean in the bin; NaN in an empty one.
        accuracy: float64 [bins], share right in the bin; NaN in an empty one.
        ece: expected calibration error: mean of |accuracy - confidence| over the images.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float


def predict(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str,
    *,
    autocast: torch.dtype | None = None,
    tta: bool = False,
) -> Predictions:
    """The model's answers to every image, in evaluation mode; the model's modes are given back as they were.

    Args:
        batches: images float [B, 3, H, W], normalised, and labels int [B].
        autocast: dtype of the forward pass; None: the model's own. Losses and probabilities are float32 always.
        tta: also show the model each image mirrored.

    Raises:
        DataError: there is no image.
        DivergedError: the model answers with NaN or infinite numbers.
    """
    device = torch.device(device)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []
    # no_grad, not inference_mode: a buffer that a model makes on its first forward pass must stay fit for training.
    with eval_mode(model), torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        for images, labels in batches:
            images, truth = images.to(device, non_blocking=True), labels.to(device, non_blocking=True).long()
            logits = model(images).float()  # [B, C]
            loss = nn.functional.cross_entropy(logits, truth, reduction="none")
            flipped = (logits + model(images.flip(-1)).float()) / 2 if tta else None
            parts.append((truth, logits.softmax(1), loss, None if flipped is None else flipped.softmax(1)))
    if not parts:
        raise DataError("there are no images to predict")
    columns = [_joined(part) for part in zip(*parts, strict=True)]
    joined = Predictions(columns[0], columns[1], columns[2], columns[3] if tta else None)
    bad = int((~np.isfinite(joined.probabilities).all(1)).sum())
    if bad:
        raise DivergedError(
            f"the model answers {bad} of {len(joined)} images with NaN or infinite numbers; its training has diverged"
        )
    return joined


def _joined(parts: Sequence[Tensor | None]) -> np.ndarray:
    """The parts of all batches, one after the other; empty when there are none."""
    return torch.cat([part for part in parts if part is not None] or [torch.empty(0)]).cpu().numpy()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode; afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def accuracy(predictions: Predictions, k: int = 1) -> float:
    """Share 0..1 of the images whose true class is among the `k` most probable."""
    if k == 1:
        return float(predictions.right.mean())
    k = min(k, predictions.probabilities.shape[1])
    best = np.argsort(-predictions.probabilities, axis=1, kind="stable")[:, :k]
    return float((best == predictions.labels[:, None]).any(1).mean())


def confusion(predictions: Predictions) -> np.ndarray:
    """int64 [C, C]: how many images of the class of the row were given the class of the column."""
    classes = predictions.probabilities.shape[1]
    pairs = predictions.labels * classes + predictions.predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def per_class(matrix: np.ndarray) -> PerClass:
    """Accuracy (one class against the rest), precision, recall, F1 and number of images of each class, from a confusion matrix."""
    hits, said, true = matrix.diagonal().astype(float), matrix.sum(0), matrix.sum(1)
    count = max(int(matrix.sum()), 1)
    return PerClass(
        accuracy=1 - (said + true - 2 * hits) / count,
        precision=np.divide(hits, said, out=np.zeros_like(hits), where=said > 0),
        recall=np.divide(hits, true, out=np.zeros_like(hits), where=true > 0),
        f1=np.divide(2 * hits, said + true, out=np.zeros_like(hits), where=said + true > 0),
        support=true,
    )


def reliability(predictions: Predictions, bins: int = BINS) -> Reliability:
    """Calibration of the predicted class's probability, in `bins` equally wide bins.

    Source: Guo et al., "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, eq. 2-3.
    """
    sure, right = predictions.confidence.astype(float), predictions.right
    edges = np.linspace(0, 1, bins + 1)
    where = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, bins - 1)
    counts = np.bincount(where, minlength=bins)
    some = counts > 0
    nothing = np.full(bins, np.nan)
    confidence = np.divide(np.bincount(where, sure, bins), counts, out=nothing.copy(), where=some)
    share = np.divide(np.bincount(where, right, bins), counts, out=nothing.copy(), where=some)
    ece = float((counts[some] * np.abs(share - confidence)[some]).sum() / counts.sum())
    return Reliability(edges, counts, confidence, share, ece)


def write_csv(predictions: Predictions, ids: Sequence[str], classes: Sequence[str], path: Path | str) -> Path:
    """`predictions.csv`: a row an image, in the order of the data.

    The label and the prediction are class names. A text that a spreadsheet would take for a formula gets a leading `'`.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    names = [_cell(name) for name in classes]
    columns = (
        predictions.labels,
        predictions.predicted,
        predictions.confidence,
        predictions.losses,
        predictions.margin,
    )
    for index, (name, label, said, sure, loss, margin) in enumerate(zip(ids, *columns, strict=True)):
        writer.writerow((index, _cell(name), names[label], names[said], f"{sure:.6g}", f"{loss:.6g}", f"{margin:.6g}"))
    # A file name need not be valid Unicode; what is not is written as an escape.
    write_atomically(Path(path), text.getvalue().encode("utf-8", "backslashreplace"))
    return Path(path)


def write_table(table: Table, path: Path | str) -> Path:
    """A table of scalars as CSV, its texts safe for a spreadsheet."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in table.rows)
    write_atomically(Path(path), text.getvalue().encode("utf-8", "backslashreplace"))
    return Path(path)


def _cell(text: str) -> str:
    return "'" + text if text.startswith(_FORMULA) else text
