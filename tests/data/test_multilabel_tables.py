"""Tables that give an image several labels: both forms, what they become, and what is refused in one line."""

import functools
import json

import numpy as np
import pytest
from PIL import Image

from harness.config.recipe import make_config
from harness.data.loaders import make_loaders
from harness.data.multilabel import multilabel_indices
from harness.data.overview import examine
from harness.data.preprocess import make_preprocess
from harness.data.registry import load_dataset, load_evaluation_data
from harness.models import factory
from harness.utils.errors import DataError, UsageError
from tests.support.image_folders import refusal
from tests.support.multilabel import COLOURS, make_squares, write_columns, write_separated, write_table


def settings(path, **others):
    return make_config({"data": "table", "data_dir": str(path), **others})


def load(path, **others):
    return load_dataset(settings(path, **others))


refused = functools.partial(refusal, load=load)


def truth_by_id(data):
    """Return id -> names of its classes, of all splits."""
    splits = [split for split in (data.train, data.val, data.test) if split is not None]
    return {
        id: {data.classes[index] for index in np.flatnonzero(row)}
        for split in splits
        for id, row in zip(split.ids, split.labels, strict=True)
    }


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    root = tmp_path_factory.mktemp("squares")
    return root, make_squares(root, 60)


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_separated, {"label_separator": "|"}),
        (functools.partial(write_separated, separator=", "), {"label_separator": ","}),
        (functools.partial(write_separated, separator=" "), {"label_separator": " "}),
        (write_columns, {"label_columns": "red,green,blue"}),
        (write_columns, {"label_columns": "*"}),
        (write_columns, {"label_columns": "r*,gre?n,*l*"}),
    ],
)
def test_each_form_gives_the_images_the_same_labels(squares, write, options):
    root, rows = squares
    data = load(write(root, rows), **options, val_fraction=0.2)
    expected = {path: {name for name, marked in zip(COLOURS, has, strict=True) if marked} for path, has in rows}
    assert truth_by_id(data) == expected
    assert set() in expected.values()  # an image without any label
    assert data.train.labels.dtype == np.uint8 and data.train.labels.shape == (len(data.train), 3)


def test_columns_keep_their_order_and_names_are_sorted(squares):
    root, rows = squares
    assert load(write_columns(root, rows), label_columns="blue,red,green").classes == ("blue", "red", "green")
    assert load(write_separated(root, rows), label_separator="|").classes == ("blue", "green", "red")


def test_the_column_tags_needs_no_setting_where_labels_are_separated(squares):
    root, rows = squares
    file = write_separated(root, rows, separator=" ").rename(root / "tags.csv")
    expected = truth_by_id(load(file, label_separator=" ", label_column="labels"))
    file.write_text(file.read_text().replace("path,labels", "path,tags", 1))
    assert truth_by_id(load(file, label_separator=" ")) == expected
    assert "--label-column" in refused(UsageError, file)  # an image with one label has no tags


def test_a_table_may_lie_outside_of_the_folder_of_its_images(squares, tmp_path):
    root, rows = squares
    assert len(truth_by_id(load(write_columns(tmp_path, rows), label_columns="*", image_root=str(root)))) == len(rows)


def test_a_folder_with_its_metadata_csv_gives_several_labels(squares, tmp_path):
    root, rows = squares
    write_columns(root, rows).rename(root / "metadata.csv")
    try:
        config = make_config({"data": "folder", "data_dir": str(root), "label_columns": "*"})
        assert len(truth_by_id(load_dataset(config))) == len(rows)
    finally:
        (root / "metadata.csv").unlink()


def test_lists_in_json_lines_are_labels(squares):
    root, rows = squares
    lines = [
        {"path": path, "labels": [name for name, marked in zip(COLOURS, has, strict=True) if marked]}
        for path, has in rows
    ]
    table = root / "lists.jsonl"
    table.write_text("\n".join(str(line).replace("'", '"') for line in lines))
    assert truth_by_id(load(table, label_separator=",")) == {line["path"]: set(line["labels"]) for line in lines}


def test_the_fingerprint_depends_on_the_labels_alone_and_not_on_their_form(squares):
    root, rows = squares
    of_names = load(write_separated(root, rows), label_separator="|").fingerprint
    assert load(write_columns(root, rows), label_columns="blue,green,red").fingerprint == of_names
    path, has = rows[0]
    changed = [(path, (not has[0], *has[1:])), *rows[1:]]
    assert load(write_separated(root, changed), label_separator="|").fingerprint != of_names


