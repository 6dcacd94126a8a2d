"""A journal holds every record of a run, in order, wherever the run or the disk failed."""

import json
import math
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve

from harness.tracking.journal import REPLACED, Journal, follow_journal, read_journal
from harness.tracking.journal_lines import encode_line
from harness.tracking.records import (
    Artifact,
    Curve,
    Histogram,
    Image,
    Record,
    Scores,
    StoredImage,
    Table,
    TableChart,
    encode_png,
)
from harness.tracking.serialization import from_line, to_line
from harness.tracking.tracker import MultiTracker, NullTracker
from harness.tracking.wandb import rows
from harness.utils.errors import CheckpointError, DataError, ResourceError
from harness.utils.plain import from_plain, to_plain
from tests.support.records import epoch, final, image, same

RECORDS = [
    Record(0, 0, {"finder": Curve("lr", [1e-3, 1.0], {"loss": [2.5, math.nan]}, marks={"LRMAX": 0.5})}, kind="find"),
    Record(
        3,
        1,
        {"val/acc": 0.1 + 0.2, "loss": math.inf, "text": "NaN", "tilde": "~~Infinity", "on": True, "n": 2**60},
        epoch(1).steps,
    ),
    final(6),
]


def write(folder: Path, records=RECORDS) -> Journal:
    journal = Journal(folder, {"config": {"lr_max": 0.1}, "environment": {"python": "3"}})
    for record in records:
        journal.record(record)
    return journal


def test_an_image_that_is_a_png_file_already_is_kept_byte_by_byte(tmp_path):
    figure = tmp_path / "figures.png"
    figure.write_bytes(encode_png(image(7).pixels, 150))
    journal = Journal(tmp_path / "run", {"config": {}})
    journal.record(Record(1, 1, {"figure": StoredImage(figure, "losses")}, kind="final"))
    journal.finish("finished", 0)
    (kept,) = (tmp_path / "run" / "media").iterdir()
    assert kept.read_bytes() == figure.read_bytes()
    figure.unlink()
    assert same(read_journal(tmp_path / "run").records[0].values["figure"].pixels.tolist(), image(7).pixels.tolist())


def test_a_journal_gives_back_what_was_written(tmp_path):
    journal = write(tmp_path)
    (tmp_path / "weights").write_text("x")
    artifact = Artifact("model", "model", {"weights": tmp_path / "weights"}, ("best",), {"acc": math.nan})
    journal.artifact(artifact)
    journal.alert("diverged", "loss NaN")
    journal.settings({"lr_max": 0.2, "lr_max_requested": "find"})
    journal.settings({"lr_max": 0.3})
    journal.summary({"val/acc": 0.5})
    journal.summary({"status": "finished"})
    journal.sync()
    journal.finish("finished", 0)
    contents = read_journal(tmp_path)
    assert contents.header == {"config": {"lr_max": 0.1}, "environment": {"python": "3"}}
    assert contents.settings == {"lr_max": 0.3, "lr_max_requested": "find"}
    assert same(contents.records, RECORDS)
    assert (contents.summary, contents.status, contents.exit_code) == (
        {"val/acc": 0.5, "status": "finished"},
        "finished",
        0,
    )
    assert same(contents.artifacts, [artifact])
    assert contents.alerts == [("diverged", "loss NaN")]
    assert contents.whole


def test_every_line_is_strict_json(tmp_path):
    write(tmp_path).finish("finished", 0)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    kinds = [json.loads(line, parse_constant=refuse)["kind"] for line in lines]
    assert kinds == ["header", "find", "epoch", "final", "summary"]


def test_a_journal_cut_at_any_byte_still_reads_up_to_its_last_whole_line(tmp_path):
    write(tmp_path, [RECORDS[0], RECORDS[1], epoch(2)]).finish("finished", 0)
    content = (tmp_path / "journal.jsonl").read_bytes()
    whole = read_journal(tmp_path)
    for cut in range(len(content)):
        (tmp_path / "cut.jsonl").write_bytes(content[:cut])
        contents = read_journal(tmp_path / "cut.jsonl")
        lines = content[:cut].count(b"\n")
        assert same(contents.records, whole.records[: max(0, lines - 1)])
        assert contents.header == (whole.header if lines else {})
        assert not contents.whole


