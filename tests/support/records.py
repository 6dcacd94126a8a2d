"""Records with one value of each kind, and an equality that compares their contents."""

from __future__ import annotations

import math

import numpy as np

from harness.tracking.records import (
    Artifact,
    Curve,
    Histogram,
    Image,
    LayeredImage,
    Mask,
    PlotlyFigure,
    Record,
    Scores,
    Table,
    TableChart,
)


def image(seed: int) -> Image:
    """A random image."""
    return Image(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8), f"image {seed}")


def layered(seed: int) -> LayeredImage:
    """A random image with two masks over it, of which one is empty."""
    levels = np.random.default_rng(seed).integers(0, 3, (6, 5), dtype=np.uint8)
    labels = {1: "weak", 2: "strong"}
    return LayeredImage(
        image(seed), {"prediction": Mask.of(levels, labels), "truth": Mask.of(np.zeros_like(levels), labels)}
    )


def epoch(number: int, steps: int = 3) -> Record:
    """The record of one epoch, with values of every step."""
    x = list(range((number - 1) * steps + 1, number * steps + 1))
    values = {"train/loss": 1 / number, "val/acc": number / 10, "lr": 0.5, "memory/peak_gib": 0.25}
    return Record(
        x[-1], number, values, Curve("step", x, {"train/step_loss": [s / 100 for s in x], "lr": [0.5] * steps})
    )


def final(step: int) -> Record:
    """A final record with one value of each kind."""
    generator = np.random.default_rng(0)
    scores = Scores(generator.integers(0, 4, 60), generator.dirichlet([1.0] * 4, 60), ("ant", "bee", "cat", "NaN"))
    cells = [(image(1), "ant", 0.5, None), (image(2), "bee", 1.0, True)]
    curve = Curve("lr", [0.1, 0.2, 0.4], {"loss": [2.0, 1.0, math.inf]}, title="range test", marks={"LRMAX": 0.21})
    rates = [(0.0, 0.5, "ant"), (1.0, 1.0, "ant")]
    values = {
        "wrong": Table(("image", "truth", "confidence", "flag"), cells),
        "gallery": tuple(image(n) for n in range(110)),
        "cam": image(3),
        "layers": (layered(4), layered(5)),
        "layer": layered(6),
        "roc": TableChart("rates", "ROC of the test set", Table(("false positives", "true positives", "class"), rates)),
        "lines": PlotlyFigure(
            [{"type": "scatter", "x": [0.1, 0.2], "y": [1.5, None]}],
            {"xaxis": {"type": "log"}, "title": {"text": "LR"}},
            image(8),
        ),
        "finder": curve,
        "test": scores,
        "gradients/fc": Histogram([3, 0, 1], [-1.0, -0.5, 0.0, 0.5]),
        "result/acc": 0.75,
    }
    return Record(step, 2, values, kind="final", details={"overlays": Table(("image",), [(image(7),)]), "rate": 0.5})


def same(one, other) -> bool:
    """Return whether two values are equal; images and arrays are compared by content, and NaN equals itself."""
    match one, other:
        case Image(), Image():
            return one.caption == other.caption and np.array_equal(one.pixels, other.pixels)
        case Scores(), Scores():
            is_close = np.allclose(one.probabilities, other.probabilities, rtol=1e-5)
            return one.classes == other.classes and np.array_equal(one.labels, other.labels) and is_close
        case (
            (Record(), Record())
            | (Curve(), Curve())
            | (Table(), Table())
            | (Artifact(), Artifact())
            | (LayeredImage(), LayeredImage())
            | (Mask(), Mask())
            | (TableChart(), TableChart())
            | (PlotlyFigure(), PlotlyFigure())
            | (Histogram(), Histogram())
        ):
            return same(vars(one), vars(other))
        case dict(), dict():
            return list(one) == list(other) and all(same(value, other[key]) for key, value in one.items())
        case (list(), list()) | (tuple(), tuple()):
            return len(one) == len(other) and all(map(same, one, other))
        case float(), float():
            return one == other or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and one == other
