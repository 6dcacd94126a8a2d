"""Class folders and archives: which images and splits they hold, and what is refused in one line."""

import gzip
import io
import os
import tarfile
from functools import partial

import numpy as np
import pytest
from PIL import Image

from harness.config.settings import Config
from harness.data import listing
from harness.data.registry import load_evaluation_data
from harness.utils.errors import DataError, ResourceError, UsageError
from tests.support.image_folders import load_folder, make_class_folders, random_image, refusal, save_image


@pytest.mark.parametrize(
    ("folders", "val", "test"),
    [
        (("train", "test"), 0, 6),
        (("train", "val", "test"), 6, 6),
        (("train", "valid"), 6, 0),
        (("Training", "Validation"), 6, 0),
        (("Training", "Testing"), 0, 6),
        (("train", "dev"), 6, 0),
        (("train", "eval"), 6, 0),
        (("TRAIN", "dev", "Test"), 6, 6),
    ],
)
def test_a_folder_gives_the_splits_that_it_has(tmp_path, folders, val, test):
    data = load_folder(make_class_folders(tmp_path, folders))
    assert len(data.train) == 6 and data.classes == ("cat", "dog")
    assert (len(data.val) if data.val else 0, len(data.test) if data.test else 0) == (val, test)
    for split in filter(None, (data.train, data.val, data.test)):
        assert split.pixels.shape == (6, 8, 8, 3)
        for index, name in enumerate(split.ids):
            np.testing.assert_array_equal(split.picture(index), np.asarray(Image.open(tmp_path / name)))
            assert data.classes[split.labels[index]] == name.split("/")[-2]


@pytest.mark.parametrize("settings", [{}, {"test_fraction": 0.4, "val_fraction": 0.2}])
def test_class_folders_without_splits_are_stratified(tmp_path, settings):
    data = load_folder(make_class_folders(tmp_path, ("",), ("a", "b", "c"), count=10), **settings)
    assert np.bincount(data.test.labels).tolist() == [10 * settings.get("test_fraction", 0.2)] * 3
    ids = [name for split in (data.train, data.val, data.test) if split for name in split.ids]
    assert len(ids) == len(set(ids)) == 30 and ids[0].count("/") == 1


def test_a_validation_split_is_taken_from_the_training_folder_only(tmp_path):
    data = load_folder(make_class_folders(tmp_path, count=10), val_fraction=0.2)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 20)
    assert all(name.startswith("train/") for name in [*data.train.ids, *data.val.ids])


def test_a_class_may_be_called_train(tmp_path):
    assert load_folder(make_class_folders(tmp_path, ("",), ("bus", "train"), count=5)).classes == ("bus", "train")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
@pytest.mark.parametrize("prefix", ["", "./", "pets/"])
def test_an_archive_is_read_like_the_folder_that_it_was_made_of(tmp_path, suffix, prefix):
    tree = make_class_folders(tmp_path / "tree")
    (tree / "train" / ".hidden").mkdir()
    archive = tmp_path / f"data{suffix}"
    with tarfile.open(archive, "w:" + suffix.removeprefix(".tar").removeprefix(".")) as tar:
        for path in sorted(tree.rglob("*.png"), reverse=True):
            tar.add(path, prefix + str(path.relative_to(tree)))
    packed, unpacked = load_folder(archive), load_folder(tree)
    for name in ("train", "test"):
        split, expected = getattr(packed, name), getattr(unpacked, name)
        np.testing.assert_array_equal(split.pixels, expected.pixels)
        np.testing.assert_array_equal(split.labels, expected.labels)
        assert [item.removeprefix("pets/") for item in split.ids] == list(expected.ids)
    assert packed.mean == unpacked.mean
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["tree", archive.name])


def test_files_of_operating_systems_are_neither_classes_nor_images(tmp_path):
    make_class_folders(tmp_path)
    for name in ("train/.ipynb_checkpoints/1.png", "train/__MACOSX/1.png", "train/cat/._0.png", "__MACOSX/x/1.png"):
        save_image(tmp_path / name)
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
        Image.fromarray(random_image((64, 64))).save(buffer, "JPEG")
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    elif kind == "dangling":
        path.unlink(missing_ok=True)
        path.symlink_to("nowhere.png")
    elif kind == "pipe":
        path.unlink(missing_ok=True)
        os.mkfifo(path)


def pack(tree, archive):
    with tarfile.open(archive, "w") as tar:
        for path in sorted(tree.iterdir()):
            tar.add(path, path.name)
    return archive


