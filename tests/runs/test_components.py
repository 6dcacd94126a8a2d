"""What a run is built of: what follows from the settings and the splits, and what does not fit together is refused in a line."""

import numpy as np
import pytest
import torch
from timm.models import register_model
from torch import nn

from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.data.dataset import Dataset, in_memory
from harness.data.preprocess import Preprocess
from harness.runs.advice import CHOSEN_ON_VALIDATION, result_warnings
from harness.runs.components import build_components
from harness.runs.dry_run import dry_run
from harness.runs.export import export_timm
from harness.runs.progress import ProgressReporter
from harness.runs.trainer import Trainer
from harness.tracking.journal import NullJournal
from harness.tracking.run_dir import RunDir
from harness.tracking.tracker import NullTracker
from harness.training.checkpoint import save_weights
from harness.training.loop import TrainerState
from harness.utils.errors import CheckpointError, UsageError
from harness.utils.signals import StopRequests

QUICK = {
    "recipe": "custom-resnet",
    "data": "folder",
    "model_args": "width=4",
    "batch_size": 8,
    "precision": "fp32",
    "epochs": 3,
    "peak_epoch": 1,
}


def split_of(name, count, labels=None):
    pixels = np.random.default_rng(len(name)).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(count) % 2 if labels is None else labels
    return in_memory(name, pixels, labels, [f"{name}/{index}" for index in range(count)])


def data(*names, train=32):
    """Return a data set of two classes with a training split and others."""
    splits = {name: split_of(name, 8) for name in names}
    classes, statistics = ("cat", "dog"), ((0.5,) * 3, (0.25,) * 3)
    return Dataset("noise", classes, split_of("train", train), splits.get("val"), splits.get("test"), *statistics, "f")


def built(dataset, **settings):
    return build_components(make_config({**QUICK, **settings}), dataset=dataset)


@pytest.mark.parametrize(
    ("splits", "settings", "selection", "watched"),
    [
        (("test",), {}, "", "test"),
        (("val", "test"), {}, "val", "val"),
        (("val", "test"), {"select": "last"}, "", "val"),
        (("test",), {"select": "best-on-test"}, "test", "test"),
        (("val", "test"), {"test": False}, "val", "val"),
    ],
)
def test_the_split_that_selects_and_the_one_that_is_watched_follow_from_the_splits(
    splits, settings, selection, watched
):
    components = built(data(*splits), **settings)
    assert (components.selection_split, components.eval_split) == (selection, watched)
    assert (components.loaders.test is None) == (settings.get("test") is False)


def test_lookahead_averages_over_the_updates_of_the_whole_run():
    components = built(data("test"), lookahead=2)
    assert (components.learner.lookahead.every, components.learner.lookahead.steps) == (2, 3 * 4)
    torch.manual_seed(0)
    for epoch in range(3):
        for step, (images, labels) in enumerate(components.loaders.train.epoch(epoch), 4 * epoch):
            components.learner.train_step(images, labels, step, 0.1, 0.9)
    assert all(torch.isfinite(value).all() for value in components.learner.model.state_dict().values())
    assert built(data("test")).learner.lookahead is None


VAL_LACKS = "a validation split, and the data has none; set --val-fraction 0.1"


@pytest.mark.parametrize(
    ("splits", "settings", "message"),
    [
        (("test",), {"schedule": "plateau"}, f"schedule=plateau needs {VAL_LACKS}"),
        (("test",), {"select": "best", "early_stop": 2}, f"early_stop=2 and select=best need {VAL_LACKS}"),
        (("test",), {"log_model": "best"}, "log_model=best logs epochs that a validation split selects, and the data has none; set --val-fraction 0.1, or --log-model end"),
        (("val", "test"), {"select": "best-on-test"}, "select=best-on-test, but there is a validation split to select by; set --select best"),
        (("test",), {"test": False}, "the data has neither a validation nor a test split; set --val-fraction 0.1"),
        (("test",), {"classes": 1}, "classes=1, but the data has 2: cat, dog ...; leave --classes out"),
        (("test",), {"cam_layer": "layer33"}, r"cam_layer='layer33': custom_resnet has no such module \(did you mean 'layer3'\?\)"),
    ],
)  # fmt: skip
def test_settings_that_the_splits_or_the_model_do_not_have_are_refused_with_the_remedy(splits, settings, message):
    with pytest.raises(UsageError, match=message):
        built(data(*splits), **settings)


