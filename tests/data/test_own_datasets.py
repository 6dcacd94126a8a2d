"""Data sets of a user's own: objects given from Python, and those that a plug-in registers."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

import harness
from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.data import own_datasets
from harness.data.own_datasets import item_picture, named_data, register_dataset
from harness.data.registry import load_dataset
from harness.utils import registry
from harness.utils.errors import DataError, UsageError
from tests.support.commands import command
from tests.support.image_folders import make_class_folders, random_image, refusal

SMALL = {
    "model_args": "width=4", "threads": 1, "precision": "fp32", "wandb": "disabled", "epochs": 1, "batch_size": 16, "gallery": 2, "cam": "none", "device": "cpu",
}  # fmt: skip


class Pictures:
    """A data set of random images; items are what `make` returns for (pixels, label)."""

    classes = ("cat", "dog")

    def __init__(self, count=20, make=lambda pixels, label: (pixels, label), size=(8, 8)):
        self.pixels = [random_image(size) for _ in range(count)]
        self.make = make

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        return self.make(self.pixels[index], index % 2)


def load(data, **settings):
    with named_data(data) as name:
        return load_dataset(Config(data=name, **settings))


FORMS = {
    "array": lambda pixels, label: (pixels, label),
    "PIL": lambda pixels, label: (Image.fromarray(pixels), label),
    "tensor": lambda pixels, label: (torch.from_numpy(pixels).permute(2, 0, 1), torch.tensor(label)),
    "floats": lambda pixels, label: (torch.from_numpy(pixels).permute(2, 0, 1) / 255, label),
    "more values": lambda pixels, label: [pixels, np.int64(label), "note"],
    "mapping": lambda pixels, label: {"image": Image.fromarray(pixels), "label": label, "id": 3},
}


@pytest.mark.parametrize("form", FORMS)
def test_images_and_labels_of_every_usual_form_are_those_of_the_items(form):
    train, test = Pictures(make=FORMS[form]), Pictures(6, FORMS[form])
    data = load({"train": train, "test": test})
    np.testing.assert_array_equal(data.train.pixels, np.stack(train.pixels))
    np.testing.assert_array_equal(data.test.pixels, np.stack(test.pixels))
    assert data.train.labels.tolist() == [0, 1] * 10 and data.classes == ("cat", "dog")
    assert data.name == "python/Pictures" and data.test.ids[3] == "test/3"
    assert data.fingerprint == load({"train": train, "test": test}).fingerprint
    assert data.fingerprint != load({"train": test, "test": train}).fingerprint


def test_a_range_test_of_data_from_python_writes_no_sweep(tmp_path):
    given = {**SMALL, "data": Pictures(32), "output": tmp_path / "runs"}
    with pytest.raises(UsageError, match=r"trials of a sweep cannot load python/Pictures.*; register it in a plug-in"):
        harness.find_lr(**given, write_sweep=tmp_path / "sweep.yaml")
    assert not list(tmp_path.iterdir())  # refused before the test runs


def test_a_single_data_set_is_divided_as_a_folder_is():
    data = load(Pictures())
    assert (len(data.train), len(data.test)) == (16, 4)
    assert np.bincount(data.test.labels).tolist() == [2, 2]


def test_images_of_several_sizes_are_read_when_they_are_used():
    pictures = Pictures()
    pictures.pixels[3] = random_image((12, 9))
    data = load({"train": pictures, "test": Pictures(4)})
    assert data.train.pixels is None
    for index in range(20):
        np.testing.assert_array_equal(data.train.picture(index), pictures.pixels[index])


def test_grey_images_of_8_and_16_bits_are_read_as_those_of_files():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for image in (grey, grey[..., None], torch.from_numpy(grey)[None]):
        np.testing.assert_array_equal(np.asarray(item_picture(image, "x")), np.repeat(grey[..., None], 3, 2))
    deep = grey.astype(np.uint16) * 1000
    np.testing.assert_array_equal(np.asarray(item_picture(deep, "x"))[..., 0], (deep.astype(int) + 128) // 257)
    np.testing.assert_array_equal(np.asarray(item_picture(deep, "x", (0, 63_000)))[7, 7], [255] * 3)


def test_labels_are_taken_from_a_list_only_where_the_items_agree_with_it():
    for offset in (0, 1):
        pictures = Pictures()
        pictures.targets = [(index + offset) % 2 for index in range(20)]
        assert load({"train": pictures, "test": Pictures(4)}).train.labels.tolist() == [0, 1] * 10


def test_a_subset_and_a_tensor_dataset_of_torch_are_read():
    pictures = Pictures()
    data = load(
        {"train": Subset(pictures, range(10)), "val": Subset(pictures, [10, 11]), "test": Subset(pictures, [12, 13])}
    )
    np.testing.assert_array_equal(data.val.pixels, np.stack(pictures.pixels[10:12]))
    assert data.classes == ("cat", "dog") and data.name == "python/Pictures"
    tensors = TensorDataset(torch.zeros(6, 3, 8, 8), torch.arange(6) % 3)
    assert load(tensors, test_fraction=0.5).classes == ("0", "1", "2")


def test_the_image_folder_of_torchvision_gives_the_images_of_the_folder(tmp_path):
    from torchvision.datasets import ImageFolder

    make_class_folders(tmp_path, count=4)
    data = load({"train": ImageFolder(tmp_path / "train"), "test": ImageFolder(tmp_path / "test")})
    expected = load_dataset(Config(data="folder", data_dir=str(tmp_path)))
    np.testing.assert_array_equal(data.train.pixels, expected.train.pixels)
    np.testing.assert_array_equal(data.test.labels, expected.test.labels)
    assert data.classes == expected.classes


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (Pictures(make=lambda pixels, label: (torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)), label)), DataError, "return images without normalisation"),
        (Pictures(make=lambda pixels, label: (np.random.default_rng().integers(0, 255, (8, 8, 3), np.uint8), label)), UsageError, "another image each time"),
        (Pictures(make=lambda pixels, label: (pixels, -1)), UsageError, "label '-1'; need a whole number from 0 on"),
        (Pictures(make=lambda pixels, label: (pixels, "cat")), UsageError, "label 'cat'"),
        (Pictures(make=lambda pixels, label: (pixels, label + 5)), DataError, "the train labels are 5 to 6, but there are 2 classes"),
        (Pictures(make=lambda pixels, label: (pixels[..., :2], label)), DataError, "the shape [8, 8, 2]"),
        (Pictures(make=lambda pixels, label: ("cat.png", label)), DataError, "is a str"),
        (Pictures(make=lambda pixels, label: pixels), UsageError, "need (image, label)"),
        (Pictures(make=lambda pixels, label: {"picture": pixels}), UsageError, "has picture; need an image and a label"),
        (Pictures(0), DataError, "the train data set holds no images"),
        ({"train": Pictures(), "test": Pictures(0)}, DataError, "the test data set holds no images"),
        (iter([]), UsageError, "without a length"),
        ({"test": Pictures()}, UsageError, "need train"),
        ({"train": Pictures(), "more": Pictures()}, UsageError, "'more' is none of train, val and test"),
    ],
)  # fmt: skip
def test_data_sets_that_make_no_sense_are_refused_in_one_line(data, error, message):
    assert message in refusal(error, data, load)


def test_a_run_on_objects_is_evaluated_reported_and_not_resumed_from_the_command_line(tmp_path):
    data = {"train": Pictures(32), "test": Pictures(8)}
    config = make_config({**SMALL, "output": str(tmp_path / "runs"), "image_size": 16})
    result = harness.run(config, data=data)
    config_file = (result.folder / "config.yaml").read_text()
    assert "data: python/Pictures" in config_file and result.folder.name.startswith("custom-resnet-Pictures-s0-")
    assert json.loads((result.folder / "summary.json").read_text())["dataset"]["classes"] == ["cat", "dog"]
    assert not own_datasets._given  # nothing is held after the run
    evaluation = harness.evaluate(result.folder, data=data)
    assert evaluation.folder.name == "evaluation-test"  # recognised as the run's own
    assert evaluation.metrics["acc"] == pytest.approx(result.summary["result"]["test/acc"])
    other = harness.evaluate(result.folder, data={"test": Pictures(6)})
    assert other.folder.name == "evaluation-Pictures-test"
    assert harness.report(result.folder).is_file()
    for call in (  # what the command line calls
        lambda: harness.evaluate(result.folder),
        lambda: harness.run(make_config({"resume": str(result.folder)})),
        lambda: harness.run(make_config({"resume": "never"}, recipe=str(result.folder / "config.yaml"))),
    ):
        with pytest.raises(
            UsageError, match="data=python/Pictures was an object that a Python program gave to harness"
        ):
            call()


def test_run_takes_settings_or_data_sets_as_a_mapping(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = harness.run({**SMALL, "epochs": 0}, data=Pictures(32))
    assert result.folder.parent.name == "runs"
    with pytest.raises(UsageError, match="there is no setting 'epoch'"):
        harness.run({"epoch": 1})


PLUGIN = """
import numpy as np
from harness.data import register_dataset

