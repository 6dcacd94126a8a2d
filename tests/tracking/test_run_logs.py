"""W&B's logs of a run directory as `harness sync` reads them: what they list, what is lost, and what no log may do."""

import os

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from wandb.proto import wandb_internal_pb2 as protobuf

from harness.tracking.wandb import offline_log, run_logs, sync
from harness.tracking.wandb.arrived import Arrived
from harness.utils.errors import TrackingError

RUN = protobuf.Record(run=protobuf.RunRecord(run_id="abc", project="p", tags=["a"]))


def write_log(folder, *records):
    """Write a log of the run `abc` and return its folder."""
    inner = folder / "wandb" / "offline-run-20260101_000000-abc"
    (inner / "files" / "media").mkdir(parents=True)
    (inner / "run-abc.wandb").write_bytes(
        offline_log.encode_log(record.SerializeToString() for record in (RUN, *records))
    )
    return inner


def row(step, **values):
    items = [protobuf.HistoryItem(key=key, value_json=text) for key, text in {"_step": str(step), **values}.items()]
    return protobuf.Record(history=protobuf.HistoryRecord(item=items, step=protobuf.HistoryStep(num=7)))


def artifact(digest, *entries, aliases=(), manifest=""):
    contents = [protobuf.ArtifactManifestEntry(path="x", local_path=str(path)) for path in entries]
    return protobuf.ArtifactRecord(
        name="m",
        type="model",
        digest=digest,
        aliases=aliases,
        manifest=protobuf.ArtifactManifest(contents=contents, manifest_file_path=str(manifest)),
    )


def listed(*names):
    return protobuf.Record(files=protobuf.FilesRecord(files=[protobuf.FilesItem(path=name) for name in names]))


def staged(folder, name, content="x"):
    path = folder / "wandb" / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def load(folder):
    content = run_logs.load(folder)
    content.choose_rows(content.artifacts.keys(), -1)
    return content


@pytest.mark.parametrize("number", ["[" * 100_000, "1" + "0" * 400, "{}", "null", "no JSON", "[[1]]"])
def test_a_number_that_is_none_is_no_step_and_no_runtime(tmp_path, number):
    write_log(tmp_path, row(1, _runtime="2.5"), row(number, _runtime=number))
    steps = list(load(tmp_path).rows)
    assert steps[0] == 1 and steps[1:] == ([10**400] if number.isdigit() else [7])


def test_only_the_files_below_the_log_that_are_no_links_are_those_of_the_run(tmp_path):
    inner = write_log(
        tmp_path, listed("media/a.png", "media/b.png", "media/gone.png", "../secret", "/etc/hostname", "sub/c")
    )
    (inner / "files/media/a.png").write_text("a")
    (inner / "files/media/b.png").symlink_to("a.png")
    (inner / "secret").write_text("outside")
    (inner / "files/sub").symlink_to("media")
    (inner / "files/media/c").write_text("c")
    assert load(tmp_path).files == {"media/a.png": inner / "files/media/a.png"}


def test_an_artifact_is_lost_where_one_of_its_files_is_and_found_where_the_folder_was_moved(tmp_path):
    staged(tmp_path, "weights")
    elsewhere = "/home/someone/runs/r/wandb/data"  # where the run was made
    write_log(
        tmp_path,
        protobuf.Record(artifact=artifact("whole", f"{elsewhere}/weights")),
        protobuf.Record(artifact=artifact("gone", f"{elsewhere}/weights", f"{elsewhere}/gone")),
        protobuf.Record(artifact=artifact("outside", "/etc/hostname")),
        protobuf.Record(
            request=protobuf.Request(
                log_artifact=protobuf.LogArtifactRequest(artifact=artifact("asked", f"{elsewhere}/weights"))
            )
        ),
    )
    content = load(tmp_path)
    assert [digest for _, digest in content.artifacts] == ["whole", "asked"]
    assert [digest for _, digest in content.lost] == ["gone", "outside"]
    assert content.files_of(("m", "whole")) == [tmp_path / "wandb/data/weights"]
    assert content.bytes_of([], [("m", "whole")]) == 1
    assert content.artifact_types().keys() == {("m", digest) for digest in ("whole", "asked", "gone", "outside")}


def test_the_artifact_of_the_result_is_not_replaced_by_that_of_an_epoch_with_equal_content(tmp_path):
    staged(tmp_path, "weights")
    result = artifact("same", "/r/wandb/data/weights", aliases=["latest", "run-abc"])
    epoch = artifact("same", "/r/wandb/data/weights", aliases=["epoch-3"])
    write_log(tmp_path, *(protobuf.Record(artifact=each) for each in (epoch, result, epoch)))
    assert list(load(tmp_path).artifacts["m", "same"].aliases) == ["latest", "run-abc"]


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ('{"contents": {"a": {"local_path": "/r/wandb/data/weights"}, "b": {"ref": "s3://x"}}}', True),
        ('{"contents": {"a": {"local_path": "/r/wandb/data/gone"}}}', False),
        ('{"contents": {"a": {"local_path": "/etc/hostname"}}}', False),
        ('{"contents": {"a": 5}}', False),
        ('{"contents": []}', False),
        ("[1]", False),
        ("no JSON", False),
        ("[" * 100_000, False),
        (None, False),
    ],
)
def test_the_manifest_of_an_artifact_of_many_files_is_read_from_its_own_file(tmp_path, text, is_found):
    staged(tmp_path, "weights")
    if text is not None:
        staged(tmp_path, "manifest", text)
    write_log(tmp_path, protobuf.Record(artifact=artifact("d", manifest="/r/wandb/data/manifest")))
    content = load(tmp_path)
    assert (("m", "d") in content.artifacts, ("m", "d") in content.lost) == (is_found, not is_found)
    if is_found:
        weights = tmp_path / "wandb/data/weights"
        assert content.files_of(("m", "d")) == [weights] and content.manifests["m", "d"]["contents"]["b"] == {
            "ref": "s3://x"
        }


