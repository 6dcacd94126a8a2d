"""Read offline W&B run directories: the transaction log, a LevelDB-style log of protobuf records."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, CHUNK_HEADER, FILE_HEADER = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """One offline run directory.

    Attributes:
        rows: history in order, each with its `_step`.
        metrics: name or glob of each defined metric -> its record.
        artifacts: name, type, aliases, metadata and files (name -> local path) of each.
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


def offline_runs(run_folder: Path) -> list[OfflineRun]:
    """Return the offline run directories under `run_folder`/wandb, oldest first."""
    return [load(folder) for folder in sorted((run_folder / "wandb").glob("offline-run-*"))]


def joined(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return key -> value, where the log has the parts of an image or table under `key.part`."""
    values: dict[str, Any] = {}
    for key, value in items:
        name, _, part = key.rpartition(".")
        if name:
            values.setdefault(name, {})[part] = value
        else:
            values[key] = value
    return values


def load(folder: Path) -> OfflineRun:
    """Return the contents of one offline run directory, up to its first damaged record."""
    from wandb.proto import wandb_internal_pb2

    offline_run = OfflineRun(folder)
    (path,) = folder.glob("run-*.wandb")
    for data in payloads(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        _add(offline_run, record)
    return offline_run


def payloads(log: bytes) -> Iterator[bytes]:
    """Yield the records of a transaction log, each checked by its CRC."""
    assert log[:4] == b":W&B" and struct.unpack("<H", log[4:6]) == (0xBEE1,)
    offset, parts = FILE_HEADER, []
    while offset + CHUNK_HEADER <= len(log):
        left = BLOCK - offset % BLOCK
        if left < CHUNK_HEADER:  # a block's last bytes are padding
            offset += left
            continue
        checksum, length, kind = struct.unpack("<IHB", log[offset : offset + CHUNK_HEADER])
        if kind == 0:
            offset += left
            continue
        data = log[offset + CHUNK_HEADER : offset + CHUNK_HEADER + length]
        if len(data) < length:
            return
        assert zlib.crc32(bytes([kind]) + data) == checksum
        offset += CHUNK_HEADER + length
        parts = [data] if kind in (FULL, FIRST) else [*parts, data]
        if kind in (FULL, LAST):
            yield b"".join(parts)


def _add(offline_run: OfflineRun, record: Any) -> None:
    match record.WhichOneof("record_type"):
        case "run":
            run = record.run
            offline_run.run_id, offline_run.name, offline_run.project = run.run_id, run.display_name, run.project
            offline_run.group, offline_run.job_type, offline_run.tags = run.run_group, run.job_type, list(run.tags)
            offline_run.notes = run.notes
            offline_run.config |= _items(run.config.update)
        case "config":
            offline_run.config |= _items(record.config.update)
        case "history":
            row = _items(record.history.item)
            row.setdefault("_step", record.history.step.num)
            offline_run.rows.append(row)
        case "summary":
            offline_run.summary |= _items(record.summary.update)
            for item in record.summary.remove:
                offline_run.summary.pop(item.key, None)
        case "metric":
            offline_run.metrics[record.metric.name or record.metric.glob_name] = record.metric
        case "artifact":
            offline_run.artifacts.append(_artifact(record.artifact))
        case "request" if record.request.WhichOneof("request_type") == "log_artifact":
            offline_run.artifacts.append(_artifact(record.request.log_artifact.artifact))
        case "alert":
            offline_run.alerts.append((record.alert.title, record.alert.text))
        case "exit":
            offline_run.exit_code = record.exit.exit_code


def _items(items: Any) -> dict[str, Any]:
    """Return key -> value; nested keys are joined with dots."""
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