def test_a_resumed_journal_keeps_the_records_up_to_the_checkpoint_and_loses_nothing(tmp_path):
    journal = write(tmp_path, [epoch(1), epoch(2), epoch(3), final(9)])
    journal.summary({"val/acc": 0.3})
    journal.finish("stopped", 143)
    with open(tmp_path / "journal.jsonl", "ab") as file:
        file.write(b'{"kind":"epoch","step":12')
    journal = Journal.resume(tmp_path, 6)
    journal.record(epoch(3))
    journal.finish("finished", 0)
    assert same(read_journal(tmp_path).records, [epoch(1), epoch(2), epoch(3)])
    assert read_journal(tmp_path).whole
    replaced = [json.loads(line)["kind"] for line in (tmp_path / REPLACED).read_text().splitlines()]
    assert replaced == ["epoch", "final", "summary"]


def test_a_run_that_is_resumed_before_its_first_checkpoint_has_every_step_in_its_journal(tmp_path):
    write(tmp_path, []).finish("stopped", 143)
    journal = Journal.resume(tmp_path, 0)
    journal.record(epoch(1))
    journal.finish("finished", 0)
    assert list(read_journal(tmp_path).records[0].steps.x) == [1, 2, 3]


def test_a_journal_cut_at_any_byte_can_be_resumed(tmp_path):
    write(tmp_path, [epoch(1), epoch(2)]).finish("finished", 0)
    content = (tmp_path / "journal.jsonl").read_bytes()
    for cut in range(content.index(b"\n") + 1, len(content) + 1, 7):
        (tmp_path / "journal.jsonl").write_bytes(content[:cut])
        known = [record for record in read_journal(tmp_path).records if record.step <= 3]
        journal = Journal.resume(tmp_path, 3)
        journal.record(epoch(2))
        journal.finish("finished", 0)
        assert same(read_journal(tmp_path).records, [*known, epoch(2)])


