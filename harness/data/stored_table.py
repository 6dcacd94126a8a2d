"""Files of rows and columns that name images and their classes: CSV, TSV, JSON lines, Parquet, and Arrow as `datasets` saves it.

Parquet and Arrow are read by pyarrow, an optional extra: values only, never code. Arrow files stay on the disk and are
mapped into memory.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config.names import SPLIT_NAMES, SPLIT_WORDS, TABLE_SUFFIXES, SplitName
from harness.utils.errors import DataError, UsageError, first_line
from harness.utils.files import is_plain_path, read_json, read_regular
from harness.utils.text import escape_unprintable

MAX_TEXT_BYTES = 2**30  # of a CSV file or of JSON lines
MAX_PARQUET_BYTES = 8 * 2**30  # of Parquet files, which are read into memory
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # as Hugging Face's `imagefolder` names it
SAVED_DICT, SAVED_STATE = "dataset_dict.json", "state.json"  # as `save_to_disk` of Hugging Face's `datasets` names them


@dataclass(frozen=True)
class StoredTable:
    """A file of rows and columns.

    Attributes:
        columns: name -> a value of each row; in pyarrow's columns a value is made when it is accessed.
        class_names: name of a column of numbers -> the names that the numbers stand for.
    """

    path: Path
    columns: Mapping[str, Sequence[Any]]
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


def is_table_name(path: str | Path) -> bool:
    """Return whether a file name has the extension of a table."""
    return str(path).lower().endswith(TABLE_SUFFIXES)


def read_table(path: Path) -> StoredTable:
    """Read a table, by the extension of its name.

    Raises:
        DataError: it is missing or damaged, or it is no table.
        UsageError: pyarrow, which reads it, is not installed.
    """
    name = path.name.lower()
    try:
        if name.endswith((".parquet", ".arrow")):
            return _read_arrow(path, is_parquet=name.endswith(".parquet"))
        text = read_regular(path.resolve(), MAX_TEXT_BYTES).decode("utf-8-sig")
        if name.endswith(".jsonl"):
            return StoredTable(path, _json_columns(text, path))
        return StoredTable(path, _csv_columns(text, path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start:,}; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or first_line(error)}") from None


def _csv_columns(text: str, path: Path) -> dict[str, list[str]]:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    columns: dict[str, list[str]] = {}
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(rows, [])]
        if not any(header):
            raise DataError(f"{path} is empty; need a line of column names such as path,label, and a row per image")
        if len(set(header)) < len(header):
            raise DataError(f"{path} has two columns of one name among {_names(header)}; rename one")
        columns = {name: [] for name in header}
        for row in rows:
            if not any(row):  # an empty line
                continue
            if len(row) != len(header):
                raise DataError(f"{path}, line {rows.line_num}: {len(row)} values for {len(header)} columns; mend it")
            for name, value in zip(header, row, strict=True):
                columns[name].append(value)
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}; mend it") from None
    return columns


def _json_columns(text: str, path: Path) -> dict[str, list[Any]]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            raise DataError(f"{path}, line {number}: not a JSON object; mend it") from None
        if row is None:
            continue
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: not a JSON object; mend it")
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


class ArrowColumn(Sequence[Any]):
    """A column of pyarrow, whose values become Python objects when they are accessed."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._column[index].to_pylist()
        return self._column[int(index)].as_py()


def _read_arrow(path: Path, is_parquet: bool) -> StoredTable:
    try:
        import pyarrow
    except ImportError:
        raise UsageError(
            f"{path} is read by pyarrow, which is not installed; pip install 'vision-harness[arrow]'"
        ) from None
    if not path.is_file():
        raise DataError(f"there is no file {path}; set --data-dir to the table")
    try:
        if is_parquet:
            if path.stat().st_size > MAX_PARQUET_BYTES:
                raise DataError(f"{path} has more than {MAX_PARQUET_BYTES / 2**30:g} GiB; write its images to files")
            from pyarrow import parquet

            table = parquet.read_table(path, memory_map=True, use_threads=False)
        else:
            table = _open_stream(pyarrow, path)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read: {escape_unprintable(first_line(error))}") from None
    columns = {name: ArrowColumn(table.column(index)) for index, name in enumerate(table.column_names)}
    if len(columns) < len(table.column_names):
        raise DataError(f"{path} has two columns of one name among {_names(table.column_names)}; rename one")
    return StoredTable(path, columns, _class_names(table.schema.metadata or {}))


