"""Every metric has a name that W&B accepts, and run directories with the former names are still read."""

import shutil

import pytest
import torch

from harness.reporting.html import facts
from harness.reporting.html.run_data import read_run
from harness.tracking.journal import read_journal
from harness.tracking.metric_names import FORMER_METRIC_NAMES, METRIC_NAME, check_metric_names, with_present_names
from harness.tracking.records import Curve, Record
from harness.tracking.run_dir import read_summary
from harness.tracking.tracker import MultiTracker, NullTracker
from harness.utils.files import read_json
from tests.support.commands import QUICK
from tests.support.forked import TINY, harness
from tests.support.former_names import use_former_names
from tests.support.wandb_files import load

SLIM = {f"WANDB_{name}": "true" for name in ("X_DISABLE_STATS", "DISABLE_GIT", "X_DISABLE_MACHINE_INFO")}


@pytest.mark.parametrize("name", ["train/loss", "lr", "_private", "/x", "time/epoch_s", "find/seed_0"])
def test_a_valid_name_is_accepted(name):
    check_metric_names([name])


@pytest.mark.parametrize("name", [*FORMER_METRIC_NAMES, "", "val acc", "1st", "top-5", "val.acc", "précision", "lr\n"])
def test_a_name_that_w_and_b_does_not_accept_everywhere_is_refused(name):
    tracker = MultiTracker([NullTracker()])
    with pytest.raises(ValueError, match="metric name"):
        tracker.record(Record(1, 1, {name: 0.5}))
    with pytest.raises(ValueError, match="metric name"):
        tracker.record(Record(1, 1, {}, Curve("step", [1], {name: [0.5]})))
    with pytest.raises(ValueError, match="metric name"):
        tracker.summary({name: 0.5})


def names_of(wandb_folder, run_folder):
    """Every name that an offline W&B run holds (history, summary, config), and every metric in the journal."""
    offline_run, journal = load(wandb_folder), read_journal(run_folder)
    mappings = [*offline_run.rows, offline_run.summary, offline_run.config]
    nested = {key.split(".")[0] for mapping in mappings for key in mapping}  # parts of an image are `key.part`
    measured = {
        key for record in journal.records for key in (*record.values, *(record.steps.lines if record.steps else ()))
    }
    assert offline_run.rows and measured
    return nested | measured | set(journal.summary)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "lr-find", "evaluate"])
def test_every_name_of_a_real_run_is_valid(finished, tmp_path, command):
    shutil.copytree(finished[1], tmp_path / "runs/trained", ignore=shutil.ignore_patterns("wandb"))
    if command == "run":
        run_folder, wandb_folder = finished[1], next(finished[1].glob("wandb/offline-run-*"))
    elif command == "lr-find":
        arguments = [*QUICK, "--batch-size", 128, "--steps", 12, "--seeds", 1, "--wandb", "offline", "--name", "find"]
        harness("lr-find", *arguments, cwd=tmp_path, variables=SLIM, check=0)
        run_folder = tmp_path / "runs/find"
        wandb_folder = next(run_folder.glob("wandb/offline-run-*"))
    else:
        run_folder = tmp_path / "runs/trained"
        harness("evaluate", run_folder, "--wandb", "offline", cwd=tmp_path, variables=SLIM, check=0)
        wandb_folder = next(run_folder.rglob("offline-run-*"))
    names = names_of(wandb_folder, run_folder)
    assert [name for name in sorted(names) if not METRIC_NAME.fullmatch(name)] == []


def test_former_names_are_translated_and_others_are_kept():
    former = dict.fromkeys(FORMER_METRIC_NAMES, 1.0) | {"val/acc": 0.5}
    assert set(with_present_names(former)) == set(FORMER_METRIC_NAMES.values()) | {"val/acc"}


def test_a_run_directory_under_the_former_names_reads_as_one_under_the_present_names(finished, tmp_path):
    folder = tmp_path / "runs/former"
    shutil.copytree(finished[1], folder, ignore=shutil.ignore_patterns("wandb"))
    assert use_former_names(folder) >= 3 * len(FORMER_METRIC_NAMES)
    assert "time/epoch(s)" in read_json(folder / "summary.json")["last"]

    former, present = read_journal(folder), read_journal(finished[1])
    assert [record.scalars() for record in former.records] == [record.scalars() for record in present.records]
    assert former.summary == present.summary
    assert read_summary(folder) == read_summary(finished[1])

    former, present = read_run(folder), read_run(finished[1])
    assert former.line("throughput/images_per_s") == present.line("throughput/images_per_s")
    assert len(former.line("throughput/images_per_s")[1]) == 3
    assert facts.times(former) == facts.times(present)

    listed = harness("runs", cwd=tmp_path, check=0).out
    accuracy = 100 * read_summary(finished[1])["result"]["test/acc"]
    assert "finished" in listed and f"{accuracy:.2f} %" in listed


@pytest.mark.slow
def test_a_run_that_was_stopped_under_the_former_names_is_resumed_under_the_present_ones(tmp_path):
    command = ["run", *TINY, "--name", "r"]
    harness(*command, cwd=tmp_path, fault="int@step=24", check=130)  # in the third of three epochs
    folder = tmp_path / "runs/r"
    assert use_former_names(folder) >= 2 * len(FORMER_METRIC_NAMES)
    harness(*command, cwd=tmp_path, check=0)
    rows = torch.load(folder / "checkpoints/last.pt", weights_only=True)["progress"]["history"]
    assert len(rows) == 3
    for names in (*rows, read_json(folder / "summary.json")["last"]):
        assert set(FORMER_METRIC_NAMES.values()) <= set(names)
        assert not set(FORMER_METRIC_NAMES) & set(names)
    assert read_json(folder / "summary.json")["seconds"]["train"] > 0
    epochs = [record.values for record in read_journal(folder).records if record.kind == "epoch"]
    assert all(set(FORMER_METRIC_NAMES.values()) <= set(values) for values in epochs)
