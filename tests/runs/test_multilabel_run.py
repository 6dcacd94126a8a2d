"""A run on images with several labels, from the command line to the page, and what reads the run afterwards."""

import csv
import dataclasses
import html
import json
import re
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, hamming_loss, roc_auc_score

import harness
from harness import make_config
from harness.data.registry import load_dataset
from harness.evaluation.multilabel import stored_thresholds
from harness.evaluation.own_metrics import register_metric
from harness.evaluation.trained_model import load_trained_model
from harness.reporting.html.pages import write_page
from harness.reporting.html.run_data import read_run
from harness.runs.components import build_components
from harness.runs.export import export_onnx, export_timm
from harness.runs.inference import evaluate, explain
from harness.runs.predict import predict
from harness.runs.summary import summary_table
from harness.tracking.journal import read_journal
from harness.tracking.records import Table
from harness.utils import registry
from harness.utils.errors import CheckpointError, UsageError
from tests.support.forked import harness as command
from tests.support.multilabel import COLOURS, make_squares, write_columns, write_separated
from tests.support.resume import assert_same, contents_of
from tests.training.test_distributed import SMOOTH, ranks

SETTINGS = {
    "data": "table", "label_separator": "|", "recipe": "custom-resnet", "model_args": "width=8", "image_size": 16,
    "batch_size": 32, "epochs": 6, "peak_epoch": 2, "lr_max": 0.05, "lr_min": 0.005, "cutout": 0, "crop": "none",
    "precision": "fp32", "threads": 1, "device": "cpu", "cam": "none", "wandb": "disabled", "val_fraction": 0.2, "name": "r",
}  # fmt: skip
METRICS = ("map", "f1_macro", "exact_match")


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    root = tmp_path_factory.mktemp("squares")
    rows = make_squares(root, 400)
    write_columns(root, rows)
    return write_separated(root, rows)


@pytest.fixture(scope="module")
def run(squares, tmp_path_factory):
    settings = {**SETTINGS, "ema": 0.5, "data_dir": str(squares), "output": str(tmp_path_factory.mktemp("run"))}
    return harness.run(make_config(settings))


