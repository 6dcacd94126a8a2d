"""What a model gets right, what wrong, and where it looks: one pass over a split, on disk and as values to track."""

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
from harness.evaluation import gradcam
from harness.evaluation import metrics as predictions
from harness.evaluation.metrics import Predictions
from harness.evaluation.predict import predict
from harness.evaluation.selection import choose_images
from harness.reporting.figures import confusion, gallery, sheet
from harness.reporting.figures import gradcam as cam_figure
from harness.reporting.figures.gallery import Tile
from harness.tracking.records import Cell, Image, Scalar, Table, Value
from harness.training.device import autocast_dtype
from harness.utils.errors import UsageError
from harness.utils.text import write_csv

log = logging.getLogger(__name__)
LARGEST, CELL = 256, 128  # pixels: of a photo in a gallery, of a cell in the table of maps
TOP5_FROM = 11  # with ten classes or fewer, five guesses say little


@dataclass(frozen=True)
class EvaluationResult:
    """What one look came to.

    Attributes:
        metrics: plain figures: accuracy, loss, calibration error, top-5 and flip TTA where they apply.
        values: tables, galleries and charts for a tracker.
        per_class: a row a class.
        empty_maps: how many of the class-activation maps had nothing in them, of how many.
    """

    metrics: dict[str, float]
    values: dict[str, Value]
    per_class: Table
    empty_maps: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Evaluator:
    """A model and all that is needed to show what it says of pictures."""

    config: Config
    model: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...]
    device: torch.device

    def see(self, split: Split, batches: Iterable[tuple[Tensor, Tensor]], folder: Path) -> EvaluationResult:
        """Predict a split, and write `predictions.csv`, `per_class.csv` and the figures into `folder`.

        Args:
            batches: of the same split, in its order.
        """
        said = predict(
            self.model, batches, self.device, autocast=autocast_dtype(self.config.precision), tta=self.config.tta
        )
        figures = folder / "figures"
        matrix = predictions.confusion_matrix(said)
        table = predictions.per_class(matrix).table(self.classes)
        measured = predictions.reliability(said)
        predictions.write_predictions(said, split.ids, self.classes, folder / "predictions.csv")
        write_csv(folder / "per_class.csv", table.columns, table.rows)
        where = f"{len(said):,} {split.name} images"
        confusion.confusion_figure(matrix, self.classes, figures / "confusion.png")
        confusion.reliability_figure(measured, figures / "reliability.png")
        values: dict[str, Value] = {
            "predictions/scores": said.scores(self.classes),
            "predictions/per_class": table,
            "predictions/confusion": read_figure(figures / "confusion.png"),
            "predictions/reliability": read_figure(figures / "reliability.png"),
        }
        empty = (0, 0)
        if self.config.gallery:
            values |= self._galleries(said, split, figures, where)
            if self.config.cam != "none" and self.has_layer():
                maps, empty = self._maps(said, split, figures)
                values |= maps
        return EvaluationResult(headline_metrics(said, measured.ece), values, table, empty)

    def has_layer(self) -> bool:
        """Whether the model has activations to map; one with none (a linear model, say) is explained by galleries only."""
        if self.config.cam_layer != "auto":
            return True
        try:
            gradcam.default_layer(self.model, torch.zeros(1, 3, self.preprocess.size, self.preprocess.size))
        except UsageError as error:
            log.warning("no Grad-CAM: %s", error)
            return False
        return True

    def _galleries(self, said: Predictions, split: Split, figures: Path, where: str) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for name, wrong, rule in (("correct", False, "mixed"), ("misclassified", True, self.config.gallery_rule)):
            chosen = choose_images(said, wrong=wrong, rule=rule, count=self.config.gallery, seed=self.config.seed)
            pictures = [shrink(split.picture(int(index))) for index in chosen]
            path = figures / f"{name}.png"
            total = int((~said.correct).sum()) if wrong else int(said.correct.sum())
            title = f"{len(chosen)} of {total:,} {name} ({RULES[rule]}), of {where}"
            gallery.gallery(
                self._tiles(said, chosen, pictures), path, title=title, empty=f"No {name} images among {where}."
            )
            values[f"gallery/{name}"] = read_figure(path)
            if len(chosen):
                values[f"predictions/{name}"] = gallery.table(said, chosen, pictures, split.ids, self.classes)
        return values

    def _maps(self, said: Predictions, split: Split, figures: Path) -> tuple[dict[str, Value], tuple[int, int]]:
        """Class-activation maps of misclassified images, for the predicted and for the true class."""
        chosen = choose_images(
            said, wrong=True, rule=self.config.gallery_rule, count=self.config.gallery, seed=self.config.seed
        )
        path = figures / "gradcam.png"
        if not len(chosen):
            cam_figure.gradcam_figure([], NO_MAPS, NO_MAPS, path)
            return {"gallery/gradcam": read_figure(path)}, (0, 0)
        images = torch.stack([self.preprocess.image(split.picture(int(index))) for index in chosen])
        shown = [to_uint8(image) for image in self.preprocess.denormalise(images)]
        how = dict(method=self.config.cam, layer=self.config.cam_layer)
        predicted = gradcam.explain(self.model, images, said.predicted[chosen], **how)
        true = gradcam.explain(self.model, images, said.labels[chosen], **how)
        tiles = self._tiles(said, chosen, shown)
        cam_figure.gradcam_figure(
            tiles, predicted, true, path, title=f"Where the model looks in {len(chosen)} misclassified images"
        )
        table = self._cam_table(said, chosen, shown, split.ids, predicted, true)
        empty = int(predicted.empty.sum() + true.empty.sum())
        return {"gallery/gradcam": read_figure(path), "explain/gradcam": table}, (empty, 2 * len(chosen))

    def _cam_table(
        self,
        said: Predictions,
        chosen: np.ndarray,
        shown: list[np.ndarray],
        ids: Sequence[str],
        predicted: gradcam.Maps,
        true: gradcam.Maps,
    ) -> Table:
        rows: list[tuple[Cell, ...]] = []
        heats = zip(*cam_figure.shared_scale(predicted, true), strict=True)
        for row, (index, own, pair) in enumerate(zip(chosen, shown, heats, strict=True)):
            large = enlarge(own, CELL)
            names = self.classes[said.labels[index]], self.classes[said.predicted[index]]
            cells: list[Cell] = [Image(large), str(ids[index]), *names, float(said.confidence[index])]
            for maps, heat in zip((predicted, true), pair, strict=True):
                empty = bool(maps.empty[row])
                cells += (
                    [None, None]
                    if empty
                    else [Image(cam_figure.bare(heat, large.shape)), Image(cam_figure.overlay(large, heat))]
                )
                cells += [float(maps.share[row])]
            rows.append(tuple(cells))
        parts = [f"{what} for {whom}" for whom in ("prediction", "truth") for what in ("map", "overlay", "share")]
        return Table(("image", "id", "truth", "prediction", "confidence", *parts), rows)

    def _tiles(self, said: Predictions, chosen: np.ndarray, pictures: list[np.ndarray]) -> list[Tile]:
        return [
            Tile(
                picture=own,
                truth=self.classes[said.labels[index]],
                prediction=self.classes[said.predicted[index]],
                confidence=float(said.confidence[index]),
                right=bool(said.correct[index]),
            )
            for index, own in zip(chosen, pictures, strict=True)
        ]


