"""One run in two processes (gloo, on the CPU) against the same run in one."""

import csv
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.config.settings import Config
from harness.data.device_loader import count_steps
from harness.runs.components import build_components
from harness.tracking.journal import read_journal
from harness.tracking.run_dir import read_state
from harness.training.distributed import SingleProcess, init_distributed
from harness.utils.errors import UsageError
from tests.support.commands import command
from tests.support.forked import begin

TINY = [
    "--recipe", "digits", "--model-args", "width=4", "--threads", "1", "--precision", "fp32", "--batch-size", "128",
    "--eval-batch-size", "50", "--epochs", "3", "--gallery", "0", "--wandb", "disabled", "--name", "r",
]  # fmt: skip
SMOOTH = ["--model", "test_convnext", "--image-size", "32"]  # timm's own; it has no BatchNorm


def ranks(*words, cwd, count=2, faults=None, variables=None, wait=True):
    """`harness` as torchrun starts it, `count` times, forked so that it is quick."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        begin(
            *words,
            cwd=cwd,
            fault=(faults or {}).get(rank, ""),
            variables={
                **(variables or {}),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(count)
    ]
    return [running.end(100) for running in started] if wait else started


def epochs(folder):
    return [record for record in read_journal(folder).records if record.kind == "epoch"]


def losses(folder):
    return np.concatenate([record.steps.lines["train/step_loss"] for record in epochs(folder)])


def figures(folder, *keys):
    return np.array([[record.values[key] for key in keys] for record in epochs(folder)])


def weights(folder):
    return load_file(folder / "checkpoints/model.safetensors")


def close(first, second, tolerance):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.allclose(first[name].double(), second[name].double(), rtol=tolerance, atol=tolerance), name


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(what each of two processes printed, the folder) of a run that was not disturbed."""
    folder = tmp_path_factory.mktemp("two")
    ended = ranks("run", *TINY, cwd=folder)
    assert [one.code for one in ended] == [0, 0], ended
    return ended, folder / "runs/r"


def test_the_processes_have_every_thing_once_between_them():
    for count in (1, 2, 3, 8):
        for things in (0, 1, 2, 7, 128, 359):
            parts = []
            for rank in range(count):
                one = SingleProcess()
                one.rank, one.world_size = rank, count
                parts.append(list(range(things))[one.shard(things)])
            assert list(itertools.chain(*parts)) == list(range(things))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_last_batch_that_does_not_give_each_process_two_images_is_left_out():
    assert count_steps(100, 24, False, 4) == (5, 100)
    assert count_steps(99, 24, False, 4) == (4, 96)


def test_two_processes_train_as_one_that_computes_each_batch_in_two_parts(two, tmp_path):
    """The parts have the same images, so batch normalisation sees the same; only its running statistics are merged otherwise."""
    command("run", *TINY, "--grad-accumulation", 2, cwd=tmp_path, check=0)
    one = tmp_path / "runs/r"
    assert len(losses(one)) == 33
    np.testing.assert_allclose(losses(one), losses(two[1]), rtol=2e-4)
    np.testing.assert_array_equal(figures(one, "train/acc", "lr"), figures(two[1], "train/acc", "lr"))

    def trained(folder):
        return {
            key: value
            for key, value in weights(folder).items()
            if ".bn.running" not in key and "num_batches" not in key
        }

    close(trained(one), trained(two[1]), 2e-3)


def test_only_the_first_process_writes_and_speaks(two):
    (first, second), folder = two
    assert (second.out, second.err) == ("", "")
    assert "test accuracy" in first.out and first.err.count("epoch ") >= 3
    assert [path.name for path in folder.parent.iterdir()] == ["r"]
    assert read_state(folder) == "finished"
    assert read_journal(folder).header["environment"]["processes"] == 2
    assert "--nproc-per-node 2 -m harness run" in json.loads((folder / "status.json").read_text()).get(
        "resume", "--nproc-per-node 2 -m harness run"
    )


def test_the_figures_of_an_evaluation_are_those_of_its_predictions(two):
    """Of 359 test images one process has 179, the other 180; the final predictions are made by one alone."""
    folder = two[1]
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 359
    right = sum(row["label"] == row["prediction"] for row in rows) / 359
    assert epochs(folder)[-1].values["test/acc"] == pytest.approx(right)
    loss = np.mean([float(row["loss"]) for row in rows])
    assert epochs(folder)[-1].values["test/loss"] == pytest.approx(loss, rel=1e-4)


