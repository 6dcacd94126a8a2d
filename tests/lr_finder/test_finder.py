"""The range test itself: the steps of training, no trace of it afterwards, and what it leaves for a reader."""

import json
import math
import random
import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from harness.config import yaml_io
from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.lr_finder.finder import hold_out_for_finder
from harness.lr_finder.range_test import (
    LRRange,
    candidates,
    curve_of_seed,
    default_range,
    median_curve,
    preserve_rng_state,
    range_test,
    short_run,
)
from harness.lr_finder.result import result_table, sweep_definition
from harness.runs import lr_find as roof
from harness.runs import run
from harness.tracking.journal import read_journal
from harness.tracking.records import Curve, Table
from harness.tracking.tracker import NullTracker
from harness.training.learner import make_learner
from harness.training.loop import fit
from harness.training.schedule import Schedule
from harness.utils.errors import UsageError
from harness.utils.seeding import seed_for
from tests.support.wandb_files import offline_runs

CPU = torch.device("cpu")
CHANCE = math.log(3)


class Batches:
    """Pictures whose mean brightness by channel tells the class; a function of seed and epoch."""

    def __init__(self, seed=0, sizes=(16,) * 5, spoilt=None):
        self.seed, self.sizes, self.spoilt = seed, sizes, spoilt
        self.steps, self.num_images = len(sizes), sum(sizes)

    def epoch(self, epoch, start=0):
        generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
        for index, size in enumerate(self.sizes):
            labels = torch.randint(0, 3, (size,), generator=generator)
            images = torch.randn(size, 3, 8, 8, generator=generator)
            images += 1.5 * F.one_hot(labels, 3)[:, :, None, None]
            if self.spoilt is not None and epoch * self.steps + index >= self.spoilt:
                images = images * math.nan
            if index >= start:
                yield images, labels


class Held(list):
    num_images = 60


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(216, 3)
    )


def maker(**settings):
    config = Config(**{"precision": "fp32", "channels_last": False, **settings})
    return lambda seed: make_learner(config, net(seed), CPU, None)


def held():
    return Held(next(Batches(99, sizes=(20,)).epoch(epoch)) for epoch in range(3))


def measure(window, **more):
    settings = {"seed": 0, "momentum": 0.9, "chance": CHANCE, **more}
    return curve_of_seed(settings.pop("make", maker()), settings.pop("feed", Batches), window, **settings)


