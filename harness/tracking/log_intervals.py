"""How many steps of a run its trackers got: each part of a resumed run has a `log_every` of its own.

An interval is (first step, `log_every`), and counts from that step on; of several the latest counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from harness.utils.plain import sub_mapping

Interval: TypeAlias = tuple[int, int]


def interval_at(step: int, log_every: int, intervals: Sequence[Interval]) -> int:
    """Return the `log_every` that counts at a step; the given one is that of the first part."""
    return next((every for first, every in reversed(intervals) if step >= first), log_every)


def has_changed(first_step: int, log_every: int, header: Mapping[str, Any], intervals: Sequence[Interval]) -> bool:
    """Return whether a resumed run sends its steps from `first_step` on at another interval than its journal says.

    Args:
        header: of the journal, with the settings of the first part.
    """
    before = sub_mapping(header, "config").get("log_every", log_every)
    is_repeated = any(first > first_step for first, _ in intervals)  # steps of an interval that did not reach W&B
    return is_repeated or interval_at(first_step, before, intervals) != log_every