def test_a_journal_without_its_first_line_is_refused_or_started_again(tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"kind":"hea')
    with pytest.raises(CheckpointError, match="first line"):
        Journal.resume(tmp_path, 3)
    Journal.resume(tmp_path, 3, {"config": {}}).finish("finished", 0)
    assert read_journal(tmp_path).header == {"config": {}}
    with pytest.raises(DataError, match="journal"):
        read_journal(tmp_path / "nowhere")


def test_a_new_journal_in_an_old_folder_keeps_the_old_lines_beside_it(tmp_path):
    write(tmp_path, [epoch(1)]).finish("failed", 1)
    write(tmp_path, [epoch(2)]).finish("finished", 0)
    assert same(read_journal(tmp_path).records, [epoch(2)])
    assert same(read_journal(tmp_path / REPLACED).records, [epoch(1)])


def test_a_full_disk_leaves_whole_lines_and_can_be_written_after(tmp_path):
    journal = write(tmp_path, [epoch(1)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "journal.jsonl").stat().st_size + 40, limits[1]))
    try:
        with pytest.raises(ResourceError, match="cannot write"):
            journal.record(epoch(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(read_journal(tmp_path).records, [epoch(1)])
    journal.record(epoch(3))
    journal.finish("finished", 0)
    assert same(read_journal(tmp_path).records, [epoch(1), epoch(3)])


def test_the_system_has_a_record_when_record_returns(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from harness.tracking.journal import Journal; from harness.tracking.records import Record\n"
        "Journal(Path(sys.argv[1]), {}).record(Record(1, 1, {'val/acc': 0.5})); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=60).returncode == -signal.SIGKILL
    assert read_journal(tmp_path).records == [Record(1, 1, {"val/acc": 0.5})]


def test_equal_images_are_stored_once_and_a_journal_cannot_name_other_files(tmp_path):
    journal = write(tmp_path, [Record(1, 1, {"one": image(1), "two": Image(image(1).pixels, "again")})])
    assert len(list((tmp_path / "media").iterdir())) == 1
    journal.finish("finished", 0)
    path = tmp_path / "journal.jsonl"
    path.write_text(path.read_text().replace("media/", "media/../../"))
    assert read_journal(path).records == []


def test_images_of_the_same_bytes_but_another_shape_are_two_images(tmp_path):
    pixels = np.arange(18, dtype=np.uint8)
    wide, high = Image(pixels.reshape(2, 3, 3)), Image(pixels.reshape(3, 2, 3))
    write(tmp_path, [Record(1, 1, {"wide": wide, "high": high})]).finish("finished", 0)
    (record,) = read_journal(tmp_path).records
    assert len(list((tmp_path / "media").iterdir())) == 2
    assert np.array_equal(record.values["wide"].pixels, wide.pixels)
    assert np.array_equal(record.values["high"].pixels, high.pixels)


def test_scores_of_no_image_are_read_with_the_type_of_labels(tmp_path):
    write(tmp_path, [Record(1, 1, {"test": Scores(np.zeros(0, np.int64), np.zeros((0, 3)), ("a", "b", "c"))})]).finish(
        "finished", 0
    )
    (record,) = read_journal(tmp_path).records
    scores = record.values["test"]
    assert (scores.labels.dtype, scores.labels.shape, scores.probabilities.shape) == (np.int64, (0,), (0, 3))


def test_too_many_probabilities_are_left_out_but_their_shape_stays(tmp_path):
    scores = Scores(np.zeros(2001, np.int64), np.zeros((2001, 100)), tuple(map(str, range(100))))
    write(tmp_path, [Record(1, 1, {"test": scores})]).finish("finished", 0)
    assert (tmp_path / "journal.jsonl").stat().st_size < 5000
    (record,) = read_journal(tmp_path).records
    assert record.values["test"].classes == scores.classes
    assert json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[1])["values"]["test"]["scores"][
        "shape"
    ] == [2001, 100]


special = st.sampled_from(["NaN", "Infinity", "-Infinity", "~NaN", "~~-Infinity", "~", "\ud800", "\u2028"])
leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | special
trees = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@examples(max_examples=60)
@given(st.dictionaries(st.text(), trees))
def test_values_that_json_cannot_express_come_back_equal(value):
    line = to_line(value)
    assert line.count(b"\n") == 1
    assert same(from_line(line), value)
    assert same(from_plain(to_plain(value)), value)


def test_precision_at_a_recall_is_the_best_of_sklearns_curve_from_there_on():
    generator = np.random.default_rng(1)
    scores = Scores(generator.choice([0, 2, 3], 80), generator.dirichlet([1.0] * 4, 80).round(1), ("a", "b", "c", "d"))
    table = rows.precision_recall(scores)
    assert [row[0] for row in table[:: len(rows.RECALLS)]] == ["a", "c", "d"]  # a class without images has no rows
    for name, recall, precision in table:
        number = scores.classes.index(name)
        precisions, recalls, _ = precision_recall_curve(scores.labels == number, scores.probabilities[:, number])
        # sklearn ends its curve with precision 1 at recall 0, which corresponds to no threshold.
        assert precision == pytest.approx(precisions[:-1][recalls[:-1] >= recall - 1e-9].max())


def test_a_long_curve_is_thinned_in_the_chart_only_and_its_title_says_so():
    curve = Curve("x", list(range(25_000)), {"y": [0.0] * 25_000})
    stride = rows.chart_stride(curve)
    assert len(curve.x[::stride]) <= rows.MAX_CHART_POINTS
    assert f"every {stride}th" in rows.curve_title(curve, stride)
    assert len(rows.curve_rows(curve)[1]) == 25_000


class FailingTracker(NullTracker):
    """Keep every call, and fail to close where `failure` says how."""

    def __init__(self, failure: str = ""):
        self.failure, self.calls = failure, []

    def record(self, record):
        self.calls.append(record)

    def finish(self, status, exit_code):
        self.calls.append((status, exit_code))
        if self.failure:
            raise ValueError(self.failure)


def test_several_trackers_are_all_closed_before_the_first_failure_is_raised():
    trackers = [FailingTracker(), FailingTracker("first"), FailingTracker("second"), FailingTracker()]
    tracker, record = MultiTracker(trackers), epoch(1)
    tracker.record(record)
    with pytest.raises(ValueError, match="first") as caught:
        tracker.finish("finished", 0)
    assert all(each.calls == [record, ("finished", 0)] for each in trackers)
    assert any("second" in note for note in caught.value.__notes__)


def test_a_journal_is_followed_by_its_whole_lines_each_once_and_from_its_beginning_after_a_cut(tmp_path):
    journal = write(tmp_path / "whole", [epoch(1), epoch(2), epoch(3)])
    journal.alert("a title", "no record")
    journal.finish("finished", 0)
    content, path = journal.path.read_bytes(), tmp_path / "journal.jsonl"
    assert follow_journal(tmp_path, 0) == ([], 0)
    seen, offset = [], 0
    for length in [*range(0, len(content), 61), len(content)]:  # as it grows
        path.write_bytes(content[:length])
        records, offset = follow_journal(tmp_path, offset)
        assert offset == content.rfind(b"\n", 0, length) + 1
        seen += records
    assert same(seen, [epoch(1), epoch(2), epoch(3)]) and follow_journal(tmp_path, offset) == ([], offset)
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))  # a resumed run has cut it
    records, offset = follow_journal(tmp_path, offset)
    assert same(records, [epoch(1), epoch(2)]) and offset == sum(map(len, lines[:3]))
    path.write_bytes(lines[1] + encode_line({"kind": "epoch", "step": "3"}) + lines[2])  # a line that is no record
    assert same(follow_journal(tmp_path, 0)[0], [epoch(1), epoch(2)])


