"""List the labelled images that tables name: by their paths below one folder, or in the tables themselves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.names import SPLIT_NAMES, SPLIT_WORDS, SplitName
from harness.config.settings import Config, normalize_name
from harness.data.image_folder import check_case
from harness.data.label_cells import check_columns, class_columns, marked_classes, separated_labels
from harness.data.listing import ListedSplit, Listing, PickedItems, class_order, short_list
from harness.data.multilabel import multi_hot
from harness.data.stored_table import ArrowColumn, StoredTable, find_marked_tables, find_tables, read_table
from harness.data.table_paths import PathFinder
from harness.utils.errors import DataError, UsageError, did_you_mean
from harness.utils.text import counted, escape_unprintable

# Names of columns without case, dashes and underscores, the likeliest first.
IMAGE_COLUMNS = (
    "filename", "imagepath", "filepath", "path", "file", "imagefile", "imagefilename", "imgpath", "image", "img", "imagename",
    "imageid",
)  # fmt: skip
LABEL_COLUMNS = ("label", "class", "target", "category", "classname", "labelname", "labels", "y")
SEVERAL_LABELS_COLUMNS = (*LABEL_COLUMNS, "tags")  # with label_separator
SPLIT_COLUMNS = ("split", "subset", "partition", "dataset", "set")


def list_tables(config: Config, known_classes: Collection[str] | None = None) -> Listing:
    """Return the labelled images of `data=table`.

    Args:
        known_classes: those of a trained model that is evaluated; None: the data is to be trained on.

    Raises:
        DataError: there is no table, or its rows make no sense.
        UsageError: a column that is named or needed is not there, or a path leads out of the folder.
    """
    path = Path(config.data_dir).expanduser()
    return _list(config, path, find_tables(path), known_classes)


def list_marked_folder(config: Config, known_classes: Collection[str] | None = None) -> tuple[Listing | None, str]:
    """Return the labelled images of a folder that holds `metadata.csv`, or that `datasets` saved; None for another one.

    A `metadata.csv` may as well describe the images of class folders: one without paths or labels is not used, and the text
    says why, unless a setting names its columns.

    Raises:
        DataError: the rows of the table make no sense, or what `datasets` saved is damaged.
        UsageError: the table has no column that a setting names.
    """
    path = Path(config.data_dir).expanduser()
    tables = find_marked_tables(path) if path.is_dir() else {}
    if not tables:
        return None, ""
    if not (config.image_column or config.label_column or config.is_multilabel):
        for file in (files[0] for files in tables.values()):
            if _is_metadata(file) and (reason := _why_unused(file)):
                return None, reason
    return _list(config, path, tables, known_classes), ""


def _why_unused(file: Path) -> str:
    """Return why a `metadata.csv` does not list labelled images; empty where it does."""
    name = "/".join(file.parts[-2:]) if file.parent.name.lower() in SPLIT_WORDS else file.name
    try:
        columns = read_table(file).columns
    except (DataError, UsageError) as error:
        return f"{name} is not used: {error}"
    for names, content in ((IMAGE_COLUMNS, "the path of each image"), (LABEL_COLUMNS, "the class of each image")):
        if _likeliest(columns, names) is None:
            return (
                f"{name} is not used, since none of its columns is named after {content}: {short_list(list(columns))}"
            )
    return ""


@dataclass
class _Row:
    """A row of a table.

    Attributes:
        id: the image's path below the folder, or its place in the table.
        file: its path on the disk; None where the image is in the table.
        index: of its image in the table.
        label: as it is stored, of images with several labels all of them; None where it is missing.
        problem: why it cannot be used.
    """

    id: str
    file: str | None
    index: int
    label: str | frozenset[str] | None
    problem: str = ""


class ArrowImages(Sequence[Any]):
    """Encoded images in columns of pyarrow, each read when it is accessed."""

    def __init__(self, columns: Sequence[ArrowColumn]) -> None:
        self._columns = list(columns)
        self._starts = np.cumsum([0, *map(len, columns)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        value = self._columns[number][int(index) - int(self._starts[number])]
        content = value.get("bytes") if isinstance(value, dict) else value
        # Text and numbers would be read as paths and descriptors of files anywhere on this machine.
        return content if isinstance(content, bytes) else b""


def _list(
    config: Config, path: Path, tables: Mapping[SplitName | None, Sequence[Path]], known_classes: Collection[str] | None
) -> Listing:
    reader = _Reader(config, path)
    for split, files in tables.items():
        for file in files:
            reader.read(split, file)
    splits = {name: reader.rows[name] for name in SPLIT_NAMES if reader.rows.get(name)}
    listing = Listing(path, (), {}, reader.origin())
    _drop_unlabelled(splits, listing)
    if known_classes is None and not splits and listing.notes:
        raise DataError(f"{path}: {'; '.join(listing.notes)}; nothing is left to train on")
    if known_classes is None and "train" not in splits:
        raise DataError(
            f"{path} has {' and '.join(splits) or 'no'} rows but none to train on; name their split train (column or file)"
        )
    for name, rows in splits.items():
        splits[name] = _usable(rows, name, listing)
    if config.label_columns:
        check_columns(reader.class_names, known_classes or (), path)
    listing.classes = _classes(splits, reader.class_names, known_classes is None, path, config)
    class_index = {name: index for index, name in enumerate(listing.classes)}
    embedded = ArrowImages(reader.embedded)
    for name, rows in splits.items():
        paths = [row.file for row in rows if row.file is not None]
        images: Sequence[str | bytes] = list[str | bytes](paths)
        if len(paths) < len(rows):
            if paths:
                raise DataError(f"{path}: some rows have an image and others the path of one; keep one kind")
            images = PickedItems(embedded, [row.index for row in rows])
        if config.is_multilabel:
            labels = multi_hot([_names_of(row) for row in rows], class_index)
        else:
            labels = np.array([class_index[str(row.label)] for row in rows], dtype=np.int64)
        listing.splits[name] = ListedSplit(name, images, [row.id for row in rows], labels)
    listing.classes = tuple(escape_unprintable(name) for name in listing.classes)
    return listing


class _Reader:
    """Reads the rows of tables.

    Attributes:
        rows: split -> its rows.
        embedded: the columns of images that are in tables.
        class_names: the names of classes that the tables declare, in their order.
    """

    def __init__(self, config: Config, path: Path) -> None:
        self.rows: dict[SplitName, list[_Row]] = {}
        self.embedded: list[ArrowColumn] = []
        self.class_names: list[str] = []
        self._config, self._path, self._used = config, path, Counter[str]()

    def read(self, split: SplitName | None, file: Path) -> None:
        """Add the rows of a table, all of one split, or each of that in its split column."""
        config, table = self._config, read_table(file)
        image = _column(table, config.image_column, "image_column", IMAGE_COLUMNS, "the path of each image")
        label, labels_of = self._labels(table, image)
        words: Sequence[Any] | None = None
        if split is None:
            column = config.split_column or _likeliest(table.columns, SPLIT_COLUMNS)
            if column:
                column = _column(table, column, "split_column", (), "the split of each image")
                words = table.columns[column]
            self._used[f"image={image}, label={label}" + (f", split={column}" if column else "")] += 1
        else:
            self._used[f"image={image}, label={label}"] += 1
        images, start = table.columns[image], sum(map(len, self.embedded))
        is_embedded = isinstance(images, ArrowColumn) and isinstance(
            next((value for value in images if value is not None), None), bytes | dict
        )
        if is_embedded:
            assert isinstance(images, ArrowColumn)
            self.embedded.append(images)
            values: Iterator[Any] = iter([None] * len(images))
        else:
            values = iter(images)
        root = Path(config.image_root).expanduser() if config.image_root else file.parent
        finder, is_divided = PathFinder(root), split is None and words is None
        splits = iter(words) if words is not None else iter([split or "train"] * len(images))
        for index, (value, word) in enumerate(zip(values, splits, strict=True)):
            place = _split_of(word, file, index)
            if place is None:
                continue
            row = _Row(f"{place}/{start + index}", None, start + index, labels_of(index))
            if not is_embedded:
                row.id, row.file, row.problem = finder.find(value, file, index)
                if is_divided and (first := SPLIT_WORDS.get(row.id.partition("/")[0].lower())) and _is_metadata(file):
                    place = first
            self.rows.setdefault(place, []).append(row)

    def _labels(self, table: StoredTable, image: str) -> tuple[str, Callable[[int], str | frozenset[str] | None]]:
        """Return the name of the column of the labels, and the function that reads those of a row.

        Args:
            image: the column of the images.
        """
        config = self._config
        if config.label_columns:
            split = config.split_column or _likeliest(table.columns, SPLIT_COLUMNS)
            columns = class_columns(table, config.label_columns, (image, *([split] if split else [])))
            if self.class_names and self.class_names != columns:
                raise DataError(
                    f"{table.path} has the class columns {short_list(columns)}, and another table {short_list(self.class_names)}; give all tables the same"
                )
            self.class_names = columns
            return f"{short_list(columns)} (0 or 1)", lambda index: marked_classes(table, columns, index)
        usual = SEVERAL_LABELS_COLUMNS if config.label_separator else LABEL_COLUMNS
        column = _column(table, config.label_column, "label_column", usual, "the class of each image")
        names = table.class_names.get(column)
        self.class_names += [name for name in names or () if name not in self.class_names]
        stored, separator = table.columns[column], config.label_separator
        if separator:
            about = f"{column} (separated by {separator!r})"
            return about, lambda index: separated_labels(stored[index], separator, table, column, index)
        return column, lambda index: _label(stored[index], names, table.path, index)

    def origin(self) -> str:
        """Return where splits and classes come from, for a reader."""
        return f"table {self._path.name}: {'; '.join(self._used)}"


def _is_metadata(file: Path) -> bool:
    """Return whether a table is one of Hugging Face's `imagefolder`, where folders of images are splits."""
    return file.stem == "metadata"


