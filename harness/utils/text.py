"""Make text safe for terminals, Markdown and spreadsheets, and write CSV."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.utils.files import write_atomically

# The first characters of a cell that a spreadsheet evaluates as a formula. Source: OWASP, CSV injection.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def printable(text: object, *, keep_newlines: bool = False) -> str:
    """Return `text` with every unprintable character, including the start of escape sequences, replaced by a space."""
    return "".join(
        letter if letter.isprintable() or (keep_newlines and letter == "\n") else " " for letter in str(text)
    )


def escape_unprintable(text: str) -> str:
    """Return `text` with every unprintable character, including surrogates, as a backslash escape."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def counted(count: int, one: str, many: str) -> str:
    """Return a number and what it counts, for example `1 image is` or `2,000 images are`."""
    return f"{count:,} {one if count == 1 else many}"


def dashed(name: str) -> str:
    """Return a name with one dash for each run of characters other than ASCII letters, digits, `_`, `.` and `-`."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)


def safe_file_name(name: str, default: str) -> str:
    """Return a name with letters, digits, `.`, `_` and `-` only, at most 80 of them and not hidden; `default` for nothing."""
    safe = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
    return safe[:80].lstrip(".") or default


def truncate(text: object, width: int) -> str:
    """Return `text` on one line of at most `width` characters, with an ellipsis in place of the middle."""
    return cut_middle(" ".join(str(text).split()), width)


def cut_middle(parts: Sequence[str], width: int) -> str:
    """Return the parts, such as letters, in at most `width` characters, with an ellipsis in place of those in the middle.

    A third of the width is for the end. No part is cut, except that a width below the first one's has only the ellipsis.
    """
    if sum(map(len, parts)) <= width:
        return "".join(parts)
    tail = _fitting(parts[::-1], (width - 1) // 3)[::-1]
    head = _fitting(parts, width - 1 - sum(map(len, tail)))
    return "".join([*head, "…", *tail])


def _fitting(parts: Sequence[str], width: int) -> Sequence[str]:
    """Return as many of the first parts as `width` characters hold."""
    lengths = itertools.accumulate(map(len, parts))
    return parts[: sum(1 for _ in itertools.takewhile(lambda length: length <= width, lengths))]


def percent(fraction: float, digits: int = 1) -> str:
    """Return a fraction 0..1 as a percentage; only exactly 1 is `100 %`, and only exactly 0 is `0 %`."""
    if fraction in (0, 1):
        return f"{fraction:.0%}".replace("%", " %")
    step = 10.0**-digits
    return f"{min(max(100 * fraction, step), 100 - step):.{digits}f} %"


def duration(seconds: float, digits: int = 1) -> str:
    """Return a duration as a person reads it, with so many digits after the point of seconds and minutes."""
    if seconds < 90:
        return f"{seconds:.{digits}f} s"
    return f"{seconds / 60:.{digits}f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def markdown(text: object) -> str:
    """Return `text` on one line, with the special characters of Markdown and HTML as entities."""
    return "".join(
        f"&#{ord(letter)};" if letter in "<>&`*_[]|!\\" or not letter.isprintable() else letter
        for letter in re.sub(r"\s+", " ", str(text))
    )


def csv_cell(value: Any) -> Any:
    """Return `value` as a CSV cell: None becomes empty, and text that would be a formula gets a leading apostrophe."""
    if value is None:
        return ""
    return "'" + value if isinstance(value, str) and value.startswith(FORMULA) else value


def csv_text(header: Sequence[Any], rows: Iterable[Sequence[Any]], *, escape: bool = True) -> str:
    """Return a table as CSV with LF line ends.

    Args:
        escape: pass every cell through `csv_cell`; otherwise the caller did so where it is needed (a formatted
            negative number is text that begins with `-`, and no formula).
    """
    lines: list[str] = []
    # With this line end the writer quotes cells that hold CR as well as those that hold LF.
    writer = csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n")
    writer.writerow([csv_cell(cell) for cell in header])
    writer.writerows([csv_cell(cell) for cell in row] if escape else row for row in rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def write_csv(path: Path, header: Sequence[Any], rows: Iterable[Sequence[Any]], *, escape: bool = True) -> None:
    """Write a table as CSV in UTF-8, atomically; surrogates are written as backslash escapes.

    Raises:
        ResourceError: the disk is full.
    """
    write_atomically(path, csv_text(header, rows, escape=escape).encode("utf-8", "backslashreplace"))