def test_each_class_is_held_out_by_its_share_and_none_is_lost():
    random = np.random.default_rng(3)
    shares = np.array([0.6, 0.3, 0.1, 0.02])
    labels = (random.random((1000, 4)) < shares).astype(np.uint8)
    held_out = multilabel_indices(labels, 0.2, seed=1)
    assert abs(len(held_out) - 200) <= 5
    assert len(set(held_out.tolist())) == len(held_out)
    counts = labels.sum(0)
    np.testing.assert_allclose(labels[held_out].sum(0), 0.2 * counts, atol=3)
    assert multilabel_indices(labels, 0.2, seed=1).tolist() == held_out.tolist()
    assert multilabel_indices(labels, 0.2, seed=2).tolist() != held_out.tolist()


def test_as_many_images_are_held_out_as_asked_where_every_class_is_rare():
    labels = np.repeat(np.eye(20, dtype=np.uint8), 3, axis=0)  # a tenth of three images rounds to none
    for seed in range(5):
        held_out = multilabel_indices(labels, 0.1, seed)
        assert len(held_out) == 6 and (labels.sum(0) - labels[held_out].sum(0) >= 1).all()


def test_a_class_of_one_image_stays_among_the_training_images():
    labels = np.zeros((50, 3), np.uint8)
    labels[0, 0] = labels[1:, 1] = labels[10:30, 2] = 1
    for seed in range(20):
        assert 0 not in multilabel_indices(labels, 0.3, seed)


def test_both_loaders_serve_the_labels_of_the_images_that_they_serve(squares):
    root, rows = squares
    table = write_columns(root, rows)
    served = []
    for loader in ("resident", "timm"):
        config = settings(
            table,
            label_columns="*",
            loader=loader,
            workers=0,
            batch_size=16,
            augment="none",
            image_size=16,
            recipe="custom-resnet",
        )
        data = load_dataset(config)
        model = factory.create_model(config, 3)
        made = make_loaders(config, data, make_preprocess(config, model, data), "cpu")
        images, labels = next(iter(made.train.epoch(0)))
        served.append((images.float().numpy(), labels.numpy()))
        assert labels.numpy().dtype == np.uint8 and labels.shape == (16, 3)
        tested = np.concatenate([labels.numpy() for _, labels in made.test])
        np.testing.assert_array_equal(tested, data.test.labels)
    np.testing.assert_array_equal(served[0][1], served[1][1])
    # A square of a colour is what makes the channel bright: the labels belong to the images.
    brightest = served[0][0].max((2, 3))
    assert (brightest[served[0][1] > 0].min() > brightest[served[0][1] == 0].max()).all()


def test_labels_of_other_data_are_matched_with_the_classes_of_the_model(squares):
    root, rows = squares
    config = settings(write_separated(root, rows), label_separator="|")
    classes = ("red", "other", "blue", "green")
    split = load_evaluation_data(config, classes, "").splits["train"]
    names = {
        id: {classes[index] for index in np.flatnonzero(row)} for id, row in zip(split.ids, split.labels, strict=True)
    }
    assert names == {path: {name for name, marked in zip(COLOURS, has, strict=True) if marked} for path, has in rows}


def test_other_data_without_a_column_of_a_class_of_the_model_is_refused(squares):
    root, rows = squares
    config = settings(write_columns(root, rows), label_columns="red,blue")
    with pytest.raises(DataError, match=r"columns\.csv.*no column for the class green"):
        load_evaluation_data(config, COLOURS, "")


def test_other_data_with_a_label_that_the_model_does_not_have_is_refused(squares):
    root, rows = squares
    config = settings(write_separated(root, rows), label_separator="|")
    with pytest.raises(DataError, match="class green, which the model does not have"):
        load_evaluation_data(config, ("red", "blue"), "")


def table_with(root, rows, header, cells):
    """Write a table of the images with these cells beside the first path, and valid ones beside the others."""
    good = (
        [[path, *map(int, has)] for path, has in rows[1:]]
        if len(cells) == 3
        else [[path, "red|green"] for path, _ in rows[1:]]
    )
    return write_table(root / "hostile.csv", header, [[rows[0][0], *cells], *good])


@pytest.mark.parametrize(
    ("cells", "shown"),
    [
        ((2, 0, 1), "'2'"),
        (("nan", 0, 1), "'nan'"),
        (("", 0, 1), "an empty cell"),
        ((-1, 0, 1), "'-1'"),
        (("yes", 0, 1), "'yes'"),
    ],
)
def test_a_cell_that_is_neither_0_nor_1_is_refused_with_file_row_value_and_remedy(squares, cells, shown):
    root, rows = squares
    table = table_with(root, rows, ["path", *COLOURS], cells)
    message = refused(DataError, table, label_columns="red,green,blue")
    assert "\n" not in message
    assert f"{table}, row 1: column red has" in message and shown in message and "needs 0 or 1; mend it" in message


