"""Runs on classes of unlike frequency: weights, balanced sampling and other losses from the command line to the page."""

import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight

import harness
from harness import make_config
from harness.config import yaml_io
from harness.data.registry import load_dataset
from harness.evaluation.metrics import read_predictions_csv
from harness.lr_finder.finder import LRFinder, LRFinderOptions
from harness.runs import lr_find
from harness.runs.components import build_components, describe_data
from harness.tracking.journal import read_journal
from harness.training.loop import evaluate_batches
from tests.support.forked import harness as command
from tests.support.training import assert_equal
from tests.training.test_distributed import SMOOTH, losses, ranks

CLASSES = {"bright": 60, "dark": 12, "grey": 4}
SETTINGS = {
    "data": "folder", "data_dir": "pictures", "recipe": "digits", "model_args": "width=2", "image_size": 16, "batch_size": 16,
    "epochs": 2, "precision": "fp32", "threads": 1, "gallery": 0, "cam": "none", "wandb": "disabled", "lr_max": 0.05,
    "test_fraction": 0.25, "cutout": 0, "name": "r",
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with a folder of noise for each class, each about another brightness, and many more of one class."""
    root, draw = tmp_path_factory.mktemp("unbalanced"), np.random.default_rng(0)
    for (name, count), level in zip(CLASSES.items(), (170, 90, 130), strict=True):
        (root / "pictures" / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(draw.normal(level, 60, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "pictures" / name / f"{index}.png")
    return root


def words(root, **settings):
    merged = {**SETTINGS, "data_dir": root / "pictures", **settings}
    return ["run", *(word for name, value in merged.items() for word in (f"--{name}", str(value)))]


def test_a_run_with_balanced_weights_reports_the_metrics_over_classes_everywhere(pictures, tmp_path):
    settings = {**SETTINGS, "data_dir": str(pictures / "pictures"), "output": str(tmp_path), "report": True}
    result = harness.run(make_config({**settings, "class_weights": "balanced", "loss": "focal"}))
    predictions, _ = read_predictions_csv(result.folder / "predictions.csv", tuple(CLASSES))
    expected = {
        "test/balanced_acc": balanced_accuracy_score(predictions.labels, predictions.predicted),
        "test/f1_macro": f1_score(predictions.labels, predictions.predicted, average="macro"),
    }
    summary = json.loads((result.folder / "summary.json").read_text())
    (final,) = [record for record in read_journal(result.folder).records if record.kind == "final"]
    page = (result.folder / "report.html").read_text()
    for name, value in expected.items():
        assert summary["result"][name] == pytest.approx(value)
        assert final.values[f"result/{name}"] == pytest.approx(value)
        assert result.history[-1][name] == pytest.approx(value)
        assert f"{100 * value:.2f} %" in page
    assert "Test balanced accuracy" in page and "Test macro F1" in page
    assert "The training loss is the focal loss with weights of the classes" in page
    header = read_journal(result.folder).header["config"]
    assert (header["class_weights"], header["loss"]) == ("balanced", "focal")
    assert not any("--class-weights" in line for line in summary["warnings"])


def test_a_run_and_its_lr_finder_train_with_the_weights_of_scikit_learn(pictures):
    settings = {**SETTINGS, "data_dir": str(pictures / "pictures"), "class_weights": "balanced", "label_smoothing": 0.1}
    components = build_components(make_config(settings))
    finder = LRFinder(lr_find.finder_inputs(components.config, components), LRFinderOptions())
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 3, generator=draw), torch.arange(9) % 3
    for learner, split in (
        (components.learner, components.dataset.train),
        (finder.learner_factory(0), finder.dataset.train),
    ):
        weights = compute_class_weight("balanced", classes=np.arange(3), y=split.labels)
        expected = torch.nn.functional.cross_entropy(
            logits, labels, weight=torch.from_numpy(weights).float(), label_smoothing=0.1, reduction="sum"
        )
        torch.testing.assert_close(learner.loss(logits, labels), expected / 9)
    facts = describe_data(components)["class_weights"]
    assert list(facts) == list(CLASSES) and facts["grey"] > facts["dark"] > facts["bright"]


def test_a_run_on_unbalanced_classes_advises_weights(pictures, tmp_path):
    settings = {**SETTINGS, "data_dir": str(pictures / "pictures"), "output": str(tmp_path), "epochs": 1}
    (line,) = [line for line in harness.run(make_config(settings)).summary["warnings"] if "balanced accuracy" in line]
    assert line.endswith("--class-weights balanced or --sampling balanced trains rare classes more")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"class_weights": "balanced", "loss": "bce", "mixup": 0.4},
        {"sampling": "balanced", "loader": "timm", "workers": 2},
        {"sampling": "balanced", "loss": "focal"},
    ],
    ids=str,
)
def test_a_killed_run_resumes_bit_identically(pictures, tmp_path, settings):
    contents = []
    for name, fault in (("whole", ""), ("killed", "kill@step=5")):
        (tmp_path / name).mkdir()
        line = words(pictures, **settings, checkpoint_every=2)
        ended = command(*line, cwd=tmp_path / name, fault=fault)
        if fault:
            assert ended.code == -signal.SIGKILL, ended
            ended = command(*line, cwd=tmp_path / name)
        assert ended.code == 0, ended.err
        contents.append(load_file(tmp_path / name / "runs/r/checkpoints/model.safetensors"))
    assert_equal(*contents)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"class_weights": "grey=5", "loss": "bce"}, {"sampling": "balanced"}], ids=str)
def test_two_processes_train_as_one(pictures, tmp_path, settings):
    line = words(pictures, **settings)
    del line[line.index("--model_args") : line.index("--model_args") + 2]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    command(*line, *SMOOTH, cwd=tmp_path / "one", check=0)
    ended = ranks(*line, *SMOOTH, cwd=tmp_path / "two")
    assert [process.code for process in ended] == [0, 0], ended
    folders = [tmp_path / name / "runs/r" for name in ("one", "two")]
    torch.testing.assert_close(*(torch.tensor(losses(folder)) for folder in folders), rtol=1e-4, atol=1e-4)
    for name in ("balanced_acc", "f1_macro", "acc"):
        values = [
            [record.values[f"test/{name}"] for record in read_journal(folder).records if record.kind == "epoch"]
            for folder in folders
        ]
        np.testing.assert_allclose(*values, atol=0.1)


def test_a_process_without_images_takes_part_in_the_metrics_over_classes():
    """Three images for two processes of which one has none: the sums of both are those of all images."""

    class Two:
        """The reductions of two processes, of which the other has the given values."""

        def __init__(self, others):
            self.others, self.sent = list(others), []

        def all_reduce_sum(self, *values):
            self.sent.append([value.clone() for value in values])
            return tuple(value + other for value, other in zip(values, self.others.pop(0), strict=True))

    class Model(torch.nn.Module):
        def forward(self, images):
            return images

    images, labels = torch.tensor([[2.0, 0, 0], [0, 1, 0], [3, 0, 0]]), torch.tensor([0, 1, 1])
    cpu, zeros = torch.device("cpu"), [torch.zeros((), dtype=torch.float64), *[torch.tensor(0)] * 3]

    class Loader(list):
        num_images = 3

    busy = Two([zeros, [torch.zeros(3, dtype=torch.int64)] * 3])
    expected = evaluate_batches(Model(), Loader([(images, labels)]), cpu)
    assert evaluate_batches(Model(), Loader([(images, labels)]), cpu, processes=busy) == expected
    idle = Two(busy.sent)
    assert evaluate_batches(Model(), Loader(), cpu, processes=idle) == expected
    assert expected["balanced_acc"] == pytest.approx(0.75) and expected["f1_macro"] == pytest.approx(2 / 3)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"loss": "bce"}, {"loss": "focal", "class_weights": "balanced"}], ids=str)
def test_the_lr_finder_suggests_a_rate_that_the_loss_learns_at(tmp_path, settings):
    base = {
        "recipe": "digits", "model_args": "width=4", "threads": 1, "precision": "fp32", "batch_size": 64, "gallery": 0,
        "cam": "none", "wandb": "disabled", "report": False, "output": str(tmp_path), "epochs": 3, **settings,
    }  # fmt: skip
    found = lr_find.find_lr(base, seeds=1)
    assert found.lr_max is not None and 1e-3 < found.lr_max < 2
    result = harness.run({**base, "lr_max": found.lr_max, "lr_min": found.lr_min, "peak_epoch": 1})
    assert result.summary["result"]["test/acc"] > 0.85


def test_settings_chosen_from_the_data_count_the_images_of_these_classes(pictures, tmp_path):
    settings = {
        "data_dir": str(pictures / "pictures"),
        "output": str(tmp_path),
        "report": False,
        "gallery": 0,
        "cam": "none",
    }
    small = {
        "model_args": "width=2",
        "epochs": 1,
        "wandb": "disabled",
        "precision": "fp32",
        "device": "cpu",
        "threads": 1,
    }
    result = harness.run(make_config({**settings, **small}))
    assert yaml_io.read_yaml(result.folder / "config.yaml")["label_smoothing"] == 0
    reason = json.loads((result.folder / "automatic.json").read_text())["label_smoothing"]["reason"]
    counts = np.bincount(load_dataset(make_config(settings)).train.labels)
    assert reason.startswith(f"the largest class has {counts.max() / counts.min():.0f} times as many images")
