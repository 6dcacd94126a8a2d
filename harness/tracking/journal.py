"""The journal: every record of a run in `journal.jsonl`, one JSON object a line, on the disk before any tracker has it.

A run in W&B can be rebuilt from it (`harness sync`), and a resumed run continues it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Literal, get_args

from harness.tracking.epoch_steps import add_record
from harness.tracking.journal_lines import KEY, are_unchanged, encode_line
from harness.tracking.metric_names import with_present_names
from harness.tracking.records import Artifact, Record, Scalar
from harness.tracking.serialization import decode_artifact, decode_record, encode_artifact, encode_record, from_line
from harness.tracking.tracker import Status, Tracker
from harness.utils import fault_injection
from harness.utils.errors import CheckpointError, DataError, ResourceError
from harness.utils.files import is_plain_path, link_inside, open_regular, read_regular, write_atomically

NAME = "journal.jsonl"
REPLACED = "journal.replaced.jsonl"
RECORDS = ("steps", "epoch", "final", "find")
VERSION = 1
# What the decoding of a line raises that is JSON, but no record.
NO_RECORD = (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError)


@dataclass(frozen=True)
class JournalContents:
    """The contents of a journal.

    Attributes:
        header: the first line: `config`, `environment` and whatever else the run began with.
        settings: those that the run has determined itself, in place of the requested ones.
        intervals: (first step, `log_every`) of each later part of the run whose trackers got the steps at another
            interval than the header's settings say; of two for one step the last counts.
        summary: the figures of the last line; empty when the run was not closed.
        status: how the run ended; empty when it was not closed.
        artifacts: what was kept, with the paths that the files had then; only files in the run directory.
        alerts: (title, text) of each.
        whole: whether the journal ends with its summary and has no damaged line.
    """

    header: Mapping[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    intervals: Sequence[tuple[int, int]] = ()
    summary: Mapping[str, Scalar] = field(default_factory=dict)
    status: Status | Literal[""] = ""
    exit_code: int | None = None
    artifacts: list[Artifact] = field(default_factory=list)
    alerts: list[tuple[str, str]] = field(default_factory=list)
    whole: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What the trackers got beside the requested settings."""
        about = {key: value for key, value in self.header.items() if key not in ("config", "process")}
        return {**about, **self.settings}

    @property
    def end(self) -> tuple[Status, int]:
        """Status and exit code; a killed run has no last line, and has failed."""
        return self.status or "failed", 1 if self.exit_code is None else self.exit_code


class NullJournal:
    """The journal of a process that writes none: only the main process (rank 0) does."""

    def sync(self) -> None:
        """Do nothing."""


