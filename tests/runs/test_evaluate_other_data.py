"""`evaluate` on images that the model was not trained with: every image counts, and classes are matched by name."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data.dataset import Split
from harness.data.registry import read_digits_table
from harness.runs import inference
from harness.runs.predict import predict
from harness.runs.training_overlap import Overlap, overlap_text
from harness.utils.errors import DataError, UsageError
from tests.support.forked import TINY, harness


def write_digits(folder, classes=range(10), start=0, count=12):
    """Write `count` digits of each class, 32 x 32 pixels, as CLASS/NUMBER.png."""
    values, labels = read_digits_table()
    for label in classes:
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        for index in np.flatnonzero(labels == label)[start : start + count]:
            small = Image.fromarray(np.rint(values[index].reshape(8, 8) * 255 / 16).astype(np.uint8))
            small.resize((32, 32), Image.Resampling.BICUBIC).save(folder / str(label) / f"{index}.png")
    return folder


def evaluate(run, folder, **more):
    settings = {"data": "folder", "data_dir": str(folder), "threads": 1, "gallery": 0, "cam": "none"}
    names = {key: more.pop(key) for key in ("split", "out") if key in more}
    return inference.evaluate(run, {**settings, **more}, **names)


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """A copy of a run on digits, for evaluations in its folder."""
    return Path(shutil.copytree(finished[1], tmp_path_factory.mktemp("evaluated") / "run"))


def facts(evaluation):
    return json.loads((evaluation.folder / "evaluation.json").read_text())


def test_every_image_of_a_folder_without_splits_counts_and_fewer_classes_than_the_models_do(run, tmp_path):
    folder = write_digits(tmp_path / "some digits", classes=(8, 3, 5))
    evaluation = evaluate(run, folder)
    answers = list(predict(run, folder, {"threads": 1}))
    right = [answer.prediction == answer.path.parent.name for answer in answers]
    assert len(right) == 36 == facts(evaluation)["images"]
    assert evaluation.metrics["acc"] == pytest.approx(np.mean(right))
    assert evaluation.split == "test" and evaluation.folder == run / "evaluation-some_digits-test"
    with open(evaluation.folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"]: row["prediction"] for row in rows} == {
        f"{answer.path.parent.name}/{answer.path.name}": answer.prediction for answer in answers
    }
    column = evaluation.per_class.columns.index("images")
    images = {row[0]: row[column] for row in evaluation.per_class.rows}
    assert images["3"] == images["5"] == images["8"] == 12 and sum(images.values()) == 36


@pytest.mark.slow
def test_each_data_set_has_a_folder_of_its_own(run, tmp_path):
    own = inference.evaluate(run, {"threads": 1, "gallery": 0, "cam": "none"})
    before = (own.folder / "predictions.csv").read_bytes()
    first = evaluate(run, write_digits(tmp_path / "a/new", (1, 2)))
    again = evaluate(run, tmp_path / "a/new")
    other = evaluate(run, write_digits(tmp_path / "b/new", (1, 2), start=20))
    folders = [evaluation.folder.name for evaluation in (own, first, again, other)]
    assert folders[:3] == ["evaluation-test", "evaluation-new-test", "evaluation-new-test"]
    assert folders[3].startswith("evaluation-new-test-")
    assert (own.folder / "predictions.csv").read_bytes() == before


def test_a_folder_may_have_test_images_only_and_one_class_only(run, tmp_path):
    write_digits(tmp_path / "data/test", (7,), count=5)
    assert facts(evaluate(run, tmp_path / "data"))["images"] == 5
    write_digits(tmp_path / "data/train", (7,), start=5, count=3)
    assert facts(evaluate(run, tmp_path / "data"))["images"] == 5
    evaluation = evaluate(run, tmp_path / "data", split="train")
    assert (evaluation.split, facts(evaluation)["images"]) == ("train", 3)
    with pytest.raises(UsageError, match="split='val': the data has train, test"):
        evaluate(run, tmp_path / "data", split="val")


@pytest.mark.slow
def test_other_data_is_held_out_only_where_the_settings_say_so(run, tmp_path):
    folder = write_digits(tmp_path / "data")
    assert facts(evaluate(run, folder, test_fraction=0.25))["images"] == 30
    assert facts(evaluate(run, folder))["images"] == 120


def test_classes_that_the_model_does_not_have_are_named(run, tmp_path):
    folder = write_digits(tmp_path / "data", (1, 2))
    (folder / "2").rename(folder / "kitten")
    with pytest.raises(DataError, match="class kitten, which the model does not have"):
        evaluate(run, folder)


@pytest.fixture(scope="module")
def trained_on_a_folder(tmp_path_factory):
    """A run on a folder of 40 digits a class, without splits, with a validation fraction, and that folder."""
    folder = tmp_path_factory.mktemp("folder")
    write_digits(folder / "data", count=40)
    options = [*TINY, "--data", "folder", "--data-dir", folder / "data", "--val-fraction", "0.1", "--name", "r"]
    harness("run", *options, "--batch-size", "32", "--epochs", "1", cwd=folder, check=0)
    return folder / "runs/r", folder / "data"


@pytest.mark.slow
def test_the_data_of_the_run_is_split_as_in_the_run_even_where_it_was_moved(trained_on_a_folder, tmp_path):
    run, data = trained_on_a_folder
    moved = Path(shutil.copytree(data, tmp_path / "elsewhere"))
    for folder in (data, moved):
        evaluation = evaluate(run, folder, out=tmp_path / "out")
        assert (evaluation.folder / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()
        assert facts(evaluation)["images"] == 80
    assert facts(evaluate(run, moved, split="val", out=tmp_path / "out"))["images"] == 32
    assert evaluate(run, moved).folder == run / "evaluation-test"


def test_a_validation_fraction_of_the_run_is_no_obstacle_to_a_folder_with_validation_images(
    trained_on_a_folder, tmp_path
):
    run, _ = trained_on_a_folder
    for split, count in (("train", 6), ("val", 4)):
        write_digits(tmp_path / "data" / split, start=60, count=count)
    evaluation = evaluate(run, tmp_path / "data")
    assert (evaluation.split, facts(evaluation)["images"]) == ("val", 40)


def test_a_run_whose_data_has_changed_is_evaluated_on_all_of_it_with_a_warning(trained_on_a_folder, tmp_path, caplog):
    run, data = trained_on_a_folder
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    extra = write_digits(tmp_path / "new", (1,), start=60, count=1)
    added = data / "1" / next((extra / "1").iterdir()).name
    shutil.copy(next((extra / "1").iterdir()), added)
    try:
        evaluation = inference.evaluate(copied, {"threads": 1, "gallery": 0, "cam": "none"})
        assert (
            f"{data} has changed since the model was trained; all of it is evaluated, training images too"
            in caplog.text
        )
        assert facts(evaluation)["images"] == 401
    finally:
        added.unlink()


def new_run(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_images_that_the_model_was_trained_on_are_counted_and_the_accuracy_on_the_others_is_said(
    trained_on_a_folder, tmp_path, caplog
):
    run, data = trained_on_a_folder
    run = new_run(run, tmp_path)
    with open(run / "predictions.csv", newline="") as file:
        held_out = {row["id"] for row in csv.DictReader(file)}
    inference.evaluate(run, {"threads": 1, "gallery": 0, "cam": "none"}, split="val")
    with open(run / "evaluation-val/predictions.csv", newline="") as file:
        held_out |= {row["id"] for row in csv.DictReader(file)}
    other = write_digits(tmp_path / "other", (3, 5), start=60, count=5)
    known = 0
    for path in sorted((data / "3").iterdir())[:20]:
        Image.open(path).save(other / "5" / f"copy-{path.stem}.bmp")  # under another class too
        known += path.relative_to(data).as_posix() not in held_out
    assert 0 < known < 20
    caplog.clear()
    evaluation = evaluate(run, other)
    assert facts(evaluation)["training_images"] == known
    (message,) = (text for text in caplog.messages if "was trained on" in text)
    assert message.startswith(f"the model was trained on {known} of these 30 test images: 5/copy-")
    with open(evaluation.folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = {np.asarray(Image.open(data / "3" / path.name).convert("RGB")).tobytes() for path in (data / "3").iterdir()
              if path.relative_to(data).as_posix() not in held_out}  # fmt: skip
    new = [
        row["prediction"] == row["label"]
        for row in rows
        if np.asarray(Image.open(other / row["id"]).convert("RGB")).tobytes() not in pixels
    ]
    assert len(new) == 30 - known
    assert message.endswith(f"; accuracy on the other {len(new)}: {100 * np.mean(new):.2f} %")


def test_other_data_of_training_images_alone_says_nothing_about_new_images(trained_on_a_folder, tmp_path, caplog):
    run, data = trained_on_a_folder
    run = new_run(run, tmp_path)
    inference.evaluate(run, {"threads": 1, "gallery": 0, "cam": "none"}, split="train")
    with open(run / "evaluation-train/predictions.csv", newline="") as file:
        names = [row["id"] for row in csv.DictReader(file)][:6]
    for name in names:
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / name, tmp_path / "other" / name)
    caplog.clear()
    assert facts(evaluate(run, tmp_path / "other"))["training_images"] == 6
    (message,) = (text for text in caplog.messages if "was trained on" in text)
    assert "6 of these 6 test images" in message
    assert message.endswith("and 1 more; the metrics say nothing about new images")


@pytest.mark.parametrize("why", ["other images", "moved", "changed"])
def test_images_are_no_training_images_where_none_is_the_same_or_the_runs_are_gone(
    trained_on_a_folder, tmp_path, caplog, why
):
    run, data = trained_on_a_folder
    run, other = new_run(run, tmp_path), write_digits(tmp_path / "other", (3,), start=60, count=5)
    added = data / "1" / "added.png"
    try:
        if why == "moved":
            data.rename(data.with_name("moved"))
        elif why == "changed":
            shutil.copy(other / "3" / next(iter(sorted((other / "3").iterdir()))).name, added)
        evaluation = evaluate(run, other)
    finally:
        added.unlink(missing_ok=True)
        if why == "moved":
            data.with_name("moved").rename(data)
    assert facts(evaluation)["training_images"] == (0 if why == "other images" else None)
    reasons = {"other images": "", "moved": "the run's data cannot be read (", "changed": f"{data} has changed since"}
    assert evaluation.overlap_unknown.startswith(reasons[why]) and bool(evaluation.overlap_unknown) == bool(
        reasons[why]
    )
    assert "was trained on" not in caplog.text


def test_with_several_labels_exact_matches_on_the_others_are_said():
    labels = np.eye(4, 3, dtype=np.uint8)
    images = Split("test", labels, ["a", "b", "c", "d"], None, None)
    assert overlap_text(Overlap([(1, "x"), (2, "y")]), images, np.array([True, False, False, False])) == (
        "the model was trained on 2 of these 4 test images: b = x, c = y; exact match on the other 2: 50.00 %"
    )


def test_the_command_names_training_images_or_why_they_were_not_looked_up(trained_on_a_folder, tmp_path):
    run, data = trained_on_a_folder
    run, other = new_run(run, tmp_path), write_digits(tmp_path / "other", (3,), start=60, count=2)
    shutil.copytree(data / "3", other / "3", dirs_exist_ok=True)
    words = ["evaluate", run, "--data-dir", other, "--gallery", 0, "-o", tmp_path / "out"]
    found = harness(*words, cwd=tmp_path, check=0)
    assert "the model was trained on 2" in found.stderr and "of these 42 test images: 3/" in found.stderr
    assert "not looked up" not in found.stderr
    data.rename(data.with_name("moved"))
    try:
        missed = harness(*words, cwd=tmp_path, check=0)
    finally:
        data.with_name("moved").rename(data)
    line = (
        "whether the model was trained on some of these images was not looked up: "
        f"the run's data cannot be read (there is no folder {data})"
    )
    assert line in missed.stderr.splitlines() and "was trained on 2" not in missed.stderr
