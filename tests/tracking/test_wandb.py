"""Every record arrives in W&B, each step once; no failure of W&B ends a run."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import wandb
from sklearn.metrics import confusion_matrix
from wandb.errors import WandbCoreNotAvailableError

from harness.config.settings import Config, setting_fields
from harness.tracking.journal import Journal
from harness.tracking.records import Artifact, Curve, Record, Scores, StoredImage, Table, encode_png
from harness.tracking.tracker import MultiTracker, NullTracker
from harness.tracking.wandb import finishing, init, rows, session
from harness.tracking.wandb.values import to_wandb
from harness.utils.errors import TrackingError
from tests.support import wandb_files
from tests.support.records import epoch, final, image
from tests.support.waiting import is_alive, wait_until
from tests.support.wandb_server import KEY

SLIM = {
    "X_DISABLE_STATS": "true",
    "X_SAVE_REQUIREMENTS": "false",
    "DISABLE_GIT": "true",
    "X_DISABLE_MACHINE_INFO": "true",
}


@pytest.fixture(autouse=True)
def slim(monkeypatch):
    """W&B without system statistics, git and the list of packages, which take time."""
    for name, value in SLIM.items():
        monkeypatch.setenv(f"WANDB_{name}", value)


def start(folder: Path, lines: list | None = None, **arguments):
    """Start a run in `folder`; `lines` receives the messages to the user."""
    settings = {name: arguments.pop(name) for name in list(arguments) if name in setting_fields()}
    messages = [] if lines is None else lines
    return init.start(
        Config(**{"epochs": 2, "peak_epoch": 1, "finish_timeout": 5, **settings}),
        folder,
        run_name="a run",
        **arguments,
        notify=messages.append,
    )


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


# --- one offline run


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """One offline run of two epochs with one value of each kind: (config, run directory, W&B's files, tracker)."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            **{f"WANDB_{key}": value for key, value in SLIM.items()},
            "HOME": str(tmp_path_factory.mktemp("home")),
        }.items():
            patch.setenv(name, value)
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        folder = tmp_path_factory.mktemp("runs") / "my run"
        config = Config(
            epochs=2,
            peak_epoch=1,
            wandb="offline",
            group="g",
            tags=("a", "b"),
            model_args={"width": 16},
            log_code=True,
            seed=2**60,
        )
        before, variables = set(folder.parent.parent.rglob("*")), dict(os.environ)
        tracker = init.start(
            config,
            folder,
            run_name="a run",
            run_id="abc123",
            extra={"environment": {"torch": "2.15"}},
            code={"test_wandb.py": Path(__file__), "package/inner.py": Path(__file__)},
        )
        tracker.record(epoch(1))
        tracker.record(epoch(2))
        tracker.summary({"val/acc": 0.99})
        tracker.record(final(6))
        weights = folder.parent.parent / "weights.bin"
        weights.write_bytes(b"weights")
        tracker.artifact(
            Artifact(
                "my run/model",
                "model",
                {"weights.bin": weights},
                ("best", "latest"),
                {"config": config.to_dict(), "acc": 0.2},
            )
        )
        weights.unlink()
        tracker.alert("title", "text")
        tracker.finish("finished", 0)
        tracker.finish("failed", 1)
        assert dict(os.environ) == variables
        outside = {path for path in folder.parent.parent.rglob("*") if folder not in [path, *path.parents]} - before
        assert not outside
        (offline_run,) = wandb_files.offline_runs(folder)
        return config, folder, offline_run, tracker


def test_every_step_is_one_row_and_the_last_row_of_an_epoch_has_the_epochs_values(tracked):
    offline_run = tracked[2]
    assert offline_run.steps == [1, 2, 3, 4, 5, 6, 7]
    assert [row.get("train/step_loss") for row in offline_run.rows] == [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, None]
    assert [row.get("val/acc") for row in offline_run.rows] == [None, None, 0.1, None, None, 0.2, None]
    assert offline_run.rows[2]["epoch"] == 1
    assert offline_run.rows[6]["result/acc"] == 0.75  # after the last update, whose row does not wait for it
    assert offline_run.exit_code == 0
    assert (offline_run.run_id, offline_run.name, offline_run.project, offline_run.group, offline_run.tags) == (
        "abc123",
        "a run",
        "harness",
        "g",
        ["a", "b"],
    )


def test_a_configuration_comes_back_from_wandb_unchanged(tracked):
    config, _, offline_run, _ = tracked
    stored = {key: value for key, value in offline_run.config.items() if key in setting_fields()}
    assert Config(**stored) == config
    assert offline_run.config["environment"] == {"torch": "2.15"}


def test_the_metric_of_a_sweep_is_a_plain_number_in_the_summary(tracked):
    offline_run = tracked[2]
    assert offline_run.summary["val/acc"] == 0.99
    assert offline_run.summary["train/loss"] == 0.5


