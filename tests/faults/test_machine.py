"""Faults of the machine: no disk, no memory, no permission, dead loader processes, clocks that jump, two runs with one name."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from harness.config.settings import Config
from harness.tracking.journal import read_journal
from harness.tracking.run_dir import claim_run_dir, is_locked
from harness.training.checkpoint import newest_checkpoint
from harness.utils.errors import ResourceError
from harness.utils.files import read_json, sha256
from tests.support.broken_images import picture_folder
from tests.support.forked import TINY, begin, context, harness, join_server
from tests.support.resume import SAVING, assert_same, contents_of
from tests.support.sweeps import read_trials, write_sweep
from tests.support.waiting import is_alive, wait_until


@contextmanager
def mounted(folder: Path, options: str):
    """Mount a file system at `folder`; False where this machine does not permit it."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    done = shutil.which("mount") is not None and subprocess.run(words, capture_output=True).returncode == 0
    try:
        yield done
    finally:
        if done:
            subprocess.run(
                ["umount", "-l", str(folder)], check=True
            )  # a process that was just ended may still have a file open


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_resumes_when_there_is_space(uninterrupted, tmp_path):
    with mounted(tmp_path / "runs", "size=2m") as small:
        if not small:
            pytest.skip("this machine does not permit mounting; the next test works without")
        free = os.statvfs(tmp_path / "runs").f_bavail * 4096
        (tmp_path / "runs/other").write_bytes(bytes(free - 700_000))  # two checkpoints of 250 kB fit, three do not
        ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=6)
        assert len(ended.errors) == 1
        assert "no space to write" in ended.errors[0] and "MB free" in ended.errors[0]
        assert "Traceback" not in ended.err
        folder = tmp_path / "runs/r"
        assert not list(folder.rglob("*.tmp"))
        kept = torch.load(folder / "checkpoints/last.pt", weights_only=True)["progress"]["step"]
        assert kept >= 4
        assert read_json(folder / "checkpoints/index.json")["checkpoints"]
        (tmp_path / "runs/other").unlink()
        ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=0)
        assert f"from step {kept}" in ended.err
        assert_same(tmp_path, uninterrupted)


@pytest.mark.slow
def test_trials_that_found_a_full_disk_are_run_again_when_there_is_space(tmp_path):
    write_sweep(tmp_path)
    line = ("sweep", "sweep.yaml", "--count", "2", "--storage", str(tmp_path / "study.db"), "--name", "s")
    with mounted(tmp_path / "runs", "size=4m") as small:
        if not small:
            pytest.skip("this machine does not permit mounting")
        free = os.statvfs(tmp_path / "runs").f_bavail * 4096
        (tmp_path / "runs/other").write_bytes(bytes(free - 250_000))  # less than one checkpoint and its copy need
        ended = harness(*line, cwd=tmp_path, check=6)
        assert "Traceback" not in ended.err
        assert ended.errors[-1].startswith("error: trial-0000: no space to write"), ended.err
        (tmp_path / "runs/other").unlink()
        harness(*line, cwd=tmp_path, check=0)
        rows = read_trials(tmp_path / "runs/s")
        assert [row["state"] for row in rows] == ["complete"] * 2
        assert rows[0]["trial"] == "trial-0000"


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_one_line_and_the_checkpoint_before_it_stays(tmp_path):
    """The effect of a quota on any machine: a limit on the size of a file."""
    harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault="kill@step=6")
    last = tmp_path / "runs/r/checkpoints/last.pt"
    before = sha256(last)
    ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, file_size=100_000, check=6)
    assert len(ended.errors) == 1 and "no space to write" in ended.errors[0]
    assert "inline_container" not in ended.err
    assert sha256(last) == before
    assert not list((tmp_path / "runs").rglob("*.tmp"))
    harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=0)


def test_an_output_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(tmp_path):
    with mounted(tmp_path / "runs", "ro") as read_only:
        output = "runs" if read_only else "/proc/nowhere"
        ended = harness("run", *TINY, "--output", output, cwd=tmp_path, check=2)
        assert len(ended.errors) == 1 and "cannot write to" in ended.errors[0] and "--output" in ended.errors[0]


