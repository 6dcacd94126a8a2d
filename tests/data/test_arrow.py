"""Parquet files and data sets that Hugging Face's `datasets` saved, read through pyarrow."""

import io
import json
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.config.settings import Config
from harness.data import stored_table
from harness.data.registry import load_dataset
from harness.utils.errors import DataError, UsageError
from tests.support.image_folders import random_image, refusal, save_image

NAMES = ["zebra", "ant"]


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def load(path, data="table", **settings):
    return load_dataset(Config(data=data, data_dir=str(path), **settings))


def image_table(pyarrow, images, labels):
    """Return a table of encoded images and numbered classes with the description that `datasets` adds."""
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    rows = [{"bytes": encoded(pixels), "path": None} for pixels in images]
    table = pyarrow.table(
        {
            "image": pyarrow.array(rows, pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
            "label": labels,
        }
    )
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def save_as_datasets_does(pyarrow, folder, images, labels, shards=2):
    """Write the files of `Dataset.save_to_disk`."""
    folder.mkdir(parents=True)
    table, names = (
        image_table(pyarrow, images, labels),
        [f"data-{index:05}-of-{shards:05}.arrow" for index in range(shards)],
    )
    for index, name in enumerate(names):
        rows = np.array_split(np.arange(len(images)), shards)[index]
        with pyarrow.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table.take(pyarrow.array(rows)))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def test_a_data_set_that_was_saved_to_disk_has_its_images_splits_and_class_names(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    images = {
        split: [random_image() for _ in range(count)] for split, count in (("train", 6), ("validation", 2), ("test", 4))
    }
    for split, pictures in images.items():
        save_as_datasets_does(
            pyarrow, tmp_path / "saved" / split, pictures, [index % 2 for index in range(len(pictures))]
        )
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": [*images]}))
    for data in ("folder", "table"):
        found = load(tmp_path / "saved", data)
        assert found.classes == ("zebra", "ant")  # in their order
        for name, split in (("train", found.train), ("validation", found.val), ("test", found.test)):
            np.testing.assert_array_equal(split.pixels, np.stack(images[name]))
            assert split.labels.tolist() == [index % 2 for index in range(len(images[name]))]
        assert found.fingerprint == load(tmp_path / "saved", data).fingerprint
    found = load(tmp_path / "saved" / "train", "folder", test_fraction=0.4)
    assert (len(found.train), len(found.test)) == (4, 2)


def test_images_of_several_sizes_stay_in_the_file_until_they_are_used(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    images = [random_image((8, 8 + index)) for index in range(10)]
    save_as_datasets_does(
        pyarrow, tmp_path / "saved", [*images, images[0]], [index % 2 for index in range(11)], shards=3
    )
    found = load(tmp_path / "saved", "folder", test_fraction=0.3)
    assert found.train.pixels is None and found.classes == ("zebra", "ant")
    for split in (found.train, found.test):
        for index, id in enumerate(split.ids):
            number = int(id.split("/")[1])
            np.testing.assert_array_equal(split.picture(index), [*images, images[0]][number])
            assert split.labels[index] == number % 2
    notes = load(tmp_path / "saved", "folder", test_fraction=0.45).notes
    assert all("stand in the training images too" in note for note in notes)


@pytest.mark.parametrize("layout", ["one", "data"])
def test_parquet_files_give_images_or_paths(tmp_path, layout):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [random_image() for _ in range(10)]
    table = image_table(pyarrow, images, [index % 2 for index in range(10)])
    if layout == "one":
        parquet.write_table(table, tmp_path / "all.parquet")
        assert len(load(tmp_path / "all.parquet").train) == 8
        paths = [f"{index}.png" for index in range(10)]
        for path, pixels in zip(paths, images, strict=True):
            save_image(tmp_path / path, pixels)
        parquet.write_table(pyarrow.table({"file_name": paths, "label": [0.0, 1.0] * 5}), tmp_path / "paths.parquet")
        found = load(tmp_path / "paths.parquet")
        assert found.classes == ("0", "1") and len(found.train) == 8
    else:  # as on the Hugging Face Hub
        (tmp_path / "data").mkdir()
        for name, start, end in (
            ("train-00000-of-00002", 0, 3),
            ("train-00001-of-00002", 3, 6),
            ("test-00000-of-00001", 6, 10),
        ):
            parquet.write_table(table.slice(start, end - start), tmp_path / "data" / f"{name}.parquet")
        found = load(tmp_path)
        np.testing.assert_array_equal(found.train.pixels, np.stack(images[:6]))
        np.testing.assert_array_equal(found.test.pixels, np.stack(images[6:]))


def test_damaged_and_hostile_files_are_refused_in_one_line(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    save_as_datasets_does(pyarrow, tmp_path / "saved", [random_image() for _ in range(4)], [0, 1, 0, 1])
    for path, change in (
        (tmp_path / "t.parquet", lambda: None),
        (
            tmp_path / "saved",
            lambda: (tmp_path / "saved/state.json").write_text('{"_data_files": [{"filename": "../../etc/passwd"}]}'),
        ),
        (tmp_path / "saved", lambda: (tmp_path / "saved/state.json").write_text("{}")),
    ):
        change()
        with pytest.raises(DataError) as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_a_data_set_of_the_package_datasets_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = [random_image() for _ in range(6)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    columns = {"image": [Image.fromarray(one) for one in images], "label": [0, 1] * 3}
    try:
        with warnings.catch_warnings(action="ignore"):
            made = datasets.Dataset.from_dict(columns, features=features)
            saved = datasets.DatasetDict({"train": made.select(range(4)), "test": made.select([4, 5])})
            saved.save_to_disk(tmp_path / "saved")
    except pickle.PicklingError as error:  # datasets 5.2 with pyarrow 26 and dill
        pytest.skip(f"this version of datasets cannot save: {error}")
    found = load(tmp_path / "saved", "folder")
    assert found.classes == ("zebra", "ant")
    np.testing.assert_array_equal(found.train.pixels, np.stack(images[:4]))


def test_a_missing_pyarrow_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'vision-harness\[arrow\]'"):
        load(tmp_path / "t.parquet")


@pytest.mark.parametrize("kind", ["string", "integer"])
def test_text_and_numbers_in_a_column_of_images_open_no_file(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    secret = save_image(tmp_path / "elsewhere" / "secret.png")
    value = str(secret) if kind == "string" else 0
    (tmp_path / "data").mkdir()
    rows = pyarrow.table({"image": [{"bytes": value}] * 10, "label": ["cat", "dog"] * 5})
    parquet.write_table(rows, tmp_path / "data" / "t.parquet")
    with pytest.raises(DataError, match="10 of 10 images cannot be read"):
        load(tmp_path / "data" / "t.parquet")


def test_a_row_without_an_image_is_skipped_when_asked_even_if_it_is_the_first(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = pyarrow.array([None, *(encoded(random_image()) for _ in range(10))], pyarrow.binary())
    parquet.write_table(pyarrow.table({"image": images, "label": ["cat", *["cat", "dog"] * 5]}), tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet", bad_images="skip").skipped == ["train/0"]


def string_column(pyarrow, offsets, text):
    buffers = [None, pyarrow.py_buffer(np.array(offsets, np.int32).tobytes()), pyarrow.py_buffer(text)]
    return pyarrow.Array.from_buffers(pyarrow.string(), len(offsets) - 1, buffers)


@pytest.mark.parametrize("damage", ["offsets", "text", "image", "unused"])
@pytest.mark.parametrize("kind", ["stream", "file"])
def test_values_of_a_damaged_arrow_file_are_refused_before_they_are_used(tmp_path, damage, kind):
    pyarrow = pytest.importorskip("pyarrow")
    save_as_datasets_does(pyarrow, tmp_path / "saved", [random_image() for _ in range(10)], [0, 1] * 5, shards=1)
    table = image_table(pyarrow, [random_image() for _ in range(10)], [0, 1] * 5)
    bad = string_column(pyarrow, [*range(10), 10], b"catdog\xff\xfe..")
    if damage == "offsets":
        bad = string_column(pyarrow, [0, 2**30, *range(2, 11)], b"catdogcats")  # the first value ends beyond the file
    name = {"image": "image", "unused": "remark"}.get(damage, "label")
    table = table.drop_columns([name]) if name in table.column_names else table
    table = table.append_column(name, pyarrow.chunked_array([bad]))
    path = tmp_path / "saved" / "data-00000-of-00001.arrow"
    with (pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table)
    if damage == "unused":
        assert len(load(tmp_path / "saved").train) == 8
    else:
        with pytest.raises(DataError, match=r"\.arrow cannot be read: ") as caught:
            load(tmp_path / "saved")
        assert "\n" not in str(caught.value)


def test_a_parquet_file_of_too_many_rows_is_refused_before_they_are_read(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = pyarrow.table({"path": ["a.png"] * 11, "label": ["cat"] * 11, "vector": [[1.0]] * 11})
    parquet.write_table(rows, tmp_path / "t.parquet")
    monkeypatch.setattr(stored_table, "MAX_ROWS", 10)
    monkeypatch.setattr(parquet.ParquetFile, "read", lambda *_, **__: pytest.fail("rows were read"))
    with pytest.raises(DataError, match="more than 10 rows"):
        load(tmp_path / "t.parquet")


def test_of_a_parquet_file_the_used_columns_alone_are_read(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    paths = [save_image(tmp_path / f"{index}.png").name for index in range(10)]
    rows = pyarrow.table({"vector": [[1.0]] * 10, "path": paths, "label": ["cat", "dog"] * 5, "label.text": ["x"] * 10})
    parquet.write_table(rows, tmp_path / "t.parquet")
    read, original = [], parquet.ParquetFile.read
    monkeypatch.setattr(
        parquet.ParquetFile, "read", lambda self, names, **given: read.append(names) or original(self, names, **given)
    )
    assert len(load(tmp_path / "t.parquet").train) == 8 and sorted(read) == [["label"], ["path"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"splits": ["../train"]}, "dataset_dict.json is damaged: it names no splits; save the data set again"),
        ({"splits": "train"}, "dataset_dict.json is damaged"),
        ({"splits": ["en", "de"]}, "has the splits en, de; need train, and val or test"),
    ],
)
def test_a_saved_data_set_that_names_no_usable_splits_is_refused(tmp_path, content, message):
    (tmp_path / "dataset_dict.json").write_text(json.dumps(content))
    assert message in refusal(DataError, tmp_path, load)


def test_a_file_that_a_saved_data_set_names_has_to_be_there_and_to_be_no_link(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    save_as_datasets_does(pyarrow, tmp_path / "saved", [random_image() for _ in range(10)], [0, 1] * 5)
    last = tmp_path / "saved/data-00001-of-00002.arrow"
    last.rename(tmp_path / "elsewhere.arrow")
    assert f"{last} is missing, or no regular file; save the data set again" in refusal(
        DataError, tmp_path / "saved", load
    )
    last.symlink_to(tmp_path / "elsewhere.arrow")
    assert f"{last} is missing, or no regular file" in refusal(DataError, tmp_path / "saved", load)


def write_parquet(path, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_a_parquet_file_that_is_not_there_or_too_large_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "no.parquet"
    assert f"there is no {path}; set --data-dir to a table" in refusal(DataError, path, load)
    with pytest.raises(DataError, match=r"there is no file .*no\.parquet; set --data-dir to the table"):
        stored_table.read_table(path)
    write_parquet(path, image=["a.png"], label=["cat"])
    monkeypatch.setattr(stored_table, "MAX_PARQUET_BYTES", 10)
    assert "no.parquet has more than 9.31323e-09 GiB; write its images to files" in refusal(DataError, path, load)


def test_two_columns_of_one_name_in_a_file_of_arrow_are_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    save_as_datasets_does(pyarrow, tmp_path / "saved", [random_image() for _ in range(4)], [0, 1] * 2, shards=1)
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], ["label", "label"])
    with pyarrow.ipc.new_stream(str(tmp_path / "saved/data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    assert "has two columns of one name among label, label; rename one" in refusal(DataError, tmp_path / "saved", load)


def test_images_and_paths_in_one_split_are_refused(tmp_path):
    picture = encoded(random_image())
    write_parquet(tmp_path / "train-1.parquet", image=[picture] * 4, label=["cat", "dog"] * 2)
    save_image(tmp_path / "x.png")
    write_parquet(tmp_path / "train-2.parquet", image=["x.png"], label=["cat"])
    assert "some rows have an image and others the path of one; keep one kind" in refusal(DataError, tmp_path, load)


def test_a_number_beyond_the_names_of_the_classes_is_refused_and_minus_one_is_no_label(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    images = [random_image() for _ in range(10)]
    save_as_datasets_does(pyarrow, tmp_path / "saved", images, [0, 1] * 4 + [0, 2], shards=1)
    assert "row 10: label 2, and there are 2 classes" in refusal(DataError, tmp_path / "saved", load)
    save_as_datasets_does(pyarrow, tmp_path / "other", images, [0, 1] * 4 + [0, -1], shards=1)
    assert load(tmp_path / "other", bad_images="skip").skipped == ["train/9"]


def test_a_value_that_has_no_object_in_python_is_named_by_its_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    times = pyarrow.array([0, 2**60], pyarrow.timestamp("us"))  # the second is beyond the year 9999
    table = stored_table.read_table(write_parquet(tmp_path / "t.parquet", taken=times))
    column = table.columns["taken"]
    assert column[0].year == 1970 and len(column) == 2 and "label" not in table.columns
    with pytest.raises(DataError, match=r"t\.parquet, row 2: taken cannot be read: "):
        column[:]
    with pytest.raises(KeyError):
        table.columns["label"]


def test_columns_of_different_lengths_are_damage():
    pyarrow = pytest.importorskip("pyarrow")
    values = {"path": ["a.png", "b.png"], "label": ["cat"]}
    columns = stored_table.ArrowColumns(
        Path("t.parquet"), list(values), lambda name: pyarrow.chunked_array([values[name]]), (ValueError,)
    )
    assert len(columns) == 2 and columns["path"][:] == ["a.png", "b.png"]
    with pytest.raises(DataError, match=r"t\.parquet is damaged: its columns have different numbers of rows"):
        columns["label"]