def test_epoch_metrics_are_plotted_over_the_epoch_and_step_metrics_over_the_step(tracked):
    metrics = tracked[2].metrics
    assert metrics["val/*"].step_metric == "epoch"
    assert all(metrics[name].options.hidden for name in session.AXES)
    assert metrics["train/*"].step_metric == "epoch"
    assert metrics["train/step_loss"].step_metric == ""
    assert all(not metric.summary.max for metric in metrics.values())


def test_images_tables_curves_and_scores_arrive_with_their_content(tracked):
    _, folder, offline_run, _ = tracked
    row, media = offline_run.rows[-1], next(folder.glob("wandb/offline-run-*/files"))
    assert len(row["gallery.filenames"]) + len(row["gallery_2.filenames"]) == 110
    assert np.array_equal(StoredImage(media / row["cam.path"]).pixels, image(3).pixels)
    assert row["cam.caption"] == "image 3"

    def table(key):
        return json.loads((media / row[f"{key}.path"]).read_text())

    assert table("finder/table")["columns"] == ["lr", "loss", "mark"]
    assert table("finder/table")["data"][:2] == [[0.1, 2.0, None], [0.2, 1.0, "LRMAX"]]
    assert row["finder/chart_table.nrows"] == 3
    scores = final(6).values["test"]
    counts = np.array([cell[2] for cell in table("test/confusion_table")["data"]]).reshape(4, 4)
    assert np.array_equal(counts, confusion_matrix(scores.labels, scores.probabilities.argmax(1)))
    assert row["test/pr_table.nrows"] == 4 * len(rows.RECALLS)
    assert (row["gradients/fc.values"], row["gradients/fc.bins"]) == ([3, 0, 1], [-1.0, -0.5, 0.0, 0.5])
    tables = {artifact["name"]: artifact for artifact in offline_run.artifacts if artifact["type"] == "run_table"}
    wrong = next(artifact for name, artifact in tables.items() if name.endswith("wrong"))
    data = json.loads(Path(wrong["files"]["wrong.table.json"]).read_text())["data"]
    assert [cells[1:] for cells in data] == [["ant", 0.5, None], ["bee", 1, True]]
    assert np.array_equal(StoredImage(Path(wrong["files"][data[1][0]["path"]])).pixels, image(2).pixels)


def test_layers_and_charts_arrive_as_w_and_bs_own_with_their_labels_and_titles(tracked):
    _, folder, offline_run, _ = tracked
    row, media = offline_run.rows[-1], next(folder.glob("wandb/offline-run-*/files"))
    values = final(6).values
    assert row["layers.captions"] == [layer.image.caption for layer in values["layers"]]
    for layer, masks in zip(values["layers"], row["layers.all_masks"], strict=True):
        for name, mask in layer.masks.items():
            with PIL.Image.open(media / masks[name]["path"]) as picture:
                assert np.array_equal(np.asarray(picture), mask.levels)
    labels = offline_run.config["_wandb"]["mask/class_labels"]
    assert {key: entry["value"] for key, entry in labels.items()} == {
        f"{key}_wandb_delimeter_{name}": {"1": "weak", "2": "strong"}
        for key in ("layers", "layer")
        for name in ("prediction", "truth")
    }
    chart = offline_run.config["_wandb.visualize.roc"]["panel_config"]
    assert chart["panelDefId"] == "wandb/area-under-curve/v0"
    assert chart["fieldSettings"] == {"x": "false positives", "y": "true positives", "class": "class"}
    assert chart["stringSettings"] == {
        "title": "ROC of the test set", "x-axis-title": "false positives", "y-axis-title": "true positives"
    }  # fmt: skip
    assert json.loads((media / row["roc_table.path"]).read_text())["data"] == [[0.0, 0.5, "ant"], [1.0, 1.0, "ant"]]
    figure = json.loads((media / row["lines.path"]).read_text())
    assert (figure["data"][0]["x"], figure["layout"]["xaxis"]["type"]) == ([0.1, 0.2], "log")
    assert not {"overlays", "rate"} & {key.split(".")[0] for key in row}  # details are of the journal alone


