"""`harness verify`: a configuration or a run held against the written assignment, point by point.

The assignment: the custom ResNet of 6,573,130 parameters on CIFAR-10, batch 512, 24 epochs, one cycle with its maximum
at epoch 5 and no annihilation, LRMIN and LRMAX from a range test, RandomCrop(32, padding 4) > flip > Cutout 8x8, 90 % on
the test set, the softmax exactly once; and the CIFAR ResNet-18 of 11,173,962. Every point is measured where it can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.checks import augmentation, lr_schedule, network
from harness.checks import finished_run as runs
from harness.checks.table import CheckRow, row, table
from harness.config.recipe import make_config
from harness.config.settings import FIND, Config
from harness.data.device_loader import count_steps
from harness.data.listing import children, read_listing
from harness.data.preprocess import make_preprocess
from harness.models import factory
from harness.utils.errors import DataError, UsageError

CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}
IMAGES = {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000), "digits": (1438, 359)}


@dataclass(frozen=True)
class Verdict:
    """The table.

    Attributes:
        subject: what was held against the assignment.
    """

    subject: str
    assignment: str
    rows: list[CheckRow]

    @property
    def deviating(self) -> list[CheckRow]:
        return [each for each in self.rows if each.verdict == "deviates"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        rows = [each.to_dict() for each in self.rows]
        deviates = [each.name for each in self.deviating]
        return {"subject": self.subject, "assignment": self.assignment, "deviates": deviates, "rows": rows}

    def text(self, width: int) -> str:
        """The table for a person."""
        return table(self.rows, f"{self.subject}, against the assignment ({self.assignment})", width)

    def told(self) -> str:
        """One line: what deviates, or that nothing does."""
        if names := [each.name for each in self.deviating]:
            return f"{len(names)} of {len(self.rows)} points deviate from the assignment: {', '.join(names)}"
        still = [each.name for each in self.rows if each.verdict == "open"]
        return "no point deviates" + (f"; only a run can say: {', '.join(still)}" if still else "")


def verify(given: Mapping[str, Any] | None = None, folder: Path | None = None) -> Verdict:
    """A configuration (settings given by hand over their recipe), or the run in a folder, against the assignment.

    Raises:
        UsageError: settings are wrong, or given beside a run. DataError: there is no run in the folder.
    """
    if folder is None:
        return _of_config(make_config(given or {}))
    if given:
        options = ", ".join("--" + key.replace("_", "-") for key in given)
        raise UsageError(f"{folder} has settings of its own; leave out {options}")
    return _of_run(runs.open_run(Path(folder).expanduser()))


def _of_config(config: Config) -> Verdict:
    subject = f"configuration {config.recipe}"
    kind, names, train, test = _data_of(config)
    data = runs.data_row(kind, names, train, test, "the settings")
    network_part, images_part = _built(config, len(names))
    if _is_resnet18(config):
        return Verdict(subject, "CIFAR ResNet-18", [data, *network_part, _accuracy_open()])
    try:
        per_epoch, _ = count_steps(
            max(2, round(train * (1 - config.val_fraction))), config.batch_size, config.drop_last
        )
    except UsageError:  # no whole batch: the row of the batch says so
        per_epoch = 1
    numbers = _numbers(config)
    curve = lr_schedule.rates_of_config(numbers, per_epoch)
    epochs = row(
        "epochs", f"{lr_schedule.EPOCHS}", f"{config.epochs}", "the setting", config.epochs == lr_schedule.EPOCHS
    )
    rows = [
        data,
        *network_part,
        images_part[0],
        epochs,
        *lr_schedule.rate_rows(curve, *numbers.rates()),
        lr_schedule.range_test_row(config, None),
        *images_part[1:],
        _accuracy_open(),
        lr_schedule.cyclic_row(),
    ]
    return Verdict(subject, "custom ResNet", rows)


def _of_run(run: runs.FinishedRun) -> Verdict:
    config, resnet18 = run.config, _is_resnet18(run.config)
    classes = len(run.story.header.get("dataset", {}).get("classes", ())) or 10
    network_part, images_part = _built(config, classes)
    data, weights, accuracy = runs.run_data_row(run), runs.weights_row(run, resnet18), runs.accuracy_row(run)
    subject = f"run {run.folder.name} ({run.state})"
    if resnet18:
        return Verdict(subject, "CIFAR ResNet-18", [data, *network_part, weights, accuracy])
    curve = runs.recorded_rates(run)
    rows = [
        data,
        *network_part,
        weights,
        runs.steps_row(run, curve.per_epoch),
        runs.epochs_row(run),
        *lr_schedule.rate_rows(curve, *runs.limits(run)),
        lr_schedule.range_test_row(config, run.folder),
        *images_part[1:],
        accuracy,
        lr_schedule.cyclic_row(),
    ]
    return Verdict(subject, "custom ResNet", rows)


def _built(config: Config, classes: int) -> tuple[list[CheckRow], list[CheckRow]]:
    """The rows of the network and of the images, measured with the settings' own model."""
    before = torch.get_rng_state()
    try:
        torch.manual_seed(config.seed)
        config = _numbers(config).replace(device="cpu", precision="fp32", pretrained=False)
        model = factory.create_model(config, config.classes or classes)
        size = make_preprocess(config, model, augmentation.test_pattern(64)).size
        images = [] if _is_resnet18(config) else augmentation.augmentation_rows(model, config)
        return network.network_rows(model, config, size, _is_resnet18(config)), images
    finally:
        torch.set_rng_state(before)


def _numbers(config: Config) -> Config:
    """The settings with rates that stand in for the word `find`: the shape of the curve does not depend on them."""
    if not config.needs_lr_find:
        return config
    high = 1.0 if config.lr_max == FIND else float(config.lr_max)
    low = high / 10 if config.lr_min == FIND else min(float(config.lr_min), high)
    return config.replace(lr_min=low, lr_max=high)


def _is_resnet18(config: Config) -> bool:
    return Path(config.recipe).stem == "resnet18" or config.model == "resnet18_cifar"


def _data_of(config: Config) -> tuple[str, tuple[str, ...], int, int]:
    """Name, classes and numbers of images of the data that the settings name; a folder's are counted."""
    if config.data != "folder":
        count = CLASSES.get(config.data, config.classes or 10)
        train, test = IMAGES.get(config.data, (0, 0))
        names = runs.CIFAR10 if config.data == "cifar10" else tuple(map(str, range(count)))
        return config.data, names, train, test
    listing, layout = read_listing(Path(config.data_dir).expanduser())
    splits = layout.splits or {"train": layout.prefix}
    counts = {
        name: sum(path.startswith(f"{place}/" if place else "") for path in listing.files)
        for name, place in splits.items()
    }
    names = tuple(children(listing.folders, splits["train"]))
    if len(names) < 2:
        raise DataError(f"{config.data_dir} holds no class folders; set --data-dir")
    return "folder", names, counts.get("train", 0) + counts.get("val", 0), counts.get("test", 0)


def _accuracy_open() -> CheckRow:
    wanted = f"at least {100 * runs.TARGET:g} % on the test set"
    return row("accuracy", wanted, "harness verify RUN, after the run", "-", None)
