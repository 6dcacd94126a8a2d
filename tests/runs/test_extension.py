"""Runs that get another number of epochs: `harness run --resume RUN --epochs N`."""

import itertools
import json
import math
import shutil
import signal

import numpy as np
import pytest
import torch

from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.runs.extension import with_extension
from harness.tracking.journal import read_journal
from harness.tracking.wandb.sync import sync
from harness.training.distributed import SingleProcess
from harness.training.schedule import Schedule, make_schedule
from harness.utils.errors import CheckpointError, UsageError
from tests.support.checkpoints import vouch_for
from tests.support.forked import TINY
from tests.support.forked import harness as command
from tests.support.resume import TIMED, flatten
from tests.support.shared import make_once
from tests.support.wandb_files import offline_runs

STEPS = 11  # of an epoch of TINY
KINDS = ["one_cycle", "cosine", "cyclic", "plateau", "constant"]


def curve(schedule):
    return np.array([schedule.lr(step) for step in range(schedule.steps + 1)])


def made(kind, epochs, *extended, peak=2.0, steps=10):
    config = Config(
        schedule=kind, epochs=epochs, extended=extended, peak_epoch=peak, cycles=3, lr_min=0.1, lr_max=0.9,
        val_fraction=0.1,
    )  # fmt: skip
    return make_schedule(config, steps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("since", [0, 7, 13, 31, 59, 60])
@pytest.mark.parametrize("epochs", [4, 6, 9, 20])
def test_the_rates_before_a_change_of_length_stay_and_no_rate_leaves_the_range(kind, since, epochs):
    if since > 10 * epochs:
        return
    former, schedule = made(kind, 6), made(kind, epochs, f"{since}:6")
    assert schedule.steps == 10 * epochs
    assert np.array_equal(curve(schedule)[:since], curve(former)[:since])
    assert curve(schedule).min() >= 0.1 and curve(schedule).max() <= 0.9
    if since < 60 and kind != "cyclic":
        assert schedule.lr(since) == pytest.approx(former.lr(since), abs=1e-12)  # from its present LR
    if kind in ("one_cycle", "cosine", "cyclic") and epochs * 10 > since:
        assert curve(schedule)[-1] == pytest.approx(former.lr(60))


def test_what_is_left_of_a_one_cycle_curve_is_stretched():
    """As NumPy interpolates it: the curve of the steps that were left, over the steps that are left now."""
    schedule = made("one_cycle", 9, "13:6")
    knots = [0, 13, 13 + 7 * 77 / 47, 90]
    expected = np.interp(np.arange(91), knots, [0.1, 0.1 + 0.8 * 13 / 20, 0.9, 0.1])
    np.testing.assert_allclose(curve(schedule), expected, atol=1e-12)


def test_a_one_cycle_run_that_has_ended_begins_again_with_its_peak_at_the_same_fraction():
    schedule = made("one_cycle", 9, "60:6")
    expected = np.interp(np.arange(91), [0, 20, 60, 70, 90], [0.1, 0.9, 0.1, 0.9, 0.1])
    np.testing.assert_allclose(curve(schedule), expected, atol=1e-12)


def test_a_rising_ramp_that_has_ended_stays_at_its_top():
    schedule = made("one_cycle", 9, "60:6", peak=6.0)
    np.testing.assert_allclose(curve(schedule)[60:], 0.9)


def test_cosine_warms_up_again_as_torch_restarts_it():
    schedule = made("cosine", 12, "60:6", peak=0.0)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 60, eta_min=0.1)
    expected = []
    for _ in range(120):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(curve(schedule)[:-1], expected, atol=1e-9)


@pytest.mark.parametrize("since", [33, 60])
def test_a_cyclic_run_gets_more_triangles_of_the_same_length(since):
    longer = Schedule("cyclic", 100, 0.1, 0.9, cycles=5)
    np.testing.assert_allclose(curve(made("cyclic", 10, f"{since}:6")), curve(longer), atol=1e-12)