def test_the_chart_of_a_long_curve_has_points_of_the_curve_and_its_table_has_all_of_them(tmp_path):
    steps = list(range(1, 12_001))
    curve = Curve("step", steps, {"loss": [1 / step for step in steps], "lr": [step / 9 for step in steps]})
    logged = to_wandb(wandb, "long", curve, tmp_path)
    points = logged["long/chart"].table.data  # [step, key of the line, value]
    assert len(steps) / 2 < len(points) <= rows.MAX_CHART_POINTS
    loss, lr = (np.array([(x, y) for x, key, y in points if key == name]) for name in curve.lines)
    np.testing.assert_allclose(loss[:, 1], 1 / loss[:, 0])
    np.testing.assert_allclose(lr[:, 1], lr[:, 0] / 9)
    assert loss[:, 0].tolist() == lr[:, 0].tolist() == steps[:: len(steps) // len(lr)]
    assert logged["long/table"].data[-1] == [12_000.0, 1 / 12_000, 12_000 / 9]


def test_a_table_has_the_types_of_all_of_its_rows_and_takes_no_time_for_each(tmp_path):
    import wandb as module

    rows = [(f"{number}", image(1) if number % 1000 == 7 else None, number % 2 == 0, 0.5) for number in range(20_000)]
    started = time.process_time()
    table = to_wandb(module, "t", Table(("id", "image", "flag", "x"), rows), tmp_path)["t"]
    assert time.process_time() - started < 1  # row by row W&B takes 2 s
    cells = [[row[0], table.data[0][1], *row[2:]] for row in rows]
    one_by_one = module.Table(columns=list(table.columns), data=[table.data[7], *cells[:2]])
    assert table._column_types == one_by_one._column_types
    assert [row[0] for row in table.data] == [row[0] for row in rows]


def test_w_and_b_has_the_image_files_of_the_journal_and_they_outlive_it(tmp_path):
    config, record = Config(wandb="offline"), final(6)
    drawn = tmp_path / "drawn.png"
    drawn.write_bytes(encode_png(image(4).pixels, 150))
    record = replace(record, values={**record.values, "figure": StoredImage(drawn)})
    tracker = MultiTracker([Journal(tmp_path, {"config": {}}), init.start(config, tmp_path, run_name="images")])
    tracker.record(record)
    tracker.finish("finished", 0)
    drawn.unlink()
    (offline_run,) = wandb_files.offline_runs(tmp_path)
    row, media = offline_run.rows[-1], offline_run.folder / "files"
    journal = {path.read_bytes() for path in (tmp_path / "media").glob("*.png")}
    assert {(media / row[f"{key}.path"]).read_bytes() for key in ("cam", "figure")} <= journal
    assert np.array_equal(StoredImage(media / row["figure.path"]).pixels, image(4).pixels)
    gallery = [media / name for name in row["gallery.filenames"] + row["gallery_2.filenames"]]
    assert len(gallery) == 110 and {path.read_bytes() for path in gallery} <= journal
    table = next(artifact for artifact in offline_run.artifacts if artifact["name"].endswith("wrong"))
    images = [Path(path).read_bytes() for name, path in table["files"].items() if name.endswith(".png")]
    assert len(images) == 2 and set(images) <= journal


def test_an_artifact_keeps_its_content_inside_the_run_folder(tracked):
    config, folder, offline_run, _ = tracked
    by_type = {artifact["type"]: artifact for artifact in offline_run.artifacts}
    model = by_type["model"]
    assert (model["name"], sorted(model["aliases"])) == ("my-run-model", ["latest", f"run-{offline_run.run_id}"])
    assert model["metadata"] == {"config": config.to_dict(), "acc": 0.2}
    staged = Path(model["files"]["weights.bin"])
    assert staged.read_bytes() == b"weights"
    assert staged.resolve().is_relative_to(folder)
    assert Path(by_type["code"]["files"]["test_wandb.py"]).read_bytes() == Path(__file__).read_bytes()
    assert offline_run.alerts == [("title", "text")]


def test_the_reader_of_wandb_reads_the_same_run(tracked):
    _, _, offline_run, _ = tracked
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(offline_run.folder)]
    seen = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert seen["summary"]["val/acc"] == 0.99
    assert seen["config"]["model_args"] == {"width": 16}


def test_the_sync_command_quotes_an_offline_run_directory_with_a_space_in_its_path(tracked):
    _, _, offline_run, tracker = tracked
    assert tracker.state == "offline"
    assert tracker.sync_command == f"wandb sync '{offline_run.folder}'"


# --- resuming, going offline, dying


def test_offline_run_directories_of_a_resumed_run_have_no_gap_and_no_overlap(tmp_path):
    tracker = start(tmp_path, wandb="offline", epochs=4)
    for number in (1, 2):
        tracker.record(epoch(number))
    tracker.finish("stopped", 143)
    # The last checkpoint is that of the first epoch, so the second epoch is trained again.
    tracker = start(tmp_path, wandb="offline", epochs=4, resumed_step=3, earlier=[epoch(1)])
    for number in (2, 3, 4):
        tracker.record(epoch(number))
    tracker.record(Record(12, 4, {"result/acc": 0.5}, kind="final"))
    tracker.finish("finished", 0)
    first, second = wandb_files.offline_runs(tmp_path)
    assert first.run_id == second.run_id
    assert (first.steps, second.steps) == ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12, 13])
    assert second.rows[-1]["result/acc"] == 0.5
    assert first.exit_code == 143
    assert tracker.sync_command == f"wandb sync {tmp_path}/wandb/offline-run-*-{first.run_id}*"