RULES = {
    "confident": "the surest first",
    "random": "drawn at random",
    "per-class": "class by class",
    "confusion": "by confusion pair",
    "mixed": "surest and least sure",
}
_NOTHING = np.zeros((0, 1, 1), np.float32)
NO_MAPS = gradcam.Maps(
    "hirescam", "", _NOTHING, _NOTHING, np.zeros(0, bool), np.zeros(0, np.float32), np.zeros(0, np.float32)
)


def headline_metrics(said: Predictions, ece: float) -> dict[str, float]:
    """The plain figures of a split: accuracy, loss, calibration error; top-5 and flip TTA where they apply."""
    metrics = {"acc": predictions.accuracy(said), "loss": float(said.losses.mean(dtype=np.float64)), "ece": float(ece)}
    if said.probabilities.shape[1] >= TOP5_FROM:
        metrics["acc5"] = predictions.accuracy(said, 5)
    if said.tta_probabilities is not None:
        metrics["acc_tta"] = float((said.tta_probabilities.argmax(1) == said.labels).mean())
    return metrics


def shrink(pixels: np.ndarray, side: int = LARGEST) -> np.ndarray:
    """A photo made small enough to track; a small picture as it is."""
    from PIL import Image as Pillow

    if max(pixels.shape[:2]) <= side:
        return pixels
    photo = Pillow.fromarray(pixels)
    photo.thumbnail((side, side), Pillow.Resampling.LANCZOS)
    return np.asarray(photo)


def enlarge(pixels: np.ndarray, side: int) -> np.ndarray:
    """A small picture with each pixel repeated, so that its longer side is about `side`."""
    return sheet.enlarge(pixels, max(side, *pixels.shape[:2]))  # never made smaller here


def read_figure(path: Path) -> Image:
    """A figure on disk as a value."""
    from harness.data.image_io import read_image

    return Image(read_image(path))


def to_uint8(image: Tensor) -> np.ndarray:
    """float [3, H, W] in 0..1 -> uint8 [H, W, 3]."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def table_text(table: Table) -> str:
    """A table of scalars for a terminal: words to the left, numbers to the right."""

    def cell_text(cell: Any) -> str:
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
    """Metrics under `prefix/name` keys."""
    return {f"{prefix}/{key}": value for key, value in metrics.items()}