class Journal(Tracker):
    """A tracker that writes `journal.jsonl` in a run directory.

    The lines of a journal that is already there move to `journal.replaced.jsonl`. Each step of an epoch is in one line: the
    record of the epoch is written without those steps that were recorded before, and `read_journal` puts them together.

    Args:
        header: plain values; `config` and `environment` by convention.

    Raises:
        ResourceError: the disk is full or the directory cannot be written; the journal still ends with a whole line.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / NAME
        if self.path.exists():
            replace_lines(self.folder, kept=b"", removed=read_regular(self.path))
        self._open()
        self._write({"kind": "header", "journal": VERSION, **header})

    @classmethod
    def resume(cls, folder: Path, step: int, header: Mapping[str, Any] | None = None) -> Journal:
        """Open the journal of a run that is resumed from `step`.

        A damaged last line is cut off. Records after `step`, the final record and the summary move to
        `journal.replaced.jsonl`: the run will write them again.

        Args:
            header: written when the journal has lost its own; without it such a journal is an error.

        Raises:
            CheckpointError: `folder` has no journal with a whole first line.
        """
        path = Path(folder) / NAME
        kept, removed, is_damaged, last_step = _split(path, step)
        if not kept:
            if header is not None:
                return cls(folder, header)
            raise CheckpointError(f"{path} is missing or has lost its first line; start again with --resume never")
        if removed or is_damaged:
            replace_lines(Path(folder), kept, removed)
        journal = cls.__new__(cls)
        journal.folder, journal.path = Path(folder), path
        journal._open(last_step)
        return journal

    def _open(self, last_step: int = 0) -> None:
        self._last_step = last_step  # of the steps that are written
        # Unbuffered: the system has a line when `record` returns, and a line that failed is not retried later.
        self._file: FileIO | None = FileIO(open_regular(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")
        self._summary: dict[str, Scalar] = {}

    def record(self, record: Record) -> None:
        """Write one record as a line; the system has it when this returns."""
        record = record.with_steps(lambda step: step > self._last_step)
        steps = record.steps.x if record.steps is not None else ()
        if record.kind == "steps" and not steps:  # a resumed run has them in its journal
            return
        try:
            line = encode_record(record, self.folder)
        except OSError as error:
            raise _write_error(self.folder, error) from error
        self._write(line)
        if steps:
            self._last_step = round(steps[-1])

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Add figures to the last line, which `finish` writes."""
        self._summary.update(values)

    def settings(self, values: Mapping[str, Scalar]) -> None:
        """Write the settings as a line; the header keeps what was requested."""
        self._write({"kind": "settings", "settings": dict(values)})

    def set_log_every(self, steps: int, first_step: int) -> None:
        """Write that the trackers get the metrics of every this many steps from `first_step` on."""
        self._write({"kind": "settings", "settings": {"log_every": steps}, "first_step": first_step})

    def artifact(self, artifact: Artifact) -> None:
        """Write which files are kept; the files themselves stay where they are.

        An interim one is left out, since its files change.
        """
        if not artifact.is_interim:
            self._write(encode_artifact(artifact, self.folder))

    def alert(self, title: str, text: str) -> None:
        """Write that an alert was sent."""
        self._write({"kind": "alert", "title": title, "text": text})

    def sync(self) -> None:
        """Wait until every line is on the disk; called before a checkpoint is written."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def finish(self, status: Status, exit_code: int) -> None:
        """Write the summary as the last line, wait until it is on the disk, and close."""
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
        start, rest = self._file.tell(), encode_line(line)
        try:
            file, half = self._file, rest[: len(rest) // 2]
            fault_injection.point("journal", first=lambda: file.write(half))
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            os.ftruncate(self._file.fileno(), start)  # so that the next line does not continue this one
            raise _write_error(self.path, error) from error


def read_journal(path: Path) -> JournalContents:
    """Return the contents of a journal up to its last whole line, metrics under their present names.

    Args:
        path: the journal, or the run directory that it is in.

    Raises:
        DataError: there is no journal.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    try:
        lines, is_damaged = _whole_lines(read_regular(path))
    except OSError as error:
        raise DataError(f"cannot read the journal {path}: {error.strerror}; `harness runs` lists the runs") from error
    contents: dict[str, Any] = {"records": [], "artifacts": [], "alerts": []}
    kind = ""
    for raw in lines:
        try:
            kind = _add_line(contents, from_line(raw), path.parent)
        except NO_RECORD:
            is_damaged = True
            break
    return JournalContents(**contents, whole=kind == "summary" and not is_damaged)


def follow_journal(path: Path, offset: int) -> tuple[list[Record], int]:
    """Return the records that a journal has gained since byte `offset`, and the offset to pass next time.

    A resumed run cuts its journal. One that is shorter than `offset` is read from its beginning, so that the first of
    the records is again the run's first.

    Args:
        path: the run directory, whose journal is still being written.
        offset: bytes; 0 at first.
    """
    path = Path(path) / NAME
    try:
        with open(open_regular(path), "rb") as file:
            if file.seek(0, os.SEEK_END) < offset:
                offset = 0
            file.seek(offset)
            lines, _ = _whole_lines(file.read())
    except OSError:
        return [], offset
    contents: dict[str, Any] = {"records": [], "artifacts": [], "alerts": []}
    for raw in lines:
        with contextlib.suppress(*NO_RECORD):  # a line that is no record has nothing to follow
            _add_line(contents, from_line(raw), path.parent)
    return contents["records"], offset + sum(len(raw) + 1 for raw in lines)


