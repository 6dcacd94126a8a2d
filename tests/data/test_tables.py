"""Tables of paths and labels: which images, classes and splits they give, and what is refused in one line."""

import csv
import functools
import json
import math
import os
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.data import stored_table
from harness.data.registry import load_dataset, load_evaluation_data
from harness.data.stored_table import read_table
from harness.utils.errors import DataError, UsageError
from tests.support.image_folders import refusal, save_image

CLASSES = ("cat", "dog")


def load_table(path, **settings):
    return load_dataset(Config(data="table", data_dir=str(path), **settings))


refused = functools.partial(refusal, load=load_table)


def make_rows(root, count=5, split_of=lambda index: ""):
    """Make photos/NAME-N.png and return rows of (path, class, split)."""
    rows = []
    for name in CLASSES:
        for index in range(count):
            save_image(root / "photos" / f"{name}-{index}.png")
            rows.append((f"photos/{name}-{index}.png", name, split_of(index)))
    return rows


def write(path, header, rows, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def by_id(data):
    splits = {split.name: split for split in (data.train, data.val, data.test) if split is not None}
    return {
        name: {id: data.classes[label] for id, label in zip(split.ids, split.labels, strict=True)}
        for name, split in splits.items()
    }


def three_splits(index):
    return {0: "validation", 1: "Test"}.get(index, "train")


@pytest.mark.parametrize(
    "header",
    [
        ("path", "label", "split"),
        ("file_name", "class", "subset"),
        ("Image Path", "Target", "Split"),
        ("image", "category", "set"),
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_are_found_by_their_usual_names(tmp_path, header, delimiter):
    rows = make_rows(tmp_path, split_of=three_splits)
    data = load_table(write(tmp_path / "all.csv", header, rows, delimiter))
    expected = {"train": {}, "val": {}, "test": {}}
    for path, name, split in rows:
        expected[{"validation": "val", "Test": "test"}.get(split, split)][path] = name
    assert by_id(data) == expected
    for split in (data.train, data.val, data.test):
        for index, id in enumerate(split.ids):
            np.testing.assert_array_equal(split.picture(index), np.asarray(Image.open(tmp_path / id)))


def test_columns_are_those_that_the_settings_name(tmp_path):
    rows = [(1, path, "x", name, split) for path, name, split in make_rows(tmp_path, split_of=three_splits)]
    table = write(tmp_path / "t.csv", ("label", "where", "path", "what", "fold"), rows)
    data = load_table(table, image_column="where", label_column="what", split_column="fold")
    assert data.classes == CLASSES and len(data.val) == 2
    assert "image_column='were': " in refused(UsageError, table, image_column="were")
    assert "did you mean 'where'?" in refused(UsageError, table, image_column="were")


def test_a_table_without_splits_is_divided_as_a_folder_is(tmp_path):
    data = load_table(write(tmp_path / "t.csv", ("path", "label"), [row[:2] for row in make_rows(tmp_path)]))
    assert (len(data.train), len(data.test)) == (8, 2)
    np.testing.assert_array_equal(np.bincount(data.test.labels), [1, 1])


def test_a_data_dir_that_is_a_table_needs_no_other_setting():
    config = make_config({"data_dir": "some/where.csv"})
    assert config.data == "table"
    assert make_config({"data_dir": "x.csv", "data": "digits"}).data == "digits"
    assert make_config({"data_dir": "x"}).data == "folder"


def test_a_folder_has_a_table_for_each_split(tmp_path):
    rows = make_rows(tmp_path)
    for name, part in (
        ("train", rows[:3] + rows[5:8]),
        ("valid", rows[3:4] + rows[8:9]),
        ("test", rows[4:5] + rows[9:]),
    ):
        write(tmp_path / f"{name}.csv", ("path", "label"), [row[:2] for row in part])
    assert {name: len(images) for name, images in by_id(load_table(tmp_path)).items()} == {
        "train": 6,
        "val": 2,
        "test": 2,
    }


def test_names_without_extensions_and_in_an_images_folder_are_found(tmp_path):
    make_rows(tmp_path / "images")
    rows = [(f"photos/{name}-{index}", name) for name in CLASSES for index in range(5)]
    data = load_table(write(tmp_path / "t.csv", ("image_id", "label"), rows))
    assert data.train.ids[0].startswith("images/photos/") and data.train.ids[0].endswith(".png")


def test_classes_that_are_numbers_are_in_the_order_of_their_values(tmp_path):
    rows = []
    for index in range(24):
        save_image(tmp_path / f"{index}.png")
        rows.append((f"{index}.png", index % 12))
    assert load_table(write(tmp_path / "t.csv", ("path", "label"), rows)).classes == tuple(map(str, range(12)))


@pytest.mark.parametrize("kind", ["parent", "absolute", "link", "folder link"])
def test_no_path_leads_out_of_the_folder_unless_it_is_named(tmp_path, kind):
    root = tmp_path / "data"
    rows = [row[:2] for row in make_rows(root)]
    outside = save_image(tmp_path / "outside" / "secret.png")
    if kind == "link":
        (root / "photos" / "link.png").symlink_to(outside)
    if kind == "folder link":
        (root / "link").symlink_to(outside.parent)
    path = {
        "parent": "../outside/secret.png",
        "absolute": str(outside),
        "link": "photos/link.png",
        "folder link": "link/secret.png",
    }[kind]
    table = write(root / "t.csv", ("path", "label"), [*rows, (path, "cat")])
    message = refused(UsageError, table)
    assert f"row 11: {path} is outside of {root}; set --image-root" in message
    if kind == "absolute":
        rows = [(str(root / path), label) for path, label in rows]
        write(table, ("path", "label"), [*rows, (str(outside), "cat")])
        assert "outside/secret.png" in [
            *by_id(load_table(table, image_root=str(tmp_path)))["train"],
            *by_id(load_table(table, image_root=str(tmp_path)))["test"],
        ]


def test_absolute_paths_inside_the_folder_are_read(tmp_path):
    rows = [(str(tmp_path / path), name) for path, name, _ in make_rows(tmp_path)]
    assert len(load_table(write(tmp_path / "t.csv", ("path", "label"), rows)).train) == 8


@pytest.mark.parametrize(
    ("header", "rows", "error", "message"),
    [
        (("a", "b"), [("photos/cat-0.png", "cat")], UsageError, "has the columns a, b, and none is named after the path of each image; set --image-column"),
        (("path", "b"), [("photos/cat-0.png", "cat")], UsageError, "none is named after the class of each image; set --label-column"),
        (("path", "path"), [], DataError, "two columns of one name"),
        (("path", "label"), [("photos/cat-0.png",)], DataError, "line 2: 1 values for 2 columns"),
        (("path", "label"), [("photos/cat-0.png", "cat"), ("photos/cat-0.png", "dog")], DataError, "photos/cat-0.png has the classes cat and dog"),
        (("path", "label"), [("photos/cat-0.png", "cat"), ("photos/dog-0.png", "Cat")], DataError, "differ only in case"),
        (("path", "label"), [("photos/cat-0.png", "cat"), ("photos/dog-0.png", "dog"), ("photos/no.png", "dog")], DataError, "the first is photos/no.png: t.csv names it, and it is not in"),
        (("path", "label"), [("photos/cat-0.png", "cat"), ("photos/dog-0.png", "dog"), ("photos/dog-1.png", "")], DataError, "photos/dog-1.png: no label"),
        (("path", "label", "split"), [("photos/cat-0.png", "cat", "fold3")], DataError, "split 'fold3' is none of train, val and test"),
        (("path", "label", "split"), [("photos/cat-0.png", "cat", "test")], DataError, "but none to train on"),
        (("path", "label", "split"), [("photos/cat-0.png", "cat", "train"), ("photos/dog-0.png", "dog", "test")], DataError, "the test rows have class dog"),
        (("path", "label"), [("photos/cat-0.png", "cat")], DataError, "only 1 class"),
    ],
)  # fmt: skip
def test_a_table_that_makes_no_sense_is_refused_in_one_line(tmp_path, header, rows, error, message):
    make_rows(tmp_path)
    assert message in refused(error, write(tmp_path / "t.csv", header, rows))


def test_rows_without_a_picture_or_a_label_are_skipped_when_asked(tmp_path):
    rows = [row[:2] for row in make_rows(tmp_path)]
    table = write(tmp_path / "t.csv", ("path", "label"), [*rows, ("photos/no.png", "cat"), ("", "cat")])
    assert load_table(table, bad_images="skip").skipped == ["photos/no.png", "row 12"]


def test_rows_without_labels_or_a_split_are_named(tmp_path):
    rows = make_rows(tmp_path, split_of=lambda index: "test" if index == 4 else "train")
    rows = [(path, "" if split == "test" else name, split) for path, name, split in rows] + [rows[0]]
    data = load_table(write(tmp_path / "t.csv", ("path", "label", "split"), rows))
    assert data.notes == ["the 2 test rows have no labels and are not used", "1 train row of t.csv repeats an image"]
    assert len(data.train) + len(data.test) == 8  # a test set is held out


def test_a_table_of_other_images_is_evaluated_by_the_names_of_its_classes(tmp_path):
    rows = [(path, name, "test") for path, name, _ in make_rows(tmp_path) if name == "dog"]
    table = write(tmp_path / "t.csv", ("path", "label", "split"), rows)
    data = load_evaluation_data(Config(data="table", data_dir=str(table)), ("bird", "cat", "dog"), "")
    assert list(data.splits) == ["test"] and data.splits["test"].labels.tolist() == [2] * 5


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("layout", ["root", "splits"])
def test_a_folder_with_hugging_faces_metadata_has_the_labels_in_it(tmp_path, kind, layout):
    for split in ("train", "test"):
        rows = [(row[0], row[1]) for row in make_rows(tmp_path / split)]
        if layout == "splits":
            _write_metadata(tmp_path / split, kind, rows)
    if layout == "root":
        _write_metadata(
            tmp_path, kind, [(f"{split}/{path}", name) for split in ("train", "test") for path, name in rows]
        )
    data = load_dataset(Config(data="folder", data_dir=str(tmp_path)))
    assert (len(data.train), len(data.test)) == (10, 10) and data.classes == CLASSES
    assert {
        data.classes[label] == id.rpartition("/")[2].split("-")[0]
        for id, label in zip(data.test.ids, data.test.labels, strict=True)
    } == {True}


def _write_metadata(folder, kind, rows):
    if kind == "csv":
        write(folder / "metadata.csv", ("file_name", "label"), rows)
    else:
        lines = [json.dumps({"file_name": path, "label": name}) for path, name in rows]
        (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("content", [b"", b"\n\n", b'path,label\n"a', b"\xff\xfe", b"path,label\0\nx,\0"])
def test_a_damaged_table_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises((DataError, UsageError)) as caught:
        load_table(tmp_path / "t.csv")
    assert "\n" not in str(caught.value)
    assert "there is no" in refused(DataError, tmp_path / "no.csv")


def test_a_path_without_its_extension_follows_no_link_out_of_the_folder(tmp_path):
    root = tmp_path / "data"
    rows = [row[:2] for row in make_rows(root)]
    (root / "photos" / "link.png").symlink_to(save_image(tmp_path / "outside" / "secret.png"))
    (root / "photos" / "own.png").symlink_to(root / "photos" / "cat-0.png")
    table = write(root / "t.csv", ("path", "label"), [*rows, ("photos/own", "cat")])
    assert "photos/own.png" in {id for split in by_id(load_table(table)).values() for id in split}
    write(table, ("path", "label"), [*rows, ("photos/link", "cat")])
    assert f"row 11: photos/link is outside of {root}; set --image-root" in refused(UsageError, table)


def write_lines(path, rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return path


def test_a_path_that_no_file_system_has_is_reported_as_none(tmp_path):
    rows = [{"path": path, "label": name} for path, name, _ in make_rows(tmp_path)]
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(map(json.dumps, [*rows, {"path": "\ud800/a.png", "label": "cat"}])))
    assert "the first is row 11: row 11 of t.jsonl has no path" in refused(DataError, table)
    assert load_table(table, bad_images="skip").skipped == ["row 11"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_string_in_json_lines_may_hold_any_line_end_of_unicode(tmp_path, end):
    rows = [{"path": path, "label": f"{name}\u2028\x85!"} for path, name, _ in make_rows(tmp_path)]
    text = end.join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "t.jsonl").write_bytes(f"{text}{end}".encode())
    assert load_table(tmp_path / "t.jsonl").classes == (r"cat\u2028\x85!", r"dog\u2028\x85!")


def test_json_lines_with_a_name_of_their_own_each_take_memory_in_proportion_to_their_size(tmp_path):
    rows = [{"path": path, "label": name} for path, name, _ in make_rows(tmp_path)]
    table = write_lines(tmp_path / "t.jsonl", [*rows, *({f"{index}": None} for index in range(9000))])
    tracemalloc.start()
    assert len(read_table(table).columns) == 9002  # 81 million cells, nearly all of them empty
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


@pytest.mark.parametrize("limit", ["MAX_ROWS", "MAX_COLUMNS"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_a_table_of_too_many_rows_or_columns_is_refused(tmp_path, monkeypatch, limit, name):
    monkeypatch.setattr(stored_table, limit, 2)
    columns, count = (3, 1) if limit == "MAX_COLUMNS" else (2, 3)
    rows = [[str(column) for column in range(columns)]] * count
    if name == "t.csv":
        write(tmp_path / name, [f"c{column}" for column in range(columns)], rows)
    else:
        write_lines(tmp_path / name, [{f"c{column}": value for column, value in enumerate(row)} for row in rows])
    message = refused(DataError, tmp_path / name)
    assert f"has more than 2 {'rows' if limit == 'MAX_ROWS' else 'columns'}; " in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"id,class\n1,cat\n", "none of its columns is named after the path of each image: id, class"),
        (b"file_name,caption\n1.png,a cat\n", "none of its columns is named after the class of each image: file_name, caption"),
        ("file_name,label\n1.png,Löwe\n".encode("latin-1"), "is not UTF-8 at byte 23; save it as UTF-8"),
        (b"", "is empty; need a line of column names"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("folder", ["", "train"])
def test_metadata_that_lists_no_labelled_images_leaves_the_classes_to_the_folders(tmp_path, content, reason, folder):
    for name in CLASSES:
        for index in range(5):
            save_image(tmp_path / folder / name / f"{index}.png")
            save_image(tmp_path / "test" / name / f"{index}.png") if folder else None
    (tmp_path / folder / "metadata.csv").write_bytes(content)
    data = load_dataset(Config(data="folder", data_dir=str(tmp_path)))
    assert data.classes == CLASSES and len(data.train) == (10 if folder else 8)
    (note,) = [note for note in data.notes if reason in note]
    assert note.startswith(f"{'train/' * bool(folder)}metadata.csv is not used") and "\n" not in note


def test_metadata_is_the_reason_where_there_are_no_class_folders_either(tmp_path):
    save_image(tmp_path / "0.png")
    (tmp_path / "metadata.csv").write_text("id,class\n0,cat\n")
    with pytest.raises(DataError, match=r"no images in class folders.*; metadata.csv is not used, since none of"):
        load_dataset(Config(data="folder", data_dir=str(tmp_path)))
    with pytest.raises(UsageError, match="set --image-column"):  # a setting that names a column means the table
        load_dataset(Config(data="folder", data_dir=str(tmp_path), label_column="class"))


def test_labels_that_are_all_different_are_said_to_be_with_the_column_that_was_named(tmp_path):
    rows = make_rows(tmp_path)
    table = write(tmp_path / "table.csv", ("filename", "label"), [row[:2] for row in rows])
    message = refused(UsageError, table, label_column="filename")
    assert "10 classes of one image each" in message and "is 'filename' the label?" in message
    for path, *_ in rows:  # class folders of one image
        save_image(tmp_path / "folders" / path.replace("/", "-") / "0.png")
    with pytest.raises(UsageError, match="10 classes of one image each, so test_fraction") as error:
        load_dataset(Config(data="folder", data_dir=str(tmp_path / "folders"), test_fraction=0.2))
    assert "label?" not in str(error.value)


@pytest.mark.parametrize(
    ("tables", "option"),
    [
        (["labels.csv"], "--data-dir {0}/labels.csv"),
        (["a.csv", "b.csv"], "--data-dir {0}/a.csv"),
        (["train.csv"], "--data-dir {0}/train.csv"),
        (["train.csv", "test.csv"], "--data table"),
        ([], ""),
    ],
)
@pytest.mark.parametrize("where", ["photos", ""])
def test_a_folder_without_class_folders_that_has_a_table_is_answered_with_how_to_read_it(
    tmp_path, where, tables, option
):
    save_image(tmp_path / where / "0.png")
    save_image(tmp_path / where / "1.png")
    for name in tables:
        write(tmp_path / name, ("path", "label"), [(f"{where}/0.png", "cat"), (f"{where}/1.png", "dog")])
    with pytest.raises(DataError, match="class folder") as error:
        load_dataset(Config(data="folder", data_dir=str(tmp_path)))
    message = str(error.value)
    assert (message.endswith(f": {option.format(tmp_path)}")) if option else ("--data-dir" not in message), message


@pytest.mark.parametrize("line", ["[1, 2]", '"cat"', "{broken", "[" * 100_000])
def test_a_line_of_json_that_is_no_object_is_named_by_its_number_and_empty_lines_are_none(tmp_path, line):
    good = [json.dumps({"path": path, "label": name}) for path, name, _ in make_rows(tmp_path)]
    path = tmp_path / "t.jsonl"
    path.write_text("\n\n".join(good))
    assert len(load_table(path).train) == 8
    path.write_text("\n".join([good[0], "", line]))
    assert "t.jsonl, line 3: not a JSON object; mend it" in refused(DataError, path)


def test_an_empty_line_of_a_table_is_no_row(tmp_path):
    rows = [row[:2] for row in make_rows(tmp_path)]
    table = write(tmp_path / "t.csv", ("path", "label"), rows)
    table.write_text(table.read_text().replace("\n", "\n\n"))
    assert len(load_table(table).train) == 8


def test_a_file_that_is_no_table_is_refused_with_the_kinds_that_are(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(b"x")
    assert "t.xlsx is no table; need a file that ends in .csv, " in refused(DataError, tmp_path / "t.xlsx")
    if os.path.exists("/dev/null"):
        (tmp_path / "t.csv").symlink_to("/dev/null")
        assert "t.csv: " in refused(DataError, tmp_path / "t.csv")


def test_a_slice_of_a_column_of_json_has_none_for_what_a_row_lacks(tmp_path):
    path = write_lines(tmp_path / "t.jsonl", [{"a": 1}, {"b": 2}, {"a": 3}])
    columns = read_table(path).columns
    assert columns["a"][:] == [1, None, 3] and columns["b"][1:] == [2, None] and len(columns["a"]) == 3


def test_a_label_that_is_no_name_is_refused_with_the_remedy(tmp_path):
    rows = [{"path": path, "label": 1.5} for path, _, _ in make_rows(tmp_path)]
    message = refused(DataError, write_lines(tmp_path / "t.jsonl", rows))
    assert (
        "row 1: label 1.5 is no class; need one name or whole number per image, or name another --label-column"
        in message
    )


def test_a_row_without_a_split_is_not_used(tmp_path):
    rows = make_rows(tmp_path, split_of=lambda index: "" if index == 4 else "train")
    data = load_table(write(tmp_path / "t.csv", ("path", "label", "split"), rows), test_fraction=0.25)
    assert len(data.train) + len(data.test) == 8 and not [id for id in data.train.ids if "-4" in id]


def test_a_label_of_nan_is_missing(tmp_path):
    rows = [{"path": path, "label": name} for path, name, _ in make_rows(tmp_path)]
    table = write_lines(tmp_path / "t.jsonl", [*rows, {"path": "photos/cat-0.png", "label": math.nan}])
    assert "photos/cat-0.png: no label" in refused(DataError, table)
