"""The evaluation at the end of a run, and the results of `evaluate`, `explain` and `export` afterwards."""

import ast
import csv
import json
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from harness.cli.main import cli
from harness.runs import export, inference
from harness.tracking.journal import read_journal
from harness.utils.errors import HarnessError, UsageError
from tests.support.commands import command
from tests.support.wandb_files import load


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table_of(run, key):
    """Return the rows of a table of an offline run by column name."""
    name = f"{key}.table.json"
    artifact = next(one for one in run.artifacts if name in one["files"])
    document = json.loads(Path(artifact["files"][name]).read_text())
    return [dict(zip(document["columns"], row, strict=True)) for row in document["data"]]


def test_predictions_and_per_class_table_agree_with_the_summary(finished):
    _, folder = finished
    predictions, summary = rows(folder / "predictions.csv"), json.loads((folder / "summary.json").read_text())
    assert len(predictions) == summary["dataset"]["images"]["test"]
    accuracy = np.mean([row["label"] == row["prediction"] for row in predictions])
    assert accuracy == pytest.approx(summary["result"]["test/acc"])
    assert np.mean([float(row["loss"]) for row in predictions]) == pytest.approx(
        summary["result"]["test/loss"], rel=1e-4
    )
    table = rows(folder / "per_class.csv")
    for line in table:
        of_class = [row for row in predictions if row["label"] == line["class"]]
        assert int(line["images"]) == len(of_class)
        assert float(line["recall"]) == pytest.approx(np.mean([row["prediction"] == line["class"] for row in of_class]))


def test_a_run_writes_its_figures(finished):
    _, folder = finished
    for name in ("correct", "misclassified", "gradcam", "confusion", "reliability"):
        with Image.open(folder / "figures" / f"{name}.png") as image:
            assert min(image.size) > 300, name


def test_wandb_has_the_tables_images_and_charts(finished):
    _, folder = finished
    run = load(next(folder.glob("wandb/offline-run-*")))
    last = run.rows[-1]
    predicted = rows(folder / "predictions.csv")
    correct = [row["label"] == row["prediction"] for row in predicted]
    table = table_of(run, "predictions/table")
    assert [(row["id"], row["truth"], row["prediction"]) for row in table] == [
        (row["id"], row["label"], row["prediction"]) for row in predicted
    ]
    assert sum(row["image"] is not None for row in table) == 100
    by_loss = sorted(table, key=lambda row: -row["loss"])
    assert all(row["image"] is not None for row in by_loss[:25])  # the galleries have 50 at most, half of them correct
    assert last["explain/gradcam.count"] == min(25, len(correct) - sum(correct))
    assert all(set(masks) == {"prediction", "truth"} for masks in last["explain/gradcam.all_masks"])
    for name in ("correct", "misclassified", "gradcam"):
        assert last[f"gallery/{name}._type"] == "image-file"
    for name in ("confusion_matrix", "precision_recall", "roc", "calibration"):
        assert (
            "(test set)"
            in run.config[f"_wandb.visualize.predictions/{name}"]["panel_config"]["stringSettings"]["title"]
        )
        assert last[f"predictions/{name}_table.nrows"] > 10
    assert last["result/test/acc"] == pytest.approx(np.mean(correct))


def test_the_journal_has_the_same_tables(finished):
    _, folder = finished
    final = next(record for record in read_journal(folder / "journal.jsonl").records if record.kind == "final")
    table = final.details["predictions/misclassified"]
    assert table.columns[:5] == ("id", "image", "truth", "prediction", "confidence")
    assert table.columns == final.values["predictions/table"].columns
    assert all(row[2] != row[3] for row in table.rows)
    confidences = [row[4] for row in table.rows]
    assert confidences == sorted(confidences, reverse=True)