def test_an_output_folder_that_becomes_read_only_is_one_line(tmp_path):
    with mounted(tmp_path / "runs", "size=20m") as mine:
        if not mine:
            pytest.skip("this machine does not permit mounting")
        running = begin("run", *SAVING, "--epochs", 200, "--name", "r", cwd=tmp_path)
        running.until(lambda: (tmp_path / "runs/r/checkpoints/last.pt").exists())
        # Open files can prevent a disk from being made read-only.
        done = subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "runs")], capture_output=True)
        if done.returncode:
            running.signal(signal.SIGKILL)
            running.end()
            pytest.skip("this machine does not make a disk in use read-only")
        ended = running.end()
        assert ended.code == 6 and len(ended.errors) == 1 and "Traceback" not in ended.err.replace("while closing", "")


BIG = ["--recipe", "digits", "--threads", "1", "--precision", "fp32", "--batch-size", "1438", "--eval-batch-size", "100", "--model-args", "width=16", "--epochs", "1",
       "--peak-epoch", "0.5", "--loader", "resident", "--gallery", "0", "--wandb", "disabled", "--name", "r"]  # fmt: skip


@pytest.mark.slow
def test_a_batch_too_large_for_the_memory_is_computed_in_parts_when_asked_and_else_refused_with_the_remedy(tmp_path):
    """Real memory, limited as with `ulimit -v`."""
    ended = harness("run", *BIG, cwd=tmp_path, memory=800 * 2**20, check=6)
    assert len(ended.errors) == 1
    assert "out of memory" in ended.errors[0] and "--auto-batch" in ended.errors[0]
    for number, mebibytes in enumerate((700, 850, 1000)):
        words = [*BIG, "--auto-batch", "--name", f"r{number}"]
        ended = harness("run", *words, cwd=tmp_path, memory=mebibytes * 2**20, check=0)
        assert "is now computed in" in ended.err
        summary = read_json(tmp_path / f"runs/r{number}/summary.json")
        assert summary["grad_accumulation"] in (2, 4, 8)
        assert summary["steps"] == 1


@pytest.mark.slow
def test_after_running_out_of_memory_the_batch_size_is_kept_it_is_reported_once_and_a_resumed_run_uses_as_many_parts(
    tmp_path,
):
    """In two parts from the first update: bit-identical to `--grad-accumulation 2`."""
    words = ["run", *SAVING, "--auto-batch", "--name", "r"]
    ended = harness(*words, cwd=tmp_path, fault="oom@micro_batch=1,kill@step=9")
    assert ended.code == -signal.SIGKILL
    reports = [line for line in ended.err.splitlines() if "out of memory" in line]
    assert reports == ["out of memory: each batch of 128 images is now computed in 2 micro-batches"]
    assert read_journal(tmp_path / "runs/r").alerts == [("out of memory", reports[0])]
    ended = harness(*words, cwd=tmp_path, check=0)
    assert "out of memory" not in ended.err
    assert read_json(tmp_path / "runs/r/summary.json")["grad_accumulation"] == 2
    (tmp_path / "other").mkdir()
    harness("run", *SAVING, "--grad-accumulation", 2, "--name", "r", cwd=tmp_path / "other", check=0)
    resumed, other = (contents_of(folder / "runs/r") for folder in (tmp_path, tmp_path / "other"))
    assert resumed == other


def test_the_parts_of_a_batch_never_fall_below_one_image(tmp_path):
    fault = ",".join(f"oom@micro_batch={number}" for number in range(1, 20))
    words = ["run", *TINY, "--batch-size", 6, "--auto-batch", "--name", "r"]
    ended = harness(*words, cwd=tmp_path, fault=fault, check=6)
    assert len(ended.errors) == 1 and "out of memory" in ended.errors[0]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("data") / "mes images é 你好", count=40)


