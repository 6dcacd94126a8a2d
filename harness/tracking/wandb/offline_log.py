"""Read the log (`run-*.wandb`) of an offline run directory: a killed process loses the part that was not flushed.

The log has LevelDB's format: blocks of 32 KiB, chunks with a checksum, protobuf records. W&B no longer ships a Python
reader of it.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

BLOCK, HEADER = 32768, 7
FULL, FIRST, LAST = 1, 2, 4


def last_step(log: Path) -> int:
    """Return the highest step among the whole history rows of a log; -1 where there is none."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto import wandb_internal_pb2

    highest = -1
    try:
        content = log.read_bytes()
    except OSError:
        return highest
    for data in records(content):
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            continue
        if record.WhichOneof("record_type") != "history":
            continue
        steps = [item.value_json for item in record.history.item if (item.key or "".join(item.nested_key)) == "_step"]
        highest = max(highest, int(json.loads(steps[0])) if steps else record.history.step.num)
    return highest


def records(log: bytes) -> Iterator[bytes]:
    """Yield the records of a log up to the first that is cut or damaged."""
    offset = HEADER
    parts: list[bytes] = []
    while offset + HEADER <= len(log):
        left = BLOCK - offset % BLOCK  # in this block
        checksum, length, kind = struct.unpack("<IHB", log[offset : offset + HEADER]) if left >= HEADER else (0, 0, 0)
        if kind == 0:  # the rest of a block is padding
            offset += left
            continue
        data = log[offset + HEADER : offset + HEADER + length]
        if len(data) < length or zlib.crc32(bytes([kind]) + data) != checksum:
            return
        offset += HEADER + length
        parts = [data] if kind in (FULL, FIRST) else [*parts, data]
        if kind in (FULL, LAST):
            yield b"".join(parts)
