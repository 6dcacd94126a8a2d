"""The range test takes the steps of training, changes nothing outside itself, and reports its result in each form."""

import dataclasses
import json
import math
import random
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from plotly.graph_objects import Figure
from torch import nn
from torch.nn import functional as F

from harness.config import yaml_io
from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.data.dataset import Dataset, in_memory
from harness.lr_finder.finder import LRFinder, LRFinderOptions, hold_out_for_finder, with_placeholder_lr
from harness.lr_finder.range_test import (
    LRRange,
    ShortRun,
    candidate_lrs,
    curve_of_seed,
    default_range,
    median_curve,
    range_test,
    short_run,
)
from harness.lr_finder.result import (
    MAX_ROWS,
    first_band,
    inherited_settings,
    result_table,
    sweep_definition,
    sweep_yaml,
)
from harness.lr_finder.suggestion import lr_min_for
from harness.reporting.range_test_chart import MAX_POINTS, range_test_chart
from harness.runs import lr_find
from harness.runs.components import build_components
from harness.runs.progress import ProgressReporter
from harness.tracking.journal import read_journal
from harness.tracking.records import Curve, Table
from harness.tracking.tracker import NullTracker
from harness.training.learner import make_learner
from harness.training.loop import fit
from harness.training.own_losses import register_loss
from harness.training.rng import preserve_rng_state
from harness.training.schedule import Schedule
from harness.utils import registry
from harness.utils.errors import UsageError
from harness.utils.seeding import seed_for
from tests.support.wandb_files import offline_runs

CPU = torch.device("cpu")
UNIFORM_LOSS = math.log(3)


class Batches:
    """Images whose mean brightness by channel determines the class; a function of seed and epoch."""

    def __init__(self, seed=0, sizes=(16,) * 5, nan_from=None):
        self.seed, self.sizes, self.nan_from = seed, sizes, nan_from
        self.steps, self.num_images = len(sizes), sum(sizes)

    def epoch(self, epoch, start=0):
        generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
        for index, size in enumerate(self.sizes):
            labels = torch.randint(0, 3, (size,), generator=generator)
            images = torch.randn(size, 3, 8, 8, generator=generator)
            images += 1.5 * F.one_hot(labels, 3)[:, :, None, None]
            if self.nan_from is not None and epoch * self.steps + index >= self.nan_from:
                images = images * math.nan
            if index >= start:
                yield images, labels


class ValLoader(list):
    num_images = 60


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(216, 3)
    )


def learner_factory(**settings):
    config = Config(**{"precision": "fp32", "channels_last": False, **settings})
    return lambda seed: make_learner(config, net(seed), CPU, None)


def val_loader():
    return ValLoader(next(Batches(99, sizes=(20,)).epoch(epoch)) for epoch in range(3))


def measure(lr_range, **more):
    settings = {"seed": 0, "momentum": 0.9, "uniform_loss": UNIFORM_LOSS, **more}
    factories = settings.pop("learner_factory", learner_factory()), settings.pop("loader_factory", Batches)
    return curve_of_seed(*factories, lr_range, **settings)


