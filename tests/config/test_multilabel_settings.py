"""Settings of images with several labels: what they imply, and what they refuse in one line with a remedy."""

import pytest

from harness.config.automatic import choose_settings
from harness.config.recipe import make_config, recipe_paths
from harness.config.settings import Config
from harness.sweep.metric import check_metric
from harness.utils.errors import UsageError
from tests.config.test_automatic import facts

TABLE = {"data": "table", "data_dir": "t.csv"}
SEPARATED = {**TABLE, "label_separator": "|"}
COMPLETE = {**SEPARATED, "loss": "bce", "select_by": "map"}


@pytest.mark.parametrize("form", [{"label_separator": "|"}, {"label_columns": "a,b"}, {"label_columns": "*"}])
@pytest.mark.parametrize("recipe", ["auto", "custom-resnet", "resnet18"])
def test_several_labels_take_their_loss_and_their_metric_without_options(form, recipe):
    config = make_config({**TABLE, **form}, recipe)
    assert (config.loss, config.select_by, config.is_multilabel) == ("bce", "map", True)


def test_one_label_per_image_keeps_its_loss_its_metric_and_its_name():
    assert (make_config(TABLE).loss, make_config(TABLE).select_by) == ("cross_entropy", "acc")
    assert not make_config(TABLE).is_multilabel
    assert {"label_separator", "label_columns"}.isdisjoint(make_config(TABLE).affecting_results())


def test_the_stored_settings_of_a_run_repeat_it(tmp_path):
    config = make_config({**SEPARATED, "select_by": "exact_match"}, "custom-resnet")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert make_config({}, str(tmp_path / "config.yaml")).digest() == config.digest()


def test_a_metric_that_is_given_wins():
    assert make_config({**SEPARATED, "select_by": "f1_macro"}).select_by == "f1_macro"


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"loss": "cross_entropy"}, ["loss=cross_entropy", "--loss bce"]),
        ({"loss": "focal"}, ["loss=focal", "--loss bce"]),
        ({"loss": "jsd", "aug_splits": 3}, ["loss=jsd", "--loss bce"]),
        ({"loss": "mine"}, ["loss=mine", "--loss bce"]),
        ({"select_by": "acc"}, ["select_by=acc", "--select-by map"]),
        ({"select_by": "balanced_acc"}, ["select_by=balanced_acc", "--select-by map"]),
        ({"sampling": "balanced"}, ["sampling=balanced", "--class-weights balanced"]),
        ({"label_columns": "a,b"}, ["label_separator='|'", "label_columns=a,b", "keep one"]),
        ({"label_separator": "", "label_columns": "a,b", "label_column": "c"}, ["label_column='c'", "keep one"]),
        ({"data": "cifar10"}, ["label_separator", "data=cifar10", "--data table"]),
        ({"class_weights": "balanced", "loss_args": "pos_weight=2"}, ["pos_weight", "keep one"]),
    ],
)
def test_what_needs_one_label_per_image_is_refused_in_one_line_with_a_remedy(settings, parts):
    with pytest.raises(UsageError) as error:
        Config(**{**COMPLETE, **settings})
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("metric", ["map", "exact_match"])
def test_a_metric_of_several_labels_is_refused_for_one_label_per_image(metric):
    with pytest.raises(UsageError, match=f"select_by={metric}.*--label-separator"):
        Config(**TABLE, select_by=metric)


def test_a_sweep_optimises_the_metrics_that_such_a_run_logs():
    config = make_config({**SEPARATED, "val_fraction": 0.1})
    for name in ("best/val_map", "val/map", "val/f1_macro", "val/exact_match", "val/loss"):
        check_metric(name, config, on_test=False)
    for name in ("best/val_acc", "val/acc", "train/acc"):
        with pytest.raises(UsageError):
            check_metric(name, config, on_test=False)


@pytest.mark.parametrize("recipe", sorted(recipe_paths()))
def test_no_shipped_recipe_for_all_data_is_refused_for_several_labels(recipe):
    try:
        make_config({"data_dir": "t.csv"}, recipe)
    except UsageError:
        pytest.skip("this recipe is for other data")
    assert make_config({"data_dir": "t.csv", "label_separator": ","}, recipe).loss == "bce"


def test_a_metric_of_the_other_kind_of_labels_is_answered_with_that_of_these():
    with pytest.raises(UsageError, match=r"several labels logs best/val_acc; set metric: \{name: best/val_map"):
        check_metric("best/val_acc", Config(**COMPLETE, val_fraction=0.1), on_test=False)
    with pytest.raises(UsageError, match=r"one label logs best/val_map; set metric: \{name: best/val_acc"):
        check_metric("best/val_map", Config(**TABLE, val_fraction=0.1), on_test=False)


def test_an_optimizer_without_a_known_rate_gets_that_of_a_range_test():
    choices = choose_settings(make_config({**SEPARATED, "optimizer": "lamb"}, "auto"), facts())
    assert (choices["lr_max"].value, choices["lr_min"].value) == ("find", "find")


def test_views_of_an_image_are_left_out_not_compared_by_another_loss():
    with pytest.raises(UsageError, match="leave --aug-splits out"):
        make_config({**SEPARATED, "aug_splits": 3})