def stored_predictions(folder, separator="|"):
    """Return truth and prediction, bool [N, C], and probabilities [N, C] of a predictions.csv, and its rows."""
    with open(folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    classes = list(rows[0])[6:]
    sets = [
        np.array([[name in row[column].split(separator) for name in classes] for row in rows])
        for column in ("labels", "prediction")
    ]
    return *sets, np.array([[float(row[name]) for name in classes] for row in rows]), rows


def test_a_run_learns_which_squares_are_in_an_image(run):
    result = run.summary["result"]
    assert result["test/map"] > 0.97 and result["test/f1_macro"] > 0.9 and result["test/exact_match"] > 0.8, result


def test_the_result_is_what_scikit_learn_computes_from_the_predictions(run):
    truth, predicted, probabilities, rows = stored_predictions(run.folder)
    result = run.summary["result"]
    assert result["test/map"] == pytest.approx(average_precision_score(truth, probabilities, average="macro"), abs=1e-5)
    assert result["test/f1_macro"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert result["test/exact_match"] == pytest.approx(accuracy_score(truth, predicted))
    losses = -np.log(np.where(truth, probabilities, 1 - probabilities)).sum(1)
    np.testing.assert_allclose([float(row["loss"]) for row in rows], losses, rtol=1e-3, atol=1e-4)
    assert result["test/loss"] == pytest.approx(losses.mean(), rel=1e-3)
    thresholds = np.array(list(run.summary["thresholds"]["classes"].values()))
    np.testing.assert_array_equal(predicted, probabilities >= thresholds)


def test_the_thresholds_are_the_best_on_the_validation_images_for_the_weights_of_the_result(run):
    trained = load_trained_model(run.folder, {"device": "cpu"})
    split = load_dataset(trained.config).val
    images = torch.stack([trained.preprocess.image(split.picture(index)) for index in range(len(split))])
    with torch.no_grad():
        probabilities = trained.model(images).sigmoid().numpy()
    stored = run.summary["thresholds"]
    assert stored["chosen"] == "best F1 of each class on the validation split"
    assert list(stored["classes"]) == list(trained.classes)
    np.testing.assert_array_equal(trained.thresholds, list(stored["classes"].values()))
    for column in range(3):
        truth = split.labels[:, column]
        at = f1_score(truth, probabilities[:, column] >= trained.thresholds[column])
        assert at >= max(f1_score(truth, probabilities[:, column] >= value) for value in np.linspace(0.01, 0.99, 99))


def test_every_epoch_has_the_metrics_and_the_best_one_is_kept(run):
    records = [record for record in read_journal(run.folder).records if record.kind == "epoch"]
    for record in records:
        assert {f"val/{name}" for name in (*METRICS, "loss")} | {
            "train/exact_match",
            "best/val_map",
        } <= record.values.keys()
        assert not {key for key in record.values if key.endswith(("acc", "ece"))}
    maps = [record.values["val/map"] for record in records]
    assert run.summary["best"] == {
        "epoch": maps.index(max(maps)) + 1, "val/map": max(maps), "chosen": "best val/map",
    }  # fmt: skip
    assert run.summary["result"]["epoch"] == maps.index(max(maps)) + 1
    assert run.summary["result"]["val/map"] == max(maps)


def test_the_line_of_an_epoch_and_the_table_at_the_end_name_the_metrics(run):
    lines = (run.folder / "console.log").read_text()
    last = run.history[-1]
    assert (
        f"mAP {100 * last['val/map']:.2f} % F1 {100 * last['val/f1_macro']:.2f} % exact {100 * last['val/exact_match']:.2f} %"
        in lines
    )
    table = summary_table(run.summary)
    plain = run.history[run.summary["result"]["epoch"] - 1]["val/map_plain"]
    assert f"mAP without EMA {100 * last['val/map_plain']:6.2f} %" in lines
    assert f"  without EMA  {100 * plain:.2f} %" in table and plain == run.summary["result"]["val/map_plain"]
    assert "test mAP" in table and "macro F1" in table and "exact match" in table and "accuracy" not in table


def test_the_table_of_classes_has_what_scikit_learn_computes(run):
    truth, predicted, probabilities, _ = stored_predictions(run.folder)
    with open(run.folder / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == sorted(COLOURS)
    for column, row in enumerate(rows):
        is_class, answers = truth[:, column], predicted[:, column]
        assert float(row["average_precision"]) == pytest.approx(
            average_precision_score(is_class, probabilities[:, column]), abs=1e-5
        )
        assert float(row["f1"]) == pytest.approx(f1_score(is_class, answers))
        assert (int(row["images"]), int(row["predicted"])) == (is_class.sum(), answers.sum())
    (final,) = [record for record in read_journal(run.folder).records if record.kind == "final"]
    table = final.values["predictions/per_class"]
    assert isinstance(table, Table) and [row[0] for row in table.rows] == sorted(COLOURS)
    assert {"predictions/precision_recall", "predictions/roc", "predictions/table"} <= final.values.keys()
    assert not {key for key in final.values if "confusion" in key or "reliability" in key}


def test_the_page_shows_these_metrics_and_says_what_it_has_in_place_of_a_confusion_matrix(run):
    page = (run.folder / "report.html").read_text()
    result = run.summary["result"]
    assert "Test mAP" in page and f"{100 * result['test/map']:.2f} %" in page
    assert "in place of a confusion matrix and calibration" in page
    assert "best F1 of each class on the validation split" in page
    assert "several per image (multi-label)" in page
    assert "Mean average precision" in page and "Predicted exactly" in page
    text = re.sub(r'<script.*?</script>|<style.*?</style>|base64,[^"]*', "", page, flags=re.DOTALL).lower()
    assert not re.search(r"\bnan\b", text) and "test accuracy" not in text
    assert not read_run(run.folder).missing


def test_predict_writes_the_labels_above_their_thresholds_with_their_probabilities(run, squares, tmp_path):
    files = sorted((squares.parent / "squares").iterdir())[:40]
    thresholds = run.summary["thresholds"]["classes"]
    predictions = list(predict(run.folder, files, {"device": "cpu"}))
    for prediction in predictions:
        of_class = dict(zip(prediction.classes, prediction.probabilities.tolist(), strict=True))
        expected = {name: value for name, value in of_class.items() if value >= thresholds[name]}
        assert dict(prediction.labels) == expected
        assert [value for _, value in prediction.labels] == sorted(expected.values(), reverse=True)
    assert {len(prediction.labels) for prediction in predictions} >= {0, 1, 2}
    ended = command("predict", run.folder, *files, "--device", "cpu", "-o", tmp_path / "p.csv", cwd=tmp_path, check=0)
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["labels"] for row in rows] == ["|".join(name for name, _ in each.labels) for each in predictions], ended
    assert list(rows[0])[:3] == ["file", "labels", "probabilities"]
    command("predict", run.folder, *files, "--device", "cpu", "-o", tmp_path / "p.jsonl", cwd=tmp_path, check=0)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [list(line["labels"]) for line in lines] == [[name for name, _ in each.labels] for each in predictions]


def test_evaluate_uses_the_thresholds_of_the_run_and_takes_either_form_of_labels(run, squares):
    own = evaluate(run.folder, {"device": "cpu"})
    assert own.metrics["f1_macro"] == pytest.approx(run.summary["result"]["test/f1_macro"])
    assert (own.folder / "predictions.csv").read_bytes() == (run.folder / "predictions.csv").read_bytes()
    columns = str(squares.with_name("columns.csv"))
    settings = {"device": "cpu", "data_dir": columns, "label_columns": "blue,green,red"}
    assert evaluate(run.folder, settings).metrics == own.metrics  # the same images, labels and splits
    other = evaluate(run.folder, {**settings, "label_columns": "*"})
    assert other.metrics["map"] > 0.97  # in another order of columns, all of its images
    with pytest.raises(UsageError, match="trained on images with several labels each"):
        evaluate(run.folder, {**settings, "label_separator": "", "label_columns": "", "label_column": "red"})


def test_an_explained_picture_has_a_map_for_each_predicted_class(run, squares, tmp_path):
    pictures = sorted((squares.parent / "squares").iterdir())[:20]
    explanations = list(explain(run.folder, pictures, {"device": "cpu", "cam": "hirescam"}, out=tmp_path))
    predictions = list(predict(run.folder, pictures, {"device": "cpu"}))
    with open(tmp_path / "explanations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for explanation, prediction in zip(explanations, predictions, strict=True):
        expected = prediction.labels or prediction.top(1)
        assert [(label.name, label.probability) for label in explanation.labels] == [
            (name, pytest.approx(probability, abs=1e-5)) for name, probability in expected
        ]
        own = [row for row in rows if row["file"] == str(explanation.path)]
        assert [(row["class"], row["panel"]) for row in own] == [
            (name, str(panel)) for panel, (name, _) in enumerate(expected, 1)
        ]
        assert {row["predicted"] for row in own} == {"yes" if prediction.labels else "no"}
        assert {row["map"] for row in own} == {explanation.overlay.relative_to(tmp_path).as_posix()}
        thresholds = run.summary["thresholds"]["classes"]
        assert all(float(row["threshold"]) == pytest.approx(thresholds[row["class"]], abs=1e-5) for row in own)
        with Image.open(explanation.overlay) as picture:
            assert picture.width / picture.height > len(own)
    assert {len(prediction.labels) for prediction in predictions} >= {0, 1, 2}


def test_explain_prints_every_class_with_whether_it_is_predicted_and_draws_no_map_without_a_method(
    run, squares, tmp_path
):
    picture = squares.parent / "squares" / "0.png"
    ended = command(
        "explain", run.folder, picture, "--device", "cpu", "--cam", "none", "-o", tmp_path / "o", cwd=tmp_path, check=0
    )
    (prediction,) = predict(run.folder, picture, {"device": "cpu"})
    names = {name for name, _ in prediction.labels}
    for name in COLOURS:
        assert f"{'✓' if name in names else '✗'} {name} " in ended.out
    (first, *_) = csv.DictReader((tmp_path / "o/explanations.csv").read_text().splitlines())
    assert (first["map"], first["panel"], first["predicted"]) == ("", "", "yes" if names else "no")


def test_a_metric_of_a_plug_in_gets_the_labels_and_the_scores_of_every_class(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(registry, "_registered", {})
    register_metric(lambda predictions: hamming_loss(predictions.labels, predictions.predicted), name="hamming")
    register_metric(lambda predictions: roc_auc_score(predictions.labels, predictions.probabilities), name="auc")
    register_metric(lambda predictions: predictions.margin.mean(), name="of_one_label")
    given = {"device": "cpu", "gallery": 0, "metrics": "hamming,auc,of_one_label"}
    result = evaluate(run.folder, given, out=tmp_path)
    truth, predicted, probabilities, _ = stored_predictions(run.folder)
    assert result.metrics["hamming"] == pytest.approx((truth != predicted).mean())
    assert result.metrics["auc"] == pytest.approx(roc_auc_score(truth, probabilities), abs=1e-4)
    assert "of_one_label" not in result.metrics
    assert "metric of_one_label is left out" in caplog.text and "several per image" in caplog.text
    with pytest.raises(UsageError, match="'map' cannot be registered"):
        register_metric(print, name="map")


@pytest.mark.filterwarnings("ignore")  # of torch's exporter
def test_exports_say_that_they_are_multi_label_and_have_the_thresholds(run, tmp_path):
    import onnx
    import timm

    thresholds = list(run.summary["thresholds"]["classes"].values())
    export_timm(run.folder, tmp_path / "timm")
    for folder in (tmp_path / "timm", run.folder / "checkpoints"):
        stored = json.loads((folder / "config.json").read_text())
        assert (stored["problem_type"], stored["thresholds"]) == ("multi_label_classification", thresholds)
        card = (folder / "README.md").read_text()
        assert "multi-label" in card and all(f"| {value:.6g} |" in card for value in thresholds)
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(images), run.model(images))
    export_onnx(run.folder, tmp_path / "m.onnx")
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert metadata["problem_type"] == "multi_label_classification"
    assert json.loads(metadata["thresholds"]) == thresholds and json.loads(metadata["label_names"]) == sorted(COLOURS)


@pytest.mark.parametrize("thresholds", [[0.5, 2.0, 0.5], [0.5, 0.5], "0.5", [None] * 3, [float("nan")] * 3, [True] * 3])
def test_thresholds_that_make_no_sense_are_refused(thresholds, tmp_path):
    with pytest.raises(CheckpointError, match="not one number from 0 to 1 for each of 3 classes"):
        stored_thresholds({"thresholds": thresholds}, 3, tmp_path)
    assert stored_thresholds({}, 3, tmp_path) is None


def test_a_checkpoint_of_an_unfinished_run_predicts_at_one_half(run):
    assert load_trained_model(run.folder / "checkpoints/last.pt", {"device": "cpu"}).thresholds.tolist() == [0.5] * 3


def test_without_a_validation_split_the_thresholds_are_one_half_and_the_run_says_so(squares, tmp_path):
    settings = {
        **SETTINGS,
        "data_dir": str(squares.with_name("columns.csv")),
        "label_separator": "",
        "label_columns": "*",
    }
    settings |= {
        "val_fraction": 0,
        "epochs": 1,
        "peak_epoch": 1,
        "output": str(tmp_path),
        "gallery": 3,
        "mixup": 0.3,
        "tta": "mirror",
        "cam": "hirescam",
    }
    result = harness.run(make_config({**settings, "class_weights": "balanced", "label_smoothing": 0.1}))
    assert set(result.summary["thresholds"]["classes"].values()) == {0.5}
    assert result.summary["thresholds"]["chosen"] == "0.5 for every class, since there is no validation split"
    assert any("--val-fraction" in line for line in result.summary["warnings"])
    page = (result.folder / "report.html").read_text()
    assert "there is no validation split" in page
    _check_maps(result.folder, page)
    assert "test/map_tta" in result.summary["result"]
    _, predicted, probabilities, _ = stored_predictions(result.folder)
    np.testing.assert_array_equal(predicted, probabilities >= 0.5)
    assert write_page([result.folder, result.folder.parent], tmp_path / "two.html").is_file()


def _check_maps(folder, page):
    """Compare the maps in the journal with the captions of the page."""
    (final,) = [record for record in read_journal(folder).records if record.kind == "final"]
    table, layers = final.details["explain/maps"], final.values["explain/gradcam"]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert len(rows) == len(layers) == 3
    for row, layered in zip(rows, layers, strict=True):
        for key, sign in (("prediction", "✗"), ("truth", "✓")):
            name, figures = row[f"class for {key}"], row[f"threshold for {key}"].replace(" ", "\N{NO-BREAK SPACE}")
            assert (key in layered.masks) == bool(name)
            if name and row[f"overlay for {key}"] is not None:
                assert f"{sign} {name}, {figures}, evidence {row[f'share for {key}']:.0%}" in html.unescape(page)
    assert "images that are not predicted exactly: the evidence for the class that is predicted wrongly" in page


def words(squares, **settings):
    merged = {**SETTINGS, "data_dir": squares, "epochs": 2, "peak_epoch": 1, "gallery": 0, "report": False, **settings}
    return ["run", *(word for name, value in merged.items() for word in (f"--{name}", str(value)))]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"loader": "timm", "workers": 2}], ids=str)
