"""Every tracker of `--tracker` has the same of a run: scalars, images, config, summary and files; none can stop it.

Each writes to a real local store, which is read back with the tracker's own reader.
"""

import json
import socket
import sys
import time

import numpy as np
import pytest

from harness.config.settings import TRACKERS, Config
from harness.tracking.backends.registry import BACKENDS, check_trackers, open_trackers
from harness.tracking.journal import Journal, read_journal
from harness.tracking.records import Artifact, Curve, Histogram, Record, StoredImage, Table
from harness.tracking.tracker import MultiTracker
from harness.tracking.wandb import init
from harness.tracking.wandb.rows import rows
from harness.utils.errors import UsageError
from tests.support.commands import QUICK, command
from tests.support.records import epoch, image
from tests.support.tracker_readers import READERS

# SQLAlchemy's, about MLflow's own models.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

OTHERS = [kind for kind in TRACKERS if kind != "wandb"]
STATES = {
    "wandb": ("finished", "failed"),
    "tensorboard": ("STATUS_SUCCESS", "STATUS_FAILURE"),
    "mlflow": ("FINISHED", "FAILED"),
    "trackio": ("finished", "failed"),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The local stores of the trackers; Trackio reads its variable once, when it is imported."""
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.chdir(folder)  # MLflow keeps artifacts in `mlruns` of the current folder
        yield folder


@pytest.fixture
def slim(monkeypatch):
    """W&B without system statistics, git and the list of packages, which take time."""
    for name in ("X_DISABLE_STATS", "DISABLE_GIT", "X_DISABLE_MACHINE_INFO"):
        monkeypatch.setenv(f"WANDB_{name}", "true")
    monkeypatch.setenv("WANDB_X_SAVE_REQUIREMENTS", "false")


def installed(kind):
    """Skip the test where the package of a tracker is not installed."""
    pytest.importorskip(f"harness.tracking.backends.{kind}" if kind in BACKENDS else kind, exc_type=ImportError)


def each(kinds):
    """Return the tests' parameter for some trackers; MLflow takes seconds to make its database."""
    marks = {"mlflow": pytest.mark.slow}
    return pytest.mark.parametrize("kind", [pytest.param(kind, marks=marks.get(kind, ())) for kind in kinds])


kinds, other_kinds = each(TRACKERS), each(OTHERS)


def config_of(kind, project, **settings):
    tracker = {"tracker": (kind,), "wandb": "offline", "project": project, "finish_timeout": 60, "epochs": 2}
    return Config(**{**tracker, "peak_epoch": 1, "model_args": {"width": 16}, "lr_max": "find", **settings})


def start(config, folder, lines, is_resumed=False, earlier=()):
    """Open the journal and the tracker as a run does, in a run directory."""
    if is_resumed:
        journal = Journal.resume(folder, max((record.step for record in earlier), default=0))
    else:
        journal = Journal(folder, {"config": config.to_dict()})
    facts = {"environment": {"torch": "2.15"}}
    wandb = init.start(
        config,
        folder,
        run_name="a run",
        resumed_step=(earlier[-1].step if earlier else 0) if is_resumed else None,
        earlier=earlier,
        extra=facts,
        notify=lines.append,
    )
    others = open_trackers(
        config, folder, run_name="a run", is_resumed=is_resumed, earlier=earlier, extra=facts, notify=lines.append
    )
    return MultiTracker([journal, wandb, *others])


def points(records, name):
    """Return (step, value) of a metric in some records: what was measured at the steps, then the record's own value."""
    by_step = {}
    for record in records:
        if record.steps is not None and name in record.steps.lines:
            by_step |= dict(zip(record.steps.x, record.steps.lines[name], strict=True))
        if name in record.values:
            by_step[own_step(record)] = record.values[name]
    return sorted(by_step.items())


def own_step(record):
    """Return the step of the row that has the record's own values, as in W&B."""
    return max(step for step, _ in rows(record))


def same_points(actual, expected):
    """Return whether two metrics have the same points; TensorBoard keeps float32."""
    return [step for step, _ in actual] == [step for step, _ in expected] and np.allclose(
        [value for _, value in actual], [value for _, value in expected], rtol=1e-6
    )


@kinds
def test_a_tracker_has_the_scalars_images_config_summary_and_files_of_a_run(kind, stores, slim, tmp_path):
    installed(kind)
    folder, lines = tmp_path / "run", []
    config = config_of(kind, f"contract-{kind}", group="g", tags=("first",), notes="why")
    tracker = start(config, folder, lines)
    table = Table(("image", "class", "f1"), [(image(4), "ant", 0.5), (image(5), "bee", 0.25)])
    final = Record(
        6,
        2,
        {
            "result/acc": 0.75,
            "find/sure": "fairly sure",
            "gallery": (image(1), image(2)),
            "cam": image(3),
            "per_class": table,
            "find/loss": Curve("lr", [0.1, 0.2], {"loss": [2.0, 1.0]}),
        },
        kind="final",
    )
    records = [epoch(1), epoch(2), final]
    tracker.record(epoch(1))
    tracker.settings({"lr_max": 0.3, "lr_max_requested": "find"})
    tracker.record(epoch(2))
    tracker.record(final)
    tracker.summary({"best/acc": 0.5, "result/chosen": "last epoch"})
    weights = tmp_path / "weights.bin"
    weights.write_bytes(bytes(range(256)))
    tracker.artifact(Artifact("model", "model", {"inside/model.bin": weights}, metadata={"acc": 0.75}))
    weights.unlink()
    tracker.finish("finished", 0)
    tracker.finish("failed", 1)
    assert not [line for line in lines if "not have" in line or "accept" in line], lines

    content = READERS[kind](folder, config.project)
    for name in ("train/step_loss", "lr", "train/loss", "val/acc", "result/acc"):
        assert same_points(content.scalars[name], points(records, name)), name
    assert content.scalars["epoch"][-1] == (own_step(final), 2)
    pictures = {"gallery/0": image(1), "gallery/1": image(2), "cam": image(3)}
    assert set(pictures) <= set(content.images)
    for name, expected in pictures.items():
        ((step, shown),) = content.images[name]
        assert step == own_step(final) and np.array_equal(shown, expected.pixels), name
    settings = {"model_args.width": 16, "epochs": 2, "lr_max": 0.3, "lr_max_requested": "find", "data": "cifar10"}
    settings |= {"environment.torch": "2.15"}
    assert {name: str(content.config[name]).removesuffix(".0") for name in settings} == {
        name: str(value) for name, value in settings.items()
    }
    assert float(content.summary["best/acc"]) == 0.5
    assert content.summary["result/chosen"] == "last epoch"
    assert content.files["inside/model.bin"] in (bytes(range(256)), *([b""] if kind == "tensorboard" else []))
    if kind != "wandb":  # which has tables and charts of its own
        assert content.files["per_class.csv"] == b"class,f1\nant,0.5\nbee,0.25\n"
        assert content.files["find/loss.csv"] == b"lr,loss\n0.1,2.0\n0.2,1.0\n"
    assert content.state == STATES[kind][0]


@kinds
def test_a_resumed_run_has_every_step_once_in_every_tracker(kind, stores, slim, tmp_path):
    installed(kind)
    folder, lines = tmp_path / "run", []
    config = config_of(kind, f"resumed-{kind}", epochs=4)
    tracker = start(config, folder, lines)
    tracker.record(epoch(1))
    tracker.record(epoch(2))
    tracker.finish("stopped", 130)
    # The journal is cut to the checkpoint, which is of the first epoch; the second one is trained again.
    tracker = start(config, folder, lines, is_resumed=True, earlier=[epoch(1)])
    for number in (2, 3, 4):
        tracker.record(epoch(number))
    tracker.record(Record(12, 4, {"result/acc": 0.75}, kind="final"))
    tracker.finish("finished", 0)
    content = READERS[kind](folder, config.project)
    records = [epoch(number) for number in (1, 2, 3, 4)]
    for name in ("train/step_loss", "lr", "train/loss", "val/acc"):
        assert same_points(content.scalars[name], points(records, name)), name
    assert content.state == STATES[kind][0]


@other_kinds
def test_a_run_that_is_killed_between_the_last_step_of_an_epoch_and_its_result_lacks_neither(kind, stores, tmp_path):
    installed(kind)
    folder, config = tmp_path / "run", config_of(kind, f"between-{kind}")
    tracker = start(config, folder, [])
    whole = epoch(1)
    steps = Record(3, 0, {}, Curve("step", whole.steps.x, whole.steps.lines), kind="steps")
    tracker.trackers[-1].record(steps)  # while the epoch is evaluated, the steps are there already
    tracker.finish("stopped", 137)
    tracker = start(config, folder, [], is_resumed=True)
    tracker.record(whole)
    tracker.finish("finished", 0)
    content = READERS[kind](folder, config.project)
    for name in ("train/step_loss", "val/acc"):
        assert same_points(content.scalars[name], points([whole], name)), name


@other_kinds
def test_a_tracker_that_is_named_for_a_resumed_run_gets_the_earlier_part_from_the_journal(kind, stores, tmp_path):
    installed(kind)
    folder, lines = tmp_path / "run", []
    config = config_of(kind, f"late-{kind}")
    journal = Journal(folder, {"config": config.to_dict()})
    journal.record(epoch(1))
    journal.finish("stopped", 130)
    tracker = start(config, folder, lines, is_resumed=True, earlier=read_journal(folder).records)
    tracker.record(epoch(2))
    tracker.finish("finished", 0)
    content = READERS[kind](folder, config.project)
    assert same_points(content.scalars["train/step_loss"], points([epoch(1), epoch(2)], "train/step_loss"))


def test_a_second_evaluation_into_the_same_folder_replaces_the_first_in_tensorboard(tmp_path):
    installed("tensorboard")
    config = config_of("tensorboard", "p")
    for accuracy in (0.5, 0.75):
        (tracker,) = open_trackers(config, tmp_path, run_name="evaluation", notify=print)
        tracker.record(Record(0, 0, {"test/acc": accuracy}, kind="final"))
        tracker.finish("finished", 0)
    assert [value for _, value in READERS["tensorboard"](tmp_path, "").scalars["test/acc"]] == [0.75]


def test_a_text_that_is_no_utf_8_is_in_tensorboard_with_marks_in_its_place(tmp_path):
    installed("tensorboard")
    (tracker,) = open_trackers(config_of("tensorboard", "p"), tmp_path, run_name="r", notify=print)
    (tmp_path / "names.csv").write_bytes(b"caf\xe9,1\n")
    tracker.artifact(Artifact("names", "table", {"names.csv": tmp_path / "names.csv"}))
    tracker.finish("finished", 0)
    assert tracker.state == "complete"
    assert READERS["tensorboard"](tmp_path, "").files["names.csv"].decode() == "caf\N{REPLACEMENT CHARACTER},1\n"


@other_kinds
def test_a_run_that_failed_is_a_failed_one_in_every_tracker(kind, stores, tmp_path):
    installed(kind)
    config = config_of(kind, f"failed-{kind}")
    tracker = start(config, tmp_path / "run", [])
    tracker.record(epoch(1))
    tracker.summary({"status": "failed", "reason": "training diverged"})
    tracker.alert("diverged", "the loss is NaN")
    tracker.finish("failed", 5)
    content = READERS[kind](tmp_path / "run", config.project)
    assert content.state == STATES[kind][1]
    assert content.summary["reason"] == "training diverged"
    assert content.summary["alert"] == "diverged: the loss is NaN"


# --- a tracker that fails


def broken_store(kind, folder, monkeypatch):
    """Make the store of a tracker unusable, as a full disk or a lost server does."""
    if kind == "tensorboard":
        (folder / "run").mkdir()
        (folder / "run/tensorboard").write_text("no folder")
    elif kind == "mlflow":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    else:
        from trackio.sqlite_storage import SQLiteStorage

        path = SQLiteStorage.get_project_db_path("broken-trackio")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no database" * 100)


@other_kinds
def test_a_tracker_whose_store_is_broken_stops_no_run_and_is_reported_once(kind, stores, tmp_path, monkeypatch):
    installed(kind)
    broken_store(kind, tmp_path, monkeypatch)
    lines = []
    tracker = start(config_of(kind, f"broken-{kind}"), tmp_path / "run", lines)
    for number in (1, 2):
        tracker.record(epoch(number))
    tracker.summary({"result/acc": 0.5})
    tracker.finish("finished", 0)
    failures = [line for line in lines if "does not have the whole run" in line]
    assert len(failures) == 1 and failures[0].startswith(tracker.trackers[-1].title)
    assert tracker.trackers[-1].state == "incomplete"
    journal = read_journal(tmp_path / "run")
    assert [record.step for record in journal.records] == [3, 6] and journal.whole


@other_kinds
def test_an_image_whose_file_is_gone_costs_that_image_only(kind, stores, tmp_path):
    installed(kind)
    lines, config = [], config_of(kind, f"gone-{kind}")
    tracker = start(config, tmp_path / "run", lines)
    values = {"gone": StoredImage(tmp_path / "media/0123456789abcdef.png"), "cam": image(3), "test/acc": 0.5}
    tracker.trackers[-1].record(Record(3, 1, values, kind="final"))
    tracker.finish("finished", 0)
    content = READERS[kind](tmp_path / "run", config.project)
    assert list(content.images) == ["cam"] and content.scalars["test/acc"][0][1] == 0.5
    assert len([line for line in lines if "does not get gone" in line]) == 1


@pytest.mark.slow
def test_a_server_that_never_answers_delays_the_end_of_a_run_by_the_timeout_at_most(stores, tmp_path, monkeypatch):
    installed("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        lines, began = [], time.monotonic()
        tracker = start(config_of("mlflow", "silent", finish_timeout=4), tmp_path / "run", lines)
        tracker.record(epoch(1))
        assert time.monotonic() - began < 3.5  # nothing waits for it
        tracker.finish("finished", 0)
        assert time.monotonic() - began < 30  # the client itself would go on for minutes
    assert [line for line in lines if "within 4 s" in line]


@pytest.mark.parametrize("kind", sorted(BACKENDS))
def test_a_missing_package_is_refused_in_one_line_with_its_extra(kind, monkeypatch):
    for name in [kind, *(name for name in sys.modules if name.startswith(f"{kind}."))]:
        monkeypatch.setitem(sys.modules, name, None)  # as Python does for a package that cannot be imported
    monkeypatch.delitem(sys.modules, f"harness.tracking.backends.{kind}", raising=False)
    with pytest.raises(UsageError) as raised:
        check_trackers(Config(tracker=("wandb", kind)))
    assert f"pip install 'vision-harness[{kind}]'" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_run_is_in_tensorboard_alone_where_only_that_is_named(tmp_path):
    installed("tensorboard")
    options = ["--epochs", 1, "--gallery", 2, "--tracker", "tensorboard", "--name", "r"]
    done = command("run", *QUICK, *options, cwd=tmp_path, check=0)
    folder = tmp_path / "runs/r"
    assert not (folder / "wandb").exists()
    assert json.loads((folder / "status.json").read_text())["trackers"] == {"tensorboard": "complete"}
    assert "TensorBoard: tensorboard --logdir" in done.stderr
    content, summary = READERS["tensorboard"](folder, ""), json.loads((folder / "summary.json").read_text())
    assert content.scalars["result/test/acc"][-1][1] == pytest.approx(summary["result"]["test/acc"], rel=1e-6)
    assert {"gallery/correct", "predictions/confusion"} <= set(content.images)
    assert content.files["config.yaml"] == (folder / "config.yaml").read_bytes()
    records = read_journal(folder).records
    assert same_points(content.scalars["train/step_loss"], points(records, "train/step_loss"))


def test_an_unknown_tracker_is_refused_with_the_names():
    with pytest.raises(
        UsageError,
        match=r"tracker='tensorbord': need one of wandb, tensorboard, mlflow, trackio, or one that .*did you mean",
    ):
        check_trackers(Config(tracker="wandb,tensorbord"))


def test_required_wandb_is_not_left_out_without_a_word():
    with pytest.raises(UsageError, match="leaves W&B out"):
        Config(tracker=("tensorboard",), wandb="online")


def test_tensorboard_has_the_histograms_that_watch_records(tmp_path):
    installed("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values = np.random.default_rng(0).normal(size=1000)
    counts, edges = np.histogram(values, bins=64)
    (tracker,) = open_trackers(config_of("tensorboard", "p"), tmp_path, run_name="a run", notify=print)
    for number in (1, 2):
        histogram = Histogram((number * counts).tolist(), edges.tolist())
        tracker.record(Record(3 * number, number, {"gradients/fc": histogram, "val/acc": 0.5}))
    tracker.finish("finished", 0)
    reader = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    assert reader.SummaryMetadata("gradients/fc").plugin_data.plugin_name == "histograms"
    first, second = reader.Tensors("gradients/fc")
    assert (first.step, second.step) == (3, 6)
    from tensorboard.util.tensor_util import make_ndarray

    bins = make_ndarray(second.tensor_proto)
    assert np.array_equal(bins, np.stack([edges[:-1], edges[1:], 2 * counts], 1))
