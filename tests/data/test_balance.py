"""Weights of the classes against scikit-learn's, and epochs with equally many images of each class."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.utils.data import WeightedRandomSampler

from harness.config.settings import Config
from harness.data.balance import balanced_order, class_weights, occurrences
from harness.data.dataset import in_memory
from harness.data.loaders import make_loaders
from harness.training.distributed import SingleProcess
from harness.utils.errors import UsageError
from tests.data.test_loaders import DATA, KINDS, PREPROCESS, SIZE, equal, to_list

LABELS = np.repeat([0, 1, 2], [60, 30, 6])
NAMES = ("ant", "bee", "cat")


def weights_of(given, labels=LABELS, outputs=3, **settings):
    return class_weights(Config(class_weights=given, **settings), labels, NAMES, outputs).double().numpy()


def test_balanced_weights_are_those_of_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(weights_of("balanced"), expected, rtol=1e-6)


@pytest.mark.parametrize("given", ["balanced", "1,2,4", "cat=10", [5, 0, 1], {"ant": 0.1, "cat": 3}])
def test_a_training_image_has_a_weight_of_1_on_average(given):
    assert weights_of(given)[LABELS].mean() == pytest.approx(1, rel=1e-6)


def test_weights_by_name_and_by_number_keep_their_ratios():
    for given in ("1,1,10", [1, 1, 10], "cat=10", {"cat": 10}, "{'cat': 10}"):
        weights = weights_of(given)
        np.testing.assert_allclose(weights / weights[0], [1, 1, 10], rtol=1e-6)


def test_with_balanced_sampling_each_class_counts_the_same_in_the_mean_of_the_weights():
    assert weights_of("1,2,6", sampling="balanced").mean() == pytest.approx(1, rel=1e-6)


def test_classes_without_training_images_have_the_weight_1_when_balanced():
    labels = np.array([0, 0, 0, 2])
    np.testing.assert_allclose(weights_of("balanced", labels, outputs=4), [2 / 3, 1, 2, 1], rtol=1e-6)


def test_without_the_setting_there_are_no_weights():
    assert class_weights(Config(), LABELS, NAMES, 3) is None
    assert Config(class_weights="none") == Config() == Config(class_weights=[])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("1,2", "2 numbers, and the data 3 classes"),
        ("cta=2", "did you mean 'cat'"),
        ("0,0,0", "weight 0"),
        ("ant=0,bee=0,cat=0", "weight 0"),
    ],
)
def test_weights_that_do_not_fit_the_classes_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        weights_of(given)


@pytest.mark.parametrize("given", ["1,-2,3", "cat=x", "equal", "nan,1,1", "1e9,1,1", {"cat": "much"}, True, 3])
def test_weights_that_are_no_numbers_are_refused(given):
    with pytest.raises(UsageError, match="class_weights="):
        Config(class_weights=given)


def test_the_settings_of_a_run_give_the_same_weights_again():
    for given in ("balanced", "1,2,4", "cat=10"):
        config = Config(class_weights=given)
        assert Config(class_weights=config.to_dict()["class_weights"]) == config
        assert config.digest() != Config().digest()


def test_balancing_twice_is_refused():
    with pytest.raises(UsageError, match="twice"):
        Config(class_weights="balanced", sampling="balanced")


@pytest.mark.parametrize("counts", [(60, 30, 6), (100, 1, 1), (7, 7, 7), (1, 200), (5, 0, 9)])
def test_each_class_of_a_balanced_epoch_comes_equally_often_and_so_does_each_image_of_it(counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    order = balanced_order(labels, 0, 3).numpy()
    assert len(order) == len(labels)
    by_class = Counter(labels[order].tolist())
    assert max(by_class.values()) - min(by_class.values()) <= 1 and len(by_class) == sum(map(bool, counts))
    by_image = np.bincount(order, minlength=len(labels))
    assert all(np.ptp(by_image[labels == label]) <= 1 for label in by_class)


def test_images_come_as_often_as_torchs_weighted_sampler_draws_them():
    sampler = WeightedRandomSampler((1 / np.bincount(LABELS))[LABELS], len(LABELS))
    torch.manual_seed(0)
    ours, theirs = (
        np.bincount(np.concatenate(orders), minlength=len(LABELS)) / 400
        for orders in (
            [balanced_order(LABELS, 1, epoch).numpy() for epoch in range(400)],
            [list(sampler) for _ in range(400)],
        )
    )
    np.testing.assert_allclose(ours, theirs, atol=0.8)  # 5.3 of a rare image with a standard deviation of 0.12
    for label in range(3):
        assert ours[label == LABELS].mean() == pytest.approx(theirs[label == LABELS].mean(), rel=0.1)
    assert ours.std() > 0  # of frequent classes other images come in other epochs


def test_the_repeats_of_an_order_are_counted_from_its_beginning():
    order = np.array([4, 2, 4, 4, 0, 2, 7])
    assert occurrences(order).tolist() == [list(order[:index]).count(item) for index, item in enumerate(order)]


def batches(kind, sharder=None, **settings):
    labels = np.repeat([0, 1, 2, 3], [30, 10, 8, 2])
    train = in_memory("train", DATA.train.pixels, labels, DATA.train.ids)
    config = Config(**{"batch_size": 8, "sampling": "balanced", **KINDS[kind], **settings})
    data = replace(DATA, train=train, classes=tuple("abcd"))
    return make_loaders(config, data, PREPROCESS, "cpu", *([sharder] if sharder else [])).train


@pytest.mark.parametrize("kind", ["resident", "timm", "albumentations"])
def test_balanced_batches_are_a_function_of_seed_epoch_and_batch_and_share_the_order(kind):
    train = batches(kind)
    first = to_list(train.epoch(2))
    assert equal(to_list(train.epoch(2, start=3)), first[3:]) and equal(to_list(batches(kind).epoch(2)), first)
    labels = torch.cat([labels for _, labels in first])
    resident = torch.cat([labels for _, labels in batches("resident").epoch(2)])
    assert torch.equal(labels, resident) and labels.bincount().tolist() != [30, 10, 8, 2]
    assert not torch.equal(labels, torch.cat([labels for _, labels in train.epoch(3)]))


def test_two_workers_serve_the_balanced_batches_of_one_process():
    assert equal(to_list(batches("timm").epoch(1)), to_list(batches("timm, 2 workers").epoch(1)))


@pytest.mark.parametrize("kind", ["resident", "timm", "albumentations"])
def test_an_image_that_comes_again_in_an_epoch_is_augmented_anew(kind):
    train = batches(kind, cutout=12, flip=False)
    images = torch.cat([images[labels == 3] for images, labels in train.epoch(0)])
    assert len(images) >= 10  # of two different ones
    assert len({image.numpy().tobytes() for image in images}) == len(images)


class Half(SingleProcess):
    """One of two processes, which has its half of every batch."""

    world_size = 2

    def __init__(self, rank):
        self.rank = rank

    def shard(self, num_items):
        return slice(self.rank * num_items // 2, (self.rank + 1) * num_items // 2)


@pytest.mark.parametrize("kind", ["resident", "timm"])
def test_two_processes_share_each_balanced_batch(kind):
    whole = to_list(batches(kind, cutout=0).epoch(1))
    halves = [to_list(batches(kind, Half(rank), cutout=0).epoch(1)) for rank in range(2)]
    joined = [tuple(map(torch.cat, zip(*pair, strict=True))) for pair in zip(*halves, strict=True)]
    assert equal(joined, whole)


def test_alternating_flips_belong_to_the_image_and_not_to_its_place_in_a_balanced_epoch():
    pixels = np.zeros((50, SIZE, SIZE, 3), np.uint8)
    pixels[:, :, : SIZE // 2] = np.arange(50, dtype=np.uint8)[:, None, None, None] * 4 + 40
    mirrored = []
    for epoch in range(2):
        labels = np.repeat([0, 1], [45, 5])
        data = replace(DATA, train=in_memory("train", pixels, labels, DATA.train.ids), classes=("a", "b"))
        config = Config(batch_size=10, sampling="balanced", alternating_flip=True, crop="none", cutout=0)
        train = make_loaders(config, data, replace(PREPROCESS, mean=(0.0,) * 3, std=(1.0,) * 3), "cpu").train
        flips = {}
        for images, _ in train.epoch(epoch):
            for image in images:
                left, right = float(image[0, 0, 0]), float(image[0, 0, -1])
                flips.setdefault(round(max(left, right) * 255), set()).add(right > left)
        assert all(len(each) == 1 for each in flips.values())
        mirrored.append(flips)
    shared = mirrored[0].keys() & mirrored[1].keys()
    assert len(shared) > 10 and all(mirrored[0][image] != mirrored[1][image] for image in shared)
