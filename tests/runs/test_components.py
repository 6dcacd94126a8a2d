"""What a run is built of: what follows from the settings and the splits, and what does not fit together is refused in a line."""

import numpy as np
import pytest
import torch

from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.data.dataset import Dataset, in_memory
from harness.runs.advice import CHOSEN_ON_VALIDATION, result_warnings
from harness.runs.components import build_components
from harness.runs.dry_run import dry_run
from harness.training.loop import TrainerState
from harness.utils.errors import UsageError

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
