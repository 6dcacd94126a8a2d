"""Evaluate a model on a split: predictions, per-class metrics and figures on disk, and the same as values to track."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.config.settings import Config
from harness.data.dataset import Split
from harness.data.preprocess import Preprocess
from harness.evaluation import gradcam, metrics
from harness.evaluation.metrics import Predictions
from harness.evaluation.predict import predict_batches
from harness.evaluation.selection import choose_images
from harness.reporting.figures import confusion, gallery
from harness.reporting.figures import gradcam as cam_figure
from harness.reporting.figures.gallery import Tile
from harness.reporting.figures.training_curves import as_image
from harness.tracking.records import Cell, Image, Scalar, Table, Value
from harness.training.device import autocast_dtype
from harness.utils.errors import UsageError
from harness.utils.text import write_csv

log = logging.getLogger(__name__)
MAX_SIDE, CELL_SIDE = 256, 128  # pixels: of an image in a gallery, of a cell in the table of maps
MIN_CLASSES_TOP5 = 11  # with ten classes or fewer, top-5 accuracy says little
# How a gallery's images were chosen, by the rule of `choose_images`.
RULE_TEXTS = {
    "confident": "most confident first",
    "random": "random sample",
    "per-class": "class by class",
    "confusion": "by confused pair of classes",
    "mixed": "most and least confident of each class",
}


@dataclass(frozen=True)
class EvaluationResult:
    """The result of evaluating a split.

    Attributes:
        metrics: accuracy, loss, expected calibration error; top-5 accuracy and accuracy with flip TTA where they apply.
        values: tables, galleries and charts for a tracker.
        per_class: one row per class.
        empty_maps: number of empty class-activation maps, number of all.
    """

    metrics: dict[str, float]
    values: dict[str, Value]
    per_class: Table
    empty_maps: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Evaluator:
    """A model with what is needed to evaluate it on images and to explain its predictions."""

    config: Config
    model: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...]
    device: torch.device

    def evaluate(self, split: Split, batches: Iterable[tuple[Tensor, Tensor]], folder: Path) -> EvaluationResult:
        """Predict a split, and write `predictions.csv`, `per_class.csv` and the figures into `folder`.

        Args:
            batches: of the same split, in its order.
        """
        predictions = predict_batches(
            self.model, batches, self.device, autocast=autocast_dtype(self.config.precision), tta=self.config.tta
        )
        figures = folder / "figures"
        matrix = metrics.confusion_matrix(predictions)
        table = metrics.per_class(matrix).table(self.classes)
        calibration = metrics.reliability(predictions)
        metrics.write_predictions_csv(predictions, split.ids, self.classes, folder / "predictions.csv")
        write_csv(folder / "per_class.csv", table.columns, table.rows)
        values: dict[str, Value] = {
            "predictions/scores": predictions.scores(self.classes),
            "predictions/per_class": table,
            "predictions/confusion": as_image(
                confusion.confusion_figure(matrix, self.classes, figures / "confusion.png")
            ),
            "predictions/reliability": as_image(confusion.reliability_figure(calibration, figures / "reliability.png")),
        }
        empty = (0, 0)
        if self.config.gallery:
            values |= self._galleries(predictions, split, figures)
            if self.config.cam != "none" and self.has_cam_layer():
                maps, empty = self._maps(predictions, split, figures)
                values |= maps
        return EvaluationResult(headline_metrics(predictions, calibration.ece), values, table, empty)

    def has_cam_layer(self) -> bool:
        """Return whether the model has a layer to compute class-activation maps of; a linear model, say, has none."""
        if self.config.cam_layer != "auto":
            return True
        try:
            gradcam.default_layer(self.model, torch.zeros(1, 3, self.preprocess.size, self.preprocess.size))
        except UsageError as error:
            log.warning("no Grad-CAM: %s", error)
            return False
        return True

    def _galleries(self, predictions: Predictions, split: Split, figures: Path) -> dict[str, Value]:
        """Draw the galleries of correctly classified and of misclassified images."""
        values: dict[str, Value] = {}
        images = f"{len(predictions):,} {split.name} images"
        for name, adjective, wrong, rule in (
            ("correct", "correctly classified", False, "mixed"),
            ("misclassified", "misclassified", True, self.config.gallery_rule),
        ):
            chosen = self._choose(predictions, wrong=wrong, rule=rule)
            pictures = [shrink(split.picture(int(index))) for index in chosen]
            total = int((predictions.correct != wrong).sum())
            title = f"{len(chosen)} of {total:,} {adjective} images, {RULE_TEXTS[rule]} ({images})"
            path = gallery.gallery(
                self._tiles(predictions, chosen, pictures), figures / f"{name}.png",
                title=title, empty=f"None of the {images} is {adjective}.",
            )  # fmt: skip
            values[f"gallery/{name}"] = as_image(path)
            if len(chosen):
                values[f"predictions/{name}"] = gallery.gallery_table(
                    predictions, chosen, pictures, split.ids, self.classes
                )
        return values

    def _choose(self, predictions: Predictions, *, wrong: bool, rule: str) -> np.ndarray:
        return choose_images(predictions, wrong=wrong, rule=rule, count=self.config.gallery, seed=self.config.seed)

    def _maps(self, predictions: Predictions, split: Split, figures: Path) -> tuple[dict[str, Value], tuple[int, int]]:
        """Draw the class-activation maps of misclassified images, for the predicted and for the true class."""
        chosen = self._choose(predictions, wrong=True, rule=self.config.gallery_rule)
        path = figures / "gradcam.png"
        if not len(chosen):
            cam_figure.gradcam_figure([], NO_MAPS, NO_MAPS, path)
            return {"gallery/gradcam": as_image(path)}, (0, 0)
        images = torch.stack([self.preprocess.image(split.picture(int(index))) for index in chosen])
        pictures = [to_uint8(image) for image in self.preprocess.denormalise(images)]
        options = dict(method=self.config.cam, layer=self.config.cam_layer)
        predicted = gradcam.compute_maps(self.model, images, predictions.predicted[chosen], **options)
        true = gradcam.compute_maps(self.model, images, predictions.labels[chosen], **options)
        tiles = self._tiles(predictions, chosen, pictures)
        title = f"Class-activation maps of {len(chosen)} misclassified images"
        cam_figure.gradcam_figure(tiles, predicted, true, path, title=title)
        table = self._cam_table(predictions, chosen, pictures, split.ids, predicted, true)
        empty = int(predicted.empty.sum() + true.empty.sum())
        return {"gallery/gradcam": as_image(path), "explain/gradcam": table}, (empty, 2 * len(chosen))

    def _cam_table(
        self,
        predictions: Predictions,
        chosen: np.ndarray,
        pictures: list[np.ndarray],
        ids: Sequence[str],
        predicted: gradcam.Maps,
        true: gradcam.Maps,
    ) -> Table:
        """Return one row per image: the image, its classes, and for each class the map, the overlay and the share."""
        rows: list[tuple[Cell, ...]] = []
        heats = zip(*cam_figure.shared_scale(predicted, true), strict=True)
        for row, (index, picture, pair) in enumerate(zip(chosen, pictures, heats, strict=True)):
            large = enlarge(picture, CELL_SIDE)
            names = self.classes[predictions.labels[index]], self.classes[predictions.predicted[index]]
            cells: list[Cell] = [Image(large), str(ids[index]), *names, float(predictions.confidence[index])]
            for maps, heat in zip((predicted, true), pair, strict=True):
                if maps.empty[row]:
                    cells += [None, None]
                else:
                    cells += [Image(cam_figure.bare(heat, large.shape)), Image(cam_figure.overlay(large, heat))]
                cells.append(float(maps.share[row]))
            rows.append(tuple(cells))
        columns = [f"{name} for {label}" for label in ("prediction", "truth") for name in ("map", "overlay", "share")]
        return Table(("image", "id", "truth", "prediction", "confidence", *columns), rows)

    def _tiles(self, predictions: Predictions, chosen: np.ndarray, pictures: list[np.ndarray]) -> list[Tile]:
        return [
            Tile(
                picture=picture,
                truth=self.classes[predictions.labels[index]],
                prediction=self.classes[predictions.predicted[index]],
                confidence=float(predictions.confidence[index]),
                correct=bool(predictions.correct[index]),
            )
            for index, picture in zip(chosen, pictures, strict=True)
        ]


_NOTHING = np.zeros((0, 1, 1), np.float32)
NO_MAPS = gradcam.Maps(
    "hirescam", "", _NOTHING, _NOTHING, np.zeros(0, bool), np.zeros(0, np.float32), np.zeros(0, np.float32)
)


def headline_metrics(predictions: Predictions, ece: float) -> dict[str, float]:
    """Return accuracy, loss and calibration error of a split; top-5 accuracy and flip TTA where they apply."""
    values = {
        "acc": metrics.accuracy(predictions),
        "loss": float(predictions.losses.mean(dtype=np.float64)),
        "ece": float(ece),
    }
    if predictions.num_classes >= MIN_CLASSES_TOP5:
        values["acc5"] = metrics.accuracy(predictions, 5)
    if predictions.tta_probabilities is not None:
        values["acc_tta"] = float((predictions.tta_probabilities.argmax(1) == predictions.labels).mean())
    return values


def shrink(pixels: np.ndarray, side: int = MAX_SIDE) -> np.ndarray:
    """Return an image, uint8 [H, W, 3], reduced so that its longer side is at most `side`."""
    from PIL import Image as Pillow

    if max(pixels.shape[:2]) <= side:
        return pixels
    picture = Pillow.fromarray(pixels)
    picture.thumbnail((side, side), Pillow.Resampling.LANCZOS)
    return np.asarray(picture)


def enlarge(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return a small image with each pixel repeated, so that its longer side is about `side`."""
    return gallery.fit_to_side(pixels, max(side, *pixels.shape[:2]))  # never reduced here


def to_uint8(image: Tensor) -> np.ndarray:
    """Convert float [3, H, W] in 0..1 to uint8 [H, W, 3]."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def table_text(table: Table) -> str:
    """Return a table of scalars for a terminal: the first column aligned to the left, the others to the right."""

    def cell_text(cell: Any) -> str:
        if cell is None:
            return "–"
        return f"{cell:.4f}" if isinstance(cell, float) else str(cell)

    lines = [list(table.columns), *([cell_text(cell) for cell in row] for row in table.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.columns))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def prefixed(metrics: Mapping[str, Scalar], prefix: str) -> dict[str, Scalar]:
    """Return metrics under `prefix/name` keys."""
    return {f"{prefix}/{key}": value for key, value in metrics.items()}
