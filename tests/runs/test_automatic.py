"""Runs whose settings are chosen from the data: what is kept where, resuming, seeds, several processes, other commands."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

import harness
from harness.config import yaml_io
from harness.models.factory import create_model
from harness.reporting.html.facts import chosen_settings
from harness.reporting.html.run_data import read_run
from harness.runs.automatic import decide_settings
from harness.runs.components import build_components
from harness.tracking.chosen_settings import read_choices
from harness.tracking.journal import read_journal
from harness.tracking.run_dir import lock_folder, stored_config
from harness.utils.errors import UsageError
from harness.utils.files import read_json
from tests.runs.test_precision import StopAfter
from tests.support.commands import command
from tests.support.image_folders import save_image
from tests.support.reporters import Lines
from tests.support.wandb_files import offline_runs
from tests.training.test_distributed import ranks, weights

FAST = {"model_args": {"width": 4}, "epochs": 2, "gallery": 0, "threads": 1, "device": "cpu", "precision": "fp32"}
WORDS = [
    "--model-args",
    "width=4",
    "--epochs",
    2,
    "--gallery",
    0,
    "--threads",
    1,
    "--precision",
    "fp32",
    "--device",
    "cpu",
]
CHOSEN = {"batch_size": 8, "lr_max": 0.05}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three classes of 24 x 24 pixels in one colour each, with noise: 20 images a class, no split."""
    root, rng = tmp_path_factory.mktemp("data") / "pictures", np.random.default_rng(0)
    for channel, label in enumerate(("red", "green", "blue")):
        for index in range(20):
            pixels = rng.integers(0, 120, (24, 24, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            save_image(root / label / f"{index}.png", pixels)
    return root


def config_of(pictures, tmp_path, **settings):
    given = {**FAST, "wandb": "disabled", "report": False, "output": str(tmp_path / "runs"), **settings}
    return harness.make_config({"data_dir": str(pictures), **given})


def test_a_folder_alone_is_trained_with_chosen_settings_that_are_printed_and_kept_as_numbers(pictures, tmp_path):
    done = command("run", "--data-dir", pictures, *WORDS, "--wandb", "offline", "--seed", 7, cwd=tmp_path, check=0)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("pictures-s7-")
    saved = yaml_io.read_yaml(folder / "config.yaml")
    assert {name: saved[name] for name in CHOSEN} == CHOSEN and "auto" not in map(saved.get, read_choices(folder))
    block = done.stderr[done.stderr.index("Chosen from the data") :]
    assert "batch_size" in block and "48 training images, 6 updates an epoch" in block
    assert (folder / "console.log").read_text().count("48 training images") == 1
    page = (folder / "report.html").read_text()
    assert "Settings that were chosen from the data" in page and "48 training images, 6 updates an epoch" in page
    (tracked,) = offline_runs(folder)
    assert tracked.config["batch_size"] == 8 and tracked.config["batch_size_requested"] == "auto"
    assert "automatic.json" in (folder / "SHA256SUMS").read_text()


def test_a_dry_run_chooses_as_the_run_does_and_makes_nothing(pictures, tmp_path):
    words = ["run", "--dry-run", "--data-dir", pictures, *WORDS, "--wandb", "offline"]
    shown = command(*words, cwd=tmp_path, check=0).stdout
    assert not any(tmp_path.iterdir())
    chosen = decide_settings(config_of(pictures, tmp_path)).config
    for name in CHOSEN:
        assert re.search(rf"^  {name} +{getattr(chosen, name)} ", shown, re.MULTILINE), (name, shown)
    model = create_model(chosen, 3)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert "48 training, 12 test images in 3 classes" in shown
    assert f"custom_resnet: {parameters:,} parameters, images of 24 x 24 pixels" in shown
    assert "2 epochs, 12 updates with batches of 8" in shown and "Warning: 12 updates in all" in shown
    assert "range test at the start" in command(*words, "--lr-max", "find", cwd=tmp_path, check=0).stdout
    for refused in (["--batch-size", 500], ["--seeds", 2], ["--resume", "runs/other"]):
        assert command(*words, *refused, cwd=tmp_path).returncode == 2
    assert not any(tmp_path.iterdir())
    for number in ("", "-2"):
        command(
            "run",
            "--data-dir",
            pictures,
            *WORDS,
            "--wandb",
            "disabled",
            "--name",
            "one of mine!",
            cwd=tmp_path,
            check=0,
        )
        named = command(*words, "--name", "one of mine!", cwd=tmp_path, check=0).stdout
        made = sorted(folder.name for folder in (tmp_path / "runs").iterdir())
        assert made[-1] == f"one-of-mine{number}"
        assert re.search(rf"^directory +runs/one-of-mine-{len(made) + 1}$", named, re.MULTILINE), named


@pytest.mark.slow
def test_an_interrupted_run_keeps_what_it_has_chosen_although_the_choice_would_differ_now(
    pictures, tmp_path, monkeypatch
):
    config = config_of(pictures, tmp_path)
    with pytest.raises(RuntimeError, match="ended by the test"):
        harness.run(config, StopAfter())
    monkeypatch.setattr("harness.config.automatic.LR_SMALL", 0.1)
    lines = Lines()
    result = harness.run(config, lines)
    (folder,) = (tmp_path / "runs").iterdir()
    assert result.folder == folder and result.summary["lr_max"] == CHOSEN["lr_max"] and len(result.history) == 2
    assert any("Resuming run" in line for line in lines.lines) and not any("Chosen" in line for line in lines.lines)
    again = harness.run(config, Lines())  # a finished run is not resumed: the new one chooses anew
    assert again.folder != folder and again.summary["lr_max"] < CHOSEN["lr_max"]


def test_a_run_is_resumed_by_its_name_and_by_its_directory_but_not_with_another_wish(pictures, tmp_path):
    config = config_of(pictures, tmp_path, name="mine")
    with pytest.raises(RuntimeError, match="ended by the test"):
        harness.run(config, StopAfter())
    folder = tmp_path / "runs/mine"
    with pytest.raises(UsageError, match="batch_size"):
        harness.run(config.replace(resume=str(folder), batch_size=16), Lines())
    by_folder = harness.make_config({"resume": str(folder), "report": False})
    assert not by_folder.undecided and harness.run(by_folder, Lines()).folder == folder


@pytest.mark.slow
def test_settings_as_they_were_saved_repeat_the_run_exactly(pictures, tmp_path):
    first = harness.run(config_of(pictures, tmp_path, name="first"), Lines())
    saved = harness.make_config({"recipe": str(first.folder / "config.yaml"), "name": "second"})
    second = harness.run(saved, Lines())
    losses = [[row["train/loss"] for row in result.history] for result in (first, second)]
    assert losses[0] == losses[1] and not read_choices(second.folder)


@pytest.mark.slow
def test_seeds_share_their_choice_and_a_second_call_trains_none_again(pictures, tmp_path):
    config = config_of(pictures, tmp_path, epochs=1, peak_epoch=1)
    result = harness.run_seeds(config, 2)
    assert [seed.rates["lr_max"] for seed in result.finished] == [0.05, 0.05]
    before = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(harness.run_seeds(config, 2).finished) == 2
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == before


@pytest.mark.slow
def test_two_processes_train_with_the_choice_of_the_main_one(pictures, tmp_path):
    words = ["run", "--data-dir", pictures, *WORDS, "--batch-size", "auto", "--wandb", "disabled", "--name", "r"]
    ended = ranks(*words, cwd=tmp_path)
    assert [process.returncode for process in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    assert sum("Chosen from the data" in process.stderr for process in ended) == 1
    assert yaml_io.read_yaml(tmp_path / "runs/r/config.yaml")["batch_size"] == 8 and weights(tmp_path / "runs/r")


def test_a_range_test_and_the_doctor_take_automatic_settings(pictures, tmp_path):
    result = harness.find_lr(config_of(pictures, tmp_path), seeds=1, steps=10)
    assert yaml_io.read_yaml(result.folder / "config.yaml")["batch_size"] == 8 and result.folder.name.startswith(
        "find-pictures-"
    )
    done = command("doctor", "--data-dir", pictures, cwd=tmp_path)
    assert "chosen from the data" in done.stdout and "60 images" in done.stdout


@pytest.mark.slow
def test_a_range_test_in_an_automatic_run_finds_both_rates(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.lr_finder.range_test.STEPS_PER_DECADE", 4)
    result = harness.run(config_of(pictures, tmp_path, lr_max="find"), Lines())
    assert 0 < result.summary["lr_min"] < result.summary["lr_max"] and (result.folder / "lr_finder.json").is_file()


@pytest.mark.slow
def test_a_sweep_over_a_setting_leaves_the_others_to_the_data(pictures, tmp_path):
    fixed = {"data": "folder", "data_dir": str(pictures), "model_args": "width=4", "epochs": 1, "val_fraction": 0.2,
             "test": False, "gallery": 0, "report": False}  # fmt: skip
    sweep = {
        "command": ["${env}", "${interpreter}", "-m", "harness", "run", "${args}"],
        "method": "grid",
        "metric": {"name": "best/val_acc", "goal": "maximize"},
        "parameters": {"lr_max": {"values": [0.01, 0.1]}, **{name: {"value": value} for name, value in fixed.items()}},
    }
    (tmp_path / "sweep.yaml").write_text(yaml_io.dump_yaml(sweep))
    command("sweep", "sweep.yaml", "--wandb", "disabled", cwd=tmp_path, check=0)
    folders = sorted(path.parent for path in tmp_path.rglob("automatic.json"))
    saved = [yaml_io.read_yaml(folder / "config.yaml") for folder in folders]
    assert {(each["lr_max"], each["lr_min"]) for each in saved} == {(0.01, 0.0001), (0.1, 0.001)}
    assert {each["batch_size"] for each in saved} == {8}
    (best,) = tmp_path.rglob("best.yaml")
    assert harness.make_config({"recipe": str(best)}).undecided >= {"batch_size", "flip"}


@pytest.mark.parametrize("counts", [(2, 2), pytest.param((60, 2), marks=pytest.mark.slow)])
def test_two_images_of_a_class_are_trained_on_and_their_figures_are_qualified(tmp_path, counts):
    for label, count in zip(("many", "few"), counts, strict=True):
        for index in range(count):
            save_image(tmp_path / "data" / label / f"{index}.png", np.full((16, 16, 3), 40 + 5 * index % 200, np.uint8))
    lines = Lines()
    result = harness.run(config_of(tmp_path / "data", tmp_path, epochs=1, test_fraction=0.5), lines)
    warnings = result.summary["warnings"]
    assert any("few (1)" in line for line in warnings) and any("update" in line for line in warnings)
    assert all(f"Warning: {line}" in lines.lines for line in warnings)
    assert read_json(result.folder / "summary.json")["warnings"] == warnings


@pytest.mark.slow
def test_a_damaged_note_of_the_choices_makes_a_new_run_and_hides_no_error(pictures, tmp_path):
    config = config_of(pictures, tmp_path, epochs=1, peak_epoch=1)
    first = harness.run(config, Lines())
    (first.folder / "automatic.json").write_text("{")
    assert read_choices(first.folder) == {}
    assert harness.run(config, Lines()).folder != first.folder


def read_epochs(folder):
    return [record for record in read_journal(folder).records if record.kind == "epoch"]


@pytest.fixture
def short(monkeypatch):
    """The number of epochs that is chosen is 3."""
    monkeypatch.setattr("harness.config.automatic.EPOCHS", (3, 3))
    monkeypatch.setattr("harness.config.automatic.LEAST_UPDATES", 1)


@pytest.mark.slow
def test_a_run_whose_length_was_chosen_is_resumed_with_it_or_with_the_length_that_is_given(pictures, tmp_path, short):
    config = config_of(pictures, tmp_path, name="r", epochs="auto")
    folder = tmp_path / "runs/r"
    resumed = config.replace(resume=str(folder))
    for given in (config, resumed, resumed.replace(epochs=6), resumed.replace(epochs=6), resumed):
        with pytest.raises(RuntimeError, match="ended by the test"):
            harness.run(given, StopAfter())
        assert stored_config(folder).epochs == (3 if len(read_epochs(folder)) < 3 else 6)
    result = harness.run({"resume": str(folder), "report": False})
    assert len(result.history) == 6 and stored_config(folder).extended == ("12:3",)
    settings = read_journal(folder).settings
    assert (settings["epochs"], settings["epochs_requested"], settings["batch_size"]) == (6, "auto", 8)
    shown = {setting.name for setting in chosen_settings(read_run(folder))}
    assert "epochs" not in shown and {"batch_size", "peak_epoch", "lr_max"} <= shown
    (peak,) = (setting for setting in chosen_settings(read_run(folder)) if setting.name == "peak_epoch")
    assert "chosen for 3 epochs, and the run has 6 now" in peak.reason


def test_a_stopped_automatic_run_is_shortened_to_fewer_epochs_than_its_chosen_peak(pictures, tmp_path):
    config = config_of(pictures, tmp_path, name="r", epochs=20, log_every=1)
    folder = tmp_path / "runs/r"
    with pytest.raises(RuntimeError, match="ended by the test"):
        harness.run(config, StopAfter())
    assert stored_config(folder).peak_epoch == 4
    lines = Lines()
    result = harness.run({"resume": str(folder), "epochs": 3, "report": False}, lines)
    assert len(result.history) == 3 and stored_config(folder).peak_epoch == 4
    rates = [lr for record in read_epochs(folder) for lr in record.steps.lines["lr"]]
    highest = 1 + 2 * 3 / 19  # the three epochs of 19 that were left before the peak, in two
    assert len(rates) == 18 and abs(np.argmax(rates) / 6 - highest) <= 1 / 6
    assert any(re.search(r"reaches 0.0\d+ at epoch 1.33", line) for line in lines.lines), lines.lines


def test_a_run_that_another_process_is_writing_lends_its_choices_to_no_other(pictures, tmp_path):
    config = config_of(pictures, tmp_path)

    def stop():
        with pytest.raises(RuntimeError, match="ended by the test"):
            harness.run(config, StopAfter())

    stop()
    (first,) = (tmp_path / "runs").iterdir()
    with lock_folder(first):  # as while another process is writing it
        stop()
        (second,) = {*(tmp_path / "runs").iterdir()} - {first}
        assert read_choices(second) == read_choices(first) != {}
        assert harness.run(config, Lines()).folder == second


@pytest.mark.slow
def test_seeds_that_chose_differently_are_reported(pictures, tmp_path, monkeypatch):
    config = config_of(pictures, tmp_path, epochs=1, peak_epoch=1)
    alone, both = Lines(), Lines()
    harness.run_seeds(config, 1, alone)
    monkeypatch.setattr("harness.config.automatic.LR_SMALL", 0.1)
    harness.run_seeds(config, 2, both)
    assert not any("different settings" in line for line in alone.lines)
    (line,) = (line for line in both.lines if "different settings" in line)
    assert "lr_max (0.05 in seed 0, 0.013 in seed 1)" in line and "batch_size" not in line


def test_a_model_of_a_plugin_gets_automatic_settings(pictures, tmp_path, monkeypatch):
    source = "from timm.models import register_model\nfrom harness.models.cifar_resnet import custom_resnet\n\n\n@register_model\ndef automatic_mine(pretrained=False, **kwargs):\n    return custom_resnet(**{**kwargs, 'width': 4})\n"
    (tmp_path / "automatic_plugin.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    config = config_of(pictures, tmp_path, plugin="automatic_plugin", model="automatic_mine", model_args={})
    assert decide_settings(config).config.batch_size == 8


@pytest.mark.slow
def test_a_result_that_the_reported_split_has_selected_is_called_optimistic(pictures, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(pictures, tmp_path / "divided" / split)
    for path in sorted((tmp_path / "divided/val").rglob("*.png")):
        pixels = np.asarray(Image.open(path))
        save_image(path, 255 - pixels if int(path.stem) > 9 else pixels // 2)
    result = harness.run(config_of(tmp_path / "divided", tmp_path, epochs=1))
    assert any("selected the epoch" in line for line in result.summary["warnings"])
    held_out = harness.run(config_of(pictures, tmp_path, epochs=1, val_fraction=0.2))
    assert not any("selected the epoch" in line for line in held_out.summary["warnings"])


@pytest.mark.slow
def test_weights_of_a_small_input_keep_their_augmentation_on_large_images(pictures, tmp_path, monkeypatch):
    """The choices with `init` are those with the size of the weights given; the run has that size."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = harness.run(config_of(pictures, tmp_path, epochs=0, image_size=32, model="resnet18", model_args={}))
    rng = np.random.default_rng(1)
    for label in ("red", "green", "blue"):
        for index in range(5):
            save_image(tmp_path / "large" / label / f"{index}.png", rng.integers(0, 255, (90, 90, 3), dtype=np.uint8))
    from_weights = config_of(tmp_path / "large", tmp_path, model_args={}, init=str(source.folder), epochs=1)
    decided = decide_settings(from_weights)
    given = decide_settings(from_weights.replace(image_size=32)).config
    assert decided.config == given and given.crop_padding == 4
    assert any("resnet18 is trained from scratch, since" in line for line in source.summary["warnings"])
    assert decided.choices["image_size"].value == 32
    assert build_components(from_weights).preprocess.size == 32
    weights_file = source.folder / "checkpoints/model.safetensors"
    assert decide_settings(from_weights.replace(init=str(weights_file))).config.image_size == 32
