"""Data sets by name and by folder: what is read, how it is split, and what is refused in one line."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from harness.config.settings import Config
from harness.data import dataset as splits_module
from harness.data import image_folder as folder_module
from harness.data.image_io import read_image
from harness.data.preprocess import Preprocess, make_preprocess
from harness.data.registry import load_dataset
from harness.utils.errors import DataError, UsageError

RANDOM = np.random.default_rng(0)


def picture(size=(8, 8)):
    """Random colours, [H, W, 3]."""
    return RANDOM.integers(0, 256, (*size, 3), dtype=np.uint8)


def save(path, pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if pixels is None else pixels).save(path)
    return path


def make_tree(root, splits=("train", "test"), classes=("cat", "dog"), count=3, size=(8, 8)):
    for split in splits:
        for label in classes:
            for index in range(count):
                save(root / split / label / f"{index}.png", picture(size))
    return root


def load_folder(root, **settings):
    return load_dataset(Config(data="folder", data_dir=str(root), **settings))


def refused(error, root, **settings):
    """The message with which a folder is refused: one line."""
    with pytest.raises(error) as caught:
        load_folder(root, **settings)
    text = str(caught.value)
    assert "\n" not in text and text.isprintable()
    return text


@pytest.fixture(scope="module")
def digits():
    return load_dataset(Config(data="digits", val_fraction=0.1))


def test_digits_are_split_by_class_without_overlap_and_alike_for_every_seed(digits):
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


def test_a_split_keeps_pixels_labels_and_ids_of_an_image_together(digits):
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


def test_mean_and_deviation_are_those_of_the_training_pixels(digits):
    values = digits.train.pixels.reshape(-1, 3) / 255
    np.testing.assert_allclose(digits.mean, values.mean(0), atol=1e-12)
    np.testing.assert_allclose(digits.std, values.std(0), atol=1e-9)


def test_a_channel_that_never_changes_can_be_divided_by(tmp_path):
    for label in "ab":
        for split in ("train", "test"):
            save(tmp_path / split / label / "1.png", np.full((8, 8, 3), 90, np.uint8))
    assert load_folder(tmp_path).std == pytest.approx((1 / 255,) * 3)


@pytest.mark.parametrize(
    ("folders", "val", "test"),
    [
        (("train", "test"), 0, 6),
        (("train", "val", "test"), 6, 6),
        (("train", "valid"), 6, 0),
        (("Training", "Validation"), 6, 0),
    ],
)
def test_a_folder_gives_the_splits_that_it_has(tmp_path, folders, val, test):
    data = load_folder(make_tree(tmp_path, folders))
    assert len(data.train) == 6 and data.classes == ("cat", "dog")
    assert (len(data.val) if data.val else 0, len(data.test) if data.test else 0) == (val, test)
    for split in filter(None, (data.train, data.val, data.test)):
        assert split.pixels.shape == (6, 8, 8, 3)
        for index, name in enumerate(split.ids):
            np.testing.assert_array_equal(split.picture(index), np.asarray(Image.open(tmp_path / name)))
            assert data.classes[split.labels[index]] == name.split("/")[-2]


@pytest.mark.parametrize("settings", [{}, {"test_fraction": 0.4, "val_fraction": 0.2}])
def test_class_folders_without_splits_are_split_by_class(tmp_path, settings):
    data = load_folder(make_tree(tmp_path, ("",), ("a", "b", "c"), count=10), **settings)
    assert np.bincount(data.test.labels).tolist() == [10 * settings.get("test_fraction", 0.2)] * 3
    ids = [name for split in (data.train, data.val, data.test) if split for name in split.ids]
    assert len(ids) == len(set(ids)) == 30 and ids[0].count("/") == 1


def test_a_validation_split_is_cut_from_the_training_folder_only(tmp_path):
    data = load_folder(make_tree(tmp_path, count=10), val_fraction=0.2)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 20)
    assert all(name.startswith("train/") for name in [*data.train.ids, *data.val.ids])


def test_a_class_may_be_called_train(tmp_path):
    assert load_folder(make_tree(tmp_path, ("",), ("bus", "train"), count=5)).classes == ("bus", "train")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
@pytest.mark.parametrize("prefix", ["", "./", "pets/"])
def test_an_archive_gives_what_its_folder_gives(tmp_path, suffix, prefix):
    tree = make_tree(tmp_path / "tree")
    (tree / "train" / ".hidden").mkdir()
    archive = tmp_path / f"data{suffix}"
    with tarfile.open(archive, "w:" + suffix.removeprefix(".tar").removeprefix(".")) as tar:
        for path in sorted(tree.rglob("*.png"), reverse=True):
            tar.add(path, prefix + str(path.relative_to(tree)))
    packed, unpacked = load_folder(archive), load_folder(tree)
    for name in ("train", "test"):
        one, other = getattr(packed, name), getattr(unpacked, name)
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert [item.removeprefix("pets/") for item in one.ids] == list(other.ids)
    assert packed.mean == unpacked.mean
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["tree", archive.name])


def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path):
    make_tree(tmp_path)
    for name in ("train/.ipynb_checkpoints/1.png", "train/__MACOSX/1.png", "train/cat/._0.png", "__MACOSX/x/1.png"):
        save(tmp_path / name)
    (tmp_path / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "train" / "notes.txt").write_text("x")
    data = load_folder(tmp_path)
    assert data.classes == ("cat", "dog") and len(data.train) == 6 and not data.skipped


def damage(kind, path):
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a picture")
    elif kind == "truncated":
        buffer = io.BytesIO()
        Image.fromarray(picture((64, 64))).save(buffer, "JPEG")
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    elif kind == "dangling":
        path.unlink(missing_ok=True)
        path.symlink_to("nowhere.png")
    elif kind == "pipe":
        path.unlink(missing_ok=True)
        os.mkfifo(path)


BAD = ["empty", "text", "truncated", "dangling", "pipe"]


@pytest.mark.parametrize("kind", BAD)
def test_an_unreadable_image_is_named_or_skipped_and_counted(tmp_path, kind):
    make_tree(tmp_path)
    damage(kind, tmp_path / "train" / "cat" / "1.png")
    damage("empty", tmp_path / "test" / "dog" / "2.png")
    told = refused(DataError, tmp_path)
    assert "2 of 12 images" in told and "test/dog/2.png" in told and "--bad-images skip" in told
    data = load_folder(tmp_path, bad_images="skip")
    assert data.skipped == ["test/dog/2.png", "train/cat/1.png"]
    assert (len(data.train), len(data.test)) == (5, 5)
    assert "train/cat/1.png" not in data.train.ids and data.train.pixels.shape == (5, 8, 8, 3)


def test_skipping_must_leave_every_class_an_image(tmp_path):
    make_tree(tmp_path, count=1)
    damage("text", tmp_path / "train" / "cat" / "0.png")
    assert "class cat" in refused(DataError, tmp_path, bad_images="skip")


def test_a_class_without_images_is_refused(tmp_path):
    make_tree(tmp_path)
    (tmp_path / "train" / "cow").mkdir()
    (tmp_path / "train" / "cow" / "readme.txt").write_text("x")
    assert "class folder cow of train" in refused(DataError, tmp_path)


def test_a_class_of_the_test_folder_that_is_not_trained_on_is_refused(tmp_path):
    make_tree(tmp_path)
    save(tmp_path / "test" / "cow" / "1.png")
    assert "cow" in refused(DataError, tmp_path)


def test_classes_that_differ_only_in_case_are_refused(tmp_path):
    told = refused(DataError, make_tree(tmp_path, classes=("cat", "Cat", "dog")))
    assert "Cat and cat" in told


@pytest.mark.parametrize(
    ("splits", "classes", "word"),
    [
        (("train", "test"), ("cat",), "only one class"),
        (("test",), ("cat", "dog"), "no train folder"),
        ((), (), "no images in class folders"),
    ],
)
def test_data_that_no_classifier_can_learn_from_is_refused(tmp_path, splits, classes, word):
    assert word in refused(DataError, make_tree(tmp_path, splits, classes))


def test_a_missing_folder_is_refused_with_what_to_set(tmp_path):
    assert "--data-dir" in refused(DataError, tmp_path / "no")
    (tmp_path / "file.bin").write_bytes(b"x")
    assert "neither a folder nor an archive" in refused(DataError, tmp_path / "file.bin")


def test_two_folders_for_one_split_are_refused(tmp_path):
    assert "val and valid would both be" in refused(DataError, make_tree(tmp_path, ("train", "val", "valid")))


def test_a_validation_folder_and_a_validation_fraction_contradict_each_other(tmp_path):
    assert "--val-fraction 0" in refused(UsageError, make_tree(tmp_path, ("train", "val")), val_fraction=0.1)


def test_a_fraction_that_holds_nothing_out_is_refused(tmp_path):
    assert "val_fraction=0.01" in refused(UsageError, make_tree(tmp_path), val_fraction=0.01)


def test_a_number_of_classes_that_the_data_has_not_is_refused(tmp_path):
    assert "classes=5" in refused(UsageError, make_tree(tmp_path), classes=5)


def test_link_loops_are_walked_once(tmp_path):
    make_tree(tmp_path)
    (tmp_path / "train" / "cat" / "loop").symlink_to("..")
    (tmp_path / "train" / "dog" / "top").symlink_to(tmp_path)
    data = load_folder(tmp_path)
    assert sorted(data.train.ids) == sorted(
        f"train/{label}/{index}.png" for label in ("cat", "dog") for index in range(3)
    )


def test_links_within_the_data_folder_are_followed(tmp_path):
    make_tree(tmp_path / "pool", ("",), ("x",), count=4)
    for split, label, index in (("train", "a", 0), ("train", "b", 1), ("test", "a", 2), ("test", "b", 3)):
        (tmp_path / split / label).mkdir(parents=True)
        (tmp_path / split / label / "1.png").symlink_to(tmp_path / "pool" / "x" / f"{index}.png")
    data = load_folder(tmp_path)
    assert list(data.train.ids) == ["train/a/1.png", "train/b/1.png"]
    np.testing.assert_array_equal(data.test.pixels[1], np.asarray(Image.open(tmp_path / "pool" / "x" / "3.png")))


@pytest.mark.parametrize("what", ["file", "folder"])
def test_links_that_leave_the_data_folder_are_refused(tmp_path, what):
    root = make_tree(tmp_path / "data")
    save(tmp_path / "data2" / "1.png")
    target = tmp_path / "data2" if what == "folder" else tmp_path / "data2" / "1.png"
    (root / "train" / "cat" / "x.png").symlink_to(target)
    assert "train/cat/x.png is a link that leaves" in refused(DataError, root)
    assert "leaves" in refused(DataError, root, bad_images="skip")


def add_member(tar, name, content=b"x", kind=tarfile.REGTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, len(content) if kind == tarfile.REGTYPE else 0, "/etc/passwd"
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../out.png", tarfile.REGTYPE),
        ("train/../../out.png", tarfile.REGTYPE),
        ("/etc/out.png", tarfile.REGTYPE),
        ("train/cat/link.png", tarfile.SYMTYPE),
        ("train/cat/hard.png", tarfile.LNKTYPE),
        ("train/cat/pipe.png", tarfile.FIFOTYPE),
        ("train/cat/device.png", tarfile.CHRTYPE),
    ],
)
def test_an_unsafe_archive_is_refused(tmp_path, name, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add_member(tar, name, kind=kind)
    assert "refused" in refused(DataError, tmp_path / "x.tar")


def test_a_damaged_archive_is_refused(tmp_path):
    tree = make_tree(tmp_path / "tree")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(tree, "pets")
    whole = (tmp_path / "x.tar.gz").read_bytes()
    for content in (whole[: len(whole) // 2], b"no archive", b""):
        (tmp_path / "x.tar.gz").write_bytes(content)
        assert "damaged archive" in refused(DataError, tmp_path / "x.tar.gz")


def test_an_archive_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.data.folder_scan.MAX_ARCHIVE_BYTES", 100)
    with gzip.open(tmp_path / "x.tar.gz", "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        add_member(tar, "train/cat/1.png", bytes(101))
    assert "unpack it" in refused(DataError, tmp_path / "x.tar.gz")


def test_names_that_do_not_print_are_escaped(tmp_path):
    make_tree(tmp_path, classes=("a\nb", "c"))
    data = load_folder(tmp_path)
    assert data.classes == ("a\\nb", "c") and data.train.ids[0] == "train/a\\nb/0.png"
    (tmp_path / "train" / "a\nb" / "0.png").write_bytes(b"")
    assert "a\\nb/0.png" in refused(DataError, tmp_path)


def test_images_of_several_sizes_are_decoded_when_asked(tmp_path):
    make_tree(tmp_path)
    big = save(tmp_path / "train" / "cat" / "9.png", picture((10, 12)))
    data = load_folder(tmp_path)
    assert data.train.pixels is None and data.test.pixels is not None
    index = data.train.ids.index("train/cat/9.png")
    np.testing.assert_array_equal(data.train.picture(index), np.asarray(Image.open(big)))
    assert data.train.source[index][1] == 0
    part = load_folder(tmp_path, val_fraction=0.3)
    assert [part.val.picture(i).shape for i in range(len(part.val))]
    before = data.fingerprint
    save(big, picture((20, 30)))
    assert load_folder(tmp_path).fingerprint != before


def test_many_large_files_are_checked_by_their_headers_unless_bad_ones_are_to_be_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "MAX_CHECKED_BYTES", 0)
    make_tree(tmp_path)
    save(tmp_path / "train" / "cat" / "9.png", picture((10, 12)))
    damage("truncated", tmp_path / "train" / "dog" / "1.png")
    damage("text", tmp_path / "train" / "dog" / "2.png")
    assert "1 of 13 images" in refused(DataError, tmp_path)
    assert load_folder(tmp_path, bad_images="skip").skipped == ["train/dog/1.png", "train/dog/2.png"]
    (tmp_path / "train" / "dog" / "2.png").unlink()
    data = load_folder(tmp_path)
    with pytest.raises(DataError, match=r"train/dog/1\.png: damaged image"):
        data.train.picture(data.train.ids.index("train/dog/1.png"))


def test_several_processes_read_what_one_reads(tmp_path, monkeypatch):
    make_tree(tmp_path, count=5)
    damage("text", tmp_path / "train" / "dog" / "1.png")
    alone = load_folder(tmp_path, bad_images="skip")
    monkeypatch.setattr(folder_module, "MIN_PARALLEL_FILES", 1)
    monkeypatch.setattr(folder_module, "CHUNK_FILES", 3)
    together = load_folder(tmp_path, bad_images="skip")
    assert together.fingerprint == alone.fingerprint and together.skipped == alone.skipped


def test_pictures_beyond_the_memory_limit_stay_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "MAX_PIXEL_BYTES", 6 * 8 * 8 * 3 - 1)
    data = load_folder(make_tree(tmp_path))
    assert data.train.pixels is None and data.train.picture(0).shape == (8, 8, 3)


def test_the_fingerprint_changes_with_a_pixel_a_label_or_a_name(tmp_path):
    make_tree(tmp_path)
    marks = [load_folder(tmp_path).fingerprint, load_folder(tmp_path).fingerprint]
    assert marks[0] == marks[1] and len(marks[0]) == 64
    path = tmp_path / "test" / "dog" / "1.png"
    changed = np.asarray(Image.open(path)).copy()
    changed[3, 3, 1] ^= 1
    save(path, changed)
    marks.append(load_folder(tmp_path).fingerprint)
    path.rename(path.with_name("7.png"))
    marks.append(load_folder(tmp_path).fingerprint)
    (tmp_path / "test" / "dog" / "7.png").rename(tmp_path / "test" / "cat" / "7.png")
    marks.append(load_folder(tmp_path).fingerprint)
    assert len(set(marks)) == 4


def test_the_fingerprint_does_not_depend_on_the_size_of_chunks(digits):
    whole = b"".join(chunk.tobytes() for chunk in splits_module._chunks(digits.train.pixels, 10_000))
    assert whole == digits.train.pixels.tobytes()


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_kind_of_picture_becomes_rgb():
    rgb = picture((4, 6))
    grey = rgb[..., 0]
    three = np.repeat(grey[..., None], 3, 2)
    deep = RANDOM.integers(0, 65536, (4, 6)).astype(np.uint16)
    alpha = np.dstack([rgb, np.where(np.arange(24).reshape(4, 6) % 2, 255, 0).astype(np.uint8)])
    white = np.where(alpha[..., 3:] == 255, rgb, 255)
    palette = Image.fromarray(rgb).quantize(16)
    cases = {
        "RGB": (encoded(Image.fromarray(rgb)), rgb),
        "grey": (encoded(Image.fromarray(grey)), three),
        "16 bit": (encoded(Image.fromarray(deep)), np.repeat(np.rint(deep / 257).astype(np.uint8)[..., None], 3, 2)),
        "16 bit TIFF": (encoded(Image.fromarray(deep), "TIFF"), np.repeat(np.rint(deep / 257).astype(np.uint8)[..., None], 3, 2)),
        "alpha": (encoded(Image.fromarray(alpha)), white),
        "grey and alpha": (encoded(Image.fromarray(np.dstack([grey, alpha[..., 3]]))), np.where(alpha[..., 3:] == 255, three, 255)),
        "palette": (encoded(palette), np.asarray(palette.convert("RGB"))),
        "CMYK": (encoded(Image.fromarray(rgb).convert("CMYK"), "TIFF"), np.asarray(Image.fromarray(rgb).convert("CMYK").convert("RGB"))),
        "1 bit": (encoded(Image.fromarray(grey > 99)), np.repeat((grey > 99)[..., None] * np.uint8(255), 3, 2)),
        "1 x 1": (encoded(Image.fromarray(rgb[:1, :1])), rgb[:1, :1]),
    }  # fmt: skip
    for name, (content, expected) in cases.items():
        result = read_image(content)
        assert result.dtype == np.uint8, name
        np.testing.assert_array_equal(result, expected, err_msg=name)


def test_transparent_palette_entries_become_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(read_image(encoded(image, transparency=0)), [[[255, 255, 255], [40, 50, 60]]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation):
    rgb = picture((4, 6))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: rgb, 2: rgb[:, ::-1], 3: rgb[::-1, ::-1], 4: rgb[::-1], 5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb, -1), 7: rgb[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(rgb),
    }  # fmt: skip
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(rgb), exif=exif)), turned[orientation])


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.fromarray(np.full((3, 3, 3), value, np.uint8)) for value in (10, 200)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(content), np.full((3, 3, 3), 10))


def header_of(width, height):
    """A PNG that says it is that large, and holds nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I4s", 99, b"IDAT")
    )