@pytest.mark.parametrize("is_archive", [False, True])
@pytest.mark.parametrize("prefix", ["", "pets"])
def test_images_outside_the_class_folders_and_files_of_other_kinds_are_named_and_counted(
    tmp_path, caplog, is_archive, prefix
):
    root = tmp_path / "data" / prefix
    make_class_folders(root, ("train", "extra"))
    for name in ("test/1.png", "test/2.png", "train/loose.png", "train/cat/.hidden.png", "3.jfif"):
        save_image((root / name).with_suffix(".png"), None).rename(root / name)
    for name in ("train/cat/a.heic", "train/dog/b.HEIC", "train/notes.txt", "train/cat/Makefile"):
        (root / name).write_text("x")
    data = load_folder(
        pack(tmp_path / "data", tmp_path / "x.tar") if is_archive else tmp_path / "data", test_fraction=0.4
    )
    assert (len(data.train), len(data.test)) == (4, 2)
    start = f"{prefix}/" if prefix else ""
    assert sorted(data.notes) == sorted(
        [
            f"10 images are not used, because they are outside the class folders of {start}train: "
            f"{prefix or '.'} (1), {start}extra (6), {start}test (2), {start}train (1)",
            "4 files are of kinds that are not read as images: .heic (2), .txt (1), Makefile (1)",
        ]
    )
    assert caplog.messages == data.notes


def test_loose_images_beside_class_folders_are_named(tmp_path):
    make_class_folders(tmp_path, ("",))
    save_image(tmp_path / "loose.png")
    assert load_folder(tmp_path).notes == ["1 image is not used, because it is outside the class folders: . (1)"]


def test_unreadable_kinds_are_named_where_no_image_is_left(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "1.heic").write_text("x")
    assert "1 file is of kinds that are not read as images: .heic (1)" in refusal(DataError, tmp_path)


@pytest.mark.parametrize("suffix", [".jfif", ".JIF", ".pjpeg", ".pjp", ".jpe"])
def test_all_extensions_of_jpeg_are_read(tmp_path, suffix):
    make_class_folders(tmp_path, ("train",), count=4)
    for path in sorted(tmp_path.rglob("*.png")):
        Image.fromarray(random_image()).save(path.with_suffix(".jpg"))
        path.with_suffix(".jpg").rename(path.with_suffix(suffix))
        path.unlink()
    data = load_folder(tmp_path)
    assert len(data.train) + len(data.test) == 8 and not data.notes


DAMAGES = ["empty", "text", "truncated", "dangling", "pipe"]


@pytest.mark.parametrize("kind", DAMAGES)
def test_an_unreadable_image_is_named_or_skipped_and_counted(tmp_path, kind):
    make_class_folders(tmp_path)
    damage(kind, tmp_path / "train" / "cat" / "1.png")
    damage("empty", tmp_path / "test" / "dog" / "2.png")
    message = refusal(DataError, tmp_path)
    assert "2 of 12 images" in message and "test/dog/2.png" in message and "--bad-images skip" in message
    data = load_folder(tmp_path, bad_images="skip")
    assert data.skipped == ["test/dog/2.png", "train/cat/1.png"]
    assert (len(data.train), len(data.test)) == (5, 5)
    assert "train/cat/1.png" not in data.train.ids and data.train.pixels.shape == (5, 8, 8, 3)


def test_skipping_images_must_not_empty_a_class(tmp_path):
    make_class_folders(tmp_path, count=1)
    damage("text", tmp_path / "train" / "cat" / "0.png")
    assert "class cat" in refusal(DataError, tmp_path, bad_images="skip")


def test_a_class_without_images_is_refused(tmp_path):
    make_class_folders(tmp_path)
    (tmp_path / "train" / "cow").mkdir()
    (tmp_path / "train" / "cow" / "readme.txt").write_text("x")
    assert "class folder cow of train" in refusal(DataError, tmp_path)


def test_a_class_only_in_the_test_folder_is_refused(tmp_path):
    make_class_folders(tmp_path)
    save_image(tmp_path / "test" / "cow" / "1.png")
    assert "cow" in refusal(DataError, tmp_path)


def test_classes_that_differ_only_in_case_are_refused(tmp_path):
    message = refusal(DataError, make_class_folders(tmp_path, classes=("cat", "Cat", "dog")))
    assert "Cat and cat" in message


@pytest.mark.parametrize(
    ("splits", "classes", "message"),
    [
        (("train", "test"), ("cat",), "only one class"),
        (("test",), ("cat", "dog"), "no train folder"),
        ((), (), "no images in class folders"),
    ],
)
def test_data_without_two_classes_to_train_on_is_refused(tmp_path, splits, classes, message):
    assert message in refusal(DataError, make_class_folders(tmp_path, splits, classes))


def test_a_missing_folder_is_refused_with_the_setting_to_change(tmp_path):
    assert "--data-dir" in refusal(DataError, tmp_path / "no")
    (tmp_path / "file.bin").write_bytes(b"x")
    assert "neither a folder nor an archive" in refusal(DataError, tmp_path / "file.bin")


