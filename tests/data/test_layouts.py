"""Every usual layout of an image folder: which images, classes and splits it gives, compared with the files on the disk."""

import tarfile

import numpy as np
import pytest
from PIL import Image

from harness.config.settings import Config
from harness.data.folder_scan import find_layout
from harness.data.registry import load_evaluation_data
from harness.utils.errors import DataError
from tests.support.image_folders import load_folder, make_class_folders, refusal, save_image

CLASSES = ("cat", "dog")


def splits_of(data):
    """Return split -> id -> class."""
    splits = {split.name: split for split in (data.train, data.val, data.test) if split is not None}
    return {
        name: {id: data.classes[label] for id, label in zip(split.ids, split.labels, strict=True)}
        for name, split in splits.items()
    }


def check_pixels(root, data):
    for split in filter(None, (data.train, data.val, data.test)):
        for index, name in enumerate(split.ids):
            np.testing.assert_array_equal(split.picture(index), np.asarray(Image.open(root / name)))


def listed_folder(root, below="images", count=5):
    """Make images/CLASS/N.png, and return split -> paths below images: N = 0 is validation, 1 is test, 2.. train."""
    make_class_folders(root, (below,), CLASSES, count)
    places = {"val": [0], "test": [1], "train": list(range(2, count))}
    return {
        split: [f"{name}/{index}.png" for name in CLASSES for index in numbers] for split, numbers in places.items()
    }


def write_lists(folder, lists, line="{path}"):
    folder.mkdir(parents=True, exist_ok=True)
    for split, paths in lists.items():
        lines = [
            line.format(path=path, name=path.split("/")[-2], number=CLASSES.index(path.split("/")[-2]))
            for path in paths
        ]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("nesting", ["images", "pets", "pets/images"])
@pytest.mark.parametrize("is_archive", [False, True])
def test_class_folders_in_a_single_folder_are_found_at_any_depth(tmp_path, nesting, is_archive):
    make_class_folders(tmp_path / "data", (nesting,), CLASSES, 5)
    root = tmp_path / "data"
    if is_archive:
        root = tmp_path / "data.tar"
        with tarfile.open(root, "w") as tar:
            tar.add(tmp_path / "data", ".")
    data = load_folder(root)
    assert data.classes == CLASSES and (len(data.train), len(data.test)) == (8, 2) and not data.notes
    check_pixels(tmp_path / "data", data)
    assert all(id.startswith(f"{nesting}/") for id in data.train.ids)


@pytest.mark.parametrize("place", ["", "meta", "splits"])
@pytest.mark.parametrize(
    "line", ["{path}", "images/{path}", "./images/{path}", "{path} {name}", "{path},{name}", "{path}\t{name}"]
)
def test_the_images_of_the_splits_are_those_that_the_lists_name(tmp_path, place, line):
    lists = listed_folder(tmp_path)
    write_lists(tmp_path / place, lists, line)
    data = load_folder(tmp_path)
    assert splits_of(data) == {
        split: {f"images/{path}": path.split("/")[0] for path in paths} for split, paths in lists.items()
    }
    check_pixels(tmp_path, data)
    assert not data.notes


def test_lists_name_images_without_their_extension_as_food_101_does(tmp_path):
    lists = listed_folder(tmp_path)
    write_lists(
        tmp_path / "meta", {split: [path.removesuffix(".png") for path in paths] for split, paths in lists.items()}
    )
    assert {split: len(images) for split, images in splits_of(load_folder(tmp_path)).items()} == {
        "train": 6,
        "val": 2,
        "test": 2,
    }


def test_numbers_in_lists_are_positions_in_the_file_of_class_names(tmp_path):
    lists = listed_folder(tmp_path)
    write_lists(tmp_path, lists, "images/{path} {number}")
    assert load_folder(tmp_path).classes == ("0", "1")
    (tmp_path / "classes.txt").write_text("Zebra\nAnteater\nunused\n")
    data = load_folder(tmp_path)
    assert data.classes == ("Zebra", "Anteater")  # in the order of the file
    names = dict(zip(CLASSES, data.classes, strict=True))
    assert splits_of(data)["test"] == {f"images/{path}": names[path.split("/")[0]] for path in lists["test"]}
    write_lists(tmp_path, lists, "images/{path} 7")
    assert "label 7, and classes.txt has 3 classes (Zebra, Anteater, unused)" in refusal(DataError, tmp_path)


