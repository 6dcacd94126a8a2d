"""Each image of an evaluation has its own label, prediction, numbers and maps, whatever the order of a gallery."""

import csv
import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score

from harness.config.settings import Config
from harness.data.dataset import in_memory
from harness.data.preprocess import Preprocess
from harness.evaluation import gradcam
from harness.evaluation.metrics import Predictions, confusion_matrix
from harness.reporting.evaluation_report import MIN_CLASSES_TOP5, Evaluator, headline_metrics
from harness.reporting.figures import gallery
from harness.reporting.figures.gradcam import overlay
from harness.reporting.gradcam_images import enlarge
from tests.support.predictions import random_predictions
from tests.support.tiny_net import tiny_net

NAMES = ("ant", "bee", "cat", "dog")
SIZE, COUNT = 16, 60
CPU = torch.device("cpu")
PREPROCESS = Preprocess(SIZE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 1.0, "bicubic")


def with_tta(predictions, seed=1):
    """The predictions with those of other views, which are mostly others."""
    tta = random_predictions(len(predictions), predictions.num_classes, seed).probabilities
    return Predictions(predictions.labels, predictions.probabilities, predictions.losses, tta)


def test_the_headline_metrics_are_those_of_scikit_learn_and_numpy():
    predictions = with_tta(random_predictions(300, 12))
    values = headline_metrics(predictions, confusion_matrix(predictions), 0.125)
    labels, numbers = predictions.labels, range(12)
    expected = {
        "acc": top_k_accuracy_score(labels, predictions.probabilities, k=1, labels=numbers),
        "acc5": top_k_accuracy_score(labels, predictions.probabilities, k=5, labels=numbers),
        "acc_tta": top_k_accuracy_score(labels, predictions.tta_probabilities, k=1, labels=numbers),
        "loss": -np.log(predictions.probabilities[np.arange(300), labels].astype(float)).mean(),
        "balanced_acc": balanced_accuracy_score(labels, predictions.predicted),
        "f1_macro": f1_score(labels, predictions.predicted, average="macro"),
        "ece": 0.125,
    }
    assert values == pytest.approx(expected, rel=1e-5)
    assert len({values["acc"], values["acc5"], values["acc_tta"]}) == 3


def test_top_5_accuracy_is_left_out_where_it_says_little_and_tta_where_there_is_none():
    for classes, has_top5 in ((MIN_CLASSES_TOP5 - 1, False), (MIN_CLASSES_TOP5, True)):
        predictions = random_predictions(50, classes)
        values = headline_metrics(predictions, confusion_matrix(predictions), 0.0)
        assert ("acc5" in values, "acc_tta" in values) == (has_top5, False)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """An evaluation of random images: (evaluator, split, its predictions by hand [N, 4], result, folder)."""
    draw = np.random.default_rng(3)
    pixels = draw.integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    split = in_memory("test", pixels, draw.integers(0, 4, COUNT), [f"test/{index}" for index in range(COUNT)])
    model = tiny_net(pool="avg").eval()
    torch.nn.init.normal_(model.head.weight, std=3.0)
    images = torch.from_numpy(((pixels / 255 - PREPROCESS.mean) / PREPROCESS.std).astype(np.float32))
    images = images.permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        probabilities = model(images).softmax(1).numpy()
    config = Config(gallery=7, gallery_rule="confident", precision="fp32", cam="hirescam", threads=1)
    evaluator = Evaluator(config, model, PREPROCESS, NAMES, CPU)
    batches = [
        (images[start : start + 25], torch.from_numpy(split.labels[start : start + 25])) for start in (0, 25, 50)
    ]
    folder = tmp_path_factory.mktemp("evaluated")
    return evaluator, split, images, probabilities, evaluator.evaluate(split, batches, folder), folder


def rows_of(table):
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def number_of(cells):
    return int(cells["id"].removeprefix("test/"))


def test_a_row_of_a_gallery_has_the_picture_the_classes_and_the_numbers_of_its_image(evaluated):
    _, split, _, probabilities, result, _ = evaluated
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    for name, is_right in (("correct", True), ("misclassified", False)):
        rows = rows_of(result.details[f"predictions/{name}"])
        assert len(rows) == 7
        for cells in rows:
            index = number_of(cells)
            assert (cells["truth"], cells["prediction"]) == (NAMES[split.labels[index]], NAMES[predicted[index]])
            assert (cells["truth"] == cells["prediction"]) == is_right
            assert cells["confidence"] == pytest.approx(confidence[index], abs=1e-5)
            np.testing.assert_array_equal(cells["image"].pixels, split.pixels[index])
    wrong = np.flatnonzero(predicted != split.labels)
    chosen = [number_of(cells) for cells in rows_of(result.details["predictions/misclassified"])]
    assert chosen == sorted(wrong, key=lambda index: -confidence[index])[:7]
    assert chosen != sorted(chosen)  # so that an order by position would be noticed


