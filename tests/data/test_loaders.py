"""Batches: pure functions of (seed, epoch, batch), every evaluation image exactly once, from device memory and from workers."""

import gc
import multiprocessing
import os
import random
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from harness.config.settings import Config
from harness.data import device_loader, worker_pool
from harness.data.dataset import Dataset, in_memory
from harness.data.device_loader import DeviceEvalLoader
from harness.data.loaders import make_loaders
from harness.data.preprocess import Preprocess
from harness.data.registry import load_dataset
from harness.data.worker_loader import WorkerTrainLoader, count_workers
from harness.data.worker_pool import WorkerPool
from harness.utils.errors import DataError, ResourceError, UsageError

SIZE, COUNT = 32, 50
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PREPROCESS = Preprocess(SIZE, MEAN, STD, 1.0, "bicubic")
KINDS = {
    "resident": {"loader": "resident"},
    "timm": {"loader": "timm", "workers": 0},
    "timm, 2 workers": {"loader": "timm", "workers": 2},
    "albumentations": {"augment": "albumentations", "workers": 0},
    "albumentations, 2 workers": {"augment": "albumentations", "workers": 2},
}


def random_split(name, count, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    return in_memory(name, pixels, np.arange(count), [f"{name}/{index}" for index in range(count)])


TRAIN, VAL, TEST = random_split("train", COUNT, 0), random_split("val", 8, 1), random_split("test", 23, 2)
DATA = Dataset("noise", tuple(map(str, range(COUNT))), TRAIN, VAL, TEST, MEAN, STD, "")


def batches(kind="resident", data=DATA, preprocess=PREPROCESS, **settings):
    return make_loaders(Config(**{"batch_size": 8, **KINDS[kind], **settings}), data, preprocess, "cpu")


def to_list(stream):
    return [(images.clone(), labels.clone()) for images, labels in stream]


def equal(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(batches, others, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_training_batches_are_a_pure_function_of_seed_epoch_and_batch(kind):
    train = batches(kind).train
    first = to_list(train.epoch(3))
    assert len(first) == train.steps == 6 and train.num_images == 48 == sum(len(labels) for _, labels in first)
    random.random(), torch.rand(5), np.random.random()
    next(train.epoch(0))  # abandoned after one batch
    tail = to_list(train.epoch(3, start=2))
    assert equal(tail, first[2:])
    assert equal(to_list(batches(kind).train.epoch(3)), first)
    assert to_list(train.epoch(3, start=6)) == []
    other = to_list(train.epoch(4))
    assert not torch.equal(other[0][0], first[0][0]) and not torch.equal(other[0][1], first[0][1])
    assert not torch.equal(to_list(batches(kind, seed=1).train.epoch(3))[0][1], first[0][1])


@pytest.mark.parametrize("kind", ["timm", "albumentations"])
def test_the_number_of_workers_changes_nothing(kind):
    single, parallel = batches(kind).train, batches(f"{kind}, 2 workers").train
    for epoch in range(2):
        assert equal(to_list(single.epoch(epoch)), to_list(parallel.epoch(epoch)))


def test_workers_and_epochs_of_albumentations_draw_different_parameters():
    picture = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    split = in_memory("train", np.broadcast_to(picture, (32, SIZE, SIZE, 3)), np.arange(32) % 2, ["x"] * 32)
    train = batches("albumentations, 2 workers", replace(DATA, train=split, val=None, test=None), batch_size=4).train
    images = torch.cat([images for epoch in range(2) for images, _ in train.epoch(epoch)])
    assert len({image.numpy().tobytes() for image in images}) == len(images) == 64


@pytest.mark.parametrize("kind", KINDS)
def test_each_epoch_has_each_image_at_most_once_in_an_order_that_all_loaders_share(kind):
    labels = torch.cat([labels for _, labels in batches(kind, cutout=0, flip=False, crop="none").train.epoch(1)])
    assert len(set(labels.tolist())) == len(labels) == 48
    assert torch.equal(labels, device_loader.epoch_order(COUNT, 0, 1)[:48])


@pytest.mark.parametrize("kind", KINDS)
def test_images_keep_their_labels(kind):
    for images, labels in batches(kind, cutout=0, flip=False, crop="none").train.epoch(0):
        for image, label in zip(images, labels.tolist(), strict=True):
            torch.testing.assert_close(image, PREPROCESS.image(TRAIN.pixels[label]), atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_generators_are_left_alone(kind):
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    loaders = batches(kind)
    to_list(loaders.train.epoch(0))
    to_list(loaders.test)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1] and np.random.get_state()[1].tobytes() == before[2]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_has_every_image_once_in_order_with_a_smaller_last_batch(kind):
    loaders = batches(kind, eval_batch_size=10)
    for loader, split in ((loaders.val, VAL), (loaders.test, TEST)):
        for _ in range(2):
            result = to_list(loader)
            images, labels = (torch.cat(items) for items in zip(*result, strict=True))
            assert labels.tolist() == split.labels.tolist() and loader.num_images == len(split)
            expected = torch.stack([PREPROCESS.image(picture) for picture in split.pixels])
            torch.testing.assert_close(images, expected, atol=0, rtol=0)
    assert [len(labels) for _, labels in result] == [10, 10, 3]


@pytest.mark.parametrize(
    ("settings", "is_resident"),
    [
        ({"auto_augment": "3a"}, True),
        ({"vflip": 0.5}, True),
        ({"crop": "resized"}, True),
        ({"augment": "albumentations"}, True),
        ({"augment": "albumentations", "loader": "timm"}, False),
    ],
)
def test_evaluation_needs_no_processes_where_only_the_augmentation_is_of_single_images(settings, is_resident):
    loaders = make_loaders(Config(batch_size=8, **settings), DATA, PREPROCESS, "cpu")
    assert loaders.kind == "timm" and isinstance(loaders.train, WorkerTrainLoader)
    assert isinstance(loaders.val, DeviceEvalLoader) == isinstance(loaders.test, DeviceEvalLoader) == is_resident


@pytest.mark.parametrize("kind", ["resident", "timm", "albumentations"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_images_are_float32_in_the_requested_memory_order(kind, channels_last):
    loaders = batches(kind, channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for images, labels in (next(loaders.train.epoch(0)), next(iter(loaders.test))):
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        assert images.shape[1:] == (3, SIZE, SIZE) and images.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("kind", ["resident", "timm"])
@pytest.mark.parametrize(
    ("batch_size", "drop_last", "sizes"),
    [
        (8, True, [8] * 6),
        (8, False, [8] * 6 + [2]),
        (7, False, [7] * 7),  # the last image is dropped
        (49, False, [49]),
        (50, True, [50]),
        (64, False, [50]),
    ],
)
def test_an_incomplete_last_batch_is_kept_or_dropped(kind, batch_size, drop_last, sizes):
    train = batches(kind, batch_size=batch_size, drop_last=drop_last).train
    assert [len(labels) for _, labels in train.epoch(0)] == sizes
    assert (train.steps, train.num_images) == (len(sizes), sum(sizes))


@pytest.mark.parametrize("kind", ["resident", "timm"])
def test_a_batch_larger_than_the_data_is_refused_with_both_numbers(kind):
    with pytest.raises(UsageError, match=r"batch_size=512 > 50 training images.*--drop-last False"):
        batches(kind, batch_size=512)


def test_auto_keeps_data_on_the_device_where_it_fits():
    assert batches(loader="auto").kind == "resident"
    assert batches(loader="auto", crop="resized", workers=0).kind == "timm"
    assert batches("albumentations").kind == "timm" and batches("timm").kind == "timm"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"augment": "albumentations"}, "albumentations"),
        ({"crop": "resized"}, "crop=resized"),
        ({"preprocess": replace(PREPROCESS, size=64)}, "32 x 32 pixels, and the model takes 64 x 64"),
        ({"preprocess": replace(PREPROCESS, crop_pct=0.9)}, "crop_pct=0.9"),
        ({"data": replace(DATA, test=replace(TEST, pixels=None))}, "the test images have several sizes"),
    ],
)
def test_loader_resident_is_refused_with_the_reason_where_it_is_impossible(settings, reason):
    with pytest.raises(UsageError, match=f"loader=resident is not possible.*{reason}"):
        batches("resident", **settings)
    assert batches("resident", **{"loader": "auto", "workers": 0, **settings}).kind == "timm"


def test_resident_data_takes_at_most_a_quarter_of_the_free_memory(monkeypatch):
    needed = COUNT * 40 * 40 * 3 + (8 + 23) * 32 * 32 * 3
    monkeypatch.setattr(device_loader, "free_memory", lambda device: 4 * needed)
    assert batches(loader="auto").kind == "resident"
    monkeypatch.setattr(device_loader, "free_memory", lambda device: 4 * needed - 1)
    assert batches(loader="auto", workers=0).kind == "timm"
    with pytest.raises(UsageError, match="a quarter"):
        batches()


def test_an_abandoned_epoch_does_not_continue_with_the_batches_of_another():
    train = batches("timm, 2 workers").train
    first = train.epoch(0)
    next(first)
    next(train.epoch(1))
    with pytest.raises(RuntimeError, match="epoch 0 was abandoned"):
        next(first)


def make_folder(root, sizes=((40, 60), (33, 32), (100, 50))):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for index, size in enumerate(sizes):
                Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(
                    root / split / label / f"{index}.png"
                )
    return load_dataset(Config(data="folder", data_dir=str(root)))


@pytest.mark.parametrize("augment", ["timm", "albumentations", "none"])
@pytest.mark.parametrize(("crop", "size"), [("pad", 32), ("resized", 32), ("none", 32), ("auto", 96)])
def test_images_of_any_size_are_brought_to_the_size_of_the_model(tmp_path, augment, crop, size):
    data = make_folder(tmp_path)
    preprocess = replace(PREPROCESS, size=size, crop_pct=0.875)
    config = Config(augment=augment, crop=crop, batch_size=3, eval_batch_size=4, workers=0)
    loaders = make_loaders(config, data, preprocess, "cpu")
    first = to_list(loaders.train.epoch(0))
    assert loaders.kind == "timm" and [images.shape for images, _ in first] == [(3, 3, size, size)] * 2
    assert equal(to_list(loaders.train.epoch(0, start=1)), first[1:])
    images = torch.cat([images for images, _ in loaders.test])
    expected = torch.stack([preprocess.image(data.test.picture(index)) for index in range(6)])
    torch.testing.assert_close(images, expected, atol=0, rtol=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_becomes_unreadable_during_the_run_is_named_in_one_line(tmp_path, workers):
    data = make_folder(tmp_path)
    loaders = make_loaders(Config(batch_size=3, workers=workers, image_size=32), data, PREPROCESS, "cpu")
    (tmp_path / "train" / "b" / "1.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        to_list(loaders.train.epoch(0))
    assert str(caught.value) == "train/b/1.png: not an image, or one of an unsupported format"


def test_skipped_batches_are_not_decoded(tmp_path):
    data = make_folder(tmp_path)
    loaders = make_loaders(Config(batch_size=3, workers=0), data, PREPROCESS, "cpu")
    for index in device_loader.epoch_order(6, 0, 0)[:3].tolist():
        (tmp_path / data.train.ids[index]).unlink()
    assert len(to_list(loaders.train.epoch(0, start=1))) == 1
    with pytest.raises(DataError):
        to_list(loaders.train.epoch(0))


@pytest.mark.slow
def test_workers_end_promptly_after_an_error(tmp_path):
    """Without a clean shutdown torch waits 5 s for its workers every time; a busy machine may be slow once."""
    before = set(multiprocessing.active_children())
    data = make_folder(tmp_path)
    (tmp_path / "train" / "b" / "1.png").write_bytes(b"")
    seconds = []
    for _ in range(3):
        loaders = make_loaders(Config(batch_size=3, workers=1), data, PREPROCESS, "cpu")
        with pytest.raises(DataError):
            to_list(loaders.train.epoch(0))
        start = time.perf_counter()
        del loaders
        gc.collect()
        seconds.append(time.perf_counter() - start)
        if seconds[-1] < 4:
            break
    assert min(seconds) < 4
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.slow
def test_closed_loaders_are_deleted_without_waiting_although_a_cycle_of_references_holds_them(monkeypatch):
    """As a traceback does: the garbage collector may delete torch's queues before its loader, which then waits 5 s."""
    made = batches("timm, 2 workers")
    cycle = [made, epoch := made.train.epoch(0)]
    next(epoch)
    cycle.append(cycle)
    pids = made.train.workers.pids[:]
    assert all(pids) and made.test.workers.pids[:] == [0, 0]  # those of the test images have not started
    made.close()
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 60.0)  # what torch waits, else 5 s
    began = time.monotonic()
    del made, epoch, cycle
    gc.collect()
    assert time.monotonic() - began < 30
    assert not {child.pid for child in multiprocessing.active_children()} & set(pids)


def test_workers_that_have_not_started_are_not_killed_as_process_0_which_is_the_whole_group():
    if (child := os.fork()) == 0:
        os.setpgrp()
        WorkerPool(2).kill()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_the_number_of_workers_depends_on_the_usable_cpus(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(24)))
    monkeypatch.setattr("harness.utils.environment.cgroup_cpu_limit", lambda: None)
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert [count_workers(count, gpu) for count in (0, 3, -1)] == [0, 3, 16]
    assert count_workers(-1, cpu) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert count_workers(-1, gpu) == 6


@pytest.mark.parametrize(
    ("bytes_free", "decision_of_main_process", "kind", "settings"),
    [
        (10**12, "there is too little memory", "timm", {}),
        (1, None, "resident", {}),
        (10**12, "there is too little memory", "timm", {"auto_augment": "3a"}),
        (1, None, "timm", {"auto_augment": "3a"}),
    ],
)
def test_the_main_process_decides_for_all_whether_images_are_kept_on_the_device(
    monkeypatch, bytes_free, decision_of_main_process, kind, settings
):
    class OtherProcess(device_loader.NoSharding):
        def broadcast(self, value):
            return decision_of_main_process

    monkeypatch.setattr(device_loader, "free_memory", lambda device: bytes_free)
    loaders = make_loaders(Config(batch_size=8, **settings), DATA, PREPROCESS, "cpu", OtherProcess())
    assert loaders.kind == kind and isinstance(loaders.test, DeviceEvalLoader) == (decision_of_main_process is None)


def test_training_images_that_do_not_fit_leave_evaluation_images_on_the_device_where_single_images_are_augmented(
    monkeypatch,
):
    monkeypatch.setattr(device_loader, "free_memory", lambda device: 4 * TEST.pixels.nbytes + 4 * VAL.pixels.nbytes)
    for policy in ("none", "3a"):
        loaders = make_loaders(Config(batch_size=8, auto_augment=policy), DATA, PREPROCESS, "cpu")
        assert loaders.kind == "timm" and isinstance(loaders.test, DeviceEvalLoader) == (policy == "3a")


def test_a_single_training_image_is_refused():
    assert device_loader.count_steps(2, 8, False) == (1, 2)
    with pytest.raises(UsageError, match="need at least 2 training images, got 1"):
        device_loader.count_steps(1, 8, False)


def test_the_part_of_the_images_that_a_process_evaluates_is_served_by_workers_too():
    class Half(device_loader.NoSharding):
        def shard(self, num_items):
            return slice(num_items // 2, num_items)

    test = batches("timm, 2 workers", workers=0).test
    whole, half = (torch.cat([images for images, _ in loader]) for loader in (test, test.shard(Half())))
    assert torch.equal(half, whole[23 // 2 :])


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), ResourceError, "a loader process was killed, most often for lack of memory or of /dev/shm; lower --workers"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), ResourceError, "a loader process was killed"),
        (EOFError(), ResourceError, "a loader process was killed"),
        (ConnectionResetError(104, "Connection reset by peer"), ResourceError, "a loader process was killed"),
        (OSError(28, "No space left on device"), ResourceError, "cannot send their batches: /dev/shm is too small: enlarge it (docker run --shm-size 2g), or set --workers 0"),
        (OSError(24, "Too many open files"), ResourceError, "raise the limit (ulimit -n 4096), or set --workers 0"),
        (DataError("Caught DataError in worker\nTraceback\nharness.utils.errors.DataError: x.png: damaged"), DataError, "x.png: damaged"),
    ],
)  # fmt: skip
def test_the_error_of_a_worker_is_one_line_with_the_remedy(error, kind, message):
    def stream():
        yield DATA
        raise error

    served = worker_pool.iterate_checked(stream(), worker_pool.WorkerPool(0))
    assert next(served) is DATA
    with pytest.raises(kind) as caught:
        next(served)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_another_error_of_a_worker_stays_as_it_is_and_the_reason_that_a_worker_has_left_is_named():
    workers = worker_pool.WorkerPool(0)
    error = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ") as caught:
        list(worker_pool.iterate_checked(failing(error), workers))
    assert caught.value is error
    workers._send_error.value = b"unable to open shared memory"
    with pytest.raises(
        ResourceError, match="cannot send its batches: unable to open shared memory; lower --workers, or set"
    ):
        list(worker_pool.iterate_checked(failing(RuntimeError("DataLoader worker exited unexpectedly")), workers))


def failing(error):
    raise error
    yield
