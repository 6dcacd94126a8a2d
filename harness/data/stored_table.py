"""Files of rows and columns that name images and their classes: CSV, TSV, JSON lines, Parquet, and Arrow as `datasets` saves it.

Parquet and Arrow are read by pyarrow, an optional extra: values only, never code, and only the columns that are used. Arrow
files stay on the disk and are mapped into memory.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config.names import SPLIT_NAMES, SPLIT_WORDS, TABLE_SUFFIXES, SplitName
from harness.utils.errors import DataError, UsageError, first_line
from harness.utils.files import is_plain_path, read_json, read_regular
from harness.utils.text import escape_unprintable

MAX_TEXT_BYTES = 2**30  # of a CSV file or of JSON lines
MAX_PARQUET_BYTES = 8 * 2**30  # of Parquet files, which are read into memory
MAX_ROWS = 20_000_000  # of one table
MAX_COLUMNS = 10_000
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # as Hugging Face's `imagefolder` names it
SAVED_DICT, SAVED_STATE = "dataset_dict.json", "state.json"  # as `save_to_disk` of Hugging Face's `datasets` names them


@dataclass(frozen=True)
class StoredTable:
    """A file of rows and columns.

    Attributes:
        columns: name -> a value of each row; pyarrow reads and checks a column when it is accessed first.
        class_names: name of a column of numbers -> the names that the numbers stand for.
    """

    path: Path
    columns: Mapping[str, Sequence[Any]]
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)


def is_table_name(path: str | Path) -> bool:
    """Return whether a file name has the extension of a table."""
    return str(path).lower().endswith(TABLE_SUFFIXES)


def read_table(path: Path) -> StoredTable:
    """Read a table, by the extension of its name.

    Raises:
        DataError: it is missing, damaged or too large, or it is no table. Accessing a column of pyarrow raises it too.
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
        _check_columns(path, len(header))
        columns = {name: [] for name in header}
        for row in rows:
            if not any(row):  # an empty line
                continue
            if len(row) != len(header):
                raise DataError(f"{path}, line {rows.line_num}: {len(row)} values for {len(header)} columns; mend it")
            for name, value in zip(header, row, strict=True):
                columns[name].append(value)
            _check_rows(path, len(columns[header[0]]))
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}; mend it") from None
    return columns


class JsonColumn(Sequence[Any]):
    """The values of one name in rows of JSON, None where a row does not have it: sparse rows cost no more than their text."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        self._rows, self._name = rows, name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [row.get(self._name) for row in self._rows[index]]
        return self._rows[index].get(self._name)


def _json_columns(text: str, path: Path) -> dict[str, JsonColumn]:
    rows: list[dict[str, Any]] = []
    columns: dict[str, JsonColumn] = {}
    for number, line in enumerate(io.StringIO(text, newline="\n"), 1):  # a string of JSON may hold any other line end
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            raise DataError(f"{path}, line {number}: not a JSON object; mend it") from None
        if row is None:
            continue
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: not a JSON object; mend it")
        rows.append(row)
        _check_rows(path, len(rows))
        for name in row:
            if name not in columns:
                columns[name] = JsonColumn(rows, name)
                _check_columns(path, len(columns))
    return columns


def _check_rows(path: Path, count: int) -> None:
    if count > MAX_ROWS:
        raise DataError(f"{path} has more than {MAX_ROWS:,} rows; divide it")


def _check_columns(path: Path, count: int) -> None:
    if count > MAX_COLUMNS:
        raise DataError(
            f"{path} has more than {MAX_COLUMNS:,} columns; keep those of the image, its class and its split"
        )


class ArrowColumn(Sequence[Any]):
    """A checked column of pyarrow, whose values become Python objects when they are accessed."""

    def __init__(self, column: Any, path: Path, name: str) -> None:
        self._column, self._path, self._name = column, path, name

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        scalar = self._column[int(index)]
        try:
            return scalar.as_py()
        except (ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError) as error:
            reason = escape_unprintable(first_line(error))
            raise DataError(
                f"{self._path}, row {int(index) + 1}: {escape_unprintable(self._name)} cannot be read: {reason}"
            ) from None


class ArrowColumns(Mapping[str, ArrowColumn]):
    """The columns of a file that pyarrow reads, each read and checked when it is accessed first.

    Args:
        read: returns a column of pyarrow by its name.
        errors: the exceptions of damaged files.
    """

    def __init__(
        self, path: Path, names: Sequence[str], read: Callable[[str], Any], errors: tuple[type[Exception], ...]
    ) -> None:
        self._path, self._names, self._read, self._errors = path, names, read, errors
        self._columns: dict[str, ArrowColumn] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> ArrowColumn:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._columns:
            try:
                column = self._read(name)
                _check_rows(self._path, len(column))
                # Without this, wrong offsets end the process. The bytes of images are not read for it.
                column.validate(full=True)
            except self._errors as error:
                raise _unreadable(self._path, error) from None
            if any(len(other) != len(column) for other in self._columns.values()):
                raise DataError(f"{self._path} is damaged: its columns have different numbers of rows")
            self._columns[name] = ArrowColumn(column, self._path, name)
        return self._columns[name]


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read: {escape_unprintable(first_line(error))}")


def _read_arrow(path: Path, is_parquet: bool) -> StoredTable:
    try:
        import pyarrow
    except ImportError:
        raise UsageError(
            f"{path} is read by pyarrow, which is not installed; pip install 'vision-harness[arrow]'"
        ) from None
    if not path.is_file():
        raise DataError(f"there is no file {path}; set --data-dir to the table")
    if is_parquet and path.stat().st_size > MAX_PARQUET_BYTES:
        raise DataError(f"{path} has more than {MAX_PARQUET_BYTES / 2**30:g} GiB; write its images to files")
    errors = (pyarrow.ArrowException, ValueError, OSError)
    try:
        if is_parquet:
            from pyarrow import parquet

            file = parquet.ParquetFile(path, memory_map=True)
            schema, rows = file.schema_arrow, file.metadata.num_rows
        else:
            schema, rows = _open_arrow(pyarrow, path).schema, 0  # those of a column are counted when it is read
    except errors as error:
        raise _unreadable(path, error) from None
    names = list(schema.names)
    if len(set(names)) < len(names):
        raise DataError(f"{path} has two columns of one name among {_names(names)}; rename one")
    _check_columns(path, len(names))
    _check_rows(path, rows)

    def read(name: str) -> Any:
        if is_parquet:
            return file.read([name], use_threads=False).column(name)
        return _open_arrow(pyarrow, path, [names.index(name)]).read_all().column(name)

    return StoredTable(path, ArrowColumns(path, names, read, errors), _class_names(schema.metadata or {}))


def _open_arrow(pyarrow: Any, path: Path, fields: Sequence[int] = ()) -> Any:
    """Return a reader of an Arrow file of either format, mapped into memory; of these columns, or of all."""
    source = pyarrow.memory_map(str(path))
    options = pyarrow.ipc.IpcReadOptions(included_fields=list(fields), use_threads=False)
    try:
        return pyarrow.ipc.open_stream(source, options=options)
    except pyarrow.ArrowInvalid:
        source.seek(0)
        return pyarrow.ipc.open_file(source, options=options)


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
