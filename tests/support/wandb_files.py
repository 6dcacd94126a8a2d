"""Reads what an offline W&B run wrote: the transaction log, a LevelDB-style log of protobuf records."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, CHUNK_HEADER, FILE_HEADER = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class Segment:
    """One offline run folder.

    Attributes:
        rows: history in order, each with its `_step`.
        metrics: name or glob of each defined metric -> its record.
        artifacts: name, type, aliases, metadata, files (name -> local path) of each.
        exit_code: None when the run was not closed.
    """

    folder: Path
    run_id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    notes: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    alerts: list[tuple[str, str]] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.rows]


def segments(run_folder: Path) -> list[Segment]:
    """The offline segments under `run_folder`/wandb, oldest first."""
    return [load(folder) for folder in sorted((run_folder / "wandb").glob("offline-run-*"))]


def load(folder: Path) -> Segment:
    """What one offline run folder holds, up to its first torn record."""
    from wandb.proto import wandb_internal_pb2

    found = Segment(folder)
    (path,) = folder.glob("run-*.wandb")
    for data in payloads(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        _add(found, record)
    return found


def payloads(log: bytes) -> Iterator[bytes]:
    """The records in a transaction log, each checked by its CRC."""
    assert log[:4] == b":W&B" and struct.unpack("<H", log[4:6]) == (0xBEE1,)
    place, parts = FILE_HEADER, []
    while place + CHUNK_HEADER <= len(log):
        room = BLOCK - place % BLOCK
        if room < CHUNK_HEADER:  # a block's last bytes are padding
            place += room
            continue
        checksum, length, kind = struct.unpack("<IHB", log[place : place + CHUNK_HEADER])
        if kind == 0:
            place += room
            continue
        data = log[place + CHUNK_HEADER : place + CHUNK_HEADER + length]
        if len(data) < length:
            return
        assert zlib.crc32(bytes([kind]) + data) == checksum
        place += CHUNK_HEADER + length
        parts = [data] if kind in (FULL, FIRST) else [*parts, data]
        if kind in (FULL, LAST):
            yield b"".join(parts)


def _add(found: Segment, record: Any) -> None:
    match record.WhichOneof("record_type"):
        case "run":
            run = record.run
            found.run_id, found.name, found.project = run.run_id, run.display_name, run.project
            found.group, found.job_type, found.tags = run.run_group, run.job_type, list(run.tags)
            found.notes = run.notes
            found.config |= _items(run.config.update)
        case "config":
            found.config |= _items(record.config.update)
        case "history":
            row = _items(record.history.item)
            row.setdefault("_step", record.history.step.num)
            found.rows.append(row)
        case "summary":
            found.summary |= _items(record.summary.update)
            for item in record.summary.remove:
                found.summary.pop(item.key, None)
        case "metric":
            found.metrics[record.metric.name or record.metric.glob_name] = record.metric
        case "artifact":
            found.artifacts.append(_artifact(record.artifact))
        case "request" if record.request.WhichOneof("request_type") == "log_artifact":
            found.artifacts.append(_artifact(record.request.log_artifact.artifact))
        case "alert":
            found.alerts.append((record.alert.title, record.alert.text))
        case "exit":
            found.exit_code = record.exit.exit_code


def _items(items: Any) -> dict[str, Any]:
    """key -> value; nested keys are joined with dots."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _artifact(artifact: Any) -> dict[str, Any]:
    entries = list(artifact.manifest.contents)
    if artifact.manifest.manifest_file_path:
        listed = json.loads(Path(artifact.manifest.manifest_file_path).read_text())
        files = {name: entry.get("local_path", "") for name, entry in listed.get("contents", {}).items()}
    else:
        files = {entry.path: entry.local_path for entry in entries}
    return {
        "name": artifact.name,
        "type": artifact.type,
        "aliases": list(artifact.aliases),
        "metadata": json.loads(artifact.metadata or "{}"),
        "files": files,
    }