WORKERS = ["--recipe", "digits", "--model-args", "width=4", "--threads", "1", "--precision", "fp32", "--data", "folder",
           "--image-size", "32", "--loader", "timm", "--workers", "1", "--batch-size", "8", "--epochs", "100", "--wandb",
           "disabled", "--gallery", "0", "--name", "r"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "wait"),
    [*(("fork", n / 150) for n in range(4)), ("forkserver", 0.0)],
)  # fmt: skip
def test_a_killed_loader_process_is_one_line_with_the_remedy_and_leaves_no_process_behind(
    tmp_path, pictures, method, wait
):
    running = begin("run", *WORKERS, "--data-dir", pictures, cwd=tmp_path, method=method)
    running.until(lambda: (tmp_path / "runs/r/checkpoints/last.pt").exists())
    time.sleep(wait)
    workers = [int(pid) for pid in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()]
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    ended = running.end()
    assert ended.code == 6, ended.err
    assert len(ended.errors) == 1 and "--workers" in ended.errors[0]
    assert "Traceback" not in ended.err
    wait_until(lambda: not any(is_alive(pid) for pid in workers), 20)
    assert read_json(tmp_path / "runs/r/status.json")["state"] == "failed"
    running = begin("run", *WORKERS, "--data-dir", pictures, cwd=tmp_path)
    running.until(lambda: "Resuming run in" in running.err.read_text())
    running.signal(signal.SIGTERM)
    assert running.end().code == 143


def test_a_killed_process_leaves_no_lock_though_a_process_that_it_forked_lives_on(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from harness.tracking.run_dir import lock_folder\n"
        "lock = lock_folder(Path(sys.argv[1])); assert lock\n"
        "child = os.fork()\n"
        "print(os.getpid(), flush=True) if not child else None\n"  # after the fork's hooks have run in it
        "time.sleep(100)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with owner.stdout:
        child = int(owner.stdout.readline())
    try:
        assert is_locked(tmp_path)
        owner.kill()
        owner.wait()
        assert is_alive(child) and not is_locked(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_run_with_loader_processes_is_resumed_at_once(tmp_path, pictures):
    words = ["run", *WORKERS, "--workers", "2", "--data-dir", pictures]
    running = begin(*words, cwd=tmp_path)
    running.until(lambda: (tmp_path / "runs/r/checkpoints/last.pt").exists())
    workers = [int(pid) for pid in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()]
    for pid in workers:  # as processes that are slow to notice the death of their parent
        os.kill(pid, signal.SIGSTOP)
    running.signal(signal.SIGKILL)
    running.end()
    try:
        assert len(workers) >= 2 and all(map(is_alive, workers))
        again = begin(*words, cwd=tmp_path)
        again.until(lambda: "Resuming run in" in again.err.read_text())
        again.signal(signal.SIGTERM)
        assert again.end().code == 143
    finally:
        for pid in filter(is_alive, workers):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_clock_that_jumps_back_and_forth_changes_no_time_and_no_metric(uninterrupted, tmp_path, monkeypatch):
    """The wall clock jumps at every call; durations come from the monotonic clock."""
    script = (
        "import sys, time, random\n"
        "draw = random.Random(0)\n"
        "time.time = lambda: draw.uniform(-1e9, 4e9)\n"
        f"sys.argv = ['harness', 'run', *{SAVING!r}, '--name', 'r']\n"
        "from harness.cli.main import main\nmain()"
    )
    environment = dict(os.environ) | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path, uninterrupted)
    for record in read_journal(tmp_path / "runs/r").records:
        for key, value in record.scalars().items():
            if key.startswith("time/"):
                assert 0 <= value < 300, key
    assert all(0 <= value < 300 for value in read_json(tmp_path / "runs/r/summary.json")["seconds"].values())


@pytest.mark.slow
def test_of_two_simultaneous_runs_with_one_name_the_second_is_refused_and_names_the_process_of_the_first(tmp_path):
    words = ["run", *TINY, "--epochs", 500, "--name", "r"]
    first = begin(*words, cwd=tmp_path)
    first.until(lambda: (tmp_path / "runs/r/status.json").exists())
    ended = harness(*words, cwd=tmp_path, check=8)
    assert len(ended.errors) == 1 and f"pid {first.pid}" in ended.errors[0] and "--name" in ended.errors[0]
    ended = harness("run", "--resume", tmp_path / "runs/r", cwd=tmp_path, check=8)
    first.signal(signal.SIGKILL)
    first.end()
    harness("run", *TINY, "--name", "r", "--epochs", 1, "--peak-epoch", 1, cwd=tmp_path, check=0)  # other settings: r-2
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["r", "r-2"]


@pytest.mark.slow
def test_of_many_simultaneous_equal_commands_each_gets_its_own_directory(tmp_path):
    join_server()
    ready, done = context.Barrier(13), context.Event()
    claimed = context.Queue()
    processes = [context.Process(target=claim_one, args=(str(tmp_path), ready, claimed, done)) for _ in range(12)]
    for process in processes:
        process.start()
    ready.wait(60)
    paths = {claimed.get(timeout=60) for _ in processes}
    done.set()
    for process in processes:
        process.join(60)
    assert len(paths) == 12


def claim_one(output, ready, claimed, done):
    config = Config(output=output, data="digits")
    ready.wait(60)
    folder = claim_run_dir(config)
    claimed.put(str(folder.path))
    done.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["with spaces, 'quotes' and \"more\"", "é 你好 🎉 -$HOME;#&'"])
