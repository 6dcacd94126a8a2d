"""`harness verify`: each deviation is found, and in the row that it belongs to."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest
import torch

from harness.checks import augmentation
from harness.checks.op_trace import describe, trace
from harness.checks.verify import verify
from harness.models.cifar_resnet import CustomResNet
from harness.utils.errors import DataError, UsageError
from tests.support.commands import command

PLUGIN = """
from timm.models import register_model
from harness.models.cifar_resnet import CustomResNet

class Twice(CustomResNet):
    def forward(self, x):
        return super().forward(x).{what}(1)

@register_model
def {name}(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
    return Twice(**kwargs)
"""


def names(verdict):
    return {row.name for row in verdict.deviating}


@pytest.mark.parametrize("recipe", ["custom-resnet", "resnet18"])
def test_the_shipped_recipes_of_the_assignment_deviate_in_nothing(recipe):
    verdict = verify({"recipe": recipe})
    assert not names(verdict), verdict.told()
    assert {row.name for row in verdict.rows if row.verdict == "open"} == {"accuracy"}


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"crop_padding": 2}, {"crop"}),
        ({"padding_mode": "reflect"}, {"crop"}),
        ({"cutout": 16}, {"cutout"}),
        ({"cutout": 0}, {"cutout"}),
        ({"flip": False}, {"flip"}),
        ({"mixup": 0.2}, {"order"}),
        ({"augment": "none"}, {"crop", "flip", "cutout"}),
        ({"epochs": 23, "peak_epoch": 5}, {"epochs"}),
        ({"peak_epoch": 6}, {"LR maximum"}),
        ({"batch_size": 256}, {"batch"}),
        ({"batch_size": 60_000}, {"batch"}),
        ({"schedule": "cosine"}, {"LR shape"}),
        ({"lr_min": 0}, {"LR floor", "range test"}),
        ({"lr_max": 0.05}, {"range test"}),
        ({"lr_max": "find", "lr_min": "find"}, set()),
        ({"model_args": {"head_bias": False}}, {"classifier", "parameters"}),
        ({"model_args": {"logit_scale": 0.125}}, {"classifier"}),
        ({"model_args": {"global_pool": "avg"}}, {"pooling"}),
        ({"model_args": {"order": "conv-bn-relu-pool"}}, {"layer1", "layer2", "layer3"}),
        ({"data": "cifar100"}, {"data", "classifier", "parameters"}),
        ({"grad_accumulation": 4, "val_fraction": 0.1, "loader": "timm", "ema": 0.9}, set()),
    ],
)
def test_a_changed_setting_is_caught_in_its_rows_and_in_no_other(settings, rows, monkeypatch):
    monkeypatch.setattr(augmentation, "PICTURES", 512)
    assert names(verify(settings)) == rows


@pytest.mark.parametrize("what", ["softmax", "log_softmax"])
def test_a_network_that_takes_the_softmax_itself_is_caught(what, tmp_path, monkeypatch):
    name = f"twice_{what}"
    (tmp_path / f"{name}_plugin.py").write_text(PLUGIN.format(what=what, name=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert names(verify({"model": name, "plugin": f"{name}_plugin", "augment": "timm"})) == {"softmax"}


def test_a_skip_from_another_place_is_no_residual_block():
    class Wrong(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = CustomResNet(width=2)

        def forward(self, x):
            x = self.net.prep(x)
            y = self.net.layer1.down(x)
            return y + self.net.layer1.residual.block2(y)  # one block of two

    from harness.checks.network import _section

    steps, _ = trace(Wrong(), torch.randn(2, 3, 32, 32))
    right, _ = trace(CustomResNet(width=2), torch.randn(2, 3, 32, 32))
    assert describe(steps).count("conv") == 3
    begin = next(place for place, step in enumerate(right) if step.text == "conv3x3 2>4")
    assert _section(right[begin : begin + 11], begin).count("conv") == 3
    assert "X + R(X)" in _section(right[begin : begin + 11], begin)


def test_the_pattern_tells_a_hand_made_crop_flip_and_hole():
    data = augmentation.test_pattern(64)
    image = data.train.pixels[0]
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    made = padded[1:33, 7:39][:, ::-1]
    from harness.config.settings import Config
    from harness.data.preprocess import make_preprocess

    preprocess = make_preprocess(Config(), CustomResNet(width=1), data)
    images = preprocess.normalise(torch.from_numpy(made.copy()).permute(2, 0, 1))[None].clone()
    images[:, :, 20:28, 3:11] = 0
    seen = augmentation._read_off(images.numpy(), preprocess, "by hand")
    assert (seen.top[0], seen.left[0], bool(seen.mirrored[0])) == (1 - 4, 7 - 4, True)
    assert (seen.holes[0], tuple(seen.boxes[0]), bool(seen.plain[0])) == (64, (8, 8), True)
    images[:, :, 0, 20] = 1.0  # one wrong pixel
    assert not augmentation._read_off(images.numpy(), preprocess, "by hand").plain[0]


def test_a_run_is_read_from_its_journal_its_checkpoint_and_its_predictions(finished, tmp_path):
    folder = tmp_path / "runs" / "copy"
    shutil.copytree(finished[1], folder, ignore=shutil.ignore_patterns("wandb"))
    verdict = verify(folder=folder)
    expected = {"data", "prep", "layer1", "layer2", "layer3", "classifier", "parameters", "weights", "batch", "epochs"}
    expected |= {"LR maximum", "range test", "crop", "flip", "cutout"}
    told = {row.name: row for row in verdict.rows}
    assert names(verdict) - {"accuracy"} == expected
    assert told["LR start"].verdict == told["LR end"].verdict == told["LR shape"].verdict == "ok"
    assert told["weights"].found == told["parameters"].found == "103,954"

    with (folder / "predictions.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    right = next(line for line in lines[1:] if line[2] == line[3])
    right[3] = str((int(right[3]) + 1) % 10)
    with (folder / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    assert "predictions are right" in {row.name: row for row in verify(folder=folder).rows}["accuracy"].found


def test_the_learning_rates_of_a_run_are_those_of_its_journal(finished, tmp_path):
    folder = tmp_path / "runs" / "copy"
    shutil.copytree(finished[1], folder, ignore=shutil.ignore_patterns("wandb"))
    lines = (folder / "journal.jsonl").read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if json.loads(line)["kind"] == "epoch")
    record = json.loads(lines[place])
    rates = record["steps"]["lines"]["lr"]
    rates[0] *= 2
    lines[place] = json.dumps(record)
    (folder / "journal.jsonl").write_text("\n".join(lines) + "\n")
    assert names(verify(folder=folder)) >= {"LR start"}


def test_what_is_no_run_and_settings_beside_a_run_are_refused_in_one_line(finished, tmp_path):
    with pytest.raises(DataError, match=r"no run in .*harness runs"):
        verify(folder=tmp_path)
    with pytest.raises(UsageError, match="leave out --batch-size"):
        verify({"batch_size": 256}, finished[1])


def test_the_command_ends_with_9_and_prints_json(tmp_path):
    done = command("verify", "--batch-size", 256, "--json", cwd=tmp_path, check=9)
    assert json.loads(done.stdout)["deviates"] == ["batch"]
    assert "1 of 23 points deviate from the assignment: batch" in done.stderr
    assert not list(tmp_path.iterdir())
