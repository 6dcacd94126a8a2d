"""`harness sync` against a stand-in for W&B's server on the loopback."""

import pytest

from harness.config.settings import Config
from harness.tracking.journal import Journal
from harness.tracking.records import Curve, Record
from harness.tracking.run_dir import RunDir, claim_run_dir
from harness.tracking.wandb import sync as syncing
from harness.utils.errors import BusyError, DataError
from tests.support.wandb_server import KEY


def epoch(number, steps=4):
    first = (number - 1) * steps
    losses = [1 / (first + step) for step in range(1, steps + 1)]
    lines = Curve("step", list(range(first + 1, first + steps + 1)), {"train/step_loss": losses})
    return Record(first + steps, number, {"epoch": number, "val/acc": number / 10}, lines)


@pytest.fixture
def killed(tmp_path):
    """The folder of a run that was killed after three epochs, its journal without an end."""
    config = Config(output=str(tmp_path), wandb="offline", name="killed")
    folder = claim_run_dir(config)
    (folder.path / "config.yaml").write_text(config.to_yaml())
    journal = Journal(folder.path, {"config": config.to_dict()})
    for number in (1, 2, 3):
        journal.record(epoch(number))
    journal.finish("finished", 0)
    *lines, _ = journal.path.read_text().splitlines(keepends=True)
    journal.path.write_text("".join(lines))  # a kill leaves no last line
    folder.close()
    return folder.path


def test_a_killed_run_reaches_the_server_whole_and_each_step_once(killed, server):
    first = syncing.sync(killed, print)
    assert (first.records, first.sent) == (3, 3)
    assert server.steps == list(range(1, 13))
    assert [row["val/acc"] for row in server.history if "val/acc" in row] == pytest.approx([0.1, 0.2, 0.3])
    assert syncing.sync(killed, print).sent == 0
    assert server.steps == list(range(1, 13))
    assert not any(KEY in path.read_text(errors="ignore") for path in killed.rglob("*") if path.is_file())


def test_a_server_that_lost_the_tail_is_given_only_that(killed, server):
    syncing.sync(killed, print)
    for line in list(server.rows)[8:]:
        del server.rows[line]
    assert syncing.sync(killed, print).sent == 1
    assert server.steps == list(range(1, 13))


def test_a_run_that_is_being_written_is_left_alone(killed):
    held = claim_run_dir(Config(output=str(killed.parent), wandb="offline", name="killed"))
    assert isinstance(held, RunDir)
    assert held.path == killed
    with pytest.raises(BusyError, match="still being written"):
        syncing.sync(killed, print)
    held.close()


def test_a_folder_without_a_journal_is_said_to_be_one(tmp_path):
    with pytest.raises(DataError, match="journal"):
        syncing.sync(tmp_path, print)