@pytest.mark.parametrize("cell", ["red||green", "red|", "|", "| |"])
def test_an_empty_label_between_separators_is_refused_with_file_row_and_value(squares, cell):
    root, rows = squares
    table = table_with(root, rows, ["path", "labels"], [cell])
    message = refused(DataError, table, label_separator="|")
    assert f"{table}, row 1: column labels has the value {cell!r}" in message and "\n" not in message


@pytest.mark.parametrize("cell", ["nan", "NaN", "-1", "red|nan", "n/a", "<NA>"])
def test_a_label_that_stands_for_an_unknown_one_is_no_class_of_its_own(squares, cell):
    root, rows = squares
    table = table_with(root, rows, ["path", "labels"], [cell])
    message = refused(DataError, table, label_separator="|")
    assert f"{table}, row 1: column labels has the value {cell!r}" in message and "\n" not in message
    assert "not known; leave the row out, or the cell empty" in message and "give it another name" in message


def test_names_that_only_look_like_missing_values_are_classes(squares):
    """Such as Namibia and Niue among codes of countries, in either form of labels; one label per image takes any name."""
    root, rows = squares
    cells = (["NA|None", "NU", "null"], ["nan", "n/a", "-1"])
    several, one = (
        write_table(
            root / f"{number}.csv",
            ["path", "label"],
            [[path, given[index % 3]] for index, (path, _) in enumerate(rows)],
        )
        for number, given in enumerate(cells)
    )
    assert set(load(several, label_separator="|").classes) == {"NA", "NU", "None", "null"}
    assert set(load(one).classes) == {"-1", "n/a", "nan"}


@pytest.mark.parametrize("value", ["null", "NaN", "1.5", "true", '{"a": 1}', '["red", null]', '["red", 1.5]'])
def test_json_that_is_no_list_of_labels_is_refused(squares, value):
    root, rows = squares
    table = root / "hostile.jsonl"
    table.write_text(f'{{"path": "{rows[0][0]}", "labels": {value}}}\n{{"path": "{rows[1][0]}", "labels": "red"}}\n')
    message = refused(DataError, table, label_separator="|")
    assert f"{table}, row 1" in message and "\n" not in message


def test_a_column_without_a_name_is_refused_where_a_pattern_stands_for_it(squares):
    root, rows = squares
    table = write_table(root / "index.csv", ["", "path", *COLOURS], [[0, path, *map(int, has)] for path, has in rows])
    assert "line 1: a column that label_columns='*' stands for has no name" in refused(
        DataError, table, label_columns="*"
    )
    assert load(table, label_columns="red,green,blue").classes == COLOURS


def test_a_column_that_is_not_there_is_refused_with_those_that_are(squares):
    root, rows = squares
    message = refused(UsageError, write_columns(root, rows), label_columns="red,gren")
    assert "label_columns='gren'" in message and "green" in message


def test_a_class_without_a_training_image_is_refused(squares):
    root, rows = squares
    table = write_table(
        root / "empty.csv", ["path", *COLOURS, "never"], [[path, *map(int, has), 0] for path, has in rows]
    )
    assert "no train row has a 1 in the column never" in refused(DataError, table, label_columns="*")


def test_an_image_in_two_rows_with_different_labels_is_refused_with_the_remedy(squares):
    root, rows = squares
    table = write_table(
        root / "long.csv", ["path", "labels"], [[rows[0][0], "red"], [rows[0][0], "blue"], [rows[1][0], "red"]]
    )
    assert "has the classes red and blue; write all labels of an image in one row" in refused(
        DataError, table, label_separator="|"
    )


def test_a_list_of_labels_without_the_setting_is_refused_with_the_remedy(squares):
    root, rows = squares
    table = root / "list.jsonl"
    table.write_text(f'{{"path": "{rows[0][0]}", "labels": ["red", "blue"]}}\n')
    assert "--label-separator" in refused(DataError, table)


def test_class_folders_are_refused_with_the_remedy(tmp_path):
    for name in ("a", "b"):
        make_squares(tmp_path / name, 3)
    config = make_config({"data": "folder", "data_dir": str(tmp_path), "label_columns": "*"})
    with pytest.raises(UsageError, match=r"one label per image.*--data table"):
        load_dataset(config)