def test_a_part_of_a_run_has_its_settings_the_files_that_are_named_and_the_events_since_then(tmp_path):
    def stats(seconds):
        return protobuf.Record(stats=protobuf.StatsRecord(timestamp=Timestamp(seconds=seconds)))

    output = protobuf.Record(output_raw=protobuf.OutputRawRecord(line="x", timestamp=Timestamp(seconds=30)))
    alert = protobuf.Record(alert=protobuf.AlertRecord(title="t"))  # which has no time
    inner = write_log(tmp_path, listed("media/a.png", "config.yaml"), row(1), stats(10), stats(20), output, alert)
    for name in ("media/a.png", "config.yaml"):
        (inner / "files" / name).write_text("x")
    content = load(tmp_path)
    content.exit_code = 3

    def part(after, **changes):
        return list(run_logs.select(content, rows=[1], files=content.files, artifacts=[], after=after, changes=changes))

    records = part(20.0, tags=["b", "c"], project="q", notes="")
    assert (list(records[0].run.tags), records[0].run.project, records[0].run.resume) == (["b", "c"], "q", True)
    kinds = protobuf.FilesItem.FileType
    (files,) = [each.files.files for each in records if each.HasField("files")]
    assert {(each.path, each.type) for each in files} == {("media/a.png", kinds.MEDIA), ("config.yaml", kinds.WANDB)}
    assert [each.WhichOneof("record_type") for each in records[2:]] == ["history", "stats", "output_raw", "exit"]
    assert records[-1].exit.exit_code == 3
    # Of a run that W&B has nothing of all events are sent.
    assert [each.WhichOneof("record_type") for each in part(0.0)].count("alert") == 1
    assert list(part(0.0, tags=[])[0].run.tags) == [] and list(part(0.0)[0].run.tags) == ["a"]


def test_a_table_that_each_row_has_made_anew_need_not_arrive(tmp_path):
    def table(step, name):
        return row(step, table=f'{{"artifact_path": "wandb-client-artifact://{name}/t.table.json"}}')

    content = run_logs.RunContent()
    for step, names in {1: ("old", "new"), 2: ("kept",)}.items():
        content.candidates[step] = [run_logs.Row(table(step, name).history, []) for name in names]
    content.rows = {1: content.candidates[1][1], 2: content.candidates[2][0]}
    assert content.replaced_tables() == {"old"}
    del content.rows[1]  # no row of that step is sent
    assert content.replaced_tables() == set()


def test_a_damaged_log_is_read_up_to_the_damage_and_what_is_no_log_has_no_records(tmp_path):
    path = tmp_path / "run-abc.wandb"
    assert list(offline_log.read_log(path)) == []
    payloads = [RUN.SerializeToString(), b"\xff\xff\xff", row(3).SerializeToString()]
    content = offline_log.encode_log(payloads)
    path.write_bytes(content)
    assert [each.WhichOneof("record_type") for each in offline_log.read_log(path)] == ["run", "history"]
    assert offline_log.last_step(path) == 3
    for position in range(len(content) - 3, len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        assert [each.WhichOneof("record_type") for each in offline_log.read_log(path)] == ["run"]
    os.unlink(path)
    os.mkfifo(path)
    assert list(offline_log.read_log(path)) == []


@pytest.mark.parametrize("size", range(32_747, 32_757))
def test_a_log_whose_record_ends_at_the_end_of_a_block_is_read_back(size):
    payloads = [bytes(size), b"next", b""]
    log = offline_log.encode_log(payloads)
    assert list(offline_log.records(log)) == payloads
    # A block that holds nothing more is filled with zeros, as LevelDB's logs are.
    header = offline_log.FILE_HEADER
    more = offline_log.encode_log([b"more"])[len(header) :]
    assert list(offline_log.records(log + bytes(-len(log) % 32_768) + more)) == [*payloads, b"more"]


MISSING = {"rows": [], "files": [], "artifacts": [], "gap": 0, "lost": [], "end": False}


@pytest.mark.parametrize(
    ("missing", "why", "message"),
    [
        ({"gap": 2}, "", "W&B has 5 of 3 steps of {folder} and accepts none before its latest; {anew}"),
        ({"lost": ["model-r"]}, "", "W&B lacks 1 artifacts of {folder} (model-r) that W&B's folder has lost; {anew}"),
        ({"end": True}, "", "W&B lacks the end of {folder}; {again}"),
        (
            {"rows": [7, 8], "files": ["a.png"], "artifacts": [("model-r", "d")]},
            "not uploaded within 60 s",
            "W&B lacks 2 steps (7, ...), 1 files (a.png), 1 artifacts (model-r) of {folder}: not uploaded within 60 s; {again}",
        ),
    ],
)
def test_what_wandb_lacks_in_the_end_is_named_with_the_command_that_sends_it(tmp_path, missing, why, message):
    folder = tmp_path / "a run"
    content, arrived = run_logs.RunContent(rows=dict.fromkeys((1, 2, 3))), Arrived("e/p/abc", rows=5)
    anew = f"send all of them as a new W&B run with: harness sync --anew '{folder}'"
    again = f"the same command sends them again, with more patience by --timeout: harness sync --timeout 600 '{folder}'"
    with pytest.raises(TrackingError) as refused:
        sync._check_complete(content, folder, arrived, sync._Missing(**{**MISSING, **missing}), why)
    assert str(refused.value) == message.format(folder=folder, anew=anew, again=again)
    sync._check_complete(content, folder, arrived, sync._Missing(**MISSING), why)
