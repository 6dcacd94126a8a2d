"""Complete runs as a user starts them: real processes, real files, W&B offline."""

import json
import re
import signal
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import harness
from harness.config import yaml_io
from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.models import cifar_resnet
from harness.runs.plot import plot_schedule
from harness.tracking.journal import read_journal
from harness.utils.files import read_json
from tests.support.commands import QUICK, begun, command, wait_for_checkpoint
from tests.support.forked import begin
from tests.support.wandb_files import load, offline_runs


def test_a_run_writes_every_documented_file_and_its_status(finished):
    done, folder = finished
    for name in (
        "config.yaml",
        "journal.jsonl",
        "status.json",
        "summary.json",
        "checkpoints/last.pt",
        "checkpoints/model.safetensors",
        "checkpoints/model.json",
        "figures/losses.png",
        "figures/accuracy.png",
        "figures/lr.png",
    ):
        assert (folder / name).stat().st_size > 0, name
    assert not list(folder.rglob("*.tmp"))
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["epoch"]) == ("finished", 0, 3)
    assert len(re.findall(r"^epoch \d/3 ", done.stderr, re.M)) == 3
    assert "harness sync" in done.stderr
    assert "test accuracy" in done.stdout


def test_the_saved_configuration_is_that_of_the_run_and_repeats_it_bit_identically(finished, tmp_path):
    _, folder = finished
    saved = yaml_io.read_yaml(folder / "config.yaml")
    journal = read_journal(folder / "journal.jsonl")
    assert journal.header["config"] == saved == make_config({"recipe": str(folder / "config.yaml")}).to_dict()
    command(
        "run",
        "--recipe",
        folder / "config.yaml",
        "--wandb",
        "disabled",
        "--output",
        tmp_path / "again",
        cwd=tmp_path,
        check=0,
    )
    again = next((tmp_path / "again").iterdir())
    assert (again / "checkpoints/model.safetensors").read_bytes() == (
        folder / "checkpoints/model.safetensors"
    ).read_bytes()
    assert not (again / "wandb").exists()


def test_wandb_has_the_contents_of_the_journal(finished):
    _, folder = finished
    journal, config = read_journal(folder / "journal.jsonl"), yaml_io.read_yaml(folder / "config.yaml")
    run = load(next(folder.glob("wandb/offline-run-*")))
    assert {key: run.config[key] for key in config} == config
    assert run.config["dataset"]["fingerprint"] == journal.header["dataset"]["fingerprint"]
    assert (run.group, run.project, sorted(run.tags), run.notes) == ("tests", "trial", ["a", "b"], "why")
    epochs = [record for record in journal.records if record.kind == "epoch"]
    steps = [row["_step"] for row in run.rows]
    assert steps == list(range(1, epochs[-1].step + 2))  # the last row is that of the result
    assert run.rows[-1]["result/test/acc"] == journal.records[-1].values["result/test/acc"]
    times = [row["_timestamp"] for row in run.rows]
    assert times == [*(moment for record in epochs for moment in (*record.step_times[:-1], record.time)), times[-1]]
    images = [row["images_seen"] for row in run.rows[:-1]]
    assert images == [value for record in epochs for value in record.steps.lines["images_seen"]]
    for record in epochs:
        row = next(row for row in run.rows if row["_step"] == record.step)
        for key, value in record.scalars().items():
            assert row[key] == pytest.approx(value), key
    assert run.summary["test/acc"] == pytest.approx(epochs[-1].values["test/acc"])
    assert isinstance(run.summary["best/test_acc"], float)
    assert run.exit_code == 0


def test_the_recorded_learning_rates_of_the_optimizer_follow_the_options(finished):
    _, folder = finished
    journal = read_journal(folder / "journal.jsonl")
    config = Config(**journal.header["config"])
    lrs = [lr for record in journal.records if record.steps for lr in record.steps.lines["lr"]]
    per_epoch = len(lrs) // 3
    knots = np.interp(
        np.arange(len(lrs)),
        [0, config.peak_epoch * per_epoch, 3 * per_epoch],
        [config.lr_min, config.lr_max, config.lr_min],
    )
    np.testing.assert_allclose(lrs, knots, rtol=1e-6)


def test_stock_timm_loads_the_weights_of_the_result(finished):
    _, folder = finished
    facts = json.loads((folder / "checkpoints/model.json").read_text())

    model = timm.create_model(
        "custom_resnet",
        num_classes=10,
        checkpoint_path=str(folder / "checkpoints/model.safetensors"),
        **facts["config"]["model_args"],
    )
    assert isinstance(model, cifar_resnet.CustomResNet)  # importing it registers it with timm
    assert len(facts["classes"]) == 10
    images = torch.rand(2, 3, 32, 32)
    assert model.eval()(images).shape == (2, 10)


