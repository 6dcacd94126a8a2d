"""Evaluate a model on a split: predictions, per-class metrics and figures on disk, and the same as values to track."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.config.settings import Config
from harness.data.dataset import Split
from harness.data.image_io import shown_as_rgb
from harness.data.preprocess import Preprocess
from harness.evaluation import gradcam, metrics
from harness.evaluation.metrics import Predictions
from harness.evaluation.multilabel import MultilabelPredictions, predict_multilabel, separator_of
from harness.evaluation.own_metrics import own_metrics
from harness.evaluation.predict import predict_batches
from harness.evaluation.selection import choose_images
from harness.reporting import gradcam_images
from harness.reporting.figures import confusion, gallery
from harness.reporting.figures import gradcam as cam_figure
from harness.reporting.figures.gallery import Tile
from harness.reporting.figures.training_curves import as_image
from harness.reporting.multilabel_maps import explained_classes, map_label, maps_where_known
from harness.reporting.multilabel_report import (
    exact_images,
    multilabel_charts,
    multilabel_table,
    multilabel_tiles,
    worst_images,
)
from harness.reporting.prediction_tables import prediction_charts, predictions_table
from harness.tracking.records import Scalar, Table, Value
from harness.training.device import autocast_dtype
from harness.utils.errors import UsageError
from harness.utils.text import counted, write_csv

log = logging.getLogger(__name__)
MAX_SIDE = 256  # pixels: of an image in a gallery
# Images in the table of all predictions (more only where the galleries are larger), and pixels of each.
THUMBNAILS, THUMBNAIL_SIDE = 100, 96
MIN_CLASSES_TOP5 = 11  # with ten classes or fewer, top-5 accuracy says little
# How a gallery's images were chosen, by the rule of `choose_images`.
RULE_TEXTS = {
    "confident": "most confident first",
    "random": "random sample",
    "per-class": "class by class",
    "confusion": "by confused pair of classes",
    "mixed": "most and least confident of each class",
}


# Of images with several labels: file, how their labels are predicted, whether not exactly, and which come first.
MULTILABEL_GALLERIES = (
    ("correct", "predicted exactly", False, "lowest and highest loss of each set of labels"),
    ("misclassified", "not predicted exactly", True, "highest loss first"),
)


@dataclass(frozen=True)
class EvaluationResult:
    """The result of evaluating a split.

    Attributes:
        metrics: accuracy, loss, expected calibration error; top-5 accuracy and accuracy with flip TTA where they apply;
            those of plug-ins.
        values: tables, galleries and charts for a tracker.
        per_class: one row per class.
        empty_maps: number of empty class-activation maps, number of all.
        correct: bool [N], whether each image is classified correctly, or has the labels that are predicted.
        details: what only the journal keeps, for the page: a table for each gallery.
        thresholds: float64 [C], that several labels per image were predicted with.
    """

    metrics: dict[str, float]
    values: dict[str, Value]
    per_class: Table
    correct: np.ndarray
    empty_maps: tuple[int, int] = (0, 0)
    details: dict[str, Value] = field(default_factory=dict)
    thresholds: np.ndarray | None = None


@dataclass(frozen=True)
class Evaluator:
    """A model with what is needed to evaluate it on images and to explain its predictions.

    Attributes:
        thresholds: float64 [C], of the classes where images have several labels; None: chosen on a validation split that is
            evaluated, else 0.5.
    """

    config: Config
    model: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...]
    device: torch.device
    thresholds: np.ndarray | None = None

    def evaluate(self, split: Split, batches: Iterable[tuple[Tensor, Tensor]], folder: Path) -> EvaluationResult:
        """Predict a split, and write `predictions.csv`, `per_class.csv` and the figures into `folder`.

        Args:
            batches: of the same split, in its order.
        """
        if split.is_multilabel:
            return self._evaluate_multilabel(split, batches, folder)
        predictions = predict_batches(
            self.model, batches, self.device, autocast=autocast_dtype(self.config.precision), tta=self.config.tta
        )
        figures = folder / "figures"
        matrix = metrics.confusion_matrix(predictions)
        table = metrics.per_class(matrix).table(self.classes)
        calibration = metrics.reliability(predictions)
        metrics.write_predictions_csv(predictions, split.ids, self.classes, folder / "predictions.csv")
        write_csv(folder / "per_class.csv", table.columns, table.rows)
        pictures = _Pictures(split)
        values: dict[str, Value] = {
            "predictions/per_class": table,
            "predictions/confusion": as_image(
                confusion.confusion_figure(matrix, self.classes, figures / "confusion.png")
            ),
            "predictions/reliability": as_image(confusion.reliability_figure(calibration, figures / "reliability.png")),
            **prediction_charts(predictions, matrix, calibration, self.classes, split.name),
        }
        details: dict[str, Value] = {}
        empty = (0, 0)
        if self.config.gallery:
            drawn, details = self._galleries(predictions, split, pictures, figures)
            values |= drawn
            if self.config.cam != "none" and self.has_cam_layer():
                maps, overlays, empty = self._maps(predictions, split, figures)
                values, details = {**values, **maps}, {**details, **overlays}
        values["predictions/table"] = self._table(predictions, split, pictures)
        headline = {**headline_metrics(predictions, matrix, calibration.ece), **own_metrics(self.config, predictions)}
        return EvaluationResult(headline, values, table, predictions.correct, empty, details)

    def _evaluate_multilabel(
        self, split: Split, batches: Iterable[tuple[Tensor, Tensor]], folder: Path
    ) -> EvaluationResult:
        """Do what `evaluate` does for images with several labels, without confusion and calibration."""
        predictions = predict_multilabel(
            self.model,
            batches,
            self.device,
            autocast=autocast_dtype(self.config.precision),
            tta=self.config.tta,
            thresholds=self.thresholds,
            chooses_thresholds=self.thresholds is None and split.name == "val",
        )
        table = predictions.class_table(self.classes)
        predictions.write_csv(split.ids, self.classes, separator_of(self.config), folder / "predictions.csv")
        write_csv(folder / "per_class.csv", table.columns, table.rows)
        pictures, figures = _Pictures(split), folder / "figures"
        values: dict[str, Value] = {
            "predictions/per_class": table,
            **multilabel_charts(predictions, self.classes, split.name),
        }
        details: dict[str, Value] = {}
        empty = (0, 0)
        images = f"{len(predictions):,} {split.name} images"
        for name, adjective, wrong, order in MULTILABEL_GALLERIES if self.config.gallery else ():
            chosen = (worst_images if wrong else exact_images)(predictions, self.config.gallery)
            shown = {index: pictures[index] for index in chosen.tolist()}
            total = int((predictions.correct != wrong).sum())
            path = gallery.gallery(
                multilabel_tiles(predictions, chosen, self.classes, list(shown.values())), figures / f"{name}.png",
                title=f"{len(chosen)} of {total:,} images whose labels are {adjective}, {order} ({images})",
                empty=f"None of the {images} has labels that are {adjective}.",
            )  # fmt: skip
            values[f"gallery/{name}"] = as_image(path)
            if len(chosen):
                details[f"predictions/{name}"] = multilabel_table(
                    predictions, split.ids, self.classes, positions=chosen, pictures=shown
                )
        if self.config.gallery and self.config.cam != "none" and self.has_cam_layer():
            maps, overlays, empty = self._multilabel_maps(predictions, split, figures)
            values, details = {**values, **maps}, {**details, **overlays}
        worst = np.argsort(-predictions.losses, kind="stable")[: THUMBNAILS if self.config.gallery else 0]
        thumbnails = {index: shrink(pictures[index], THUMBNAIL_SIDE) for index in worst.tolist()}
        values["predictions/table"] = multilabel_table(predictions, split.ids, self.classes, pictures=thumbnails)
        headline = {**predictions.metrics(), **own_metrics(self.config, predictions)}
        return EvaluationResult(headline, values, table, predictions.correct, empty, details, predictions.thresholds)

    def _table(self, predictions: Predictions, split: Split, pictures: _Pictures) -> Table:
        """Return the table of all predictions, with thumbnails of the galleries' images and of those with the highest loss."""
        worst = np.argsort(-predictions.losses, kind="stable")[: THUMBNAILS if self.config.gallery else 0]
        chosen = list(dict.fromkeys([*pictures, *worst.tolist()]))[: max(THUMBNAILS, len(pictures))]
        thumbnails = {index: shrink(pictures[index], THUMBNAIL_SIDE) for index in chosen}
        return predictions_table(predictions, split.ids, self.classes, pictures=thumbnails)

    def has_cam_layer(self) -> bool:
        """Return whether the model has a layer to compute class-activation maps of; a linear model, say, has none."""
        if self.config.cam_layer != "auto":
            return True
        try:
            gradcam.default_layer(self.model, torch.zeros(1, self.preprocess.channels, *[self.preprocess.size] * 2))
        except UsageError as error:
            log.warning("no class-activation maps: %s", error)
            return False
        return True

    def _galleries(
        self, predictions: Predictions, split: Split, pictures: _Pictures, figures: Path
    ) -> tuple[dict[str, Value], dict[str, Value]]:
        """Draw the galleries of correctly classified and of misclassified images; return values and details."""
        values: dict[str, Value] = {}
        details: dict[str, Value] = {}
        images = f"{len(predictions):,} {split.name} images"
        for name, adjective, wrong, rule in (
            ("correct", "correctly classified", False, "mixed"),
            ("misclassified", "misclassified", True, self.config.gallery_rule),
        ):
            chosen = self._choose(predictions, wrong=wrong, rule=rule)
            shown = {index: pictures[index] for index in chosen.tolist()}
            total = int((predictions.correct != wrong).sum())
            title = f"{len(chosen)} of {total:,} {adjective} images, {RULE_TEXTS[rule]} ({images})"
            path = gallery.gallery(
                self._tiles(predictions, chosen, list(shown.values())), figures / f"{name}.png",
                title=title, empty=f"None of the {images} is {adjective}.",
            )  # fmt: skip
            values[f"gallery/{name}"] = as_image(path)
            if len(chosen):
                details[f"predictions/{name}"] = predictions_table(
                    predictions, split.ids, self.classes, positions=chosen, pictures=shown
                )
        return values, details

    def _choose(self, predictions: Predictions, *, wrong: bool, rule: str) -> np.ndarray:
        return choose_images(predictions, wrong=wrong, rule=rule, count=self.config.gallery, seed=self.config.seed)

    def _maps(
        self, predictions: Predictions, split: Split, figures: Path
    ) -> tuple[dict[str, Value], dict[str, Value], tuple[int, int]]:
        """Draw the class-activation maps of misclassified images, for the predicted and for the true class.

        Return values and details of `EvaluationResult`, and the number of empty maps and of all.
        """
        chosen = self._choose(predictions, wrong=True, rule=self.config.gallery_rule)
        if not len(chosen):
            return self._no_maps(figures, "No misclassified images.")
        images, pictures = self._inputs(split, chosen)
        options = dict(method=self.config.cam, layer=self.config.cam_layer)
        maps = [
            gradcam.compute_maps(self.model, images, classes[chosen], **options)
            for classes in (predictions.predicted, predictions.labels)
        ]
        tiles, ids = self._tiles(predictions, chosen, pictures), [str(split.ids[index]) for index in chosen]
        title = f"Class-activation maps of {counted(len(chosen), 'misclassified image', 'misclassified images')}"
        return self._drawn_maps(tiles, ids, maps, images, figures, title)

    def _multilabel_maps(
        self, predictions: MultilabelPredictions, split: Split, figures: Path
    ) -> tuple[dict[str, Value], dict[str, Value], tuple[int, int]]:
        """Do what `_maps` does for images with several labels, for the class predicted wrongly and the class missed."""
        chosen = worst_images(predictions, self.config.gallery)
        if not len(chosen):
            return self._no_maps(figures, "All images are predicted exactly.")
        images, pictures = self._inputs(split, chosen)
        classes = explained_classes(predictions, chosen)
        maps = maps_where_known(self.model, images, classes, method=self.config.cam, layer=self.config.cam_layer)
        labels = [
            (map_label(predictions, image, wrong, self.classes), map_label(predictions, image, missed, self.classes))
            for image, wrong, missed in zip(chosen.tolist(), *(each.tolist() for each in classes), strict=True)
        ]
        tiles = multilabel_tiles(predictions, chosen, self.classes, pictures, labels)
        ids = [str(split.ids[index]) for index in chosen]
        images_not = counted(len(chosen), "image that is not", "images that are not")
        title = f"Class-activation maps of {images_not} predicted exactly"
        return self._drawn_maps(tiles, ids, maps, images, figures, title)

    def _no_maps(self, figures: Path, message: str) -> tuple[dict[str, Value], dict[str, Value], tuple[int, int]]:
        path = cam_figure.gradcam_figure([], NO_MAPS, NO_MAPS, figures / "gradcam.png", empty=message)
        return {"gallery/gradcam": as_image(path)}, {}, (0, 0)

    def _inputs(self, split: Split, chosen: np.ndarray) -> tuple[Tensor, list[np.ndarray]]:
        """Return images as the model takes them, float [n, 3, H, W], and the same as uint8 [H, W, 3]."""
        images = torch.stack([self.preprocess.image(split.picture(int(index))) for index in chosen])
        return images, [to_uint8(image) for image in self.preprocess.denormalise(images)]

    def _drawn_maps(
        self, tiles: list[Tile], ids: list[str], maps: Sequence[gradcam.Maps], images: Tensor, figures: Path, title: str
    ) -> tuple[dict[str, Value], dict[str, Value], tuple[int, int]]:
        """Draw two maps of each image; return what `_maps` does."""
        first, second = maps
        if first.resolution.is_coarse:
            log.warning(
                "class-activation maps have %s; %s", first.resolution, gradcam.finer_maps(self.model, images[:1])
            )
        path = cam_figure.gradcam_figure(tiles, first, second, figures / "gradcam.png", title=title)
        values: dict[str, Value] = {
            "gallery/gradcam": as_image(path),
            "explain/gradcam": gradcam_images.layered_images(tiles, ids, first, second),
        }
        details: dict[str, Value] = {"explain/maps": gradcam_images.overlay_table(tiles, ids, first, second)}
        drawn = [gradcam_images.has_class(tile) for tile in tiles]
        flags = [
            empty
            for each, *pair in zip(drawn, first.empty, second.empty, strict=True)
            for has, empty in zip(each, pair, strict=True)
            if has
        ]
        return values, details, (int(sum(flags)), len(flags))

    def _tiles(self, predictions: Predictions, chosen: np.ndarray, pictures: list[np.ndarray]) -> list[Tile]:
        confidence, correct = predictions.confidence, predictions.correct  # each a pass over all probabilities
        return [
            Tile(
                picture=picture,
                truth=self.classes[predictions.labels[index]],
                prediction=self.classes[predictions.probabilities[index].argmax()],
                confidence=float(confidence[index]),
                correct=bool(correct[index]),
            )
            for index, picture in zip(chosen, pictures, strict=True)
        ]