@pytest.mark.parametrize("side", [8_000, 10_000, 14_000])
def test_a_huge_picture_is_refused_from_its_header(tmp_path, side):
    with pytest.raises(DataError, match="more than 50,000,000"):
        read_image(header_of(side, side))
    make_tree(tmp_path)
    (tmp_path / "train" / "cat" / "0.png").write_bytes(header_of(side, side))
    assert "train/cat/0.png" in refused(DataError, tmp_path)


def test_a_format_that_would_start_another_program_is_not_read():
    with pytest.raises(DataError, match="not an image"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")


def test_an_image_is_read_from_a_path_a_file_or_bytes(tmp_path):
    path = save(tmp_path / "1.png", rgb := picture())
    with open(path, "rb") as file:
        for source in (path, str(path), path.read_bytes(), file):
            np.testing.assert_array_equal(read_image(source), rgb)
    with pytest.raises(DataError, match=r"none\.png: No such file"):
        read_image(tmp_path / "none.png")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "torch/mnist"])
def test_data_that_is_not_there_is_refused_with_the_folder_and_the_remedy(tmp_path, name):
    with pytest.raises(DataError) as caught:
        load_dataset(Config(data=name, data_dir=str(tmp_path / "none"), download=False))
    assert str(tmp_path / "none") in str(caught.value) and "--download True" in str(caught.value)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["cifar", "torch/mnits", "Folder/x", "no_such"])
