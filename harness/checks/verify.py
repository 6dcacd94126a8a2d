"""`harness verify`: compare a run or a configuration with the written specification of a CIFAR ResNet, point by point.

The specification: the custom ResNet with 6,573,130 parameters on CIFAR-10, batch size 512, 24 epochs, one cycle with its
maximum at epoch 5 and no annihilation, LRMIN and LRMAX from an LR range test, RandomCrop(32, padding=4), flip and 8x8
cutout in this order, 90 % test accuracy, the softmax exactly once; and the CIFAR ResNet-18 with 11,173,962 parameters.
Every point is measured where it can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.checks import augmentation, finished_run, lr_schedule, network
from harness.checks.table import CheckRow, check_table, row
from harness.config.recipe import make_config
from harness.config.settings import FIND, Config
from harness.data.device_loader import count_steps
from harness.data.preprocess import make_preprocess
from harness.data.registry import list_files
from harness.models import factory
from harness.runs.automatic import decide_settings
from harness.utils.errors import UsageError

CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}
IMAGES = {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000), "digits": (1438, 359)}


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        subject: the run or configuration.
        specification: the network that it was compared with.
    """

    subject: str
    specification: str
    rows: list[CheckRow]

    @property
    def is_of_its_data(self) -> bool:
        """Whether the data is that of the specification."""
        return all(each.name != "data" for each in self.deviating)

    @property
    def deviating(self) -> list[CheckRow]:
        """The rows that deviate from the specification."""
        return [each for each in self.rows if each.verdict == "deviates"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        rows = [each.to_dict() for each in self.rows]
        deviates = [each.name for each in self.deviating]
        return {"subject": self.subject, "specification": self.specification, "deviates": deviates, "rows": rows}

    def text(self, width: int) -> str:
        """Return the table as text, for a terminal of `width` columns (0: no terminal)."""
        return check_table(
            self.rows, f"{self.subject}, compared with the specification of the {self.specification} on CIFAR-10", width
        )

    def summary(self) -> str:
        """Return one line: which points deviate."""
        if names := [each.name for each in self.deviating]:
            other = "" if self.is_of_its_data else "; runs on other data are not meant to meet it"
            return f"{len(names)} of {len(self.rows)} points deviate from the specification of the {self.specification} on CIFAR-10: {', '.join(names)}{other}"
        unanswered = [each.name for each in self.rows if each.verdict == "open"]
        return "no point deviates" + (f"; to be checked after a run: {', '.join(unanswered)}" if unanswered else "")


def verify(settings: Mapping[str, Any] | None = None, folder: Path | None = None) -> Verification:
    """Compare a configuration, or the run in a directory, with the specification.

    Args:
        settings: of a configuration; they override those of their recipe.
        folder: a run directory, instead of settings.

    Raises:
        UsageError: settings are invalid, or are given together with a run.
        DataError: there is no run in the directory.
    """
    if folder is None:
        return _verify_config(decide_settings(make_config(settings or {})).config)
    if settings:
        options = ", ".join("--" + key.replace("_", "-") for key in settings)
        raise UsageError(f"{folder} is verified with its own settings; leave out {options}")
    return _verify_run(finished_run.open_run(Path(folder).expanduser()))


def _verify_config(config: Config) -> Verification:
    subject = f"configuration {config.recipe}"
    name, classes, train, test = _describe_data(config)
    data = finished_run.data_row(name, classes, train, test, "the settings")
    accuracy = row("accuracy", finished_run.ACCURACY_WANTED, "after a run: harness verify RUN", "-", None)
    network_rows, image_rows = _measure(config, len(classes))
    if _is_resnet18(config):
        return Verification(subject, "CIFAR ResNet-18", [data, *network_rows, accuracy])
    try:
        train_images = max(2, round(train * (1 - config.val_fraction)))
        per_epoch, _ = count_steps(train_images, config.batch_size, config.drop_last)
    except UsageError:  # there is no full batch; the row about the batch says so
        per_epoch = 1
    numeric = _with_numeric_rates(config)
    rates = lr_schedule.rates_of_config(numeric, per_epoch)
    epochs = row(
        "epochs", f"{lr_schedule.EPOCHS}", f"{config.epochs}", "the setting", config.epochs == lr_schedule.EPOCHS
    )
    rows = [
        data,
        *network_rows,
        image_rows[0],
        epochs,
        *lr_schedule.rate_rows(rates, *numeric.rates()),
        lr_schedule.range_test_row(config, None),
        *image_rows[1:],
        accuracy,
        lr_schedule.cyclic_row(),
    ]
    return Verification(subject, "custom ResNet", rows)


def _verify_run(run: finished_run.FinishedRun) -> Verification:
    config, resnet18 = run.config, _is_resnet18(run.config)
    network_rows, image_rows = _measure(config, len(run.classes) or 10)
    data, accuracy = finished_run.run_data_row(run), finished_run.accuracy_row(run)
    weights, files = finished_run.weights_row(run, resnet18), finished_run.files_row(run)
    subject = f"run {run.folder.name} ({run.state})"
    if resnet18:
        return Verification(subject, "CIFAR ResNet-18", [data, *network_rows, weights, files, accuracy])
    rates = finished_run.recorded_rates(run)
    rows = [
        data,
        *network_rows,
        weights,
        files,
        finished_run.finished_batch_row(run, rates.per_epoch),
        finished_run.epochs_row(run),
        *lr_schedule.rate_rows(rates, *finished_run.used_rates(run)),
        lr_schedule.range_test_row(config, run.folder),
        *image_rows[1:],
        accuracy,
        lr_schedule.cyclic_row(),
    ]
    return Verification(subject, "custom ResNet", rows)


def _measure(config: Config, classes: int) -> tuple[list[CheckRow], list[CheckRow]]:
    """Return the rows about the network and about the training images, measured with a new model."""
    random_state = torch.get_rng_state()
    try:
        torch.manual_seed(config.seed)
        config = _with_numeric_rates(config).replace(device="cpu", precision="fp32", pretrained=False, init="")
        model = factory.create_model(config, config.classes or classes)
        size = make_preprocess(config, model, augmentation.pattern_dataset(64)).size
        image_rows = [] if _is_resnet18(config) else augmentation.augmentation_rows(model, config)
        return network.network_rows(model, config, size, _is_resnet18(config)), image_rows
    finally:
        torch.set_rng_state(random_state)


def _with_numeric_rates(config: Config) -> Config:
    """Return settings with numbers in place of `find`; the shape of the schedule does not depend on them."""
    if not config.needs_lr_find:
        return config
    high = 1.0 if config.lr_max == FIND else float(config.lr_max)
    low = high / 10 if config.lr_min == FIND else min(float(config.lr_min), high)
    return config.replace(lr_min=low, lr_max=high)


def _is_resnet18(config: Config) -> bool:
    return Path(config.recipe).stem == "resnet18" or config.model == "resnet18_cifar"


def _describe_data(config: Config) -> tuple[str, tuple[str, ...], int, int]:
    """Return name, classes, training and test images of the data of the settings; a folder's images are counted."""
    if config.data not in ("folder", "table"):
        count = CLASSES.get(config.data, config.classes or 10)
        train, test = IMAGES.get(config.data, (0, 0))
        classes = finished_run.CIFAR10 if config.data == "cifar10" else tuple(map(str, range(count)))
        return config.data, classes, train, test
    listing = list_files(config)
    assert listing is not None
    counts = {name: len(split) for name, split in listing.splits.items()}
    return config.data, listing.classes, counts.get("train", 0) + counts.get("val", 0), counts.get("test", 0)
