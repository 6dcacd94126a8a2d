"""What a run uses and makes, as the real client of W&B sends it to a server on the loopback."""

import json
import re
import subprocess
import sys
import threading
import time

import pytest

from harness.config.settings import Config, setting_fields
from harness.tracking import lineage
from harness.tracking.journal import Journal, read_journal
from harness.tracking.journal_lines import encode_line
from harness.tracking.records import Artifact, Reference
from harness.tracking.uploadable import read_uploadable
from harness.tracking.wandb import init, sync
from harness.tracking.wandb.session import known_run_id, note_sent
from harness.utils.errors import DataError, UsageError
from tests.support.lineage_server import LineageServer
from tests.support.records import epoch
from tests.support.wandb_files import offline_runs
from tests.support.wandb_server import KEY

SLIM = ("X_DISABLE_STATS", "DISABLE_GIT", "X_DISABLE_MACHINE_INFO")
FACTS = {"name": "folder", "classes": ["cat", "dog"], "images": {"train": 8, "test": 2}, "fingerprint": "ab" * 32}


@pytest.fixture(autouse=True)
def slim(monkeypatch):
    """W&B without system statistics and git, which take time."""
    for name in SLIM:
        monkeypatch.setenv(f"WANDB_{name}", "true")
    monkeypatch.setenv("WANDB_X_SAVE_REQUIREMENTS", "false")


@pytest.fixture
def server(monkeypatch):
    with LineageServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server


@pytest.fixture
def track(tmp_path):
    """Return a function that tracks one run with artifacts in a directory of its own and returns the tracker."""

    def track(name, *artifacts, lines=None, journal=False, **settings):
        config = settings.pop("config", None) or make_config(tmp_path, **settings)
        folder = tmp_path / name
        folder.mkdir()
        written = Journal(folder, {"config": config.to_dict()}) if journal else None
        tracker = init.start(config, folder, run_name=name, notify=(lines if lines is not None else []).append)
        for make in artifacts:
            artifact = make(config, folder) if callable(make) else make
            tracker.artifact(artifact)
            if written:
                written.artifact(artifact)
        if written:
            written.finish("finished", 0)
        tracker.finish("finished", 0)
        return tracker

    return track


def make_config(folder, **settings):
    settings = {
        "data": "folder",
        "data_dir": str(folder / "pictures"),
        "wandb": "online",
        "finish_timeout": 20,
    } | settings
    return Config(**{name: value for name, value in settings.items() if name in setting_fields()})


def dataset(config, folder, **facts):
    return lineage.dataset_artifact(config, folder, FACTS | facts)


def model(weights, **facts):
    """Return a function that makes the model of a run from the bytes of its weights."""

    def make(config, folder):
        (folder / "model.safetensors").write_bytes(weights)
        about = {"epoch": 3, "selected_by": "val/acc", "fingerprint": "f", **facts}
        interim = about.pop("is_interim", False)
        files = {"model.safetensors": folder / "model.safetensors"}
        return lineage.model_artifact(config, files, about, is_best=not interim, is_interim=interim)

    return make


def upload_with_wandb(run_folder):
    """Upload the offline runs in a run directory with W&B's own command, which writes a log to the current folder."""
    command = [sys.executable, "-m", "wandb", "sync", "--yes", *(run.folder for run in offline_runs(run_folder))]
    subprocess.run(command, cwd=run_folder, check=True, capture_output=True, timeout=60)