def test_a_model_without_batch_normalisation_gives_the_figures_of_one_process(tmp_path):
    words = [
        "run",
        *(word for word in TINY if word not in ("--model-args", "width=4")),
        *SMOOTH,
        "--epochs",
        "2",
        "--drop-last",
        "False",
        "--clip-grad",
        "1",
        "--ema",
        "0.9",
    ]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert [one.code for one in ranks(*words, cwd=tmp_path / "a")] == [0, 0]
    command(*words, cwd=tmp_path / "b", check=0)
    both = [tmp_path / place / "runs/r" for place in "ab"]
    np.testing.assert_allclose(*map(losses, both), rtol=1e-3)
    keys = ("train/loss", "test/loss")
    np.testing.assert_allclose(*(figures(folder, *keys) for folder in both), rtol=1e-3)
    np.testing.assert_allclose(*(figures(folder, "train/acc", "test/acc") for folder in both), atol=0.006)


def test_a_stop_sent_to_one_process_stops_both_after_the_same_update_and_they_go_on_to_the_same_figures(two, tmp_path):
    ended = ranks("run", *TINY, cwd=tmp_path, faults={1: "term@step=14"})
    assert [one.code for one in ended] == [143, 143], ended
    folder = tmp_path / "runs/r"
    assert json.loads((folder / "status.json").read_text())["state"] == "preempted"
    state = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    assert 14 <= state["progress"]["step"] <= 16
    assert [one.code for one in ranks("run", *TINY, cwd=tmp_path)] == [0, 0]
    np.testing.assert_allclose(losses(folder), losses(two[1]), rtol=1e-5)
    close(weights(folder), weights(two[1]), 1e-4)


@pytest.mark.parametrize(
    ("fault", "why"),
    [("kill", "is gone without a word"), pytest.param("raise", "deliberate fault", marks=pytest.mark.slow)],
)
def test_a_process_that_is_lost_ends_the_run_with_its_rank_and_reason_and_the_run_can_go_on(two, tmp_path, fault, why):
    first, second = ranks("run", *TINY, "--checkpoint-every", "5", cwd=tmp_path, faults={1: f"{fault}@step=14"})
    assert second.code == (-signal.SIGKILL if fault == "kill" else 1)
    assert first.code == 1
    assert len(first.errors) == 1 and "rank 1 of 2" in first.errors[0] and why in first.errors[0]
    folder = tmp_path / "runs/r"
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed" and why in status["reason"] and "torchrun" in status["resume"]
    assert [one.code for one in ranks("run", *TINY, "--checkpoint-every", "5", cwd=tmp_path)] == [0, 0]
    np.testing.assert_allclose(losses(folder), losses(two[1]), rtol=1e-5)


@pytest.mark.slow
def test_a_leader_that_is_killed_ends_the_others_within_a_minute(tmp_path):
    first, second = ranks("run", *TINY, cwd=tmp_path, faults={0: "kill@step=14"})
    assert first.code == -signal.SIGKILL and second.code == 1
    assert "rank 1: " in second.err


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one_and_the_other_way_round(two, tmp_path):
    assert [one.code for one in ranks("run", *TINY, cwd=tmp_path, faults={0: "term@step=14"})] == [143, 143]
    command("run", *TINY, "--grad-accumulation", 1, cwd=tmp_path, check=0)
    folder = tmp_path / "runs/r"
    np.testing.assert_allclose(losses(folder)[:14], losses(two[1])[:14], rtol=1e-5)
    assert len(losses(folder)) == 33 and np.isfinite(losses(folder)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "loader", [["--loader", "timm", "--workers", "1"], ["--augment", "albumentations", "--workers", "1"]]
)
def test_the_timm_loader_gives_two_processes_the_batches_of_one(tmp_path, loader):
    words = ["run", *TINY, *loader, "--epochs", "2"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert [one.code for one in ranks(*words, cwd=tmp_path / "a")] == [0, 0]
    command(*words, "--grad-accumulation", 2, cwd=tmp_path / "b", check=0)
    np.testing.assert_allclose(*(losses(tmp_path / place / "runs/r") for place in "ab"), rtol=1e-3)


def test_a_run_that_diverges_in_one_process_diverges_in_both(tmp_path):
    first, second = ranks("run", *TINY, "--lr-max", "1e6", cwd=tmp_path)
    assert (first.code, second.code) == (5, 5)
    assert len(first.errors) == 1 and "diverged" in first.errors[0] and second.err == ""


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--lr-max", "find"], "run `harness lr-find` first"),
        (["--auto-batch"], "auto_batch=True would split"),
        (["--sync-bn"], "sync_bn=True needs GPUs"),
        (["--batch-size", "3"], "two images each; set --batch-size 4"),
        (["--recipe", "none"], "no recipe 'none'"),
        (["--no-such-thing"], "no such option"),
    ],
)
def test_what_several_processes_can_not_do_is_refused_in_one_line_by_the_first(tmp_path, words, why):
    first, second = ranks("run", *TINY, *words, cwd=tmp_path)
    assert (first.code, second.code) == (2, 2), (first.err, second.err)
    assert len(first.errors) == 1 and why in first.errors[0] and second.err == ""


