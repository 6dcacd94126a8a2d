"""How far W&B's own log of an offline run goes: a killed process takes its unwritten end with it.

The log is in LevelDB's form: blocks of 32 KiB, chunks with a checksum, protobuf records. W&B has no reader of it in
Python any more.
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
    """The highest step among the history rows that are whole in a log; -1 where there is none."""
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
        named = [item.value_json for item in record.history.item if (item.key or "".join(item.nested_key)) == "_step"]
        highest = max(highest, int(json.loads(named[0])) if named else record.history.step.num)
    return highest


def records(log: bytes) -> Iterator[bytes]:
    """The records in a log up to the first that is torn or damaged."""
    place = HEADER
    parts: list[bytes] = []
    while place + HEADER <= len(log):
        room = BLOCK - place % BLOCK
        checksum, length, kind = struct.unpack("<IHB", log[place : place + HEADER]) if room >= HEADER else (0, 0, 0)
        if kind == 0:  # the rest of a block is padding
            place += room
            continue
        data = log[place + HEADER : place + HEADER + length]
        if len(data) < length or zlib.crc32(bytes([kind]) + data) != checksum:
            return
        place += HEADER + length
        parts = [data] if kind in (FULL, FIRST) else [*parts, data]
        if kind in (FULL, LAST):
            yield b"".join(parts)