def test_a_length_may_change_several_times():
    schedule = made("one_cycle", 12, "13:6", "40:9", "90:9")
    assert schedule.former.former.former.steps == 60
    assert np.array_equal(curve(schedule)[:40], curve(made("one_cycle", 9, "13:6"))[:40])
    assert all(math.isfinite(lr) for lr in curve(schedule))


@pytest.mark.parametrize(
    "extended",
    [",".join(f"{step}:6" for step in range(101)), "7", "7:x", "-1:6", "7:0", "7:6,7:8", "9:6,7:6", "9" * 5000 + ":6"],
)
def test_a_change_of_length_that_makes_no_sense_is_refused(extended):
    with pytest.raises(UsageError, match="extended="):
        Config(extended=tuple(extended.split(",")))


def test_the_settings_before_a_change_are_those_that_the_run_was_started_with():
    config = Config(epochs=24)
    assert config.replace(epochs=40, extended=("7:24", "90:30")).before_extensions() == config
    assert config.digest() != config.replace(epochs=40, extended=("7:24",)).digest()


SAVING = [*TINY, "--name", "r", "--checkpoint-every", "4", "--wandb", "offline"]


def records(folder, kind="epoch"):
    return [
        (
            record.step,
            {key: value for key, value in record.scalars().items() if not key.startswith(TIMED)},
            record.steps,
        )
        for record in read_journal(folder).records
        if record.kind == kind
    ]


def state(folder):
    saved = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    progress = saved["progress"]
    progress["history"] = [
        {key: value for key, value in row.items() if not key.startswith(TIMED)} for row in progress["history"]
    ]
    progress.pop("seconds")
    return flatten({name: saved[name] for name in ("learner", "progress")})


FAULTS = [
    "kill@replaced=2",
    "kill@step=34",
    "kill@write=1",
    "kill@replaced=1",
    "kill@write=2",
    "kill@journal=1",
    "kill@phase=1",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of 3 epochs, which has finished."""

    def make(folder):
        command("run", *SAVING, cwd=folder, check=0)
        (folder / "runs/r/wandb/latest-run").unlink()  # a link that a copy would replace by what it leads to

    return make_once(tmp_path_factory, "to extend", make)[1]


@pytest.fixture(scope="module")
def extended(finished, tmp_path_factory):
    """The same run with 5 epochs, and its output."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    return folder / "runs/r", command("run", "--resume", "runs/r", "--epochs", "5", cwd=folder, check=0)


def test_a_finished_run_trains_on_and_its_history_stays_bit_identical(finished, extended):
    folder, ended = extended
    before, after = records(finished / "runs/r"), records(folder)
    assert after[:3] == before and [step for step, *_ in after] == [STEPS * epoch for epoch in range(1, 6)]
    rates = [lr for _, _, steps in after for lr in steps.lines["lr"]]
    config = make_config({"recipe": str(folder / "config.yaml")})
    assert (config.epochs, config.extended) == (5, ("33:3",))
    assert rates == [make_schedule(config, STEPS).lr(step) for step in range(5 * STEPS)]
    assert "The run has 5 epochs now instead of 3: one_cycle begins again, at LR" in ended.err
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["epochs"], summary["steps"], summary["status"]) == (5, 55, "finished")
    journal = read_journal(folder)
    assert journal.settings == {"epochs": 5, "extended": "33:3"}
    assert [record.step for record in journal.records if record.kind == "final"] == [55]
    assert "5 epochs" in (folder / "report.html").read_text()
    assert (folder / "predictions.csv").read_bytes() != (finished / "runs/r/predictions.csv").read_bytes()


def test_wandb_has_the_longer_run_under_the_same_id_with_the_former_rows_unchanged(finished, extended):
    (before,), (first, second) = offline_runs(finished / "runs/r"), offline_runs(extended[0])
    assert first.rows == before.rows and first.run_id == second.run_id == before.run_id
    # Step 34 has the row of the former result, which W&B does not change; the journal has its loss.
    assert [row["_step"] for row in second.rows if "train/step_loss" in row] == list(range(35, 56))
    assert [row["_step"] for row in (*first.rows, *second.rows)] == list(range(57))[1:]
    assert second.config["epochs"] == 5


