"""Names and folders of data sets from a recipe that somebody else wrote."""

import io
import json
import tarfile

import numpy as np
import pytest

from harness.config.settings import Config
from harness.data.registry import load_dataset
from harness.utils.errors import DataError, UsageError
from tests.support.image_folders import save_image


@pytest.mark.parametrize("data", ["wds/x", "WDS/x", "tfds/mnist", "hfds/u/x", "hfids/u/x", "torch/mnist", "torch/image_folder"])  # fmt: skip
@pytest.mark.parametrize("data_dir", ["pipe:touch PWNED;#", "http://x/y", "gs://x", "file:/tmp", "a|touch PWNED", "zip://a::b"])  # fmt: skip
def test_a_data_dir_that_is_an_address_or_a_command_is_refused_and_does_nothing(tmp_path, monkeypatch, data, data_dir):
    """With the real webdataset the first one ran `touch PWNED`."""
    monkeypatch.chdir(tmp_path)
    for download in (False, True):
        with pytest.raises(UsageError, match="is an address or a command"):
            load_dataset(Config(data=data, data_dir=data_dir, download=download))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", ["tfds/ns:mnist", "tfds/huggingface:x", "tfds/mnist/data_dir=gs://x", "hfds/https://x/y", "hfids/a::b"])  # fmt: skip
def test_a_name_that_stands_for_code_or_another_place_is_refused(tmp_path, data):
    with pytest.raises(UsageError, match=r"need (tfds/NAME|hfi?ds/USER/NAME)"):
        load_dataset(Config(data=data, data_dir=str(tmp_path)))


@pytest.mark.parametrize("version", ["2.14.0", "2.19.1", "3.6.0", "unknown"])
def test_a_version_of_datasets_that_runs_scripts_beside_the_data_is_refused(tmp_path, monkeypatch, version):
    about = tmp_path / "lib" / "datasets-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: datasets\nVersion: {version}\n")
    (tmp_path / "lib/datasets.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    with pytest.raises(UsageError, match=r"install datasets>=4"):
        load_dataset(Config(data="hfds/user/name", data_dir=str(tmp_path)))
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("data", ["wds/x", "tfds/mnist:3.0.1", "torch/mnist"])
def test_a_folder_that_is_not_there_is_named_and_not_made(tmp_path, data):
    with pytest.raises(DataError, match="there is no such folder"):
        load_dataset(Config(data=data, data_dir=str(tmp_path / "none"), download=data.startswith("wds/")))
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_local_folder_of_webdataset_is_read_even_where_its_name_looks_like_a_command(tmp_path, monkeypatch):
    pytest.importorskip("webdataset")
    folder = tmp_path / "pipe:touch PWNED;#"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    splits = {"train": range(4), "test": range(4, 6)}
    for split, indices in splits.items():
        with tarfile.open(folder / f"{split}.tar", "w") as archive:
            for index in indices:
                save_image(tmp_path / "one.png", images[index])
                for suffix, content in (("png", (tmp_path / "one.png").read_bytes()), ("cls", str(index % 2).encode())):
                    member = tarfile.TarInfo(f"{index}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    about = {
        split: {"name": split, "num_samples": len(part), "filenames": [f"{split}.tar"], "shard_lengths": [len(part)]}
        for split, part in splits.items()
    }
    (folder / "_info.json").write_text(json.dumps({"splits": about}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        load_dataset(Config(data="wds/x", data_dir=folder.name))
    data = load_dataset(Config(data="wds/x", data_dir=f"./{folder.name}", val_fraction=0))
    np.testing.assert_array_equal(data.test.pixels, images[4:])
    assert not (tmp_path / "PWNED").exists()