def test_runs_on_equal_data_use_one_version_that_holds_its_classes_and_none_of_its_images(server, track, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/cat.png").write_bytes(b"pixels" * 1000)
    first, second = (track(name, dataset).url.rsplit("/", 1)[1] for name in ("one", "two"))
    (version,) = server.versions("folder-pictures")
    assert (version.kind, version.used_by, version.aliases) == ("dataset", [first, second], [])
    content = json.loads(version.files["dataset.json"])
    assert content == {"name": "folder", "fingerprint": FACTS["fingerprint"], "classes": ["cat", "dog"]}
    entry = version.manifest["data"]
    assert entry["ref"] == (tmp_path / "pictures").as_uri()
    assert entry["digest"] == version.metadata["fingerprint"] == FACTS["fingerprint"]
    assert set(version.files) == {"dataset.json", "manifest"} and server.uploaded_bytes() < 2000


@pytest.mark.slow
def test_changed_data_is_another_version_and_the_same_data_elsewhere_is_not(server, track, tmp_path):
    track("one", dataset)
    track("two", lambda config, folder: dataset(config, folder, fingerprint="cd" * 32))
    moved = make_config(tmp_path, data_dir=str(tmp_path / "elsewhere/pictures"))
    track("three", dataset, config=moved)
    assert [version.number for version in server.versions("folder-pictures")] == [0, 1]
    assert [len(version.used_by) for version in server.versions("folder-pictures")] == [2, 1]


def test_an_offline_run_declares_its_data_and_wandb_sync_uploads_that(server, track, tmp_path):
    track("off", dataset, wandb="offline")
    assert not server.artifacts
    upload_with_wandb(tmp_path / "off")
    (version,) = server.versions("folder-pictures")
    assert version.used_by == list(server.runs) and version.manifest["data"]["digest"] == FACTS["fingerprint"]


@pytest.mark.slow
def test_the_alias_best_stays_with_the_best_version_of_a_model(server, track):
    for name, score in (("one", 0.8), ("two", 0.9), ("three", 0.85)):
        track(name, model(name.encode(), score=score))
    (collection,) = {version.name for version in server.artifacts.values()}
    assert collection == "custom_resnet-folder-pictures"
    one, two, three = server.versions(collection)
    runs = list(server.runs)
    assert [sorted(version.aliases) for version in (one, two, three)] == [
        [f"run-{runs[0]}"],
        ["best", f"run-{runs[1]}"],
        ["epoch-3", "latest", f"run-{runs[2]}"],
    ]
    assert (two.metadata["score"], two.metadata["settings"]["lr_max"]) == (0.9, Config().lr_max)


@pytest.mark.parametrize(
    ("version", "former", "is_first"),
    [
        ({"score": 0.9}, {"score": 0.8}, True),
        ({"score": 0.8}, {"score": 0.8}, False),
        ({"score": 0.5}, {"score": 0.8, "fingerprint": "other data"}, True),
        ({"score": 0.5}, {"score": 0.8, "selected_by": "test/acc"}, True),
        ({"score": 0.5}, {"score": "unknown"}, True),
    ],
)
def test_versions_are_compared_only_by_the_same_metric_on_the_same_data(version, former, is_first):
    common = {"selected_by": "val/acc", "fingerprint": "f"}
    assert lineage.leads({**common, **version}, {**common, **former}) is is_first


@pytest.mark.slow
def test_offline_no_version_claims_to_be_the_best(server, track, tmp_path):
    track("off", model(b"weights", score=0.1), wandb="offline", journal=True)
    (artifact,) = [one for one in offline_runs(tmp_path / "off")[0].artifacts if one["type"] == "model"]
    assert "best" not in artifact["aliases"]
    sync.sync(tmp_path / "off", print)
    (version,) = server.artifacts.values()
    assert "best" in version.aliases


def test_a_model_of_an_epoch_during_training_expires_and_is_not_in_the_journal(server, track, tmp_path):
    making = [model(b"early", epoch=2, score=0.5, is_interim=True), model(b"result", score=0.6)]
    track("one", *making, journal=True, model_ttl=3)
    early, result = server.artifacts.values()
    assert (early.ttl, early.aliases) == (3 * 86_400, ["epoch-2"])
    assert result.ttl is None and {"best", "latest"} < set(result.aliases)
    (kept,) = read_journal(tmp_path / "one").artifacts
    assert kept.metadata["epoch"] == 3


@pytest.mark.parametrize("keeps_aliases", [False, True])
def test_a_model_of_an_epoch_that_is_the_result_as_well_is_kept_as_the_result(server, track, keeps_aliases):
    server.keeps_aliases = keeps_aliases
    making = [model(b"same", epoch=2, score=0.5, is_interim=True), model(b"same", score=0.6)]
    tracker = track("one", *making, model_ttl=3)
    (version,) = server.artifacts.values()
    assert {"best", "latest", "epoch-3", f"run-{tracker.url.rsplit('/', 1)[1]}"} <= set(version.aliases)
    assert (version.ttl, version.metadata["epoch"], version.metadata["score"]) == (None, 3, 0.6)


def test_a_result_that_equals_that_of_another_run_has_an_alias_of_both_and_keeps_its_metadata(server, track):
    urls = [track(name, model(b"same", score=score)).url for name, score in (("one", 0.5), ("two", 0.6))]
    (version,) = server.artifacts.values()
    assert {f"run-{url.rsplit('/', 1)[1]}" for url in urls} < set(version.aliases)
    assert version.metadata["score"] == 0.5


@pytest.mark.slow
def test_the_upload_makes_a_model_of_an_epoch_the_result_that_the_run_had_no_time_to_log(server, track, tmp_path):
    track("one", model(b"same", epoch=2, score=0.5, is_interim=True), journal=True, model_ttl=3)
    folder = tmp_path / "one"
    config = make_config(tmp_path)
    journal = Journal.resume(folder, 10**6)
    journal.record(epoch(1))
    journal.artifact(model(b"same", score=0.6)(config, folder))
    journal.finish("finished", 0)
    sync.sync(folder, print)
    (version,) = server.artifacts.values()
    (run_id,) = server.runs
    assert {"best", "latest", "epoch-3", f"run-{run_id}"} <= set(version.aliases)
    assert (version.ttl, version.metadata["score"]) == (None, 0.6)


@pytest.mark.slow
def test_a_run_that_is_sent_anew_gives_its_model_the_alias_of_the_new_run(server, track, tmp_path):
    track("off", model(b"weights", score=0.5), wandb="offline", journal=True)
    sync.sync(tmp_path / "off", print)
    sync.sync(tmp_path / "off", print, anew=True)
    first, second = server.runs
    (version,) = server.artifacts.values()  # of equal content
    assert {f"run-{first}", f"run-{second}"} < set(version.aliases)
    server.artifacts.clear()
    sync.sync(tmp_path / "off", print, anew=True)
    (version,) = server.artifacts.values()
    assert [alias for alias in version.aliases if alias.startswith("run-")] == [f"run-{list(server.runs)[2]}"]


def test_a_model_is_linked_to_a_registry(server, track):
    lines = []
    track("one", model(b"weights", score=0.5), lines=lines, link="vision/cats")
    (version,) = server.artifacts.values()
    assert version.links == ["wandb-registry-vision/cats"] and not lines


@pytest.mark.parametrize(("log_model", "is_linked"), [("auto", False), ("end", True)])
def test_a_trial_of_a_sweep_says_at_its_start_that_its_model_is_not_linked(
    server, track, monkeypatch, log_model, is_linked
):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    lines = []
    track("one", lines=lines, link="vision/cats", log_model=log_model)
    assert bool(lines) is not is_linked
    if lines:
        assert (
            lines[0].startswith("link=vision/cats: the trials of a sweep log no model")
            and "--log-model end" in lines[0]
        )


@pytest.mark.slow
def test_offline_the_model_is_linked_by_the_upload_that_names_the_registry(server, track, tmp_path):
    lines = []
    tracker = track("off", model(b"weights", score=0.5), lines=lines, journal=True, wandb="offline", link="vision/cats")
    command = f"harness sync {tmp_path / 'off'} --link vision/cats"
    assert tracker.sync_command == command
    assert lines == [f"The model is not linked to vision/cats (W&B links only online). Link it later with: {command}"]
    sync.sync(tmp_path / "off", print)
    (version,) = server.artifacts.values()
    assert not version.links  # a run of somebody else does not decide what a registry gets
    sync.sync(tmp_path / "off", print, corrections={"link": "vision/cats"})
    (version,) = server.artifacts.values()
    assert version.links == ["wandb-registry-vision/cats"]


def test_a_run_without_a_model_is_not_uploaded_to_be_linked(server, track, tmp_path):
    track("off", dataset, journal=True, wandb="offline", log_model="never")
    with pytest.raises(UsageError, match="has no model to link"):
        sync.sync(tmp_path / "off", print, corrections={"link": "vision/cats"})
    assert not server.runs


def test_a_registry_that_refuses_is_reported_and_the_run_ends_well(server, track, monkeypatch):
    answer = server.answer
    monkeypatch.setattr(
        server, "answer", lambda name, given: {} if name == "FetchOrgInfoFromEntity" else answer(name, given)
    )
    lines = []
    tracker = track("one", model(b"weights", score=0.5), lines=lines, link="vision/cats")
    assert tracker.state == "online" and "not linked to vision/cats" in lines[0] and "harness sync" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["ArtifactMembershipByName", "FetchOrgInfoFromEntity", "LinkArtifact"])