def test_a_killed_run_resumes_bit_identically(squares, tmp_path, settings):
    line = words(squares, **settings, checkpoint_every=2)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    command(*line, cwd=tmp_path / "whole", check=0)
    ended = command(*line, cwd=tmp_path / "killed", fault="kill@step=9")
    assert ended.code == -signal.SIGKILL, ended
    command(*line, cwd=tmp_path / "killed", check=0)
    assert_same(tmp_path / "killed", contents_of(tmp_path / "whole/runs/r"))


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(squares, tmp_path):
    line = words(squares)
    del line[line.index("--model_args") : line.index("--model_args") + 2]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    command(*line, *SMOOTH, cwd=tmp_path / "one", check=0)
    ended = ranks(*line, *SMOOTH, cwd=tmp_path / "two")
    assert [process.code for process in ended] == [0, 0], ended
    values = [
        [[record.values[f"val/{name}"] for name in ("loss", *METRICS)] for record in read_run(folder).epochs]
        for folder in (tmp_path / "one/runs/r", tmp_path / "two/runs/r")
    ]
    np.testing.assert_allclose(*values, atol=2e-3)


def test_a_classifier_that_init_brings_along_keeps_its_biases_and_a_new_one_begins_at_the_frequencies(run, squares):
    trained = load_trained_model(run.folder, {"device": "cpu"})
    other = squares.with_name("pink.csv")
    other.write_text(squares.read_text().replace("red", "pink"))
    biases, labels = [], None
    for table in (squares, other):
        components = build_components(make_config({**SETTINGS, "data_dir": str(table), "init": str(run.folder)}))
        biases.append(components.learner.model.get_classifier().bias.detach())
        labels = components.dataset.train.labels
    assert torch.equal(biases[0], trained.model.get_classifier().bias)
    share = labels.mean(0)
    np.testing.assert_allclose(biases[1].numpy(), np.log(share / (1 - share)), rtol=1e-5, atol=1e-6)


def test_explain_shows_a_predicted_class_that_is_not_among_the_most_probable(run, squares, tmp_path, monkeypatch):
    """Its threshold is low, and those of the others are not reached."""
    trained = load_trained_model(run.folder, {"device": "cpu"})
    image = squares.parent / "squares/0.png"
    probabilities = dict(next(iter(explain(run.folder, [image], {"device": "cpu"}, out=tmp_path / "a"))).guesses)
    last = min(probabilities, key=probabilities.get)
    thresholds = np.array([0.0 if name == last else 1.1 for name in trained.classes])
    changed = dataclasses.replace(trained, thresholds=thresholds)
    monkeypatch.setattr("harness.runs.inference.load_trained_model", lambda *_: changed)
    (one,) = explain(run.folder, [image], {"device": "cpu"}, out=tmp_path / "b", top=1)
    assert len(one.guesses) == 1 and one.guesses[0][0] != last
    assert [(label.name, label.is_predicted) for label in one.labels] == [(last, True)]
