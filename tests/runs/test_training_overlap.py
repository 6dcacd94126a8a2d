"""Images that a model was trained on are found in other data, however either is stored."""

import csv
import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from harness.config.settings import Config
from harness.data.registry import list_files, load_dataset, load_evaluation_data
from harness.evaluation.trained_model import load_trained_model
from harness.runs import training_overlap
from tests.support.image_folders import make_class_folders, random_image, save_image

CLASSES = ("bee", "cat", "dog")


def write_table(root, name):
    """Write a table of the images below a folder, with their classes, beside it."""
    with open(root.parent / name, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows([path.relative_to(root.parent), path.parent.name] for path in sorted(root.rglob("*.png")))
    return root.parent / name


def settings_of(root, form):
    """Return the settings that name the images of a folder as one of several forms of data."""
    if form == "archive":
        return {"data": "folder", "data_dir": shutil.make_archive(root, "tar", root)}
    if form == "table":
        return {"data": "table", "data_dir": str(write_table(root, f"{root.name}.csv"))}
    return {"data": "folder", "data_dir": str(root)}


def look_up(finished, own, other):
    """Return the overlap of the images of a model's run, by their settings, with the images of other settings."""
    trained = load_trained_model(finished[1], {"threads": 1})
    config = Config(**{"test_fraction": 0.3, **own})
    data = load_dataset(config)
    facts = {**trained.facts, "config": dataclasses.asdict(config)}
    evaluated = load_evaluation_data(Config(**other), CLASSES, data.fingerprint)
    images = next(iter(evaluated.splits.values()))
    model = dataclasses.replace(trained, facts=facts, classes=CLASSES)
    return data, images, training_overlap.training_overlap(model, images, data.fingerprint)


@pytest.mark.parametrize("classes", [("bee", "dog"), CLASSES], ids=["fewer classes", "all classes"])
@pytest.mark.parametrize("sizes", ["one", "own", "other", "both"])
@pytest.mark.parametrize(("form", "other_form"), [("folder", "folder"), ("archive", "table"), ("table", "archive")])
def test_copies_of_training_images_are_found_and_no_others(finished, tmp_path, form, other_form, sizes, classes):
    root = make_class_folders(tmp_path / "own", ("",), CLASSES, count=8)
    other = make_class_folders(tmp_path / "other", ("",), classes, count=3)
    for folder, name in ((root, "own"), (other, "other")):
        if sizes in (name, "both"):
            save_image(folder / "dog" / "large.png", random_image((9, 7)))
    for label in classes:
        for index in range(5):
            shutil.copy(root / label / f"{index}.png", other / label / f"copy-{index}.png")
    data, images, overlap = look_up(finished, settings_of(root, form), settings_of(other, other_form))
    assert (data.train.pixels is None) == (sizes in ("own", "both"))
    assert (images.pixels is None) == (sizes in ("other", "both"))
    training = {data.train.picture(index).tobytes(): str(data.train.ids[index]) for index in range(len(data.train))}
    expected = [
        (index, training[content])
        for index in range(len(images))
        if (content := images.picture(index).tobytes()) in training
    ]
    assert 0 < len(expected) < 5 * len(classes)  # some of the copies are of test images
    assert overlap.pairs == expected and overlap.count == len(expected) and not overlap.unknown


def test_images_of_one_size_cannot_equal_those_of_another(finished, tmp_path):
    root = make_class_folders(tmp_path / "own", ("",), CLASSES, count=8)
    other = make_class_folders(tmp_path / "other", ("",), CLASSES, size=(9, 9))
    _, _, overlap = look_up(finished, settings_of(root, "folder"), settings_of(other, "folder"))
    assert overlap.count == 0


@pytest.mark.parametrize("limit", ["MAX_READ_IMAGES", "MAX_COMPARED_BYTES"])
@pytest.mark.parametrize("form", ["folder", "table"])
def test_large_data_is_not_read_again(finished, tmp_path, monkeypatch, limit, form):
    root = make_class_folders(tmp_path / "own", ("",), CLASSES, count=8)
    monkeypatch.setattr(training_overlap, limit, 20)
    _, _, overlap = look_up(finished, settings_of(root, form), settings_of(root, "folder"))
    assert overlap.count is None
    assert overlap.unknown == "the run's data has more than 100,000 images or 1 GiB"


def test_images_that_were_left_out_of_the_run_are_left_out_again(finished, tmp_path):
    root = make_class_folders(tmp_path / "own", ("",), CLASSES, count=8)
    save_image(root / "dog" / "large.png", random_image((9, 7)))
    (root / "dog" / "broken.png").write_bytes(b"no image")
    other = tmp_path / "other" / "dog"
    other.mkdir(parents=True)
    for index in range(8):
        shutil.copy(root / "dog" / f"{index}.png", other)
    own = {**settings_of(root, "folder"), "bad_images": "skip"}
    data, _, overlap = look_up(finished, own, settings_of(other.parent, "folder"))
    kept = {str(name) for name in data.train.ids}
    assert [same for _, same in overlap.pairs] == [f"dog/{n}.png" for n in range(8) if f"dog/{n}.png" in kept]
    assert 0 < overlap.count < 8


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": "folder", "data_dir": "gone"}, "the run's data cannot be read (there is no folder gone)"),
        ({"data": "folder", "data_dir": "x" * 300}, "the run's data cannot be read ([Errno 36] File name too long"),
        ({"data": "hfds/some/images"}, "hfds/some/images is no folder, archive or table"),
    ],
)
def test_an_evaluation_goes_on_where_the_runs_data_cannot_be_read(finished, tmp_path, monkeypatch, changes, reason):
    monkeypatch.chdir(tmp_path)
    trained = load_trained_model(finished[1], {"threads": 1})
    facts = {**trained.facts, "config": {**trained.facts["config"], **changes}}
    root = make_class_folders(tmp_path / "other", ("",), CLASSES)
    images = load_dataset(Config(**settings_of(root, "folder"), test_fraction=0.3)).train
    overlap = training_overlap.training_overlap(dataclasses.replace(trained, facts=facts), images, "abc")
    assert overlap.count is None and overlap.unknown.startswith(reason)
    assert training_overlap.training_overlap(trained, images, "").unknown == "the run does not say what its data was"


