"""`harness verify`: each deviation is found, in its own row and in no other."""

import csv
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.checks import augmentation, network
from harness.checks.finished_run import CIFAR10, accuracy_row, data_row, files_row, open_run, run_data_row, weights_row
from harness.checks.lr_schedule import RateCurve, range_test_row, rate_rows
from harness.checks.network import describe_section, network_rows, softmax_row
from harness.checks.op_trace import describe_steps, trace
from harness.checks.table import CheckRow
from harness.checks.verify import Verification, verify
from harness.config.settings import Config
from harness.data.preprocess import make_preprocess
from harness.models.cifar_resnet import CustomResNet
from harness.tracking.journal import Journal
from harness.tracking.journal_lines import encode_line
from harness.utils.errors import DataError, UsageError
from harness.utils.files import read_json, write_json
from tests.support.commands import command
from tests.support.image_folders import make_class_folders
from tests.support.small_run import write_run

PLUGIN = """
from timm.models import register_model
from harness.models.cifar_resnet import CustomResNet

class DoubleSoftmax(CustomResNet):
    def forward(self, x):
        return super().forward(x).{function}(1)

@register_model
def {name}(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
    return DoubleSoftmax(**kwargs)
"""


def deviating(result):
    return {row.name for row in result.deviating}


def rows_of(result):
    return {row.name: row for row in result.rows}


def rows_that_deviate(*names):
    return [CheckRow(name, "this", "that", "read", "deviates") for name in names]


@pytest.mark.parametrize("names", [("data", "accuracy"), ("data",), ("accuracy", "batch"), ("batch",)])
def test_the_specification_is_named_and_other_data_is_said_not_to_be_meant_to_meet_it(names):
    result = Verification("run mine", "custom ResNet", rows_that_deviate(*names))
    assert "the specification of the custom ResNet on CIFAR-10" in " ".join(result.text(0).split())
    assert "of the custom ResNet on CIFAR-10: " in result.summary()
    assert ("runs on other data are not meant to meet it" in result.summary()) == ("data" in names)


