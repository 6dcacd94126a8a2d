"""What a run folder says of itself: its data, updates, weights and accuracy."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.checks.lr_schedule import EPOCHS, RateCurve
from harness.checks.network import parameters_row
from harness.checks.table import CheckRow, row
from harness.config.settings import FIND, Config
from harness.evaluation.trained_model import load_trained_model
from harness.models.factory import count_parameters
from harness.tracking.journal import JournalContents, read_journal
from harness.tracking.run_dir import STATUS, SUMMARY, is_locked, read_state
from harness.utils.errors import CheckpointError, DataError, HarnessError
from harness.utils.files import read_json

TARGET = 0.90
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZES = (50_000, 10_000)


@dataclass(frozen=True)
class FinishedRun:
    """A run folder, read.

    Attributes:
        state: running, finished, failed, interrupted, preempted or crashed.
    """

    folder: Path
    story: JournalContents
    config: Config
    state: str
    summary: dict[str, Any]

    @property
    def epochs(self) -> int:
        return sum(record.kind == "epoch" for record in self.story.records)


def open_run(folder: Path) -> FinishedRun:
    """The run in a folder.

    Raises:
        DataError: there is none, or it is none of ours.
    """
    if not (folder / "journal.jsonl").is_file():
        raise DataError(f"no run in {folder}: it has no journal.jsonl; `harness runs` lists what there is")
    story = read_journal(folder)
    try:
        config = Config(**dict(story.header["config"]))
    except (HarnessError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / 'journal.jsonl'} does not begin with the settings of a run ({error})") from None
    state = read_state(folder)
    if state == "running" and not is_locked(folder):
        state = "crashed"
    return FinishedRun(folder, story, config, state, read_json(folder / SUMMARY))


def data_row(name: str, classes: tuple[str, ...], train: int, test: int, how: str) -> CheckRow:
    """Whether it is CIFAR-10: its name, or its ten classes and its numbers of images."""
    known = name == "cifar10" or tuple(sorted(classes)) == CIFAR10
    found = f"{name}: {len(classes)} classes, {train:,} and {test:,} images"
    return row("data", f"CIFAR-10: 10 classes, {SIZES[0]:,} and {SIZES[1]:,} images", found, how, known and (train, test) == SIZES)  # fmt: skip


def run_data_row(run: FinishedRun) -> CheckRow:
    """The data of a run, as its journal has it."""
    facts = run.story.header.get("dataset", {})
    sizes = facts.get("images", {})
    train = int(sizes.get("train", 0)) + int(sizes.get("val", 0))  # what is held out was taken from it
    classes = tuple(map(str, facts.get("classes", ())))
    return data_row(str(facts.get("name", "?")), classes, train, int(sizes.get("test", 0)), "the journal")


def recorded_rates(run: FinishedRun) -> RateCurve:
    """The rates that the optimizer had in each update, as the journal has them."""
    records = [record for record in run.story.records if record.kind == "epoch" and record.steps]
    lr = [value for record in records if record.steps for value in record.steps.lines["lr"]]
    per_epoch = len(records[0].steps.x) if records and records[0].steps else 1
    whole = run.epochs >= run.config.epochs
    return RateCurve(np.array(lr, dtype=float), per_epoch, whole, False, "the journal: read back from the optimizer, every step")  # fmt: skip


def limits(run: FinishedRun) -> tuple[float, float]:
    """LRMIN and LRMAX that the run used: its settings, or what its range test put in their place."""
    found = read_json(run.folder / "lr_finder.json")
    ends = []
    for name in ("lr_min", "lr_max"):
        setting = run.summary.get(name, getattr(run.config, name))
        ends.append(float(found.get(name) or 0.0) if setting == FIND else float(setting))
    return ends[0], ends[1]


def epochs_row(run: FinishedRun) -> CheckRow:
    """How many epochs have been trained, and whether the run came to its end."""
    found = f"{run.epochs} of {run.config.epochs}, {run.state}"
    resume = read_json(run.folder / STATUS).get("resume", "")
    if run.state not in ("finished", "running") and resume:
        found += f"; go on with: {resume}"
    return row("epochs", f"{EPOCHS}", found, "the journal", run.epochs == EPOCHS and run.state == "finished")


def steps_row(run: FinishedRun, per_epoch: int) -> CheckRow:
    """The batch, from the number of updates an epoch."""
    images = int(run.story.header.get("dataset", {}).get("images", {}).get("train", 0))
    fits = per_epoch == images // 512 or per_epoch == -(-images // 512)
    found = f"{run.config.batch_size:,} images: {per_epoch} updates for {images:,}"
    return row("batch", "512 images an update", found, "the setting; updates an epoch in the journal", run.config.batch_size == 512 and fits)  # fmt: skip


def weights_row(run: FinishedRun, resnet18: bool) -> CheckRow:
    """The parameters in the checkpoint's file, which has to fit the network."""
    try:
        trained = load_trained_model(run.folder, {"device": "cpu", "precision": "fp32"})
    except CheckpointError as error:
        return row("weights", "a checkpoint of the network", str(error), "loaded", False)
    return parameters_row(count_parameters(trained.model), resnet18, f"loaded from {trained.path.name} and counted", "weights")  # fmt: skip


def accuracy_row(run: FinishedRun) -> CheckRow:
    """The test accuracy of the result, counted again from the predictions."""
    wanted = f"at least {100 * TARGET:g} % on the test set"
    result = run.summary.get("result", {})
    said = result.get("test/acc")
    if run.state != "finished" or not isinstance(said, int | float):
        return row("accuracy", wanted, "no result yet" if run.state != "finished" else "the test set was not read", "summary.json", False)  # fmt: skip
    right, count = _counted(run.folder / "predictions.csv")
    how = "summary.json" if not count else "summary.json; predictions.csv counted"
    found = f"{100 * said:.2f} % ({result.get('chosen', '?')})"
    if count and abs(right / count - said) > 1e-9:
        return row("accuracy", wanted, f"{found}, but {right:,} of {count:,} predictions are right", how, False)
    return row("accuracy", wanted, found + (f": {right:,} of {count:,}" if count else ""), how, said >= TARGET)


def _counted(path: Path) -> tuple[int, int]:
    """(right, all) of the predictions in a file; (0, 0) without one."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            told = [line["label"] == line["prediction"] for line in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, csv.Error):
        return 0, 0
    return sum(told), len(told)
