"""Transforms, losses, schedules, metrics and trackers that a plug-in registers, from the command to what a run leaves."""

import json
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.evaluation.metrics import Predictions
from harness.evaluation.own_metrics import check_metrics, own_metrics, register_metric
from harness.reporting.figures.schedule import curve
from harness.reporting.html.facts import headline
from harness.reporting.html.run_data import read_run
from harness.runs.components import build_components
from harness.sweep.schema import parse_sweep
from harness.tracking.backends.backend import Backend
from harness.tracking.backends.registry import backend_type_of, check_trackers, register_tracker
from harness.tracking.journal import read_journal
from harness.training.own_schedules import find_shape, register_schedule
from harness.training.schedule import make_schedule
from harness.utils import plugins, registry
from harness.utils.errors import UsageError
from tests.support.forked import TINY
from tests.support.forked import harness as command
from tests.support.resume import flatten

EXAMPLE = Path(__file__).parents[2] / "examples/my_parts.py"
OWN = [
    *TINY, "--plugin", "my_parts", "--schedule", "inverse_sqrt", "--schedule-args", "power=0.7", "--warmup-steps", "5",
    "--loss", "poly1", "--loss-args", "epsilon=2", "--transforms", "jpeg", "--workers", "0", "--metrics", "worst_recall", "--tracker", "lines", "--name", "r",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(plugins, "_named", set())


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The folder of the example's plug-in, which is the current one."""
    shutil.copy(EXAMPLE, tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_parts", None)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


def test_a_run_uses_the_transform_the_loss_the_schedule_the_metric_and_the_tracker_of_a_plug_in(example):
    command("run", *OWN, "--gallery", "4", "--cam", "none", cwd=example, check=0)
    folder = example / "runs/r"
    lrs = [lr for record in read_journal(folder).records if record.steps for lr in record.steps.lines["lr"]]
    low, high, rest = 0.001, 0.01, 33 - 5
    after = low + (high - low) * (1 + 9 * np.arange(rest) / rest) ** -0.7
    expected = [*(high * np.interp(np.arange(5), [0, 5], [0.01, 1])), *after]
    np.testing.assert_allclose(lrs, expected, rtol=1e-12)

    rows = [line.split(",") for line in (folder / "predictions.csv").read_text().splitlines()[1:]]
    classes = {row[2] for row in rows}
    worst = min(np.mean([row[3] == name for row in rows if row[2] == name]) for name in classes)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["result"]["test/worst_recall"] == pytest.approx(worst)
    facts = {fact.name: fact.value for fact in headline(read_run(folder))}
    assert facts["Test worst_recall"] == f"{worst:.4g}"

    lines = lines_of(folder)
    assert lines[0] == {"name": "r", "project": "harness"} and lines[-1] == {"status": "finished"}
    assert [line["lr"] for line in lines if "train/step_loss" in line] == lrs
    (settings,) = (line["config"] for line in lines if "schedule" in line.get("config", {}))
    assert settings["schedule_args"] == {"power": 0.7} and settings["plugin"] == ["my_parts"]
    assert settings["loss"] == "poly1" and settings["loss_args"] == {"epsilon": 2}
    page = (folder / "report.html").read_text()
    assert "The training loss is the loss poly1; that of the other" in page
    assert re.search(r"Augmentation: [^<]*\bjpeg\b", page) and (folder / "figures/augmented.png").is_file()
    assert settings["transforms"] == ["jpeg"]
    plugins.allow_plugins(["my_parts"])
    parts = build_components(make_config({"device": "cpu"}, str(folder / "config.yaml")))
    images, labels = next(parts.loaders.train.epoch(0))
    p = parts.learner.model.train()(images).double().softmax(1).detach().numpy()[np.arange(128), labels]
    first = next(line["train/step_loss"] for line in lines if "train/step_loss" in line)
    assert first == pytest.approx(np.mean(2 * (1 - p) - np.log(p)), rel=1e-4)

    evaluated = command("evaluate", "runs/r", "--plugin", "my_parts", "--tracker", "", cwd=example, check=0)
    assert "worst_recall" in evaluated.out
    synced = command("sync", "runs/r", "--tracker", "lines", "--plugin", "my_parts", "--anew", cwd=example, check=0)
    assert "Lines has the whole run" in synced.out
    assert [line["lr"] for line in lines_of(folder)[len(lines) :] if "train/step_loss" in line] == lrs


@pytest.mark.slow
def test_a_run_with_a_transform_a_loss_and_a_schedule_of_a_plug_in_resumes_bit_identically_and_gets_more_epochs(
    example,
):
    words = [*OWN[: OWN.index("--metrics")], "--checkpoint-every", "4"]
    command("run", *words, "--name", "whole", cwd=example, check=0)
    assert command("run", *words, "--name", "r", cwd=example, fault="kill@step=14").code == -signal.SIGKILL
    command("run", *words, "--name", "r", cwd=example, check=0)
    whole, resumed = (
        torch.load(example / f"runs/{name}/checkpoints/last.pt", weights_only=True) for name in ("whole", "r")
    )
    assert flatten(whole["learner"]) == flatten(resumed["learner"])
    ended = command("run", "--resume", "runs/r", "--epochs", "4", "--plugin", "my_parts", cwd=example, check=0)
    assert "inverse_sqrt begins again" in ended.err


def test_what_only_a_file_names_is_not_imported_for_a_schedule(example):
    (example / "mine.yaml").write_text("recipe: digits\nplugin: [my_parts]\nschedule: inverse_sqrt\n")
    refused = command("run", "--recipe", "mine.yaml", cwd=example)
    assert refused.code == 2 and "add --plugin my_parts" in refused.errors[0]


@pytest.mark.slow
def test_a_range_test_uses_the_loss_of_a_plug_in(example):
    words = ["--plugin", "my_parts", "--loss", "poly1", "--loss-args", "epsilon=10", "--name", "f"]
    command("lr-find", *TINY, *words, "--seeds", "1", "--steps", "10", cwd=example, check=0)
    (curve,) = (
        r.details["find/seed_0"] for r in read_journal(example / "runs/f").records if "find/seed_0" in r.details
    )
    assert curve.lines["loss"][0] == pytest.approx(np.log(10) + 10 * 0.9, abs=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loss", "poly2"], "did you mean 'poly1'"),
        (["--loss", "poly1", "--loss-args", "epsilom=1"], "loss=poly1 has only epsilon (did you mean 'epsilon'?)"),
        (["--loss", "poly1", "--loss-args", "epsilon=much"], "labels int64 [128] raised TypeError"),
    ],
)
def test_a_loss_that_cannot_be_used_ends_a_run_in_one_line_before_it_has_a_directory(example, words, message):
    ended = command("run", *TINY, "--plugin", "my_parts", *words, cwd=example)
    (line,) = ended.errors
    assert ended.code == 2 and message in line and not (example / "runs").exists()


def test_a_plot_of_a_schedule_of_a_plug_in_has_its_rates(example):
    drawn = curve({"schedule": "inverse_sqrt", "plugin": "my_parts", "lr_min": 0.0, "lr_max": 1.0, "epochs": 4}, 25)
    np.testing.assert_allclose(drawn.lr, (1 + 9 * np.arange(101) / 100) ** -0.5)


def test_a_function_that_is_no_schedule_is_refused_before_training():
    register_schedule(lambda step, steps: 1.5, name="too-high")
    register_schedule(lambda step, steps: float("nan"), name="undefined")
    register_schedule(lambda step, steps, power: step / steps**power, name="needs-power")
    with pytest.raises(UsageError, match=r"schedule=too-high returned 1.5 at step 0 of 10; need a number from 0"):
        make_schedule(Config(schedule="too-high", epochs=2), 5)
    with pytest.raises(UsageError, match="schedule=undefined returned nan"):
        make_schedule(Config(schedule="undefined", epochs=2), 5)
    with pytest.raises(UsageError, match="schedule=needs-power raised TypeError"):
        make_schedule(Config(schedule="needs-power", epochs=2), 5)
    with pytest.raises(UsageError, match="schedule=needs-power with power='much' raised TypeError"):
        make_schedule(Config(schedule="needs-power", epochs=2, schedule_args={"power": "much"}), 5)
    assert make_schedule(Config(schedule="needs-power", schedule_args={"power": 2}, epochs=2), 5).height(5) == 0.05
    with pytest.raises(UsageError, match="did you mean 'too-high'"):
        find_shape(Config(schedule="too-hig"))
    with pytest.raises(UsageError, match="schedule 'cosine' cannot be registered"):
        register_schedule(print, name="cosine")


def test_the_arguments_of_a_recipes_schedule_join_those_given_and_go_with_it(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("schedule: mine\nplugin: [module]\nschedule_args: {power: 2, base: 3}\n")
    given = {"recipe": str(recipe), "schedule_args": "power=1"}
    assert make_config(given).schedule_args == {"power": 1, "base": 3}
    assert make_config({"recipe": str(recipe), "schedule": "cosine"}).schedule_args == {}


PREDICTIONS = Predictions(np.array([0, 1, 1]), np.eye(3, dtype=np.float32)[[0, 1, 2]], np.zeros(3, np.float32))


def test_a_metric_that_fails_costs_no_result_and_one_that_does_not_exist_is_refused_before(caplog):
    register_metric(lambda predictions: predictions.correct.mean(), name="mine")
    register_metric(lambda predictions: predictions.nothing, name="broken")
    values = own_metrics(Config(metrics=("mine", "broken", "missing")), PREDICTIONS)
    assert values == {"mine": pytest.approx(2 / 3)}
    assert [line.split(" is left out")[0] for line in caplog.messages] == ["metric broken", "metric missing"]
    with pytest.raises(UsageError, match=r"metrics='mine2': no plug-in registers it .did you mean 'mine'"):
        check_metrics(Config(metrics=("mine2",)))
    for name, message in (
        ("acc", "cannot be registered"),
        ("a-b", "need letters, digits, _ and /.* module builtins registers"),
    ):
        with pytest.raises(UsageError, match=message):
            register_metric(print, name=name)


def test_what_is_no_complete_backend_is_no_tracker():
    register_tracker(print, name="function")
    register_tracker(type("Half", (Backend,), {"log": lambda self, rows: None, "title": "Half"}), name="half")
    with pytest.raises(UsageError, match=r"must be a subclass of harness.tracking.Backend"):
        backend_type_of("function")
    with pytest.raises(UsageError, match="Half lacks __init__, close, config, files, summary"):
        backend_type_of("half")
    with pytest.raises(UsageError, match="tracker 'wandb' cannot be registered"):
        register_tracker(print, name="wandb")
    with pytest.raises(UsageError, match="tracker='lost': need one of wandb, tensorboard, mlflow, trackio, or one"):
        check_trackers(Config(tracker=("lost",)))


def test_a_sweep_refuses_losses_and_schedules_that_no_plug_in_could_register():
    parameters = {
        "schedule": {"values": ["cosine", "cosin"]},
        "recipe": {"value": "digits"},
        "val_fraction": {"value": 0.1},
    }
    document = {"method": "grid", "parameters": parameters, "command": ["harness", "run", "${args}"]}
    with pytest.raises(UsageError, match=r"'cosin': need one of one_cycle.*did you mean 'cosine'"):
        parse_sweep(document, "s", {})
    losses = {**parameters, "schedule": {"value": "cosine"}, "loss": {"values": ["bce", "focl"]}}
    with pytest.raises(UsageError, match=r"'focl': need one of cross_entropy.*did you mean 'focal'"):
        parse_sweep({**document, "parameters": losses}, "s", {})
    parse_sweep({**document, "parameters": {**parameters, "plugin": {"value": "mine"}}}, "s", {})