def test_labels_in_lists_are_in_the_order_of_their_numbers(tmp_path):
    make_class_folders(tmp_path, ("images",), ("x",), 24)
    lines = [f"images/x/{index}.png {index % 12}" for index in range(24)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    assert load_folder(tmp_path).classes == tuple(map(str, range(12)))


def test_paths_in_lists_may_have_spaces(tmp_path):
    lists = {}
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        lists[split] = [f"my {name}/photo {index} of 9.png" for name in CLASSES for index in numbers]
        for path in lists[split]:
            save_image(tmp_path / path)
    for line in ("{path}", "{path} {name}"):
        for split, paths in lists.items():
            text = "\n".join(line.format(path=path, name=path[3:6]) for path in paths)
            (tmp_path / f"{split}.txt").write_text(text)
        assert {split: len(images) for split, images in splits_of(load_folder(tmp_path)).items()} == {
            "train": 8,
            "test": 4,
        }


def test_the_lists_of_an_archive_divide_its_images(tmp_path):
    lists = listed_folder(tmp_path / "food")
    write_lists(tmp_path / "food/meta", lists)
    with tarfile.open(tmp_path / "food.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "food", "food")
    packed, unpacked = load_folder(tmp_path / "food.tar.gz"), load_folder(tmp_path / "food")
    assert {split: len(images) for split, images in splits_of(packed).items()} == {"train": 6, "val": 2, "test": 2}
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(packed, name).pixels, getattr(unpacked, name).pixels)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_line_of_a_list_may_hold_the_further_line_ends_of_unicode(tmp_path, end):
    lists = {split: [f"{name}\u2028\x85-{split}.png" for name in CLASSES] for split in ("train", "test")}
    for split, paths in lists.items():
        for path in paths:
            save_image(tmp_path / path)
        (tmp_path / f"{split}.txt").write_bytes(
            end.join(f"{path}\t{CLASSES.index(path[:3])}" for path in paths).encode()
        )
    (tmp_path / "classes.txt").write_bytes(end.join(f"{name}\u2028x" for name in CLASSES).encode())
    assert splits_of(load_folder(tmp_path))["train"] == {
        rf"{name}\u2028\x85-train.png": rf"{name}\u2028x" for name in CLASSES
    }


def test_images_beside_the_splits_are_counted_without_hidden_and_other_files(tmp_path):
    for split in ("train", "test"):
        make_class_folders(tmp_path, (split,))
    save_image(tmp_path / "more/cat/0.png")
    save_image(tmp_path / "more/cat/.hidden.png")
    (tmp_path / "more/cat/notes.txt").write_text("x")
    (note,) = load_folder(tmp_path).notes
    assert note.startswith("1 image is not used") and note.endswith("more (1)")


def test_images_that_no_list_names_are_counted_and_missing_ones_are_named(tmp_path):
    lists = listed_folder(tmp_path)
    write_lists(tmp_path, lists)
    save_image(tmp_path / "images/cat/99.png")
    assert load_folder(tmp_path).notes == [
        "1 image is not used, because train.txt, val.txt, test.txt do not list it: images (1)"
    ]
    (tmp_path / "images/cat/2.png").unlink()
    message = refusal(DataError, tmp_path)
    assert "1 of 10 images cannot be read, the first is cat/2.png: train.txt lists it, and it is not there" in message
    assert load_folder(tmp_path, bad_images="skip").skipped == ["cat/2.png"]


def test_lists_that_contradict_themselves_are_refused(tmp_path):
    lists = listed_folder(tmp_path)
    write_lists(tmp_path, lists)
    text = (tmp_path / "train.txt").read_text()
    (tmp_path / "train.txt").write_text(text + "images/cat/2.png dog\n")
    assert "1 lines have a label and 10 have none" in refusal(DataError, tmp_path)
    write_lists(tmp_path, lists, "{path} {name}")
    (tmp_path / "train.txt").write_text((tmp_path / "train.txt").read_text() + "cat/2.png dog\n")
    assert "with the classes cat and dog" in refusal(DataError, tmp_path)


def test_lists_never_lead_out_of_the_folder(tmp_path):
    save_image(tmp_path / "secret.png")
    root = tmp_path / "data"
    lists = listed_folder(root)
    write_lists(root, lists)
    (root / "train.txt").write_text((root / "train.txt").read_text() + f"../secret.png\n{tmp_path}/secret.png\n")
    assert "2 of 12 images cannot be read" in refusal(DataError, root)
    (root / "train.txt").unlink()
    (tmp_path / "train.txt").write_text("cat/2.png\n")
    (root / "train.txt").symlink_to(tmp_path / "train.txt")
    assert "train.txt is a link that leaves the data folder" in refusal(DataError, root)


def test_a_text_file_that_lists_no_images_is_named_and_the_class_folders_are_read(tmp_path):
    make_class_folders(tmp_path, ("",), CLASSES, 5)
    (tmp_path / "train.txt").write_text("how these pictures were taken\n")
    data = load_folder(tmp_path)
    assert (len(data.train), len(data.test)) == (8, 2)
    assert data.notes[0] == "train.txt: not used, since none of the lines is the path of an image in the folder"
    (tmp_path / "train.txt").rename(tmp_path / "test.txt")  # no list to train on
    assert len(load_folder(tmp_path).train) == 8


def test_split_folders_win_over_lists(tmp_path):
    make_class_folders(tmp_path)
    (tmp_path / "train.txt").write_text("train/cat/0.png\ntrain/dog/0.png\n")
    assert len(load_folder(tmp_path).train) == 6


@pytest.mark.parametrize(("splits", "pool"), [(("train", "test"), "pool"), (("",), ".pool")])
def test_a_class_folder_may_be_a_link_inside_the_root(tmp_path, splits, pool):
    for split in splits:
        make_class_folders(tmp_path / pool, (f"of-{split}",), CLASSES, 5)
        for name in CLASSES:
            (tmp_path / split).mkdir(exist_ok=True)
            (tmp_path / split / name).symlink_to(tmp_path / pool / f"of-{split}" / name)
    data = load_folder(tmp_path)
    assert data.classes == CLASSES and len(data.train) + len(data.test) == 10 * len(splits)
    check_pixels(tmp_path, data)  # by the path of the link


@pytest.mark.parametrize("split", ["train", ""])
def test_a_class_folder_that_is_a_link_out_of_the_root_is_refused_with_the_remedy(tmp_path, split):
    root = make_class_folders(tmp_path / "data", ("train",) if split else ("",), CLASSES, 5)
    make_class_folders(tmp_path / "outside", ("",), ("cow",), 5)
    (root / split / "cow").symlink_to(tmp_path / "outside" / "cow")
    message = refusal(DataError, root)
    assert "cow is a link that leaves the data folder; copy what it points to (cp -rL), or keep that below" in message


def test_splits_inside_the_class_folders_are_named_as_unused(tmp_path):
    for name in CLASSES:
        for split in ("train", "test"):
            make_class_folders(tmp_path, (name,), (split,), 3)
    assert load_folder(tmp_path).notes == [
        "every class folder has test and train in it, which are not used as splits; the layout is train/CLASS/IMAGE, or list the images in train.txt"
    ]


def test_an_evaluation_takes_a_single_class_with_folders_in_it_for_that_class(tmp_path):
    make_class_folders(tmp_path, ("cat",), ("2020", "2021"), 3)
    config = Config(data="folder", data_dir=str(tmp_path))
    splits = load_evaluation_data(config, CLASSES, "").splits
    assert splits["train"].labels.tolist() == [0] * 6


@pytest.mark.parametrize("listed", [False, True])
def test_the_data_of_a_run_is_recognised_with_numbers_for_classes(tmp_path, listed):
    names = tuple(map(str, range(12)))
    make_class_folders(tmp_path, ("images",), names, 4)
    if listed:
        for split, numbers in (("train", (0, 1, 2)), ("test", (3,))):
            lines = [f"images/{name}/{index}.png {name}" for name in names for index in numbers]
            (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    config = Config(data="folder", data_dir=str(tmp_path))
    data = load_folder(tmp_path)
    assert load_evaluation_data(config, data.classes, data.fingerprint).is_own


def test_two_lists_of_one_split_are_refused(tmp_path):
    lists = listed_folder(tmp_path)
    write_lists(tmp_path, {**lists, "validation": lists["val"]})
    message = refusal(DataError, tmp_path)
    assert "val.txt and validation.txt would both list the val images; keep one of them" in message


def test_a_split_folder_may_be_a_link_inside_the_root(tmp_path):
    make_class_folders(tmp_path, ("pool", "test"), CLASSES, 5)
    (tmp_path / "train").symlink_to(tmp_path / "pool")
    data = load_folder(tmp_path)
    assert (len(data.train), len(data.test)) == (10, 10)
    check_pixels(tmp_path, data)


def test_comments_and_empty_lines_of_a_list_name_no_image_and_a_repeated_line_is_counted_once(tmp_path):
    lists = listed_folder(tmp_path)
    write_lists(tmp_path, lists)
    text = (tmp_path / "train.txt").read_text()
    (tmp_path / "train.txt").write_text(f"# of the first day\n\n{text}{text.splitlines()[0]}\n")
    data = load_folder(tmp_path)
    assert len(data.train) == 6 and data.notes == ["1 line of train.txt repeats an image"]


def test_an_image_that_a_list_names_without_a_class_needs_a_folder(tmp_path):
    for index in range(4):
        save_image(tmp_path / f"{index}.png")
    (tmp_path / "train.txt").write_text("0.png\n1.png\n")
    (tmp_path / "test.txt").write_text("2.png\n3.png\n")
    assert "is listed without a label and is in no folder; add labels to the lists" in refusal(DataError, tmp_path)


def test_the_only_class_folder_is_a_class_and_no_folder_around_others(tmp_path):
    for depth in ("", "pictures"):
        root = tmp_path / f"root-{depth}"
        make_class_folders(root, (depth,), ("cat",), 2)
        assert find_layout(root).prefix == depth
    make_class_folders(tmp_path / "two", ("pictures",), CLASSES, 2)
    assert find_layout(tmp_path / "two").prefix == "pictures"
