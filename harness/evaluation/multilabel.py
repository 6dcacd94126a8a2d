"""Predictions of several labels per image: what a model answers, its metrics by class, `predictions.csv`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.config.settings import Config
from harness.evaluation.predict import mean_tta_logits
from harness.tracking.records import Cell, Table
from harness.training.device import eval_mode
from harness.training.multilabel import image_losses
from harness.utils.errors import CheckpointError, DataError, DivergedError
from harness.utils.multilabel import FIXED_THRESHOLD, average_precisions, best_thresholds, f1_scores, multilabel_metrics
from harness.utils.text import csv_cell, write_csv

CLASS_COLUMNS = ("class", "average_precision", "f1", "precision", "recall", "threshold", "images", "predicted")
NO_LABEL = "(none)"  # the text for an image without labels
SEPARATOR = "|"  # between the labels of an image, where the table of the data has none


@dataclass(frozen=True)
class MultilabelPredictions:
    """The probabilities that a model gives to the C classes for N images that may have several of them.

    Attributes:
        labels: uint8 [N, C] of 0 and 1.
        probabilities: float32 [N, C], each class by itself.
        losses: float32 [N], binary cross-entropy, sum over the classes, nats.
        thresholds: float64 [C]; a class is predicted where its probability is at least that.
        tta_probabilities: float32 [N, C], of the mean of the logits over the views of test-time augmentation.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray
    thresholds: np.ndarray
    tta_probabilities: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def predicted(self) -> np.ndarray:
        """bool [N, C], the predicted classes."""
        return self.probabilities >= self.thresholds

    @cached_property
    def correct(self) -> np.ndarray:
        """bool [N], whether the predicted classes are exactly the true ones."""
        return (self.predicted == (self.labels > 0)).all(1)

    def metrics(self) -> dict[str, float]:
        """Return `map`, `loss` (nats), `f1_macro` and `exact_match`; `map_tta` where other views were predicted too."""
        values = multilabel_metrics(self.labels, self.probabilities, self.thresholds)
        values = {"map": values.pop("map"), "loss": float(self.losses.mean(dtype=np.float64)), **values}
        if self.tta_probabilities is not None:
            values["map_tta"] = multilabel_metrics(self.labels, self.tta_probabilities, self.thresholds)["map"]
        return values

    def class_table(self, classes: Sequence[str]) -> Table:
        """Return a row for each class; a figure that is undefined, as of a class without images, is None."""
        truth, predicted = self.labels > 0, self.predicted
        hits, images, answers = (truth & predicted).sum(0), truth.sum(0), predicted.sum(0)
        columns = (
            average_precisions(self.labels, self.probabilities),
            f1_scores(truth, predicted),
            np.divide(hits, answers, out=np.full(len(hits), np.nan), where=answers > 0),
            np.divide(hits, images, out=np.full(len(hits), np.nan), where=images > 0),
            self.thresholds,
        )
        figures = [[None if math.isnan(value) else value for value in column.tolist()] for column in columns]
        return Table(CLASS_COLUMNS, list(zip(classes, *figures, images.tolist(), answers.tolist(), strict=True)))

    def write_csv(self, ids: Sequence[str], classes: Sequence[str], separator: str, path: Path) -> None:
        """Write `predictions.csv`: one row per image, in the order of the data, with the probability of every class."""
        header = ("index", "id", "labels", "prediction", "exact_match", "loss", *map(csv_cell, classes))
        rows = (
            (
                index,
                csv_cell(str(id)),
                csv_cell(separator.join(names_of(label, classes))),
                csv_cell(separator.join(names_of(predicted, classes))),
                int(correct),
                f"{loss:.6g}",
                *(f"{probability:.6g}" for probability in probabilities.tolist()),
            )
            for index, (id, label, predicted, correct, loss, probabilities) in enumerate(
                zip(ids, self.labels, self.predicted, self.correct, self.losses, self.probabilities, strict=True)
            )
        )
        write_csv(path, header, rows, escape=False)