def test_points_that_only_a_run_can_answer_are_named_and_the_json_has_every_row():
    rows = [CheckRow("batch", "512", "512", "read", "ok"), CheckRow("accuracy", "90 %", "after a run", "-", "open")]
    result = Verification("configuration mine", "custom ResNet", rows)
    assert result.summary() == "no point deviates; to be checked after a run: accuracy"
    assert Verification("x", "y", rows[:1]).summary() == "no point deviates"
    values = json.loads(json.dumps(replace(result, rows=rows + rows_that_deviate("crop")).to_dict()))
    assert (values["subject"], values["specification"]) == ("configuration mine", "custom ResNet")
    assert values["deviates"] == ["crop"] and [CheckRow(**each) for each in values["rows"][:2]] == rows


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["custom-resnet", "resnet18"])
def test_the_shipped_recipes_of_the_specification_do_not_deviate(recipe):
    result = verify({"recipe": recipe})
    assert not deviating(result), result.summary()
    assert {row.name for row in result.rows if row.verdict == "open"} == {"accuracy"}


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"crop_padding": 2}, {"crop"}),
        pytest.param({"padding_mode": "reflect"}, {"crop"}, marks=pytest.mark.slow),
        pytest.param({"cutout": 16}, {"cutout"}, marks=pytest.mark.slow),
        ({"cutout": 0}, {"cutout"}),
        pytest.param({"flip": False}, {"flip"}, marks=pytest.mark.slow),
        ({"mixup": 0.2}, {"order"}),
        pytest.param({"aug_repeats": 2}, {"order"}, marks=pytest.mark.slow),
        pytest.param({"color_jitter": 0.4}, {"crop", "order"}, marks=pytest.mark.slow),
        ({"augment": "none"}, {"crop", "flip", "cutout"}),
        ({"epochs": 23, "peak_epoch": 5}, {"epochs"}),
        ({"peak_epoch": 6}, {"LR maximum"}),
        ({"batch_size": 256}, {"batch"}),
        pytest.param({"batch_size": 60_000}, {"batch"}, marks=pytest.mark.slow),
        ({"schedule": "cosine"}, {"LR shape"}),
        ({"lr_min": 0}, {"LR floor", "range test"}),
        pytest.param({"lr_max": 0.05}, {"range test"}, marks=pytest.mark.slow),
        ({"lr_max": "find", "lr_min": "find"}, set()),
        ({"model_args": {"head_bias": False}}, {"classifier", "parameters"}),
        pytest.param({"model_args": {"logit_scale": 0.125}}, {"classifier"}, marks=pytest.mark.slow),
        ({"model_args": {"global_pool": "avg"}}, {"pooling"}),
        ({"model_args": {"order": "conv-bn-relu-pool"}}, {"layer1", "layer2", "layer3"}),
        ({"data": "cifar100"}, {"data", "classifier", "parameters"}),
        ({"grad_accumulation": 4, "val_fraction": 0.1, "loader": "timm", "ema": 0.9}, set()),
    ],
)
def test_a_changed_setting_deviates_in_its_rows_and_in_no_other(settings, rows, monkeypatch):
    monkeypatch.setattr(augmentation, "IMAGES", 512)
    monkeypatch.setattr(network, "IMAGES", 4)
    assert deviating(verify(settings)) == rows


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_a_network_with_a_softmax_of_its_own_deviates(function, tmp_path, monkeypatch):
    name = f"double_{function}"
    (tmp_path / f"{name}_plugin.py").write_text(PLUGIN.format(function=function, name=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert deviating(verify({"model": name, "plugin": f"{name}_plugin", "augment": "timm"})) == {
        "softmax",
        "range test",
    }


def test_a_skip_connection_from_elsewhere_is_no_residual_block():
    class Wrong(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = CustomResNet(width=2)

        def forward(self, x):
            x = self.net.prep(x)
            y = self.net.layer1.down(x)
            return y + self.net.layer1.residual.block2(y)  # one block of two

    steps, _ = trace(Wrong(), torch.randn(2, 3, 32, 32))
    correct, _ = trace(CustomResNet(width=2), torch.randn(2, 3, 32, 32))
    assert describe_steps(steps).count("conv") == 3
    assert describe_section(steps, 0).count("conv") == 3
    begin = next(index for index, step in enumerate(correct) if step.text == "conv3x3 2>4")
    assert describe_section(correct[begin : begin + 11], begin).count("conv") == 3
    assert "X + R(X)" in describe_section(correct[begin : begin + 11], begin)


def test_the_pattern_shows_a_crop_flip_and_cutout_made_with_numpy():
    data = augmentation.pattern_dataset(64)
    image = data.train.pixels[0]
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    augmented = padded[1:33, 7:39][:, ::-1]
    preprocess = make_preprocess(Config(), CustomResNet(width=1), data)
    images = preprocess.normalise(torch.from_numpy(augmented.copy()).permute(2, 0, 1))[None].clone()
    images[:, :, 20:28, 3:11] = 0
    measured = augmentation.measure_images(images.numpy(), preprocess, "NumPy")
    assert (measured.top[0], measured.left[0], bool(measured.flipped[0])) == (1 - 4, 7 - 4, True)
    assert (measured.cutout_pixels[0], tuple(measured.cutout_sizes[0])) == (64, (8, 8))
    assert measured.is_crop[0]
    images[:, :, 0, 20] = 1.0  # one wrong pixel
    assert not augmentation.measure_images(images.numpy(), preprocess, "NumPy").is_crop[0]


@pytest.mark.parametrize(
    ("name", "classes", "train", "test", "verdict"),
    [
        ("cifar10", CIFAR10, 50_000, 10_000, "ok"),
        ("folder", tuple(reversed(CIFAR10)), 50_000, 10_000, "ok"),
        ("cifar10", CIFAR10, 49_999, 10_000, "deviates"),
        ("cifar10", CIFAR10, 50_000, 9_999, "deviates"),
        ("cifar10", CIFAR10, 10_000, 50_000, "deviates"),
        ("folder", (*CIFAR10[:9], "car"), 50_000, 10_000, "deviates"),
        ("folder", CIFAR10[:9], 50_000, 10_000, "deviates"),
    ],
)
def test_cifar10_is_its_classes_and_both_numbers_of_images(name, classes, train, test, verdict):
    assert data_row(name, classes, train, test, "").verdict == verdict


def test_the_images_of_a_run_that_were_held_out_for_validation_are_training_images_of_cifar10(tmp_path):
    run = open_run(write_run(tmp_path / "r"))
    for images, verdict in (
        ({"train": 45_000, "val": 5_000, "test": 10_000}, "ok"),
        ({"train": 50_000, "test": 10_000}, "ok"),
        ({"train": 45_000, "test": 10_000}, "deviates"),
    ):
        dataset = {"name": "cifar10", "classes": list(CIFAR10), "images": images}
        journal = replace(run.journal, header={**run.journal.header, "dataset": dataset})
        assert run_data_row(replace(run, journal=journal)).verdict == verdict


def cycle(start=0.01, top=0.1, end=0.01, peak=5, has_end=True):
    """Return the rates of a whole run of four updates an epoch, by interpolation; by default as they are specified."""
    lr = np.interp(np.arange(24 * 4 + has_end), [0, 4 * peak, 24 * 4], [start, top, end])
    return RateCurve(lr, 4, is_complete=True, has_end=has_end, how="")


def deviations(rates):
    return {each.name for each in rate_rows(rates, 0.01, 0.1) if each.verdict == "deviates"}


@pytest.mark.parametrize(
    ("knots", "rows"),
    [
        ({}, set()),
        ({"start": 0.012}, {"LR start"}),
        ({"start": 0.008}, {"LR start", "LR floor"}),
        ({"top": 0.11}, {"LR maximum"}),
        ({"peak": 6}, {"LR maximum"}),
        ({"peak": 5.25}, {"LR maximum"}),
        ({"end": 0.012}, {"LR end"}),
        ({"end": 0.0}, {"LR end", "LR floor"}),
        ({"start": 0.1, "end": 0.1}, {"LR start", "LR maximum", "LR end", "LR shape"}),
    ],
)
def test_each_knot_of_the_cycle_that_is_elsewhere_deviates_in_its_rows_and_in_no_other(knots, rows):
    assert deviations(cycle(**knots)) == rows
    # A run has no rate after its last update, which is one step of the descent above the end.
    if not {"top", "end"} & knots.keys():
        assert deviations(cycle(**knots, has_end=False)) == rows


@pytest.mark.parametrize(
    "change",
    [
        lambda lr: np.where(np.arange(len(lr)) == 50, 1.3 * lr, lr),  # one update alone
        lambda lr: np.where(np.arange(len(lr)) == 10, 0.6 * lr, lr),
        lambda lr: np.where(np.arange(len(lr)) >= 60, np.maximum(lr - 0.02, 0.01), lr),  # a jump
        lambda lr: 0.01 + 0.09 * ((lr - 0.01) / 0.09) ** 1.2,  # curved
    ],
)
def test_a_rate_that_leaves_the_straight_lines_deviates_in_the_shape_alone(change):
    rates = cycle()
    assert deviations(replace(rates, lr=change(rates.lr))) == {"LR shape"}


def test_a_maximum_between_two_updates_is_not_curved():
    for peak in (4.8, 5.1, 5.2):
        assert "LR shape" not in deviations(cycle(peak=peak))


def test_the_rates_of_an_unfinished_run_are_open_where_it_has_not_come():
    rates = cycle(has_end=False)
    for updates, still_open in ((0, 5), (10, 2), (50, 1)):
        begun = replace(rates, lr=rates.lr[:updates], is_complete=False)
        rows = rate_rows(begun, 0.01, 0.1)
        assert sum(each.verdict == "open" for each in rows) == still_open
        assert not any(each.verdict == "deviates" for each in rows)


@pytest.mark.parametrize(
    ("suggestion", "verdict"),
    [
        ({"lr_min": 0.0123, "lr_max": 0.5}, "ok"),
        ({"lr_min": 0.0123 * 1.04, "lr_max": 0.5 * 0.97}, "ok"),  # rounded by the user
        ({"lr_min": 0.0123, "lr_max": 0.9}, "deviates"),
        ({"lr_min": 0.03, "lr_max": 0.5}, "deviates"),
        ({"lr_max": 0.5}, "deviates"),
        ({}, "deviates"),
    ],
)
def test_both_rates_have_to_be_those_of_one_range_test(tmp_path, suggestion, verdict):
    (tmp_path / "find").mkdir()
    write_json(tmp_path / "find/lr_finder.json", suggestion)
    config = Config(lr_min=0.0123, lr_max=0.5, output=str(tmp_path))
    assert range_test_row(config, None).verdict == verdict
    (tmp_path / "other").mkdir()
    write_json(tmp_path / "other/lr_finder.json", {"lr_min": 0.03, "lr_max": 0.9})  # the missing rates of another test
    assert range_test_row(config, None).verdict == verdict


def test_a_cutout_that_is_not_full_deviates_though_its_box_has_the_size():
    data = augmentation.pattern_dataset(64)
    preprocess = make_preprocess(Config(), CustomResNet(width=1), data)
    images = torch.stack([preprocess.image(data.train.pixels[0])] * 2)
    images[:, :, 4:12, 4:12] = 0
    whole = augmentation.measure_images(images.numpy(), preprocess, "NumPy")
    assert augmentation._cutout(whole) == ("8x8 in every image", True)
    images[1, :, 6, 7] = 0.3
    with_hole = augmentation.measure_images(images.numpy(), preprocess, "NumPy")
    assert with_hole.cutout_pixels.tolist() == [64, 63] and (with_hole.cutout_sizes == 8).all()
    assert augmentation._cutout(with_hole) == ("8x8 in every image", False)
    images[1] = preprocess.image(data.train.pixels[0])
    missing = augmentation.measure_images(images.numpy(), preprocess, "NumPy")
    assert augmentation._cutout(missing)[1] is False


class AnotherLoss(torch.nn.Module):
    """A network whose training pass has other logits than the one that was looked at, as with a scale of its own."""

    def __init__(self, factor):
        super().__init__()
        self.linear, self.factor = torch.nn.Linear(3 * 8 * 8, 10), factor

    def forward(self, x):
        return self.linear(x.flatten(1)) * (self.factor if torch.is_grad_enabled() else 1.0)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "ok"), (1.5, "deviates")])
