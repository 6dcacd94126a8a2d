"""Records as strict JSON, and back: the lines of a journal.

Numbers that JSON cannot express are the strings "NaN", "Infinity" and "-Infinity"; a real string of that kind gets a
leading tilde. Images are PNG files beside the journal, named by the hash of their content.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.tracking.metric_names import with_present_names
from harness.tracking.records import Curve, Image, Record, Scores, StoredImage, Table, Value, encode_png
from harness.utils.files import sha256

SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
MEDIA = "media"
# More probabilities than this would make a journal of tens of megabytes; then only their shape is kept.
MAX_PROBABILITIES = 200_000


def to_line(value: Mapping[str, Any]) -> bytes:
    """Return one line of a journal, with its newline; ASCII, so that no cut falls inside a character."""
    return json.dumps(to_plain(value), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def from_line(line: bytes) -> dict[str, Any]:
    """Return what `to_line` was given.

    Raises:
        ValueError: the line is not a JSON object.
    """
    value = from_plain(json.loads(line))
    if not isinstance(value, dict):
        raise ValueError("need a JSON object")
    return value


def to_plain(value: Any) -> Any:
    """Return text, numbers, lists and mappings in terms of strict JSON."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, float):
        return (
            value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        )
    if isinstance(value, str):
        return f"~{value}" if value.lstrip("~") in SPECIAL else value
    if isinstance(value, Mapping):
        return {str(key): to_plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, Sequence):
        return [to_plain(part) for part in value]
    return str(value)


def from_plain(value: Any) -> Any:
    """Return what `to_plain` was given, with lists for any sequence."""
    if isinstance(value, str):
        if value in SPECIAL:
            return SPECIAL[value]
        return value[1:] if value.startswith("~") and value.lstrip("~") in SPECIAL else value
    if isinstance(value, list):
        return [from_plain(part) for part in value]
    if isinstance(value, dict):
        return {key: from_plain(part) for key, part in value.items()}
    return value


def encode_record(record: Record, folder: Path) -> dict[str, Any]:
    """Return a record as a mapping; its images are written under `folder`/media."""
    line: dict[str, Any] = {"kind": record.kind, "step": record.step, "epoch": record.epoch}
    line["values"] = {key: _encode(value, folder) for key, value in record.values.items()}
    if record.steps is not None:
        line["steps"] = _encode(record.steps, folder)["curve"]
    return line


def decode_record(line: Mapping[str, Any], folder: Path) -> Record:
    """Return the record that `encode_record` was given, metrics under their present names.

    Large `Scores` come back with their classes but without rows.
    """
    steps = line.get("steps")
    return Record(
        step=int(line["step"]),
        epoch=int(line["epoch"]),
        values={key: _decode(value, folder) for key, value in with_present_names(line["values"]).items()},
        steps=_curve(steps) if steps is not None else None,
        kind=line["kind"],
    )


def _encode(value: Value, folder: Path) -> Any:
    match value:
        case Image():
            return {"image": _save(value, folder), "caption": value.caption}
        case tuple():
            return {"images": [_encode(image, folder) for image in value]}
        case Table():
            cells = [[_encode(cell, folder) if isinstance(cell, Image) else cell for cell in row] for row in value.rows]
            return {"table": {"columns": list(value.columns), "rows": cells}}
        case Curve():
            lines = {name: list(line) for name, line in value.lines.items()}
            head = {"x_name": value.x_name, "title": value.title, "marks": dict(value.marks)}
            return {"curve": {**head, "x": list(value.x), "lines": lines}}
        case Scores():
            return {"scores": _encode_scores(value)}
    return value


def _encode_scores(scores: Scores) -> dict[str, Any]:
    head: dict[str, Any] = {"classes": list(scores.classes), "shape": list(scores.probabilities.shape)}
    if scores.probabilities.size > MAX_PROBABILITIES:
        return head
    rows = [[float(f"{probability:.6g}") for probability in row] for row in scores.probabilities.tolist()]
    return {**head, "labels": scores.labels.tolist(), "probabilities": rows}


def _decode(value: Any, folder: Path) -> Value:
    match value:
        case {"image": _}:
            return _image(value, folder)
        case {"images": list(images)}:
            return tuple(_image(image, folder) for image in images)
        case {"table": {"columns": columns, "rows": rows}}:
            cells = [tuple(_image(cell, folder) if isinstance(cell, dict) else cell for cell in row) for row in rows]
            return Table(tuple(columns), cells)
        case {"curve": curve}:
            return _curve(curve)
        case {"scores": scores}:
            classes = tuple(scores["classes"])
            probabilities = np.array(scores.get("probabilities", []), dtype=np.float64).reshape(-1, scores["shape"][1])
            return Scores(np.array(scores.get("labels", []), dtype=np.int64), probabilities, classes)
    return value


def _curve(curve: Mapping[str, Any]) -> Curve:
    return Curve(curve["x_name"], curve["x"], curve["lines"], curve["title"], curve["marks"])


def _image(value: Mapping[str, Any], folder: Path) -> StoredImage:
    name = str(value["image"])
    if not re.fullmatch(rf"{MEDIA}/[0-9a-f]{{16}}\.png", name):  # a journal may come from elsewhere
        raise ValueError(f"{name!r} is no image of a journal")
    return StoredImage(folder / name, str(value.get("caption", "")))


def stored_image(image: Image, folder: Path) -> Path:
    """Return the PNG file in which a journal in `folder` keeps an image; it may not exist.

    The file of a `StoredImage` is kept as it is, other images are named by their pixels.
    """
    if isinstance(image, StoredImage):
        name = sha256(image.path)
    else:
        pixels = np.ascontiguousarray(image.pixels)
        name = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return folder / MEDIA / f"{name[:16]}.png"


def _save(image: Image, folder: Path) -> str:
    """Write an image as a PNG file unless it exists, and return its path relative to `folder`."""
    path = stored_image(image, folder)
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        content = image.path.read_bytes() if isinstance(image, StoredImage) else encode_png(image.pixels)
        temporary.write_bytes(content)
        os.replace(temporary, path)  # whole or absent; thousands of images are too many to fsync one by one
    return f"{MEDIA}/{path.name}"