@pytest.mark.slow
def test_the_python_function_has_the_result_of_the_command(finished, tmp_path, monkeypatch):
    _, folder = finished
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    try:
        result = harness.run(
            harness.make_config(
                {
                    "recipe": "digits",
                    "image_size": 16,
                    "model_args": {"width": 4},
                    "epochs": 3,
                    "threads": 1,
                    "precision": "fp32",
                    "wandb": "disabled",
                }
            )
        )
    finally:
        torch.set_num_threads(threads)
    summary = json.loads((folder / "summary.json").read_text())
    assert result.summary["result"] == summary["result"]
    assert [row["train/loss"] for row in result.history] == [
        record.values["train/loss"]
        for record in read_journal(folder / "journal.jsonl").records
        if record.kind == "epoch"
    ]


@pytest.mark.slow
def test_a_run_with_a_validation_split_keeps_the_selected_epoch_and_reads_the_test_set_once(tmp_path):
    arguments = ["--epochs", 3, "--val-fraction", 0.2, "--gallery", 0, "--wandb", "disabled", "--name", "v"]
    command("run", *QUICK, *arguments, cwd=tmp_path, check=0)
    folder = tmp_path / "runs/v"
    summary, journal = json.loads((folder / "summary.json").read_text()), read_journal(folder / "journal.jsonl")
    epochs = [record for record in journal.records if record.kind == "epoch"]
    accuracies = [record.values["val/acc"] for record in epochs]
    assert not any(key.startswith("test/") for record in epochs for key in record.values)
    assert summary["result"]["epoch"] == 1 + accuracies.index(max(accuracies))
    assert summary["result"]["val/acc"] == pytest.approx(max(accuracies))
    assert "test/acc" in summary["result"]


