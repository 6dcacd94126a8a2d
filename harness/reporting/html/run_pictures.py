"""The pictures of a run as data URIs, small enough for one page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.reporting.html.run_data import RunData, number
from harness.tracking.records import Image

BIG = 6_000  # bytes of a PNG file beyond which it is shown as JPEG
QUALITY = 85


@dataclass(frozen=True)
class ImageView:
    """One picture of a tile.

    Attributes:
        uri: empty where the file is gone. says: what it shows. under: a word below it, where a tile has several.
    """

    uri: str
    says: str
    under: str = ""


@dataclass(frozen=True)
class Tile:
    """One image of the reported split with what the model said of it."""

    views: Sequence[ImageView]
    id: str
    truth: str
    prediction: str
    confidence: float
    loss: float

    @property
    def right(self) -> bool:
        return self.truth == self.prediction


@dataclass(frozen=True)
class Gallery:
    """Tiles that are filtered and sorted together.

    Attributes:
        truths, predictions: the classes that there are to choose from, in the order of the data's.
    """

    key: str
    title: str
    says: str
    tiles: Sequence[Tile]
    truths: Sequence[str]
    predictions: Sequence[str]

    @property
    def classes(self) -> list[str]:
        """Every class that is the truth or the prediction of a tile."""
        return list(dict.fromkeys([*self.truths, *self.predictions]))


def galleries(run: RunData) -> list[Gallery]:
    """What the run kept for looking at: its errors, what it got right, where it looked."""
    said = run.predictions
    wrong = int((said.labels != said.predicted).sum()) if said else 0
    counts = {"misclassified": wrong, "correct": len(said.labels) - wrong if said else 0}
    found = []
    for key, title in (("misclassified", "Misclassified"), ("correct", "Correct")):
        tiles = [_tile(row) for row in _rows(run, f"predictions/{key}")]
        if tiles:
            whole = f" of {counts[key]:,}" if counts[key] >= len(tiles) else ""
            found.append(_gallery(run, key, title, f"{len(tiles)}{whole} {key} images of the {run.split} set.", tiles))
    maps = [_map_tile(row) for row in _rows(run, "explain/gradcam")]
    if maps:
        says = (
            f"Where the model looks in {len(maps)} misclassified images ({run.config.get('cam', 'Grad-CAM')}): bright where it finds "
            "evidence for the class it predicts, then for the true class, both on one scale. Below each map: how much of all evidence, "
            "for and against the class, is for it."
        )
        found.append(_gallery(run, "gradcam", "Grad-CAM", says, maps))
    return found


def _rows(run: RunData, key: str) -> list[dict[str, Any]]:
    table = run.table(key)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows] if table else []


def _gallery(run: RunData, key: str, title: str, says: str, tiles: Sequence[Tile]) -> Gallery:
    order: Mapping[str, int] = {name: place for place, name in enumerate(run.classes)}

    def present(names: set[str]) -> list[str]:
        return sorted(names, key=lambda name: (order.get(name, len(order)), name))

    truths, predictions = present({tile.truth for tile in tiles}), present({tile.prediction for tile in tiles})
    return Gallery(key, title, says, tiles, truths, predictions)


def _tile(row: Mapping[str, Any]) -> Tile:
    truth, prediction = str(row.get("truth", "?")), str(row.get("prediction", "?"))
    says = f"{row.get('id', 'image')}: {truth}, " + (
        "rightly classified" if truth == prediction else f"taken for {prediction}"
    )
    view = ImageView(uri(row.get("image")), says)
    return Tile(
        [view], str(row.get("id", "")), truth, prediction, number(row.get("confidence")), number(row.get("loss"))
    )


def _map_tile(row: Mapping[str, Any]) -> Tile:
    plain = _tile(row)
    views = [ImageView(plain.views[0].uri, plain.views[0].says, "image")]
    for whom, name in (("prediction", plain.prediction), ("truth", plain.truth)):
        overlay = row.get(f"overlay for {whom}")
        share = number(row.get(f"share for {whom}"))
        says = f"class-activation map for the {'predicted class' if whom == 'prediction' else 'true class'} {name}"
        if overlay is None:
            views.append(ImageView("", f"{says}: it is empty", f"{name}: empty map"))
        else:
            views.append(
                ImageView(uri(overlay), f"{says}, {share:.0%} of the evidence is for it", f"{name}, {share:.0%}")
            )
    return Tile(views, plain.id, plain.truth, plain.prediction, plain.confidence, plain.loss)


def uri(image: Any) -> str:
    """A picture as a data URI: its PNG file, or a JPEG where that is big; empty where it can not be read."""
    if not isinstance(image, Image):
        return ""
    path: Path | None = getattr(image, "path", None)
    try:
        if path is not None and path.stat().st_size <= BIG:
            return _data("png", path.read_bytes())
        from PIL import Image as Pillow

        file = io.BytesIO()
        Pillow.fromarray(image.pixels).save(file, format="JPEG", quality=QUALITY, subsampling=0)
        return _data("jpeg", file.getvalue())
    except (OSError, ValueError, SyntaxError):  # Pillow says SyntaxError of a broken PNG
        return ""


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