def test_a_command_for_one_process_is_refused_under_torchrun(tmp_path):
    first, second = ranks("find", "--recipe", "digits", cwd=tmp_path)
    assert (first.code, second.code) == (2, 2)
    assert len(first.errors) == 1 and "without torchrun" in first.errors[0] and second.err == ""


@pytest.mark.slow
def test_gradients_are_exchanged_once_an_update_however_many_parts_a_batch_has(tmp_path):
    """Counted in the process itself: a hook of DistributedDataParallel sees every exchange of a bucket."""
    script = """
import sys, torch, torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from harness.config.recipe import make_config
from harness.runs.components import build_components
from harness.training.distributed import init_distributed
processes = init_distributed("cpu", 60)
torch.manual_seed(0)
parts = build_components(make_config({"recipe": "digits", "model_args": "width=4", "grad_accumulation": 4, "precision": "fp32"}), processes)
exchanged = []
def counted(state, bucket):
    exchanged.append(bucket.buffer().numel())
    return allreduce_hook(dist.group.WORLD, bucket)
parts.learner.parallel.register_comm_hook(None, counted)
feed = parts.loaders.train.epoch(0)
for step in range(3):
    images, labels = next(feed)
    assert len(images) == 32, len(images)
    parts.learner.train_step(images, labels, step, 0.01, 0.9, 64)
buckets = len(exchanged) // 3
assert sum(exchanged) == 3 * sum(p.numel() for p in parts.learner.model.parameters()), exchanged
processes.close()
print("counted", buckets)
"""
    done = torchrun("script.py", cwd=tmp_path, script=script)
    assert done.returncode == 0 and done.stdout.count("counted") == 2, done.stdout + done.stderr


def torchrun(*words, cwd, script=""):
    if script:
        (cwd / words[0]).write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_torchrun_itself_starts_stops_and_goes_on(two, tmp_path):
    done = torchrun("-m", "harness", "run", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "runs/r"), losses(two[1]), rtol=1e-5)
    assert done.stdout.count("test accuracy") == 1


@pytest.mark.slow
def test_the_processes_of_a_torchrun_that_is_killed_save_and_stop(two, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    line = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "harness",
        "run",
    ]
    words = [*TINY, "--epochs", "2000", "--peak-epoch", "5"]
    with subprocess.Popen([*line, *words], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as started:
        status, began = tmp_path / "runs/r/status.json", time.monotonic()
        while json.loads(status.read_text() if status.exists() else "{}").get("epoch", 0) < 3:
            assert started.poll() is None and time.monotonic() - began < 120
            time.sleep(0.1)
        started.kill()
    while read_state(tmp_path / "runs/r") == "running":
        assert time.monotonic() - began < 180
        time.sleep(0.1)
    assert read_state(tmp_path / "runs/r") == "preempted"


def test_one_process_is_no_group(monkeypatch):
    assert type(init_distributed("cpu", 10)) is SingleProcess
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert type(init_distributed("cpu", 10)) is SingleProcess


def test_a_part_of_an_evaluation_is_its_images_in_order():
    parts = build_components(Config(recipe="digits", data="digits", model_args={"width": 4}, precision="fp32"))
    whole = torch.cat([labels for _, labels in parts.loaders.test])
    told = []
    for rank in range(3):
        one = SingleProcess()
        one.rank, one.world_size = rank, 3
        part = parts.loaders.test.shard(one)
        told.append(torch.cat([labels for _, labels in part]))
        assert part.num_images == len(told[-1])
    assert torch.equal(torch.cat(told), whole)


def test_a_named_gpu_for_all_processes_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(UsageError, match="can not be every process' own"):
        init_distributed("cuda:1", 10)