def names_of(row: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return the classes of an image.

    Args:
        row: [C] of 0 and 1, or of false and true.
    """
    return [classes[index] for index in np.flatnonzero(row).tolist()]


def label_text(row: np.ndarray, classes: Sequence[str]) -> str:
    """Return the classes of an image as text; `(none)` for an image without any."""
    return ", ".join(names_of(row, classes)) or NO_LABEL


def separator_of(config: Config) -> str:
    """Return what stands between the labels of an image in `predictions.csv` and the like."""
    return config.label_separator or SEPARATOR


def predict_multilabel(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    *,
    autocast: torch.dtype | None = None,
    tta: str = "none",
    thresholds: np.ndarray | None = None,
    chooses_thresholds: bool = False,
) -> MultilabelPredictions:
    """Return the model's predictions for every image, made in evaluation mode; the modules' modes are restored.

    Args:
        batches: images float [B, channels, H, W], normalised, and labels uint8 [B, C] of 0 and 1.
        autocast: dtype of the forward pass; None: the model's own. Losses and probabilities are always float32.
        tta: also predict other views of each image, see `tta_views`.
        thresholds: float [C]; None: 0.5 for each class.
        chooses_thresholds: choose them on these images instead, the best F1 for each class.

    Raises:
        DataError: there is no image.
        DivergedError: a prediction holds NaN or infinite numbers.
    """
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    with eval_mode(model), torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        for images, labels in batches:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            logits = model(images).float()
            tta_logits = logits if tta == "none" else mean_tta_logits(model, images, logits, tta)
            parts.append((labels, logits.sigmoid(), image_losses(logits, labels), tta_logits.sigmoid()))
    if not parts:
        raise DataError("there are no images to predict")
    truth, probabilities, losses, of_views = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    if bad := int((~np.isfinite(probabilities).all(1)).sum()):
        raise DivergedError(
            f"the model answers {bad} of {len(truth)} images with NaN or infinite numbers; its training has diverged"
        )
    if chooses_thresholds:
        thresholds = best_thresholds(truth, probabilities)
    elif thresholds is None:
        thresholds = fixed_thresholds(truth.shape[1])
    return MultilabelPredictions(truth, probabilities, losses, thresholds, None if tta == "none" else of_views)


def fixed_thresholds(classes: int) -> np.ndarray:
    """Return the thresholds that no images have chosen, float64 [C]."""
    return np.full(classes, FIXED_THRESHOLD)


def stored_thresholds(facts: Mapping[str, Any], classes: int, path: Path) -> np.ndarray | None:
    """Return the thresholds that are stored with the weights of a model; None where there are none.

    Raises:
        CheckpointError: they are not one number of 0..1 for each class.
    """
    values = facts.get("thresholds")
    if values is None:
        return None
    is_valid = isinstance(values, list) and len(values) == classes
    if not is_valid or not all(type(value) in (int, float) and 0 <= value <= 1 for value in values):
        raise CheckpointError(f"{path}: its thresholds are not one number from 0 to 1 for each of {classes} classes")
    return np.array(values, np.float64)


def prediction_rows(
    predictions: MultilabelPredictions, ids: Sequence[str], classes: Sequence[str], positions: np.ndarray
) -> dict[str, Sequence[Cell]]:
    """Return the columns of a table of predictions: id, truth, prediction, whether they are equal, loss, and the scores.

    Args:
        positions: of the images in the split, in the order of the rows.
    """
    chosen = positions.tolist()
    probabilities = predictions.probabilities[chosen]
    return {
        "id": [str(ids[index]) for index in chosen],
        "truth": [label_text(predictions.labels[index], classes) for index in chosen],
        "prediction": [label_text(predictions.predicted[index], classes) for index in chosen],
        "correct": predictions.correct[chosen].tolist(),
        "loss": predictions.losses[chosen].astype(float).round(6).tolist(),
        "scores": [_score_text(row, classes) for row in probabilities],
    }


def _score_text(row: np.ndarray, classes: Sequence[str], count: int = 5) -> str:
    """Return the most probable classes with their probabilities."""
    order = np.argsort(-row, kind="stable")[:count]
    return ", ".join(f"{classes[index]} {row[index]:.3f}" for index in order.tolist())
