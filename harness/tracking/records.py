"""Records of a run: plain values, free of torch and of any tracker.

The training loop, the LR finder and the evaluation yield them; trackers write them.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from harness.utils.files import link_inside, open_regular

Scalar: TypeAlias = float | int | str | bool


@dataclass(frozen=True)
class Image:
    """An image as it is shown.

    Attributes:
        pixels: uint8 [H, W, 3], RGB.
    """

    pixels: np.ndarray
    caption: str = ""

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 3 or self.pixels.shape[2] != 3:
            raise ValueError(f"need uint8 pixels [H, W, 3], got {self.pixels.dtype} {list(self.pixels.shape)}")


class StoredImage(Image):
    """An `Image` whose pixels are read from its PNG file when they are needed.

    Attributes:
        path: the PNG file.
    """

    path: Path

    def __init__(self, path: Path, caption: str = "") -> None:
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "caption", caption)

    @property
    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3], RGB."""
        from PIL import Image as PILImage

        with open(self.open(), "rb") as file, PILImage.open(file, formats=("PNG",)) as image:
            return np.asarray(image.convert("RGB"))

    def open(self) -> int:
        """Return a descriptor of the file; a journal may come from somebody else, so no link is followed to it.

        Raises:
            OSError: the file is missing, or it or its folder is a link.
        """
        if link := link_inside(self.path.parents[1], self.path):
            raise OSError(errno.ELOOP, "a symbolic link, which is not followed", str(link))
        return open_regular(self.path)


def encode_png(pixels: np.ndarray, dpi: int | None = None) -> bytes:
    """Return an image, uint8 [H, W, 3], as a PNG file; `dpi` is stored in it.

    Compressed little: the default level takes two to three times as long, for a file that is 15 % smaller.
    """
    from PIL import Image as PILImage

    file = io.BytesIO()
    options = {} if dpi is None else {"dpi": (dpi, dpi)}
    PILImage.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", compress_level=1, **options)
    return file.getvalue()


@dataclass(frozen=True)
class Mask:
    """A layer over an image that a viewer switches on and off, as a whole and level by level.

    Attributes:
        image: grey, [H, W] of the image below; the grey value of a pixel is its level, and level 0 shows nothing.
        labels: level 1..255 -> what it means.
    """

    image: Image
    labels: Mapping[int, str]

    @classmethod
    def of(cls, levels: np.ndarray, labels: Mapping[int, str]) -> Mask:
        """Return the mask of levels, uint8 [H, W]."""
        return cls(Image(np.repeat(levels[..., None], 3, 2)), labels)

    @property
    def levels(self) -> np.ndarray:
        """uint8 [H, W]."""
        return self.image.pixels[..., 0]


@dataclass(frozen=True)
class LayeredImage:
    """An image with masks over it, by the name of each."""

    image: Image
    masks: Mapping[str, Mask]


Cell: TypeAlias = Scalar | Image | None


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns; a cell is a scalar, an `Image` or None."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"need {len(self.columns)} cells a row ({', '.join(self.columns)}), got {len(row)}")


@dataclass(frozen=True)
class Curve:
    """One or several lines over one axis.

    Attributes:
        x: positions, increasing.
        lines: name -> values, each as long as `x`.
        marks: points of interest, name -> position on the x axis.
    """

    x_name: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    title: str = ""
    marks: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, line in self.lines.items():
            if len(line) != len(self.x):
                raise ValueError(f"line {name!r} has {len(line)} points, its axis {self.x_name!r} has {len(self.x)}")


@dataclass(frozen=True)
class Scores:
    """The predictions for a labelled split, as earlier versions recorded them; a `TableChart` each is recorded today.

    Attributes:
        labels: int [N], the true classes.
        probabilities: float [N, C].
    """

    labels: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]


ChartKind: TypeAlias = Literal["confusion", "rates", "lines"]


@dataclass(frozen=True)
class TableChart:
    """A chart that a tracker draws itself from the rows of a table, so that several runs can share one chart.

    Attributes:
        kind: which chart, and what the three columns of the table are.

            confusion: true class, predicted class, images.
            rates: two fractions 0..1 as x and y, and the name of the line.
            lines: x, y, and the name of the line.
    """

    kind: ChartKind
    title: str
    table: Table

    def __post_init__(self) -> None:
        if len(self.table.columns) != 3:
            raise ValueError(f"a chart has three columns, got {', '.join(self.table.columns)}")


