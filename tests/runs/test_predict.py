"""`harness predict`: probabilities of unlabelled pictures, equal to those of the run's own evaluation, and their files."""

import csv
import io
import json
import logging
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import harness
from harness.evaluation.trained_model import load_trained_model
from harness.runs.inference import explain
from harness.runs.predict import Prediction, predict, write_predictions
from harness.training.checkpoint import load_weights, save_weights
from harness.utils.errors import DataError, DivergedError
from tests.support.commands import QUICK, command


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 3 classes of noise of other sizes than the model sees, with awkward names, and a run trained on it."""
    root = tmp_path_factory.mktemp("predict")
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for level, name in enumerate(("=dark", "grün", "bright")):
            folder = root / "pictures" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(80 * level, 80 * level + 90, (20 + index, 24, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{'=+é'[index % 3]}{index:02}.png")
    options = ["--data", "folder", "--data-dir", root / "pictures", "--image-size", 16, "--batch-size", 12]
    command(
        "run", *QUICK, *options, "--epochs", 2, "--peak-epoch", 1, "--gallery", 0, "--wandb", "disabled", "--name", "noise",
        cwd=root, check=0,
    )  # fmt: skip
    return root


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_probabilities_are_those_of_the_runs_own_evaluation(pictures):
    run, folder = pictures / "runs/noise", pictures / "pictures/test"
    evaluated = read_csv((run / "predictions.csv").read_text(encoding="utf-8"))
    predicted = list(predict(run, folder, {"eval_batch_size": 4}))
    assert len(predicted) == len(evaluated) == 15
    by_name = {f"test/{prediction.path.relative_to(folder)}": prediction for prediction in predicted}
    for row in evaluated:
        prediction = by_name[row["id"].removeprefix("'")]
        assert prediction.prediction == row["prediction"].removeprefix("'")
        assert prediction.confidence == pytest.approx(float(row["confidence"]), rel=1e-4)
        truth = prediction.classes.index(row["label"].removeprefix("'"))
        assert -np.log(prediction.probabilities[truth]) == pytest.approx(float(row["loss"]), rel=1e-3, abs=1e-5)


def test_the_files_of_a_folder_are_named_with_their_folders(pictures, tmp_path):
    folder, out = pictures / "pictures/test", tmp_path / "answers.csv"
    write_predictions(predict(pictures / "runs/noise", folder), out, ".csv")
    places = {str(file.relative_to(folder)) for file in folder.rglob("*.png")}
    rows = read_csv(out.read_text(encoding="utf-8"))
    assert {row["file"].removeprefix(f"{folder}/") for row in rows} == places and len(
        {place.split("/")[0] for place in places}
    ) == 3


def test_pictures_come_in_the_order_they_are_given_and_folders_sorted(pictures):
    folder = pictures / "pictures/test"
    last = sorted((folder / "grün").iterdir())[-1]
    predicted = [
        prediction.path for prediction in predict(pictures / "runs/noise", [last, folder], {"eval_batch_size": 2})
    ]
    assert predicted == [last, *sorted(folder.rglob("*.png"))]


def test_batches_do_not_change_the_probabilities(pictures):
    run, folder = pictures / "runs/noise", pictures / "pictures/test"
    [alone, together] = [
        np.stack([prediction.probabilities for prediction in predict(run, folder, {"eval_batch_size": size})])
        for size in (1, 1000)
    ]
    assert alone == pytest.approx(together, rel=1e-5)
    assert together.sum(1) == pytest.approx(1, abs=1e-5)


def test_csv_has_a_column_a_class_and_guards_formulas(pictures, tmp_path):
    shutil.copytree(pictures / "pictures/test/=dark", tmp_path / "in")
    done = command(
        "predict", pictures / "runs/noise", *sorted((tmp_path / "in").iterdir()), cwd=tmp_path / "in", check=0
    )
    header, *rows = list(csv.reader(io.StringIO(done.stdout)))
    classes = load_trained_model(pictures / "runs/noise").classes
    assert header == ["file", "prediction", "confidence", *("'=dark" if name == "=dark" else name for name in classes)]
    assert len(rows) == 5
    for row in rows:
        shares = [float(cell) for cell in row[3:]]
        assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert float(row[2]) == max(shares)
        assert row[1] == header[3 + int(np.argmax(shares))]
    assert "5 images predicted" in done.stderr
    done = command("predict", pictures / "runs/noise", "=00.png", cwd=tmp_path / "in", check=0)
    assert done.stdout.splitlines()[1].startswith("'=00.png,")


def test_jsonl_is_an_object_a_line_and_top_keeps_the_most_probable(pictures, tmp_path):
    run, folder = pictures / "runs/noise", pictures / "pictures/test"
    command("predict", run, folder, "--out", tmp_path / "new/all.jsonl", cwd=tmp_path, check=0)
    command("predict", run, folder, "--out", tmp_path / "top.csv", "--top", 2, cwd=tmp_path, check=0)
    lines = (tmp_path / "new/all.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["file"] for record in records] == [str(path) for path in sorted(folder.rglob("*.png"))]
    assert any("é" in line for line in lines)
    rows = read_csv((tmp_path / "top.csv").read_text(encoding="utf-8"))
    assert list(rows[0]) == ["file", "prediction", "confidence", "class_1", "probability_1", "class_2", "probability_2"]
    for record, row in zip(records, rows, strict=True):
        best, second = sorted(record["probabilities"].values(), reverse=True)[:2]
        assert record["confidence"] == best == float(row["probability_1"])
        assert record["probabilities"][record["prediction"]] == best
        assert float(row["probability_2"]) == second


def test_the_most_probable_class_alone_is_written_once(pictures, tmp_path):
    run, folder = pictures / "runs/noise", pictures / "pictures/test/bright"
    with open(tmp_path / "one.csv", "wb") as file:
        write_predictions(predict(run, folder), file, ".csv", 1)
    rows = read_csv((tmp_path / "one.csv").read_text(encoding="utf-8"))
    assert list(rows[0]) == ["file", "prediction", "confidence"] and len(rows) == 5


@pytest.mark.parametrize("name", ["predict", "explain"])
def test_a_picture_that_is_skipped_as_in_the_training_of_the_run_is_said_to_be(pictures, tmp_path, caplog, name):
    folder = tmp_path / "in"
    shutil.copytree(pictures / "pictures/test/bright", folder)
    (folder / "broken.png").write_bytes(b"no picture")
    settings = {
        "recipe": "digits",
        "model_args": "width=4",
        "wandb": "disabled",
        "report": False,
        "gallery": 0,
        "threads": 1,
    }
    settings |= {
        "data": "folder",
        "data_dir": str(pictures / "pictures"),
        "image_size": 16,
        "batch_size": 12,
        "epochs": 1,
    }
    run = harness.run(settings, output=str(tmp_path / "runs"), peak_epoch=0.5, bad_images="skip").folder
    for given, says_so in ({}, True), ({"bad_images": "skip"}, False):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            answers = (
                predict(run, folder, given)
                if name == "predict"
                else explain(run, folder, {**given, "cam": "none"}, out=tmp_path / "out")
            )
            assert len(list(answers)) == 5
        assert "broken.png" in caplog.text
        assert ("since the run was trained with --bad-images skip" in caplog.text) == says_so
    with pytest.raises(DataError, match="--bad-images skip"):
        list(predict(run, folder, {"bad_images": "fail"}))


def test_an_unreadable_picture_ends_the_command_or_is_skipped_and_leaves_no_file(pictures, tmp_path, caplog):
    run = pictures / "runs/noise"
    shutil.copytree(pictures / "pictures/test/bright", tmp_path / "in")
    (tmp_path / "in/broken.png").write_bytes(b"no picture")
    done = command("predict", run, "in", "--out", "out.csv", cwd=tmp_path, check=3)
    assert "broken.png" in done.stderr and "--bad-images skip" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out.csv").exists()
    read = []
    with pytest.raises(DataError, match=r"broken\.png"):
        read.extend(explain(run, tmp_path / "in", {"cam": "none"}, out=tmp_path / "out"))
    rows = read_csv((tmp_path / "out/explanations.csv").read_text(encoding="utf-8"))
    assert [row["file"] for row in rows] == [
        str(file) for file in sorted((tmp_path / "in").iterdir()) if file.name < "broken.png"
    ]
    with caplog.at_level(logging.WARNING):
        predicted = list(predict(run, tmp_path / "in", {"bad_images": "skip"}))
    assert len(predicted) == 5
    assert "broken.png" in caplog.text
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        list(predict(run, tmp_path / "in/broken.png", {"bad_images": "skip"}))
    with pytest.raises(DataError, match="nowhere"):
        list(predict(run, tmp_path / "nowhere"))


def test_a_file_of_another_kind_is_refused_before_anything_is_read(tmp_path):
    done = command("predict", "no-run", "no-picture.png", "--out", "out.txt", cwd=tmp_path, check=2)
    assert "ends in .csv or .jsonl" in done.stderr


def test_a_name_that_is_no_valid_unicode_is_written_as_an_escape():
    prediction = Prediction("caf\udce9.png", ("a", "b"), np.array([0.25, 0.75], np.float32))
    for suffix in (".csv", ".jsonl"):
        stream = io.BytesIO()
        assert write_predictions([prediction], stream, suffix) == 1
        assert "caf" in stream.getvalue().decode("utf-8")


def test_a_model_that_answers_with_nan_predicts_and_explains_nothing(pictures, tmp_path):
    weights, facts = load_weights(pictures / "runs/noise/checkpoints/model.safetensors")
    weights = {name: value * math.nan if value.ndim == 2 else value for name, value in weights.items()}
    save_weights(
        tmp_path / "model.safetensors", weights, {key: facts[key] for key in ("config", "classes", "preprocess")}
    )
    picture = next((pictures / "pictures/test/bright").iterdir())
    for answers in (
        predict(tmp_path / "model.safetensors", picture),
        explain(tmp_path / "model.safetensors", [picture], {"cam": "none"}, out=tmp_path / "out"),
    ):
        with pytest.raises(
            DivergedError,
            match=rf"the model answers .*{re.escape(picture.name)} with NaN or infinite numbers; its training has",
        ):
            list(answers)


def test_the_labels_of_an_image_are_its_most_probable_class_or_those_above_their_thresholds():
    probabilities = np.array([0.2, 0.7, 0.6], np.float32)
    one = Prediction(Path("x.png"), ("a", "b", "c"), probabilities)
    assert one.labels == one.top(1) == [("b", pytest.approx(0.7))] and one.prediction == "b"
    several = Prediction(Path("x.png"), ("a", "b", "c"), probabilities, np.array([0.1, 0.8, 0.6], np.float32))
    assert [name for name, _ in several.labels] == ["c", "a"]
