"""The images of a run's page, as data URIs: misclassified and correctly classified images, class-activation maps."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.reporting.html.run_data import RunData
from harness.tracking.records import Image
from harness.utils.files import read_regular
from harness.utils.plain import number

MAX_PNG_BYTES = 6_000  # a larger file is embedded as JPEG
JPEG_QUALITY = 85
# Key of a gallery, its title, and what its images are.
TITLES = (
    ("misclassified", "Misclassified", "misclassified"),
    ("correct", "Correctly classified", "correctly classified"),
)
MULTILABEL_TITLES = (
    (
        "misclassified",
        "Not predicted exactly",
        "whose classes are not predicted exactly, those with the highest loss first",
    ),
    (
        "correct",
        "Predicted exactly",
        "whose classes are predicted exactly, of each set of classes those with the lowest and the highest loss",
    ),
)
# Of images with several labels: key of a map, what its class is, and its sign.
MULTILABEL_MAPS = {"prediction": ("wrongly predicted", "✗"), "truth": ("missed", "✓")}


@dataclass(frozen=True)
class ImageView:
    """One image of a card.

    Attributes:
        uri: a data URI; empty where there is no image, and `placeholder` is shown.
        alt: what the image shows, for a screen reader.
        caption: text below it, where a card has several.
    """

    uri: str
    alt: str
    caption: str = ""
    placeholder: str = "image file missing"


@dataclass(frozen=True)
class Card:
    """One image of the reported split, with its true and its predicted class."""

    views: Sequence[ImageView]
    id: str
    truth: str
    prediction: str
    confidence: float
    loss: float

    @property
    def correct(self) -> bool:
        return self.truth == self.prediction


@dataclass(frozen=True)
class Gallery:
    """Cards that are filtered and sorted together.

    Attributes:
        truths, predictions: the classes to filter by, in the order of the data set.
        is_multilabel: whether a truth or a prediction is a set of classes, as text.
    """

    key: str
    title: str
    caption: str
    cards: Sequence[Card]
    truths: Sequence[str]
    predictions: Sequence[str]
    is_multilabel: bool = False

    @property
    def classes(self) -> list[str]:
        """Every class that is the truth or the prediction of a card."""
        return list(dict.fromkeys([*self.truths, *self.predictions]))


def galleries(run: RunData) -> list[Gallery]:
    """Return the galleries that a run kept: misclassified images, correctly classified images, Grad-CAM."""
    totals = {"misclassified": 0, "correct": 0}
    if run.predictions:
        correct = int((run.predictions.labels == run.predictions.predicted).sum())
        totals = {"misclassified": len(run.predictions.labels) - correct, "correct": correct}
    made = []
    for key, title, adjective in MULTILABEL_TITLES if run.is_multilabel else TITLES:
        cards = [_card(row) for row in _rows(run, f"predictions/{key}")]
        if cards:
            total = f" of {totals[key]:,}" if totals[key] >= len(cards) else ""
            caption = f"{len(cards)}{total} {adjective} images of the {run.split} set."
            if run.is_multilabel:
                caption = f"{len(cards)} images of the {run.split} set {adjective}. Each shows its predicted and its true classes."
            made.append(_gallery(run, key, title, caption, cards))
    # Earlier versions have the table of maps under the second key.
    rows = _rows(run, "explain/maps") or _rows(run, "explain/gradcam")
    cards = [_cam_card(row) for row in rows]
    if cards:
        resolution = rows[0].get("resolution")  # earlier versions did not keep it
        which = "misclassified images: the evidence for the predicted class and for the true class"
        if run.is_multilabel:
            which = (
                "images that are not predicted exactly: the evidence for the class that is predicted wrongly (✗) and for the one that "
                "is missed (✓), of several the one with the highest loss"
            )
        caption = (
            f"Class-activation maps ({run.config.get('cam', 'Grad-CAM')}) of {len(cards)} {which}, on a shared scale; bright is strong. "
            f"{'Below it stand the probability and the threshold of its class; the last' if run.is_multilabel else 'The'} percentage is "
            "the part of the evidence, for and against the class, that is for it."
            + (f" A map has {resolution}." if resolution else "")
        )
        made.append(_gallery(run, "gradcam", "Class-activation maps", caption, cards))
    return made


def augmented_view(run: RunData) -> ImageView | None:
    """Return the grid of augmented training images; None where the run has none."""
    image = run.value("gallery/augmented")
    if not (uri := image_uri(image)):
        return None
    caption = image.caption if isinstance(image, Image) else ""
    return ImageView(uri, "training images as the network sees them, with their classes", caption)


def _rows(run: RunData, key: str) -> list[dict[str, Any]]:
    table = run.table(key)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows] if table else []


def _gallery(run: RunData, key: str, title: str, caption: str, cards: Sequence[Card]) -> Gallery:
    order: Mapping[str, int] = {name: index for index, name in enumerate(run.classes)}

    def in_order(names: set[str]) -> list[str]:
        return sorted(names, key=lambda name: (order.get(name, len(order)), name))

    truths, predictions = in_order({card.truth for card in cards}), in_order({card.prediction for card in cards})
    return Gallery(key, title, caption, cards, truths, predictions, run.is_multilabel)


def _card(row: Mapping[str, Any]) -> Card:
    truth, prediction, name = str(row.get("truth", "?")), str(row.get("prediction", "?")), str(row.get("id", ""))
    outcome = "correctly classified" if truth == prediction else f"predicted as {prediction}"
    view = ImageView(image_uri(row.get("image")), f"{name or 'image'}: {truth}, {outcome}")
    return Card([view], name, truth, prediction, number(row.get("confidence")), number(row.get("loss")))


def _cam_card(row: Mapping[str, Any]) -> Card:
    card = _card(row)
    views = [ImageView(card.views[0].uri, card.views[0].alt, "image")]
    for key, kind, name in (("prediction", "predicted", card.prediction), ("truth", "true", card.truth)):
        share = f"{number(row.get(f'share for {key}')):.0%}"
        label, text = row.get(f"class for {key}"), f"{name}, {share}"
        if label == "":  # of several, no class is predicted wrongly, or none is missed
            continue
        if label is not None:
            name, (kind, sign) = str(label), MULTILABEL_MAPS[key]
            figures = str(row.get(f"threshold for {key}")).replace(" ", "\N{NO-BREAK SPACE}")
            text = f"{sign} {name}, {figures}, evidence {share}"
        alt, overlay = f"class-activation map for the {kind} class {name}", row.get(f"overlay for {key}")
        if overlay is None:
            views.append(ImageView("", f"{alt}: empty", name, placeholder="empty map"))
        else:
            views.append(ImageView(image_uri(overlay), f"{alt}: {share} for the class", text))
    return Card(views, card.id, card.truth, card.prediction, card.confidence, card.loss)


def image_uri(image: Any) -> str:
    """Return an image as a data URI: its PNG file, or a JPEG where that is large; empty where it cannot be read."""
    if not isinstance(image, Image):
        return ""
    path: Path | None = getattr(image, "path", None)
    try:
        if path is not None and path.stat().st_size <= MAX_PNG_BYTES and image.pixels.size:  # it can be decoded
            return _data_uri("png", read_regular(path, MAX_PNG_BYTES))
        from PIL import Image as Pillow

        file = io.BytesIO()
        Pillow.fromarray(image.pixels).save(file, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
        return _data_uri("jpeg", file.getvalue())
    except (OSError, ValueError, SyntaxError):  # Pillow raises SyntaxError for a broken PNG
        return ""


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
