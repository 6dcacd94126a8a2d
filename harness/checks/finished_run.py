"""Check a run directory: its data, updates, weights and accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.checks.lr_schedule import EPOCHS, RateCurve
from harness.checks.network import parameters_row
from harness.checks.table import CheckRow, row
from harness.config.settings import FIND, Config
from harness.config.stored import with_former_defaults
from harness.evaluation.metrics import read_predictions_csv
from harness.evaluation.trained_model import load_trained_model
from harness.models.factory import count_parameters
from harness.tracking.journal import JournalContents, read_journal
from harness.tracking.run_dir import (
    STATUS,
    RunState,
    changed_results,
    check_own_files,
    current_state,
    read_summary,
    resume_command,
)
from harness.utils.checksums import SUMS
from harness.utils.errors import CheckpointError, DataError, HarnessError
from harness.utils.files import read_json
from harness.utils.plain import number, sub_mapping
from harness.utils.text import percent

TARGET = 0.90
ACCURACY_WANTED = f"at least {percent(TARGET, 0)} on the test set"
BATCH_SIZE = 512
BATCH_WANTED = f"{BATCH_SIZE} images per update"
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZES = (50_000, 10_000)  # images of CIFAR-10: training, test


@dataclass(frozen=True)
class FinishedRun:
    """The contents of a run directory."""

    folder: Path
    journal: JournalContents
    config: Config
    state: RunState
    summary: dict[str, Any]

    @property
    def epochs(self) -> int:
        """The number of epochs that were trained."""
        return sum(record.kind == "epoch" for record in self.journal.records)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the journal; empty where it has none."""
        names = sub_mapping(self.journal.header, "dataset").get("classes")
        return tuple(map(str, names)) if isinstance(names, list) else ()

    @property
    def images(self) -> dict[str, int]:
        """The number of images of each split in the journal."""
        counts = sub_mapping(sub_mapping(self.journal.header, "dataset"), "images")
        return {split: count for split, count in counts.items() if isinstance(count, int)}


def open_run(folder: Path) -> FinishedRun:
    """Read the run in a directory.

    Raises:
        DataError: there is none, or its journal does not begin with the settings of a run.
    """
    check_own_files(folder)
    if not (folder / "journal.jsonl").is_file():
        raise DataError(f"no run in {folder}: it has no journal.jsonl; `harness runs` lists the runs")
    journal = read_journal(folder)
    try:
        changed = {name: journal.settings[name] for name in ("epochs", "extended") if name in journal.settings}
        config = Config(**{**with_former_defaults(journal.header["config"]), **changed})
    except (HarnessError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / 'journal.jsonl'} does not begin with the settings of a run ({error})") from None
    return FinishedRun(folder, journal, config, current_state(folder), read_summary(folder))


def data_row(name: str, classes: tuple[str, ...], train: int, test: int, how: str) -> CheckRow:
    """Return the row about the data, which is CIFAR-10 by its name, or by its classes and numbers of images."""
    is_cifar10 = name == "cifar10" or tuple(sorted(classes)) == CIFAR10
    wanted = f"CIFAR-10: 10 classes, {SIZES[0]:,} training and {SIZES[1]:,} test images"
    description = f"{name}: {len(classes)} classes, {train:,} training and {test:,} test images"
    return row("data", wanted, description, how, is_cifar10 and (train, test) == SIZES)


def run_data_row(run: FinishedRun) -> CheckRow:
    """Return the row about the data of a run, from its journal."""
    images = run.images
    train = images.get("train", 0) + images.get("val", 0)  # the validation split is held out of the training set
    name = str(sub_mapping(run.journal.header, "dataset").get("name", "?"))
    return data_row(name, run.classes, train, images.get("test", 0), "the journal")


def recorded_rates(run: FinishedRun) -> RateCurve:
    """Return the learning rate of every update, from the journal."""
    curves = [record.steps for record in run.journal.records if record.kind == "epoch" and record.steps]
    lr = np.array([value for curve in curves for value in curve.lines.get("lr", ())], dtype=float)
    per_epoch = max(1, len(curves[0].x)) if curves else 1
    is_complete = run.epochs >= run.config.epochs
    return RateCurve(lr, per_epoch, is_complete, has_end=False, how="the journal: the optimizer's rate at every step")