def test_a_run_in_a_folder_of_any_name_is_resumed_by_the_command_that_it_prints(tmp_path, pictures, name):
    """The printed command is run by a real shell."""
    folder = tmp_path / name
    folder.mkdir()
    words = [*TINY[:-1], "offline", "--name", name]
    ended = harness("run", *words, cwd=folder, fault="int@step=4", check=130)
    (line,) = [line for line in ended.err.splitlines() if "Resume with: " in line]
    command = line.partition("Resume with: ")[2].replace("harness", f"{sys.executable} -m harness", 1)
    environment = dict(os.environ) | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "from step 4" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {name, f"{name}-logs"}


@pytest.mark.slow
def test_a_loader_process_that_hangs_is_ended_and_reported_in_one_line(tmp_path, pictures, monkeypatch):
    """Stopped by SIGSTOP, like one that waits for a disk that was removed."""
    from harness.data import worker_pool
    from harness.data.loaders import make_loaders
    from harness.data.preprocess import Preprocess
    from harness.data.registry import load_dataset
    from harness.utils.errors import DataError

    config = Config(data="folder", data_dir=str(pictures), loader="timm", workers=1, batch_size=8, image_size=32)
    batches = make_loaders(
        config, load_dataset(config), Preprocess(32, (0.5,) * 3, (0.5,) * 3, 1.0, "bilinear"), "cpu"
    ).train
    epoch = batches.epoch(0)
    next(epoch)
    monkeypatch.setattr(worker_pool, "TIMEOUT", 1.0)
    for pid in batches.workers.pids[:]:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(DataError, match="no batch from the loader processes"):
        list(epoch)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "free", [8_192, *(pytest.param(free, marks=pytest.mark.slow) for free in (12_288, 131_072, 650_000, 900_000))]
)
@pytest.mark.parametrize("mode", ["disabled", pytest.param("offline", marks=pytest.mark.slow)])
def test_on_a_disk_that_fills_at_any_moment_the_status_says_failed_and_no_library_prints_a_traceback(
    tmp_path, free, mode
):
    """In a line of the journal, in a checkpoint, in a figure; W&B's own logging meets the full disk too."""
    with mounted(tmp_path / "disk", "size=4m") as small:
        if not small:
            pytest.skip("this machine does not permit mounting")
        left = os.statvfs(tmp_path / "disk").f_bavail * 4096
        (tmp_path / "disk/other").write_bytes(bytes(left - free))
        words = ["run", *TINY[:-1], mode, "--gallery", 4, "--output", tmp_path / "disk/runs", "--name", "r"]
        ended = harness(*words, cwd=tmp_path, check=6)
        assert len(ended.errors) == 1 and "Traceback" not in ended.err and "Logging error" not in ended.err
        status = read_json(tmp_path / "disk/runs/r/status.json")
        assert status["state"] == "failed" and status["exit_code"] == 6
        assert not list((tmp_path / "disk").rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_disk_that_cannot_be_written_is_one_line_in_every_command_that_writes(tmp_path, finished, state):
    run = finished[1]
    pages = sum(path.lstat().st_size // 4096 + 2 for path in run.rglob("*"))  # W&B leaves more files on some machines
    with mounted(tmp_path / "disk", f"size={pages * 4 + 1024}k") as small:
        if not small:
            pytest.skip("this machine does not permit mounting")
        disk = tmp_path / "disk"
        shutil.copytree(run, disk / "r")
        if state == "full":
            (disk / "other").write_bytes(bytes(os.statvfs(disk).f_bavail * 4096))
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        (tmp_path / "digit.png").write_bytes(next((run / "media").glob("*.png")).read_bytes())
        key = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
        for words, unwritable in (
            (["evaluate", disk / "r", "--gallery", 0], 6),
            (["predict", run, "digit.png", "-o", disk / "x.csv"], 6),
            (["explain", run, "digit.png", "-o", disk / "out"], 6),
            (["export", run, "--timm", disk / "timm"], 6),
            (["report", disk / "r"], 6),
            (["plot", "-o", disk / "lr.png"], 6),
            (["sync", disk / "r"], 2),
            (["run", *TINY, "--output", disk / "runs"], 2),
            (["run", *TINY, "--seeds", 2, "--output", disk / "runs"], 2),
        ):
            ended = harness(*words, cwd=tmp_path, variables=key)
            assert ended.code == (6 if state == "full" else unwritable), (words, ended.err)
            assert len(ended.errors) == 1 and "Traceback" not in ended.err, (words, ended.err)
        assert "finished" in harness("runs", disk, cwd=tmp_path, check=0).out


def test_a_memory_limit_that_no_library_fits_into_is_one_line(tmp_path):
    line = f"ulimit -v 1048576; exec {sys.executable} -m harness run --recipe digits"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 6, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "ulimit -v" in done.stderr


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["run", *TINY, "--model", "no_such_model"], 2),
        (["run", *TINY, "--data", "folder", "--data-dir", "nowhere"], 3),
        (["run", *TINY[:-1], "online"], 7),
        (["run", *TINY[:-1], "online", "--output", "deep/er/runs"], 7),
        (["run", *TINY, "--seeds", 2, "--model", "no_such_model"], 2),
        (["lr-find", *TINY, "--model", "no_such_model"], 2),
    ],
    ids=lambda value: " ".join(map(str, value[-4:])) if isinstance(value, list) else "",
)
def test_a_run_that_is_refused_before_its_first_step_leaves_no_folder(words, status, tmp_path):
    harness(*words, cwd=tmp_path, check=status, account=False)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_refused_leaves_the_folders_that_were_there(tmp_path):
    (tmp_path / "runs/r").mkdir(parents=True)
    (tmp_path / "runs/r/mine.txt").write_text("kept")
    harness("run", *TINY[:-1], "online", "--name", "r", cwd=tmp_path, check=7, account=False)
    assert (tmp_path / "runs/r/mine.txt").read_text() == "kept"


