"""Data sets by name."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data.dataset import IterableImageDataset

from harness.config.settings import Config
from harness.data import timm_datasets
from harness.data.registry import load_dataset, read_digits_table
from harness.utils.errors import DataError, UsageError
from tests.support.image_folders import load_folder, make_class_folders, save_image


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
        "train": np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8),
        "t10k": np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8),
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
    grey = load_dataset(Config(data="torch/mnist", data_dir=str(tmp_path), val_fraction=0.25, in_chans=1))
    np.testing.assert_array_equal(grey.test.pixels[..., 0], images["t10k"])


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


def save_numbered(root, folder, classes):
    """Save images whose grey value is 10 times the number of their class; return the folder's root."""
    for label in classes:
        for index in range(4):
            pixels = np.full((8, 8, 3), 10 * int(label) + index, np.uint8)
            pixels[..., 1] = len(folder)  # no image stands in two splits
            save_image(root / folder / label / f"{index}.png", pixels)
    return root


@pytest.mark.parametrize("test", ["test", "Test", "val", "validation"])
def test_labels_are_matched_by_class_name_where_the_test_folder_lacks_a_class(tmp_path, test):
    save_numbered(tmp_path, "train", "01234")
    save_numbered(tmp_path, test, "1234")
    data = load_dataset(Config(data="torch/image_folder", data_dir=str(tmp_path)))
    assert data.classes == tuple("01234")
    for split in (data.train, data.test):
        greys = [int(split.picture(index)[0, 0, 0]) for index in range(len(split))]
        assert [grey // 10 for grey in greys] == split.labels.tolist()
        assert [split.source[index][1] for index in range(len(split))] == split.labels.tolist()


def test_labels_of_images_of_several_sizes_are_matched_by_class_name(tmp_path):
    save_numbered(tmp_path, "train", "012")
    save_numbered(tmp_path, "test", "12")
    save_image(tmp_path / "test" / "1" / "large.png", np.full((16, 16, 3), 15, np.uint8))
    test = load_dataset(Config(data="torch/image_folder", data_dir=str(tmp_path))).test
    assert test.pixels is None
    assert [int(np.asarray(image)[0, 0, 0]) // 10 for image, _ in test.source] == [label for _, label in test.source]
    assert test.labels.tolist() == [label for _, label in test.source]


def test_a_class_of_the_test_images_alone_is_refused_by_name(tmp_path):
    save_numbered(tmp_path, "train", "12")
    save_numbered(tmp_path, "test", "123")
    with pytest.raises(DataError, match="test images have class 3, which the training images do not have"):
        load_dataset(Config(data="torch/image_folder", data_dir=str(tmp_path)))


def test_a_folder_without_splits_is_not_its_own_test_set(tmp_path):
    save_numbered(tmp_path, "", "123")
    data = load_dataset(Config(data="torch/image_folder", data_dir=str(tmp_path), test_fraction=0.25))
    assert (len(data.train), len(data.test)) == (9, 3) and not set(data.train.ids) & set(data.test.ids)


def test_a_test_folder_without_training_images_or_that_is_the_training_folder_is_refused(tmp_path):
    save_numbered(tmp_path / "a", "test", "12")
    with pytest.raises(DataError, match="no train folder"):
        load_dataset(Config(data="torch/image_folder", data_dir=str(tmp_path / "a")))
    save_numbered(tmp_path / "b", "train", "12")
    (tmp_path / "b" / "test").symlink_to(tmp_path / "b" / "train")
    with pytest.raises(DataError, match="must not be training images"):
        load_dataset(Config(data="torch/image_folder", data_dir=str(tmp_path / "b")))


def test_a_stream_of_timm_is_read_into_memory_with_its_deep_grey_values_scaled():
    pictures = [Image.fromarray(np.full((8, 8), 100 * index, np.uint16)) for index in range(6)]
    stream = IterableImageDataset("", reader=list(zip(pictures, [0, 1] * 3, strict=True)))
    split = timm_datasets._make_split(stream, "train", Config(grey_range="0,2550"))
    assert split.pixels[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50] and split.labels.tolist() == [0, 1] * 3
    floats = IterableImageDataset("", reader=[(Image.fromarray(np.zeros((8, 8), np.float32)), 0)])
    with pytest.raises(DataError, match=r"train/0: grey values 0 to 0 .* --grey-range"):
        timm_datasets._make_split(floats, "train", Config())
