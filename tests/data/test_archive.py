"""An archive of images is read whole or refused, never in part."""

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc

import numpy as np
import pytest

from harness.data import archive
from harness.data.archive import read_archive
from harness.utils.errors import DataError
from tests.support.image_folders import load_folder, make_class_folders, refusal

COMPRESSORS = {"": lambda content: content, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def tar_of(tree, **options):
    """Return the bytes of a tar archive of a folder."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", **options) as tar:
        tar.add(tree, "pets")
    return packed.getvalue()


def members(path):
    return sorted((name, content) for name, _, content in read_archive(path))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_class_folders(tmp_path_factory.mktemp("tree"), splits=("train", "val", "test"), count=2)


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_cut_archive_is_refused_wherever_it_was_cut(tmp_path, tree, suffix, form):
    whole = tar_of(tree, format=form)
    end = len(whole.rstrip(b"\0")) + 511 & ~511  # of the last member
    packed, path = COMPRESSORS[suffix](whole), tmp_path / f"x.tar{suffix}"
    path.write_bytes(packed)
    expected = members(path)
    assert len(expected) == 22
    # Every block of the plain archive, and bytes beside them; of a compressed one, which has no blocks, 100 places.
    cuts = sorted(
        {cut + more for cut in range(0, len(whole), 512) for more in (-1, 0, 1, 300)} & set(range(len(whole)))
    )
    for cut in cuts if not suffix else range(0, len(packed), max(1, len(packed) // 100)):
        path.write_bytes(packed[:cut])
        if not suffix and cut >= end + 512:  # only zeros are missing
            assert members(path) == expected
            continue
        with pytest.raises(DataError, match="damaged archive"):
            members(path)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_a_flipped_bit_of_an_archive_is_noticed_or_changes_no_name(tmp_path, tree, suffix):
    whole = tar_of(tree)
    packed, path, random = COMPRESSORS[suffix](whole), tmp_path / f"x.tar{suffix}", np.random.default_rng(0)
    path.write_bytes(packed)
    expected, refused = members(path), 0
    for place in random.choice(len(packed), 300, replace=False).tolist():
        damaged = bytearray(packed)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            result = members(path)
        except DataError:
            refused += 1
            continue
        assert [name for name, _ in result] == [name for name, _ in expected]
        if suffix:  # a checksum covers the contents too
            assert result == expected
    assert refused > 50


def test_data_after_the_end_of_an_archive_is_refused(tmp_path, tree):
    whole, path = tar_of(tree), tmp_path / "x.tar"
    for content in (whole + whole, whole + b"x", whole[:-1024] + b"x" + whole[-1024:]):
        path.write_bytes(content)
        assert "data after the end" in refusal(DataError, path)
    path.write_bytes(whole + bytes(100_000))
    assert len(load_folder(path).train) == 4


def bomb(path, name, size):
    """Write a compressed archive whose one member expands to `size` bytes."""
    member = tarfile.TarInfo(name)
    member.size = size
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(member.tobuf())
        for _ in range(0, size, 2**20):
            file.write(bytes(2**20))
        file.write(bytes(1024))
    return path


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("train/cat/1.png", 2**29, "more than any image"),
        ("train/cat/1.png", 2**28, "as a decompression bomb does"),
        ("notes.txt", 2**29, "as a decompression bomb does"),
    ],
)
def test_a_decompression_bomb_is_refused_before_it_takes_memory(tmp_path, monkeypatch, name, size, message):
    if size == 2**28:
        size = 2**28 + 2**20
    path = bomb(tmp_path / "x.tar.gz", name, size)
    monkeypatch.setattr(archive, "MAX_EXPANSION", 100 if message.startswith("as") else 10**6)
    tracemalloc.start()
    try:
        assert message in refusal(DataError, path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_header_that_expands_and_an_endless_end_are_refused(tmp_path, monkeypatch):
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 2**30
    path = tmp_path / "x.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.tobuf())
        file.write(bytes(2**24))
    assert "a header of 1,073,741,824 bytes" in refusal(DataError, path)
    monkeypatch.setattr(archive, "UNSUSPICIOUS_BYTES", 2**20)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(bytes(2**24))
    assert "decompression bomb" in refusal(DataError, path)


def test_images_that_compress_well_are_no_bomb(tmp_path):
    tree = make_class_folders(tmp_path / "tree", count=2)
    for path in sorted(tree.rglob("*.png")):
        from PIL import Image

        Image.new("RGB", (500, 500)).save(path.with_suffix(".bmp"))
        path.unlink()
    (tmp_path / "x.tar.xz").write_bytes(lzma.compress(tar_of(tree)))
    assert len(load_folder(tmp_path / "x.tar.xz").train) == 4
