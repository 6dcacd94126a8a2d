"""Checksums of a finished run's files, in the format of `sha256sum`, and of a JSON file in itself."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.utils.files import read_regular, sha256, write_atomically, write_json
from harness.utils.plain import from_plain, to_plain

SUMS = "SHA256SUMS"  # `sha256sum -c SHA256SUMS` checks it too
CHECKSUM = "checksum"  # the key of a JSON file's own checksum


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """Write the SHA-256 of those of the named files in `folder` that exist."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names if (folder / name).is_file()]
    write_atomically(folder / SUMS, "".join(lines))


def changed_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Return which of the named files are gone or have another checksum than in `SHA256SUMS`; none where it is missing.

    Files that it does not list, such as those of version 0.1, are not checked.
    """
    sums = read_sums(folder)
    return [name for name in names if name in sums and _digest(folder / name) != sums[name]]


def read_sums(folder: Path) -> dict[str, str]:
    """Return file name -> SHA-256 in `SHA256SUMS` of a folder; empty where it is missing."""
    try:
        text = read_regular(folder / SUMS).decode("utf-8", "replace")
    except OSError:
        return {}
    return {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (.+)$", text, re.M)}


def _digest(path: Path) -> str:
    try:
        return sha256(path) if path.is_file() else ""
    except OSError:
        return ""


def write_checked_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file that holds the checksum of its values."""
    content = {key: part for key, part in value.items() if key != CHECKSUM}
    write_json(path, {**content, CHECKSUM: _checksum(from_plain(to_plain(content)))})


def is_checked_json_intact(value: Mapping[str, Any]) -> bool:
    """Return whether the values of a JSON file have the checksum in it; true where there is none, as in version 0.1."""
    content = {key: part for key, part in value.items() if key != CHECKSUM}
    return CHECKSUM not in value or value[CHECKSUM] == _checksum(content)


def _checksum(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