@pytest.mark.parametrize("words", [["evaluate", "RUN", "--out", "out"], ["explain", "RUN", "x.png", "--out", "out"], ["plot", "--out", "out/plot.png"]], ids=lambda words: words[0])  # fmt: skip
def test_a_project_that_wandb_refuses_is_named_before_any_work(finished, tmp_path, words):
    _, folder = finished
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "x.png")
    words = [str(folder) if word == "RUN" else word for word in words]
    done = command(*words, "--wandb", "offline", "--project", "a/b:1", cwd=tmp_path)
    assert done.code == 2 and "--project='a/b:1': W&B does not take" in done.err, done
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "checkpoints/model.safetensors", "checkpoints/last.pt"])
def test_evaluating_any_checkpoint_of_a_run_repeats_its_predictions(finished, name, tmp_path):
    _, folder = finished
    evaluation = inference.evaluate(folder / name, {"threads": 1}, out=tmp_path / "out")
    assert evaluation.split == "test"
    assert (tmp_path / "out/predictions.csv").read_bytes() == (folder / "predictions.csv").read_bytes()
    assert (evaluation.folder / "figures/gradcam.png").is_file()
    assert "precision" in inference.evaluation_text(evaluation)


def test_the_evaluate_command_prints_a_line_for_each_class(finished, tmp_path):
    _, folder = finished
    done = command(
        "evaluate", folder, "--tta", "--gallery", 0, "--split", "test", "-o", tmp_path / "out", cwd=tmp_path, check=0
    )
    shown = dict(re.findall(r"^test (accuracy|accuracy, TTA|loss \(nats\)) +([\d.]+)", done.stdout, re.M))
    metrics = json.loads((tmp_path / "out/evaluation.json").read_text())
    predicted = rows(tmp_path / "out/predictions.csv")
    accuracy = np.mean([row["label"] == row["prediction"] for row in predicted])
    assert float(shown["accuracy"]) == pytest.approx(100 * accuracy, abs=0.005)
    assert float(shown["accuracy, TTA"]) == pytest.approx(100 * metrics["acc_tta"], abs=0.005)
    assert float(shown["loss (nats)"]) == pytest.approx(np.mean([float(row["loss"]) for row in predicted]), abs=1e-4)
    lines = [line.split() for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert [line[0] for line in lines] == list("0123456789")
    for line, row in zip(lines, rows(tmp_path / "out/per_class.csv"), strict=True):
        numbers = [float(row[key]) for key in ("recall", "precision", "f1", "images")]
        assert [float(cell) for cell in line[1:]] == pytest.approx(numbers, abs=6e-5)
    assert "Traceback" not in done.stderr


def unusual_images(folder):
    """Write one image of each unusual kind, all of the same grey gradient."""
    folder.mkdir()
    grey = Image.fromarray(np.tile(np.linspace(0, 255, 50, dtype=np.uint8), (40, 1)))
    grey.save(folder / "grey.png")
    grey.convert("CMYK").save(folder / "cmyk.jpg")
    grey.convert("LA").save(folder / "alpha.png")
    grey.convert("RGBA").save(folder / "rgba.webp")
    grey.convert("P").save(folder / "palette.gif", save_all=True, append_images=[grey.rotate(90).convert("P")])
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(folder / "sixteen bits é.png")
    turned = grey.convert("RGB")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    return folder


def test_the_guesses_are_the_classes_by_the_models_softmax_the_most_probable_first(finished, tmp_path):
    trained = inference.load_trained_model(finished[1], {"device": "cpu", "precision": "fp32"})
    draw = np.random.default_rng(0)
    pictures = []
    for number in range(3):
        pictures.append(tmp_path / f"{number}.png")
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(pictures[-1])
    answers = inference.explain(
        finished[1], pictures, {"cam": "none", "precision": "fp32", "threads": 1}, out=tmp_path / "out", top=4
    )
    for picture, answer in zip(pictures, answers, strict=True):
        with torch.no_grad(), Image.open(picture) as image:
            probabilities = trained.model(trained.preprocess.image(np.asarray(image))[None]).softmax(1)[0]
        best = sorted(range(10), key=lambda number: -float(probabilities[number]))[:4]
        assert answer.path == picture and [name for name, _ in answer.guesses] == [trained.classes[n] for n in best]
        assert [value for _, value in answer.guesses] == pytest.approx(
            [float(probabilities[n]) for n in best], abs=1e-5
        )


def test_explain_reads_images_of_every_kind(finished, tmp_path):
    _, folder = finished
    done = command(
        "explain",
        folder,
        unusual_images(tmp_path / "images"),
        "-o",
        tmp_path / "out",
        "--top",
        3,
        cwd=tmp_path,
        check=0,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    assert all(line.count("%") == 3 for line in lines)
    assert len(list((tmp_path / "out").glob("*.png"))) == 7


def test_the_overlays_of_a_folder_lie_as_its_pictures_do_with_a_row_for_each(finished, tmp_path):
    _, folder = finished
    places = ("a/1.png", "a/1.jpg", "b/deep er/1.png", "top.png")
    for place in places:
        (tmp_path / "pictures" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 32, 3), np.uint8)).save(
            tmp_path / "pictures" / place
        )
    explanations = list(inference.explain(folder, tmp_path / "pictures", out=tmp_path / "out"))
    drawn = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")}
    assert drawn == {"a/1.png", "a/1-2.png", "b/deep_er/1.png", "top.png"}
    with open(tmp_path / "out" / "explanations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {str(tmp_path / "pictures" / place) for place in places}
    assert {row["map"] for row in rows} == drawn
    for row, explanation in zip(rows, explanations, strict=True):
        name, probability = explanation.guesses[0]
        assert row["prediction"] == name and float(row["confidence"]) == pytest.approx(probability, rel=1e-5)
        assert (row["map_height"], row["map_width"], row["input_height"], row["input_width"]) == ("2", "2", "16", "16")
        assert row["cam"] == "hirescam" and row["cam_layer"] == explanation.layer
    several = list(inference.explain(folder, [tmp_path / "pictures/a", tmp_path / "pictures/b"], out=tmp_path / "more"))
    assert [str(one.overlay.relative_to(tmp_path / "more")) for one in several] == [
        "a/1.png",
        "a/1-2.png",
        "b/deep_er/1.png",
    ]


def test_no_overlay_is_written_through_a_link_in_the_folder_of_the_results(finished, tmp_path):
    from harness.utils.errors import DataError

    _, folder = finished
    (tmp_path / "pictures/a").mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "pictures/a/1.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="out/a is a symbolic link"):
        list(inference.explain(folder, tmp_path / "pictures", out=tmp_path / "out"))
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.slow
def test_evaluations_and_explanations_are_recorded_in_wandb_on_request(finished, tmp_path):
    _, folder = finished
    Image.new("RGB", (20, 30), (90, 20, 20)).save(tmp_path / "x.png")
    answers = list(
        inference.explain(folder, [tmp_path / "x.png"], {"wandb": "offline"}, out=tmp_path / "explained", top=3)
    )
    run = load(next((tmp_path / "explained").glob("wandb/offline-run-*")))
    assert (run.job_type, run.rows[-1]["explain/images.nrows"]) == ("explain", len(answers))
    evaluation = inference.evaluate(folder, {"wandb": "offline", "gallery": 4}, out=tmp_path / "evaluated")
    run = load(next(evaluation.folder.glob("wandb/offline-run-*")))
    assert run.job_type == "evaluate"
    assert run.summary["test/acc"] == pytest.approx(evaluation.metrics["acc"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"not an image"), "x.png"),
        (lambda path: path.write_bytes(b""), "x.png"),
        (lambda path: None, "x.png"),
        (lambda path: path.mkdir(), "no images"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(finished, make, message, tmp_path):
    from harness.utils.errors import DataError

    _, folder = finished
    make(tmp_path / "x.png")
    with pytest.raises(DataError, match=message):
        list(inference.explain(folder, [tmp_path / "x.png"], out=tmp_path / "out"))


def test_data_with_other_classes_is_refused(finished, tmp_path):
    from harness.utils.errors import DataError

    _, folder = finished
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / "pictures" / name / f"{number}.png")
    with pytest.raises(DataError, match="classes a, b, which the model does not have"):
        inference.evaluate(folder, {"data": "folder", "data_dir": str(tmp_path / "pictures")}, out=tmp_path / "out")


def test_stock_timm_builds_the_model_from_the_folder_of_checkpoints(finished):
    _, folder = finished
    model = timm.create_model(f"local-dir:{folder / 'checkpoints'}", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(images), inference.load_trained_model(folder).model(images), rtol=1e-4, atol=1e-5)
    assert "Classes, in the order of the logits: 0, 1" in (folder / "checkpoints/README.md").read_text()


def test_an_empty_map_is_drawn_hatched(tmp_path):
    from harness.evaluation import gradcam

    empty = gradcam.Maps(
        "hirescam",
        "x",
        np.zeros((1, 4, 4), np.float32),
        np.zeros((1, 32, 32), np.float32),
        np.ones(1, bool),
        np.zeros(1, np.float32),
        np.zeros(1, np.float32),
    )
    path = inference.write_overlay(np.zeros((32, 32, 3), np.uint8), empty, tmp_path / "x.png")
    right = np.asarray(Image.open(path))[:, 256:]
    assert len(np.unique(right)) == 2
    assert right.min() > 200


def test_large_photos_are_tracked_small():
    from harness.reporting.evaluation_report import shrink

    assert shrink(np.zeros((3000, 4000, 3), np.uint8)).shape == (192, 256, 3)
    assert shrink(np.zeros((32, 32, 3), np.uint8)).shape == (32, 32, 3)


def test_an_exported_timm_folder_gives_the_same_logits_in_stock_timm(finished, tmp_path, monkeypatch):
    _, folder = finished
    monkeypatch.setattr(
        tempfile, "tempdir", str(tmp_path / "on another disk")
    )  # from which nothing can be renamed to this one
    export.export_timm(folder, tmp_path / "shared")
    trained = inference.load_trained_model(folder)
    exported = timm.create_model(f"local-dir:{tmp_path / 'shared'}", pretrained=True).eval()
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(exported(images), trained.model(images), rtol=1e-4, atol=1e-5)
    assert exported.pretrained_cfg["mean"] == pytest.approx(trained.preprocess.mean)
    assert exported.pretrained_cfg["label_names"] == list(trained.classes)
    assert "0, 1, 2" in (tmp_path / "shared/README.md").read_text()


@pytest.mark.parametrize("name", ["shared", "my größe 👍", "it's", 'a "b" \\'])
def test_the_command_that_loads_an_export_is_one_word_of_python_in_a_shell(finished, tmp_path, name):
    line = export.export_timm(finished[1], tmp_path / name).splitlines()[-1]
    program, option, code = shlex.split(line)
    assert (program, option) == ("python", "-c")
    (call,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    assert ast.literal_eval(call.args[0]) == f"local-dir:{tmp_path.resolve() / name}"
    assert ("\"'\"'" in line) == ("'" in name)


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_exported_files_have_the_mode_that_the_users_umask_gives_others(finished, tmp_path, mask):
    former = os.umask(mask)
    try:
        (tmp_path / "usual").touch()
        export.export_timm(finished[1], tmp_path / "shared")
    finally:
        os.umask(former)
    usual = (tmp_path / "usual").stat().st_mode
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "shared").iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "class_map.txt"} <= modes.keys()
    assert set(modes.values()) == {usual}


@pytest.mark.filterwarnings("ignore")
def test_the_onnx_file_gives_the_same_logits_for_any_batch_size(finished, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    _, folder = finished
    cli.main(["export", str(folder), "--onnx", str(tmp_path / "model.onnx")], standalone_mode=False)
    assert "equal torch's" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    images = torch.rand(5, 3, 16, 16)
    with torch.no_grad():
        expected = inference.load_trained_model(folder, {"precision": "fp32"}).model(images)
    torch.testing.assert_close(
        torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), expected, rtol=1e-3, atol=1e-4
    )


@pytest.mark.filterwarnings("ignore")
def test_an_onnx_file_that_differs_is_not_written_and_a_missing_runtime_is_named(finished, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    _, folder = finished
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(
        HarnessError, match=r"model\.onnx: ONNX Runtime's logits differ from torch's by .*; nothing was"
    ):
        export.export_onnx(folder, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"ONNX needs an extra: pip install 'vision-harness\[onnx\]'"):
        export.export_onnx(folder, tmp_path / "model.onnx")