@pytest.mark.parametrize("layout", ["other classes", "the same classes"])
def test_a_folder_that_is_another_one_now_is_not_listed(finished, tmp_path, monkeypatch, layout):
    """As with `--data-dir .`, where the current folder is another one, which may hold any number of files."""
    trained = load_trained_model(finished[1], {"threads": 1})
    classes = trained.classes if layout == "the same classes" else CLASSES
    root = make_class_folders(tmp_path / "home", ("documents/2024",), classes)
    (root / "documents" / "pictures").mkdir()
    root = root / "documents" / ("2024" if layout == "the same classes" else "")
    monkeypatch.chdir(root)
    facts = {**trained.facts, "config": {**trained.facts["config"], "data": "folder", "data_dir": "."}}
    listed = []
    monkeypatch.setattr(training_overlap, "list_files", lambda config: listed.append(config) or list_files(config))
    images = load_dataset(Config(data="digits")).train
    overlap = training_overlap.training_overlap(dataclasses.replace(trained, facts=facts), images, "abc")
    assert bool(listed) == (layout == "the same classes")
    reason = ". has changed since" if listed else "the run's data cannot be read (. has no folder of any class)"
    assert overlap.unknown.startswith(reason)


@pytest.mark.parametrize("layout", ["split folders", "an inner folder", "split lists", "metadata.csv"])
def test_training_images_are_found_in_every_layout(finished, tmp_path, layout):
    root = tmp_path / "own"
    inner = {"split folders": ("train", "test"), "an inner folder": ("all/train", "all/test")}.get(layout, ("images",))
    make_class_folders(root, inner, CLASSES, count=8)
    files = sorted(root.rglob("*.png"))
    if layout == "split lists":
        (root / "images").rename(root / "jpg")
        files = sorted(root.rglob("*.png"))
        for name, part in (("train", slice(0, None, 2)), ("test", slice(1, None, 2))):
            lines = [f"{path.relative_to(root / 'jpg')}" for path in files[part]]
            (root / "jpg" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    if layout == "metadata.csv":
        with open(root / "metadata.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file_name", "label"])
            for number, path in enumerate(files):
                label = path.parent.name
                rows.writerow([path.rename(root / f"{number}.png").name, label])
        shutil.rmtree(root / "images")
        files = sorted(root.glob("*.png"))
    other = tmp_path / "other" / "bee"
    other.mkdir(parents=True)
    for number, path in enumerate(files):
        shutil.copy(path, other / f"{number}.png")
    data, _, overlap = look_up(finished, settings_of(root, "folder"), settings_of(other.parent, "folder"))
    assert overlap.count == len(data.train) < len(files) and not overlap.unknown


def test_pixels_count_and_not_the_names_or_classes(finished, tmp_path):
    root = make_class_folders(tmp_path / "own", ("",), CLASSES, count=8)
    other = tmp_path / "other" / "bee"
    other.mkdir(parents=True)
    for index in range(8):
        with Image.open(root / "cat" / f"{index}.png") as image:
            image.save(other / f"{7 - index}.bmp")
        altered = np.asarray(Image.open(root / "dog" / f"{index}.png")).copy()
        altered[0, 0, 0] ^= 1
        save_image(other / f"altered-{index}.png", altered)
    data, images, overlap = look_up(finished, settings_of(root, "folder"), settings_of(other.parent, "folder"))
    found = {(str(images.ids[index]), same) for index, same in overlap.pairs}
    kept = {str(name) for name in data.train.ids}
    assert found == {(f"bee/{7 - n}.bmp", f"cat/{n}.png") for n in range(8) if f"cat/{n}.png" in kept}