@pytest.mark.parametrize(
    ("name", "number", "code", "state"),
    [
        pytest.param("SIGINT", signal.SIGINT, 130, "interrupted", marks=pytest.mark.slow),
        pytest.param("SIGTERM", signal.SIGTERM, 143, "preempted", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_is_resumed_by_the_same_command_with_bit_identical_results(
    finished, tmp_path, name, number, code, state
):
    _, uninterrupted = finished
    arguments = ["run", *QUICK, "--epochs", "3", "--checkpoint-every", "2", "--wandb", "offline"]
    process, output = begun(*arguments, cwd=tmp_path), tmp_path / "runs"
    wait_for_checkpoint(process, tmp_path)
    assert process.poll() is None, process.communicate()
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == code, errors
    folder = next(output.iterdir())
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == state
    assert "--resume" in status["resume"]
    assert state in command("runs", cwd=tmp_path, check=0).stdout
    done = command(*arguments, cwd=tmp_path, check=0)
    assert f"from step {status['step']}" in done.stderr
    assert [path.name for path in output.iterdir()] == [folder.name]
    assert (folder / "checkpoints/model.safetensors").read_bytes() == (
        uninterrupted / "checkpoints/model.safetensors"
    ).read_bytes()
    losses, expected = (
        [
            record.values["train/loss"]
            for record in read_journal(path / "journal.jsonl").records
            if record.kind == "epoch"
        ]
        for path in (folder, uninterrupted)
    )
    assert losses == expected


@pytest.mark.slow
def test_a_finished_run_is_not_overwritten(tmp_path):
    for _ in range(2):
        command(
            "run",
            *QUICK,
            "--epochs",
            1,
            "--peak-epoch",
            1,
            "--gallery",
            0,
            "--wandb",
            "disabled",
            "--name",
            "same",
            cwd=tmp_path,
            check=0,
        )
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["same", "same-2"]


def write_images(folder, classes=("cat", "dog"), count=6, size=32):
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for index, name in enumerate(classes):
            path = folder / split / name
            path.mkdir(parents=True)
            for image in range(count):
                pixels = generator.integers(0, 128, (size, size, 3)) + 127 * index
                Image.fromarray(pixels.astype(np.uint8)).save(path / f"{image}.png")


@pytest.mark.slow
def test_any_timm_model_trains_on_a_folder_of_images_at_another_size(tmp_path):
    write_images(tmp_path / "pictures", size=40)
    arguments = [
        "--data",
        "folder",
        "--data-dir",
        "pictures",
        "--epochs",
        1,
        "--peak-epoch",
        0.5,
        "--batch-size",
        4,
        "--workers",
        1,
        "--wandb",
        "disabled",
    ]
    command("run", "--model", "test_efficientnet", "--image-size", 64, *arguments, cwd=tmp_path, check=0)
    facts = json.loads(next((tmp_path / "runs").glob("*/checkpoints/model.json")).read_text())
    assert facts["preprocess"]["size"] == 64
    assert facts["classes"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--lr-max", "nan"], 2, "lr_max"),
        (["--EPOCHS=-1"], 2, "epochs"),
        (["--recipe", "nothing"], 2, "no recipe 'nothing'"),
        (["--model", "custom_resent"], 2, "custom_resnet"),
        (["--model-args", "widht=3"], 2, "widht"),
        (["--data", "folder", "--data-dir", "missing"], 3, "missing"),
        (["--data", "folder", "--data-dir", "."], 3, "."),
        (["--batch-size", "100000"], 2, "100000"),
        (["--device", "cuda:7"], 2, "cuda:7"),
        (["--output", "/proc/nowhere"], 2, "/proc/nowhere"),
        (["--resume", "nowhere"], 2, "nowhere"),
        (["--image-size", "4"], 2, "4 pixels"),
        (["--select", "best"], 2, "val-fraction"),
        (["--plugin", "no_such_module"], 2, "no_such_module"),
        (["--lr-max", "1e6"], 5, "step"),
        (["--data", "cifar10", "--data-dir", "nothing", "--download", "False"], 3, "cifar10"),
    ],
)
def test_a_wrong_option_gives_one_line_and_its_exit_status(arguments, code, message, tmp_path, capfd, monkeypatch):
    """In this process, through the real entry point: starting Python for each would take minutes."""
    from harness.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["harness", "run", *QUICK, "--wandb", "disabled", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    errors = capfd.readouterr().err
    assert stop.value.code == code, errors
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in errors
    if code == 2:
        assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_the_status_and_wandb_of_a_run_that_diverged_name_the_step_and_the_learning_rate(tmp_path):
    done = command("run", *QUICK, "--lr-max", 1e6, "--wandb", "offline", "--name", "d", cwd=tmp_path, check=5)
    assert "Traceback" not in done.stderr
    status = json.loads((tmp_path / "runs/d/status.json").read_text())
    assert status["state"] == "failed"
    assert re.search(r"at step \d+, learning rate", status["reason"])
    run = load(next((tmp_path / "runs/d/wandb").glob("offline-run-*")))
    assert run.exit_code == 5
    assert run.alerts


PLUGIN = """
import torch
from timm.models import register_model

@register_model
def my_own_net(pretrained=False, num_classes=10, **kwargs):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, num_classes))
    net.num_classes = num_classes
    net.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return net
"""


@pytest.mark.slow
def test_a_model_of_a_plugin_trains(tmp_path):
    (tmp_path / "my_package.py").write_text(PLUGIN)
    arguments = [
        "--recipe",
        "digits",
        "--plugin",
        "my_package",
        "--model",
        "my_own_net",
        "--epochs",
        2,
        "--wandb",
        "disabled",
        "--name",
        "p",
    ]
    command("run", *arguments, cwd=tmp_path, check=0)
    assert json.loads((tmp_path / "runs/p/summary.json").read_text())["parameters"] == 3072 * 10 + 10


@pytest.mark.parametrize(
    ("arguments", "suffix"),
    [(["--schedule", "cyclic"], "png"), (["--schedule", "cosine", "--momentum-min", "0.85"], "svg")],
)
def test_plot_draws_a_schedule_without_training(arguments, suffix, tmp_path):
    out = tmp_path / f"lr.{suffix}"
    done = command("plot", *arguments, "-o", out, cwd=tmp_path, check=0)
    assert str(out) in done.stdout
    assert out.stat().st_size > 1000
    assert not (tmp_path / "runs").exists()


def test_the_default_cyclic_plot_is_0_08_to_0_8_over_100_iterations(tmp_path):
    done = command("plot", "--schedule", "cyclic", "-o", tmp_path / "x.png", cwd=tmp_path, check=0)
    assert "learning rate 0.08 to 0.8, 100 iterations" in done.stdout


@pytest.mark.slow
def test_galleries_during_a_run_add_no_row_and_no_record(tmp_path):
    arguments = [
        "--epochs",
        3,
        "--batch-size",
        128,
        "--explain-every",
        1,
        "--gallery",
        4,
        "--wandb",
        "offline",
        "--name",
        "e",
    ]
    command("run", *QUICK, *arguments, cwd=tmp_path, check=0)
    folder = tmp_path / "runs/e"
    records = read_journal(folder / "journal.jsonl").records
    assert [record.kind for record in records] == ["epoch", "epoch", "epoch", "final"]
    assert all("gallery/misclassified" in record.values for record in records if record.epoch < 3)
    run = load(next(folder.glob("wandb/offline-run-*")))
    assert run.steps == list(range(1, records[-1].step + 2))  # the last row is that of the result
    assert all("lr" in row for row in run.rows[:-1])


def test_a_finished_run_is_not_resumed_and_its_folder_alone_names_the_run(finished):
    _, folder = finished
    before = (folder / "journal.jsonl").read_bytes()
    done = command("run", "--resume", folder, cwd=folder.parent.parent, check=0)
    assert "already complete" in done.stderr
    assert (folder / "journal.jsonl").read_bytes() == before


def test_resuming_with_another_setting_is_refused_with_the_setting_and_both_values(finished):
    _, folder = finished
    done = command("run", "--resume", folder, "--lr-max", 0.5, cwd=folder.parent.parent, check=2)
    assert "lr_max: 0.01 -> 0.5" in done.stderr


def test_a_signal_before_training_starts_gives_its_exit_status(tmp_path):
    running = begin("run", *QUICK, "--wandb", "disabled", cwd=tmp_path)
    running.until((tmp_path / "runs").exists)  # created before anything else
    running.signal(signal.SIGTERM)
    assert running.end(60).code == 143


@pytest.mark.slow
def test_a_run_with_find_trains_at_the_learning_rates_of_its_range_test(tmp_path):
    arguments = ["--model-args", "width=4", "--epochs", 1, "--gallery", 0, "--wandb", "offline", "--name", "f"]
    arguments += ["--threads", 1, "--batch-size", 128]
    command(
        "run",
        "--recipe",
        "digits",
        "--precision",
        "fp32",
        "--lr-max",
        "find",
        "--lr-min",
        "find",
        *arguments,
        cwd=tmp_path,
        check=0,
    )
    folder = tmp_path / "runs/f"
    finder, summary = (
        json.loads((folder / "lr_finder.json").read_text()),
        json.loads((folder / "summary.json").read_text()),
    )
    assert (summary["lr_min"], summary["lr_max"]) == (finder["lr_min"], finder["lr_max"])
    assert (folder / "figures/lr_finder.png").is_file()
    run = load(next(folder.glob("wandb/offline-run-*")))
    assert run.summary["lr_max"] == pytest.approx(finder["lr_max"])
    # Charts and sweeps need the numbers; what was asked for is beside them.
    assert (run.config["lr_min"], run.config["lr_max"]) == pytest.approx((finder["lr_min"], finder["lr_max"]))
    assert (run.config["lr_min_requested"], run.config["lr_max_requested"]) == ("find", "find")
    journal = read_journal(folder)
    assert journal.header["config"]["lr_max"] == "find"
    assert journal.settings["lr_max"] == pytest.approx(finder["lr_max"])
    lrs = [row["lr"] for row in run.rows if row["_step"] > 0 and "lr" in row]
    assert max(lrs) <= finder["lr_max"] * 1.0001


@pytest.mark.slow
def test_lr_find_prints_its_learning_rates_and_writes_a_sweep(tmp_path):
    arguments = [
        "--recipe",
        "digits",
        "--precision",
        "fp32",
        "--model-args",
        "width=4",
        "--seeds",
        1,
        "--wandb",
        "disabled",
    ]
    done = command("lr-find", *arguments, "--write-sweep", "sweep.yaml", cwd=tmp_path, check=0)
    assert "--lr-max" in done.stdout and "start its trials with: harness sweep sweep.yaml" in done.stderr
    sweep = yaml_io.read_yaml(tmp_path / "sweep.yaml")
    assert sweep["parameters"]["lr_max"]["distribution"] == "log_uniform_values"
    # Its own instruction, for two short trials.
    instruction = re.search(r"#   harness (sweep sweep\.yaml) ", (tmp_path / "sweep.yaml").read_text())[1]
    short = ["--count", 2, "--epochs", 1, "--threads", 1]
    command(*instruction.split(), *short, cwd=tmp_path, check=0)
    (folder,) = (path.parent for path in (tmp_path / "runs").glob("*/sweep.json"))
    trials = read_json(folder / "sweep.json")["trials"]
    assert trials["complete"] == 2
    for trial in (folder / "runs").iterdir():
        config = yaml_io.read_yaml(trial / "config.yaml")
        assert config["test"] is False and config["model_args"] == {"width": 4} and config["val_fraction"] == 0.1


def test_a_plot_is_recorded_in_wandb_on_request(tmp_path):
    settings = {"recipe": "digits", "wandb": "offline", "output": str(tmp_path / "runs")}
    text = plot_schedule(settings, tmp_path / "lr.png", 10)
    assert str(tmp_path / "lr.png") in text
    (recorded,) = offline_runs(tmp_path / "runs/plot-lr")
    config = make_config({"recipe": "digits"})
    assert recorded.exit_code == 0 and recorded.config["lr_max"] == config.lr_max
    assert any(name.startswith("plot/lr") for row in recorded.rows for name in row)
