"""A run on grey images with a network of one channel, and all that reads it; runs on arrays of other channels."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import harness
from harness.checks.verify import verify
from harness.evaluation.trained_model import load_trained_model
from harness.models.model_card import model_card
from harness.runs.export import export_onnx, export_timm
from harness.runs.inference import evaluate, explain
from harness.runs.predict import predict
from harness.tracking.run_files import CHECKPOINTS
from harness.utils.checksums import write_checked_json
from harness.utils.errors import CheckpointError, DataError, UsageError
from tests.data.test_channels import luma
from tests.support.image_folders import save_image
from tests.support.reporters import Lines

SETTINGS = {
    "recipe": "digits", "model_args": {"width": 4}, "image_size": 16, "batch_size": 12, "epochs": 1, "peak_epoch": 1, "cutout": 4,
    "gallery": 2, "cam": "hirescam", "report": False, "wandb": "disabled", "threads": 1, "precision": "fp32", "workers": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run, with the folder of its grey images of several sizes beside it."""
    root, random = tmp_path_factory.mktemp("grey"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for level, name in enumerate(("dark", "light")):
            for index in range(count):
                pixels = random.integers(90 * level, 90 * level + 150, (16 + index % 3, 20)).astype(np.uint8)
                save_image(root / "pictures" / split / name / f"{index}.png", pixels)
    settings = {**SETTINGS, "data": "folder", "data_dir": str(root / "pictures"), "output": str(root / "runs")}
    return harness.run({**settings, "in_chans": 1, "name": "grey", "erasing": 0.5, "mixup": 0.2}).folder


def logits_of(model, trained, files):
    """The logits of grey images, prepared by Pillow and NumPy alone."""
    batch = []
    for file in files:
        image = Image.open(file).convert("L")
        width, height = image.size
        short = int(16 / trained.preprocess.crop_pct)
        scale = short / min(width, height)
        size = (short if width <= height else int(width * scale), short if height <= width else int(height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (round((side - 16) / 2) for side in image.size)
        pixels = np.asarray(image.crop((left, top, left + 16, top + 16)), np.float32) / 255
        batch.append((pixels - trained.preprocess.mean[0]) / trained.preprocess.std[0])
    with torch.no_grad():
        return model(torch.from_numpy(np.stack(batch)[:, None]))


def test_the_run_has_a_network_of_one_channel_and_says_so(run):
    trained = load_trained_model(run)
    assert trained.config.in_chans == 1 == trained.preprocess.channels
    assert trained.model.prep.conv.weight.shape == (4, 1, 3, 3)
    facts = json.loads((run / CHECKPOINTS / "model.json").read_text())
    assert len(facts["preprocess"]["mean"]) == 1 and facts["config"]["in_chans"] == 1
    card = model_card(facts)
    assert card == (run / CHECKPOINTS / "README.md").read_text()
    assert "Input: grey (one channel; of colour images the luma" in card and "float [B, 1, 16, 16]" in card
    assert "in_chans: 1" in (run / "config.yaml").read_text()


def test_predictions_are_those_of_pillow_numpy_and_torch_and_of_the_evaluation(run):
    trained, files = load_trained_model(run), sorted((run.parents[1] / "pictures/test").rglob("*.png"))
    expected = logits_of(trained.model, trained, files).softmax(1).numpy()
    predictions = list(predict(run, run.parents[1] / "pictures/test"))
    assert [one.path for one in predictions] == files
    np.testing.assert_allclose([one.probabilities for one in predictions], expected, atol=2e-6)
    result = evaluate(run, settings={"gallery": 0, "cam": "none"})
    labels = np.array([file.parent.name == "light" for file in files])
    assert result.metrics["acc"] == pytest.approx((expected.argmax(1) == labels).mean())
    assert result.metrics["loss"] == pytest.approx(-np.log(expected[range(12), labels.astype(int)]).mean(), abs=1e-5)


def test_a_colour_image_is_predicted_as_its_luma(run, tmp_path):
    rgb = np.random.default_rng(1).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    files = [save_image(tmp_path / "rgb.png", rgb), save_image(tmp_path / "grey.png", luma(rgb))]
    colour, grey = (one.probabilities for one in predict(run, files))
    np.testing.assert_array_equal(colour, grey)


def test_explanations_and_galleries_show_grey_images(run, tmp_path):
    file = run.parents[1] / "pictures/test/light/0.png"
    [one] = explain(run, file, out=tmp_path)
    drawn = np.asarray(Image.open(one.overlay).convert("RGB"))
    left, right = drawn[:, : drawn.shape[1] // 2], drawn[:, drawn.shape[1] // 2 :]
    assert (left == left[..., :1]).all() and (right != right[..., :1]).any()  # the image, and the map over it
    seen = load_trained_model(run).preprocess.pixels(Image.open(file))[0].numpy()
    side = len(left) // 16
    np.testing.assert_array_equal(left[side // 2 :: side, side // 2 :: side, 0], seen)
    assert all(
        (run / "figures" / f"{name}.png").stat().st_size > 5000 for name in ("correct", "misclassified", "augmented")
    )


def test_the_code_of_the_model_card_predicts_as_the_run_from_grey_and_colour_images(run, tmp_path, monkeypatch):
    export_timm(run, tmp_path)
    code = (tmp_path / "README.md").read_text().split("```")[1].removeprefix("python\n")
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(1).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    for each in (pixels, pixels[..., 0]):
        save_image(tmp_path / "image.png", each)
        names = {}
        exec(code, names)
        [expected] = predict(run, tmp_path / "image.png")
        np.testing.assert_allclose(names["logits"].softmax(1)[0].detach(), expected.probabilities, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # of torch's exporter
def test_exports_give_the_logits_of_the_run(run, tmp_path):
    import onnxruntime

    trained, images = load_trained_model(run), torch.randn(3, 1, 16, 16)
    export_timm(run, tmp_path / "exported")
    config = json.loads((tmp_path / "exported/config.json").read_text())
    assert config["model_args"]["in_chans"] == 1 and config["pretrained_cfg"]["input_size"] == [1, 16, 16]
    theirs = timm.create_model(f"local-dir:{tmp_path / 'exported'}", pretrained=True).eval()
    export_onnx(run, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = trained.model(images)
        torch.testing.assert_close(theirs(images), expected, atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], expected, atol=1e-5)


def test_the_number_of_channels_is_that_of_the_run_from_then_on(run, tmp_path):
    with pytest.raises(UsageError, match="in_chans: fixed by the checkpoint"):
        load_trained_model(run, {"in_chans": 3})
    settings = {**SETTINGS, "data": "folder", "data_dir": str(run.parents[1] / "pictures"), "output": str(tmp_path)}
    settings |= {"epochs": 0, "gallery": 0, "cam": "none", "init": str(run)}
    expected = [one.probabilities for one in predict(run, run.parents[1] / "pictures/test")]
    for in_chans, said in ((1, "head of 2 classes kept"), (3, "prep.conv adapted from 1 to 3 channels")):
        reporter = Lines()
        copy = harness.run({**settings, "in_chans": in_chans, "name": f"copy{in_chans}"}, reporter=reporter).folder
        assert any(said in line for line in reporter.lines)
        got = [one.probabilities for one in predict(copy, run.parents[1] / "pictures/test")]
        np.testing.assert_allclose(got, expected, atol=1e-5)  # grey images have three equal channels
    facts = json.loads((copy / CHECKPOINTS / "model.json").read_text())
    assert facts["preprocess"]["mean"] == [load_trained_model(run).preprocess.mean[0]] * 3


def test_verify_reports_the_network_of_one_channel(run):
    for checked in (verify(folder=run), verify({"recipe": "custom-resnet", "model_args": "width=4", "in_chans": 1})):
        rows = {row.name: row for row in checked.rows}
        assert "conv3x3 1>4" in rows["prep"].found and rows["prep"].verdict == "deviates"
    assert [rows[name].verdict for name in ("crop", "flip", "cutout", "order")] == ["ok"] * 4


def test_verify_reports_a_run_that_starts_from_an_export_of_one_channel(run, tmp_path):
    export_timm(run, tmp_path / "grey")  # its configuration has a mean of one channel
    settings = {"model": f"local-dir:{tmp_path / 'grey'}", "pretrained": True, "in_chans": 1, "image_size": 16}
    rows = {row.name: row for row in verify({"recipe": "custom-resnet", "model_args": {}, **settings}).rows}
    assert rows["flip"].verdict == "ok" and rows["cutout"].found.startswith("8x8 in every image")


class Arrays:
    def __init__(self, count, channels, has_sizes):
        random = np.random.default_rng(count)
        sides = 16 + (np.arange(count) % 3 if has_sizes else np.zeros(count, int))
        self.pixels = [random.integers(0, 256, (side, 16, channels), dtype=np.uint8) for side in sides]

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return self.pixels[index], index % 2


@pytest.mark.filterwarnings("ignore")  # of torch's exporter
@pytest.mark.slow
@pytest.mark.parametrize(("channels", "has_sizes"), [(2, False), (4, True)])
def test_arrays_of_other_channels_are_trained_on_evaluated_and_exported(channels, has_sizes, tmp_path):
    train, test = Arrays(24, channels, has_sizes), Arrays(8, channels, has_sizes)
    settings = {**SETTINGS, "in_chans": channels, "output": str(tmp_path), "name": "r", "loader": "timm"}
    result = harness.run(settings, data={"train": train, "test": test})
    trained = load_trained_model(result.folder)
    flat = np.concatenate([pixels.reshape(-1, channels) for pixels in train.pixels]) / 255
    np.testing.assert_allclose(trained.preprocess.mean, flat.mean(0), rtol=1e-9)
    assert harness.evaluate(result.folder, data={"test": test}).metrics["acc"] == result.summary["result"]["test/acc"]
    export_onnx(result.folder, tmp_path / "m.onnx")  # compares the logits
    export_timm(result.folder, tmp_path / "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = torch.randn(3, channels, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), trained.model(images), atol=1e-6, rtol=1e-5)
    rgb = save_image(tmp_path / "rgb.png", np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(DataError, match=rf"an image of 3 channels \(RGB\), and in_chans={channels}"):
        list(predict(result.folder, rgb))
    if channels == 4:
        Image.fromarray(test.pixels[0], "RGBA").save(tmp_path / "rgba.png")
        [one] = predict(result.folder, tmp_path / "rgba.png")
        with torch.no_grad():
            expected = trained.model(trained.preprocess.image(test.pixels[0])[None]).softmax(1)[0].numpy()
        np.testing.assert_allclose(one.probabilities, expected, atol=1e-6)


def test_a_checkpoint_whose_preprocessing_has_other_channels_is_refused(run, tmp_path):
    for name in ("model.safetensors", "model.json"):
        (tmp_path / name).write_bytes((run / CHECKPOINTS / name).read_bytes())
    facts = json.loads((tmp_path / "model.json").read_text())
    facts["config"]["in_chans"] = 3
    write_checked_json(tmp_path / "model.json", facts)
    with pytest.raises(CheckpointError, match="number of channels"):
        load_trained_model(tmp_path / "model.safetensors")
