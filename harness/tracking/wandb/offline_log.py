"""Read and write W&B's own log (`run-*.wandb`): a killed process loses the part that was not flushed.

The log has LevelDB's format: blocks of 32 KiB, chunks with a checksum, protobuf records. W&B no longer ships a Python
reader of it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness.utils.files import read_regular
from harness.utils.plain import parse_json

FILE_HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def last_step(log: Path) -> int:
    """Return the highest step among the whole history rows of a log; -1 where there is none."""
    return max((step_of(record.history) for record in read_log(log) if record.HasField("history")), default=-1)


def read_log(path: Path) -> Iterator[Any]:
    """Yield the protobuf records of a log up to the first that is cut or damaged; none where it cannot be read.

    The file is no link, pipe or device: the log may come from elsewhere.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto import wandb_internal_pb2

    try:
        content = read_regular(path)
    except OSError:
        return
    for data in records(content):
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            continue
        yield record


def step_of(history: Any) -> int:
    """Return the step of a history row; that of its item `_step` where it has one."""
    for item in history.item:
        if name_of(item) == "_step":
            try:
                return int(parse_json(item.value_json))
            except (TypeError, ValueError, OverflowError):
                break
    return int(history.step.num)


def name_of(item: Any) -> str:
    """Return the key of an item of a row, a summary or a config; a nested one is joined by slashes."""
    return str(item.key or "/".join(item.nested_key))


def records(log: bytes) -> Iterator[bytes]:
    """Yield the records of a log up to the first that is cut or damaged."""
    offset = len(FILE_HEADER)
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


def encode_log(payloads: Iterable[bytes]) -> bytes:
    """Return a log with these records, the reverse of `records`."""
    log = bytearray(FILE_HEADER)
    for payload in payloads:
        start = 0
        while True:
            left = BLOCK - len(log) % BLOCK
            if left < HEADER:
                log += bytes(left)
                left = BLOCK
            data = payload[start : start + left - HEADER]
            is_first, is_last = start == 0, start + len(data) == len(payload)
            kind = {(True, True): FULL, (True, False): FIRST, (False, False): MIDDLE, (False, True): LAST}[
                is_first, is_last
            ]
            log += struct.pack("<IHB", zlib.crc32(bytes([kind]) + data), len(data), kind) + data
            start += len(data)
            if is_last:
                break
    return bytes(log)