@pytest.mark.slow
def test_the_saved_configuration_of_an_extended_run_repeats_it_bit_identically(extended, tmp_path):
    folder, _ = extended
    words = ["run", "--recipe", folder / "config.yaml", "--output", tmp_path / "again", "--wandb", "disabled"]
    command(*words, cwd=tmp_path, check=0)
    assert records(tmp_path / "again/r") == records(folder)
    assert state(tmp_path / "again/r") == state(folder)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill@step=40", *FAULTS])
def test_an_extended_run_that_is_killed_resumes_to_the_same_results(finished, extended, tmp_path, fault):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    words = ["run", "--resume", "runs/r", "--epochs", "5"]
    assert command(*words, cwd=tmp_path, fault=fault).code == -signal.SIGKILL
    command(*words, cwd=tmp_path, check=0)
    assert records(tmp_path / "runs/r") == records(extended[0])
    assert state(tmp_path / "runs/r") == state(extended[0])


@pytest.mark.slow
def test_a_stopped_run_gets_more_epochs_or_fewer_but_not_fewer_than_it_has_trained(tmp_path):
    assert command("run", *SAVING, cwd=tmp_path, fault="term@step=15").code == 128 + signal.SIGTERM
    shutil.copytree(tmp_path / "runs", tmp_path / "shorter")
    ended = command("run", "--resume", "runs/r", "--epochs", "4", cwd=tmp_path, check=0)
    assert "one_cycle continues from LR" in ended.err
    assert make_config({"recipe": str(tmp_path / "runs/r/config.yaml")}).extended == ("15:3",)
    assert [step for step, *_ in records(tmp_path / "runs/r")] == [11, 22, 33, 44]
    refused = command("run", "--resume", "shorter/r", "--epochs", "1", cwd=tmp_path)
    assert refused.code == 2 and "has trained 1 epochs already and begun another" in refused.errors[0]
    command("run", "--resume", "shorter/r", "--epochs", "2", cwd=tmp_path, check=0)
    assert [step for step, *_ in records(tmp_path / "shorter/r")] == [11, 22]


def test_another_setting_beside_the_epochs_is_refused_and_nothing_is_changed(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in (tmp_path / "runs/r").rglob("*") if path.is_file()}
    refused = command("run", "--resume", "runs/r", "--epochs", "5", "--momentum", "0.8", cwd=tmp_path)
    assert refused.code == 2 and "momentum: 0.9 -> 0.8" in refused.errors[0] and "epochs" not in refused.errors[0]
    assert command("run", "--resume", "runs/r", "--epochs", "2", cwd=tmp_path).code == 2
    complete = command("run", "--resume", "runs/r", cwd=tmp_path)
    assert complete.code == 0 and "already complete" in complete.err
    after = {path: path.read_bytes() for path in (tmp_path / "runs/r").rglob("*") if path.is_file()}
    assert before.keys() == after.keys()
    assert [path.name for path in before if before[path] != after[path]] in ([], [".lock"])


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "multi_step"])
def test_the_length_of_a_named_run_is_compared_with_its_schedule_when_the_run_is_read(schedule):
    values = {"schedule": schedule, "epochs": 3, "peak_epoch": 9.0, "milestones": ("8", "9"), "val_fraction": 0.1}
    with pytest.raises(UsageError, match=r"peak_epoch|epoch 8"):
        Config(**values)
    config = Config(**values, resume="runs/r")
    assert make_schedule(config.replace(extended=("0:20",)), 10).steps == 30
    with pytest.raises(UsageError, match=r"peak_epoch|epoch 8"):
        config.replace(extended=("0:4",))