def bits(value):
    """Return nested values with tensors as bytes, for bit-exact comparison."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return [(key, bits(part)) for key, part in value.items()]
    return [bits(part) for part in value] if isinstance(value, list | tuple) else value


def streams():
    """Return the state of every random stream."""
    return (
        random.getstate(),
        bits(tuple(part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state())),
        torch.get_rng_state().tolist(),
    )


def test_the_learning_rates_rise_exponentially_or_linearly_and_hit_both_ends():
    exponential, linear = LRRange(1e-4, 1.0, 100), LRRange(0.4, 1.0, 13, "linear")
    assert [exponential.lr(step) for step in range(100)] == pytest.approx(np.geomspace(1e-4, 1.0, 100))
    assert [linear.lr(step) for step in range(13)] == pytest.approx(np.linspace(0.4, 1.0, 13))
    assert exponential.lr(exponential.max_steps - 1) == pytest.approx(100.0, rel=0.1)
    assert linear.lr(linear.max_steps - 1) < 4 * 1.0


@pytest.mark.parametrize(
    ("values", "message"), [((0.0, 1.0, 50), "0 < low"), ((1.0, 0.1, 50), "low < high"), ((0.1, 1.0, 3), "at least 10")]
)
def test_an_impossible_range_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        LRRange(*values)


def test_the_default_range_is_fine_enough_and_as_wide_as_requested():
    for optimizer in ("sgd", "adamw"):
        lr_range = default_range(optimizer)
        assert lr_range.steps / math.log10(lr_range.high / lr_range.low) >= 20
    assert default_range("adamw").low < default_range("sgd").low
    assert default_range("sgd", low=1e-8).steps == 200
    assert default_range("sgd", steps=30, low=0.1, high=0.2) == LRRange(0.1, 0.2, 30)
    assert default_range("sgd", low=5.0).high > 5.0
    assert default_range("sgd", high=1e-5).low < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ema": 0.9},
        {"clip_grad": 0.5, "grad_accumulation": 2},
        {"optimizer": "adamw", "label_smoothing": 0.1},
        {"momentum": 0.0, "nesterov": False, "weight_decay": 0.1},
    ],
)
def test_a_step_of_the_test_is_a_step_of_training(settings):
    """Compare with `fit` under a schedule that rises as the test does: losses, accuracies and learning rates."""

    class Rising(Schedule):
        def lr(self, step, losses=()):
            return lr_range.lr(step)

    lr_range = LRRange(1e-4, 1e-2, 10)
    momentum = settings.get("momentum", 0.9)
    curve = measure(lr_range, learner_factory=learner_factory(**settings), momentum=momentum, val_loader=val_loader())
    (record, *_) = fit(
        learner_factory(**settings)(0), Batches(0, (16,) * 5), Rising("constant", 10, 1, 1, momentum=momentum), epochs=1
    )
    assert curve.losses[:5].tolist() == record.steps.lines["train/step_loss"]
    assert curve.lrs[:5].tolist() == record.steps.lines["lr"]
    assert curve.accs[:5].mean() == pytest.approx(record.values["train/acc"])


def test_the_gradient_norm_is_that_of_the_whole_gradient():
    curve = measure(LRRange(1e-4, 1e-2, 10))
    model = net(0).train()
    images, labels = next(Batches(0).epoch(0))
    torch.manual_seed(seed_for(0, "epoch", 0))
    F.cross_entropy(model(images), labels).backward()
    assert curve.norms[0] == pytest.approx(
        torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item(), rel=1e-5
    )


def test_evaluating_the_held_out_images_changes_nothing():
    lr_range = LRRange(1e-4, 1.0, 20)
    one, other = measure(lr_range, val_loader=val_loader()), measure(lr_range)
    assert one.losses.tolist() == other.losses.tolist()
    assert len(one.val_points) >= 15
    assert not other.val_points
    learner = learner_factory()(0)
    scores = {}
    for step, (images, labels) in enumerate(Batches(0).epoch(0)):
        if step == 0:
            torch.manual_seed(seed_for(0, "epoch", 0))
        learner.train_step(images, labels, step, lr_range.lr(step), 0.9)
        learner.model.eval()
        with torch.no_grad():
            images, labels = (torch.cat(components) for components in zip(*val_loader(), strict=True))
            scores[step] = F.cross_entropy(learner.model(images), labels).item()
        learner.model.train()
    for step, loss in scores.items():
        assert one.val_points[step][0] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}, {"optimizer": "adamw"}])
def test_training_after_a_test_is_bit_identical_to_training_without_it(settings):
    def train(first):
        random.seed(1), np.random.seed(2), torch.manual_seed(3)
        learner = learner_factory(**settings)(0)
        torch.manual_seed(4)
        for _ in first():
            pass
        records = list(fit(learner, Batches(), Schedule("one_cycle", 10, 0.01, 0.1, peak=3), epochs=2))
        return bits([learner.state_dict(), [dict(record.steps.lines) for record in records], streams()])

    def range_tests():
        return range_test(
            learner_factory(**settings),
            Batches,
            LRRange(1e-4, 10.0, 30),
            seeds=[0, 1],
            momentum=0.9,
            uniform_loss=UNIFORM_LOSS,
            curves=[],
            val_loader=val_loader(),
        )

    assert train(range_tests) == train(lambda: ())


def test_every_random_stream_is_restored_also_when_the_test_is_stopped():
    class Stop(Exception):
        pass

    def stop_at_the_third_step(step_info):
        if step_info.step == 3:
            random.random(), np.random.rand(), torch.rand(1)
            raise Stop

    before = streams()
    with pytest.raises(Stop):
        measure(LRRange(1e-4, 1.0, 20), on_step=stop_at_the_third_step)
    assert streams() == before
    with preserve_rng_state():
        random.random(), np.random.rand(), torch.rand(1)
    assert streams() == before


def test_between_the_records_of_two_seeds_the_callers_random_stream_continues():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = []
    for _ in range_test(
        learner_factory(),
        Batches,
        LRRange(1e-3, 1.0, 10),
        seeds=[0, 1, 2],
        momentum=0.9,
        uniform_loss=UNIFORM_LOSS,
        curves=[],
    ):
        drawn.append(torch.rand(1))
        assert torch.is_grad_enabled()
    assert torch.equal(torch.cat(drawn), expected)


def test_the_same_seed_gives_the_same_curve_and_another_one_another():
    lr_range = LRRange(1e-4, 1.0, 20)
    assert measure(lr_range).losses.tolist() == measure(lr_range).losses.tolist()
    assert measure(lr_range).losses.tolist() != measure(lr_range, seed=1, loader_factory=Batches).losses.tolist()


def test_it_stops_at_divergence_and_extends_the_range_where_there_was_none():
    plain = {"learner_factory": learner_factory(weight_decay=0.0)}
    far = measure(LRRange(1e-3, 1e4, 70), **plain)
    assert far.end != "end of range"
    assert len(far.lrs) < 70
    near = measure(LRRange(1e-3, 0.05, 30), **plain)
    assert len(near.lrs) > 30
    assert near.lrs[-1] > 0.05
    assert near.lrs[1:] / near.lrs[:-1] == pytest.approx(near.lrs[1] / near.lrs[0])
    assert len(measure(LRRange(1e-9, 1e-8, 10), **plain).lrs) == LRRange(1e-9, 1e-8, 10).max_steps


@pytest.mark.parametrize("nan_from", [0, 7])
def test_nan_stops_it_at_once(nan_from):
    curve = measure(LRRange(1e-4, 1e-2, 20), loader_factory=lambda seed: Batches(seed, nan_from=nan_from))
    assert curve.end == "not finite"
    assert len(curve.lrs) == nan_from + 1
    assert np.isfinite(curve.losses[:nan_from]).all()


def test_an_epochs_end_does_not_end_the_test():
    assert len(measure(LRRange(1e-5, 1e-4, 40), loader_factory=lambda seed: Batches(seed, sizes=(8, 5))).lrs) > 40


def test_no_batches_at_all_is_an_error_and_not_waited_for():
    with pytest.raises(UsageError, match="no batches"):
        measure(LRRange(1e-4, 1.0, 20), loader_factory=lambda seed: Batches(seed, sizes=()))


def test_the_record_of_a_seed_is_a_curve_over_the_learning_rate():
    curves = []
    records = list(
        range_test(
            learner_factory(),
            Batches,
            LRRange(1e-3, 1.0, 20),
            seeds=[3, 4],
            momentum=0.9,
            uniform_loss=UNIFORM_LOSS,
            curves=curves,
        )
    )
    assert [list(record.details) for record in records] == [["find/seed_3"], ["find/seed_4"]]
    assert {(record.kind, record.step) for record in records} == {("find", 0)}
    assert list(records[0].details["find/seed_3"].x) == curves[0].lrs[: curves[0].finite].tolist()


def test_the_middle_curve_is_the_median_over_the_seeds():
    curves = [measure(LRRange(1e-3, 1e-1, 20), seed=seed) for seed in range(3)]
    curve = median_curve(curves, "smoothed")
    columns = [curve.smoothed[10] for curve in curves]
    assert curve.lines["median"][10] == pytest.approx(np.median(columns))
    assert (curve.lines["low"][10], curve.lines["high"][10]) == pytest.approx((min(columns), max(columns)))


def test_short_runs_lie_around_the_suggestion_and_separate_a_good_rate_from_a_bad_one():
    assert candidate_lrs(0.1, 5) == pytest.approx([0.1, 0.05, 0.2, 0.025, 0.4])
    before = streams()
    good, bad = (
        short_run(
            learner_factory(),
            Batches,
            val_loader(),
            Schedule("one_cycle", 30, lr / 10, lr, peak=6, momentum=0.9),
            seed=0,
        )
        for lr in (0.01, 1e-7)
    )
    assert good.acc > 0.8 > bad.acc
    wild = short_run(
        learner_factory(),
        lambda seed: Batches(seed, nan_from=3),
        val_loader(),
        Schedule("one_cycle", 9, 1, 9, peak=2),
        seed=0,
    )
    assert (wild.acc, math.isnan(wild.loss)) == (0.0, True)
    assert streams() == before


def test_a_short_run_is_trained_and_evaluated_as_a_whole_run_with_its_schedule():
    cycle = Schedule("one_cycle", 15, 0.002, 0.02, peak=4, momentum=0.9, momentum_min=0.8)
    one = short_run(learner_factory(), Batches, val_loader(), cycle, seed=2)
    records = fit(learner_factory()(2), Batches(2), cycle, epochs=3, seed=2, evaluations={"val": val_loader()})
    last = list(records)[-1].values
    assert (one.loss, one.acc) == (last["val/loss"], last["val/acc"])
    assert (one.lr_min, one.lr_max, one.steps) == (0.002, 0.02, 15)


QUICK = {
    "recipe": "digits",
    "model_args": {"width": 4},
    "batch_size": 64,
    "epochs": 4,
    "threads": 1,
    "wandb": "disabled",
    "precision": "fp32",
}


class Silent(ProgressReporter):
    def __init__(self):
        self.messages = []

    def on_step(self, info):
        assert info.loss() is not None

    def on_epoch(self, record, epochs):
        self.messages.append(record)

    def message(self, text):
        self.messages.append(text)


@pytest.fixture(scope="module")
def reporter():
    return Silent()


@pytest.fixture(scope="module")
def finished_test(tmp_path_factory, reporter):
    """One range test on real data, with two short runs and a sweep: (result, folder)."""
    folder = tmp_path_factory.mktemp("range test")
    config = make_config({**QUICK, "wandb": "offline", "output": folder / "runs", "lr_max": "find", "lr_min": "find"})
    config = config.replace(link="vision/cats")
    result = lr_find.find_lr(config, steps=40, seeds=2, confirm=2, write_sweep=folder / "sweep.yaml", reporter=reporter)
    return result, folder


def test_it_says_that_it_links_no_model(finished_test, reporter):
    assert [text for text in reporter.messages if "link=" in str(text)] == [
        "link=vision/cats: a range test logs no model, so it links none; give --link to the run that trains"
    ]


def test_data_that_only_python_has_gives_no_command_and_no_sweep(finished_test, tmp_path):
    result = dataclasses.replace(finished_test[0], config=finished_test[0].config.replace(data="python/Pictures"))
    assert result.lr_max and result.command == result.to_json()["command"] == ""
    assert "harness run" in result_table(finished_test[0]) and "harness run" not in result_table(result)
    with pytest.raises(UsageError, match="trials of a sweep cannot load python/Pictures"):
        sweep_yaml(result, tmp_path / "sweep.yaml")


def test_it_leaves_a_figure_a_json_file_with_reasons_and_a_journal(finished_test):
    result, _ = finished_test
    with Image.open(result.folder / "figures" / "lr_finder.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
    stored = json.loads((result.folder / "lr_finder.json").read_text())
    assert stored["lr_max"] == result.lr_max
    assert len(stored["reasons"]) == 3
    assert len(stored["seeds"]) == 2
    assert len(stored["seeds"][0]["losses"]) == len(stored["seeds"][0]["lrs"]) == len(stored["seeds"][0]["smoothed"])
    assert {rule["rule"] for rule in stored["rules"]} >= {
        "accuracy peak",
        "valley",
        "minimum/10",
        "steepest",
        "first divergence",
    }
    journal = read_journal(result.folder / "journal.jsonl")
    assert {record.kind for record in journal.records} == {"find"}
    assert journal.status == "finished"
    last, details = journal.records[-1].values, journal.records[-1].details
    assert isinstance(details["find/loss"], Curve)
    assert details["find/loss"].marks["LRMAX"] == details["find/lr_max"] == result.lr_max
    assert isinstance(last["find/steps"], Table)
    assert len(last["find/steps"].rows) == sum(len(curve.lrs) for curve in result.curves)
    assert json.loads((result.folder / "status.json").read_text())["state"] == "finished"


def test_wandb_gets_one_chart_and_one_table_with_all_seeds_and_the_rates_in_the_summary(finished_test):
    result, _ = finished_test
    (offline_run,) = offline_runs(result.folder)
    (row,) = offline_run.rows
    assert row["_step"] == 0
    assert offline_run.job_type == "find"
    assert {key.split(".")[0] for key in row if not key.startswith("_")} == {"epoch", "find/chart", "find/steps"}
    assert row["find/steps.nrows"] == sum(len(curve.lrs) for curve in result.curves)
    assert not any(key.startswith("_wandb.visualize") for key in offline_run.config)
    chart = json.loads((offline_run.folder / "files" / row["find/chart.path"]).read_text())
    assert chart["layout"]["xaxis"]["type"] == "log"
    assert offline_run.summary["find/lr_max"] == result.lr_max
    assert offline_run.exit_code == 0


def test_the_chart_has_the_losses_of_every_seed_and_a_line_at_lrmin_and_lrmax(finished_test):
    result, _ = finished_test
    chart = range_test_chart(result)
    lines = {(trace["name"], trace.get("yaxis", "y")): trace for trace in chart.data}
    for curve in result.curves:
        trace = lines[f"seed {curve.seed}, each step", "y"]
        assert trace["x"] == pytest.approx(curve.lrs[: curve.finite].tolist(), rel=1e-5)
        assert trace["y"] == pytest.approx(curve.losses[: curve.finite].tolist(), rel=1e-5)
        assert (f"seed {curve.seed}", "y2") in lines
    marks = [shape["x0"] for shape in chart.layout["shapes"] if shape["type"] == "line"]
    assert marks == [result.lr_min, result.lr_max]
    assert [note["x"] for note in chart.layout["annotations"]] == pytest.approx(np.log10(marks))
    assert [note["text"].split()[0] for note in chart.layout["annotations"]] == ["LRMIN", "LRMAX"]
    assert (
        Figure({"data": list(chart.data), "layout": chart.layout}).layout.xaxis.type == "log"
    )  # Plotly takes all of it


def test_chart_and_table_of_a_hundred_seeds_are_bounded(finished_test):
    result, _ = finished_test
    columns = ("lrs", "losses", "accs", "norms")
    long = dataclasses.replace(
        result.curves[0], **{name: np.tile(getattr(result.curves[0], name), 3) for name in columns}
    )
    seeds = [dataclasses.replace(long, seed=seed) for seed in range(100)]
    many = dataclasses.replace(result, curves=seeds, short_runs=())
    assert sum(len(curve.lrs) for curve in many.curves) > MAX_ROWS >= len(many.steps_table().rows)
    assert sum(len(trace["x"]) for trace in range_test_chart(many).data) <= 1.1 * MAX_POINTS


def test_it_finds_rates_that_train(finished_test):
    result, _ = finished_test
    assert 3e-3 < result.lr_max < 0.3
    assert 2.9 <= result.lr_max / result.lr_min <= 31
    assert max(run.acc for run in result.short_runs) > 0.5
    assert result.lr_max == max(result.short_runs, key=lambda run: run.acc).lr_max


def test_the_held_out_images_are_not_trained_on(finished_test):
    result, _ = finished_test
    data = build_components(with_placeholder_lr(result.config)).dataset
    dataset, remark = hold_out_for_finder(data, result.config)
    assert remark == ""
    assert not set(dataset.train.ids) & set(dataset.val.ids)
    assert len(dataset.train) + len(dataset.val) == len(data.train)
    assert len(dataset.val) == result.held_out_images
    assert dataset.test is None


def test_the_table_names_every_rule_and_ends_with_the_command_that_trains_with_the_rates(finished_test):
    result, _ = finished_test
    shown = result_table(result)
    for rule in result.suggestion.rules:
        assert rule.rule in shown
    words = shlex.split(shown.splitlines()[-1])
    assert words[:2] == ["harness", "run"]
    options = {name.lstrip("-"): value for name, value in zip(words[2::2], words[3::2], strict=True)}
    again = make_config(options)
    assert (again.lr_max, again.lr_min) == (result.lr_max, result.lr_min)
    assert again.affecting_results() == {
        **result.config.affecting_results(),
        "lr_max": result.lr_max,
        "lr_min": result.lr_min,
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 24, "peak_epoch": 5}, 15),
        ({"epochs": 24, "peak_epoch": 20}, 22),
        ({"epochs": 24, "peak_epoch": 20, "schedule": "constant"}, 12),
        ({"epochs": 24, "peak_epoch": 4, "schedule": "cosine"}, 14),
        ({"epochs": 12, "peak_epoch": 11}, None),
        ({"epochs": 11, "peak_epoch": 2}, None),
        ({"epochs": 4, "peak_epoch": 1}, None),
    ],
)
def test_runs_are_first_compared_half_way_between_the_peak_and_the_end(finished_test, settings, expected):
    config = Config(**settings)
    assert first_band(config) == expected
    definition = sweep_definition(dataclasses.replace(finished_test[0], config=config))
    assert definition.get("early_terminate", {}).get("min_iter") == expected


def test_every_sample_of_the_written_sweep_is_a_valid_configuration(finished_test):
    result, folder = finished_test
    written = yaml_io.read_yaml(folder / "sweep.yaml")
    assert written == sweep_definition(result)
    assert written["command"] == ["${env}", "${interpreter}", "-m", "harness", "run", "${args}"]
    assert (written["method"], written["metric"]) == ("bayes", {"name": "best/val_acc", "goal": "maximize"})
    parameters = written["parameters"]
    fixed = {name: value["value"] for name, value in parameters.items() if "value" in value}
    assert {name for name, value in parameters.items() if "min" in value} == {"lr_min_ratio", "lr_max"}
    for name, chosen in (("lr_min_ratio", result.lr_min / result.lr_max), ("lr_max", result.lr_max)):
        assert parameters[name]["distribution"] == "log_uniform_values"
        assert 0 < parameters[name]["min"] <= chosen <= parameters[name]["max"]
    found, interval = result.suggestion, result.suggestion.interval or (result.lr_max, result.lr_max)
    highest, lowest = max(4 * result.lr_max, interval[1]), min(result.lr_max / 4, interval[0])
    if found.divergence is not None:
        highest = max(min(highest, found.divergence), 1.5 * result.lr_max)
    bounds = parameters["lr_max"]["min"], parameters["lr_max"]["max"]
    assert bounds == (pytest.approx(lowest, rel=0.05), pytest.approx(highest, rel=0.05))  # rounded to two digits
    for low in ("min", "max"):
        for high in ("min", "max"):
            ratio, lr_max = parameters["lr_min_ratio"][low], parameters["lr_max"][high]
            sample = make_config({**fixed, "lr_min_ratio": str(ratio), "lr_max": str(lr_max)})
            assert sample.rates() == (ratio * lr_max, lr_max)
            assert sample.val_fraction == 0.1
            assert sample.model_args == {"width": 4}
            assert not sample.test
    text = (folder / "sweep.yaml").read_text()
    assert f"harness sweep {shlex.quote(str(folder / 'sweep.yaml'))}  " in text
    assert f"; {written['run_cap']} trials" in text
    assert written["name"] == "learning rates of custom_resnet on digits"
    assert f"LRMAX {result.lr_max:g}" in written["description"]


def test_the_written_sweep_is_valid_by_wandbs_schema(finished_test, wandb_sweeps):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(wandb_sweeps.__file__).parent / "config/schema.json").read_text())
    jsonschema.validate(yaml.safe_load((finished_test[1] / "sweep.yaml").read_text()), schema)


def test_a_run_takes_the_rates_of_the_test_and_a_resumed_one_does_not_test_again(finished_test, tmp_path):
    result, _ = finished_test
    config = result.config
    reporter = Silent()
    components = build_components(with_placeholder_lr(config))
    (tmp_path / "lr_finder.json").write_text((result.folder / "lr_finder.json").read_text())
    digest = json.loads((tmp_path / "lr_finder.json").read_text())["digest"]
    assert digest == config.digest()
    resolved = lr_find.resolve_lr(config, components, tmp_path, NullTracker(), reporter)
    assert (resolved.lr_min, resolved.lr_max) == (result.lr_min, result.lr_max)
    assert not resolved.needs_lr_find
    assert reporter.messages == []
    only = config.replace(lr_max=0.05)
    stored = {**json.loads((tmp_path / "lr_finder.json").read_text()), "digest": only.digest()}
    (tmp_path / "lr_finder.json").write_text(json.dumps(stored))
    resolved_min = lr_find.resolve_lr(only, components, tmp_path, NullTracker(), reporter)
    assert resolved_min.lr_max == 0.05
    assert 0.05 / 31 < resolved_min.lr_min < 0.05 / 2.9
    near, far = (config.replace(lr_min=result.lr_max * share) for share in (0.5, 0.05))
    for given, lr_min in ((near, result.lr_min), (far, far.lr_min)):
        (tmp_path / "lr_finder.json").write_text(json.dumps({**stored, "digest": given.digest()}))
        taken = lr_find.resolve_lr(given, components, tmp_path, NullTracker(), reporter)
        assert (taken.lr_min, taken.lr_max) == (lr_min, result.lr_max)
    (line,) = reporter.messages
    assert line.startswith(f"lr_min={near.lr_min:g} is too close to the LRMAX of the range test")


@pytest.mark.slow
def test_a_whole_run_after_a_test_is_bit_identical_to_the_run_without_it(tmp_path):
    config = make_config({**QUICK, "epochs": 1, "peak_epoch": 0.5, "cutout": 8, "output": tmp_path})
    runs = []
    for with_test in (False, True):
        random.seed(0), np.random.seed(0)
        components = build_components(config)
        torch.manual_seed(11)
        if with_test:
            lr_find.run_range_test(
                config,
                components,
                tmp_path / "tested",
                NullTracker(),
                Silent(),
                LRFinderOptions(steps=10, low=1e-3, high=0.1, seeds=1),
            )
        (record,) = fit(
            components.learner,
            components.loaders.train,
            components.schedule,
            epochs=1,
            evaluations={"test": components.loaders.test},
        )
        runs.append(
            bits([components.learner.state_dict(), dict(record.steps.lines), record.values["test/loss"], streams()])
        )
    assert runs[0] == runs[1]


@pytest.mark.slow
def test_a_test_without_a_result_has_no_command_and_no_sweep(tmp_path):
    config = make_config({**QUICK, "lr_max": "find", "output": tmp_path})
    components = build_components(with_placeholder_lr(config))
    (tmp_path / "figures").mkdir()
    result = lr_find.run_range_test(
        config, components, tmp_path, NullTracker(), Silent(), LRFinderOptions(steps=10, low=1e-12, high=1e-11, seeds=1)
    )
    assert result.lr_max is None
    assert result.command == ""
    assert "no descent" in result_table(result)
    with pytest.raises(UsageError, match="no learning rates"):
        sweep_definition(result)
    with pytest.raises(UsageError, match="no learning rates"):
        sweep_yaml(result, tmp_path / "sweep.yaml")


@pytest.mark.parametrize("word", ["find", "FIND", " Find "])
def test_find_is_a_value_of_both_rates(word):
    config = Config(lr_max=word, lr_min=word)
    assert (config.lr_max, config.lr_min, config.needs_lr_find) == ("find", "find", True)
    assert Config(**yaml_io.parse_yaml(config.to_yaml())) == config
    with pytest.raises(UsageError, match="no LR range test has been run"):
        config.rates()
    plain = with_placeholder_lr(config.replace(lr_min=0.7))
    assert plain.rates()[0] <= plain.rates()[1]


def test_the_result_of_a_test_of_other_settings_is_not_taken(finished_test, tmp_path):
    result, _ = finished_test

    class Began(Exception):
        pass

    def began():
        raise Began

    stored = json.loads((result.folder / "lr_finder.json").read_text())
    (tmp_path / "lr_finder.json").write_text(json.dumps(stored))
    other = result.config.replace(weight_decay=0.1)
    components = build_components(with_placeholder_lr(other))
    assert stored["digest"] != other.digest()
    for changed, is_taken in ((stored, False), ({**stored, "digest": other.digest()}, True)):
        (tmp_path / "lr_finder.json").write_text(json.dumps(changed))
        if is_taken:
            assert lr_find.resolve_lr(other, components, tmp_path, NullTracker(), Silent(), began).lr_max > 0
        else:
            with pytest.raises(Began):
                lr_find.resolve_lr(other, components, tmp_path, NullTracker(), Silent(), began)


def test_another_word_than_find_is_refused_for_a_rate():
    with pytest.raises(UsageError, match="a number, or find"):
        Config(lr_max="search")
    with pytest.raises(UsageError, match="a number"):
        Config(momentum="find")


@pytest.mark.parametrize(("peak_epoch", "is_written"), [(4.0, False), (3.0, True)])
def test_a_peak_that_follows_from_the_epochs_is_left_to_the_epochs_of_a_trial(peak_epoch, is_written):
    config = make_config({"recipe": "auto", "data": "folder", "epochs": 20, "peak_epoch": peak_epoch})
    written = inherited_settings(config)
    assert written["epochs"] == 20 and ("peak_epoch" in written) == is_written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds=0: need 1 to 100"),
        ({"seeds": 101}, "seeds=101"),
        ({"confirm": -1}, "confirm=-1: need 0 to 20 short runs"),
        ({"confirm": 21}, "confirm=21"),
    ],
)
def test_an_impossible_number_of_seeds_or_short_runs_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        LRFinderOptions(**options)


def split_of(name, count, classes):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return in_memory(name, pixels, np.arange(count) % classes, [f"{name}/{index}" for index in range(count)])


@pytest.mark.parametrize(
    ("images", "settings", "trained", "held_out", "remark"),
    [
        (400, {"batch_size": 16}, 360, 40, ""),
        (
            40,
            {"batch_size": 16},
            40,
            None,
            "too few training images to hold any out",
        ),  # a tenth of them is fewer than the classes
        (
            400,
            {"batch_size": 370, "drop_last": True},
            400,
            40,
            "are trained on too, since a batch needs nearly all 400",
        ),
    ],
)
def test_images_are_held_out_only_where_enough_are_left(images, settings, trained, held_out, remark):
    data = Dataset("noise", tuple("abcdefgh"), split_of("train", images, 8), None, None, (0.5,) * 3, (0.5,) * 3, "")
    found, said = hold_out_for_finder(data, Config(**settings))
    assert len(found.train) == trained and (found.val and len(found.val)) == held_out and found.test is None
    assert remark in said and bool(remark) == bool(said)


def test_short_runs_without_held_out_images_are_refused(finished_test):
    result, _ = finished_test
    components = build_components(with_placeholder_lr(result.config))
    inputs = lr_find.finder_inputs(result.config, components)
    few = dataclasses.replace(components.dataset, train=split_of("train", 40, 10))
    finder = LRFinder(dataclasses.replace(inputs, dataset=few), LRFinderOptions(confirm=1))
    assert finder.val_loader is None
    with pytest.raises(UsageError, match="--confirm needs held-out images, and the training set is too small"):
        finder._short_runs(result.suggestion)


def test_the_table_marks_a_short_run_that_diverged_and_warns_of_an_outermost_one(finished_test):
    result, _ = finished_test
    lr_max = result.lr_max
    runs = [
        ShortRun(lr, lr / 10, 30, loss, acc)
        for lr, acc, loss in ((lr_max, 0.9, 0.2), (lr_max / 2, 0.8, 0.3), (lr_max / 4, 0.0, math.nan))
    ]
    result = dataclasses.replace(result, short_runs=tuple(runs))
    assert result.lr_max == lr_max
    assert "the best short run is the outermost one: a learning rate beyond it may be better still" in result.warnings
    (line,) = (line for line in result_table(result).splitlines() if "diverged" in line and "30 steps" in line)
    assert line.split() == ["30", "steps", f"{lr_max / 4:.2g}", "diverged"]
    reason = f"short run with LRMAX {lr_max:.2g}: 90.0 % of {result.held_out_images} held-out images, the best of 3"
    assert result.reasons[-1].startswith(reason)


def test_settings_of_a_recipe_whose_file_is_gone_are_compared_with_the_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: custom-resnet\nweight_decay: 0.1\n")
    config = make_config({"recipe": str(path), "batch_size": 99})
    assert inherited_settings(config) == {"batch_size": 99}
    path.unlink()
    written = inherited_settings(config)
    assert written["batch_size"] == 99 and written["weight_decay"] == 0.1


@pytest.mark.parametrize(
    ("given", "expected", "is_said"),
    [
        ({"lr_min": "find"}, lambda found: (found["lr_min"], found["lr_max"]), False),
        ({"lr_min": 1e-6}, lambda found: (1e-6, found["lr_max"]), False),
        ({"lr_min": 0.01}, lambda found: (found["lr_min"], found["lr_max"]), True),  # more than a tenth of it
        ({"lr_max": 7.0, "lr_min": "find"}, lambda found: (lr_min_for(found["begins"], 7.0), 7.0), False),
    ],
)
def test_a_given_rate_stays_where_it_fits_the_one_that_was_found(finished_test, tmp_path, given, expected, is_said):
    result, _ = finished_test
    config = result.config.replace(**given)
    stored = json.loads((result.folder / "lr_finder.json").read_text()) | {"digest": config.digest(), "lr_max": 0.05}
    (tmp_path / "lr_finder.json").write_text(json.dumps(stored))
    components, reporter = build_components(with_placeholder_lr(config)), Silent()
    resolved = lr_find.resolve_lr(config, components, tmp_path, NullTracker(), reporter)
    assert (resolved.lr_min, resolved.lr_max) == expected(stored)
    text = "lr_min=0.01 is too close to the LRMAX of the range test (0.05); training starts at "
    assert [line for line in reporter.messages if line.startswith(text)] == reporter.messages
    assert bool(reporter.messages) == is_said
    plain = config.replace(lr_max=0.2, lr_min=0.01)
    assert lr_find.resolve_lr(plain, components, tmp_path, NullTracker(), reporter) is plain


@pytest.mark.slow
def test_a_run_whose_range_test_finds_no_rate_ends_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})

    @register_loss
    def constant(logits, targets):
        return 0 * logits.mean() + 2

    config = make_config({**QUICK, "lr_max": "find", "lr_min": "find", "output": tmp_path, "batch_size": 16})
    config = config.replace(loss="constant")
    components = build_components(with_placeholder_lr(config))
    reporter = Silent()
    with pytest.raises(
        UsageError, match=r"found no learning rate to train with \(see .*lr_finder\.png\); give --lr-max and"
    ):
        lr_find.resolve_lr(config, components, tmp_path, NullTracker(), reporter)
    assert (tmp_path / "figures/lr_finder.png").is_file()


def test_a_list_among_the_settings_is_a_list_of_the_command(finished_test):
    result, _ = finished_test
    listed = dataclasses.replace(result, config=result.config.replace(freeze=("prep", "layer1")))
    words = shlex.split(listed.command)
    assert words[words.index("--freeze") + 1] == "prep,layer1"
    assert make_config({"freeze": "prep,layer1"}).freeze == ("prep", "layer1")