def _add_line(contents: dict[str, Any], line: dict[str, Any], folder: Path) -> str:
    """Add one line to the fields of a `JournalContents`, and return its kind."""
    kind = str(line.get("kind"))
    if kind == "header":
        contents["header"] = {key: value for key, value in line.items() if key not in ("kind", "journal", KEY)}
    elif kind in RECORDS:
        add_record(contents["records"], decode_record(line, folder))
    elif kind == "settings":
        contents["settings"] = {**contents.get("settings", {}), **line["settings"]}
        interval = (line.get("first_step"), line["settings"].get("log_every"))
        if all(isinstance(value, int) for value in interval):
            contents.setdefault("intervals", []).append(interval)
    elif kind == "artifact":
        # A journal may come from elsewhere: only files in the run directory, none of them through a link.
        if all(_is_inside(folder, file) for file in line["files"].values()):
            contents["artifacts"].append(decode_artifact(line, folder))
    elif kind == "alert":
        contents["alerts"].append((str(line["title"]), str(line["text"])))
    elif kind == "summary":
        status = line["status"] if line["status"] in get_args(Status) else "failed"
        code = line["exit_code"] if isinstance(line["exit_code"], int) else None
        summary = {
            str(key): value
            for key, value in with_present_names(line["summary"]).items()
            if isinstance(value, str | int | float)
        }
        contents.update(summary=summary, status=status, exit_code=code)
    return kind


def _is_inside(folder: Path, file: str) -> bool:
    """Return whether a path that a journal names is one of plain names in the run directory, without a link on its way."""
    return is_plain_path(file) and not link_inside(folder, folder / file)


def _whole_lines(content: bytes) -> tuple[list[bytes], bool]:
    """Return the lines up to the first that is damaged or has no newline, and whether there is such a line.

    A line is damaged that is no JSON object, or has another checksum than it ends with.
    """
    *lines, rest = content.split(b"\n")
    if not all(unchanged := are_unchanged(lines)):
        lines, rest = lines[: unchanged.index(False)], b"damaged"
    for number, line in enumerate(lines):
        if not _is_object(line):
            return lines[:number], True
    return lines, bool(rest)


def _is_object(line: bytes) -> bool:
    try:
        from_line(line)
    except ValueError:
        return False
    return True


def _split(path: Path, step: int) -> tuple[bytes, bytes, bool, int]:
    """Return the lines that a run resumed from `step` keeps, and those that it will write again.

    Then whether a line is damaged, and the last step of an epoch that is kept.
    """
    try:
        lines, is_damaged = _whole_lines(read_regular(path))
    except FileNotFoundError:
        return b"", b"", False, 0
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; start again with --resume never") from None
    kept: list[bytes] = []
    removed: list[bytes] = []
    last_step = 0
    for raw in lines:
        line = from_line(raw)
        kind, at = str(line.get("kind")), line.get("step")
        if kind in RECORDS and not isinstance(at, int):
            is_damaged = True  # and nothing after it can be trusted
            break
        is_repeated = kind in ("summary", "final") or (kind in RECORDS and isinstance(at, int) and at > step)
        # Whatever follows a repeated record belongs to it: artifacts and alerts too.
        is_kept = not is_repeated and not removed
        (kept if is_kept else removed).append(raw + b"\n")
        if is_kept and kind in ("steps", "epoch") and isinstance(at, int):
            last_step = max(last_step, at)
    if kept and from_line(kept[0]).get("kind") != "header":
        return b"", b"", is_damaged, 0
    return b"".join(kept), b"".join(removed), is_damaged, last_step


def replace_lines(folder: Path, kept: bytes, removed: bytes) -> None:
    """Reduce the journal to `kept`, after `removed` is safe in the file beside it."""
    if removed:
        with open(open_regular(folder / REPLACED, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
            file.write(removed if removed.endswith(b"\n") else removed + b"\n")
            file.flush()
            os.fsync(file.fileno())
    write_atomically(folder / NAME, kept)


def _write_error(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"cannot write {path}: {error.strerror or error}; free some space, then run the same command again"
    )
