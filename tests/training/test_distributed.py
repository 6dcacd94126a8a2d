"""A run in two processes (gloo, on the CPU) against the same run in one."""

import csv
import itertools
import json
import os
import re
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
    "--recipe", "digits", "--image-size", "16", "--model-args", "width=4", "--threads", "1", "--precision", "fp32", "--batch-size", "128",
    "--eval-batch-size", "50", "--epochs", "3", "--gallery", "0", "--wandb", "disabled", "--name", "r",
]  # fmt: skip
SMOOTH = ["--model", "test_convnext", "--image-size", "32"]  # of timm, without BatchNorm


def ranks(*words, cwd, count=2, faults=None, variables=None, wait=True):
    """Start `count` processes of `harness` as torchrun does, forked to save their imports."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
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
    return [process.end(100) for process in processes] if wait else processes


def epochs(folder):
    return [record for record in read_journal(folder).records if record.kind == "epoch"]


def losses(folder):
    return np.concatenate([record.steps.lines["train/step_loss"] for record in epochs(folder)])


def metrics(folder, *keys):
    return np.array([[record.values[key] for key in keys] for record in epochs(folder)])


def weights(folder):
    return load_file(folder / "checkpoints/model.safetensors")


def assert_close(first, second, tolerance):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.allclose(first[name].double(), second[name].double(), rtol=tolerance, atol=tolerance), name


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """An uninterrupted run in two processes: (the ended processes, the run directory)."""
    folder = tmp_path_factory.mktemp("two")
    ended = ranks("run", *TINY, cwd=folder)
    assert [process.code for process in ended] == [0, 0], ended
    return ended, folder / "runs/r"


def test_the_shards_of_the_processes_are_disjoint_complete_and_of_equal_size():
    for count in (1, 2, 3, 8):
        for num_items in (0, 1, 2, 7, 128, 359):
            shards = []
            for rank in range(count):
                process = SingleProcess()
                process.rank, process.world_size = rank, count
                shards.append(list(range(num_items))[process.shard(num_items)])
            assert list(itertools.chain(*shards)) == list(range(num_items))
            assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_last_batch_of_fewer_than_two_images_per_process_is_dropped():
    assert count_steps(100, 24, False, 4) == (5, 100)
    assert count_steps(99, 24, False, 4) == (4, 96)


def test_two_processes_train_as_one_with_two_micro_batches(two, tmp_path):
    """Shards and micro-batches have the same images; only the running statistics are averaged differently."""
    command("run", *TINY, "--grad-accumulation", 2, cwd=tmp_path, check=0)
    single = tmp_path / "runs/r"
    assert len(losses(single)) == 33
    np.testing.assert_allclose(losses(single), losses(two[1]), rtol=2e-4)
    np.testing.assert_array_equal(metrics(single, "train/acc", "lr"), metrics(two[1], "train/acc", "lr"))

    def trained(folder):
        return {
            key: value
            for key, value in weights(folder).items()
            if ".bn.running" not in key and "num_batches" not in key
        }

    assert_close(trained(single), trained(two[1]), 2e-3)


OWN_LOSS = """
from harness.training import register_loss
from torch.nn.functional import cross_entropy

@register_loss
def squared(logits, targets, class_weights=None):
    by_image = cross_entropy(logits, targets, reduction='none') ** 2
    return (by_image * class_weights[targets]).mean()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--plugin", "mine", "--loss", "squared", "--class-weights", "0=3"],
        ["--loss", "jsd", "--aug-splits", "3", "--auto-augment", "rand-m9", "--erasing", "0.3", "--workers", "0"],
    ],
    ids=["of a plug-in", "jsd"],
)
def test_two_processes_with_another_loss_train_as_one_with_two_micro_batches(tmp_path, words):
    (tmp_path / "mine.py").write_text(OWN_LOSS)
    command("run", *TINY, *words, "--name", "one", "--grad-accumulation", 2, cwd=tmp_path, check=0)
    assert [process.code for process in ranks("run", *TINY, *words, cwd=tmp_path)] == [0, 0]
    one, two = losses(tmp_path / "runs/one"), losses(tmp_path / "runs/r")
    assert one[0] > 2  # that of ten equally probable classes is 2.3, and squared 5.3
    np.testing.assert_allclose(one, two, rtol=2e-3)


def test_only_the_main_process_writes_files_and_messages(two):
    (first, second), folder = two
    assert (second.out, second.err) == ("", "")
    assert "test accuracy" in first.out and first.err.count("epoch ") >= 3
    assert [path.name for path in folder.parent.iterdir()] == ["r"]
    assert read_state(folder) == "finished"
    assert read_journal(folder).header["environment"]["processes"] == 2