def test_a_loss_that_is_not_the_negative_log_softmax_of_the_output_deviates(factor, verdict):
    torch.manual_seed(0)
    model, images = AnotherLoss(factor), torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        logits = model(images)
    row = softmax_row(model, Config(), images, [], logits)
    assert row.verdict == verdict
    assert ("but -log softmax of the output is" in row.found) == (verdict == "deviates")


def test_weights_of_classes_are_named_though_they_are_equal():
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = AnotherLoss(1.0)
    with torch.no_grad():
        logits = model(images)
    row = softmax_row(model, Config(class_weights=(1.0,) * 10), images, [], logits)
    assert row.verdict == "deviates" and row.found.endswith(", with a weight for each class (class_weights)")


def test_the_views_of_an_image_are_equal_where_the_loss_is_checked():
    config = Config(loss="jsd", aug_splits=3, augment="timm", auto_augment="augmix-m3-w3", cutout=0)
    model, images = AnotherLoss(1.0), torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(images)
    assert softmax_row(model, config, images, [], logits).verdict == "ok"


def test_the_text_of_operations_has_stride_padding_bias_and_operations_of_any_name():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.Sigmoid(), torch.nn.Conv2d(4, 2, (1, 3)))
    steps, _ = trace(net, torch.zeros(1, 3, 9, 9))
    assert describe_steps(steps) == "conv3x3 3>4 s2 p0 with bias, sigmoid, conv1x3 4>2 p0 with bias"


