"""Records as strict JSON, and back: the lines of a journal.

Images are PNG files beside the journal, named by the hash of their content. A journal may come from somebody else:
what is decoded has the types that a record has, and an image is no link to another file.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.tracking.metric_names import with_present_names
from harness.tracking.records import (
    Artifact,
    Cell,
    Curve,
    Histogram,
    Image,
    Record,
    Reference,
    Scores,
    StoredImage,
    Table,
    Value,
    encode_png,
)
from harness.utils.files import read_regular, sha256
from harness.utils.plain import json_text, number, parse_json, sub_mapping

MEDIA = "media"
# More probabilities than this would make a journal of tens of megabytes; then only their shape is kept.
MAX_PROBABILITIES = 200_000


def to_line(value: Mapping[str, Any]) -> bytes:
    """Return one line of a journal, with its newline; ASCII, so that no cut falls inside a character."""
    return json_text(value, ascii_only=True).encode() + b"\n"


def from_line(line: bytes) -> dict[str, Any]:
    """Return what `to_line` was given.

    Raises:
        ValueError: the line is not a JSON object.
    """
    value = parse_json(line)
    if not isinstance(value, dict):
        raise ValueError("need a JSON object")
    return value


def encode_record(record: Record, folder: Path) -> dict[str, Any]:
    """Return a record as a mapping; its images are written under `folder`/media."""
    line: dict[str, Any] = {"kind": record.kind, "step": record.step, "epoch": record.epoch}
    if record.time:
        line["time"] = record.time
    line["values"] = {key: _encode(value, folder) for key, value in record.values.items()}
    if record.steps is not None:
        line["steps"] = _encode(record.steps, folder)["curve"]
    if record.step_times:
        line["step_times"] = list(record.step_times)
    return line


def decode_record(line: Mapping[str, Any], folder: Path) -> Record:
    """Return the record that `encode_record` was given, metrics under their present names.

    Large `Scores` come back with their classes but without rows.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, IndexError: the line is no record.
    """
    steps, step_times = line.get("steps"), line.get("step_times")
    time = number(line.get("time", 0.0))
    if not math.isfinite(time) or (
        step_times is not None and not (_is_numbers(step_times) and all(map(math.isfinite, step_times)))
    ):
        raise ValueError("the times of a record are finite numbers")
    return Record(
        step=_integer(line["step"]),
        epoch=_integer(line["epoch"]),
        values={key: _decode(value, folder) for key, value in with_present_names(line["values"]).items()},
        steps=_curve(steps) if steps is not None else None,
        kind=line["kind"],
        time=time,
        step_times=step_times or (),
    )


def encode_artifact(artifact: Artifact, folder: Path) -> dict[str, Any]:
    """Return an artifact as a mapping; its files are named by their paths in `folder`."""
    line: dict[str, Any] = {"kind": "artifact", "name": artifact.name, "type": artifact.kind}
    line |= {"aliases": artifact.aliases, "metadata": artifact.metadata}
    line["files"] = {name: os.path.relpath(path, folder) for name, path in artifact.files.items()}
    if artifact.references:
        line["references"] = {name: vars(reference) for name, reference in artifact.references.items()}
    if artifact.is_input:
        line["is_input"] = True
    return line


def decode_artifact(line: Mapping[str, Any], folder: Path) -> Artifact:
    """Return the artifact that `encode_artifact` was given.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the line is no artifact.
    """
    references = {
        str(name): Reference(str(part["uri"]), str(part["checksum"]))
        for name, part in sub_mapping(line, "references").items()
    }
    return Artifact(
        name=str(line["name"]),
        kind=str(line["type"]),
        files={str(name): folder / file for name, file in line["files"].items()},
        aliases=tuple(map(str, line["aliases"])),
        metadata=sub_mapping(line, "metadata"),
        references=references,
        is_input=line.get("is_input") is True,
    )


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no number of a step or an epoch")
    return value


def _scalar(value: Any) -> Any:
    """Return a number, text, boolean or None as it is; an integer of hundreds of digits is none."""
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"{type(value).__name__} is no value of a record")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("an integer of more than 64 bits")
    return value


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
        case Histogram():
            return {"histogram": {"counts": list(value.counts), "edges": list(value.edges)}}
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
            cells = [tuple(_cell(cell, folder) for cell in row) for row in rows]
            return Table(tuple(map(str, columns)), cells)
        case {"curve": curve}:
            return _curve(curve)
        case {"scores": scores}:
            classes = tuple(map(str, scores["classes"]))
            probabilities = np.array(scores.get("probabilities", []), dtype=np.float64).reshape(-1, len(classes))
            labels = np.array(scores.get("labels", []), dtype=np.int64)
            if labels.shape != probabilities.shape[:1] or (
                labels.size and not 0 <= labels.min() <= labels.max() < len(classes)
            ):
                raise ValueError("the labels do not fit the probabilities")
            return Scores(labels, probabilities, classes)
        case {"histogram": {"counts": counts, "edges": edges}}:
            if not _is_numbers(counts) or not _is_numbers(edges):
                raise ValueError("a histogram has lists of numbers")
            return Histogram(counts, edges)
    return _scalar(value)


def _cell(value: Any, folder: Path) -> Cell:
    cell: Cell = _image(value, folder) if isinstance(value, dict) else _scalar(value)
    return cell


def _curve(curve: Mapping[str, Any]) -> Curve:
    lines, marks = dict(curve["lines"]), dict(curve["marks"])
    if not all(map(_is_numbers, [curve["x"], *lines.values(), list(marks.values())])):
        raise ValueError("a curve has lists of numbers")
    return Curve(str(curve["x_name"]), curve["x"], lines, str(curve["title"]), marks)


def _is_numbers(values: Any) -> bool:
    """Return whether a list has numbers only: finite or not, but no integers of hundreds of digits."""
    return isinstance(values, list) and all(
        type(value) is float or (type(value) is int and abs(value) < 2**63) for value in values
    )


def _image(value: Mapping[str, Any], folder: Path) -> StoredImage:
    name = str(value["image"])
    if not re.fullmatch(rf"{MEDIA}/[0-9a-f]{{16}}\.png", name):
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
        try:
            content = read_regular(image.path) if isinstance(image, StoredImage) else encode_png(image.pixels)
            temporary.write_bytes(content)
            os.replace(temporary, path)  # whole or absent; thousands of images are too many to fsync one by one
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    return f"{MEDIA}/{path.name}"
