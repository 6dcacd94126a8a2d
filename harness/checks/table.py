"""The rows of `harness verify`: what is specified, what was found, how it was checked, and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

Verdict: TypeAlias = Literal["ok", "deviates", "open"]
MIN_WIDTH = 100  # columns of the table on a narrower terminal
FILE_WIDTH = 160  # columns where the output is no terminal
STYLES = {"ok": "green", "deviates": "bold red", "open": "yellow"}


@dataclass(frozen=True)
class CheckRow:
    """One point of the specification.

    Attributes:
        name: one or two words, the same in every table.
        wanted: what is specified.
        found: what was measured or read.
        how: how it was checked.
        verdict: `open` where only a run, or the rest of a run, can answer.
    """

    name: str
    wanted: str
    found: str
    how: str
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain values."""
        return asdict(self)


def row(name: str, wanted: str, found: str, how: str, agrees: bool | None) -> CheckRow:
    """Return a row whose verdict is `ok` for True, `deviates` for False, `open` for None."""
    verdict: Verdict = "open" if agrees is None else "ok" if agrees else "deviates"
    return CheckRow(name, wanted, found, how, verdict)


def check_table(rows: Sequence[CheckRow], title: str, width: int) -> str:
    """Return the rows as a text table, in colour on a terminal.

    Args:
        width: columns of the terminal; 0 where the output is no terminal.
    """
    drawn = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("check", "specified", "found", "checked by", "result"):
        drawn.add_column(heading, overflow="fold", no_wrap=heading in ("check", "result"))
    for each in rows:
        verdict = Text(each.verdict, STYLES[each.verdict])
        drawn.add_row(Text(each.name), Text(each.wanted), Text(each.found), Text(each.how, "dim"), verdict)
    columns = max(width, MIN_WIDTH) if width else FILE_WIDTH
    console = Console(width=columns, force_terminal=bool(width), highlight=False)
    with console.capture() as captured:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
