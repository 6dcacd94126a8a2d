"""The steps of an epoch that a journal has in several lines, as one curve again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.tracking.records import Curve, Record


def add_record(records: list[Record], record: Record) -> None:
    """Add the next record of a journal; that of an epoch gets the steps that were written before the epoch had ended.

    Raises:
        ValueError: a record of steps has none.
    """
    if record.kind == "steps" and record.steps is None:
        raise ValueError("a record of steps has a curve")
    parts: list[Record] = []
    while record.kind == "epoch" and records and records[-1].kind == "steps":
        parts.append(records.pop())
    records.append(_joined([*reversed(parts), record]) if parts else record)


def _joined(records: Sequence[Record]) -> Record:
    """Return the last record with the steps of all of them, each step once and in order."""
    curves = [(record.steps, record.step_times) for record in records if record.steps is not None]
    names = [name for name in curves[0][0].lines if all(name in curve.lines for curve, _ in curves if curve.x)]
    x: list[float] = []
    times: list[float] = []
    lines: dict[str, list[float]] = {name: [] for name in names}
    for curve, step_times in curves:
        for index, step in enumerate(curve.x):
            if x and step <= x[-1]:
                continue
            x.append(step)
            times += step_times[index : index + 1]
            for name in names:
                lines[name].append(curve.lines[name][index])
    complete = times if len(times) == len(x) else []
    return replace(records[-1], steps=Curve(curves[0][0].x_name, x, lines), step_times=complete)
