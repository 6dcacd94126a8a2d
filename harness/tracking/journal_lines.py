"""The checksum at the end of each line of a journal, by which a changed line is noticed."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from harness.tracking.serialization import to_line

# The last key of the line's object. Journals of version 0.1 have none.
KEY = "crc32"
_ENDING = re.compile(rb',"%s":"([0-9a-f]{8})"\}$' % KEY.encode())


def encode_line(value: Mapping[str, Any]) -> bytes:
    """Return one line of a journal, with its newline: an object whose last value is the CRC-32 of the rest."""
    content = to_line(value)[:-1]
    return content[:-1] + b',"%s":"%08x"}\n' % (KEY.encode(), zlib.crc32(content))


def are_unchanged(lines: Iterable[bytes]) -> list[bool]:
    """Return for each line, without its newline, whether it has the checksum that it ends with.

    A line without one is unchanged if no line before it has one.
    """
    results, is_required = [], False
    for line in lines:
        match = _ENDING.search(line)
        is_required |= match is not None
        results.append(not is_required if match is None else _checksum_of(line, match) == int(match[1], 16))
    return results


def _checksum_of(line: bytes, match: re.Match[bytes]) -> int:
    return zlib.crc32(line[: match.start()] + b"}")