@dataclass(frozen=True)
class PlotlyFigure:
    """A chart with axes and marks of its own, in Plotly's JSON format.

    Attributes:
        data: the traces, plain values.
        layout: title, axes, shapes, annotations; plain values.
        picture: the same drawn, for trackers without Plotly.
    """

    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    picture: Image | None = None


@dataclass(frozen=True)
class Histogram:
    """How many values lie between each two neighbouring edges.

    Attributes:
        counts: one fewer than `edges`.
        edges: increasing.
    """

    counts: Sequence[int]
    edges: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"need one edge more than counts, got {len(self.edges)} and {len(self.counts)}")


Value: TypeAlias = (
    Scalar
    | Image
    | LayeredImage
    | Table
    | Curve
    | Scores
    | Histogram
    | TableChart
    | PlotlyFigure
    | tuple[Image, ...]
    | tuple[LayeredImage, ...]
)


@dataclass(frozen=True)
class Record:
    """What was measured at one step.

    Attributes:
        step: optimizer updates done when it was measured; never decreases within a run.
        epoch: epochs finished (1 after the first).
        values: metric name -> value.
        steps: what was measured at every step of the epoch (axis: the step).
        kind: `steps` for some steps of an epoch that is not finished; `epoch` for the one record of an epoch, with all
            of its steps; `final` for what is logged once at the end; `find` for a range test.
        time: when it was measured, seconds since 1970; 0 where that is not known.
        step_times: when each point of `steps` was measured; empty where that is not known.
        details: name -> value that only the journal keeps, for pages and for whoever reads it; no tracker shows them.
    """

    step: int
    epoch: int
    values: Mapping[str, Value]
    steps: Curve | None = None
    kind: Literal["steps", "epoch", "final", "find"] = "epoch"
    time: float = field(default=0.0, compare=False)
    step_times: Sequence[float] = field(default=(), compare=False)
    details: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.step_times and (self.steps is None or len(self.step_times) != len(self.steps.x)):
            raise ValueError(f"got the times of {len(self.step_times)} steps, need those of the points of its curve")

    def scalars(self) -> dict[str, Scalar]:
        """Return the numbers, strings and booleans among the values."""
        return {key: value for key, value in self.values.items() if isinstance(value, float | int | str | bool)}

    def with_steps(self, keeps: Callable[[float], bool]) -> Record:
        """Return the record with those points of `steps` alone whose step `keeps` accepts."""
        if self.steps is None:
            return self
        kept = [index for index, step in enumerate(self.steps.x) if keeps(step)]
        if len(kept) == len(self.steps.x):
            return self
        x, times = ([values[index] for index in kept if values] for values in (self.steps.x, self.step_times))
        lines = {name: [line[index] for index in kept] for name, line in self.steps.lines.items()}
        return replace(self, steps=replace(self.steps, x=x, lines=lines), step_times=times)


@dataclass(frozen=True)
class Reference:
    """Content that an artifact names without holding it.

    Attributes:
        uri: where it is.
        checksum: of the content; nothing is read to compute another.
    """

    uri: str
    checksum: str


@dataclass(frozen=True)
class Artifact:
    """Files that belong together and that the tracker keeps under one name.

    Attributes:
        files: name inside the artifact -> file on disk.
        kind: W&B's artifact type: `model`, `dataset`, `code`.
        references: name inside the artifact -> content that stays where it is.
        is_input: whether the run uses the artifact, and does not make it. Its content identifies it.
        version: path of an input in the tracker, where it is known to be there: `ENTITY/PROJECT/NAME:ALIAS`.
        is_interim: whether the run will make a better one, and change its files; it is not in the journal.
        keep_days: days after which the tracker may delete it; 0: never.
    """

    name: str
    kind: str
    files: Mapping[str, Path]
    aliases: tuple[str, ...] = ("latest",)
    metadata: Mapping[str, object] = field(default_factory=dict)
    references: Mapping[str, Reference] = field(default_factory=dict)
    is_input: bool = False
    version: str = ""
    is_interim: bool = False
    keep_days: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether all files are on the disk."""
        return all(path.is_file() for path in self.files.values())