@pytest.mark.slow
def test_a_run_that_was_stopped_early_trains_on(tmp_path):
    words = ["--val-fraction", "0.2", "--early-stop", "1", "--lr-max", "1e-8", "--lr-min", "1e-8", "--batch-size", "64"]
    words += ["--name", "r", "--epochs", "6"]
    command("run", *TINY, *words, cwd=tmp_path, check=0)
    done = len(records(tmp_path / "runs/r"))
    assert done < 6
    ended = command("run", "--resume", "runs/r", "--epochs", "8", cwd=tmp_path, check=0)
    assert len(records(tmp_path / "runs/r")) > done, ended.err


@pytest.mark.slow
def test_a_range_test_is_not_repeated_for_more_epochs(tmp_path):
    words = ["--lr-max", "find", "--lr-min", "find", "--name", "r", "--epochs", "1", "--peak-epoch", "1"]
    command("run", *TINY, *words, cwd=tmp_path, check=0)
    before = (tmp_path / "runs/r/lr_finder.json").read_bytes()
    ended = command("run", "--resume", "runs/r", "--epochs", "2", cwd=tmp_path, check=0)
    assert "range test" not in ended.err and (tmp_path / "runs/r/lr_finder.json").read_bytes() == before
    summaries = list(itertools.islice(records(tmp_path / "runs/r"), 2))
    assert len(summaries) == 2


def test_the_peak_of_a_resumed_run_stays_and_that_of_a_recipe_moves(extended):
    folder = extended[0]
    peak = make_config({"recipe": str(folder / "config.yaml")}).peak_epoch
    assert make_config({"resume": str(folder), "epochs": 9}).peak_epoch == peak
    again = make_config({"recipe": str(folder / "config.yaml"), "epochs": 6})
    assert (again.peak_epoch, again.extended) == (2 * peak, ())


@pytest.mark.slow
def test_an_extended_run_is_uploaded_complete(extended, server, tmp_path):
    folder = shutil.copytree(extended[0], tmp_path / "r", symlinks=True)
    sync(folder, print)
    assert server.steps == list(range(1, 57))
    assert sync(folder, print).sent == 0


def longer(folder, **settings):
    """Return the settings with which a run of its own settings and more epochs is begun."""
    return with_extension(
        make_config({"recipe": str(folder / "config.yaml"), "resume": str(folder), "epochs": 5, **settings}),
        SingleProcess(),
    )


def test_a_run_whose_checkpoints_are_gone_or_make_no_sense_gets_no_other_length(finished, tmp_path):
    folder = tmp_path / "r"
    shutil.copytree(finished / "runs/r", folder)
    assert longer(folder).extended == ("33:3",) and longer(folder, resume="never").extended == ()
    (folder / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(
        CheckpointError, match=r"the checkpoints of .*r are gone, so it cannot be trained on; put .*back"
    ):
        longer(folder)
    (tmp_path / "elsewhere").rename(folder / "checkpoints")
    path = folder / "checkpoints/last.pt"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "progress": {**content["progress"], "step": -1}}, path)
    vouch_for(path)
    with pytest.raises(CheckpointError, match=r"last\.pt is not a checkpoint of this run: its step is -1"):
        longer(folder)


def test_a_run_that_saved_nothing_has_its_new_length_from_the_start(finished, tmp_path):
    folder = tmp_path / "r"
    shutil.copytree(finished / "runs/r", folder)
    shutil.rmtree(folder / "checkpoints")
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": "interrupted", "checkpoint_step": 0}))
    assert longer(folder).extended == ("0:3",)


def test_a_length_that_was_changed_before_anything_was_trained_is_replaced_by_the_next_one(finished, tmp_path):
    folder = tmp_path / "r"
    shutil.copytree(finished / "runs/r", folder)
    config = make_config({"recipe": str(folder / "config.yaml")})
    (folder / "config.yaml").write_text(config.replace(epochs=5, extended=("33:3",)).to_yaml())
    again = longer(folder, epochs=7)
    assert (again.epochs, again.extended) == (7, ("33:3",))  # not through a length of 5