@pytest.mark.slow
def test_without_its_index_an_intact_checkpoint_is_used_and_a_damaged_one_is_not(tmp_path, uninterrupted):
    harness("run", *SAVING, "--name", "r", cwd=tmp_path, fault="int@step=9", check=130)
    folder = tmp_path / "runs/r/checkpoints"
    (folder / "index.json").unlink()
    content = bytearray((folder / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    shutil.copy(folder / "last.pt", tmp_path / "last.pt")
    (folder / "last.pt").write_bytes(content)
    assert newest_checkpoint(folder) == folder / "previous.pt"
    shutil.copy(tmp_path / "last.pt", folder / "last.pt")
    ended = harness("run", *SAVING, "--name", "r", cwd=tmp_path, check=0)
    assert "index.json is missing" in ended.err and "from step 9" in ended.err
    assert contents_of(tmp_path / "runs/r") == uninterrupted


def make_batches(pictures, **settings):
    from harness.data.loaders import make_loaders
    from harness.data.preprocess import Preprocess
    from harness.data.registry import load_dataset

    config = Config(data="folder", data_dir=str(pictures), loader="timm", batch_size=8, image_size=64, **settings)
    preprocess = Preprocess(64, (0.5,) * 3, (0.5,) * 3, 1.0, "bilinear")
    return make_loaders(config, load_dataset(config), preprocess, "cpu").train


@contextmanager
def limited(kind, value):
    former = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, former)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "value", "named"),
    [
        (resource.RLIMIT_FSIZE, 50_000, "ulimit -f"),  # a batch has 98 kB
        *((resource.RLIMIT_NOFILE, extra, "ulimit -n") for extra in (-1, 4, 8, 12)),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's loader, ended in its making
def test_loader_processes_that_cannot_send_end_the_epoch_within_seconds_and_the_limit_is_named(
    pictures, kind, value, named
):
    """The run used to wait for them until it regarded them as stuck, after 300 s. With some limits there is no fault."""
    gc.collect()  # what is left of earlier tests is reported now: within the limit not even that can be
    batches = make_batches(pictures, workers=2)
    if kind == resource.RLIMIT_NOFILE:
        value += 1 + max(int(name) for name in os.listdir("/proc/self/fd"))
    began, served = time.monotonic(), 0
    with limited(kind, value):
        try:
            served = sum(1 for _ in batches.epoch(0))
        except ResourceError as error:
            assert named in str(error) and "--workers 0" in str(error) and "\n" not in str(error)
        else:
            assert kind == resource.RLIMIT_NOFILE and value > 0
    assert time.monotonic() - began < 20
    assert served in (0, batches.steps)


@pytest.mark.slow
def test_a_run_whose_loader_processes_cannot_send_is_one_line_with_the_limit(tmp_path, pictures):
    """Files may have 20 kB, and a batch has 24 kB."""
    ended = harness("run", *WORKERS, "--data-dir", pictures, cwd=tmp_path, file_size=20_000, check=6, seconds=60)
    assert len(ended.errors) == 1 and "ulimit -f" in ended.errors[0]
    assert "Traceback" not in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("size", [4096, 300_000])
def test_a_shared_memory_that_is_too_small_is_named_within_seconds(pictures, size):
    """A tmpfs over /dev/shm in a mount namespace of the process; of 4 kB not even a lock can be made."""
    code = (
        "import os, subprocess, sys; from tests.faults.test_machine import make_batches\n"
        f"subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size={size}', 'none', '/dev/shm'], check=True)\n"
        "list(make_batches(sys.argv[1], workers=2).epoch(0))"
    )
    words = ["unshare", "-m", sys.executable, "-c", code, str(pictures)]
    if not shutil.which("unshare") or subprocess.run([*words[:2], "mount", "-t", "tmpfs", "none", "/mnt"]).returncode:
        pytest.skip("this machine does not permit mounting")
    environment = dict(os.environ) | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "/dev/shm is too small" in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_compiler_that_fails_or_that_ctrl_c_ends_is_one_line(tmp_path, is_stopped):
    """A terminal sends Ctrl-C to every process of the command, the compiler among them."""
    compiler = tmp_path / "cxx"
    compiler.write_text(f"#!/bin/sh\n{'kill -INT $PPID; sleep 0.1; ' * is_stopped}exit 1\n")
    compiler.chmod(0o755)
    (tmp_path / "work").mkdir()
    words = [sys.executable, "-m", "harness", "run", *TINY, "--compile", "--output", "runs", "--name", "r"]
    variables = {**os.environ, "CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    ended = subprocess.run(words, cwd=tmp_path / "work", env=variables, capture_output=True, text=True, timeout=200)
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in ended.stderr
    if is_stopped:
        assert ended.returncode == 130 and "Stopped at step 0 by Ctrl-C (SIGINT)" in ended.stderr and not errors
        # An update that is not complete is not saved.
        assert newest_checkpoint(tmp_path / "work/runs/r/checkpoints") is None
    else:
        (line,) = errors
        assert ended.returncode == ResourceError.exit_code
        assert all(words in line for words in ("torch.compile failed", "InvalidCxxCompiler", "leave out --compile"))
