"""The journal: a run's own record of everything it said, one JSON object a line, on the disk line by line.

It is the truth that trackers are compared with and rebuilt from; nothing else is read back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from harness.tracking.records import Artifact, Record, Scalar, with_present_names
from harness.tracking.serialization import decode_record, encode_record, from_line, to_line
from harness.tracking.tracker import Status
from harness.utils import fault_injection
from harness.utils.errors import CheckpointError, DataError, ResourceError
from harness.utils.files import write_atomically

NAME = "journal.jsonl"
REPLACED = "journal.replaced.jsonl"
RECORDS = ("epoch", "final", "find")
VERSION = 1


@dataclass(frozen=True)
class JournalContents:
    """What a journal tells.

    Attributes:
        header: the first line: `config`, `environment` and whatever else the run began with.
        summary: the last line's figures; empty when the run did not come to its end.
        status: `finished`, `failed` or `stopped`; empty when the run did not come to its end.
        artifacts: what was kept, with the paths of the files as they were then; only files in the run folder.
        alerts: (title, text) of each.
        whole: whether it ends with its summary and nothing is torn.
    """

    header: Mapping[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    summary: Mapping[str, Scalar] = field(default_factory=dict)
    status: str = ""
    exit_code: int | None = None
    artifacts: list[Artifact] = field(default_factory=list)
    alerts: list[tuple[str, str]] = field(default_factory=list)
    whole: bool = False


class NullJournal:
    """Takes nothing and has nothing to sync: the process that leads writes."""

    def sync(self) -> None:
        """Nothing."""


class Journal:
    """A tracker that writes `journal.jsonl` in a run folder.

    Args:
        header: plain values; `config` and `environment` by convention.

    A journal that is already there is not lost: its lines move to `journal.replaced.jsonl`.

    Raises:
        ResourceError: the disk is full or the folder can not be written; the journal ends with a whole line.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / NAME
        if self.path.exists():
            _replace(self.folder, kept=b"", removed=self.path.read_bytes())
        self._begin()
        self._write({"kind": "header", "journal": VERSION, **header})

    @classmethod
    def resume(cls, folder: Path, step: int, header: Mapping[str, Any] | None = None) -> Journal:
        """The journal of a run that goes on from `step`.

        A torn last line is cut. Records past `step`, what was said at the end, and the summary move to
        `journal.replaced.jsonl`: the run will say them again.

        Args:
            header: written when the journal has lost its own; without it such a journal is an error.

        Raises:
            CheckpointError: there is no journal with a whole first line in `folder`.
        """
        path = Path(folder) / NAME
        kept, removed, torn = _split(path, step)
        if not kept:
            if header is not None:
                return cls(folder, header)
            raise CheckpointError(f"{path} is missing or has lost its first line; start again with --resume never")
        if removed or torn:
            _replace(Path(folder), kept, removed)
        journal = cls.__new__(cls)
        journal.folder, journal.path = Path(folder), path
        journal._begin()
        return journal

    def _begin(self) -> None:
        # Unbuffered: a line is with the system when `record` returns, and a refused one is not tried again later.
        self._file: FileIO | None = FileIO(self.path, "ab")
        self._summary: dict[str, Scalar] = {}

    def record(self, record: Record) -> None:
        """Write one record as a line; it is out of this process when this returns."""
        try:
            line = encode_record(record, self.folder)
        except OSError as error:
            raise _no_room(self.folder, error) from error
        self._write(line)

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Add to the figures of the last line, which `finish` writes."""
        self._summary.update(values)

    def artifact(self, artifact: Artifact) -> None:
        """Write which files were kept; the files themselves stay where they are."""
        files = {name: os.path.relpath(path, self.folder) for name, path in artifact.files.items()}
        about = {"name": artifact.name, "type": artifact.kind, "aliases": artifact.aliases}
        self._write({"kind": "artifact", **about, "metadata": artifact.metadata, "files": files})

    def alert(self, title: str, text: str) -> None:
        """Write that somebody was told."""
        self._write({"kind": "alert", "title": title, "text": text})

    def sync(self) -> None:
        """Wait until everything is on the disk; to be called before a checkpoint counts."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def finish(self, status: Status, exit_code: int) -> None:
        """Write the summary as the last line, wait for the disk and close."""
        if self._file is None:
            return
        try:
            self._write({"kind": "summary", "status": status, "exit_code": exit_code, "summary": self._summary})
            self.sync()
        finally:
            self._file.close()
            self._file = None

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            raise RuntimeError(f"{self.path} is closed")
        start, rest = self._file.tell(), to_line(line)
        try:
            file, half = self._file, rest[: len(rest) // 2]
            fault_injection.point("journal", first=lambda: file.write(half))
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            os.truncate(self.path, start)  # a later line must not continue this one
            raise _no_room(self.path, error) from error


def read_journal(path: Path) -> JournalContents:
    """What a journal tells, up to its last whole line.

    Args:
        path: the journal, or the run folder that it is in.

    Raises:
        DataError: there is no journal.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    try:
        lines, torn = _whole_lines(path.read_bytes())
    except OSError as error:
        raise DataError(f"can not read the journal {path}: {error.strerror}; `harness runs` lists the runs") from error
    told: dict[str, Any] = {"records": [], "artifacts": [], "alerts": []}
    last = ""
    for raw in lines:
        try:
            last = _tell(told, from_line(raw), path.parent)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            torn = True
            break
    return JournalContents(**told, whole=last == "summary" and not torn)


def follow_journal(path: Path, place: int) -> tuple[list[Record], int]:
    """The records that a journal which is still being written has gained since byte `place`, and the new place.

    A journal that is shorter than `place` was cut by a run that goes on: it is read from its beginning, and the first
    of the records is again the run's first.

    Args:
        path: the run folder. place: 0 at first.
    """
    path = Path(path) / NAME
    try:
        with open(path, "rb") as file:
            if file.seek(0, os.SEEK_END) < place:
                place = 0
            file.seek(place)
            lines, _ = _whole_lines(file.read())
    except OSError:
        return [], place
    told: dict[str, Any] = {"records": [], "artifacts": [], "alerts": []}
    for raw in lines:
        _tell(told, from_line(raw), path.parent)
    return told["records"], place + sum(len(raw) + 1 for raw in lines)


def _tell(told: dict[str, Any], line: dict[str, Any], folder: Path) -> str:
    """Add one line to what a `JournalContents` is made from; its kind."""
    kind = str(line.get("kind"))
    if kind == "header":
        told["header"] = {key: value for key, value in line.items() if key not in ("kind", "journal")}
    elif kind in RECORDS:
        told["records"].append(decode_record(line, folder))
    elif kind == "artifact":
        files, home = {name: folder / file for name, file in line["files"].items()}, folder.resolve()
        if all(path.resolve().is_relative_to(home) for path in files.values()):  # a journal may come from elsewhere
            kept = Artifact(line["name"], line["type"], files, tuple(line["aliases"]), line["metadata"])
            told["artifacts"].append(kept)
    elif kind == "alert":
        told["alerts"].append((line["title"], line["text"]))
    elif kind == "summary":
        told.update(summary=with_present_names(line["summary"]), status=line["status"], exit_code=line["exit_code"])
    return kind


def _whole_lines(content: bytes) -> tuple[list[bytes], bool]:
    """The lines that end in a newline and are JSON objects, up to the first that is not; whether there was one."""
    *lines, rest = content.split(b"\n")
    for number, line in enumerate(lines):
        try:
            whole = isinstance(json.loads(line), dict)
        except ValueError:
            whole = False
        if not whole:
            return lines[:number], True
    return lines, bool(rest)


def _split(path: Path, step: int) -> tuple[bytes, bytes, bool]:
    """The lines that a run going on from `step` keeps, those that it will say again, and whether one was torn."""
    try:
        lines, torn = _whole_lines(path.read_bytes())
    except FileNotFoundError:
        return b"", b"", False
    kept: list[bytes] = []
    removed: list[bytes] = []
    for raw in lines:
        line = from_line(raw)
        kind, at = str(line.get("kind")), line.get("step")
        if kind in RECORDS and not isinstance(at, int):
            torn = True  # damaged, and nothing after it is to be believed
            break
        again = kind in ("summary", "final") or (kind in RECORDS and isinstance(at, int) and at > step)
        # What follows a record that is said again belongs to it: artifacts and alerts too.
        (removed if again or removed else kept).append(raw + b"\n")
    if kept and from_line(kept[0]).get("kind") != "header":
        return b"", b"", torn
    return b"".join(kept), b"".join(removed), torn


def _replace(folder: Path, kept: bytes, removed: bytes) -> None:
    """Put `kept` in the place of the journal, after `removed` is safe beside it."""
    if removed:
        with open(folder / REPLACED, "ab") as file:
            file.write(removed if removed.endswith(b"\n") else removed + b"\n")
            file.flush()
            os.fsync(file.fileno())
    write_atomically(folder / NAME, kept)


def _no_room(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"can not write {path}: {error.strerror or error}; free some space, then run the same command again"
    )
