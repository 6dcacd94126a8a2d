"""Several labels per image in the cells of a table: columns of 0 and 1, or names with a separator between them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from harness.data.listing import short_list
from harness.data.stored_table import StoredTable
from harness.utils.errors import DataError, UsageError, did_you_mean
from harness.utils.text import escape_unprintable

UNKNOWN = ("nan", "<na>", "n/a", "-1")  # what other tools write for a value that is not known, in lower case
# How a cell of a column of 0 and 1 may be written, in lower case.
CELLS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def class_columns(table: StoredTable, patterns: Sequence[str], others: Collection[str]) -> list[str]:
    """Return the columns of a table that `label_columns` names, each of them a class, in its order.

    Args:
        patterns: names of columns, with * and ? for any letters.
        others: columns that are no classes; a pattern does not stand for them.

    Raises:
        DataError: one of the columns has no name.
        UsageError: there is no such column.
    """
    chosen: list[str] = []
    for pattern in patterns:
        if pattern in table.columns:
            columns = [pattern]
        else:
            columns = [name for name in table.columns if name not in others and fnmatchcase(name, pattern)]
        if not columns:
            names = [escape_unprintable(name) for name in table.columns]
            raise UsageError(
                f"label_columns={pattern!r}: {table.path} has the columns {short_list(names)}{did_you_mean(pattern, names)}"
            )
        if not all(map(str.strip, columns)):
            raise DataError(
                f"{table.path}, line 1: a column that label_columns={pattern!r} stands for has no name; name it, or name the columns of the classes with --label-columns"
            )
        chosen += [name for name in columns if name not in chosen]
    return chosen


def check_columns(columns: Sequence[str], known_classes: Collection[str], path: Path) -> None:
    """Refuse columns of 0 and 1 that lack a class of the model that is evaluated: what its images have is not known.

    Raises:
        DataError: a class has no column.
    """
    names = {unicodedata.normalize("NFC", name) for name in columns}
    if missing := [name for name in known_classes if unicodedata.normalize("NFC", name) not in names]:
        raise DataError(
            f"{path}: --label-columns names no column for the class {short_list(missing)} of the model; add a column of 0 and 1 for it"
        )


def marked_classes(table: StoredTable, columns: Sequence[str], index: int) -> frozenset[str]:
    """Return the classes whose columns have a 1 in a row.

    Raises:
        DataError: a cell is neither 0 nor 1.
    """
    return frozenset(name for name in columns if _is_marked(table.columns[name][index], table, name, index))


def _is_marked(value: Any, table: StoredTable, column: str, index: int) -> bool:
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    marked = CELLS.get(value.strip().lower()) if isinstance(value, str) else None
    if marked is None:
        raise DataError(
            f"{table.path}, row {index + 1}: column {escape_unprintable(column)} has {_shown(value)}, and a column of --label-columns needs 0 or 1; mend it, or leave the column or the row out"
        )
    return marked


def separated_labels(value: Any, separator: str, table: StoredTable, column: str, index: int) -> frozenset[str]:
    """Return the labels in a cell: text with a separator between them, or a list; an empty one has none.

    Raises:
        DataError: the cell is missing, or no such text or list, or it says that its labels are not known.
    """
    names = table.class_names.get(column)
    if isinstance(value, str):
        parts: Sequence[Any] = value.split(separator) if value.strip() else []
    elif isinstance(value, list):
        parts = value
    elif isinstance(value, int) and not isinstance(value, bool):
        parts = [value]
    else:
        raise DataError(
            f"{table.path}, row {index + 1}: column {escape_unprintable(column)} has {_shown(value)}, which is no list of labels; write names with {separator!r} between them, and nothing for an image without any"
        )
    labels = [_label(part, names) for part in parts]
    if not all(labels):
        raise DataError(
            f"{table.path}, row {index + 1}: column {escape_unprintable(column)} has {_shown(value)}, and one of its labels is empty or no name; write names with one {separator!r} between two of them"
        )
    if names is None and (unknown := next((label for label in labels if label.lower() in UNKNOWN), "")):
        raise DataError(
            f"{table.path}, row {index + 1}: column {escape_unprintable(column)} has {_shown(value)}, and {unknown!r} stands for a label that is not known; leave the row out, or the cell empty if the image has no label; if it is a class, give it another name"
        )
    return frozenset(labels)


def _label(part: Any, names: Sequence[str] | None) -> str:
    """Return a label of a list; empty where it is none."""
    if names is not None and isinstance(part, int) and not isinstance(part, bool):
        return names[part] if 0 <= part < len(names) else ""
    return str(part).strip() if isinstance(part, str) or (isinstance(part, int) and not isinstance(part, bool)) else ""


def _shown(value: Any) -> str:
    if value is None:
        return "no value"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return f"the value {escape_unprintable(str(value))[:60]!r}" if str(value).strip() else "an empty cell"