def used_rates(run: FinishedRun) -> tuple[float, float]:
    """Return LRMIN and LRMAX of a run: its settings, or what its range test chose in their place."""
    suggestion = read_json(run.folder / "lr_finder.json")
    rates = []
    for name in ("lr_min", "lr_max"):
        setting = getattr(run.config, name)
        recorded = number(run.summary.get(name, suggestion.get(name) if setting == FIND else setting))
        rates.append(recorded if math.isfinite(recorded) else 0.0)
    return rates[0], rates[1]


def epochs_row(run: FinishedRun) -> CheckRow:
    """Return the row about the number of epochs, which are to be complete."""
    description = f"{run.epochs} of {run.config.epochs}, {run.state}"
    resume = resume_command(run.folder, read_json(run.folder / STATUS))
    if run.state not in (RunState.FINISHED, RunState.RUNNING) and resume:
        description += f"; resume with: {resume}"
    return row(
        "epochs", f"{EPOCHS}", description, "the journal", run.epochs == EPOCHS and run.state == RunState.FINISHED
    )


def finished_batch_row(run: FinishedRun, per_epoch: int) -> CheckRow:
    """Return the row about the batch size, which is to agree with the number of updates per epoch."""
    train = run.images.get("train", 0)
    agrees = run.config.batch_size == BATCH_SIZE and per_epoch in (train // BATCH_SIZE, -(-train // BATCH_SIZE))
    description = f"{run.config.batch_size:,} images: {per_epoch} updates for {train:,} images"
    return row("batch", BATCH_WANTED, description, "the setting; updates per epoch in the journal", agrees)


def weights_row(run: FinishedRun, resnet18: bool) -> CheckRow:
    """Return the row about the parameters in the checkpoint, which is to fit the network."""
    try:
        trained = load_trained_model(run.folder, {"device": "cpu", "precision": "fp32"})
    except CheckpointError as error:
        return row("weights", "a checkpoint of the network", str(error), "loaded", False)
    how = f"loaded from {trained.path.name} and counted"
    return parameters_row(count_parameters(trained.model), resnet18, how, "weights")


def files_row(run: FinishedRun) -> CheckRow:
    """Return the row about the files that the result stands on, which are to be as the run left them."""
    wanted, how = "as the run left them", f"their checksums in {SUMS}"
    if not (run.folder / SUMS).is_file():
        why = "written when a run ends" if run.state != RunState.FINISHED else "the run has none"
        return row("files", wanted, "not checked", f"{SUMS}: {why}", None)
    changed = changed_results(run.folder)
    return row("files", wanted, f"changed: {', '.join(changed)}" if changed else "unchanged", how, not changed)


def accuracy_row(run: FinishedRun) -> CheckRow:
    """Return the row about the test accuracy, computed again from the predictions where they are stored."""
    how, result = "summary.json", sub_mapping(run.summary, "result")
    accuracy = number(result.get("test/acc"))
    if run.state != RunState.FINISHED:
        return row("accuracy", ACCURACY_WANTED, "no result yet", how, False)
    if run.config.is_multilabel:
        return row("accuracy", ACCURACY_WANTED, "images have several labels, so there is no accuracy", how, False)
    if not 0 <= accuracy <= 1:
        return row("accuracy", ACCURACY_WANTED, "the test set was not evaluated", how, False)
    description = f"{percent(accuracy, 2)} ({result.get('chosen', '?')})"
    predictions, _ = read_predictions_csv(run.folder / "predictions.csv", run.classes)
    if predictions is None:
        return row("accuracy", ACCURACY_WANTED, description, how, accuracy >= TARGET)
    how = "summary.json; predictions.csv, counted"
    correct, total = int(predictions.correct.sum()), len(predictions.correct)
    if abs(correct / total - accuracy) > 1e-9:
        return row(
            "accuracy",
            ACCURACY_WANTED,
            f"{description}, but {correct:,} of {total:,} predictions are correct",
            how,
            False,
        )
    return row("accuracy", ACCURACY_WANTED, f"{description}: {correct:,} of {total:,}", how, accuracy >= TARGET)
