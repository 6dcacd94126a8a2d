"""Splits, statistics and fingerprints of data sets."""

import pickle

import numpy as np
import pytest
from PIL import Image

from harness.config.settings import Config
from harness.data import dataset
from harness.data.registry import load_dataset
from harness.utils.errors import UsageError
from tests.support.image_folders import load_folder, make_class_folders, random_image, refusal, save_image


def test_digits_are_stratified_without_overlap_and_equally_for_every_seed(digits):
    parts = [digits.train, digits.val, digits.test]
    ids = [set(part.ids) for part in parts]
    assert sum(map(len, ids)) == len(ids[0] | ids[1] | ids[2]) == 1797
    assert len(digits.test) == round(0.2 * 1797) and len(digits.val) == round(0.1 * (1797 - len(digits.test)))
    for part, share in ((digits.test, 0.2), (digits.val, 0.1 * 0.8)):
        whole = np.bincount(np.concatenate([other.labels for other in parts]))
        assert np.abs(np.bincount(part.labels) - share * whole).max() < 1.5
    other = load_dataset(Config(data="digits", val_fraction=0.1, seed=7))
    assert [part.ids for part in (other.train, other.val, other.test)] == [part.ids for part in parts]
    assert other.fingerprint == digits.fingerprint


def test_the_test_split_does_not_depend_on_the_validation_split(digits):
    assert list(load_dataset(Config(data="digits")).test.ids) == list(digits.test.ids)


def test_pixels_labels_and_ids_of_a_split_belong_to_the_same_images(digits):
    from sklearn.datasets import load_digits

    raw = load_digits()
    for split in (digits.train, digits.val, digits.test):
        for index in range(0, len(split), 97):
            number = int(split.ids[index].split("/")[1])
            image, label = split.source[index]
            assert label == split.labels[index] == raw.target[number]
            np.testing.assert_array_equal(np.asarray(image), split.picture(index))
            small = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX)).astype(float)
            assert np.corrcoef(small.ravel(), raw.images[number].ravel())[0, 1] > 0.95


def test_mean_and_standard_deviation_are_those_of_the_training_pixels(digits):
    values = digits.train.pixels.reshape(-1, 3) / 255
    np.testing.assert_allclose(digits.mean, values.mean(0), atol=1e-12)
    np.testing.assert_allclose(digits.std, values.std(0), atol=1e-9)


def test_equal_channels_have_equal_statistics():
    for seed in range(20):
        grey = np.random.default_rng(seed).integers(0, 256, (3, 7, 5, 1), dtype=np.uint8)
        split = dataset.in_memory("train", grey.repeat(3, axis=3), np.zeros(3, int), ["a", "b", "c"])
        (one,), deviation = ({*values} for values in dataset.channel_statistics(split))
        assert len(deviation) == 1
        assert (one, *deviation) == pytest.approx((np.mean(grey / 255), np.std(grey / 255)), rel=1e-12)


def test_the_standard_deviation_of_a_constant_channel_is_not_zero(tmp_path):
    for label in "ab":
        for split in ("train", "test"):
            save_image(tmp_path / split / label / "1.png", np.full((8, 8, 3), 90, np.uint8))
    assert load_folder(tmp_path).std == pytest.approx((1 / 255,) * 3)


def test_a_fraction_of_less_than_one_image_is_refused(tmp_path):
    assert "val_fraction=0.01" in refusal(UsageError, make_class_folders(tmp_path), val_fraction=0.01)


def test_the_fingerprint_changes_with_a_pixel_a_label_or_a_name(tmp_path):
    make_class_folders(tmp_path)
    marks = [load_folder(tmp_path).fingerprint, load_folder(tmp_path).fingerprint]
    assert marks[0] == marks[1] and len(marks[0]) == 64
    path = tmp_path / "test" / "dog" / "1.png"
    changed = np.asarray(Image.open(path)).copy()
    changed[3, 3, 1] ^= 1
    save_image(path, changed)
    marks.append(load_folder(tmp_path).fingerprint)
    path.rename(path.with_name("7.png"))
    marks.append(load_folder(tmp_path).fingerprint)
    (tmp_path / "test" / "dog" / "7.png").rename(tmp_path / "test" / "cat" / "7.png")
    marks.append(load_folder(tmp_path).fingerprint)
    assert len(set(marks)) == 4


@pytest.mark.parametrize("chunk_bytes", [1, 10_000])
def test_fingerprint_and_statistics_do_not_depend_on_the_size_of_chunks(digits, monkeypatch, chunk_bytes):
    splits = (digits.train, digits.val, digits.test)
    monkeypatch.setattr(dataset, "CHUNK_BYTES", chunk_bytes)
    assert dataset.fingerprint(digits.classes, splits) == digits.fingerprint
    np.testing.assert_allclose(dataset.channel_statistics(digits.train), (digits.mean, digits.std), rtol=1e-9)


def test_splits_can_be_sent_to_another_process(tmp_path):
    make_class_folders(tmp_path)
    save_image(tmp_path / "train" / "cat" / "9.png", random_image((10, 12)))
    for split in (load_folder(tmp_path).train, load_folder(tmp_path).test):
        copy = pickle.loads(pickle.dumps(split))
        np.testing.assert_array_equal(copy.picture(2), split.picture(2))
