"""A sweep as it goes, for a person: a live table on a terminal, a line an event elsewhere. All on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from harness.sweep.distributions import as_text
from harness.sweep.schema import SweepSpec
from harness.sweep.study import TrialRecord

SHOWN = 14  # trials in the live table: the best, and the latest


class SweepLog:
    """A line when a trial begins or ends."""

    def __init__(self, sweep: SweepSpec, stream: TextIO | None = None) -> None:
        self.sweep, self.stream = sweep, stream or sys.stderr

    def say(self, text: str) -> None:
        """A line for the reader."""
        print(_clean(text), file=self.stream, flush=True)

    def began(self, name: str, values: Mapping[str, Any]) -> None:
        """A trial was started."""
        self.say(f"{name}  began      {_told(values)}")

    def ended(self, row: TrialRecord, seconds: float, best: TrialRecord | None, left: str) -> None:
        """A trial has ended."""
        score = f"{self.sweep.metric.name} {_score(self.sweep, row)}"
        so_far = f"  best so far {_score(self.sweep, best)} ({best.name})" if best is not None else ""
        why = f"  {row.reason}" if row.reason else ""
        self.say(
            f"{row.name}  {STATES[row.state]:<9}  {score}  {seconds:.1f} s{so_far}{f'  {left}' if left else ''}{why}"
        )

    def is_due(self) -> bool:
        """Whether `update` would show anything."""
        return False

    def update(self, rows: Sequence[TrialRecord], best: TrialRecord | None, left: str) -> None:
        """What is known now."""

    def close(self) -> None:
        """When nothing more will be shown."""


class SweepTable(SweepLog):
    """A table of the latest trials that is drawn again as they go on."""

    def __init__(self, sweep: SweepSpec, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.live import Live as Screen

        super().__init__(sweep, stream)
        self._console = Console(file=self.stream, highlight=False)
        self._screen = Screen(console=self._console, auto_refresh=False)
        self._screen.start()
        self._drawn = 0.0

    def say(self, text: str) -> None:
        """A line above the table."""
        self._console.print(_clean(text), markup=False)

    def began(self, name: str, values: Mapping[str, Any]) -> None:
        """Nothing: the table shows it."""

    def ended(self, row: TrialRecord, seconds: float, best: TrialRecord | None, left: str) -> None:
        """Only what the table has no room for."""
        if row.state == "failed":
            self.say(f"{row.name} failed: {row.reason}")

    def is_due(self) -> bool:
        """Whether the table is half a second old."""
        return time.monotonic() - self._drawn >= 0.5

    def update(self, rows: Sequence[TrialRecord], best: TrialRecord | None, left: str) -> None:
        """Draw the table again."""
        self._drawn = time.monotonic()
        self._screen.update(self._table(rows, best, left), refresh=True)

    def _table(self, rows: Sequence[TrialRecord], best: TrialRecord | None, left: str) -> Any:
        from rich.table import Table
        from rich.text import Text

        counts = {state: sum(row.state == state for row in rows) for state in STATES}
        told = ", ".join(f"{count} {STATES[state]}" for state, count in counts.items() if count)
        if best is not None:
            told += f"; best so far {_score(self.sweep, best)} ({best.name})"
        table = Table(
            title=Text(f"{_clean(self.sweep.name)}: {told}"),
            caption=Text(left),
            title_justify="left",
            caption_justify="left",
        )
        names = [axis.name for axis in self.sweep.searched]
        for name in ("trial", *names, "state", "values", _clean(self.sweep.metric.name)):
            table.add_column(Text(name), justify="left" if name in ("trial", "state") else "right")
        latest = list(rows)[-SHOWN:]
        if best is not None and best not in latest:
            latest.insert(0, best)
        for row in latest:
            cells = [
                row.name,
                *(_value(row.values.get(name)) for name in names),
                STATES[row.state],
                str(len(row.history)),
                _score(self.sweep, row),
            ]
            is_best = best is not None and row.name == best.name
            table.add_row(
                *(Text(_clean(cell)) for cell in cells),
                style="bold green" if is_best else "red" if row.state == "failed" else "",
            )
        return table

    def close(self) -> None:
        """Leave the last table standing."""
        self._screen.stop()


STATES = {"complete": "complete", "pruned": "stopped", "failed": "failed", "running": "running"}


def sweep_summary(
    sweep: SweepSpec, rows: Sequence[TrialRecord], best: TrialRecord | None, spent: Mapping[str, float]
) -> str:
    """What the sweep came to, for a person."""
    counts = [f"{count} {STATES[state]}" for state in STATES if (count := sum(row.state == state for row in rows))]
    lines = [f"trials      {len(rows)}: {', '.join(counts) or 'none'}"]
    if best is None:
        return "\n".join([*lines, "best        none: no trial logged the metric"])
    lines += [
        f"best        {sweep.metric.name} {_score(sweep, best)} ({best.name})",
        f"            {_told(best.values)}",
    ]
    if spent:
        share = 100 * spent["share not training"]
        lines.append(
            f"time        {spent['seconds']:.0f} s in trials, {share:.0f} % of it not training ({spent['median seconds a trial not training']:.1f} s a trial)"
        )
    return "\n".join(lines)


def _score(sweep: SweepSpec, row: TrialRecord) -> str:
    return f"{sweep.metric.best(row.history):.4f}" if row.history else "-"


def _told(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{_clean(name)}={_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _clean(as_text(value).strip('"'))


def _clean(text: object) -> str:
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in str(text))
