"""Data sets by name."""

import hashlib
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data.dataset import ImageDataset, IterableImageDataset
from torchvision import datasets

from harness.config.settings import Config
from harness.data import timm_datasets
from harness.data.registry import load_dataset, read_digits_table
from harness.utils.errors import DataError, UsageError
from tests.support.image_folders import load_folder, make_class_folders, random_image, save_image


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


def test_a_stream_of_several_sizes_keeps_its_images_and_one_without_images_or_too_long_is_refused(monkeypatch):
    arrays = [random_image((8, 8 + index)) for index in range(3)]
    stream = IterableImageDataset("", reader=[(Image.fromarray(pixels), index) for index, pixels in enumerate(arrays)])
    split = timm_datasets._make_split(stream, "test", Config())
    assert split.pixels is None and split.labels.tolist() == [0, 1, 2] and split.ids[2] == "test/2"
    for index, pixels in enumerate(arrays):
        np.testing.assert_array_equal(split.picture(index), pixels)
    with pytest.raises(DataError, match="train holds no images"):
        timm_datasets._make_split(IterableImageDataset("", reader=[]), "train", Config())
    monkeypatch.setattr(timm_datasets, "MAX_PIXEL_BYTES", arrays[0].nbytes)
    with pytest.raises(DataError, match=r"train is a stream of over .* GiB of pixels; export it to class folders"):
        timm_datasets._make_split(stream, "train", Config())


class Files:
    """A reader of files as timm's of Hugging Face's `datasets` is: it lists its labels without decoding an image."""

    def __init__(self, paths, labels):
        self.paths, self.labels = paths, labels

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return open(self.paths[index], "rb"), self.labels[index]

    def iter_targets(self):
        return iter(self.labels)


def test_files_of_a_reader_of_timm_are_decoded_when_they_are_accessed_and_a_broken_one_is_named(tmp_path):
    """timm's own data set gives the next image in place of one that cannot be read."""
    paths = [save_image(tmp_path / f"{index}.png", random_image((8, 8 + index))) for index in range(4)]
    split = timm_datasets._make_split(ImageDataset("", reader=Files(paths, [1, 0, 1, 0])), "train", Config())
    assert split.pixels is None and split.labels.tolist() == [1, 0, 1, 0] and split.ids[3] == "train/3"
    for index, path in enumerate(paths):
        np.testing.assert_array_equal(split.picture(index), np.asarray(Image.open(path)))
        assert split.source[index][1] == split.labels[index]
    paths[3].write_bytes(b"no image")
    with pytest.raises(DataError, match="train/3: "):
        split.picture(3)


class Items:
    """A data set of (image, label) as torchvision's are, without a list of its labels."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_labels_are_read_from_the_items_where_there_is_no_list_of_them():
    pictures = [(Image.fromarray(random_image()), label) for label in (2, 0, 1)]
    split = timm_datasets._make_split(Items(pictures), "train", Config())
    assert split.labels.tolist() == [2, 0, 1] and split.labels.dtype == np.int64
    np.testing.assert_array_equal(split.pixels, np.stack([np.asarray(image) for image, _ in pictures]))
    for wrong, shown in (([0.5, 1.0], r"float64 of shape \[2\]"), ([[1, 2], [3, 4]], r"int64 of shape \[2, 2\]")):
        with pytest.raises(DataError, match=f"the labels are {shown}; need one integer per image"):
            timm_datasets._make_split(Items([(None, label) for label in wrong]), "train", Config())
    with pytest.raises(DataError, match="the data set holds no images"):
        timm_datasets._make_split(Items([]), "train", Config())


def test_an_image_of_another_size_that_the_sample_has_not_shown_leaves_all_on_the_disk():
    pictures = [(Image.fromarray(random_image()), 0) for _ in range(100)]
    pictures[1] = (Image.fromarray(random_image((9, 8))), 0)
    split = timm_datasets._make_split(Items(pictures), "train", Config())
    assert split.pixels is None and split.picture(1).shape == (9, 8, 3)


def test_inaturalist_has_its_categories_as_classes_and_its_validation_images_as_test_images(tmp_path):
    names = ["00000_Animalia_A_B_C_D_E_zebra", "00001_Animalia_A_B_C_D_E_ant"]
    for split, count in (("train_mini", 3), ("2021_train_mini", 3), ("2021_train", 3), ("2021_valid", 2)):
        for name in names:
            for index in range(count):
                save_image(tmp_path / split / name / f"{index}.png")
    config = Config(data="torch/inaturalist", data_dir=str(tmp_path), download=False)
    data = load_dataset(config)
    assert data.classes == tuple(names) and len(data.train) == 6
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    expected = [
        np.asarray(Image.open(tmp_path / "2021_valid" / name / f"{index}.png")) for name in names for index in (0, 1)
    ]
    np.testing.assert_array_equal(data.test.pixels, np.stack(expected))


def test_a_package_that_reads_a_data_set_and_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"data=hfds/user/name needs a package that is not installed: .*datasets"):
        load_dataset(Config(data="hfds/user/name", data_dir=str(tmp_path)))


def test_validation_images_beside_test_images_are_said_to_be_unused_by_torchvisions_image_folder(tmp_path, caplog):
    for split in ("train", "val", "test"):
        save_numbered(tmp_path, split, "12")
    data = load_dataset(Config(data="torch/image_folder", data_dir=str(tmp_path)))
    assert {int(pixels[0, 0, 1]) for pixels in data.test.pixels} == {len("test")}
    assert "val is not used with --data torch/image_folder; set --data folder" in caplog.messages


def test_cifar_is_read_as_torchvision_reads_it_and_a_failed_download_names_the_remedy(tmp_path, monkeypatch):
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    pixels = {
        name: np.random.default_rng(len(name)).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
        for name in ("data_batch_1", "test_batch")
    }
    labels = [index % 2 for index in range(20)]
    contents = {name: {"data": each.reshape(20, -1), "labels": labels} for name, each in pixels.items()}
    digests = {}
    for name, content in {**contents, "batches.meta": {"label_names": ["ship", "cat"]}}.items():
        (folder / name).write_bytes(pickle.dumps(content))
        digests[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", digests["data_batch_1"]]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", digests["test_batch"]]])
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": digests["batches.meta"]}
    )
    data = load_dataset(Config(data="cifar10", data_dir=str(tmp_path), download=False))
    assert data.classes == ("ship", "cat") and data.test.ids[7] == "test/7" and data.val is None
    for split, name in ((data.train, "data_batch_1"), (data.test, "test_batch")):
        np.testing.assert_array_equal(split.pixels, pixels[name].transpose(0, 2, 3, 1))
        assert split.labels.tolist() == labels

    (folder / "test_batch").write_bytes(b"another file")  # as an interrupted download leaves it
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(DataError, match=r"cannot be downloaded \(.*\); put http://127\.0\.0\.1:9/cifar\.tar\.gz there"):
        load_dataset(Config(data="cifar10", data_dir=str(tmp_path), download=True))
