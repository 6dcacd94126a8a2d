"""Evaluate images with several labels: metrics by class, `predictions.csv`, and galleries of the best and worst images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from harness.evaluation.multilabel import MultilabelPredictions, label_text, prediction_rows
from harness.evaluation.selection import from_both_ends, grouped, in_turn
from harness.reporting.figures.gallery import MapLabel, Tile
from harness.reporting.prediction_tables import CHART_CLASSES, curve_charts, image_cells, table_rows
from harness.tracking.records import Table, TableChart
from harness.utils.multilabel import average_precisions


def multilabel_table(
    predictions: MultilabelPredictions,
    ids: Sequence[str],
    classes: Sequence[str],
    *,
    positions: np.ndarray | None = None,
    pictures: Mapping[int, np.ndarray] | None = None,
) -> Table:
    """Return a row per image; the id is the same in every run on the data.

    Args:
        ids: of all images of the split.
        positions: of the images in the split, in the order of the rows; None: all, at most `MAX_ROWS` evenly spaced.
        pictures: position -> image, uint8 [H, W, 3]; the others have none.
    """
    positions = table_rows(len(predictions), positions)
    columns = prediction_rows(predictions, ids, classes, positions)
    columns = {"id": columns.pop("id"), "image": image_cells(positions, pictures), **columns}
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)))


def multilabel_charts(predictions: MultilabelPredictions, classes: Sequence[str], split: str) -> dict[str, TableChart]:
    """Return precision over recall and the ROC curve of each class; of many, those with the lowest average precision."""
    precisions = average_precisions(predictions.labels, predictions.probabilities)
    chosen = np.sort(np.argsort(np.where(np.isnan(precisions), 2, precisions), kind="stable")[:CHART_CLASSES])
    few = f", the {len(chosen)} of {len(classes):,} classes with the lowest average precision"
    which = f"{split} set" + (few if len(chosen) < len(classes) else "")
    curves = [
        (classes[number], predictions.labels[:, number] > 0, predictions.probabilities[:, number]) for number in chosen
    ]
    return curve_charts(curves, which)


def worst_images(predictions: MultilabelPredictions, count: int) -> np.ndarray:
    """Return the images whose labels are not predicted exactly, int64 [<= count]: the highest loss first."""
    candidates = np.flatnonzero(~predictions.correct)
    return candidates[np.argsort(-predictions.losses[candidates], kind="stable")][:count]


def exact_images(predictions: MultilabelPredictions, count: int) -> np.ndarray:
    """Return images whose labels are predicted exactly, int64 [<= count].

    The sets of labels in turn, the most frequent first, each giving its image with the lowest loss, then that with the highest, and
    so on: what is typical of a set beside what is barely recognised.
    """
    candidates = np.flatnonzero(predictions.correct)
    by_loss = candidates[np.argsort(predictions.losses[candidates], kind="stable")]
    sets = grouped(by_loss, lambda index: predictions.labels[index].tobytes())
    queues = sorted(sets.values(), key=lambda queue: (-len(queue), queue[0]))
    return np.array(in_turn([from_both_ends(queue) for queue in queues])[:count], np.int64)


def multilabel_tiles(
    predictions: MultilabelPredictions,
    chosen: np.ndarray,
    classes: Sequence[str],
    pictures: Sequence[np.ndarray],
    explained: Sequence[tuple[MapLabel | None, MapLabel | None] | None] | None = None,
) -> list[Tile]:
    """Return a tile for each image, with its true and its predicted labels.

    Args:
        explained: the classes whose maps are drawn, of each image.
    """
    return [
        Tile(
            picture=picture,
            truth=label_text(predictions.labels[index], classes),
            prediction=label_text(predictions.predicted[index], classes),
            confidence=math.nan,
            correct=bool(predictions.correct[index]),
            explained=labels,
        )
        for index, picture, labels in zip(chosen.tolist(), pictures, explained or [None] * len(chosen), strict=True)
    ]
