"""Records as one history row a step, and curves as tables: plain data, without W&B."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from harness.tracking.log_intervals import interval_at
from harness.tracking.records import Curve, Record, Scores, Value
from harness.utils.curves import RECALLS, precision_at_recalls

# Beyond these, W&B cuts or resamples its charts; tables hold everything.
MAX_CHART_POINTS = 10_000
MAX_CHART_CLASSES = 100
TIMESTAMP = "_timestamp"  # W&B's own name: seconds since 1970


def last_row_step(record: Record) -> int:
    """Return the step of the last row of a record.

    The final record has a row of its own, one step after the last update: that of the update need not wait for it.
    """
    return record.step + (record.kind == "final")


def rows(
    record: Record, log_every: int = 1, intervals: Sequence[tuple[int, int]] = ()
) -> Iterator[tuple[int, dict[str, Value]]]:
    """Yield (step, values) for every step of a record, in increasing order; `_timestamp` is when it was measured.

    The last row holds the record's values, its epoch and what was measured at its step.

    Args:
        log_every: of the steps within an epoch, take every this many; 0: all.
        intervals: as in `JournalContents`: other values from a step on.
    """
    by_step: dict[int, dict[str, Value]] = {}
    own_step = last_row_step(record)
    if record.steps is not None:
        for index, x in enumerate(record.steps.x):
            step = min(round(x), record.step)
            if step % max(interval_at(step, log_every, intervals), 1) and (step != own_step or record.kind == "steps"):
                continue
            row = by_step.setdefault(step, {})
            row.update({name: float(line[index]) for name, line in record.steps.lines.items()})
            row.update({TIMESTAMP: record.step_times[index]} if record.step_times else {})
    if record.kind != "steps":
        by_step.setdefault(own_step, {}).update({"epoch": record.epoch, **record.values})
        by_step[own_step].update({TIMESTAMP: record.time} if record.time else {})
    yield from sorted(by_step.items())


def curve_rows(curve: Curve) -> tuple[list[str], list[list[float | str | None]]]:
    """Return columns and rows of a curve: its axis, its lines, and the name of each mark in the row nearest to it."""
    marked: dict[int, str] = {}
    for name, position in curve.marks.items():
        if len(curve.x) and math.isfinite(position):
            index = min(range(len(curve.x)), key=lambda i: abs(curve.x[i] - position))
            marked[index] = f"{marked[index]}, {name}" if index in marked else name
    columns = [curve.x_name, *curve.lines, *(["mark"] if curve.marks else [])]
    cells: list[list[float | str | None]] = []
    for index, x in enumerate(curve.x):
        mark = [marked.get(index)] if curve.marks else []
        cells.append([float(x), *(float(line[index]) for line in curve.lines.values()), *mark])
    return columns, cells


def curve_title(curve: Curve, stride: int = 1) -> str:
    """Return the curve's title with its marks, and the stride of the chart where it leaves points out."""
    marks = ", ".join(f"{name} {position:.3g}" for name, position in curve.marks.items())
    title = f"{curve.title or ', '.join(curve.lines)}{f' ({marks})' if marks else ''}"
    return title if stride == 1 else f"{title}, every {stride}th point"


def chart_stride(curve: Curve) -> int:
    """Return the stride with which a curve stays under the limit of a chart's points."""
    return max(1, math.ceil(len(curve.x) * len(curve.lines) / MAX_CHART_POINTS))


def precision_recall(scores: Scores) -> list[list[float | str]]:
    """Return rows [class, recall, precision] at `RECALLS`, for each class that has images."""
    rows: list[list[float | str]] = []
    for number, name in enumerate(scores.classes):
        is_class = scores.labels == number  # [N]
        if is_class.any():
            precisions = precision_at_recalls(is_class, scores.probabilities[:, number])
            rows += [[name, r, p] for r, p in zip(RECALLS.tolist(), precisions.tolist(), strict=True)]
    return rows
