"""`harness sync --tracker`: a run that has ended is written to another tracker from its journal.

Each tracker writes to a real local store, which is read back with the tracker's own reader.
"""

import json
import threading
import time
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from harness.tracking.backends import sync
from harness.tracking.backends.backend import POSITION, Backend, RunLabels
from harness.tracking.backends.registry import register_tracker
from harness.tracking.backends.tracker import BackendTracker
from harness.tracking.journal import Journal
from harness.tracking.records import Artifact, PlotlyFigure, Record
from harness.tracking.tracker import MultiTracker
from harness.utils.errors import TrackingError
from tests.support.forked import harness as command
from tests.support.records import epoch, image
from tests.support.tracker_readers import READERS
from tests.tracking.test_trackers import OTHERS, STATES, config_of, each, installed, points, same_points, start, stores  # noqa: F401 - `stores` is a fixture

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
other_kinds = each(OTHERS)
STARTED = 1_700_000_000.0


def timed(record):
    """The record with the time at which it was made, long ago."""
    times = [STARTED + step for step in record.steps.x] if record.steps is not None else ()
    return replace(record, time=STARTED + record.step, step_times=times)


def run_of(folder, config, records, status="finished", **header):
    """Write the directory of a run that no tracker had, to its journal alone."""
    journal = Journal(folder, {"config": config.to_dict(), "process": {"started": STARTED}, **header})
    (folder / "config.yaml").write_text(config.to_yaml())
    tracker = MultiTracker([journal])
    for record in records:
        tracker.record(timed(record))
    if status:
        (folder / "weights.bin").write_bytes(b"weights")
        tracker.artifact(Artifact("model", "model", {"model.bin": folder / "weights.bin"}))
        tracker.settings({"lr_max": 0.3})
        tracker.summary({"best/acc": 0.5, "result/chosen": "last epoch"})
    tracker.finish(status or "failed", 0 if status == "finished" else 1)
    if not status:  # as after a kill
        *lines, _ = journal.path.read_text().splitlines(keepends=True)
        journal.path.write_text("".join(lines))
    return folder


class Kept(Backend):
    """A tracker of a plug-in, which keeps the rows of every run that it has begun; its faults are those of `faults`."""

    title = "Kept"
    runs: ClassVar[list["Kept"]] = []
    faults: ClassVar[set[str]] = set()
    released = threading.Event()

    def __init__(self, labels):
        self.run_id = labels.run_id or str(len(self.runs) + 1)
        self.rows, self.figures, self.status = [], {}, ""
        self.runs.append(self)

    def log(self, rows):
        if "log" in self.faults:
            raise OSError("the tracker is full")
        self.rows += rows

    def config(self, values):
        pass

    def summary(self, values):
        self.figures |= values

    def files(self, artifact):
        pass

    def close(self, status):
        if "close" in self.faults:
            assert self.released.wait(60)
        self.status = status


@pytest.fixture
def kept():
    register_tracker(Kept, name="kept")
    Kept.runs.clear()
    Kept.faults.clear()
    Kept.released.clear()
    yield Kept
    Kept.released.set()


def test_a_run_with_alerts_has_the_last_one_in_the_summary_of_a_tracker(kept, tmp_path):
    folder = run_of(tmp_path / "r", config_of("kept", "p"), [epoch(1)], status="")
    journal = Journal.resume(folder, 3)
    journal.alert("first", "one")
    journal.alert("out of memory", "computed in parts")
    journal.finish("finished", 0)
    assert sync.sync_tracker("kept", folder, print).rows == 3
    assert kept.runs[0].figures["alert"] == "out of memory: computed in parts" and kept.runs[0].status == "finished"


def test_a_tracker_that_does_not_take_everything_is_named_and_the_run_is_written_anew_on_request(kept, tmp_path):
    folder, lines = run_of(tmp_path / "r", config_of("kept", "p"), [epoch(1)]), []
    kept.faults.add("log")
    with pytest.raises(
        TrackingError, match=r"Kept does not have the whole run .*; when its cause is mended, write the run"
    ):
        sync.sync_tracker("kept", folder, lines.append)
    assert lines == ["Kept does not have the whole run (the tracker is full). The journal is complete."]
    kept.faults.clear()
    with pytest.raises(TrackingError, match=r"Kept may lack rows of .*with: harness sync --tracker kept --anew"):
        sync.sync_tracker("kept", folder, lines.append)
    assert sync.sync_tracker("kept", folder, lines.append, anew=True).rows == 3
    assert [row.step for row in kept.runs[-1].rows] == [1, 2, 3] and len(lines) == 1


def test_a_tracker_that_does_not_end_is_given_up_after_the_timeout_of_the_command(kept, tmp_path):
    folder, lines = run_of(tmp_path / "r", config_of("kept", "p", finish_timeout=600), [epoch(1)]), []
    kept.faults.add("close")
    with pytest.raises(TrackingError, match="Kept does not have the whole run"):
        sync.sync_tracker("kept", folder, lines.append, timeout=1)
    assert lines == [
        "Kept does not have the whole run (not everything was written within 1 s). The journal is complete."
    ]
    assert "ended" not in json.loads((folder / "kept" / POSITION).read_text())


