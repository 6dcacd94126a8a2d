"""Images that stand in two splits are counted, whatever form they are kept in."""

import shutil

import pytest
from PIL import Image

from harness.data import duplicates
from harness.utils.errors import DataError
from tests.support.image_folders import load_folder, make_class_folders, random_image, refusal, save_image


def make_folders(root, several_sizes):
    """Make class folders of 6 training and 4 test images, 2 of which are training images under other names."""
    make_class_folders(root, ("train",))
    make_class_folders(root, ("test",), count=1)
    if several_sizes:
        for split in ("train", "test"):
            save_image(root / split / "cat" / "0.png", random_image((9, 10)))
    for label in ("cat", "dog"):
        shutil.copy(root / "train" / label / "1.png", root / "test" / label / "copy.png")
    return root


@pytest.mark.parametrize("several_sizes", [False, True])
@pytest.mark.parametrize("archive", [False, True])
def test_test_images_that_are_training_images_too_are_counted(tmp_path, several_sizes, archive, caplog):
    root = make_folders(tmp_path / "data", several_sizes)
    if archive:
        root = shutil.make_archive(tmp_path / "data", "tar", root)
    data = load_folder(root)
    assert (data.test.pixels is None) == several_sizes and len(data.test) == 4
    assert (
        data.notes
        == caplog.messages
        == [
            "2 of 4 test images stand in the training images too: "
            "test/cat/copy.png = train/cat/1.png, test/dog/copy.png = train/dog/1.png"
        ]
    )


def test_duplicates_within_one_folder_are_counted_in_the_splits_that_are_made_of_it(tmp_path):
    make_class_folders(tmp_path, ("",), count=10)
    for path in sorted(tmp_path.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    data = load_folder(tmp_path, val_fraction=0.25)
    for split in (data.val, data.test):
        pictures = {data.train.pixels[index].tobytes() for index in range(len(data.train))}
        shared = sum(split.pixels[index].tobytes() in pictures for index in range(len(split)))
        (note,) = (note for note in data.notes if f" {split.name} images stand" in note)
        assert note.startswith(f"{shared} of {len(split)} {split.name} images stand in the training images too: ")
        for pair in note.partition("too: ")[2].partition(" and ")[0].split(", "):
            image, same = ((tmp_path / path).read_bytes() for path in pair.split(" = "))
            assert image == same


@pytest.mark.parametrize("several_sizes", [False, True])
def test_a_test_set_of_training_images_is_refused(tmp_path, several_sizes):
    make_folders(tmp_path, several_sizes)
    shutil.rmtree(tmp_path / "test")
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    assert "all 6 test images are training images too" in refusal(DataError, tmp_path)


def test_images_that_are_all_alike_are_counted_and_not_refused(tmp_path):
    for split in ("train", "test"):
        for label in ("black", "grey"):
            for index in range(3):
                save_image(tmp_path / split / label / f"{index}.png", random_image() * 0 + (label == "grey") * 99)
    names = ["black/0", "black/1", "black/2", "grey/0", "grey/1"]
    assert load_folder(tmp_path).notes == [
        "6 of 6 test images stand in the training images too: "
        + ", ".join(f"test/{name}.png = train/{name.split('/')[0]}/0.png" for name in names)
        + " and 1 more"
    ]


def test_different_images_are_no_duplicates(tmp_path):
    assert not load_folder(make_class_folders(tmp_path)).notes


def test_images_of_other_sizes_are_no_duplicates_and_are_not_compared(tmp_path):
    make_class_folders(tmp_path, ("train",))
    make_class_folders(tmp_path, ("test",), size=(9, 9))
    data = load_folder(tmp_path)
    assert data.train.pixels is not None and data.test.pixels is not None and not data.notes


def test_files_are_compared_up_to_a_limit_of_their_size(tmp_path, monkeypatch):
    root = make_folders(tmp_path, True)
    assert len(load_folder(root).notes) == 1
    monkeypatch.setattr(duplicates, "MAX_COMPARED_BYTES", 10)
    assert not load_folder(root).notes


@pytest.mark.parametrize("several", ["train", "test"])
def test_images_of_one_size_are_compared_with_files_of_several(tmp_path, several, caplog):
    """The pixels count, so that a copy in another format, or one that its EXIF orientation turns, is found too."""
    root = make_class_folders(tmp_path / "data", ("train",), size=(8, 10))
    make_class_folders(root, ("test",), count=1, size=(8, 10))
    save_image(root / several / "cat" / "large.png", random_image((9, 11)))
    save_image(root / several / "cat" / "tall.png", random_image((10, 8)))
    with Image.open(root / "train" / "dog" / "1.png") as image:
        exif = Image.Exif()
        exif[0x0112] = 6  # is shown turned by 90 degrees clockwise
        image.transpose(Image.Transpose.ROTATE_90).save(root / "test" / "dog" / "turned.png", exif=exif)
    with Image.open(root / "train" / "cat" / "2.png") as image:
        image.save(root / "test" / "cat" / "copy.bmp")
    data = load_folder(root)
    assert (data.train.pixels is None, data.test.pixels is None) == (several == "train", several == "test")
    assert (
        data.notes
        == caplog.messages
        == [
            f"2 of {len(data.test)} test images stand in the training images too: "
            "test/cat/copy.bmp = train/cat/2.png, test/dog/turned.png = train/dog/1.png"
        ]
    )
