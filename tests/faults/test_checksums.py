"""A file that a result stands on and that has changed is never used without a word, by whatever command."""

import random
import shutil
import subprocess

import pytest
import torch

import harness
from harness.checks.verify import verify
from harness.reporting.html.run_data import read_run
from harness.runs.export import export_timm
from harness.tracking import run_dir
from harness.tracking.wandb.sync import sync
from harness.training import checkpoint
from harness.utils.checksums import SUMS
from harness.utils.errors import CheckpointError, DataError
from harness.utils.files import read_json, write_json
from tests.support.forked import harness as command
from tests.support.resume import SAVING, contents_of
from tests.support.training import learner, net


@pytest.fixture
def run_copy(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished[1], folder, ignore=shutil.ignore_patterns("wandb", "evaluation-*"))
    return folder


def flip(path, bit=None):
    """Flip one bit of a file, by default one in its middle."""
    content = bytearray(path.read_bytes())
    bit = 4 * len(content) if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def picture(folder):
    return next(folder.rglob("*.png"))


COMMANDS = {
    "evaluate": lambda folder: harness.evaluate(folder),
    "predict": lambda folder: next(harness.predict(folder, picture(folder))),
    "explain": lambda folder: next(harness.explain(folder, picture(folder), out=folder / "explained")),
    "export": lambda folder: export_timm(folder, folder / "exported"),
    "load_model": lambda folder: harness.load_model(folder),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("file", ["model.safetensors", "model.json"])
def test_weights_or_settings_with_one_flipped_bit_are_refused(run_copy, name, file):
    """In `model.json` the digit of a mean, which leaves valid JSON."""
    path = run_copy / "checkpoints" / file
    if file == "model.json":
        facts = read_json(path)
        facts["preprocess"]["mean"][0] += 0.25
        write_json(path, facts)
    else:
        flip(path)
    with pytest.raises(CheckpointError, match=r"is damaged: .*checksum; restore it from a copy"):
        COMMANDS[name](run_copy)


@pytest.mark.slow
def test_verify_names_each_file_that_has_changed(run_copy):
    assert "files" not in {row.name for row in verify(folder=run_copy).deviating}
    for file in ("predictions.csv", "summary.json", "checkpoints/model.safetensors"):
        flip(run_copy / file)
    (run_copy / "per_class.csv").unlink()
    rows = {row.name: row for row in verify(folder=run_copy).rows}
    assert rows["files"].verdict == rows["weights"].verdict == "deviates"
    assert rows["files"].found == "changed: summary.json, predictions.csv, per_class.csv, checkpoints/model.safetensors"


def test_the_checksums_are_those_of_sha256sum_and_cover_every_file_that_the_result_stands_on(run_copy):
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=run_copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    listed = {line.partition(": ")[0] for line in done.stdout.splitlines()}
    assert listed == {name for name in run_dir.RESULT_FILES if (run_copy / name).is_file()}
    assert {"journal.jsonl", "summary.json", "predictions.csv", "checkpoints/model.safetensors"} <= listed
    assert "checkpoints/class_map.txt" in listed


def test_a_report_names_what_has_changed_and_shows_no_figure_of_it(run_copy):
    whole = read_run(run_copy)
    assert not whole.missing and whole.result and whole.predictions
    for file in ("predictions.csv", "summary.json"):
        flip(run_copy / file)
    run = read_run(run_copy)
    assert not run.result and run.predictions is None
    assert [text.partition(":")[0] for text in run.missing] == ["summary.json", "predictions.csv"]


def test_a_flipped_digit_in_the_journal_is_no_figure_of_a_report(run_copy):
    path = run_copy / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    epochs = [number for number, line in enumerate(lines) if line.startswith(b'{"kind":"epoch"')]
    position = lines[epochs[1]].index(b'"train/acc":0.') + len(b'"train/acc":0.')
    flip(path, 8 * (sum(map(len, lines[: epochs[1]])) + position))
    run = read_run(run_copy)
    assert [record.epoch for record in run.epochs] == [1]
    assert any("journal" in text for text in run.missing)


def test_a_changed_file_is_not_uploaded(run_copy):
    flip(run_copy / "checkpoints/model.safetensors")
    with pytest.raises(DataError, match=r"model.safetensors changed since the run ended"):
        sync(run_copy, print)


def test_a_flipped_bit_of_a_lone_checkpoint_is_noticed_or_changes_nothing(tmp_path):
    """Of 200 bits anywhere in the file; a file in a folder without index.json."""
    one = learner(net())
    state = {"learner": one.state_dict(), "progress": {"step": 3}}
    path = tmp_path / "lone.pt"
    torch.save(state, path)
    content, draw, noticed = path.read_bytes(), random.Random(0), 0
    expected = checkpoint.load_checkpoint(path)["learner"]["model"]
    for _ in range(200):
        path.write_bytes(content)
        flip(path, draw.randrange(8 * len(content)))
        try:
            weights = checkpoint.load_checkpoint(path)["learner"]["model"]
        except CheckpointError:
            noticed += 1
        else:
            assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert noticed > 50


def test_a_kill_between_new_weights_and_their_facts_leaves_weights_with_their_own_facts(tmp_path):
    """The facts are replaced first; the weights that are still there have theirs in the new file."""
    path = tmp_path / "model.safetensors"
    about = {"config": {}, "classes": ["a"], "preprocess": {}}
    contents = []
    for epoch in (1, 2, 3):
        checkpoint.save_weights(path, {"w": torch.full((2,), float(epoch))}, {**about, "epoch": epoch})
        contents.append((path.read_bytes(), path.with_suffix(".json").read_bytes()))
        weights, facts = checkpoint.load_weights(path)
        assert (float(weights["w"][0]), facts["epoch"]) == (epoch, epoch)
    for number in (1, 2):
        path.write_bytes(contents[number - 1][0])
        path.with_suffix(".json").write_bytes(contents[number][1])
        weights, facts = checkpoint.load_weights(path)
        assert (float(weights["w"][0]), facts["epoch"]) == (number, number)
    checkpoint.save_weights(path, {"w": torch.zeros(2)}, {**about, "epoch": 4})  # resumed: the weights are of epoch 2
    assert read_json(path.with_suffix(".json"))["replaced"]["epoch"] == 2
    path.write_bytes(contents[0][0])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load_weights(path)


@pytest.mark.slow
def test_damaged_weights_of_the_best_epoch_end_a_resume_before_it_trains(tmp_path):
    words = ["run", *SAVING, "--val-fraction", "0.2", "--name", "r"]
    command(*words, cwd=tmp_path, fault="kill@step=20")
    flip(tmp_path / "runs/r/checkpoints/model.safetensors")
    ended = command(*words, cwd=tmp_path, check=4)
    assert "model.safetensors is damaged" in ended.errors[0] and "epoch" not in ended.out


@pytest.mark.slow
def test_a_run_that_selects_is_bit_identical_after_kills_between_the_facts_and_the_weights_of_the_best_epoch(tmp_path):
    words = ["run", *SAVING, "--val-fraction", "0.2", "--name", "r"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    command(*words, cwd=tmp_path / "whole", check=0)
    for number in (9, 10, 11):  # files that are replaced; the run is resumed between the kills
        command(*words, cwd=tmp_path / "killed", fault=f"kill@replaced={number}")
    command(*words, cwd=tmp_path / "killed", check=0)
    whole, killed = (contents_of(tmp_path / name / "runs/r") for name in ("whole", "killed"))
    assert whole == killed