def test_the_metrics_of_a_distributed_evaluation_are_those_of_the_predictions(two):
    """Of 359 test images one process has 179, the other 180; the main process makes the final predictions."""
    folder = two[1]
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 359
    accuracy = sum(row["label"] == row["prediction"] for row in rows) / 359
    assert epochs(folder)[-1].values["test/acc"] == pytest.approx(accuracy)
    loss = np.mean([float(row["loss"]) for row in rows])
    assert epochs(folder)[-1].values["test/loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.slow
def test_a_model_without_batch_normalisation_has_the_metrics_of_one_process(tmp_path):
    arguments = [
        "run",
        *(argument for argument in TINY if argument not in ("--model-args", "width=4")),
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
    assert [process.code for process in ranks(*arguments, cwd=tmp_path / "a")] == [0, 0]
    command(*arguments, cwd=tmp_path / "b", check=0)
    both = [tmp_path / name / "runs/r" for name in "ab"]
    np.testing.assert_allclose(*map(losses, both), rtol=1e-3)
    keys = ("train/loss", "test/loss")
    np.testing.assert_allclose(*(metrics(folder, *keys) for folder in both), rtol=1e-3)
    np.testing.assert_allclose(*(metrics(folder, "train/acc", "test/acc") for folder in both), atol=0.006)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_update_and_the_run_resumes_with_the_same_results(
    two, tmp_path
):
    ended = ranks("run", *TINY, cwd=tmp_path, faults={1: "term@step=14"})
    assert [process.code for process in ended] == [143, 143], ended
    folder = tmp_path / "runs/r"
    assert json.loads((folder / "status.json").read_text())["state"] == "preempted"
    state = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    assert 14 <= state["progress"]["step"] <= 16
    assert [process.code for process in ranks("run", *TINY, cwd=tmp_path)] == [0, 0]
    np.testing.assert_allclose(losses(folder), losses(two[1]), rtol=1e-5)
    assert_close(weights(folder), weights(two[1]), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"), [("kill", "ended without an error message"), ("raise", "deliberate fault")]
)
def test_a_lost_process_ends_the_run_with_its_rank_and_reason_and_the_run_can_be_resumed(two, tmp_path, fault, reason):
    first, second = ranks("run", *TINY, "--checkpoint-every", "5", cwd=tmp_path, faults={1: f"{fault}@step=14"})
    assert second.code == (-signal.SIGKILL if fault == "kill" else 1)
    assert first.code == 1
    assert len(first.errors) == 1 and "rank 1 of 2" in first.errors[0] and reason in first.errors[0]
    folder = tmp_path / "runs/r"
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed" and reason in status["reason"]
    assert re.search(r"^torchrun .*--nproc-per-node 2 -m harness run ", status["resume"])
    assert [process.code for process in ranks("run", *TINY, "--checkpoint-every", "5", cwd=tmp_path)] == [0, 0]
    np.testing.assert_allclose(losses(folder), losses(two[1]), rtol=1e-5)


@pytest.mark.slow
def test_the_other_processes_end_within_a_minute_after_the_main_one_is_killed(tmp_path):
    first, second = ranks("run", *TINY, cwd=tmp_path, faults={0: "kill@step=14"})
    assert first.code == -signal.SIGKILL and second.code == 1
    assert "rank 1: " in second.err
    status = json.loads((tmp_path / "runs/r/status.json").read_text())
    assert (status["state"], status["exit_code"], status["step"]) == ("failed", 1, 11)
    assert status["reason"].startswith("rank 0 of 2 ended without an error message")
    assert "torchrun" in status["resume"]


@pytest.mark.slow
def test_a_run_of_two_processes_is_resumed_in_one(two, tmp_path):
    assert [process.code for process in ranks("run", *TINY, cwd=tmp_path, faults={0: "term@step=14"})] == [143, 143]
    command("run", *TINY, "--grad-accumulation", 1, cwd=tmp_path, check=0)
    folder = tmp_path / "runs/r"
    np.testing.assert_allclose(losses(folder)[:14], losses(two[1])[:14], rtol=1e-5)
    assert len(losses(folder)) == 33 and np.isfinite(losses(folder)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "loader", [["--loader", "timm", "--workers", "1"], ["--augment", "albumentations", "--workers", "1"]]
)
def test_the_timm_loader_gives_two_processes_the_batches_of_one(tmp_path, loader):
    arguments = ["run", *TINY, *loader, "--epochs", "2"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert [process.code for process in ranks(*arguments, cwd=tmp_path / "a")] == [0, 0]
    command(*arguments, "--grad-accumulation", 2, cwd=tmp_path / "b", check=0)
    np.testing.assert_allclose(*(losses(tmp_path / name / "runs/r") for name in "ab"), rtol=1e-3)


@pytest.mark.slow
def test_a_run_that_diverges_in_one_process_diverges_in_both(tmp_path):
    first, second = ranks("run", *TINY, "--lr-max", "1e6", cwd=tmp_path)
    assert (first.code, second.code) == (5, 5)
    assert len(first.errors) == 1 and "diverged" in first.errors[0] and second.err == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--lr-max", "find"], "run `harness lr-find` first"),
        (["--auto-batch"], "auto_batch=True would split"),
        (["--sync-bn"], "sync_bn=True needs GPUs"),
        (["--batch-size", "3"], "two images each; set --batch-size 4"),
        (["--recipe", "none"], "no recipe 'none'"),
        (["--no-such-thing"], "no such option"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_in_one_line_by_the_main_one(tmp_path, arguments, reason):
    first, second = ranks("run", *TINY, *arguments, cwd=tmp_path)
    assert (first.code, second.code) == (2, 2), (first.err, second.err)
    assert len(first.errors) == 1 and reason in first.errors[0] and second.err == ""


def test_a_command_for_one_process_is_refused_under_torchrun(tmp_path):
    first, second = ranks("find", "--recipe", "digits", cwd=tmp_path)
    assert (first.code, second.code) == (2, 2)
    assert len(first.errors) == 1 and "without torchrun" in first.errors[0] and second.err == ""


@pytest.mark.slow
def test_gradients_are_exchanged_once_per_update_for_any_number_of_micro_batches(tmp_path):
    """A hook of DistributedDataParallel counts every exchange of a bucket."""
    script = """
import sys, torch, torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from harness.config.recipe import make_config
from harness.runs.components import build_components
from harness.training.distributed import init_distributed
processes = init_distributed("cpu", 60)
torch.manual_seed(0)
components = build_components(make_config({"recipe": "digits", "model_args": "width=4", "grad_accumulation": 4, "precision": "fp32"}), processes)
exchanged = []
def count_exchange(state, bucket):
    exchanged.append(bucket.buffer().numel())
    return allreduce_hook(dist.group.WORLD, bucket)
components.learner.parallel.register_comm_hook(None, count_exchange)
batches = components.loaders.train.epoch(0)
for step in range(3):
    images, labels = next(batches)
    assert len(images) == 32, len(images)
    components.learner.train_step(images, labels, step, 0.01, 0.9, 64)
buckets = len(exchanged) // 3
assert sum(exchanged) == 3 * sum(p.numel() for p in components.learner.model.parameters()), exchanged
processes.close()
print("counted", buckets)
"""
    done = torchrun("script.py", cwd=tmp_path, script=script)
    assert done.returncode == 0 and done.stdout.count("counted") == 2, done.stdout + done.stderr


def torchrun(*arguments, cwd, script=""):
    if script:
        (cwd / arguments[0]).write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command_line = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, arguments)
    ]  # fmt: skip
    return subprocess.run(command_line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_a_run_started_by_torchrun_has_the_losses_of_two_processes(two, tmp_path):
    done = torchrun("-m", "harness", "run", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "runs/r"), losses(two[1]), rtol=1e-5)
    assert done.stdout.count("test accuracy") == 1


@pytest.mark.slow
def test_the_processes_of_a_torchrun_that_is_killed_save_and_stop(two, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command_line = [
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
    arguments = [*TINY, "--epochs", "2000", "--peak-epoch", "5"]
    with subprocess.Popen(
        [*command_line, *arguments], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as process:
        status, started_at = tmp_path / "runs/r/status.json", time.monotonic()
        while json.loads(status.read_text() if status.exists() else "{}").get("epoch", 0) < 3:
            assert process.poll() is None and time.monotonic() - started_at < 120
            time.sleep(0.1)
        process.kill()
    while read_state(tmp_path / "runs/r") == "running":
        assert time.monotonic() - started_at < 180
        time.sleep(0.1)
    assert read_state(tmp_path / "runs/r") == "preempted"


def test_without_torchrun_there_is_a_single_process(monkeypatch):
    assert type(init_distributed("cpu", 10)) is SingleProcess
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert type(init_distributed("cpu", 10)) is SingleProcess


def test_the_shards_of_an_evaluation_are_its_images_in_order():
    components = build_components(Config(recipe="digits", data="digits", model_args={"width": 4}, precision="fp32"))
    expected = torch.cat([labels for _, labels in components.loaders.test])
    shards = []
    for rank in range(3):
        process = SingleProcess()
        process.rank, process.world_size = rank, 3
        shard = components.loaders.test.shard(process)
        shards.append(torch.cat([labels for _, labels in shard]))
        assert shard.num_images == len(shards[-1])
    assert torch.equal(torch.cat(shards), expected)


def test_a_named_gpu_for_all_processes_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(UsageError, match="is one device for all processes"):
        init_distributed("cuda:1", 10)
