"""Data sets by name."""

import struct
from pathlib import Path

import numpy as np
import pytest

from harness.config.settings import Config
from harness.data.registry import load_dataset, read_digits_table
from harness.utils.errors import DataError, UsageError
from tests.support.image_folders import RANDOM, load_folder, make_class_folders


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "torch/mnist"])
def test_missing_data_is_refused_with_the_folder_and_the_remedy(tmp_path, name):
    with pytest.raises(DataError) as caught:
        load_dataset(Config(data=name, data_dir=str(tmp_path / "none"), download=False))
    assert str(tmp_path / "none") in str(caught.value) and "--download True" in str(caught.value)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["cifar", "torch/mnits", "Folder/x", "no_such"])
def test_an_unknown_name_is_refused_before_anything_is_read(tmp_path, name):
    with pytest.raises(UsageError, match="there is no data"):
        load_dataset(Config(data=name, data_dir=str(tmp_path)))


def test_a_data_set_of_timm_is_read_by_its_name(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images = {
        "train": RANDOM.integers(0, 256, (40, 28, 28), dtype=np.uint8),
        "t10k": RANDOM.integers(0, 256, (20, 28, 28), dtype=np.uint8),
    }
    for name, pixels in images.items():
        labels = np.arange(len(pixels), dtype=np.uint8) % 10
        (folder / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, len(pixels), 28, 28) + pixels.tobytes()
        )
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(pixels)) + labels.tobytes())
    data = load_dataset(Config(data="torch/mnist", data_dir=str(tmp_path), val_fraction=0.25))
    assert (len(data.train), len(data.val), len(data.test), len(data.classes)) == (30, 10, 20, 10)
    np.testing.assert_array_equal(data.test.pixels, np.repeat(images["t10k"][..., None], 3, 3))
    for index, name in enumerate(data.val.ids):
        np.testing.assert_array_equal(data.val.picture(index)[..., 0], images["train"][int(name.split("/")[1])])


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_class_folders(tmp_path / "pets")
    assert len(load_folder(Path("~/pets")).train) == 6


def test_the_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    values, labels = read_digits_table()
    expected = load_digits()
    np.testing.assert_array_equal(values, expected.data)
    np.testing.assert_array_equal(labels, expected.target)