def _open_stream(pyarrow: Any, path: Path) -> Any:
    """Return an Arrow file of either format as a table that is mapped into memory."""
    source = pyarrow.memory_map(str(path))
    try:
        return pyarrow.ipc.open_stream(source).read_all()
    except pyarrow.ArrowInvalid:
        source.seek(0)
        return pyarrow.ipc.open_file(source).read_all()


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Return the names of classes that Hugging Face's `datasets` wrote into a file: column -> names."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and isinstance(feature.get("names"), list)
        }
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}


def find_tables(path: Path) -> dict[SplitName | None, list[Path]]:
    """Return split -> the tables that hold its rows; None: tables whose split column or paths tell.

    `path` is a table, a folder that `save_to_disk` of `datasets` wrote, a folder with `metadata.csv`, or one with a
    table for each split (`train.csv`, `test-00000-of-00002.parquet`) or a single table.

    Raises:
        DataError: there is none.
    """
    if not path.is_dir():
        if not path.exists():
            raise DataError(
                f"there is no {path}; set --data-dir to a table ({', '.join(TABLE_SUFFIXES)}) or its folder"
            )
        if not is_table_name(path):
            raise DataError(f"{path} is no table; need a file that ends in {', '.join(TABLE_SUFFIXES)}")
        return {None: [path]}
    if marked := find_marked_tables(path):
        return marked
    tables: dict[SplitName | None, list[Path]] = {}
    for folder in (path, path / "data"):  # the latter as on the Hugging Face Hub
        files = sorted(file for file in folder.iterdir() if is_table_name(file)) if folder.is_dir() else []
        for file in files:
            word = file.stem.split("-")[0].lower()
            if split := SPLIT_WORDS.get(word):
                tables.setdefault(split, []).append(file)
        if not tables and len(files) == 1:
            tables[None] = files
        if tables:
            return _in_order(tables)
    raise DataError(
        f"{path} holds no table ({', '.join(TABLE_SUFFIXES)}) that is named after its split, such as train.csv; set --data-dir to the table"
    )


def find_marked_tables(path: Path) -> dict[SplitName | None, list[Path]]:
    """Return the tables of a folder that `datasets` saved, or of one with `metadata.csv`; empty for any other folder.

    Raises:
        DataError: the folder's description of itself is damaged.
    """
    if (path / SAVED_DICT).is_file():
        names = read_json(path / SAVED_DICT).get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) and is_plain_path(name) for name in names):
            raise DataError(f"{path / SAVED_DICT} is damaged: it names no splits; save the data set again")
        tables: dict[SplitName | None, list[Path]] = {}
        for name in names:
            if split := SPLIT_WORDS.get(name.lower()):
                tables[split] = _saved_files(path / name)
        if not tables:
            raise DataError(f"{path} has the splits {_names(names)}; need train, and val or test")
        return _in_order(tables)
    if (path / SAVED_STATE).is_file() and (path / "dataset_info.json").is_file():
        return {None: _saved_files(path)}
    if root := _metadata(path):
        return {None: [root]}
    found: dict[SplitName | None, list[Path]] = {}
    for folder in sorted(path.iterdir()):
        split = SPLIT_WORDS.get(folder.name.lower())
        if split and (file := _metadata(folder)):
            found[split] = [file]
    return _in_order(found)


def _metadata(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _saved_files(folder: Path) -> list[Path]:
    """Return the Arrow files of a data set that `save_to_disk` wrote."""
    files = read_json(folder / SAVED_STATE).get("_data_files")
    names: list[Any] = (
        [file.get("filename") for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    )
    if not names or not all(isinstance(name, str) and is_plain_path(name) for name in names):
        raise DataError(f"{folder / SAVED_STATE} is damaged: it names no files of data; save the data set again")
    for name in names:
        if not (folder / name).is_file() or (folder / name).is_symlink():
            raise DataError(f"{folder / name} is missing, or no regular file; save the data set again")
    return [folder / name for name in names]


def _in_order(tables: dict[SplitName | None, list[Path]]) -> dict[SplitName | None, list[Path]]:
    return {split: tables[split] for split in (None, *SPLIT_NAMES) if split in tables}


def _names(names: Sequence[str]) -> str:
    return ", ".join(escape_unprintable(name) for name in names[:8]) + (" ..." if len(names) > 8 else "")