def test_an_unknown_name_is_refused_before_anything_is_read(tmp_path, name):
    with pytest.raises(UsageError, match="there is no data"):
        load_dataset(Config(data=name, data_dir=str(tmp_path)))


def test_a_set_that_timm_knows_is_read_by_its_name(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images = {
        "train": RANDOM.integers(0, 256, (40, 28, 28), dtype=np.uint8),
        "t10k": RANDOM.integers(0, 256, (20, 28, 28), dtype=np.uint8),
    }
    for name, pixels in images.items():
        labels = np.arange(len(pixels), dtype=np.uint8) % 10
        (folder / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, len(pixels), 28, 28) + pixels.tobytes()
        )
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(pixels)) + labels.tobytes())
    data = load_dataset(Config(data="torch/mnist", data_dir=str(tmp_path), val_fraction=0.25))
    assert (len(data.train), len(data.val), len(data.test), len(data.classes)) == (30, 10, 20, 10)
    np.testing.assert_array_equal(data.test.pixels, np.repeat(images["t10k"][..., None], 3, 3))
    for index, name in enumerate(data.val.ids):
        np.testing.assert_array_equal(data.val.picture(index)[..., 0], images["train"][int(name.split("/")[1])])


def test_splits_can_be_sent_to_another_process(tmp_path):
    make_tree(tmp_path)
    save(tmp_path / "train" / "cat" / "9.png", picture((10, 12)))
    for split in (load_folder(tmp_path).train, load_folder(tmp_path).test):
        copy = pickle.loads(pickle.dumps(split))
        np.testing.assert_array_equal(copy.picture(2), split.picture(2))


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@pytest.mark.parametrize("shape", [(32, 32), (20, 50), (300, 40), (1, 1), (3, 2000)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_the_evaluation_transform_is_torchvisions(shape, crop_pct):
    rgb = picture(shape)
    preprocess = Preprocess(32, MEAN, STD, crop_pct, "bicubic")
    short = int(32 / crop_pct)
    torchvisions = transforms.Compose(
        [
            transforms.Resize(short, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    expected = torchvisions(Image.fromarray(rgb))
    for image in (preprocess.image(rgb), preprocess.image(Image.fromarray(rgb))):
        if max(shape) <= 4 * min(shape):  # else torchvision resizes what it then cuts away
            torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)
        assert image.shape == (3, 32, 32) and image.dtype == torch.float32


def test_a_very_long_picture_is_not_blown_up():
    image = Preprocess(224, MEAN, STD, 0.875, "bilinear").image(np.zeros((1, 200_000, 3), np.uint8))
    assert image.shape == (3, 224, 224)


def test_denormalising_gives_the_pixels_back():
    rgb = picture((32, 32))
    preprocess = Preprocess(32, MEAN, STD, 1.0, "bicubic")
    images = torch.stack([preprocess.image(rgb), torch.zeros(3, 32, 32)])
    shown = preprocess.denormalise(images)
    np.testing.assert_allclose(shown[0].permute(1, 2, 0).numpy() * 255, rgb, atol=1e-4)
    torch.testing.assert_close(shown[1], torch.tensor(MEAN).view(3, 1, 1).expand(3, 32, 32))
    assert shown.min() >= 0 and shown.max() <= 1
    assert Preprocess(**preprocess.to_dict()) == preprocess


def test_our_models_take_the_statistics_of_the_data_and_others_their_own(digits):
    import timm

    from harness.models import cifar_resnet  # noqa: F401  registers our models

    ours = timm.create_model("custom_resnet", num_classes=10)
    assert make_preprocess(Config(data="digits"), ours, digits) == Preprocess(
        32, digits.mean, digits.std, 1.0, "bicubic"
    )
    theirs = timm.create_model("test_resnet", num_classes=10)
    made = make_preprocess(Config(data="digits", model="test_resnet"), theirs, digits)
    cfg = theirs.pretrained_cfg
    assert (made.size, made.mean, made.std) == (cfg["input_size"][-1], cfg["mean"], cfg["std"])
    assert made.crop_pct == cfg["crop_pct"]
    assert make_preprocess(Config(data="digits", model="test_resnet", image_size=32), theirs, digits).crop_pct == 1.0
    bare = make_preprocess(Config(data="digits"), nn.Linear(1, 1), digits)
    assert (bare.size, bare.mean) == (32, digits.mean)


def test_paths_with_a_tilde_are_meant_for_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_tree(tmp_path / "pets")
    assert len(load_folder(Path("~/pets")).train) == 6


def test_the_digits_are_those_that_scikit_learn_gives():
    from sklearn.datasets import load_digits

    from harness.data.registry import read_digits_table

    values, labels = read_digits_table()
    theirs = load_digits()
    np.testing.assert_array_equal(values, theirs.data)
    np.testing.assert_array_equal(labels, theirs.target)
