"""One row of the table: what the assignment says, what is here, how that was found out, and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

Verdict: TypeAlias = Literal["ok", "deviates", "open"]
NARROWEST = 100  # columns of the table where the output is no terminal, or a very narrow one
STYLES = {"ok": "green", "deviates": "bold red", "open": "yellow"}


@dataclass(frozen=True)
class CheckRow:
    """One point of the assignment.

    Attributes:
        name: one word or two, the same in every table, for people and programs.
        wanted: what the assignment says. found: what is here. how: how it was checked.
        verdict: `open` where only a run, or the rest of one, can say.
    """

    name: str
    wanted: str
    found: str
    how: str
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def row(name: str, wanted: str, found: str, how: str, agrees: bool | None) -> CheckRow:
    """A row whose verdict is `ok` for True, `deviates` for False, `open` for None."""
    verdict: Verdict = "open" if agrees is None else "ok" if agrees else "deviates"
    return CheckRow(name, wanted, found, how, verdict)


def table(rows: Sequence[CheckRow], title: str, width: int) -> str:
    """The rows as a table for a person, with colours where it goes to a terminal (`width` > 0).

    Args:
        width: columns of the terminal; 0: there is none.
    """
    drawn = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", "the assignment", "here", "checked by", ""):
        drawn.add_column(name, overflow="fold", no_wrap=name == "")
    for each in rows:
        verdict = Text(each.verdict, STYLES[each.verdict])
        drawn.add_row(Text(each.name), Text(each.wanted), Text(each.found), Text(each.how, "dim"), verdict)
    console = Console(width=max(width, NARROWEST) if width else 160, force_terminal=bool(width), highlight=False)
    with console.capture() as captured:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
