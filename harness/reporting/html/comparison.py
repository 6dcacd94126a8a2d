"""What the page of several runs compares: curves, the recall of each class, the most different confusions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.config.names import SPLIT_LABELS
from harness.evaluation.metrics import class_shares, confusion_matrix, per_class
from harness.reporting.html.groups import RunGroup
from harness.reporting.html.plotly import (
    BLUE,
    DASHES,
    PALETTE,
    PAPER,
    VERMILLION,
    Chart,
    axis,
    escape_text,
    layout,
    line,
    plain_numbers,
)
from harness.reporting.html.run_charts import MAX_NUMBERS, class_axes, class_chart_size, integer_ticks
from harness.reporting.html.run_data import RunData
from harness.tracking.metric_names import is_share
from harness.utils.text import truncate

MAX_CLASSES, MAX_PAIRS = 60, 25  # rows of the tables, those first in which the runs differ most
MAX_NAME = 48  # characters of a run's name in the legend
MAX_MATRIX = 60  # classes up to which the difference of two confusion matrices is drawn
MAX_GROUPS = 40  # configurations whose classes are compared
# Lengths of Plotly's dashes in the small sample line of the legend.
DASH_LENGTHS = {"solid": "", "dash": "6 3", "dot": "1.5 2.5", "dashdot": "6 2.5 1.5 2.5", "longdash": "10 3"}
STYLES = len(PALETTE) * len(DASHES)


@dataclass(frozen=True)
class LegendEntry:
    """One configuration in the legend that all charts of the page share."""

    key: str
    name: str
    label: str
    settings: str
    colour: str
    dash: str
    note: str


def style_of(index: int) -> tuple[str, str]:
    """Return colour and dash of a configuration; the first ones differ in colour, the next ones in the dash too."""
    return PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]


def legend_entries(groups: Sequence[RunGroup], key: str) -> list[LegendEntry]:
    """Return an entry for each configuration, with its mean of a metric, and its seeds."""
    entries = []
    for index, group in enumerate(groups):
        colour, dash = style_of(index)
        mean = group.spread(key) if key else None
        value = "" if mean is None else f"{100 * mean.mean:.2f} %" if is_share(key) else f"{mean.mean:.4g}"
        seeds = f"{len(group.seeds)} seeds" if len(group.seeds) > 1 else ""
        note = ", ".join(text for text in (value, seeds) if text)
        name = truncate(group.name, MAX_NAME)
        entries.append(LegendEntry(f"g{index}", name, group.label, group.settings, colour, DASH_LENGTHS[dash], note))
    return entries


def overlaid(groups: Sequence[RunGroup]) -> list[Chart]:
    """Return accuracy, losses and learning rate of several runs: each configuration has its colour and its dash."""
    runs = [run for group in groups for run in group.runs]
    splits = {run.watched for run in runs}
    charted = [
        *((f"{split}/{metric}", f"{SPLIT_LABELS[split].capitalize()} {title}", y, metric != "loss")
          for metric, title, y in (("acc", "accuracy", "accuracy"), ("map", "mAP", "mAP"), ("loss", "loss", "loss (nats)"))
          for split in ("val", "test") if split in splits),
        ("train/loss", "Training loss", "loss (nats)", False),
        ("lr", "Learning rate", "learning rate", False),
    ]  # fmt: skip
    charts = []
    for key, title, y, is_fraction in charted:
        data, epochs = [], [0]
        for index, group in enumerate(groups):
            colour, dash = style_of(index)
            for run in group.runs:
                x, values = run.line(key)
                if x:
                    epochs += x
                    width = 2 if len(group.runs) == 1 else 1.4
                    name = escape_text(group.run_label(run))
                    about = f"{name}<br>epoch %{{x}}: %{{y:{'.2%' if is_fraction else '.4g'}}}<extra></extra>"
                    data.append({**line(x, values, name, colour, dash=dash, width=width), "legendgroup": f"g{index}", "hovertemplate": about})  # fmt: skip
        if data:
            caption = f"{len(data)} of {len(runs)} runs by epoch; runs that differ only in the seed have one style."
            charts.append(
                Chart(
                    f"all-{key.replace('/', '-')}", title, caption, data,
                    layout(axis("epoch", **integer_ticks(epochs)), axis(y, percent=is_fraction), showlegend=False), 360,
                    has_log_switch=not is_fraction,
                )
            )  # fmt: skip
    return charts


@dataclass(frozen=True)
class RecallRow:
    """The recall of one class in each configuration; None where it has no image of the class."""

    name: str
    images: int
    recalls: tuple[float | None, ...]

    @property
    def difference(self) -> float:
        known = [recall for recall in self.recalls if recall is not None]
        return max(known) - min(known) if known else 0.0


@dataclass(frozen=True)
class ConfusionRow:
    """The fraction of a class that each configuration predicts as another one."""

    truth: str
    prediction: str
    shares: tuple[float, ...]

    @property
    def difference(self) -> float:
        return max(self.shares) - min(self.shares)


@dataclass(frozen=True)
class ClassComparison:
    """Configurations whose predictions are about the same classes, of the same split.

    Attributes:
        recalls: for each group float64 [C], the mean over one run of each seed; NaN without images.
        shares: for each group float32 [C, C], the mean of each cell's fraction of the true class; 0 without images.
        images: int64 [C], images of the class.
        left_out: (run, why) of those whose predictions cannot be compared with these.
    """

    groups: Sequence[RunGroup]
    classes: tuple[str, ...]
    split: str
    recalls: Sequence[np.ndarray]
    shares: Sequence[np.ndarray]
    images: np.ndarray
    left_out: Sequence[tuple[str, str]]

    @property
    def rows(self) -> list[RecallRow]:
        """The classes, those first in which the recall differs most."""
        rows = [
            RecallRow(name, images, tuple(None if math.isnan(recall[index]) else float(recall[index]) for recall in self.recalls))
            for index, (name, images) in enumerate(zip(self.classes, self.images.tolist(), strict=True))
        ]  # fmt: skip
        return sorted(rows, key=lambda row: -row.difference)

    @property
    def pairs(self) -> list[ConfusionRow]:
        """The confusions whose frequency differs most."""
        differences = np.maximum.reduce(self.shares) - np.minimum.reduce(self.shares)  # [C, C]
        np.fill_diagonal(differences, 0)
        order = np.argsort(-differences, axis=None, kind="stable")[:MAX_PAIRS]
        places = [divmod(int(place), len(self.classes)) for place in order if differences.flat[place] > 0]
        return [
            ConfusionRow(
                self.classes[row], self.classes[column], tuple(float(each[row, column]) for each in self.shares)
            )
            for row, column in places
        ]

    def chart(self) -> Chart | None:
        """Return the difference of the confusion matrices of two configurations; None for more, or for too many classes."""
        size = len(self.classes)
        if len(self.groups) != 2 or size > MAX_MATRIX:
            return None
        difference = self.shares[1] - self.shares[0]
        limit = max(float(np.abs(difference).max()), 0.01)
        names = [escape_text(truncate(name, 22)) for name in self.classes]
        indices = list(range(size))
        first, second = self.shares
        heat = {
            "type": "heatmap", "x": indices, "y": indices, "z": [plain_numbers(row) for row in difference.tolist()],
            "colorscale": [[0.0, VERMILLION], [0.5, PAPER], [1.0, BLUE]], "zmin": -limit, "zmax": limit, "xgap": 1, "ygap": 1,
            "customdata": [[[names[row], names[column], float(first[row, column]), float(second[row, column])] for column in indices] for row in indices],
            "hovertemplate": "%{customdata[0]}<br>predicted as %{customdata[1]}<br>%{customdata[2]:.1%} → %{customdata[3]:.1%}<extra></extra>",
            "colorbar": {"tickformat": "+.1%", "thickness": 12},
        }  # fmt: skip
        numbers = ""
        if size <= MAX_NUMBERS:
            points = [[round(100 * value) for value in row] for row in difference.tolist()]
            heat |= {
                "text": [[f"{value:+d}" if value else "" for value in row] for row in points],
                "texttemplate": "%{text}",
            }
            numbers = ", in percentage points"
        caption = (
            f"Fraction of each true class{numbers}, the second configuration ({self.groups[1].name}) less the first "
            f"({self.groups[0].name}). Blue on the diagonal: more images are correctly classified; vermilion elsewhere: fewer are confused."
        )
        title = "Difference of the confusion matrices"
        return Chart(
            "confusion-difference", title, caption, [heat], layout(*class_axes(names)), *class_chart_size(size)
        )


def compare_classes(groups: Sequence[RunGroup]) -> ClassComparison | None:
    """Return what can be compared class by class; None where fewer than two configurations have such predictions.

    The classes and the split are those that most runs have.
    """
    kinds = {id(run): _kind(run) for group in groups for run in group.distinct if run.predictions}
    if not kinds:
        return None
    ((usual, _),) = Counter(kinds.values()).most_common(1)
    chosen: list[RunGroup] = []
    recalls: list[np.ndarray] = []
    shares: list[np.ndarray] = []
    left_out: list[tuple[str, str]] = []
    images = np.zeros(len(usual[0]), np.int64)
    for group in groups:
        reasons = [(run, _why_not(kinds.get(id(run)), usual)) for run in group.distinct]
        left_out += [(run.name, why) for run, why in reasons if why]
        fitting = [run.predictions for run, why in reasons if run.predictions and not why]
        if not fitting:
            continue
        if len(chosen) == MAX_GROUPS:
            left_out.append((group.label, f"only {MAX_GROUPS} configurations are compared"))
            continue
        matrices = [confusion_matrix(predictions) for predictions in fitting]
        chosen.append(group)
        recalls.append(np.stack([per_class(matrix).recall for matrix in matrices]).mean(0))
        shares.append(np.stack([class_shares(matrix).astype(np.float32) for matrix in matrices]).mean(0))
        images = np.maximum(images, np.max([matrix.sum(1) for matrix in matrices], axis=0))
    if len(chosen) < 2:
        return None
    return ClassComparison(chosen, *usual, recalls, shares, images, left_out)


def _kind(run: RunData) -> tuple[tuple[str, ...], str]:
    return (run.predictions.classes if run.predictions else ()), run.split


def _why_not(kind: tuple[tuple[str, ...], str] | None, usual: tuple[tuple[str, ...], str]) -> str:
    if kind is None:
        return "it has no predictions"
    classes, split = kind
    return "" if kind == usual else "it has other classes" if classes != usual[0] else f"on its {split} set"