def bits(value):
    """Everything in nested values, tensors to the last bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return [(key, bits(part)) for key, part in value.items()]
    return [bits(part) for part in value] if isinstance(value, list | tuple) else value


def streams():
    """Where every random stream stands."""
    return (
        random.getstate(),
        bits(tuple(part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state())),
        torch.get_rng_state().tolist(),
    )


def test_the_rates_rise_exponentially_or_linearly_and_hit_both_ends():
    exponential, linear = LRRange(1e-4, 1.0, 100), LRRange(0.4, 1.0, 13, "linear")
    assert [exponential.lr(step) for step in range(100)] == pytest.approx(np.geomspace(1e-4, 1.0, 100))
    assert [linear.lr(step) for step in range(13)] == pytest.approx(np.linspace(0.4, 1.0, 13))
    assert exponential.lr(exponential.most - 1) == pytest.approx(100.0, rel=0.1)
    assert linear.lr(linear.most - 1) < 4 * 1.0


@pytest.mark.parametrize(
    ("values", "says"), [((0.0, 1.0, 50), "0 < low"), ((1.0, 0.1, 50), "low < high"), ((0.1, 1.0, 3), "at least 10")]
)
def test_a_range_that_makes_no_sense_is_refused(values, says):
    with pytest.raises(UsageError, match=says):
        LRRange(*values)


def test_the_default_range_is_fine_enough_and_as_wide_as_asked():
    for optimizer in ("sgd", "adamw"):
        window = default_range(optimizer)
        assert window.steps / math.log10(window.high / window.low) >= 20
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
    """Losses, accuracies and rates against a plain loop over `fit` with a schedule that rises as the test does."""

    class Rising(Schedule):
        def lr(self, step, losses=()):
            return window.lr(step)

    window = LRRange(1e-4, 1e-2, 10)
    momentum = settings.get("momentum", 0.9)
    trace = measure(window, make=maker(**settings), momentum=momentum, held=held())
    (record, *_) = fit(
        maker(**settings)(0), Batches(0, (16,) * 5), Rising("constant", 10, 1, 1, momentum=momentum), epochs=1
    )
    assert trace.losses[:5].tolist() == record.steps.lines["train/step_loss"]
    assert trace.lrs[:5].tolist() == record.steps.lines["lr"]
    assert trace.accs[:5].mean() == pytest.approx(record.values["train/acc"])


def test_the_gradient_norm_is_that_of_the_whole_gradient():
    trace = measure(LRRange(1e-4, 1e-2, 10))
    model = net(0).train()
    images, labels = next(Batches(0).epoch(0))
    torch.manual_seed(seed_for(0, "epoch", 0))
    F.cross_entropy(model(images), labels).backward()
    assert trace.norms[0] == pytest.approx(
        torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item(), rel=1e-5
    )


def test_looking_at_held_out_images_changes_nothing():
    window = LRRange(1e-4, 1.0, 20)
    one, other = measure(window, held=held()), measure(window)
    assert one.losses.tolist() == other.losses.tolist()
    assert len(one.held) >= 15
    assert not other.held
    learner = maker()(0)
    scores = {}
    for step, (images, labels) in enumerate(Batches(0).epoch(0)):
        if step == 0:
            torch.manual_seed(seed_for(0, "epoch", 0))
        learner.train_step(images, labels, step, window.lr(step), 0.9)
        learner.model.eval()
        with torch.no_grad():
            images, labels = (torch.cat(parts) for parts in zip(*held(), strict=True))
            scores[step] = F.cross_entropy(learner.model(images), labels).item()
        learner.model.train()
    for step, loss in scores.items():
        assert one.held[step][0] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}, {"optimizer": "adamw"}])
def test_training_after_a_test_is_training_without_it_to_the_bit(settings):
    def train(first):
        random.seed(1), np.random.seed(2), torch.manual_seed(3)
        learner = maker(**settings)(0)
        torch.manual_seed(4)
        for _ in first():
            pass
        records = list(fit(learner, Batches(), Schedule("one_cycle", 10, 0.01, 0.1, peak=3), epochs=2))
        return bits([learner.state_dict(), [dict(record.steps.lines) for record in records], streams()])

    def searching():
        return range_test(
            maker(**settings),
            Batches,
            LRRange(1e-4, 10.0, 30),
            seeds=[0, 1],
            momentum=0.9,
            uniform_loss=CHANCE,
            curves=[],
            held=held(),
        )

    assert train(searching) == train(lambda: ())


def test_every_stream_comes_back_also_when_the_test_is_stopped():
    class Stop(Exception):
        pass

    def watch(tick):
        if tick.step == 3:
            random.random(), np.random.rand(), torch.rand(1)
            raise Stop

    before = streams()
    with pytest.raises(Stop):
        measure(LRRange(1e-4, 1.0, 20), on_step=watch)
    assert streams() == before
    with preserve_rng_state():
        random.random(), np.random.rand(), torch.rand(1)
    assert streams() == before


def test_between_the_records_of_two_seeds_the_callers_own_draws_count():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = []
    for _ in range_test(
        maker(), Batches, LRRange(1e-3, 1.0, 10), seeds=[0, 1, 2], momentum=0.9, uniform_loss=CHANCE, curves=[]
    ):
        drawn.append(torch.rand(1))
        assert torch.is_grad_enabled()
    assert torch.equal(torch.cat(drawn), expected)


def test_the_same_seed_gives_the_same_curve_and_another_one_another():
    window = LRRange(1e-4, 1.0, 20)
    assert measure(window).losses.tolist() == measure(window).losses.tolist()
    assert measure(window).losses.tolist() != measure(window, seed=1, feed=Batches).losses.tolist()


def test_it_stops_at_divergence_and_goes_on_where_there_was_none():
    plain = {"make": maker(weight_decay=0.0)}
    far = measure(LRRange(1e-3, 1e4, 70), **plain)
    assert far.end != "end of range"
    assert len(far.lrs) < 70
    near = measure(LRRange(1e-3, 0.05, 30), **plain)
    assert len(near.lrs) > 30
    assert near.lrs[-1] > 0.05
    assert near.lrs[1:] / near.lrs[:-1] == pytest.approx(near.lrs[1] / near.lrs[0])
    assert len(measure(LRRange(1e-9, 1e-8, 10), **plain).lrs) == LRRange(1e-9, 1e-8, 10).most


@pytest.mark.parametrize("place", [0, 7])
def test_nan_stops_it_at_once(place):
    trace = measure(LRRange(1e-4, 1e-2, 20), feed=lambda seed: Batches(seed, spoilt=place))
    assert trace.end == "not finite"
    assert len(trace.lrs) == place + 1
    assert np.isfinite(trace.losses[:place]).all()


def test_an_epochs_end_does_not_end_the_test():
    assert len(measure(LRRange(1e-5, 1e-4, 40), feed=lambda seed: Batches(seed, sizes=(8, 5))).lrs) > 40


def test_no_batches_at_all_is_said_and_not_waited_for():
    with pytest.raises(UsageError, match="no batches"):
        measure(LRRange(1e-4, 1.0, 20), feed=lambda seed: Batches(seed, sizes=()))


def test_a_record_of_a_seed_is_a_curve_over_the_rate():
    curves = []
    records = list(
        range_test(
            maker(), Batches, LRRange(1e-3, 1.0, 20), seeds=[3, 4], momentum=0.9, uniform_loss=CHANCE, curves=curves
        )
    )
    assert [list(record.values) for record in records] == [["find/seed_3"], ["find/seed_4"]]
    assert {(record.kind, record.step) for record in records} == {("find", 0)}
    assert list(records[0].values["find/seed_3"].x) == curves[0].lrs[: curves[0].finite].tolist()


def test_the_middle_curve_is_the_median_over_the_seeds():
    curves = [measure(LRRange(1e-3, 1e-1, 20), seed=seed) for seed in range(3)]
    curve = median_curve(curves, "smoothed")
    columns = [trace.smoothed[10] for trace in curves]
    assert curve.lines["median"][10] == pytest.approx(np.median(columns))
    assert (curve.lines["low"][10], curve.lines["high"][10]) == pytest.approx((min(columns), max(columns)))


def test_short_runs_lie_around_the_suggestion_and_tell_a_good_rate_from_a_bad_one():
    assert candidates(0.1, 5) == pytest.approx([0.1, 0.05, 0.2, 0.025, 0.4])
    before = streams()
    good, bad = (
        short_run(maker(), Batches, held(), Schedule("one_cycle", 30, lr / 10, lr, peak=6, momentum=0.9), seed=0)
        for lr in (0.01, 1e-7)
    )
    assert good.acc > 0.8 > bad.acc
    wild = short_run(
        maker(), lambda seed: Batches(seed, spoilt=3), held(), Schedule("one_cycle", 9, 1, 9, peak=2), seed=0
    )
    assert (wild.acc, math.isnan(wild.loss)) == (0.0, True)
    assert streams() == before


QUICK = {
    "recipe": "digits",
    "model_args": {"width": 4},
    "batch_size": 64,
    "epochs": 4,
    "threads": 1,
    "wandb": "disabled",
    "precision": "fp32",
}


class Silent:
    def __init__(self):
        self.said = []

    def tick(self, tick):
        assert tick.loss() is not None

    def record(self, record, epochs):
        self.said.append(record)

    def say(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """One finding on real data, with two short runs and a sweep: (finding, folder)."""
    folder = tmp_path_factory.mktemp("found here")
    config = make_config({**QUICK, "wandb": "offline", "output": folder / "runs", "lr_max": "find", "lr_min": "find"})
    finding = roof.find_lr(config, steps=40, seeds=2, confirm=2, write_sweep=folder / "sweep.yaml", display=Silent())
    return finding, folder


def test_it_leaves_a_picture_a_file_with_reasons_and_a_journal(found):
    finding, _ = found
    with Image.open(finding.folder / "figures" / "lr_finder.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
    kept = json.loads((finding.folder / "lr_finder.json").read_text())
    assert kept["lr_max"] == finding.lr_max
    assert len(kept["reasons"]) == 3
    assert len(kept["seeds"]) == 2
    assert len(kept["seeds"][0]["losses"]) == len(kept["seeds"][0]["lrs"]) == len(kept["seeds"][0]["smoothed"])
    assert {rule["rule"] for rule in kept["rules"]} >= {
        "accuracy peak",
        "valley",
        "minimum/10",
        "steepest",
        "first divergence",
    }
    story = read_journal(finding.folder / "journal.jsonl")
    assert {record.kind for record in story.records} == {"find"}
    assert story.status == "finished"
    last = story.records[-1].values
    assert isinstance(last["find/loss"], Curve)
    assert last["find/loss"].marks["LRMAX"] == finding.lr_max
    assert isinstance(last["find/steps"], Table)
    assert len(last["find/steps"].rows) == sum(len(trace.lrs) for trace in finding.curves)
    assert json.loads((finding.folder / "status.json").read_text())["state"] == "finished"


def test_wandb_gets_one_row_with_the_curves_the_tables_the_picture_and_the_rates(found):
    finding, _ = found
    (offline_run,) = offline_runs(finding.folder)
    (row,) = offline_run.rows
    assert row["_step"] == 0
    assert offline_run.job_type == "find"
    for key in (
        "find/loss/table",
        "find/acc/table",
        "find/steps",
        "find/rules",
        "find/trials",
        "find/figure",
        "find/seed_0/table",
    ):
        assert key in row or any(name.startswith(key) for name in row), (key, sorted(row))
    assert offline_run.summary["find/lr_max"] == finding.lr_max
    assert offline_run.exit_code == 0


def test_it_finds_rates_that_train(found):
    finding, _ = found
    assert 3e-3 < finding.lr_max < 0.3
    assert 2.9 <= finding.lr_max / finding.lr_min <= 31
    assert max(trial.acc for trial in finding.trials) > 0.5
    assert finding.lr_max == max(finding.trials, key=lambda trial: trial.acc).lr_max


def test_the_images_that_judge_are_not_trained_on(found):
    finding, _ = found
    data = run.assemble(roof.provisional(finding.config)).data
    apart, remark = hold_out_for_finder(data, finding.config)
    assert remark == ""
    assert not set(apart.train.ids) & set(apart.val.ids)
    assert len(apart.train) + len(apart.val) == len(data.train)
    assert len(apart.val) == finding.held_images
    assert apart.test is None


def test_the_table_names_every_rule_and_ends_with_a_line_that_trains_so(found):
    finding, _ = found
    shown = result_table(finding)
    for rule in finding.suggestion.rules:
        assert rule.rule in shown
    words = shlex.split(shown.splitlines()[-1])
    assert words[:2] == ["harness", "run"]
    options = {name.lstrip("-"): value for name, value in zip(words[2::2], words[3::2], strict=True)}
    again = make_config(options)
    assert (again.lr_max, again.lr_min) == (finding.lr_max, finding.lr_min)
    assert again.affecting_results() == {
        **finding.config.affecting_results(),
        "lr_max": finding.lr_max,
        "lr_min": finding.lr_min,
    }


def test_every_sample_of_the_written_sweep_is_a_valid_configuration(found):
    finding, folder = found
    written = yaml_io.read_yaml(folder / "sweep.yaml")
    assert written == sweep_definition(finding)
    assert written["command"] == ["${env}", "${interpreter}", "-m", "harness", "run", "${args}"]
    assert (written["method"], written["metric"]) == ("bayes", {"name": "best/val_acc", "goal": "maximize"})
    parameters = written["parameters"]
    fixed = {name: value["value"] for name, value in parameters.items() if "value" in value}
    assert {name for name, value in parameters.items() if "min" in value} == {"lr_min", "lr_max"}
    for name in ("lr_min", "lr_max"):
        assert parameters[name]["distribution"] == "log_uniform_values"
        assert 0 < parameters[name]["min"] < parameters[name]["max"]
        assert parameters[name]["min"] <= getattr(finding, name) <= parameters[name]["max"]
    for low in ("min", "max"):
        for high in ("min", "max"):
            sample = make_config(
                {**fixed, "lr_min": str(parameters["lr_min"][low]), "lr_max": str(parameters["lr_max"][high])}
            )
            assert sample.val_fraction == 0.1
            assert sample.model_args == {"width": 4}


def test_a_run_takes_what_was_found_and_a_resumed_one_does_not_search_again(found, tmp_path):
    finding, _ = found
    config = finding.config
    display = Silent()
    parts = run.assemble(roof.provisional(config))
    (tmp_path / "lr_finder.json").write_text((finding.folder / "lr_finder.json").read_text())
    digest = json.loads((tmp_path / "lr_finder.json").read_text())["digest"]
    assert digest == config.digest()
    resolved = roof.resolve_lr(config, parts, tmp_path, NullTracker(), display)
    assert (resolved.lr_min, resolved.lr_max) == (finding.lr_min, finding.lr_max)
    assert not resolved.needs_lr_find
    assert display.said == []
    only = config.replace(lr_max=0.05)
    kept = {**json.loads((tmp_path / "lr_finder.json").read_text()), "digest": only.digest()}
    (tmp_path / "lr_finder.json").write_text(json.dumps(kept))
    half = roof.resolve_lr(only, parts, tmp_path, NullTracker(), display)
    assert half.lr_max == 0.05
    assert 0.05 / 31 < half.lr_min < 0.05 / 2.9


def test_a_whole_run_after_a_search_is_the_run_without_it_to_the_bit(tmp_path):
    config = make_config({**QUICK, "epochs": 1, "peak_epoch": 0.5, "cutout": 8, "output": tmp_path})
    runs = []
    for search in (False, True):
        random.seed(0), np.random.seed(0)
        parts = run.assemble(config)
        torch.manual_seed(11)
        if search:
            roof.run_range_test(
                config,
                parts,
                tmp_path / "found",
                NullTracker(),
                Silent(),
                roof.Ask(steps=10, low=1e-3, high=0.1, seeds=1),
            )
        (record,) = fit(
            parts.learner, parts.batches.train, parts.schedule, epochs=1, evaluations={"test": parts.batches.test}
        )
        runs.append(bits([parts.learner.state_dict(), dict(record.steps.lines), record.values["test/loss"], streams()]))
    assert runs[0] == runs[1]


def test_no_learning_rate_found_is_refused_with_what_to_do(tmp_path):
    config = make_config({**QUICK, "lr_max": "find", "output": tmp_path})
    parts = run.assemble(roof.provisional(config))
    (tmp_path / "figures").mkdir()
    finding = roof.run_range_test(
        config, parts, tmp_path, NullTracker(), Silent(), roof.Ask(steps=10, low=1e-12, high=1e-11, seeds=1)
    )
    assert finding.lr_max is None
    assert finding.command == ""
    assert "no descent" in result_table(finding)
    with pytest.raises(UsageError, match="no learning rates"):
        sweep_definition(finding)


@pytest.mark.parametrize("word", ["find", "FIND", " Find "])
def test_find_is_a_value_of_both_rates(word):
    config = Config(lr_max=word, lr_min=word)
    assert (config.lr_max, config.lr_min, config.needs_lr_find) == ("find", "find", True)
    assert Config(**yaml_io.parse_yaml(config.to_yaml())) == config
    with pytest.raises(UsageError, match="no range test"):
        config.rates()
    plain = roof.provisional(config.replace(lr_min=0.7))
    assert plain.rates()[0] <= plain.rates()[1]


def test_another_word_than_find_is_refused_for_a_rate():
    with pytest.raises(UsageError, match="a number, or find"):
        Config(lr_max="search")
    with pytest.raises(UsageError, match="a number"):
        Config(momentum="find")
