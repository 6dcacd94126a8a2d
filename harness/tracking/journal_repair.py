"""Mend the journal of a run that is resumed: the records of its epochs must be those that its checkpoint knows."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.tracking.journal import NAME, NO_RECORD, RECORDS, replace_lines
from harness.tracking.journal_lines import are_unchanged, encode_line
from harness.tracking.records import Record, Scalar
from harness.tracking.serialization import decode_record, encode_record, from_line
from harness.utils.errors import CheckpointError


@dataclass(frozen=True)
class JournalRepair:
    """What a journal had lost when its run was resumed.

    Attributes:
        damaged: lines that could not be read, or had another checksum.
        restored: epochs whose metrics were restored from the checkpoint, without their curves per step, tables and images.
        removed: epochs with a record that the checkpoint does not know, or with a second one.
        has_new_header: whether the first line, with the environment of the run's start, was lost.
    """

    damaged: int = 0
    restored: list[int] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    has_new_header: bool = False

    def __bool__(self) -> bool:
        return bool(self.damaged or self.restored or self.removed or self.has_new_header)

    def __str__(self) -> str:
        parts = []
        if self.damaged:
            parts.append(f"{self.damaged} line{'s are' if self.damaged > 1 else ' is'} damaged")
        if self.has_new_header:
            parts.append("its first line, with the environment at the start, is written anew")
        if self.restored:
            parts.append(
                f"the metrics of {_epochs(self.restored)} are restored from the checkpoint, without their curves per step and images"
            )
        if self.removed:
            parts.append(f"records of {_epochs(self.removed)} that do not agree with the checkpoint are removed")
        return f"{NAME} did not agree with the checkpoint: {'; '.join(parts)}"


def _epochs(epochs: Sequence[int]) -> str:
    distinct = sorted(set(epochs))
    return f"epoch{'s' if len(distinct) > 1 else ''} {', '.join(map(str, distinct))}"


@dataclass(frozen=True)
class _Line:
    raw: bytes
    kind: str
    step: int
    record: Record | None


def repair_journal(
    folder: Path, step: int, header: Mapping[str, Any], history: Sequence[Mapping[str, float]], epochs_step: int
) -> JournalRepair:
    """Make the journal hold one record for each epoch that the checkpoint knows, in order; return what it had lost.

    What is taken out of the journal is added to `journal.replaced.jsonl`. Lines after `step` and an incomplete last line
    are left to `Journal.resume`.

    Args:
        step: updates done at the checkpoint.
        header: written where the journal has lost its first line.
        history: the scalars of each epoch's record, from the checkpoint.
        epochs_step: updates done at the end of the last of these epochs.

    Raises:
        CheckpointError: the journal cannot be read.
    """
    try:
        content = (folder / NAME).read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise CheckpointError(
            f"cannot read {folder / NAME}: {error.strerror}; start again with --resume never"
        ) from None
    lines, damaged = _parse(content, folder)
    head = lines[0] if lines and lines[0].kind == "header" else None
    body = lines if head is None else lines[1:]
    first_later = next((number for number, line in enumerate(body) if _is_later(line, step, len(history))), len(body))
    others = [line for line in body[:first_later] if line.kind != "epoch"]
    others += [
        line
        for line in body[first_later:]
        if line.kind == "find" or (line.kind == "steps" and not _is_later(line, step, len(history)))
    ]
    epochs = [line for line in body if line.kind == "epoch" and not _is_later(line, step, len(history))]

    chosen: dict[int, _Line] = {}
    for epoch, row in enumerate(history, 1):
        if (match := next((line for line in epochs if _agrees(line, epoch, row)), None)) is not None:
            chosen[epoch] = match
    restored = [epoch for epoch in range(1, len(history) + 1) if epoch not in chosen]
    surplus = [line for line in epochs if not any(line is one for one in chosen.values())]
    removed = [line.record.epoch for line in surplus if line.record is not None]
    others = [line for line in others if not _is_of_epoch(line, set(removed) - set(chosen))]
    repair = JournalRepair(len(damaged), restored, removed, head is None)
    is_in_order = [id(line) for line in body[:first_later] if line.kind == "epoch"] == list(map(id, chosen.values()))
    is_stale = any(line.step <= step and line.kind in ("find", "steps", "epoch") for line in body[first_later:])
    if not repair and is_in_order and not is_stale:
        return repair
    for epoch in restored:
        chosen[epoch] = _restored(epoch, history[epoch - 1], round(epochs_step * epoch / len(history)), folder)
    kept = sorted([*others, *(chosen[epoch] for epoch in sorted(chosen))], key=lambda line: line.step)
    kept_lines = {id(line) for line in kept}
    first = encode_line({"kind": "header", **header}) if head is None else head.raw + b"\n"
    replaced = [*damaged, *(line.raw for line in body if id(line) not in kept_lines)]
    replace_lines(
        folder, first + b"".join(line.raw + b"\n" for line in kept), b"".join(raw + b"\n" for raw in replaced)
    )
    return repair


def _parse(content: bytes, folder: Path) -> tuple[list[_Line], list[bytes]]:
    """Return the lines that can be read, wherever they stand, and the others; not an incomplete last line."""
    *raws, _ = content.split(b"\n")
    lines: list[_Line] = []
    damaged: list[bytes] = []
    last_step = 0
    for raw, is_unchanged in zip(raws, are_unchanged(raws), strict=True):
        try:
            if not is_unchanged:
                raise ValueError("it has another checksum")
            line = from_line(raw)
            kind = str(line["kind"])
            if kind == "header" and lines:
                raise ValueError("it is not the first line")
            record = decode_record(line, folder) if kind in RECORDS else None
            last_step = last_step if record is None else record.step
            lines.append(_Line(raw, kind, last_step, record))
        except NO_RECORD:
            damaged.append(raw)
    return lines, damaged


def _is_later(line: _Line, step: int, epochs: int) -> bool:
    """Return whether a line belongs to what the resumed run will write again."""
    if line.record is None:
        return line.kind == "summary"
    return line.kind == "final" or line.step > step or (line.kind == "epoch" and line.record.epoch > epochs)


def _is_of_epoch(line: _Line, epochs: Collection[int]) -> bool:
    """Return whether a line has steps of one of these epochs."""
    return line.kind == "steps" and line.record is not None and line.record.epoch + 1 in epochs


def _agrees(line: _Line, epoch: int, row: Mapping[str, float]) -> bool:
    """Return whether a line is the record of an epoch, with the metrics that the checkpoint has."""
    if line.record is None or line.record.epoch != epoch:
        return False
    values = line.record.values
    return all(_equal(values.get(name), value) for name, value in row.items())


def _equal(value: object, other: float) -> bool:
    if not isinstance(value, int | float):
        return False
    return value == other or (math.isnan(value) and math.isnan(other))


def _restored(epoch: int, row: Mapping[str, float], step: int, folder: Path) -> _Line:
    values: dict[str, Scalar] = dict(row)
    record = Record(step, epoch, values)
    return _Line(encode_line(encode_record(record, folder))[:-1], "epoch", step, record)