class _Pictures(dict[int, np.ndarray]):
    """The images of a split by position, uint8 [H, W, 3], reduced to `MAX_SIDE`; each is decoded once."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self._split = split

    def __missing__(self, index: int) -> np.ndarray:
        self[index] = picture = shrink(shown_as_rgb(self._split.picture(index)))
        return picture


_NOTHING = np.zeros((0, 1, 1), np.float32)
NO_MAPS = gradcam.Maps(
    "hirescam", "", _NOTHING, _NOTHING, np.zeros(0, bool), np.zeros(0, np.float32), np.zeros(0, np.float32)
)


def headline_metrics(predictions: Predictions, matrix: np.ndarray, ece: float) -> dict[str, float]:
    """Return accuracy, loss, balanced accuracy, macro F1 and calibration error of a split; top-5 accuracy and flip TTA where they apply.

    Args:
        matrix: the confusion matrix of the predictions.
    """
    values = {
        "acc": metrics.accuracy(predictions),
        "loss": float(predictions.losses.mean(dtype=np.float64)),
        **metrics.macro_metrics(matrix),
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


def to_uint8(image: Tensor) -> np.ndarray:
    """Convert float [C, H, W] in 0..1 to uint8 [H, W, 3], as `shown_as_rgb` does."""
    return shown_as_rgb((image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())


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