def test_two_folders_for_one_split_are_refused(tmp_path):
    assert "val and valid would both be" in refusal(DataError, make_class_folders(tmp_path, ("train", "val", "valid")))


def test_a_validation_folder_and_a_validation_fraction_contradict_each_other(tmp_path):
    assert "--val-fraction 0" in refusal(UsageError, make_class_folders(tmp_path, ("train", "val")), val_fraction=0.1)


def test_a_number_of_classes_that_differs_from_the_data_is_refused(tmp_path):
    assert "classes=5" in refusal(UsageError, make_class_folders(tmp_path), classes=5)


def test_link_loops_are_visited_once(tmp_path):
    make_class_folders(tmp_path)
    (tmp_path / "train" / "cat" / "loop").symlink_to("..")
    (tmp_path / "train" / "dog" / "top").symlink_to(tmp_path)
    data = load_folder(tmp_path)
    assert sorted(data.train.ids) == sorted(
        f"train/{label}/{index}.png" for label in ("cat", "dog") for index in range(3)
    )
    assert data.notes == [
        "2 links are not used, because they lead to a folder or an image that is read already: train/cat/loop, train/dog/top"
    ]


def test_an_image_that_a_second_link_leads_to_is_read_once_and_the_link_is_named(tmp_path):
    make_class_folders(tmp_path)
    (tmp_path / "test/dog/again.png").symlink_to(tmp_path / "train/cat/0.png")
    (tmp_path / "test/dog/old").symlink_to(tmp_path / "test/cat")
    data = load_folder(tmp_path)
    assert (len(data.train), len(data.test)) == (6, 6) and data.notes == [
        "2 links are not used, because they lead to a folder or an image that is read already: test/dog/again.png, test/dog/old"
    ]
    (tmp_path / "test/dog/old").unlink()
    assert load_folder(tmp_path).notes[0].startswith("1 link is not used, because it leads to a folder or an image")


def test_links_within_the_data_folder_are_followed(tmp_path):
    make_class_folders(tmp_path / "pool", ("",), ("x",), count=4)
    for split, label, index in (("train", "a", 0), ("train", "b", 1), ("test", "a", 2), ("test", "b", 3)):
        (tmp_path / split / label).mkdir(parents=True)
        (tmp_path / split / label / "1.png").symlink_to(tmp_path / "pool" / "x" / f"{index}.png")
    data = load_folder(tmp_path)
    assert list(data.train.ids) == ["train/a/1.png", "train/b/1.png"]
    np.testing.assert_array_equal(data.test.pixels[1], np.asarray(Image.open(tmp_path / "pool" / "x" / "3.png")))


@pytest.mark.parametrize("what", ["file", "folder"])
def test_links_that_leave_the_data_folder_are_refused(tmp_path, what):
    root = make_class_folders(tmp_path / "data")
    save_image(tmp_path / "data2" / "1.png")
    target = tmp_path / "data2" if what == "folder" else tmp_path / "data2" / "1.png"
    (root / "train" / "cat" / "x.png").symlink_to(target)
    assert "train/cat/x.png is a link that leaves" in refusal(DataError, root)
    assert "leaves" in refusal(DataError, root, bad_images="skip")


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
    assert "refused" in refusal(DataError, tmp_path / "x.tar")