def test_a_server_that_never_answers_a_question_about_artifacts_does_not_hold_up_the_end(
    server, track, monkeypatch, operation
):
    answer, end = server.answer, threading.Event()
    monkeypatch.setattr(
        server, "answer", lambda name, given: {} if name == operation and end.wait(60) else answer(name, given)
    )
    used = Artifact("m", "model", {}, is_input=True, version="p/m:run-1")
    began = time.monotonic()
    try:
        making = dataset, used, model(b"weights", score=0.5)
        tracker = track("one", *making, link="vision/cats", finish_timeout=2, wandb="auto")
        assert time.monotonic() - began < 15
        assert tracker.state == "online"
    finally:
        end.set()


def test_the_journal_gives_back_references_and_uses(tmp_path):
    given = Artifact(
        "d", "dataset", {}, metadata={"a": 1}, references={"data": Reference("file:///data", "12")}, is_input=True
    )
    journal = Journal(tmp_path, {})
    journal.artifact(given)
    journal.finish("finished", 0)
    assert read_journal(tmp_path).artifacts == [given]


@pytest.mark.slow
def test_a_foreign_journal_has_nothing_read_through_its_references(server, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"a secret")
    config = make_config(tmp_path)
    (tmp_path / "run").mkdir()
    journal = Journal(tmp_path / "run", {"config": config.to_dict()})
    journal.artifact(Artifact("d", "dataset", {}, references={"x": Reference(secret.as_uri(), "c")}, is_input=True))
    journal.artifact(Artifact("e", "model", {}, references={"y": Reference(f"{server.url}/inside", "c")}))
    journal.finish("finished", 0)
    sync.sync(tmp_path / "run", print)
    for version in server.artifacts.values():
        assert {entry["digest"] for entry in version.manifest.values()} == {"c"}