def test_the_overview_counts_the_images_of_each_class_and_the_labels_of_each_image(squares):
    root, rows = squares
    config = settings(write_columns(root, rows), label_columns="*")
    overview = examine(config, 0)
    has = np.array([row for _, row in rows])
    assert overview.splits["train"].counts.tolist() == has.sum(0).tolist()
    assert overview.splits["train"].labels_per_image == (pytest.approx(has.sum(1).mean()), int((has.sum(1) == 0).sum()))


def test_a_table_without_any_label_is_refused_for_that(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("file,a,b\n1.png,0,0\n2.png,0,0\n")
    with pytest.raises(DataError, match=r"2 train rows have no labels .*nothing is left to train on"):
        load(table, label_columns="a,b")


def test_labels_of_images_of_several_sizes_are_matched_with_the_classes_of_the_model_too(tmp_path):
    rows = make_squares(tmp_path, 12)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / rows[0][0])
    config = settings(write_separated(tmp_path, rows), label_separator="|")
    classes = ("blue", "other", "red", "green")
    split = load_evaluation_data(config, classes, "").splits["train"]
    assert split.pixels is None
    expected = {path: [has[2], False, has[0], has[1]] for path, has in rows}
    for index, path in enumerate(split.ids):
        assert split.labels[index].tolist() == split.source[index][1].tolist() == expected[path]


@pytest.mark.parametrize("is_parquet", [False, True])
def test_numbers_and_booleans_of_typed_tables_are_labels(squares, is_parquet):
    """JSON lines and Parquet have values, not text: true and 1.0 in a column of a class, names and numbers in lists."""
    root, rows = squares
    typed = [{"path": path, "red": has[0], "green": float(has[1]), "blue": int(has[2])} for path, has in rows]
    lists = [{"path": path, "labels": [index for index in range(3) if has[index]]} for path, has in rows]
    tables = []
    for name, values in (("typed", typed), ("lists", lists)):
        if is_parquet:
            pyarrow = pytest.importorskip("pyarrow")
            from pyarrow import parquet

            table = pyarrow.Table.from_pylist(values)
            if name == "lists":  # as `datasets` describes a sequence of its classes
                features = {"labels": {"names": list(COLOURS), "_type": "ClassLabel"}}
                table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
            tables.append(root / f"{name}.parquet")
            parquet.write_table(table, tables[-1])
        else:
            tables.append(root / f"{name}.jsonl")
            tables[-1].write_text("\n".join(map(json.dumps, values)))
    expected = {path: {name for name, marked in zip(COLOURS, has, strict=True) if marked} for path, has in rows}
    assert truth_by_id(load(tables[0], label_columns="red,green,blue")) == expected
    by_number = {path: {str(COLOURS.index(name)) for name in names} for path, names in expected.items()}
    assert truth_by_id(load(tables[1], label_separator="|")) == (expected if is_parquet else by_number)


def test_the_same_number_of_a_class_alone_is_a_label_and_one_without_a_name_is_refused(squares):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root, rows = squares
    features = json.dumps({"info": {"features": {"labels": {"names": list(COLOURS), "_type": "ClassLabel"}}}})
    table = root / "single.parquet"

    def write(labels):
        columns = pyarrow.table({"path": [path for path, _ in rows], "labels": labels})
        parquet.write_table(columns.replace_schema_metadata({"huggingface": features}), table)

    write([index % 3 for index in range(len(rows))])
    assert truth_by_id(load(table, label_separator="|")) == {
        path: {COLOURS[index % 3]} for index, (path, _) in enumerate(rows)
    }
    write([3, *[index % 3 for index in range(1, len(rows))]])
    message = refused(DataError, table, label_separator="|")
    assert f"{table}, row 1: column labels has the value '3', and one of its labels is empty or no name" in message


def test_unbalanced_classes_are_told_to_be_read_by_their_average_precision(tmp_path):
    rows = [(path, (True, index == 0, index == 1)) for index, (path, _) in enumerate(make_squares(tmp_path, 60))]
    overview = examine(settings(write_columns(tmp_path, rows), label_columns="*"), 5)
    (line,) = (line for line in overview.advice if "the classes are unbalanced" in line)
    assert "red has 60 training images and green 1" in line and "read the average precision of each class" in line
    assert "not the mAP alone; --class-weights balanced weights the images that have a rare class" in line


def test_tables_with_other_class_columns_are_refused(tmp_path):
    rows = make_squares(tmp_path, 4)
    for name, classes in (("train.csv", COLOURS), ("test.csv", ("red", "blue", "green"))):
        write_table(tmp_path / name, ["path", *classes], [[path, 1, 0, 1] for path, _ in rows])
    message = refused(DataError, tmp_path, label_columns="*")
    assert (
        "test.csv has the class columns red, blue, green, and another table red, green, blue; give all tables the same"
        in message
    )
