"""The cache of decoded archives: bit-identical images, decoded again when the archive changes or the entry is damaged."""

import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from harness.data import decoded_cache, image_folder
from tests.support.image_folders import load_folder


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HARNESS_CACHE", raising=False)
    monkeypatch.setattr(decoded_cache, "MIN_IMAGES", 1)
    return make_archive(tmp_path, seed=0)


def make_archive(folder, seed, count=6):
    random, path = np.random.default_rng(seed), folder / "images.tar"
    with tarfile.open(path, "w") as tar:
        for split in ("train", "test"):
            for label in ("a", "b"):
                for index in range(count):
                    image = folder / "image.png"
                    Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(image)
                    tar.add(image, f"{split}/{label}/{index}.png")
    return path


def entries(tmp_path):
    return sorted((tmp_path / "cache/harness/decoded").glob("*"))


def assert_same(one, other):
    assert one.fingerprint == other.fingerprint and one.classes == other.classes
    assert (one.mean, one.std) == (other.mean, other.std)
    for name in ("train", "test"):
        first, second = getattr(one, name), getattr(other, name)
        assert first.ids == second.ids
        np.testing.assert_array_equal(first.pixels, second.pixels)
        np.testing.assert_array_equal(first.labels, second.labels)


def test_an_archive_is_decoded_once_and_its_cached_images_are_bit_identical(archive, tmp_path, monkeypatch):
    first = load_folder(archive)
    assert len(entries(tmp_path)) == 1
    monkeypatch.setattr(
        image_folder, "scan_folder", lambda root, classes: pytest.fail("the archive was unpacked again")
    )
    assert_same(load_folder(archive), first)


def test_an_archive_that_changed_is_decoded_again(archive, tmp_path):
    first = load_folder(archive)
    make_archive(tmp_path, seed=1)
    os.utime(archive, ns=(1, 1))
    second = load_folder(archive)
    assert second.fingerprint != first.fingerprint
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"x" * 99]
)
def test_a_damaged_entry_is_decoded_again(archive, tmp_path, damage, caplog):
    first = load_folder(archive)
    (entry,) = entries(tmp_path)
    entry.write_bytes(damage(entry.read_bytes()))
    assert_same(load_folder(archive), first)
    assert "is damaged" in caplog.text
    caplog.clear()
    assert_same(load_folder(archive), first)
    assert caplog.text == ""


def test_only_a_few_entries_are_kept_and_a_cache_that_cannot_be_written_does_not_stop_a_run(
    archive, tmp_path, monkeypatch
):
    for time in range(decoded_cache.MAX_ENTRIES + 2):
        os.utime(archive, ns=(time, time))
        load_folder(archive)
    assert len(entries(tmp_path)) == decoded_cache.MAX_ENTRIES
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load_folder(archive).train) == 12


def test_nothing_is_cached_of_an_archive_with_unreadable_images_or_with_harness_cache_off(
    archive, tmp_path, monkeypatch
):
    with tarfile.open(archive, "a") as tar:
        (tmp_path / "bad.png").write_bytes(b"not a picture")
        tar.add(tmp_path / "bad.png", "train/a/bad.png")
    dataset = load_folder(archive, bad_images="skip")
    assert dataset.skipped and not entries(tmp_path)
    monkeypatch.setenv("HARNESS_CACHE", "off")
    load_folder(make_archive(tmp_path, seed=2))
    assert not entries(tmp_path)


def test_an_entry_whose_labels_and_images_differ_in_number_is_decoded_again(archive, tmp_path, caplog):
    first = load_folder(archive)
    (entry,) = entries(tmp_path)
    with np.load(entry) as stored:
        arrays = dict(stored)
    np.savez(entry, **{**arrays, "train/labels": arrays["train/labels"][:-1]})
    assert_same(load_folder(archive), first)
    assert "its arrays have different lengths" in caplog.text
