"""Models from a folder: the order of their classes, and runs that must not need the folder."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_transform, resolve_data_config
from timm.models import save_for_hf

import harness
from harness.config.settings import Config
from harness.models import factory
from harness.models.pretrained import architecture_of, label_names, match_classes
from harness.utils.checksums import write_checked_json
from harness.utils.errors import CheckpointError, UsageError
from tests.support.commands import command
from tests.support.image_folders import make_class_folders

NUMBERS = [str(number) for number in range(1, 12)]  # in the natural order of timm; lexically 1, 10, 11, 2, ...


def save(folder, labels, name="test_resnet", **options):
    """Save a timm model with random weights and named classes; return it."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=len(labels), **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_for_hf(model, str(folder), model_config={"label_names": labels}, safe_serialization=True)
    return model.eval()


def load(folder, classes, outputs=None):
    config = Config(model=f"local-dir:{folder}", pretrained=True)
    model = factory.create_model(config, outputs or len(classes))
    match_classes(model, classes)
    return model.eval()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout", "levit_128s", "resnetv2_18"])
def test_the_outputs_of_a_pretrained_model_are_put_into_the_order_of_the_classes(tmp_path, name):
    original, classes = save(tmp_path, NUMBERS, name), sorted(NUMBERS)
    images = torch.randn(2, *original.pretrained_cfg["input_size"])
    with torch.no_grad():
        expected, logits = original(images), load(tmp_path, classes)(images)
    assert classes != NUMBERS
    for index, label in enumerate(classes):
        torch.testing.assert_close(logits[:, index], expected[:, NUMBERS.index(label)])


def test_names_given_by_index_are_matched_too(tmp_path):
    original = save(tmp_path, {str(index): name for index, name in enumerate("cba")})
    images = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(load(tmp_path, "abc")(images), original(images).flip(1))


def test_a_pretrained_model_of_other_classes_gets_a_new_last_layer(tmp_path, caplog):
    original = save(tmp_path, ["cat", "dog"])
    model = load(tmp_path, ["ship", "train"])
    assert not torch.equal(model.get_classifier().weight, original.get_classifier().weight)
    torch.testing.assert_close(model.conv1[0].weight, original.conv1[0].weight)
    assert "has other classes (cat, dog) than the data (ship, train)" in caplog.text


def test_outputs_beyond_the_classes_of_the_data_come_last_and_the_others_are_matched_by_name(tmp_path):
    """As with `--classes 4` on data of three classes."""
    original, images = save(tmp_path, list("dcba")), torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        logits, expected = load(tmp_path, list("abc"), 4)(images), original(images)
    torch.testing.assert_close(logits, expected[:, [3, 2, 1, 0]])


@pytest.mark.parametrize(("labels", "classes"), [("dcba", "abx"), ("aabc", "abc")])
def test_outputs_that_cannot_be_matched_by_name_are_never_kept_silently(tmp_path, caplog, labels, classes):
    original = save(tmp_path, list(labels))
    model = load(tmp_path, list(classes), 4)
    assert model.get_classifier().weight.shape == original.get_classifier().weight.shape
    assert not torch.equal(model.get_classifier().weight, original.get_classifier().weight)
    assert "its last layer is initialised anew" in caplog.text