def _likeliest(columns: Collection[str], names: Sequence[str]) -> str | None:
    """Return the column that has the first of the names; None where there is none."""
    by_name = {normalize_name(column).replace(" ", ""): column for column in columns}
    return next((by_name[name] for name in names if name in by_name), None)


def _column(table: StoredTable, given: str, setting: str, names: Sequence[str], content: str) -> str:
    """Return the column that a setting names, or the likeliest one.

    Raises:
        UsageError: there is none.
    """
    option = f"--{setting.replace('_', '-')}"
    columns = [escape_unprintable(name) for name in table.columns]
    if given:
        if given not in table.columns:
            hint = did_you_mean(given, columns)
            raise UsageError(f"{setting}={given!r}: {table.path} has the columns {', '.join(columns)}{hint}")
        return given
    column = _likeliest(table.columns, names)
    if column is None:
        raise UsageError(
            f"{table.path} has the columns {', '.join(columns)}, and none is named after {content}; set {option} (a table begins with a line of names)"
        )
    return column


def _split_of(word: Any, table: Path, index: int) -> SplitName | None:
    """Return the split that a word of the split column names; None for an empty one."""
    text = str(word if word is not None else "").strip().lower()
    if not text:
        return None
    if text not in SPLIT_WORDS:
        raise DataError(
            f"{table}, row {index + 1}: split {escape_unprintable(str(word))!r} is none of train, val and test; rename it, or set --split-column to another column"
        )
    return SPLIT_WORDS[text]