def test_a_resumed_run_sends_the_records_that_wandb_does_not_have(tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / session.SENT).write_text('{"run_id": "old", "step": 3}')
    tracker = start(tmp_path, wandb="offline", resumed_step=6, epochs=9, earlier=[epoch(1), epoch(2)])
    tracker.record(epoch(3))
    tracker.record(Record(9, 3, {"result/acc": 0.5}, kind="final"))
    tracker.finish("finished", 0)
    (offline_run,) = wandb_files.offline_runs(tmp_path)
    assert offline_run.run_id == "old"
    assert offline_run.steps == [4, 5, 6, 7, 8, 9, 10]
    assert [row.get("val/acc") for row in offline_run.rows] == [None, None, 0.2, None, None, 0.3, None]


def test_a_resumed_run_whose_result_is_in_wandb_does_not_log_it_twice(tmp_path):
    for resumed in (False, True):
        earlier = [epoch(1), epoch(2)] if resumed else ()
        tracker = start(tmp_path, wandb="offline", resumed_step=6 if resumed else None, earlier=earlier)
        for record in () if resumed else (epoch(1), epoch(2)):
            tracker.record(record)
        tracker.record(Record(6, 2, {"result/acc": 0.5}, kind="final"))
        tracker.finish("finished", 0)
    first, second = wandb_files.offline_runs(tmp_path)
    assert (first.steps, second.steps) == ([1, 2, 3, 4, 5, 6, 7], [])
    assert first.rows[-1]["result/acc"] == 0.5


