"""A run has the same content in W&B whether it was online, or uploaded by `wandb sync` or by `harness sync`."""

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from harness.config.settings import Config
from harness.tracking.journal import Journal
from harness.tracking.records import Artifact
from harness.tracking.tracker import MultiTracker
from harness.tracking.wandb import init
from harness.tracking.wandb import sync as wandb_sync
from tests.support.records import epoch, final
from tests.support.wandb_content import content
from tests.support.wandb_server import KEY, Server

PROCESS = {
    "started": 1_700_000_000.0, "host": "trainer", "program": "/opt/harness", "args": ["run", "--seed", "3"], "root": "/data",
    "executable": "/usr/bin/python3", "python": "CPython 3.12.1", "os": "Linux-5", "cpu_count": 64,
    "git": {"commit": "c" * 40, "remote": "https://example.org/r.git"},
}  # fmt: skip


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A git repository with a commit and a remote, as the working directory of a run."""
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    git(folder, "remote", "add", "origin", "https://example.org/training.git")
    return folder


def train(folder, mode, run_id="r", epochs=2, first=1, status="finished"):
    """Write a run of some epochs with a value of each kind, and an artifact, to its journal and to W&B."""
    config = Config(
        epochs=2, peak_epoch=1, wandb=mode, group="g", tags=("a", "b"), notes="n", name="named", finish_timeout=20
    )
    records = [timed(epoch(number)) for number in range(1, epochs + 1)]
    resumed = 3 * (first - 1) or None
    if resumed:
        journal = Journal.resume(folder, resumed)
    else:
        journal = Journal(folder, {"config": config.to_dict(), "process": PROCESS})
    tracker = init.start(
        config,
        folder,
        run_name="named",
        run_id=run_id,
        resumed_step=resumed,
        earlier=records[: first - 1],
        notify=print,
    )
    both = MultiTracker([journal, tracker])
    (folder / "diff.patch").write_text("a change")
    tracker.file(folder / "diff.patch")
    for record in records[first - 1 :]:
        both.record(record)
        tracker.console(f"epoch {record.epoch}\n")
    if status == "finished":
        both.record(timed(final(3 * epochs)))
        weights = folder / "weights.bin"
        weights.write_bytes(b"weights")
        both.artifact(Artifact("model", "model", {"weights.bin": weights}, ("best", "latest"), {"acc": 0.2}))
    both.summary({"val/acc": 0.99, "status": status})
    both.finish(status, 0 if status == "finished" else 143)


def timed(record):
    """The record with times of its own: two seconds a step."""
    first = PROCESS["started"] + 10
    times = [first + 2 * step for step in record.steps.x] if record.steps is not None else ()
    return replace(record, time=first + 2 * record.step + (record.kind == "final"), step_times=times)


def to_server(monkeypatch, server):
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)


def moved(folder, name):
    """The run directory on another machine: under another path, without the original."""
    target = folder.parent / "copied" / name
    shutil.copytree(folder, target, symlinks=True)
    return target


def without_runtime(rows):
    """W&B counts the seconds of a process from its own clock."""
    return [{key: value for key, value in row.items() if key != "_runtime"} for row in rows]


@pytest.mark.slow
def test_an_online_run_and_its_twins_by_wandb_sync_and_by_harness_sync_have_the_same_content(
    tmp_path, monkeypatch, repository
):
    contents = {}
    monkeypatch.setenv("WANDB_HOST", "trainer")
    monkeypatch.chdir(repository)
    with Server() as server:
        to_server(monkeypatch, server)
        train(tmp_path / "online", "online")
        contents["online"] = content(server, "r")
    offline = tmp_path / "offline"
    train(offline, "offline")
    copies = [moved(offline, name) for name in ("wandb", "harness", "journal")]
    shutil.rmtree(copies[2] / "wandb")
    monkeypatch.setenv("WANDB_HOST", "laptop")
    monkeypatch.chdir(tmp_path)
    with Server() as server:
        to_server(monkeypatch, server)
        (log,) = (offline / "wandb").glob("offline-run-*")  # not moved: W&B finds its artifacts by absolute paths
        subprocess.run([sys.executable, "-m", "wandb", "sync", str(log)], check=True, capture_output=True, timeout=60)
        contents["wandb sync"] = content(server, "r")
    shutil.rmtree(offline)
    monkeypatch.setenv("WANDB_RUN_ID", "r")  # of the copy that has lost W&B's folder, and with it the id
    for folder in copies[1:]:
        with Server() as server:
            to_server(monkeypatch, server)
            result = wandb_sync.sync(folder, print)
            assert result.steps == len(server.history)
            contents[folder.name] = content(server, next(iter(server.runs)))

    # The two uploads of one log are equal in everything; W&B's own command notes itself as the program.
    first, second = contents["wandb sync"], contents["harness"]
    assert first["provenance"].pop("program") != contents["online"]["provenance"]["program"]
    assert second["provenance"].pop("program") == contents["online"]["provenance"].pop("program")
    assert first["files"].pop("output.log") == ""  # the run itself has not captured its console
    assert second == first
    assert second["provenance"]["commit"] == git(repository, "rev-parse", "HEAD")
    assert second["provenance"]["repo"] == "https://example.org/training.git"
    assert second["provenance"]["host"] == second["metadata"]["host"] == "trainer"
    assert [row["_timestamp"] for row in second["history"]] == [
        PROCESS["started"] + 10 + 2 * step for step in range(1, 7)
    ] + [PROCESS["started"] + 23]
    assert second["events"]
    assert second["console"] == ["epoch 1", "epoch 2"]

    # The online run is another process: times differ, and how often the system was measured.
    online = contents["online"]
    for twin in (online, second):
        twin["history"] = without_runtime(twin["history"])
        twin["summary"] = without_runtime([twin["summary"]])
        del twin["metadata"]["startedAt"], twin["metadata"]["root"], twin["config"]["wandb"]
        del twin["events"]
    assert second == online

    # From the journal alone: what it has of the machine, and no system metrics.
    journal = contents["journal"]
    assert (
        journal["provenance"] | {"commit": "c" * 40, "repo": PROCESS["git"]["remote"], "host": "trainer"}
        == journal["provenance"]
    )
    assert (journal["metadata"]["args"], journal["metadata"]["program"]) == (PROCESS["args"], PROCESS["program"])
    assert journal["metadata"]["startedAt"].startswith("2023-11-14T22:13:20")
    del journal["config"]["wandb"]
    for field in ("config", "metrics", "exit code"):
        assert journal[field] == online[field], field
    assert without_runtime(journal["history"]) == online["history"]
    assert without_runtime([journal["summary"]]) == online["summary"]
    assert journal["artifacts"] == online["artifacts"]
    assert journal["files"].items() <= online["files"].items()
    assert online["files"].keys() - journal["files"].keys() == {"requirements.txt"}
    runtimes = [row["_runtime"] for row in journal["history"]]
    assert runtimes == [12.0, 14.0, 16.0, 18.0, 20.0, 22.0, 23.0]