def test_the_wait_for_a_slow_tracker_lasts_as_long_as_it_goes_on(kept, tmp_path):
    tracker = BackendTracker(
        "kept", Kept, RunLabels(tmp_path, "p", "r"), is_resumed=False, config={}, timeout=1.5, notify=print
    )
    steps = list(range(1, 9))
    for step in steps:
        tracker._submit(lambda backend: time.sleep(0.2))
        tracker.record(Record(step, 1, {"loss": 0.5}))
    tracker.flush()  # takes longer than the timeout, and each step much less
    assert [row.step for row in kept.runs[0].rows] == steps
    picture = image(3)
    tracker.record(Record(9, 2, {"chart": PlotlyFigure([], {}, picture), "bare": PlotlyFigure([], {}), "loss": 0.25}))
    tracker.finish("finished", 0)
    last = kept.runs[0].rows[-1]
    assert last.pictures.keys() == {"chart"} and last.pictures["chart"].size == (picture.pixels.shape[1], 6)
    assert last.scalars["loss"] == 0.25 and tracker.state == "complete"


@other_kinds
def test_a_finished_run_is_written_to_a_tracker_afterwards_whole_and_once(kind, stores, tmp_path):  # noqa: F811
    installed(kind)
    config = config_of("wandb", f"after-{kind}", name="r")
    records = [epoch(1), epoch(2), Record(6, 2, {"result/acc": 0.75, "cam": image(3)}, kind="final")]
    folder = run_of(tmp_path / "run", config, records, environment={"torch": "2.15"})
    assert sync.sync_tracker(kind, folder, print).rows == 7
    content = READERS[kind](folder, config.project)
    for name in ("train/step_loss", "lr", "train/loss", "val/acc", "result/acc"):
        assert same_points(content.scalars[name], points(records, name)), name
    ((_, shown),) = content.images["cam"]
    assert np.array_equal(shown, image(3).pixels)
    wanted = {"model_args.width": 16, "lr_max": 0.3, "environment.torch": "2.15"}
    assert {name: str(content.config[name]).removesuffix(".0") for name in wanted} == {
        name: str(value) for name, value in wanted.items()
    }
    assert (float(content.summary["best/acc"]), content.summary["result/chosen"]) == (0.5, "last epoch")
    assert content.files["model.bin"] in (b"weights", *([b""] if kind == "tensorboard" else []))
    assert content.files["config.yaml"] == (folder / "config.yaml").read_bytes()
    assert content.state == STATES[kind][0]

    assert sync.sync_tracker(kind, folder, print).rows == 0
    assert READERS[kind](folder, config.project).scalars == content.scalars


@other_kinds
def test_a_run_that_was_killed_is_a_failed_one_and_gets_the_rest_when_it_was_resumed(kind, stores, tmp_path):  # noqa: F811
    installed(kind)
    config = config_of("wandb", f"killed-{kind}", log_every=1)
    folder = run_of(tmp_path / "run", config, [epoch(1)], status="")
    assert sync.sync_tracker(kind, folder, print).rows == 3
    assert READERS[kind](folder, config.project).state == STATES[kind][1]
    journal = Journal.resume(folder, 3)
    journal.set_log_every(2, 4)
    journal.record(timed(epoch(2)))
    journal.finish("finished", 0)
    assert sync.sync_tracker(kind, folder, print).rows == 2
    content = READERS[kind](folder, config.project)
    assert [step for step, _ in content.scalars["train/step_loss"]] == [1, 2, 3, 4, 6]
    assert content.state == STATES[kind][0]


@pytest.mark.parametrize("kind", ["tensorboard", pytest.param("mlflow", marks=pytest.mark.slow)])
def test_a_run_of_which_a_tracker_may_lack_rows_is_written_anew(kind, stores, tmp_path):  # noqa: F811
    installed(kind)
    config = config_of(kind, f"doubt-{kind}", finish_timeout=20)
    tracker = start(config, tmp_path / "run", [])
    tracker.record(epoch(1))
    backend = tracker.trackers[-1]
    backend.flush()
    if kind == "mlflow":  # somebody deletes the run
        from mlflow import MlflowClient

        client = MlflowClient()
        (run,) = client.search_runs([client.get_experiment_by_name(config.project).experiment_id])
        client.delete_run(run.info.run_id)
    else:
        backend._backend._writer.close()
    tracker.record(epoch(2))
    tracker.finish("finished", 0)
    folder = tmp_path / "run"
    if kind == "mlflow":
        with pytest.raises(TrackingError, match=r"may lack rows of .*; .*harness sync --tracker mlflow --anew"):
            sync.sync_tracker(kind, folder, print)
        sync.sync_tracker(kind, folder, print, anew=True)
    else:  # it has one run in a directory, which is replaced
        sync.sync_tracker(kind, folder, print)
    content = READERS[kind](folder, config.project)
    assert same_points(content.scalars["train/step_loss"], points([epoch(1), epoch(2)], "train/step_loss"))


@pytest.mark.slow
def test_mlflow_shows_when_the_run_was_made_and_not_when_it_was_written(stores, tmp_path):  # noqa: F811
    installed("mlflow")
    from mlflow import MlflowClient

    config = config_of("wandb", "times")
    sync.sync_tracker("mlflow", run_of(tmp_path / "run", config, [epoch(1)]), print)
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("times").experiment_id])
    assert (run.info.start_time, run.info.end_time) == (STARTED * 1000, (STARTED + 3) * 1000)


def test_the_command_writes_to_the_named_trackers_with_corrected_labels(tmp_path):
    installed("tensorboard")
    config = config_of("wandb", "p", name="r")
    folder = run_of(tmp_path / "r", config, [epoch(1)])
    done = command("sync", folder, "--tracker", "tensorboard", "--project", "other", cwd=tmp_path, check=0)
    assert "3 rows written, TensorBoard has the whole run" in done.out
    assert not (folder / "wandb").exists()
    known = json.loads((folder / "tensorboard/harness-sent.json").read_text())
    assert (known["ended"], known["whole"]) == ("finished", True)
    refused = command("sync", folder, "--tracker", "tensorboard", "--link", "a/b", cwd=tmp_path, check=2)
    assert "only W&B links models" in refused.err
