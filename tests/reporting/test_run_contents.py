"""The numbers, texts and charts of a report are those of the run directory, of which every figure is known."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.data.preprocess import Preprocess
from harness.evaluation import metrics
from harness.models.model_card import model_card
from harness.reporting.html import facts, run_charts
from harness.reporting.html.groups import group_runs, run_differences
from harness.reporting.html.pages import run_page
from harness.reporting.html.plotly import log_ticks, plain_numbers
from harness.reporting.html.run_data import affecting_settings, read_run
from harness.tracking.records import Curve, Record
from harness.utils.plain import setting_text
from tests.support import small_run
from tests.support.small_run import IMAGES, LRS, SECONDS, STEP_LOSSES, TRAIN_LOSS, VAL_ACC, VAL_LOSS, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(write_run(tmp_path_factory.mktemp("small") / "mine"))


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    return read_run(write_run(tmp_path_factory.mktemp("small") / "mine", "failed"))


def test_lines_and_steps_of_all_epochs_are_read_in_their_order(run):
    assert run.missing == []
    assert run.line("val/acc") == ([1, 2, 3], list(VAL_ACC))
    assert run.line("train/loss") == ([1, 2, 3], list(TRAIN_LOSS))
    assert run.line("test/acc") == ([], [])
    assert run.steps("train/step_loss") == ([1, 2, 3, 4, 5, 6], list(STEP_LOSSES))
    assert run.steps("lr") == ([1, 2, 3, 4, 5, 6], list(LRS))
    assert run.value("result/test/acc") == 0.5 and run.value("val/acc") == 0.5 and run.value("nothing") is None


def test_the_epochs_are_watched_on_validation_and_the_result_is_reported_on_test(run, unfinished):
    assert (run.watched, run.split) == ("val", "test")
    assert (unfinished.watched, unfinished.split) == ("val", "val")
    assert (run.figure("test/acc"), run.name, run.classes) == (0.5, "mine", ["ant", "bee", "cat"])


def test_the_headline_has_each_figure_with_its_split_its_epoch_and_its_interval(run):
    shown = {fact.name: (fact.value, fact.note) for fact in facts.headline(run)}
    assert shown["Test accuracy"][0] == "50.00 %"
    assert shown["Test accuracy"][1].startswith("epoch 2 of 3 (best val/acc); 95 % interval")
    assert shown["Test accuracy"][1].endswith("for 4 images")
    assert shown["Validation accuracy"][0] == "62.50 %" and shown["Validation accuracy"][1].endswith("for 8 images")
    assert (shown["Test loss"][0], shown["Test ECE"][0]) == ("1.0800", "50.00 %")
    assert shown["Parameters"][0] == "1,234"
    # 1.5 before, 12 of epochs, 2.25 at the end
    assert shown["Duration"] == ("15.8 s", "3 epochs, 6 steps")
    assert "Best epoch" not in shown  # it is the result


def test_the_figures_of_the_weights_without_their_moving_average_are_headlines_beside_the_average(run):
    result = {**run.result, "val/acc_plain": 0.375}
    shown = {
        fact.name: fact.value
        for fact in facts.headline(dataclasses.replace(run, summary={**run.summary, "result": result}))
    }
    assert (shown["Validation accuracy"], shown["Validation accuracy, without EMA"]) == ("62.50 %", "37.50 %")
    of_labels = dataclasses.replace(
        run,
        config={**run.config, "data": "table", "label_separator": "|"},
        summary={**run.summary, "result": {"val/map": 0.5, "val/map_plain": 0.25, "epoch": 2, "chosen": "last epoch"}},
    )
    shown = {fact.name: fact.value for fact in facts.headline(of_labels)}
    assert (shown["Validation mAP"], shown["Validation mAP, without EMA"]) == ("50.00 %", "25.00 %")


@pytest.mark.parametrize(("split", "is_shown"), [("val", True), ("test", False)])
def test_the_best_epoch_is_a_headline_only_where_a_validation_split_chose_it(run, split, is_shown):
    best = {"epoch": 3, f"{split}/acc": 0.7, "chosen": f"best {split}/acc"}
    changed = dataclasses.replace(run, summary={**run.summary, "best": best})
    assert ("Best epoch" in {fact.name for fact in facts.headline(changed)}) == is_shown


def test_what_is_wrong_with_the_data_is_on_the_page(run):
    notes = ["the centre crop cuts 14% off", "1 of 4 test images stand in the training images too: <b>.png"]
    dataset = {**run.dataset, "notes": notes, "skipped": 2, "skipped_images": "cat/a.png, cat/b.png"}
    page = run_page(dataclasses.replace(run, header={**run.header, "dataset": dataset}))
    for text in (notes[0], "&lt;b&gt;.png", "2 unreadable images were left out: cat/a.png, cat/b.png"):
        assert f"{text}</p>" in page
    assert "<b>.png" not in page
    before = {**dataset, "notes": None, "skipped": 1}  # of a run that kept no names
    del before["skipped_images"]
    shown = facts.data_notes(dataclasses.replace(run, header={**run.header, "dataset": before}))
    assert shown == ["1 unreadable image was left out"]
    assert "<strong>Data:</strong>" not in run_page(run)


@pytest.mark.parametrize(
    ("data", "data_dir", "name"),
    [("folder", "/x/my pictures/", "my pictures"), ("table", "my/pets.csv", "pets"), ("digits", "", "digits")],
)
def test_the_page_and_the_model_card_name_the_data_by_its_folder(run, data, data_dir, name):
    config = Config(data=data, data_dir=data_dir, model="resnet18")
    changed = dataclasses.replace(run, config=config.to_dict())
    assert f"resnet18 on {name}, seed 0" in run_page(changed)
    assert dict(facts.configuration(changed))["Data"].startswith(f"{name}: 16 train")
    preprocess = dataclasses.asdict(Preprocess(8, (0.5,) * 3, (0.5,) * 3, 1.0, "bicubic"))
    model = {"config": config.to_dict(), "classes": ["a", "b"], "preprocess": preprocess, "epoch": 1, "result": {}}
    assert f"# resnet18 on {name}\n" in model_card(model)


def test_an_unfinished_run_shows_its_last_and_its_best_epoch_so_far(unfinished):
    shown = {fact.name: (fact.value, fact.note) for fact in facts.headline(unfinished)}
    value, note = shown["Validation accuracy so far"]
    assert value == "50.00 %" and note == "epoch 3 of 3, not a final result; best so far 62.5 % in epoch 2"


def test_the_phases_are_disjoint_and_add_up_to_the_whole_time(run, unfinished):
    train, evaluate, epoch = (sum(SECONDS[key]) for key in ("train", "eval", "epoch"))
    expected = {
        "startup": 1.5, "training": train, "evaluation": evaluate, "rest of the epochs": epoch - train - evaluate,
        "final evaluation and figures": 2.25,
    }  # fmt: skip
    assert facts.times(run) == pytest.approx(expected)
    assert sum(facts.times(run).values()) == pytest.approx(1.5 + epoch + 2.25)
    del expected["final evaluation and figures"]
    assert facts.times(unfinished) == pytest.approx(expected)
    assert "15.8 s in total, most of it training (48 %)" in run_charts.time(facts.times(run)).caption


def test_the_captions_by_epoch_name_the_last_and_the_best_value_of_each_split(run):
    loss, acc, lr = run_charts.by_epoch(run)
    assert loss.caption == ("Training: last 0.75, best 0.75 (epoch 3); validation: last 1.1, best 0.9 (epoch 2).")
    assert acc.caption == "Validation: last 50.0 %, best 62.5 % (epoch 2)."
    assert lr.caption == "At the end of each epoch, from 0.03 to 0.015."
    lines = {trace["name"]: (trace["x"], trace["y"]) for trace in loss.data}
    assert lines == {"training": ([1, 2, 3], list(TRAIN_LOSS)), "validation": ([1, 2, 3], list(VAL_LOSS))}


def test_with_a_moving_average_the_charts_have_a_dotted_line_of_the_weights_without_it(run):
    plain = (0.125, 0.375, 0.75)
    records = [
        dataclasses.replace(record, values={**record.values, "val/acc_plain": plain[record.epoch - 1]})
        if record.kind == "epoch"
        else record
        for record in run.records
    ]
    changed = dataclasses.replace(run, records=records, config={**run.config, "ema": 0.99})
    _, acc, _ = run_charts.by_epoch(changed)
    assert acc.caption == (
        "Validation: last 50.0 %, best 62.5 % (epoch 2); validation without EMA: last 75.0 %, best 75.0 % (epoch 3)."
    )
    average, weights = acc.data
    assert (weights["x"], weights["y"]) == ([1, 2, 3], list(plain))
    assert weights["line"]["dash"] == "dot" and weights["line"]["color"] == average["line"]["color"]
    assert "moving average of the weights (EMA) 0.99" in dict(facts.configuration(changed))["Optimizer"]
    assert "EMA" not in dict(facts.configuration(run))["Optimizer"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_axis_of_many_epochs_has_few_ticks_whichever_split_is_evaluated(run, split):
    records = [Record(number, number, {"train/loss": 1.0, f"{split}/loss": 2.0, "lr": 0.1}) for number in range(1, 201)]
    loss = run_charts.by_epoch(dataclasses.replace(run, records=records))[0]
    assert loss.layout["xaxis"]["dtick"] == 25


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, ""),
        ({"label_smoothing": 0.1}, "the cross entropy with label smoothing 0.1"),
        ({"mixup": 0.2}, "the cross entropy with mixed images"),
        ({"label_smoothing": 0.1, "class_weights": "balanced", "cutmix": 1.0},
         "the cross entropy with weights of the classes and label smoothing 0.1 and mixed images"),
        ({"loss": "focal"}, "the focal loss"),
        ({"loss": "bce", "label_smoothing": 0.05}, "the binary cross entropy with label smoothing 0.05"),
    ],
)  # fmt: skip
def test_the_charts_of_the_loss_say_how_the_training_loss_differs_from_that_of_the_other_splits(run, changes, text):
    settings = {**run.config, "label_smoothing": 0.0, **changes}
    changed = dataclasses.replace(run, config=settings)
    by_epoch, by_step = run_charts.by_epoch(changed)[0].caption, run_charts.by_step(changed)[0].caption
    assert (f"The training loss is {text}; that of the other splits is the cross entropy" in by_epoch) == bool(text)
    assert by_step.endswith(f"It is {text}." if text else "(about 10 steps).")


def test_the_charts_by_step_have_every_step_and_name_the_highest_rate(run):
    loss, lr = run_charts.by_step(run)
    assert {trace["mode"] for trace in loss.data} == {"lines"}
    assert (loss.data[0]["x"], loss.data[0]["y"]) == ([1, 2, 3, 4, 5, 6], list(STEP_LOSSES))
    smoothed, weight, total = [], 0.0, 0.0
    for value in STEP_LOSSES:  # the weighted mean of all before, 0.9 times less for each step
        total, weight = 0.9 * total + value, 0.9 * weight + 1
        smoothed.append(total / weight)
    assert loss.data[1]["y"] == pytest.approx(smoothed, rel=1e-4)
    assert loss.caption.startswith("Loss of each of 6 batches")
    assert lr.caption == "From 0.01 to 0.05; highest at step 3 of 6."


def test_the_confusion_matrix_has_truth_in_its_rows_and_fractions_of_the_true_class(run):
    (heat,) = run_charts.confusion(run.predictions).data
    assert heat["text"] == [[1, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert heat["z"] == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    assert heat["customdata"][0][1] == ["ant", "bee", 1]
    assert run_charts.confusion(run.predictions).caption.startswith("2 of 4 images are correctly classified")


@pytest.mark.parametrize(
    ("right", "word", "points"), [((0, 3), "overconfident", "20.0"), ((0, 1, 2), "underconfident", "5.0")]
)
def test_a_model_is_overconfident_where_its_confidence_is_above_its_accuracy(run, right, word, points):
    predictions = run.predictions
    labels = [predictions.predicted[n] if n in right else (predictions.predicted[n] + 1) % 3 for n in range(4)]
    counted = metrics.SavedPredictions(
        predictions.classes, np.array(labels), predictions.predicted, predictions.confidence, predictions.losses
    )
    assert sum(row[2] for row in IMAGES) / 4 == pytest.approx(0.7)  # the mean confidence
    caption = run_charts.calibration(metrics.reliability(counted)).caption
    assert (
        f"Mean confidence 70.0 %, accuracy {100 * len(right) / 4:.1f} %: {word} by {points} percentage points"
        in caption
    )


def test_runs_on_other_data_or_with_other_settings_are_other_groups_and_another_seed_is_the_same(tmp_path):
    runs = [
        read_run(write_run(tmp_path / name, **settings))
        for name, settings in {
            "a": {}, "b": {"seed": 1}, "c": {"fingerprint": "e" * 16}, "d": {"weight_decay": 0.25}, "e": {"notes": "x"}
        }.items()
    ]  # fmt: skip
    groups = group_runs(runs)
    assert [[run.path.name for run in group.runs] for group in groups] == [["a", "b", "e"], ["c"], ["d"]]
    assert groups[0].seeds == [0, 1]
    interval = groups[0].spread("test/acc")
    assert (interval.mean, interval.sd, interval.n) == (0.5, 0.0, 2)  # `a` and `e` are one seed
    assert run_differences(runs) == {
        "weight_decay": [runs[0].config["weight_decay"]] * 3 + [0.25, runs[0].config["weight_decay"]], "seed": [0, 1, 0, 0, 0]
    }  # fmt: skip


def test_the_page_of_a_range_test_says_that_nothing_was_trained_and_shows_the_rates_found(run):
    found = {"lr_min": 0.008, "lr_max": 0.24}
    rows = dict(facts.configuration(dataclasses.replace(run, records=[], summary={}, finder=found)))
    assert rows["Range test"] == "batch size 512, seed 0, for a training of 3 epochs" and "Training" not in rows
    assert "0.008 to 0.24" in rows["Learning rate"]
    begun = dataclasses.replace(run, records=[], summary={}, finder=found, config={**run.config, "lr_max": "find"})
    assert "Training" in dict(facts.configuration(begun))  # a run that begins with a range test


def test_the_configuration_names_what_was_trained(run):
    rows = dict(facts.configuration(run))
    assert rows["Data"] == "cifar10: 16 train, 8 val, 4 test images" and rows["Classes"] == "3: ant, bee, cat"
    assert rows["Training"] == "3 epochs, batch size 512, seed 0"
    changed = {setting.name: setting.recipe_value for setting in facts.all_settings(run) if setting.changed}
    assert changed["val_fraction"] == "0" and set(changed) >= {"epochs", "peak_epoch", "val_fraction"}
    for recipe, own in (("digits", "digits"), ("../mine.yaml", Config().recipe)):  # of a file: the recipe by default
        values = {**make_config({}, own).to_dict(), "epochs": 77, "recipe": recipe}
        settings = facts.all_settings(dataclasses.replace(run, config=values))
        former = setting_text(make_config({}, own).epochs)
        assert [(each.name, each.recipe_value) for each in settings if each.changed] == [("epochs", former)]
    assert tuple(run.classes) == small_run.CLASSES


def test_the_page_names_the_commit_and_whether_it_was_changed(run):
    def shown(**git):
        summary = {**run.summary, "environment": {"device": "cpu", **({"git": git} if git else {})}}
        return dict(facts.environment_facts(dataclasses.replace(run, summary=summary)))["Git"]

    assert shown() == "not run in a Git checkout"
    assert shown(commit="abc", changed=False) == "abc"
    assert shown(commit="abc", changed=True) == "abc, with uncommitted changes"


@pytest.mark.parametrize(
    ("settings", "text"),
    [({}, ""), ({"warmup_epochs": 1}, ", after a warm-up of 1 epoch"), ({"warmup_steps": 20}, ", after a warm-up of 20 updates")],
)  # fmt: skip
def test_the_configuration_names_the_warm_up(tmp_path, settings, text):
    rates = dict(facts.configuration(read_run(write_run(tmp_path / "run", "stopped", **settings))))["Learning rate"]
    assert rates.endswith(text) and ("warm-up" in rates) == bool(text)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "crop auto, flip, cutout 8 (timm)"),
        ({"augment": "none", "auto_augment": "3a"}, "none"),
        (
            {"auto_augment": "rand-m9", "color_jitter": "0.4,0.2,0.1", "erasing": 0.25, "aug_repeats": 3, "cutout": 0},
            "crop auto, flip, rand-m9, color_jitter 0.4, 0.2, 0.1, erasing 0.25, aug_repeats 3 (timm)",
        ),
        (
            {
                "augment": "albumentations",
                "augment_pipeline": {"transform": {"__class_fullname__": "Blur"}},
                "mixup": 0.2,
            },
            "a pipeline of one's own, mixup 0.2 (albumentations)",
        ),
    ],
)
def test_the_configuration_names_the_augmentation(tmp_path, settings, text):
    run = read_run(write_run(tmp_path / "r", **settings))
    assert dict(facts.configuration(run))["Augmentation"] == text


def test_figures_that_are_not_known_leave_their_interval_out(run):
    for dataset in ({"images": {"test": "four"}}, {"images": {"test": 0}}, {}):
        unknown = dataclasses.replace(
            run, summary={**run.summary, "dataset": dataset}, header={**run.header, "dataset": dataset}
        )
        assert facts.accuracy_interval(unknown, "test") is None
        shown = {fact.name: fact.note for fact in facts.headline(unknown)}
        assert shown["Test accuracy"] == "epoch 2 of 3 (best val/acc)"


@pytest.mark.parametrize(("split", "hits", "images"), [("test", 2, 4), ("val", 5, 8)])
def test_the_interval_of_each_split_is_that_of_its_own_hits(run, split, hits, images):
    expected = scipy.stats.binomtest(hits, images).proportion_ci(method="wilson")
    assert facts.accuracy_interval(run, split) == pytest.approx((expected.low, expected.high, images))


@pytest.mark.parametrize(
    ("command", "shown"),
    [("harness run --name 'open", ""), (3, ""), ("/usr/bin/harness run --name 'a b'", "harness run --name 'a b'")],
)
def test_a_recorded_command_that_no_shell_reads_is_left_out(run, command, shown):
    environment = {**run.header["environment"], "command": command}
    titles = dict(facts.reproduce_commands(dataclasses.replace(run, header={**run.header, "environment": environment})))
    assert titles.get("Original command", "") == shown


def test_settings_that_cannot_be_parsed_are_all_settings(run):
    assert "name" not in affecting_settings(run) and affecting_settings(run)["val_fraction"] == 0.1
    config = {**run.config, "epochs": "many"}
    assert affecting_settings(dataclasses.replace(run, config=config)) == config


def test_limits_and_ticks_of_no_finite_values_are_left_to_the_chart():
    nothing = Curve("lr", [0.1, 1.0], {"median": [math.nan, math.inf]})
    assert run_charts.loss_limits(nothing) is None and run_charts.loss_limits(Curve("lr", [], {})) is None
    assert log_ticks([math.nan, 0.0, -1.0]) == {} and log_ticks([0.02, 0.3])["tickvals"][0] == 0.01
    assert plain_numbers([1, 2.5, math.nan, math.inf, 1 / 3, 2.0]) == [1, 2.5, None, None, 0.333333, 2]


@pytest.mark.parametrize(("classes", "is_drawn", "height"), [(3, True, 360), (100, True, 680), (2000, False, None)])
def test_a_matrix_of_more_classes_than_fit_is_left_out_and_one_of_many_names_is_of_a_fixed_height(
    classes, is_drawn, height
):
    names = [f"c{index}" for index in range(classes)]
    labels = np.arange(classes)
    chart = run_charts.confusion(metrics.SavedPredictions(names, labels, labels, np.full(classes, 0.5), []))
    assert (chart is not None) == is_drawn and (not is_drawn or chart.height == height)
