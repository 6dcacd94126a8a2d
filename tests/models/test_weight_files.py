"""Weights of other programs: read without running code, and named as the model names them."""

import argparse
import collections
import os
import pickle
import struct
import zipfile

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from harness.models import weight_files
from harness.models.weight_files import read_weight_file, state_of, without_prefixes
from harness.utils.errors import CheckpointError
from tests.support.training import assert_equal, net


def refusal(path):
    """Return the one line with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        read_weight_file(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


class Lightning(nn.Module):
    """A module whose model is one of its parts, as Lightning's are written."""

    def __init__(self):
        super().__init__()
        self.model, self.loss = net(), nn.CrossEntropyLoss(torch.ones(3))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        lambda model: model.state_dict(),
        lambda model: {"state_dict": model.state_dict(), "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda model: {"state_dict_ema": model.state_dict(), "state_dict": {}, "metric": 1.0},
        lambda model: {"model": model.state_dict(), "optimizer": {"state": {}}, "model_ema": None},
        lambda model: {
            "state_dict": Lightning().state_dict(),
            "pytorch-lightning_version": "2.5",
            "hyper_parameters": {},
        },
        lambda model: nn.DataParallel(model).state_dict(),
        lambda model: torch.compile(model).state_dict(),
        lambda model: torch.compile(nn.DataParallel(model)).state_dict(),
        lambda model: nn.DataParallel(torch.compile(model)).state_dict(),
        lambda model: AveragedModel(model).state_dict(),
    ],
)
def test_the_weights_are_found_in_the_files_of_other_programs_under_the_names_of_the_model(tmp_path, content, legacy):
    model = net()
    torch.save(content(model), tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)
    weights, _ = without_prefixes(state_of(read_weight_file(tmp_path / "weights.pth")), model.state_dict())
    assert_equal(weights, dict(model.state_dict()))


def test_the_moving_average_is_preferred_as_timm_does():
    first, second = net(0).state_dict(), net(1).state_dict()
    assert_equal(state_of({"state_dict": first, "state_dict_ema": second}), dict(second))


def test_a_model_whose_own_names_begin_with_a_prefix_keeps_them():
    weights = dict(Lightning().state_dict())
    assert_equal(without_prefixes(weights, weights)[0], weights)


def test_what_is_no_part_of_the_model_is_reported():
    _, foreign = without_prefixes(Lightning().state_dict(), net().state_dict())
    assert foreign == ["loss.weight"]


def test_safetensors_are_read(tmp_path):
    weights = dict(net().state_dict())
    save_file(weights, tmp_path / "weights.safetensors")
    assert_equal(state_of(read_weight_file(tmp_path / "weights.safetensors")), weights)


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("where", ["top", "inside", "args"])
def test_code_in_a_file_is_named_and_never_run(tmp_path, where, legacy):
    canary = Canary(tmp_path / "canary")
    content = {"top": canary, "inside": {"state_dict": {"w": canary}}, "args": {"args": argparse.Namespace(a=canary)}}
    torch.save(content[where], tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert "more than tensors" in (text := refusal(tmp_path / "w.pth")) and "system" in text
    assert not (tmp_path / "canary").exists()


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_pickle_and_a_script_module_are_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    refusal(tmp_path / "w.pth")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    refusal(tmp_path / "script.pt")
    assert not (tmp_path / "canary").exists()


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused_unread(tmp_path):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data/0", "w", force_zip64=True) as part:
            for _ in range(64):
                part.write(bytes(2**20))
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    assert path.stat().st_size < 2**17
    assert "compressed" in refusal(path)


def test_a_huge_sparse_file_is_no_reason_to_read_it(tmp_path):
    """1 TB that takes no room on the disk: tensors are mapped, and their shapes do not fit the model."""
    header = b'{"w":{"dtype":"F32","shape":[250000000000],"data_offsets":[0,1000000000000]}}'
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    try:
        os.truncate(path, 8 + len(header) + 10**12)
    except OSError:
        pytest.skip("the file system has no sparse files of this size")
    try:
        weights = read_weight_file(path)
    except CheckpointError:  # no address space for it
        return
    assert weights["w"].shape == (250_000_000_000,)
    legacy = tmp_path / "w.pth"
    legacy.write_bytes(b"x")
    os.truncate(legacy, 10**12)
    assert "no archive" in refusal(legacy)


def test_links_pipes_folders_and_files_of_other_kinds_are_refused(tmp_path):
    torch.save(net().state_dict(), tmp_path / "w.pth")
    (tmp_path / "link.pth").symlink_to(tmp_path / "w.pth")
    assert f"name the file that it leads to: {tmp_path / 'w.pth'}" in refusal(tmp_path / "link.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    refusal(tmp_path / "pipe.pth")
    refusal(tmp_path)
    for name, content in {
        "page.pth": b"<!DOCTYPE html><html>", "pointer.bin": b"version https://git-lfs.github.com/spec/v1\n",
        "empty.pth": b"", "text.pt": b"no weights", "text.safetensors": b"no weights",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
        refusal(tmp_path / name)
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(content[: len(content) // 2])
    refusal(tmp_path / "half.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    assert "instead of named weights" in refusal(tmp_path / "list.pth")


def test_timm_reads_the_same_weights_from_the_same_file(tmp_path):
    from timm.models import load_state_dict

    model = timm.create_model("test_resnet")
    checkpoint = {"state_dict": collections.OrderedDict(model.state_dict()), "args": argparse.Namespace(), "epoch": 1}
    torch.save(checkpoint, tmp_path / "w.pth.tar")
    assert_equal(state_of(read_weight_file(tmp_path / "w.pth.tar")), dict(load_state_dict(str(tmp_path / "w.pth.tar"))))


def test_an_archive_whose_list_of_parts_is_damaged_is_named_as_damaged(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(net().state_dict(), path)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")  # the entry of the last part
    content[place : place + 4] = b"XXXX"
    path.write_bytes(content)
    assert f"{path} is damaged: " in refusal(path)


def test_a_file_that_ends_as_an_archive_of_several_disks_is_damaged_and_no_internal_error(tmp_path):
    path = tmp_path / "w.pth"
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 1, 0, 2)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0)
    path.write_bytes(b"PK\x03\x04" + bytes(60) + locator + end)
    with pytest.raises(zipfile.BadZipFile):
        zipfile.is_zipfile(path)
    assert f"{path} is damaged: zipfiles that span multiple disks are not supported" in refusal(path)


def test_a_large_file_that_is_no_archive_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "MAX_LEGACY_BYTES", 1000)
    torch.save({"a": torch.zeros(1000)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    size = (tmp_path / "w.pth").stat().st_size
    assert f"has {size:,} bytes and is no archive of PyTorch 1.6 or newer; save it again" in refusal(tmp_path / "w.pth")
