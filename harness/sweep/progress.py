"""The progress of a sweep on standard error: a live table on a terminal, one line an event elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from harness.config.names import TrialStatus
from harness.sweep.distributions import as_text
from harness.sweep.selection import TrialRecord, pareto_front, seed_groups
from harness.sweep.spec import SweepSpec
from harness.utils.text import counted, percent, printable

MAX_ROWS = 14  # of the live table: the latest trials, and the best one
REDRAW_INTERVAL = 0.5  # seconds


class SweepLog:
    """One line when a trial starts or ends."""

    def __init__(self, sweep: SweepSpec, stream: TextIO | None = None) -> None:
        self.sweep, self.stream = sweep, stream or sys.stderr

    def message(self, text: str) -> None:
        """Print a message."""
        print(printable(text, keep_newlines=True), file=self.stream, flush=True)

    def trial_started(self, name: str, values: Mapping[str, Any]) -> None:
        """Print that a trial has started."""
        self.message(f"{name}  started        {_settings(values)}")

    def trial_ended(self, record: TrialRecord, seconds: float, best: TrialRecord | None, time_left: str) -> None:
        """Print how a trial has ended."""
        parts = [record.name, f"{_label(record.state):<13}"]
        parts += [f"{metric_names(self.sweep)} {_score(self.sweep, record)}", f"{seconds:.1f} s"]
        if best is not None:
            parts.append(f"best so far {_score(self.sweep, best)} ({best.name})")
        self.message("  ".join([*parts, *(text for text in (time_left, record.reason) if text)]))

    def is_due(self) -> bool:
        """Return whether `update` would print anything."""
        return False

    def update(self, records: Sequence[TrialRecord], best: TrialRecord | None, time_left: str) -> None:
        """Show the state of the search."""

    def close(self) -> None:
        """Stop showing."""


class SweepTable(SweepLog):
    """A table of the latest trials that is redrawn as they proceed."""

    def __init__(self, sweep: SweepSpec, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(sweep, stream)
        self._console = Console(file=self.stream, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.start()
        self._drawn = 0.0

    def message(self, text: str) -> None:
        """Print a message above the table."""
        self._console.print(printable(text, keep_newlines=True), markup=False)

    def trial_started(self, name: str, values: Mapping[str, Any]) -> None:
        """Print nothing: the table shows it."""

    def trial_ended(self, record: TrialRecord, seconds: float, best: TrialRecord | None, time_left: str) -> None:
        """Print the reason of a failure, for which the table has no column."""
        if record.state == TrialStatus.FAILED:
            self.message(f"{record.name} failed: {record.reason}")

    def is_due(self) -> bool:
        """Return whether the table is to be redrawn."""
        return time.monotonic() - self._drawn >= REDRAW_INTERVAL

    def update(self, records: Sequence[TrialRecord], best: TrialRecord | None, time_left: str) -> None:
        """Redraw the table."""
        self._drawn = time.monotonic()
        self._live.update(self._table(records, best, time_left), refresh=True)

    def _table(self, records: Sequence[TrialRecord], best: TrialRecord | None, time_left: str) -> Any:
        from rich.table import Table
        from rich.text import Text

        title = f"{printable(self.sweep.name)}: {_counts(records)}"
        if best is not None:
            title += f"; best so far {_score(self.sweep, best)} ({best.name})"
        table = Table(title=Text(title), caption=Text(time_left), title_justify="left", caption_justify="left")
        names = self.sweep.searched_names([record.values for record in records])
        for name in ("trial", *names, "state", "epochs", printable(metric_names(self.sweep))):
            table.add_column(Text(name), justify="left" if name in ("trial", "state") else "right")
        latest = list(records)[-MAX_ROWS:]
        if best is not None and best not in latest:
            latest.insert(0, best)
        for record in latest:
            cells = [record.name, *(_value(record.values.get(name)) for name in names)]
            cells += [_label(record.state), str(len(record.history)), _score(self.sweep, record)]
            is_best = best is not None and record.name == best.name
            table.add_row(
                *(Text(printable(cell)) for cell in cells),
                style="bold green" if is_best else "red" if record.state == TrialStatus.FAILED else "",
            )
        return table

    def close(self) -> None:
        """Stop redrawing; the last table stays on the terminal."""
        self._live.stop()


def sweep_summary(
    sweep: SweepSpec, records: Sequence[TrialRecord], best: TrialRecord | None, times: Mapping[str, float]
) -> str:
    """Return the result of a sweep as a few lines of text.

    Args:
        times: see `results.time_summary`.
    """
    lines = [f"trials      {len(records)}: {_counts(records) or 'none'}"]
    if best is None:
        return "\n".join([*lines, "best        none: no trial logged the metric"])
    lines += [
        f"best        {metric_names(sweep)} {_score(sweep, best)} ({best.name})",
        f"            {_settings(best.values)}",
    ]
    if len(sweep.metrics) > 1:
        front = pareto_front(records, sweep.metrics)
        lines.append(
            f"Pareto      {counted(len(front), 'trial', 'trials')}: {', '.join(record.name for record in front)}"
        )
    if sweep.seed_parameter:
        groups = seed_groups(records, sweep.metric, sweep.seed_parameter)
        group = next((group for group in groups if best in group.records), None)
        if group is not None:
            lines.append(
                f"seeds       {len(group.scores)}: mean {group.mean:.4f}, standard deviation {group.deviation:.4f}"
            )
    if times:
        lines.append(
            f"time        {times['seconds']:.0f} s in trials, {percent(times['fraction_not_training'], 0)} of it not training ({times['median_overhead_s']:.1f} s per trial)"
        )
    return "\n".join(lines)


def metric_names(sweep: SweepSpec) -> str:
    """Return the names of a sweep's metrics."""
    return " ".join(metric.name for metric in sweep.metrics)


def _label(state: str) -> str:
    return "stopped early" if state == TrialStatus.PRUNED else state


def _counts(records: Sequence[TrialRecord]) -> str:
    counts = {state: sum(record.state == state for record in records) for state in TrialStatus}
    return ", ".join(f"{count} {_label(state)}" for state, count in counts.items() if count)


def _score(sweep: SweepSpec, record: TrialRecord) -> str:
    if record.objectives:
        return " ".join(f"{value:.4g}" for value in record.objectives)
    return f"{sweep.metric.best(record.history):.4f}" if record.history else "-"


def _settings(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{printable(name)}={_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(as_text(value).strip('"'))