def test_a_last_layer_that_cannot_be_rearranged_is_refused():
    model = torch.nn.Linear(2, 2)
    model.pretrained_cfg = {"label_names": ["b", "a"], "classifier": "missing"}
    with pytest.raises(UsageError, match="in another order"):
        match_classes(model, ["a", "b"])


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run of a model from a folder that is gone since, on folders 1 to 11 of rectangular images."""
    folder = tmp_path_factory.mktemp("a folder's")
    make_class_folders(folder / "data", classes=NUMBERS, count=3, size=(40, 60))
    save(folder / "X", NUMBERS)
    settings = ["--data", "folder", "--data-dir", "data", "--model", "local-dir:X", "--pretrained", "--epochs", 1]
    settings += ["--batch-size", 11, "--image-size", 32, "--resize", "squash", "--precision", "fp32", "--gallery", 0]
    settings += [
        "--peak-epoch",
        1,
        "--wandb",
        "disabled",
        "--name",
        "r",
        "--workers",
        0,
        "--threads",
        1,
        "--lr-max",
        2e-3,
    ]
    command("run", *settings, cwd=folder, check=0)
    shutil.rmtree(folder / "X")
    return folder


def test_a_run_of_a_model_from_a_folder_does_not_need_the_folder(finished_run):
    evaluated = harness.evaluate(finished_run / "runs/r", {"data_dir": str(finished_run / "data"), "workers": 0})
    result = json.loads((finished_run / "runs/r/summary.json").read_text())["result"]
    assert evaluated.metrics["acc"] == pytest.approx(result["test/acc"])
    facts = finished_run / "runs/r/checkpoints/model.json"
    content = json.loads(facts.read_text())
    (finished_run / "runs/r/SHA256SUMS").unlink()  # as if signed anew
    assert content["architecture"] == {"name": "test_resnet", "args": {"global_pool": "avg"}}
    harness.load_model(finished_run / "runs/r/checkpoints/last.pt")
    for architecture in ({"name": "local-dir:X"}, {"name": "hf-hub:x/y", "args": {}}, {"name": 3, "args": {}}, [1]):
        write_checked_json(facts, {**content, "architecture": architecture})
        with pytest.raises(CheckpointError, match="no usable architecture"):
            harness.load_model(finished_run / "runs/r")
    write_checked_json(facts, {key: value for key, value in content.items() if key != "architecture"})
    harness.load_model(finished_run / "runs/r")  # a run of an earlier version has it for timm
    write_checked_json(facts, content)


@pytest.mark.slow  # imports timm in a new process
def test_an_export_is_loaded_by_the_command_that_it_prints(finished_run):
    done = command("export", "runs/r", "--timm", "it's my model", cwd=finished_run, check=0)
    line = done.out.splitlines()[1].replace("python", sys.executable, 1)
    probe = line[:-1] + "; print(model.num_classes)" + line[-1]
    printed = subprocess.run(probe, shell=True, cwd="/", capture_output=True, text=True)
    assert printed.stdout == "11\n", printed.stderr


# timm leaves the files of its data set open.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_timm_agrees_with_the_harness_on_every_image_of_an_export(finished_run):
    """As timm's validate.py computes it: its data set with the class map, its transform, its model."""
    folder = finished_run / "export"
    command("export", "runs/r", "--timm", "export", cwd=finished_run, check=0)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = resolve_data_config({}, model=model, use_test_size=True)
    assert (config["crop_mode"], config["crop_pct"], config["input_size"]) == ("squash", 1.0, (3, 32, 32))
    transform = create_transform(**config, is_training=False)
    dataset = create_dataset("", root=str(finished_run / "data/test"), class_map=str(folder / "class_map.txt"))
    rows = np.genfromtxt(finished_run / "runs/r/predictions.csv", delimiter=",", names=True, dtype=None, encoding=None)
    harness_rows = {row["id"].split("/", 1)[1]: (str(row["label"]), str(row["prediction"])) for row in rows}
    names = model.pretrained_cfg["label_names"]
    assert names == sorted(NUMBERS) and len(dataset) == len(rows) == 33
    for index in range(len(dataset)):
        image, label = dataset[index]
        with torch.no_grad():
            prediction = int(model(transform(image)[None]).argmax())
        assert harness_rows[dataset.filename(index)] == (names[label], names[prediction])
    assert isinstance(image, Image.Image)


def test_a_model_from_a_folder_is_described_by_its_architecture_and_one_without_it_by_nothing(tmp_path):
    save(tmp_path, ["cat", "dog"])
    name = f"local-dir:{tmp_path}"
    model = timm.create_model(name, num_classes=5, drop_rate=0.5)
    assert architecture_of(model, name) == {"name": "test_resnet", "args": {"global_pool": "avg", "drop_rate": 0.5}}
    assert architecture_of(model, "test_resnet") is None
    del model.pretrained_cfg["architecture"]
    assert architecture_of(model, name) is None


@pytest.mark.parametrize("names", [{"0": "a", "2": "c"}, {"x": "a"}, {"0": "a", "1": None}, 3, "ab"])
def test_names_of_outputs_with_gaps_are_none(names):
    assert label_names({"label_names": {"1": "b", "0": "a"}}) == ["a", "b"]
    assert label_names({"label_names": names}) == ([] if names != {"0": "a", "1": None} else ["a", "None"])
