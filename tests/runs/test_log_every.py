"""A run that is resumed with another `log_every` has in W&B the steps that each of its parts has logged."""

import shutil

import pytest

from harness.config.recipe import make_config
from harness.runs import trainer
from harness.runs.run import run
from harness.tracking.journal import read_journal
from harness.tracking.log_intervals import has_changed, interval_at
from harness.tracking.wandb import sync as wandb_sync
from harness.utils.signals import Interrupted
from tests.faults.test_live_resume import SETTINGS, KilledError, Stopping
from tests.support import wandb_files

PER_EPOCH, STEPS = 11, 33


@pytest.fixture(autouse=True)
def slim(monkeypatch):
    """W&B without system statistics and git, which take time; a record after every update."""
    monkeypatch.setattr(trainer, "LIVE_SECONDS", 0.0)
    for name in ("X_DISABLE_STATS", "DISABLE_GIT", "X_DISABLE_MACHINE_INFO"):
        monkeypatch.setenv(f"WANDB_{name}", "true")


def interrupted(folder, step, how, first, then, **settings):
    """Run until a step, and from there on with another `log_every`."""
    config = make_config({**SETTINGS, "output": folder, **settings})
    with pytest.raises((Interrupted, KilledError)):
        run(config.replace(log_every=first), Stopping(step, how))
    run(config.replace(log_every=then), Stopping())
    return folder / "r"


def logged(last, first, then):
    """The steps that a run has logged whose first part has sent those up to `last`; epochs end at rows of their own."""
    ends = {PER_EPOCH, 2 * PER_EPOCH, STEPS, STEPS + 1}
    early = {step for step in range(1, last + 1) if step % first == 0}
    return sorted(ends | early | {step for step in range(last + 1, STEPS + 1) if step % then == 0})


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then", "last"), [(1, 4, 19), (4, 1, 16)])
def test_an_offline_run_that_is_resumed_with_another_interval_is_uploaded_as_it_was_logged(
    tmp_path, server, first, then, last
):
    folder = interrupted(tmp_path, 19, "signal", first, then)
    wandb_sync.sync(folder, print)
    assert server.steps == logged(last, first, then)
    (one,) = server.runs.values()
    assert one.config["log_every"] == then
    shutil.rmtree(folder / "wandb")  # from the journal alone
    wandb_sync.sync(folder, print)
    assert [run.steps for run in server.runs.values()] == [server.steps, server.steps]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 4), (4, 1)])
def test_an_online_run_that_was_killed_and_resumed_with_another_interval_is_complete(tmp_path, server, first, then):
    # Killed after step 19, resumed from the checkpoint of step 16: the first part has sent up to three steps more.
    folder = interrupted(tmp_path, 19, "killed", first, then, wandb="online")
    sent = server.steps
    assert sent[-1] == STEPS + 1 and set(logged(16, first, then)) - set(sent) <= {17, 18, 19}
    result = wandb_sync.sync(folder, print)
    assert (result.sent, server.steps) == (0, sent)


@pytest.mark.slow
def test_of_a_part_whose_end_w_and_bs_log_has_lost_the_steps_of_the_next_interval_are_sent(tmp_path, server):
    config = make_config({**SETTINGS, "output": tmp_path})
    with pytest.raises(Interrupted):
        run(config.replace(log_every=1), Stopping(19))
    (part,) = wandb_files.offline_runs(tmp_path / "r")
    (log,) = part.folder.glob("*.wandb")
    log.write_bytes(log.read_bytes()[: log.stat().st_size * 2 // 3])
    kept = wandb_files.offline_runs(tmp_path / "r")[0].steps
    assert 1 < len(kept) < 19
    run(config.replace(log_every=4), Stopping())
    wandb_sync.sync(tmp_path / "r", print)
    assert server.steps == logged(kept[-1], 1, 4)


@pytest.mark.slow
def test_the_journal_of_a_run_that_keeps_its_interval_says_nothing_of_it(tmp_path):
    folder = interrupted(tmp_path, 19, "signal", 2, 2, wandb="disabled")
    assert not read_journal(folder).intervals


def test_of_several_intervals_the_latest_counts_from_its_first_step_on():
    intervals = [(20, 4), (10, 3)]  # the second part was lost, and the third begins before it
    assert [interval_at(step, 2, intervals) for step in (9, 10, 25)] == [2, 3, 3]
    header = {"config": {"log_every": 2}}
    assert not has_changed(10, 2, header, [])
    assert has_changed(15, 2, header, [(20, 4)])  # else the steps from 20 on would count as those of 4
    assert not has_changed(25, 4, header, [(20, 4)])
