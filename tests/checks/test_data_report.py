"""`harness data`: each number against the files that were made, each problem with its line of advice."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from harness.checks import data_report
from harness.checks.data_report import draw_contact_sheet, overview_text, overview_values
from harness.cli.main import cli
from harness.config.automatic import choose_settings
from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.data.image_io import pixel_digest
from harness.data.overview import examine
from harness.data.registry import load_dataset
from harness.runs.automatic import data_facts
from harness.utils.errors import DataError
from tests.support.commands import command
from tests.support.image_folders import make_class_folders, random_image, save_image
from tests.support.multilabel import make_squares, write_columns


def describe(root, limit=0, **settings):
    config = Config(data=settings.pop("data", "folder"), data_dir=str(root), **settings)
    overview = examine(config, limit)
    return overview_values(config, overview), overview_text(overview), overview


def advice_on(root, words, **settings):
    """Return the one line of advice with these words."""
    (line,) = [line for line in describe(root, **settings)[0]["advice"] if words in line]
    return line


def test_a_sound_folder_is_described_by_the_files_that_it_holds(tmp_path):
    sizes = [(10 + index % 3, 10) for index in range(12)]  # height, width
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for index, size in enumerate(sizes):
                save_image(tmp_path / split / name / f"{index}.{'png' if index % 3 else 'bmp'}", random_image(size))
    values, text, _ = describe(tmp_path)
    assert values["classes"] == ["cat", "dog"] and values["advice"] == [] and values["broken"] == {}
    assert values["splits"]["train"] == {"images": 24, "read": 24, "per_class": {"cat": 12, "dog": 12}}
    heights = [height for height, _ in sizes]
    assert values["sizes"]["height"] == {"min": 10, "median": int(np.median(heights)), "max": 12}
    assert values["sizes"]["width"] == {"min": 10, "median": 10, "max": 10} and values["sizes"]["different"] == 3
    assert values["formats"] == {"PNG": 32, "BMP": 16} and values["modes"] == {"RGB": 48}
    assert "48 images in 2 classes: splits from the folders train, test, classes from the folders in them" in text
    assert "no problem found" in text and "height 10 / 11 / 12 pixels" in text
    json.dumps(values)


def test_every_problem_has_a_line_of_advice(tmp_path):
    root = tmp_path / "pictures"
    for split, count in (("train", 30), ("test", 4)):
        for name in ("cat", "dog"):
            for index in range(count):
                save_image(root / split / name / f"{index}.png", random_image((8, 8)))
    for index in range(3):  # a class with a tenth of the images
        save_image(root / "train" / "cow" / f"{index}.png")
    (root / "train/cat/broken.jpg").write_bytes(b"no picture")
    (root / "train/cat/notes.docx").write_text("x")
    for copy in ("test/cat/copy.png", "train/cat/copy.png", "train/dog/wrong.png"):
        Image.open(root / "train/cat/0.png").save(root / copy, compress_level=1)  # other bytes, the same pixels
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(root / "train/dog/deep.png")
    Image.fromarray(random_image((8, 8))).convert("RGBA").save(root / "train/dog/clear.png")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    frames[0].save(root / "train/dog/moving.gif", save_all=True, append_images=frames[1:])
    values, text, _ = describe(root)
    for words in (
        "1 of 78 images cannot be read, the first is train/cat/broken.jpg: not an image, or one of an unsupported format; repair or remove them",
        "the classes are unbalanced: dog has 34 training images and cow 3",
        "1 class has fewer than 10 training images (cow)",
        "1 class has no test image (cow); its accuracy stays unknown",
        "1 test image is a training image too (test/cat/copy.png = train/cat/0.png); remove it from one of the two",
        "1 training image repeats another one of the split (train/cat/copy.png = train/cat/0.png); remove it, since it counts twice",
        "1 image stands under two classes: train/cat/0.png (cat) = train/dog/wrong.png (dog); remove the one with the wrong label",
        "1 image is grey and deeper than 8 bits",
        "1 image has transparent areas, which become white",
        "1 image has several frames, of which the first is used",
    ):
        assert sum(words in line for line in values["advice"]) == 1, (words, values["advice"])
        assert f"- {words}" in text
    assert "note: 1 file is of kinds that are not read as images: .docx (1)" in text
    assert values["repeats"]["between"] == {"train/test": 1} and values["repeats"]["within"] == {"train": 2}
    wrong = ["train/dog/wrong.png", "train/cat/0.png"]  # told once in the text, as an image of two classes
    assert values["repeats"]["images"] == {
        "train": [["train/cat/copy.png", "train/cat/0.png"], wrong],
        "train/test": [["test/cat/copy.png", "train/cat/0.png"]],
    }
    assert sum("wrong.png" in line for line in values["advice"]) == 1


def test_a_copy_with_another_label_is_told_once_and_by_name(tmp_path):
    make_class_folders(tmp_path, ("train", "test"), count=12)
    shutil.copy(tmp_path / "train/cat/3.png", tmp_path / "train/dog/3.png")
    shutil.copy(tmp_path / "train/cat/4.png", tmp_path / "test/dog/4.png")
    told = [line for line in describe(tmp_path)[0]["advice"] if "/3.png" in line or "/4.png" in line]
    assert told == [
        "2 images stand under two classes: train/cat/3.png (cat) = train/dog/3.png (dog), train/cat/4.png (cat) = test/dog/4.png (dog); remove the one with the wrong label"
    ]


def test_repeats_are_those_of_a_comparison_of_all_pairs(tmp_path):
    draw = np.random.default_rng(3)
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            for index in range(8):
                save_image(tmp_path / split / name / f"{index}.png", np.full((4, 4, 3), draw.integers(0, 12), np.uint8))
    values, _, overview = describe(tmp_path)
    pictures = {
        name: [split.picture(index, None).tobytes() for index in range(16)] for name, split in overview.splits.items()
    }
    assert values["repeats"]["within"] == {
        name: 16 - len(set(each)) for name, each in pictures.items() if len(set(each)) < 16
    }
    for pair, count in values["repeats"]["between"].items():
        first, second = pair.split("/")
        assert count == sum(picture in pictures[first] for picture in pictures[second])
    by_id = {
        str(split.source.ids[index]): pictures[name][index]
        for name, split in overview.splits.items()
        for index in range(16)
    }
    named = [pair for pairs in values["repeats"]["images"].values() for pair in pairs]
    assert named and all(by_id[image] == by_id[same] for image, same in named)


def test_pixels_of_another_shape_have_another_digest():
    pixels = random_image((4, 6))
    assert pixel_digest(pixels) == pixel_digest(pixels.copy()) != pixel_digest(pixels.reshape(6, 4, 3))


def test_a_folder_without_a_test_split_says_what_a_run_holds_out(tmp_path):
    make_class_folders(tmp_path, ("",), count=12)
    assert "a run holds out 25%" in advice_on(tmp_path, "there is no test split", test_fraction=0.25)


def test_images_that_are_not_square_name_the_share_that_is_cut(tmp_path):
    make_class_folders(tmp_path, count=12, size=(10, 16))
    assert "cuts 38% off their area (mean of the 48 that were read, of all splits)" in advice_on(tmp_path, "not square")
    assert not any("not square" in line for line in describe(tmp_path, resize="letterbox")[0]["advice"])


def test_a_large_set_is_sampled_evenly_and_that_is_said(tmp_path):
    make_class_folders(tmp_path, ("train",), ("a", "b"), 40)
    make_class_folders(tmp_path, ("test",), ("a", "b"), 20)
    values, text, overview = describe(tmp_path, limit=30)
    assert {name: split["read"] for name, split in values["splits"].items()} == {"train": 20, "test": 10}
    assert values["splits"]["train"]["images"] == 80  # all are counted
    assert "30 of them were read, evenly spread" in text and "--limit 0 reads all" in text
    labels = overview.splits["train"].source.labels[list(overview.splits["train"].facts)]
    assert Counter(labels.tolist()) == {0: 10, 1: 10}


def test_data_that_a_run_refuses_is_described_with_the_reason(tmp_path):
    make_class_folders(tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    values, text, _ = describe(tmp_path)
    assert "- a run refuses this data: " in text and "no images in class folder empty" in text
    assert values["splits"]["train"]["images"] == 6
    with pytest.raises(DataError, match="there is no folder"):
        describe(tmp_path / "no")


def test_built_in_data_tables_and_archives_are_described(tmp_path):
    values = describe("data", data="digits", limit=100)[0]
    assert values["splits"]["train"]["images"] == 1797 and values["sizes"]["width"]["max"] == 32
    rows = ["path,label", *(f"{save_image(tmp_path / f'{index}.png').name},{'ab'[index % 2]}" for index in range(24))]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    values = describe(tmp_path / "t.csv", data="table")[0]
    assert values["origin"] == "table t.csv: image=path, label=label" and values["splits"]["train"]["images"] == 24


def test_the_contact_sheet_has_each_image_as_stored_and_as_the_model_sees_it(tmp_path):
    colours = {"red": (255, 0, 0), "green": (0, 128, 0)}
    for name, colour in colours.items():
        for index in range(3):
            pixels = np.full((20, 40, 3), 200, np.uint8)
            pixels[:, 12:28] = colour  # the centre, which a crop keeps
            save_image(tmp_path / "data" / name / f"{index}.png", pixels)
    config = Config(
        data="folder", data_dir=str(tmp_path / "data"), image_size=16, resize="crop", model_args={"width": 4}
    )
    path = draw_contact_sheet(config, examine(config, 0), tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)
    for colour in colours.values():
        rows, columns = np.nonzero((abs(sheet - colour) < 12).all(2))
        assert len(rows) > 3 * 142 * 142 * 0.75  # the boxes below are filled with it, those above to 40 %
        assert len(np.unique(columns)) > 3 * 100


def test_the_contact_sheet_of_automatic_settings_has_the_size_that_a_run_chooses(tmp_path):
    for name in ("cat", "dog"):
        for index in range(4):
            save_image(tmp_path / "data" / name / f"{index}.jpg", random_image((300, 320)))
    config = make_config({"data_dir": str(tmp_path / "data"), "data": "folder"}, "auto")
    facts = data_facts(config, load_dataset(config.replace(test_fraction=0.5)))
    chosen = choose_settings(config, replace(facts, why_no_weights=lambda name: "not asked"))
    assert (chosen["image_size"].value, chosen["model"].value.partition(".")[0]) == (224, "resnet18d")
    draw_contact_sheet(config, examine(config, 0), tmp_path / "sheet.svg")
    text = " ".join(re.findall("<!-- (.*?) -->", (tmp_path / "sheet.svg").read_text()))
    assert "as resnet18d sees it: 224 x 224 pixels" in text


def test_classes_that_are_spelled_in_two_ways_are_named(tmp_path):
    spellings = ["cat", " cat ", "Cat", "hot dog", "hot_dog", "-", "_"]
    rows = [
        f"{save_image(tmp_path / f'{index}.png').name},{spellings[index % len(spellings)]}"
        for index in range(4 * len(spellings))
    ]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    values, _, _ = describe(tmp_path / "t.csv", data="table")
    assert values["splits"]["train"]["per_class"] == {"-": 4, "Cat": 4, "_": 4, "cat": 8, "hot dog": 4, "hot_dog": 4}
    assert [line for line in values["advice"] if "differ only in" in line] == [
        f"a run refuses this data: {tmp_path / 't.csv'}: classes Cat and cat differ only in case; merge or rename them",
        "the classes Cat, cat differ only in case, spaces, dashes or underscores; give them one name if they are one class",
        "the classes hot dog, hot_dog differ only in case, spaces, dashes or underscores; give them one name if they are one class",
    ]


def test_the_command_takes_a_path_a_name_and_options(tmp_path):
    make_class_folders(tmp_path / "pictures", count=12)
    done = command("data", "pictures", "--output", "sheet.png", "--model-args", "width=4", cwd=tmp_path, check=0)
    assert "48 images in 2 classes" in done.stdout and "contact sheet: sheet.png" in done.stderr
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    values = json.loads(command("data", "digits", "--json", "--limit", 50, cwd=tmp_path, check=0).stdout)
    assert (values["data"], values["data_dir"]) == ("digits", "data") and len(values["classes"]) == 10
    assert "there is no folder nowhere" in command("data", "nowhere", cwd=tmp_path, check=3).stderr
    assert "both name the data" in command("data", "pictures", "--data-dir", "other", cwd=tmp_path, check=2).stderr
    assert "must end in .png or .svg" in command("data", "pictures", "-o", "x.jpg", cwd=tmp_path, check=2).stderr


def test_the_command_is_listed_in_the_help():
    assert cli.commands["data"].get_short_help_str(300).startswith("Show what a data set holds before training")


def test_a_contact_sheet_has_turned_images_beside_others_of_the_same_stored_size(tmp_path):
    for index in range(4):
        for label in ("a", "b"):
            path = tmp_path / "turned" / label / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            exif[0x0112] = 6 if index == 1 else 1
            Image.new("RGB", (40, 30), (60 * index, 90, 90)).save(path, exif=exif)
    config = make_config({"recipe": "custom-resnet", "data": "folder", "data_dir": str(tmp_path / "turned")})
    overview = examine(config, 0)
    assert "\n2 images are turned upright by their EXIF orientation\n" in overview_text(overview)
    sheet = draw_contact_sheet(config, overview, tmp_path / "sheet.png")
    with Image.open(sheet) as image:
        assert image.width > 100


def test_labels_per_image_are_named_in_the_text_and_in_the_json(tmp_path):
    rows = make_squares(tmp_path, 30)
    values, text, _ = describe(
        write_columns(tmp_path, rows), data="table", label_columns="*", loss="bce", select_by="map"
    )
    counts = np.array([sum(has) for _, has in rows])
    labels = values["splits"]["train"]["labels_per_image"]
    assert labels == {"mean": pytest.approx(counts.mean()), "without": int((counts == 0).sum())}
    expected = f"training images have {counts.mean():.2f} labels in the mean (multi-label), and {(counts == 0).sum()} have none"
    assert expected in text.splitlines()


def test_of_many_classes_those_with_the_most_and_with_the_fewest_images_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(data_report, "MAX_LISTED_CLASSES", 4)
    counts = {"a": 3, "b": 9, "c": 1, "d": 5, "e": 2, "f": 7}
    for name, count in counts.items():
        make_class_folders(tmp_path, ("",), (name,), count)
    table = describe(tmp_path)[1].split("\n\n")[1].splitlines()
    assert [line.split()[:2] for line in table[-5:]] == [["b", "9"], ["f", "7"], ["...", "2"], ["e", "2"], ["c", "1"]]
    assert table[-5].split()[-2:] == ["33.3", "%"]  # 9 of 27


def test_a_class_of_which_no_image_can_be_read_is_not_drawn(tmp_path):
    make_class_folders(tmp_path / "images", ("",), ("ant", "bee"), 4)
    config = Config(data="folder", data_dir=str(tmp_path / "images"), model_args={"width": 4})
    for path in (tmp_path / "images/bee").iterdir():
        path.write_bytes(b"no picture")
    draw_contact_sheet(config, examine(config, 0), tmp_path / "sheet.svg")
    text = " ".join(re.findall("<!-- (.*?) -->", (tmp_path / "sheet.svg").read_text()))
    assert "8 images, 1 of 2 classes" in text and "ant" in text and "bee" not in text
    for path in (tmp_path / "images/ant").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="no image can be read, so there is none to draw"):
        draw_contact_sheet(config, examine(config, 0), tmp_path / "sheet.svg")