def test_a_network_of_convolutions_alone_has_no_classifier():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 10, 8), torch.nn.Flatten())
    rows = {row.name: row for row in network_rows(net, Config(), 8, False)}
    assert (rows["classifier"].found, rows["classifier"].verdict) == ("none", "deviates")
    assert rows["softmax"].verdict == "ok"


@pytest.fixture
def run_copy(finished, tmp_path):
    """A copy of a finished run that a test may change."""
    folder = tmp_path / "runs" / "copy"
    shutil.copytree(finished[1], folder, ignore=shutil.ignore_patterns("wandb"))
    return folder


def test_a_run_is_read_from_its_journal_its_checkpoint_and_its_predictions(run_copy):
    result = verify(folder=run_copy)
    expected = {"data", "prep", "layer1", "layer2", "layer3", "classifier", "parameters", "weights", "batch", "epochs"}
    expected |= {"LR maximum", "range test", "crop", "flip", "cutout", "order", "pooling"}  # images of 16 pixels
    rows = rows_of(result)
    assert deviating(result) - {"accuracy"} == expected
    assert rows["LR start"].verdict == rows["LR end"].verdict == rows["LR shape"].verdict == "ok"
    assert rows["weights"].found == rows["parameters"].found == "26,350"

    with (run_copy / "predictions.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    correct = next(line for line in lines[1:] if line[2] == line[3])
    correct[3] = str((int(correct[3]) + 1) % 10)
    with (run_copy / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    assert "predictions are correct" in rows_of(verify(folder=run_copy))["accuracy"].found


def test_the_learning_rates_of_a_run_are_those_of_its_journal(run_copy):
    lines = (run_copy / "journal.jsonl").read_bytes().splitlines(keepends=True)
    # That of the epoch, or on a slow machine that of its first steps.
    index = next(index for index, line in enumerate(lines) if json.loads(line).get("steps"))
    record = json.loads(lines[index])
    del record["crc32"]
    rates = record["steps"]["lines"]["lr"]
    rates[0] *= 2
    lines[index] = encode_line(record)
    (run_copy / "journal.jsonl").write_bytes(b"".join(lines))
    assert deviating(verify(folder=run_copy)) >= {"LR start", "files"}


def test_a_run_that_no_process_is_writing_any_more_is_crashed(run_copy):
    status = read_json(run_copy / "status.json")
    write_json(run_copy / "status.json", {**status, "state": "running", "resume": "harness run --resume x"})
    row = rows_of(verify(folder=run_copy))["epochs"]
    command = f"harness run --recipe {run_copy / 'config.yaml'} --resume {run_copy}"  # never the one in a file
    assert row.found == f"3 of 3, crashed; resume with: {command}"


def test_data_of_fewer_than_ten_classes_deviates_in_its_rows_and_the_softmax_is_still_checked(tmp_path):
    folder = make_class_folders(tmp_path, classes="abc", size=(32, 32))
    rows = rows_of(verify({"data": "folder", "data_dir": str(folder), "model_args": {"width": 4}}))
    assert rows["data"].found == "folder: 3 classes, 9 training and 9 test images"
    assert rows["classifier"].verdict == "deviates"
    assert rows["softmax"].verdict == "ok"


def test_a_run_that_lost_files_is_checked_by_what_is_left(tmp_path):
    run = open_run(write_run(tmp_path / "r"))
    row = accuracy_row(run)
    assert (row.found, row.how) == ("50.00 % (best val/acc): 2 of 4", "summary.json; predictions.csv, counted")
    (run.folder / "predictions.csv").unlink()
    row = accuracy_row(run)
    assert (row.found, row.how) == ("50.00 % (best val/acc)", "summary.json")
    assert (files_row(run).verdict, files_row(run).how) == ("open", "SHA256SUMS: the run has none")
    row = weights_row(run, False)
    assert row.verdict == "deviates" and str(run.folder) in row.found


def test_a_run_without_a_test_accuracy_says_why_it_has_none(tmp_path):
    folder = write_run(tmp_path / "r")
    write_json(folder / "summary.json", {"result": {"val/acc": 0.9}})
    assert accuracy_row(open_run(folder)).found == "the test set was not evaluated"
    run = open_run(folder)
    run = replace(run, config=run.config.replace(data="table", label_separator="|", loss="bce", select_by="map"))
    assert accuracy_row(run).found == "images have several labels, so there is no accuracy"
    folder = write_run(tmp_path / "s", state="interrupted")
    run = open_run(folder)
    assert accuracy_row(run).found == "no result yet"
    assert files_row(run).how == "SHA256SUMS: written when a run ends"


@pytest.mark.parametrize("header", [{}, {"config": {"epochs": "many"}}, {"config": {"no_setting": 1}}])
def test_a_journal_that_does_not_begin_with_settings_is_refused(tmp_path, header):
    Journal(tmp_path, header).finish("finished", 0)
    with pytest.raises(DataError, match=r"journal\.jsonl does not begin with the settings of a run"):
        open_run(tmp_path)


@pytest.mark.slow
def test_a_run_of_the_resnet_18_is_compared_with_its_own_specification(tmp_path):
    result = verify(
        folder=write_run(tmp_path / "r", recipe="resnet18", model="resnet18_cifar")
    )  # it has three classes, and no weights
    assert result.specification == "CIFAR ResNet-18" and rows_of(result)["blocks"].verdict == "ok"
    assert deviating(result) == {"data", "classifier", "parameters", "weights", "accuracy"}


def test_what_is_no_run_and_settings_beside_a_run_are_refused_in_one_line(finished, tmp_path):
    with pytest.raises(DataError, match=r"no run in .*harness runs"):
        verify(folder=tmp_path)
    with pytest.raises(UsageError, match="leave out --batch-size"):
        verify({"batch_size": 256}, finished[1])


@pytest.mark.slow
def test_the_command_ends_with_9_and_prints_json(tmp_path):
    result = command("verify", "--batch-size", 256, "--json", cwd=tmp_path, check=9)
    assert json.loads(result.stdout)["deviates"] == ["batch"]
    assert "1 of 23 points deviate from the specification of the custom ResNet on CIFAR-10: batch" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_journal_that_does_not_begin_with_settings_is_named(tmp_path):
    folder = write_run(tmp_path / "r")
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(DataError, match=r"journal\.jsonl does not begin with the settings of a run"):
        open_run(folder)
