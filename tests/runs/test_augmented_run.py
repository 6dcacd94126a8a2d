"""A run with the richer augmentation: resumed bit-identically, with its grid of training images in every place."""

import json
import re
import signal

import pytest
import yaml

from harness.reporting.html.pages import run_page
from harness.reporting.html.run_data import read_run
from harness.tracking.journal import read_journal
from harness.tracking.records import Image
from tests.support.forked import harness
from tests.support.resume import SAVING, contents_of

RICH = [
    *("--auto-augment", "rand-m9-mstd0.5-inc1", "--color-jitter", "0.2", "--erasing", "0.5", "--vflip", "0.1"),
    *("--aug-repeats", "2", "--mixup", "0.2", "--gallery", "6", "--cam", "none", "--workers", "0", "--epochs", "2"),
]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def augmented(tmp_path_factory):
    folder = tmp_path_factory.mktemp("augmented")
    harness("run", *SAVING, *RICH, "--name", "r", cwd=folder, check=0)
    return folder / "runs/r"


def test_a_run_with_random_transforms_of_single_images_resumes_to_bit_identical_results(augmented, tmp_path):
    for fault in ("kill@step=7", "kill@step=17"):
        ended = harness("run", *SAVING, *RICH, "--name", "r", cwd=tmp_path, fault=fault)
        assert ended.code == -signal.SIGKILL, ended.err
    harness("run", *SAVING, *RICH, "--name", "r", cwd=tmp_path, check=0)
    resumed, whole = contents_of(tmp_path / "runs/r"), contents_of(augmented)
    for part, value in whole.items():
        assert resumed[part] == value, part
    grid = "figures/augmented.png"
    assert (tmp_path / "runs/r" / grid).read_bytes() == (augmented / grid).read_bytes()


def test_a_run_with_views_and_the_jsd_loss_resumes_to_bit_identical_results_and_says_what_it_trains(tmp_path):
    words = ["--loss", "jsd", "--aug-splits", "3", "--auto-augment", "augmix-m3-w2", "--label-smoothing", "0.1"]
    words += ["--gallery", "6", "--cam", "none", "--workers", "0", "--epochs", "2", "--name", "r"]
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    harness("run", *SAVING, *words, cwd=tmp_path / "whole", check=0)
    ended = harness("run", *SAVING, *words, cwd=tmp_path / "killed", fault="kill@step=14")
    assert ended.code == -signal.SIGKILL, ended.err
    harness("run", *SAVING, *words, cwd=tmp_path / "killed", check=0)
    whole, resumed = (contents_of(tmp_path / folder / "runs/r") for folder in ("whole", "killed"))
    for part, value in whole.items():
        assert resumed[part] == value, part
    page = run_page(read_run(tmp_path / "whole/runs/r"))
    assert "The training loss is the cross entropy of the first views and the divergence between views" in page
    assert "3 views of each image" in page


def test_the_grid_of_training_images_is_recorded_with_the_first_epoch_and_is_on_the_page(augmented):
    records = read_journal(augmented).records
    with_grid = [record for record in records if "gallery/augmented" in record.values]
    assert [(record.kind, record.epoch) for record in with_grid] == [("epoch", 1)]
    image = with_grid[0].values["gallery/augmented"]
    assert isinstance(image, Image) and image.pixels.shape[1] > 300
    page = run_page(read_run(augmented))
    section = re.search(r'<h2 id="augmented">.*?</section>', page, re.DOTALL)[0]
    assert "rand-m9-mstd0.5-inc1, colour jitter 0.2" in section and "data:image/" in section
    assert '<a href="#augmented">' in page


def test_all_of_the_augmentation_is_in_the_settings_that_the_run_keeps(augmented):
    kept = yaml.safe_load((augmented / "config.yaml").read_text())
    header = json.loads((augmented / "journal.jsonl").read_text().splitlines()[0])
    assert kept["auto_augment"] == "rand-m9-mstd0.5-inc1" and kept["color_jitter"] == [0.2]
    assert kept["aug_repeats"] == 2.0 and kept["crop_scale"] == [0.08, 1.0]
    assert '"auto_augment": "rand-m9-mstd0.5-inc1"' in json.dumps(header) and '"loader": "timm"' in json.dumps(header)


def test_a_run_without_galleries_draws_no_grid(tmp_path):
    harness("run", *SAVING, "--name", "r", "--epochs", "1", "--gallery", "0", cwd=tmp_path, check=0)
    assert not (tmp_path / "runs/r/figures/augmented.png").exists()
    assert not any("gallery/augmented" in record.values for record in read_journal(tmp_path / "runs/r").records)