def _label(value: Any, names: Sequence[str] | None, table: Path, index: int) -> str | None:
    """Return the class of a row; None where it is missing.

    Raises:
        DataError: it is no single class.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list | dict | float | bytes):
        several = (
            "set --label-separator , for images with several"
            if isinstance(value, list)
            else "name another --label-column"
        )
        raise DataError(
            f"{table}, row {index + 1}: label {escape_unprintable(str(value))[:60]} is no class; need one name or whole number per image, or {several}"
        )
    if names is not None and isinstance(value, int) and not isinstance(value, bool):
        if value == -1:
            return None
        if not 0 <= value < len(names):
            raise DataError(f"{table}, row {index + 1}: label {value}, and there are {len(names)} classes")
        return names[value]
    return str(value).strip() or None


def _drop_unlabelled(splits: dict[SplitName, list[_Row]], listing: Listing) -> None:
    """Leave out the splits that have no labels at all, as the test images of a competition."""
    for name in [name for name, rows in splits.items() if not any(row.label for row in rows)]:
        count = len(splits.pop(name))
        listing.notes.append(
            f"the {counted(count, f'{name} row has no label and is', f'{name} rows have no labels and are')} not used"
        )


def _usable(rows: Sequence[_Row], split: SplitName, listing: Listing) -> list[_Row]:
    """Return the rows of a split with an image and a label, each image once; the others become problems.

    Raises:
        DataError: an image has two classes.
    """
    usable: dict[str, _Row] = {}
    repeats = 0
    for row in rows:
        if row.problem or row.label is None:
            listing.problems[row.id] = row.problem or "no label"
            continue
        former = usable.setdefault(row.id, row)
        if former.label != row.label:
            raise DataError(
                f"{listing.root}: {escape_unprintable(row.id)} has the classes {_text_of(former)} and {_text_of(row)}; {'keep one of them' if isinstance(row.label, str) else 'write all labels of an image in one row'}"
            )
        repeats += former is not row
    if repeats:
        listing.notes.append(
            f"{counted(repeats, f'{split} row', f'{split} rows')} of {listing.root.name} repeat{'s' * (repeats == 1)} an image"
        )
    return list(usable.values())


def _names_of(row: _Row) -> frozenset[str]:
    """Return the labels of a row, of which there may be one, several or none."""
    return row.label if isinstance(row.label, frozenset) else frozenset([row.label] if row.label else [])


def _text_of(row: _Row) -> str:
    """Return the labels of a row for a message."""
    return escape_unprintable(", ".join(class_order(_names_of(row)))) or "(none)"


def _classes(
    splits: Mapping[SplitName, Sequence[_Row]],
    declared: Sequence[str],
    is_for_training: bool,
    path: Path,
    config: Config,
) -> tuple[str, ...]:
    """Return the classes in use: in the order in which the table declares them, the others by their names.

    Raises:
        DataError: a split has a class that the training images do not have, or two differ only in case.
    """
    used = {name: set[str]().union(*map(_names_of, rows)) for name, rows in splits.items()}
    everything = set[str](declared if config.label_columns else ()).union(*used.values())
    if is_for_training:
        for name, classes in used.items():
            if unknown := sorted(classes - used["train"]):
                raise DataError(
                    f"{path}: the {name} rows have class {short_list(unknown)}, which the train rows do not have"
                )
        if absent := [name for name in declared if name not in used["train"]] if config.label_columns else []:
            raise DataError(
                f"{path}: no train row has a 1 in the column {short_list(absent)}; leave it out of --label-columns, or add images of it"
            )
        check_case(sorted(everything), path)
    order = [name for name in declared if name in everything]
    return (*order, *class_order(everything - set(order)))