def test_training_continues_when_the_process_of_wandb_is_killed(tmp_path):
    lines: list[str] = []
    before = set(children(os.getpid()))
    tracker = start(tmp_path, lines, wandb="offline", epochs=9)
    tracker.record(epoch(1))
    (tmp_path / "file").write_text("x")
    tracker.artifact(Artifact("a", "model", {"file": tmp_path / "file"}))  # waits until everything before it is sent
    wait_until(lambda: 1 in wandb_files.offline_runs(tmp_path)[0].steps)  # W&B flushes its log every second
    cores = [
        pid for pid in set(children(os.getpid())) - before if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(cores) == 1
    os.kill(cores[0], signal.SIGKILL)
    wait_until(lambda: not is_alive(cores[0]))
    for number in (2, 3):
        tracker.record(epoch(number))
    tracker.summary({"val/acc": 0.3})
    tracker.finish("finished", 0)
    first, second = wandb_files.offline_runs(tmp_path)
    assert first.run_id == second.run_id
    assert first.steps == [1, 2, 3]
    assert set(range(5, 10)) <= set(second.steps) <= set(range(4, 10))  # the row that was being sent is lost
    assert second.rows[-1]["val/acc"] == 0.3
    assert second.exit_code == 0
    assert tracker.state == "incomplete"
    assert set(children(os.getpid())) <= before  # nor is there a zombie
    assert len(lines) == 1
    assert tracker.sync_command == f"harness sync {tmp_path}"
    assert tracker.sync_command in lines[0]


def test_auto_without_a_key_is_offline_with_one_line_and_the_sync_command(tmp_path, home, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = {path: path.is_file() and path.read_bytes() for path in home.rglob("*")}
    lines: list[str] = []
    tracker = start(tmp_path / "run", lines)
    tracker.record(epoch(1))
    tracker.finish("failed", 5)
    (offline_run,) = wandb_files.offline_runs(tmp_path / "run")
    assert lines == [f"W&B is offline (no API key was found). Upload later with: wandb sync {offline_run.folder}"]
    assert offline_run.exit_code == 5
    assert {path: path.is_file() and path.read_bytes() for path in home.rglob("*")} == before
    assert not list((tmp_path / "elsewhere").iterdir())


def test_wandb_prints_nothing_of_its_own(tmp_path):
    script = (
        "import sys; from pathlib import Path; from harness.config.settings import Config; from harness.tracking.wandb import init; from harness.tracking.records import Record\n"
        "t = init.start(Config(wandb='offline'), Path(sys.argv[1]), run_name='n')\n"
        "t.record(Record(1, 1, {'val/acc': float('nan')})); t.finish('finished', 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert math.isnan(wandb_files.offline_runs(tmp_path)[0].rows[0]["val/acc"])


@pytest.fixture
def closed_server(monkeypatch):
    """The environment of a W&B server that is a closed port, with a key."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(session, "INIT_TIMEOUT", 1.0)


def test_auto_goes_offline_in_the_same_process_when_the_server_is_unavailable(tmp_path, closed_server):
    lines: list[str] = []
    began = time.monotonic()
    tracker = start(tmp_path, lines, run_id="abc")
    assert time.monotonic() - began < 60
    tracker.record(epoch(1))
    tracker.finish("finished", 0)
    (offline_run,) = wandb_files.offline_runs(tmp_path)
    assert (offline_run.run_id, offline_run.steps) == ("abc", [1, 2, 3])
    assert len(lines) == 1
    assert "wandb sync" in lines[0]
    assert not files_with(KEY, tmp_path)


@pytest.mark.slow
def test_a_run_that_the_user_has_open_survives_a_server_that_fails(tmp_path, closed_server):
    (tmp_path / "mine").mkdir()
    mine = wandb.init(mode="offline", dir=tmp_path / "mine", id="mine", settings=wandb.Settings(silent=True))
    try:
        mine.log({"before": 1})
        service = set(children(os.getpid()))
        lines: list[str] = []
        tracker = start(tmp_path / "run", lines)
        tracker.record(epoch(1))
        tracker.finish("finished", 0)
        assert tracker.state == "offline"
        assert wandb.run is mine
        assert service <= set(children(os.getpid()))  # W&B's process is the user's
        mine.log({"after": 2})
        mine.finish()
    finally:
        wandb.teardown()
    (user_run,) = wandb_files.offline_runs(tmp_path / "mine")
    assert [(row.get("before"), row.get("after")) for row in user_run.rows] == [(1, None), (None, 2)]
    (offline_run,) = wandb_files.offline_runs(tmp_path / "run")
    assert offline_run.steps == [1, 2, 3]


def test_an_open_run_with_the_requested_id_is_used_and_stays_open(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    mine = wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True))
    try:
        tracker = start(tmp_path / "run", wandb="offline")
        tracker.record(epoch(1))
        tracker.summary({"status": "finished"})
        tracker.finish("finished", 0)
        assert wandb.run is mine
        mine.log({"after": 2})
        mine.finish()
    finally:
        wandb.teardown()
    (offline_run,) = wandb_files.offline_runs(tmp_path)
    assert (offline_run.run_id, offline_run.summary["status"]) == ("given", "finished")
    assert offline_run.config["lr_max"] == Config().lr_max
    assert {1, 2, 3} <= set(offline_run.steps)
    assert offline_run.rows[-1]["after"] == 2
    assert not wandb_files.offline_runs(tmp_path / "run")


def test_online_by_name_stops_before_the_first_step_and_never_shows_the_key(tmp_path, closed_server):
    lines: list[str] = []
    with pytest.raises(TrackingError) as caught:
        start(tmp_path, lines, wandb="online")
    assert caught.value.exit_code == 7
    assert KEY not in "".join(lines) + str(caught.value) + repr(caught.value.__cause__)
    assert not files_with(KEY, tmp_path)
    assert "WANDB_SILENT" not in os.environ


def test_a_malformed_key_is_no_reason_to_stop_and_is_not_shown(tmp_path, closed_server, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "not-a-key")
    lines: list[str] = []
    start(tmp_path, lines).finish("finished", 0)
    assert len(lines) == 1
    assert "not-a-key" not in lines[0]


def test_online_without_a_key_is_refused_at_once(tmp_path):
    with pytest.raises(TrackingError, match="no W&B API key was found"):
        start(tmp_path, wandb="online")


def test_a_key_in_a_netrc_file_is_found(home, monkeypatch):
    assert not init.has_api_key()
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    (home / ".netrc").chmod(0o600)
    assert init.has_api_key()


def test_a_sweep_decides_the_run_id_and_the_project(tmp_path, monkeypatch):
    for name, value in {"SWEEP_ID": "sweep1", "RUN_ID": "fromsweep", "PROJECT": "theirs"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    lines: list[str] = []
    tracker = start(tmp_path, lines, wandb="offline", run_id="ours", project="ours")
    tracker.record(epoch(1))
    tracker.finish("finished", 0)
    (offline_run,) = wandb_files.offline_runs(tmp_path)
    assert (offline_run.run_id, offline_run.project) == ("fromsweep", "theirs")
    assert not lines


def test_where_wandb_cannot_write_an_auto_run_continues_and_an_offline_one_does_not(tmp_path):
    (tmp_path / "wandb").write_text("a file in place of the folder")
    lines: list[str] = []
    tracker = start(tmp_path, lines)
    tracker.record(epoch(1))
    tracker.finish("finished", 0)
    assert (tracker.state, len(lines)) == ("incomplete", 1)
    with pytest.raises(TrackingError):
        start(tmp_path, wandb="offline")


def test_a_run_that_wandbs_process_never_served_is_resumed_and_arrives_completely(tmp_path, monkeypatch):
    """There is no `wandb-core` twice; run directories without a log are left, as by a process that was killed early."""

    def absent():
        raise WandbCoreNotAvailableError("File not found: wandb-core")

    with monkeypatch.context() as patch:
        for module in ("wandb.util", "wandb.sdk.lib.service.service_process"):
            patch.setattr(f"{module}.get_core_path", absent)
        assert not init.has_api_key()
        for step in (None, 4):
            lines = []
            tracker = start(tmp_path, lines, wandb="auto", resumed_step=step, earlier=[epoch(1)] if step else ())
            tracker.record(epoch(1))
            tracker.finish("failed", 1)
            assert tracker.state == "incomplete"
            assert "its journal is complete" in lines[0]
            for number in (1, 2):
                (tmp_path / f"wandb/offline-run-2026010{number}_000000-abcd123{number}").mkdir(
                    parents=True, exist_ok=True
                )
    assert session.known_run_id(tmp_path) is None
    tracker = start(tmp_path, wandb="offline", resumed_step=4, earlier=[epoch(1)], run_id="abcd1231")
    tracker.record(epoch(2))
    tracker.finish("finished", 0)
    (log,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    steps = wandb_files.load(log.parent).steps
    assert steps == sorted(set(steps))
    assert {epoch(1).step, epoch(2).step} <= set(steps)


def test_a_value_that_wandb_does_not_accept_is_named_and_the_rest_arrives(tmp_path):
    lines: list[str] = []
    many = tuple(f"class {number}" for number in range(101))
    tracker = start(tmp_path, lines, wandb="offline", epochs=9)
    tracker.record(Record(1, 1, {"val/acc": 0.5, "test": Scores(np.zeros(1, int), np.zeros((1, 101)), many)}))
    tracker.record(Record(2, 2, {"mixed": Table(("x",), [(1,), ("one",)])}))
    tracker.finish("finished", 0)
    (offline_run,) = wandb_files.offline_runs(tmp_path)
    assert (offline_run.rows[0]["val/acc"], offline_run.rows[1]["mixed.nrows"]) == (0.5, 2)
    assert len(lines) == 1
    assert "test" in lines[0]


def test_the_mode_is_resolved_without_the_network(monkeypatch):
    assert init.resolve_mode("offline") == "offline"
    for variable, mode in {
        "disabled": "disabled",
        "offline": "offline",
        "dryrun": "offline",
        "online": "online",
        "": "auto",
    }.items():
        monkeypatch.setenv("WANDB_MODE", variable)
        assert init.resolve_mode("auto") == mode
        assert init.resolve_mode("online") == "online"


def test_a_disabled_tracker_accepts_everything_and_writes_nothing(tmp_path):
    tracker = start(tmp_path, wandb="disabled")
    tracker.record(final(1))
    tracker.finish("finished", 0)
    assert isinstance(tracker, NullTracker)
    assert not list(tmp_path.iterdir())


def test_importing_the_module_does_not_import_wandb():
    script = "import sys, harness.tracking.wandb.init; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


# --- with a server on the loopback


def test_the_steps_of_an_unfinished_epoch_arrive_with_the_times_at_which_they_were_made(tmp_path, server, monkeypatch):
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")  # whole seconds
    tracker = start(tmp_path, epochs=4)
    curve = Curve(
        "step", [1, 2], {"train/step_loss": [2.5, 2.0], "lr": [0.1, 0.2], "epoch": [0.25, 0.5], "images_seen": [8, 16]}
    )
    times = [1_700_000_000.25, 1_700_000_007.5]
    tracker.record(Record(2, 0, {}, curve, "steps", step_times=times))
    wait_until(lambda: server.steps == [1, 2], 60)
    assert [row["_timestamp"] for row in server.history] == times
    assert [(row["epoch"], row["images_seen"], row["train/step_loss"]) for row in server.history] == [
        (0.25, 8, 2.5),
        (0.5, 16, 2.0),
    ]
    whole = replace(epoch(1, steps=4), time=times[1] + 2, step_times=[*times, times[1] + 0.5, times[1] + 1])
    tracker.record(whole)
    wait_until(lambda: server.steps == [1, 2, 3, 4], 60)
    assert [row["_timestamp"] for row in server.history][2:] == [times[1] + 0.5, times[1] + 2]
    assert (server.history[3]["epoch"], server.history[3]["val/acc"]) == (1, 0.1)
    tracker.finish("finished", 0)


def test_the_last_epoch_is_at_the_server_before_the_result_is_there(tmp_path, server, monkeypatch):
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")  # whole seconds
    tracker = start(tmp_path, epochs=1, early_stop=3, val_fraction=0.1)
    tracker.record(epoch(1))
    wait_until(lambda: server.steps == [1, 2, 3], 60)
    assert server.history[-1]["val/acc"] == 0.1
    tracker.record(Record(3, 1, {"result/acc": 0.5}, kind="final"))
    tracker.finish("finished", 0)
    assert (server.steps, server.history[-1]["result/acc"]) == ([1, 2, 3, 4], 0.5)


def test_log_every_thins_the_steps_and_keeps_every_epoch(tmp_path):
    tracker = start(tmp_path, wandb="offline", log_every=4)
    live = epoch(1, steps=10).with_steps(lambda step: step <= 9)
    tracker.record(replace(live, step=9, epoch=0, values={}, kind="steps"))
    tracker.record(epoch(1, steps=10))
    tracker.record(epoch(2, steps=10))
    tracker.finish("finished", 0)
    (offline_run,) = wandb_files.offline_runs(tmp_path)
    assert offline_run.steps == [4, 8, 10, 12, 16, 20]
    assert [row["train/step_loss"] for row in offline_run.rows] == [0.04, 0.08, 0.1, 0.12, 0.16, 0.2]
    assert [row.get("val/acc") for row in offline_run.rows] == [None, None, 0.1, None, None, 0.2]


def test_an_online_run_that_lost_its_tail_has_every_step_once_after_a_resume(tmp_path, server):
    tracker = start(tmp_path, epochs=4)
    assert (tracker.state, tracker.sync_command) == ("online", "")
    assert tracker.url.startswith(server.url)
    for number in (1, 2):
        tracker.record(epoch(number))
    tracker.finish("stopped", 143)
    assert (server.steps, server.exit_code) == ([1, 2, 3, 4, 5, 6], 143)
    del server.rows[4], server.rows[5]  # counted from 0: the last two were lost in a crash
    tracker = start(tmp_path, epochs=4, resumed_step=6, earlier=[epoch(1), epoch(2)])
    for number in (3, 4):
        tracker.record(epoch(number))
    tracker.record(Record(12, 4, {"result/acc": 0.5}, kind="final"))
    tracker.finish("finished", 0)
    assert server.steps == list(range(1, 14))
    assert [row["val/acc"] for row in server.history if "val/acc" in row] == [0.1, 0.2, 0.3, 0.4]
    assert server.history[-1]["result/acc"] == 0.5
    assert not files_with(KEY, tmp_path)


def test_offline_run_directories_of_a_resumed_run_sync_into_one_history_with_every_step_once(tmp_path, server):
    tracker = start(tmp_path, wandb="offline", epochs=3)
    for number in (1, 2):
        tracker.record(epoch(number))
    tracker.finish("stopped", 143)
    tracker = start(tmp_path, wandb="offline", epochs=3, resumed_step=3)
    for number in (2, 3):
        tracker.record(epoch(number))
    tracker.finish("finished", 0)
    subprocess.run(
        f"exec {sys.executable} -m {tracker.sync_command}",
        shell=True,
        check=True,
        capture_output=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert server.steps == list(range(1, 10))
    assert [row["val/acc"] for row in server.history if "val/acc" in row] == [0.1, 0.2, 0.3]


@pytest.mark.slow
def test_how_a_run_was_stopped_leaves_the_summary_when_it_is_resumed(tmp_path, server):
    memory = {"memory/peak_gib": 0.5}
    tracker = start(tmp_path, wandb="online", epochs=3, run_id="r")
    tracker.record(Record(3, 1, {**epoch(1).values, **memory}, epoch(1).steps))
    tracker.summary({"status": "stopped", "reason": "stopped by SIGINT"})
    tracker.finish("stopped", 130)
    summary = server.runs["r"].summary
    assert (summary["reason"], summary["memory/peak_gib"]) == ("stopped by SIGINT", 0.5)  # a number before the end, too
    tracker = start(tmp_path, wandb="online", epochs=3, run_id="r", resumed_step=3, earlier=[epoch(1)])
    tracker.record(Record(6, 2, {**epoch(2).values, **memory}, epoch(2).steps))
    wait_until(lambda: server.runs["r"].summary.get("val/acc") == 0.2, 60)
    assert not {"status", "reason"} & server.runs["r"].summary.keys()
    tracker.summary({"status": "finished", **memory})
    tracker.finish("finished", 0)
    summary = server.runs["r"].summary
    assert (summary["status"], summary["memory/peak_gib"]) == ("finished", 0.5)
    assert "reason" not in summary


def test_a_server_that_refuses_the_rows_is_reported_at_the_end(tmp_path, server):
    server.stream_status = 404
    lines: list[str] = []
    tracker = start(tmp_path, lines)
    tracker.record(epoch(1))
    tracker.finish("finished", 0)
    assert tracker.state == "incomplete"
    assert len(lines) == 1
    assert "404" in lines[0]
    assert tracker.sync_command in lines[0]


@pytest.mark.slow
def test_a_server_that_only_fails_delays_the_end_by_the_finish_timeout_at_most(tmp_path, server):
    server.stream_status = 500
    tracker = start(tmp_path, wandb="online", finish_timeout=2)
    tracker.record(epoch(1))
    began = time.monotonic()
    with pytest.raises(TrackingError, match="harness sync"):
        tracker.finish("finished", 0)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped by the server", "preempted"])
def test_a_run_of_a_sweep_that_gets_sigterm_is_queued_again_unless_the_server_stopped_it(
    tmp_path, server, monkeypatch, stopped
):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "run1")
    tracker = start(tmp_path, wandb="online")
    tracker.record(epoch(1))
    server.runs["run1"].stopped = stopped
    assert tracker.stopped_by_server() == stopped
    assert server.runs["run1"].stops > 0  # it was asked: no reply to a row has informed the SDK yet
    tracker.finish("stopped", 143)
    assert server.runs["run1"].preempting != stopped
    assert server.runs["run1"].exit_code == 143


def test_outside_a_sweep_the_server_is_not_asked_who_sent_sigterm(tmp_path, server):
    tracker = start(tmp_path, wandb="online", run_id="run1")
    assert not tracker.stopped_by_server()
    tracker.finish("stopped", 143)
    assert (server.runs["run1"].stops, server.runs["run1"].preempting) == (0, False)


def artifact_of(folder, size):
    """An artifact of one file of random bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "big.bin").write_bytes(np.random.default_rng(0).bytes(size))
    return Artifact("big", "model", {"big.bin": folder / "big.bin"})


@pytest.mark.slow
def test_an_upload_that_proceeds_at_the_end_is_waited_for_beyond_the_finish_timeout(tmp_path, server):
    server.seconds_per_mb = 1.5
    lines: list[str] = []
    tracker = start(tmp_path, lines, finish_timeout=1)
    tracker.record(epoch(1))
    tracker.artifact(artifact_of(tmp_path, 3_000_000))
    tracker.finish("finished", 0)
    assert (tracker.state, lines, server.exit_code) == ("online", [], 0)
    (artifact,) = server.artifacts.values()
    assert artifact.committed


@pytest.mark.slow
def test_an_upload_that_does_not_proceed_at_the_end_is_given_up(tmp_path, server):
    server.seconds_per_mb = 1e5
    lines: list[str] = []
    tracker = start(tmp_path, lines, finish_timeout=1)
    tracker.record(epoch(1))
    tracker.artifact(artifact_of(tmp_path, 60_000))
    began = time.monotonic()
    tracker.finish("finished", 0)
    assert time.monotonic() - began < 30
    assert tracker.state == "incomplete"
    assert "nothing was uploaded for" in lines[0]


@pytest.mark.slow
def test_a_server_that_refuses_the_files_is_reported_at_the_end(tmp_path, server):
    server.upload_status = 403
    lines: list[str] = []
    tracker = start(tmp_path, lines)
    tracker.record(final(3))
    tracker.finish("finished", 0)
    assert tracker.state == "incomplete"
    assert len(lines) == 1


@pytest.fixture
def _without_wandb(monkeypatch):
    """W&B as where it is not installed."""
    monkeypatch.setitem(sys.modules, "wandb", None)


def test_without_wandb_a_run_has_its_journal_alone_unless_wandb_is_required(tmp_path, _without_wandb):
    lines = []
    tracker = init.start(Config(wandb="auto"), tmp_path, run_name="r", notify=lines.append)
    assert isinstance(tracker, NullTracker) and not init.has_api_key()
    assert lines == ["W&B is not installed, so the run is not in W&B. Install it with: pip install wandb"]
    for mode in ("online", "offline"):
        with pytest.raises(TrackingError, match=rf"wandb={mode}, but W&B is not installed .*; pip install wandb"):
            init.start(Config(wandb=mode), tmp_path, run_name="r", notify=lines.append)


class _Ending:
    """A W&B run that ends as the test says."""

    def __init__(self, finish):
        self.finish = finish


def test_an_error_while_a_run_is_finished_is_that_of_the_caller():
    def fail(exit_code):
        raise OSError(f"refused {exit_code}")

    with pytest.raises(OSError, match="refused 3"):
        finishing.finish_run(_Ending(fail), 3, 1.0, pytest.fail)


def test_a_run_whose_end_makes_no_progress_is_given_up(monkeypatch):
    monkeypatch.setattr(finishing, "POLL", 0.01)
    over = threading.Event()
    message = finishing.finish_run(_Ending(lambda exit_code: over.wait(60)), 0, 0.1, over.set)
    assert message == "nothing was uploaded for 0 s" and over.is_set()
    assert finishing.patience(60, 5_000_000) == 110


def test_a_run_that_the_user_has_open_offline_does_not_serve_where_online_is_required(tmp_path):
    ours = session.Session(None, Config(wandb="online"), tmp_path, {}, None, print)
    with pytest.raises(TrackingError, match="wandb=online, but the open W&B run abc is offline; set --wandb auto"):
        ours._borrow(SimpleNamespace(offline=True, id="abc"))


def test_where_wandb_cannot_be_used_at_all_a_mode_that_was_named_is_refused(tmp_path):
    lines = []
    for mode in ("offline", "online"):
        ours = session.Session(wandb, Config(wandb=mode), tmp_path, {}, None, lines.append, broken="W&B is broken")
        with pytest.raises(TrackingError, match=r"^W&B is broken; mend it, or set --wandb disabled$"):
            ours.connect(online=mode == "online")
    assert not lines