def test_the_class_names_are_in_the_artifact_and_only_their_number_in_the_config(server, tmp_path):
    extra = {"dataset": {**FACTS, "classes": [f"class {index}" for index in range(1000)]}}
    tracker = init.start(make_config(tmp_path), tmp_path, run_name="one", extra=extra)
    tracker.finish("finished", 0)
    (run,) = server.runs.values()
    assert run.config["dataset"] == {**FACTS, "classes": 1000}


@pytest.mark.parametrize("link", ["vision", "a/b/c", "/cats", "vision/", "vi:sion/cats", "vision/" + "c" * 200])
def test_a_link_that_wandb_would_refuse_is_refused_before_training(link, monkeypatch):
    from harness.tracking.wandb.limits import check_wandb_values

    with pytest.raises(UsageError, match="need REGISTRY/COLLECTION"):
        check_wandb_values(Config(link=link))


def test_a_link_of_a_model_that_is_never_logged_is_refused():
    with pytest.raises(UsageError, match="log_model=never"):
        Config(link="vision/cats", log_model="never")


def test_the_address_of_data_is_where_its_images_are(tmp_path):
    def address(data, **settings):
        return lineage.data_address(Config(data=data, **settings))

    assert address("digits") == ""  # of scikit-learn
    assert address("hfds/someone/flowers") == "https://huggingface.co/datasets/someone/flowers"
    assert address("folder", data_dir=str(tmp_path / "a b")) == f"file://{tmp_path}/a%20b"
    assert address("cifar10", data_dir=str(tmp_path)) == f"file://{tmp_path}"


def test_weights_that_were_copied_without_their_run_are_no_version_of_a_model(tmp_path):
    (tmp_path / "wandb").mkdir()
    note_sent(tmp_path / "wandb", "abc", 3)
    assert known_run_id(tmp_path) == "abc" and lineage.model_of_run(tmp_path) is None
    assert lineage.model_of_run(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("first_line", "message"),
    [
        (
            {"kind": "epoch", "step": 1, "epoch": 1, "values": {}},
            "the journal has lost its first line, and with it the settings",
        ),
        (
            {"kind": "header", "config": {"epochs": "many"}},
            "the journal's first line has no usable settings: epochs='many'",
        ),
        ({"kind": "header", "config": 5}, "the journal's first line has no usable settings"),
    ],
)
def test_a_journal_without_settings_is_not_uploaded(tmp_path, first_line, message):
    (tmp_path / "journal.jsonl").write_bytes(encode_line(first_line))
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}: {message}")):
        read_uploadable(tmp_path, {})