def test_a_line_that_is_no_json_ends_a_journal_of_version_0_1(tmp_path):
    write(tmp_path, [epoch(1), epoch(2)]).finish("finished", 0)
    lines = [from_line(line) for line in (tmp_path / "journal.jsonl").read_bytes().splitlines()]
    plain = [to_line({key: value for key, value in line.items() if key != "crc32"}) for line in lines]
    (tmp_path / "journal.jsonl").write_bytes(b"".join([*plain[:2], b"no JSON\n", *plain[2:]]))
    contents = read_journal(tmp_path)
    assert same(contents.records, [epoch(1)]) and not contents.whole


def test_a_journal_that_cannot_be_read_or_written_is_named_with_the_remedy(tmp_path):
    with pytest.raises(CheckpointError, match=r"journal\.jsonl is missing .*; start again with --resume never"):
        Journal.resume(tmp_path, 3)
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot read .*journal\.jsonl: .*; start again with --resume never"):
        Journal.resume(tmp_path, 3)
    journal = write(tmp_path / "run", [])
    (tmp_path / "run" / "media").write_text("in the way of the folder of the images")
    with pytest.raises(ResourceError, match=r"cannot write .*run: File exists"):
        journal.record(Record(1, 1, {"picture": image(1)}, kind="final"))
    journal.record(epoch(1))
    journal.finish("failed", 6)
    assert same(read_journal(tmp_path / "run").records, [epoch(1)])
    with pytest.raises(RuntimeError, match=r"journal\.jsonl is closed"):
        journal.record(epoch(2))


def test_an_image_that_cannot_be_written_leaves_no_partial_file(tmp_path, monkeypatch):
    journal = write(tmp_path, [])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # as on a full disk
        with pytest.raises(ResourceError, match="File too large; free some space, then run the same command again"):
            journal.record(Record(1, 1, {"picture": image(1)}, kind="final"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "media").iterdir())
    journal.record(Record(1, 1, {"picture": image(1)}, kind="final"))
    journal.finish("finished", 0)
    assert same(read_journal(tmp_path).records[0].values["picture"].pixels.tolist(), image(1).pixels.tolist())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Image(np.zeros((4, 4, 3), np.float32)), r"need uint8 pixels \[H, W, 3\], got float32 \[4, 4, 3\]"),
        (lambda: Image(np.zeros((4, 4), np.uint8)), r"got uint8 \[4, 4\]"),
        (lambda: Table(("a", "b"), [("x", 1), ("y",)]), r"need 2 cells a row \(a, b\), got 1"),
        (lambda: Curve("lr", [1, 2], {"loss": [3.0]}), "line 'loss' has 1 points, its axis 'lr' has 2"),
        (lambda: TableChart("rates", "ROC", Table(("x", "y"), [])), "a chart has three columns, got x, y"),
        (lambda: Histogram([1, 2], [0.0, 1.0]), "need one edge more than counts, got 2 and 2"),
    ],
)
def test_a_value_whose_parts_do_not_fit_is_refused_where_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()