class Squares:
    classes = ("dark", "bright")
    def __init__(self, folder): self.values = np.load(folder / "squares.npy")
    def __len__(self): return len(self.values)
    def __getitem__(self, index): return self.values[index], index % 2

@register_dataset(name="small-squares")
def squares(folder):
    return Squares(folder)
"""


@pytest.mark.slow
def test_a_data_set_that_a_plug_in_registers_is_trained_on_and_evaluated_by_its_name(tmp_path):
    (tmp_path / "my_squares.py").write_text(PLUGIN)
    draw = np.random.default_rng(0)
    values = draw.integers(0, 100, (40, 16, 16, 3)) + 100 * (np.arange(40) % 2)[:, None, None, None]
    np.save(tmp_path / "squares.npy", values.astype(np.uint8))
    options = [word for key, value in SMALL.items() for word in (f"--{key}", value)]
    named = ["--data", "small-squares", "--data-dir", ".", "--plugin", "my_squares"]
    command("run", *named, *options, "--name", "mine", cwd=tmp_path, check=0)
    summary = json.loads((tmp_path / "runs/mine/summary.json").read_text())
    assert summary["dataset"]["images"] == {"train": 32, "test": 8} and summary["dataset"]["name"] == "small-squares"
    assert "bright" in command("evaluate", "runs/mine", "--plugin", "my_squares", cwd=tmp_path, check=0).stdout
    assert "add --plugin my_squares" in command("evaluate", "runs/mine", cwd=tmp_path, check=2).stderr
    message = command("run", "--data", "small-square", cwd=tmp_path, check=2).stderr
    assert "there is no data set 'small-square'" in message and "--plugin" in message


def test_a_plug_in_whose_function_fails_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})

    @register_dataset
    def broken(folder):
        return open(folder / "missing.npy")

    with pytest.raises(DataError, match=r"data=broken: the plug-in's function raised FileNotFoundError: "):
        load_dataset(Config(data="broken", data_dir=str(tmp_path)))
    for name in ("digits", "folder", "a/b", "a b"):
        with pytest.raises(UsageError, match="cannot be registered"):
            register_dataset(name=name)(broken)


class Hugging(Pictures):
    """A data set with `features`, as those of Hugging Face are; a column is a list."""

    def __init__(self, count=20):
        super().__init__(count, make=lambda pixels, label: {"image": pixels, "label": label})
        self.features = {"image": None, "label": SimpleNamespace(names=["zebra", "ant"])}

    def __getitem__(self, index):
        return [position % 2 for position in range(len(self))] if index == "label" else super().__getitem__(index)


def test_columns_and_class_names_of_hugging_faces_features_are_used():
    data = load({"train": Hugging(), "test": Hugging(4)})
    assert data.classes == ("zebra", "ant") and data.train.labels.tolist() == [0, 1] * 10


def test_a_subset_has_the_labels_that_its_data_set_lists():
    pictures = Pictures()
    pictures.targets = [index % 2 for index in range(20)]
    indices = [7, 2, 4, 11, 3]
    train = load({"train": Subset(pictures, indices), "test": Pictures(4)}).train
    assert train.labels.tolist() == [index % 2 for index in indices]
    np.testing.assert_array_equal(train.pixels, np.stack([pictures.pixels[index] for index in indices]))


def test_an_integer_image_of_another_type_or_a_deep_one_without_a_range_is_refused():
    for image, message in (
        (random_image().astype(np.int64), "x is of int64; need uint8, floats 0..1, or uint16 for grey images"),
        (Image.fromarray(np.array([[0.5, 300.0]], np.float32)), "x: grey values"),
    ):
        with pytest.raises(DataError, match=message):
            item_picture(image, "x")


def test_the_own_error_of_harness_in_a_plug_ins_function_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})

    @register_dataset
    def picky(folder):
        raise DataError("give another folder")

    with pytest.raises(DataError, match=r"^give another folder$"):
        load_dataset(Config(data="picky", data_dir=str(tmp_path)))


def test_a_mapping_of_splits_in_place_of_settings_is_the_data():
    pictures = {"train": Pictures(), "test": Pictures(4)}
    with own_datasets.config_of_call(pictures, {"epochs": 1}) as config:
        assert (config.data, config.epochs) == ("python/Pictures", 1)
        data = load_dataset(config)
    np.testing.assert_array_equal(data.train.pixels, np.stack(pictures["train"].pixels))
    with pytest.raises(UsageError, match="was an object that a Python program gave to harness"):
        load_dataset(config)