def test_a_damaged_archive_is_refused(tmp_path):
    tree = make_class_folders(tmp_path / "tree")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(tree, "pets")
    whole = (tmp_path / "x.tar.gz").read_bytes()
    for content in (whole[: len(whole) // 2], b"no archive", b""):
        (tmp_path / "x.tar.gz").write_bytes(content)
        assert "damaged archive" in refusal(DataError, tmp_path / "x.tar.gz")


def test_an_archive_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.data.archive.MAX_ARCHIVE_BYTES", 100)
    with gzip.open(tmp_path / "x.tar.gz", "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        add_member(tar, "train/cat/1.png", bytes(101))
    assert "unpack it" in refusal(DataError, tmp_path / "x.tar.gz")


def test_unprintable_names_are_escaped(tmp_path):
    make_class_folders(tmp_path, classes=("a\nb", "c"))
    data = load_folder(tmp_path)
    assert data.classes == ("a\\nb", "c") and data.train.ids[0] == "train/a\\nb/0.png"
    (tmp_path / "train" / "a\nb" / "0.png").write_bytes(b"")
    assert "a\\nb/0.png" in refusal(DataError, tmp_path)


def test_images_of_several_sizes_are_decoded_on_access(tmp_path):
    make_class_folders(tmp_path)
    big = save_image(tmp_path / "train" / "cat" / "9.png", random_image((10, 12)))
    data = load_folder(tmp_path)
    assert data.train.pixels is None and data.test.pixels is not None
    index = data.train.ids.index("train/cat/9.png")
    np.testing.assert_array_equal(data.train.picture(index), np.asarray(Image.open(big)))
    assert data.train.source[index][1] == 0
    part = load_folder(tmp_path, val_fraction=0.3)
    assert [part.val.picture(i).shape for i in range(len(part.val))]
    before = data.fingerprint
    save_image(big, random_image((20, 30)))
    assert load_folder(tmp_path).fingerprint != before


def test_only_the_headers_of_many_large_files_are_checked_unless_bad_ones_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "MAX_CHECKED_BYTES", 0)
    make_class_folders(tmp_path)
    save_image(tmp_path / "train" / "cat" / "9.png", random_image((10, 12)))
    damage("truncated", tmp_path / "train" / "dog" / "1.png")
    damage("text", tmp_path / "train" / "dog" / "2.png")
    assert "1 of 13 images" in refusal(DataError, tmp_path)
    assert load_folder(tmp_path, bad_images="skip").skipped == ["train/dog/1.png", "train/dog/2.png"]
    (tmp_path / "train" / "dog" / "2.png").unlink()
    data = load_folder(tmp_path)
    with pytest.raises(DataError, match=r"train/dog/1\.png: damaged image"):
        data.train.picture(data.train.ids.index("train/dog/1.png"))


def test_several_processes_read_the_same_as_one(tmp_path, monkeypatch):
    make_class_folders(tmp_path, count=5)
    damage("text", tmp_path / "train" / "dog" / "1.png")
    single = load_folder(tmp_path, bad_images="skip")
    monkeypatch.setattr(listing, "MIN_PARALLEL_FILES", 1)
    monkeypatch.setattr(listing, "CHUNK_FILES", 3)
    parallel = load_folder(tmp_path, bad_images="skip")
    assert parallel.fingerprint == single.fingerprint and parallel.skipped == single.skipped


def test_images_beyond_the_memory_limit_stay_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "MAX_PIXEL_BYTES", 6 * 8 * 8 * 3 - 1)
    data = load_folder(make_class_folders(tmp_path))
    assert data.train.pixels is None and data.train.picture(0).shape == (8, 8, 3)


def test_other_data_without_labelled_images_is_refused_with_what_is_not_used(tmp_path):
    (tmp_path / "cat").mkdir()
    save_image(tmp_path / "loose.png")
    with pytest.raises(
        DataError, match=r"no images in class folders \(1 image is not used.*\); the layout is CLASS/IMAGE or test/"
    ):
        load_evaluation_data(Config(data="folder", data_dir=str(tmp_path)), ("cat", "dog"), "")


def test_skipping_images_must_not_empty_a_split(tmp_path):
    make_class_folders(tmp_path, count=1)
    for name in ("cat", "dog"):
        damage("text", tmp_path / "test" / name / "0.png")
    assert "none of the test images can be read" in refusal(DataError, tmp_path, bad_images="skip")


def test_an_image_of_another_size_that_the_sample_has_not_shown_leaves_all_on_the_disk(tmp_path):
    make_class_folders(tmp_path, ("train",), count=60)
    make_class_folders(tmp_path, ("test",), count=1)
    save_image(tmp_path / "train/cat/1.png", random_image((9, 8)))
    train = load_folder(tmp_path).train
    index = train.ids.index("train/cat/1.png")
    assert train.pixels is None and train.picture(index).shape == (9, 8, 3)


def test_an_archive_that_ends_within_an_image_is_damaged(tmp_path):
    make_class_folders(tmp_path / "data")
    whole = pack(tmp_path / "data", tmp_path / "x.tar").read_bytes()
    first = whole.index(b".png")  # in the header of the first image, whose content follows in the next block
    (tmp_path / "x.tar").write_bytes(whole[: first // 512 * 512 + 512 + 20])
    assert f"{tmp_path / 'x.tar'}: damaged archive (unexpected end of data)" in refusal(DataError, tmp_path / "x.tar")


def end_this_process(files):
    os._exit(9)


def test_a_process_that_is_killed_while_it_decodes_images_is_named_with_the_likely_reason(monkeypatch):
    monkeypatch.setattr(listing, "MIN_PARALLEL_FILES", 1)
    monkeypatch.setattr(listing, "usable_cpus", lambda: 2)
    with pytest.raises(ResourceError, match="a process that decoded images was killed, most often for lack of memory"):
        list(listing._check_all(["a.png", "b.png"], partial(end_this_process)))


def test_other_data_is_read_with_its_notes(tmp_path, caplog):
    make_class_folders(tmp_path, ("",))
    save_image(tmp_path / "loose.png")
    data = load_evaluation_data(Config(data="folder", data_dir=str(tmp_path)), ("cat", "dog"), "")
    assert len(data.splits["train"]) == 6
    assert caplog.messages == ["1 image is not used, because it is outside the class folders: . (1)"]