def test_the_maps_of_a_row_are_those_of_its_image_for_the_predicted_and_for_the_true_class(evaluated):
    evaluator, split, images, probabilities, result, _ = evaluated
    rows, layers = rows_of(result.details["explain/maps"]), result.values["explain/gradcam"]
    assert [number_of(cells) for cells in rows] == [
        number_of(cells) for cells in rows_of(result.details["predictions/misclassified"])
    ]
    for cells, layered in zip(rows, layers, strict=True):
        index = number_of(cells)
        truth, prediction = int(split.labels[index]), int(probabilities[index].argmax())
        assert (cells["truth"], cells["prediction"]) == (NAMES[truth], NAMES[prediction])
        assert layered.image.caption.startswith(f"test/{index}: {NAMES[truth]} predicted as {NAMES[prediction]}")
        np.testing.assert_array_equal(cells["image"].pixels, enlarge(split.pixels[index]))
        alone = [
            gradcam.compute_maps(evaluator.model, images[index : index + 1], [number]) for number in (prediction, truth)
        ]
        peak = max(float(maps.peak[0]) for maps in alone)
        for name, maps in zip(("prediction", "truth"), alone, strict=True):
            assert cells[f"share for {name}"] == pytest.approx(float(maps.share[0]), abs=1e-4)
            if maps.empty[0]:
                assert cells[f"overlay for {name}"] is None
                continue
            expected = overlay(enlarge(split.pixels[index]), maps.scaled[0] * float(maps.peak[0]) / peak)
            difference = np.abs(cells[f"overlay for {name}"].pixels.astype(int) - expected.astype(int))
            assert difference.mean() < 1


def test_the_files_of_an_evaluation_are_in_the_order_of_the_data(evaluated):
    _, split, _, probabilities, result, folder = evaluated
    with open(folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == list(split.ids)
    assert [row["label"] for row in rows] == [NAMES[label] for label in split.labels]
    assert [row["prediction"] for row in rows] == [NAMES[number] for number in probabilities.argmax(1)]
    assert result.metrics["acc"] == pytest.approx((probabilities.argmax(1) == split.labels).mean())


def test_the_table_of_all_predictions_has_pictures_of_the_galleries_and_of_the_highest_losses(evaluated, monkeypatch):
    evaluator, split, images, probabilities, result, folder = evaluated
    monkeypatch.setattr("harness.reporting.evaluation_report.THUMBNAILS", 20)
    batches = [(images, torch.from_numpy(split.labels))]
    table = evaluator.evaluate(split, batches, folder / "again").values["predictions/table"]
    pictured = {number_of(cells) for cells in rows_of(table) if cells["image"] is not None}
    galleries = {
        number_of(cells)
        for name in ("correct", "misclassified")
        for cells in rows_of(result.details[f"predictions/{name}"])
    }
    losses = -np.log(probabilities[np.arange(COUNT), split.labels])
    by_loss = [index for index in np.argsort(-losses).tolist() if index not in galleries]
    assert pictured == galleries | set(by_loss[: 20 - len(galleries)])


def test_the_title_of_a_gallery_says_of_how_many_images_of_its_kind_it_shows_some(evaluated, tmp_path, monkeypatch):
    evaluator, split, images, probabilities, _, _ = evaluated
    draw, titles = gallery.gallery, []

    def drawn(*arguments, title, **options):
        titles.append(title)
        return draw(*arguments, title=title, **options)

    monkeypatch.setattr(gallery, "gallery", drawn)
    plain = dataclasses.replace(evaluator, config=evaluator.config.replace(cam="none"))
    plain.evaluate(split, [(images, torch.from_numpy(split.labels))], tmp_path)
    right = int((probabilities.argmax(1) == split.labels).sum())
    assert right != COUNT - right
    assert [title.partition(" images")[0] for title in titles] == [
        f"7 of {right} correctly classified", f"7 of {COUNT - right} misclassified"
    ]  # fmt: skip
    assert all(title.endswith(f"({COUNT} test images)") for title in titles)


def test_an_evaluation_without_errors_has_a_figure_that_says_so_and_no_maps(evaluated, tmp_path):
    evaluator, split, images, probabilities, _, _ = evaluated
    right = in_memory("test", split.pixels, probabilities.argmax(1), split.ids)
    result = evaluator.evaluate(right, [(images, torch.from_numpy(right.labels))], tmp_path)
    assert result.metrics["acc"] == 1 and "explain/maps" not in result.details
    assert (tmp_path / "figures/gradcam.png").is_file() and not result.details.get("predictions/misclassified")


def test_a_model_without_a_layer_for_maps_is_evaluated_without_them(evaluated, tmp_path, caplog):
    evaluator, split, images, _, _, _ = evaluated
    torch.manual_seed(0)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 4)).eval()
    batches = [(images, torch.from_numpy(split.labels))]
    result = dataclasses.replace(evaluator, model=linear).evaluate(split, batches, tmp_path)
    assert "explain/maps" not in result.details and "predictions/misclassified" in result.details
    assert "no class-activation maps: no layer of the model gives a map" in caplog.text
    named = dataclasses.replace(evaluator, config=evaluator.config.replace(cam_layer="second"))
    assert named.has_cam_layer() and not dataclasses.replace(evaluator, model=linear).has_cam_layer()