def test_a_dry_run_of_a_run_that_is_resumed_is_refused():
    with pytest.raises(UsageError, match="--dry-run shows a run from its start; leave --resume runs/x out"):
        dry_run(Config(resume="runs/x"))


def test_thresholds_that_the_reported_images_have_chosen_are_said_to_be():
    draw = np.random.default_rng(0)
    train, val = (
        split_of(name, count, draw.integers(0, 2, (count, 3)).astype(np.uint8))
        for name, count in (("train", 64), ("val", 40))
    )
    dataset = Dataset("noise", tuple("abc"), train, val, None, (0.5,) * 3, (0.25,) * 3, "f")
    settings = {
        "recipe": "custom-resnet",
        "data": "table",
        "data_dir": "t.csv",
        "label_columns": "a,b,c",
        "model_args": "width=4",
        "precision": "fp32",
    }
    components = build_components(
        make_config({**settings, "batch_size": 8, "epochs": 3, "peak_epoch": 1}), dataset=dataset
    )
    state = TrainerState(step=2000, history=[{"epoch": 1.0}])
    assert CHOSEN_ON_VALIDATION in result_warnings(components, state, {"val/map": 0.9})


def test_weights_of_another_epoch_than_the_best_one_are_no_result(tmp_path):
    components = built(data("val", "test"))
    weights = components.learner.model.state_dict()
    history = [
        {"epoch": float(epoch), "val/acc": acc, "val/loss": 1.0} for epoch, acc in ((1, 0.25), (2, 0.75), (3, 0.5))
    ]
    directory = RunDir(tmp_path, resumed=False)
    for epoch in (2, 3):
        about = {"config": {}, "classes": ["a"], "preprocess": {}, "epoch": epoch}
        save_weights(directory.checkpoints / "model.safetensors", weights, about)
        with StopRequests() as stop_requests:
            parts = (
                components,
                directory,
                NullTracker(),
                NullJournal(),
                ProgressReporter(),
                TrainerState(history=history),
            )
            trainer = Trainer(*parts, stop_requests)
        if epoch == 2:
            trainer._result_model()
        else:
            with pytest.raises(
                CheckpointError, match=r"has the weights of epoch 3, and the best one is epoch 2; start again with"
            ):
                trainer._result_model()


def test_a_model_without_a_configuration_of_timm_is_not_exported_for_timm(tmp_path):
    @register_model
    def plain_network_of_a_test(pretrained=False, num_classes=2, **more):
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))

    config = Config(model="plain_network_of_a_test", data="digits", precision="fp32")
    preprocess = Preprocess(8, (0.5,) * 3, (0.5,) * 3, 1.0, "bilinear")
    about = {"config": config.to_dict(), "classes": ["a", "b"], "preprocess": preprocess.to_dict()}
    save_weights(tmp_path / "model.safetensors", plain_network_of_a_test().state_dict(), about)
    message = "plain_network_of_a_test has no timm configuration, so timm cannot rebuild it; use --onnx instead"
    with pytest.raises(UsageError, match=message):
        export_timm(tmp_path / "model.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_accuracy_at_chance_is_said_unless_the_balanced_accuracy_shows_that_weights_have_taught_something():
    components = built(data("test"), class_weights="balanced")
    state = TrainerState(step=500, history=[{"epoch": 1.0, "train/acc": 0.5}])
    lines = {
        balanced: [line for line in result_warnings(components, state, {"test/acc": 0.5, **more}) if "chance" in line]
        for balanced, more in ((None, {}), (0.5, {"test/balanced_acc": 0.5}), (1.0, {"test/balanced_acc": 1.0}))
    }
    assert lines[None] == lines[0.5] and len(lines[None]) == 1 and not lines[1.0]
