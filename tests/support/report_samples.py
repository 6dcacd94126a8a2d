"""Run and sweep directories for report pages, written by the package's own code, with hostile texts."""

from __future__ import annotations

import csv
import shutil

import numpy as np

from harness.config import yaml_io
from harness.config.settings import Config
from harness.tracking.journal import Journal
from harness.tracking.records import Curve, Image, Record, Table
from harness.utils.files import read_json, write_json

EVIL = "<script>alert(1)</script>"
CLASSES = [EVIL, "</script><img src=x onerror=alert(1)>", '" onmouseover="alert(1)', "=1+1"]


def evil_run(folder, state="finished", **settings):
    """Write a run whose name, notes, classes and files are all hostile."""
    folder.mkdir(parents=True)
    config = Config(data="digits", name=EVIL, notes=f"why {EVIL}", tags=(EVIL,), **settings)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    write_json(folder / "status.json", {"state": state, "reason": EVIL, "resume": f"harness run {EVIL}"})
    dataset = {"name": EVIL, "classes": CLASSES, "images": {"train": 8, "test": 40}, "fingerprint": EVIL}
    journal = Journal(folder, {"config": config.to_dict(), "dataset": dataset, "environment": {"command": EVIL}})
    for epoch in (1, 2, 3):
        steps = Curve("step", [2 * epoch - 1, 2 * epoch], {"train/step_loss": [1.0, 0.5], "lr": [0.1, 0.2]})
        values = {"train/loss": 1 / epoch, "test/loss": 1.5 / epoch, "test/acc": epoch / 4, "lr": 0.1, EVIL: 1.0}
        journal.record(Record(2 * epoch, epoch, values, steps))
    journal.alert(EVIL, EVIL)
    if state == "finished":
        _end(folder, journal)
    else:
        journal.finish("failed", 1)
        lines = journal.path.read_bytes().splitlines(keepends=True)
        journal.path.write_bytes(b"".join(lines[:-1]))  # it was not closed
    return folder


def _end(folder, journal):
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(0, 4, 40), generator.integers(0, 4, 40)
    confidence = generator.uniform(0.25, 1, 40)
    with open(folder / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["index", "id", "label", "prediction", "confidence", "loss", "margin"])
        names = [f"'{name}" if name[0] in "=+-@" else name for name in CLASSES]
        for index in range(40):
            row = [
                index,
                f"{index}.png",
                names[labels[index]],
                names[predicted[index]],
                f"{confidence[index]:.6f}",
                0.5,
                0.1,
            ]
            table.writerow(row)
    columns = ("image", "id", "truth", "prediction", "confidence", "loss")
    for key, wrong in (("misclassified", True), ("correct", False)):
        rows = [
            (
                Image(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)), f"{index}{EVIL}", CLASSES[labels[index]],
                CLASSES[predicted[index]], float(confidence[index]), float(index) / 10,
            )
            for index in np.flatnonzero((labels != predicted) == wrong)
        ]  # fmt: skip
        journal.record(Record(6, 3, {f"predictions/{key}": Table(columns, rows)}, kind="final"))
    journal.finish("finished", 0)
    result = {"epoch": 3, "chosen": "last epoch", "test/acc": 0.75, "test/loss": 0.5, "test/ece": 0.1}
    write_json(folder / "summary.json", {"status": "finished", "result": result, "parameters": 100})


def other_seed(folder, copy, seed, accuracy, **changes):
    """A copy of a finished run under another seed, with another result."""
    shutil.copytree(folder, copy)
    config = yaml_io.read_yaml(copy / "config.yaml") | {"seed": seed, "name": copy.name} | changes
    (copy / "config.yaml").write_text(Config(**config).to_yaml(), encoding="utf-8")
    summary = read_json(copy / "summary.json")
    summary["result"]["test/acc"] = accuracy
    write_json(copy / "summary.json", summary)
    return copy


def sweep(folder, name="rates"):
    """A sweep directory with one trial in each state."""
    folder.mkdir(parents=True)
    (folder / "trials.csv").write_text(
        "trial,state,lr_max,lr_min,best/val_acc,values,seconds,training_s,folder,reason\n"
        "trial-0000,complete,0.01,0.001,0.8,4,3.5,3.0,runs/trial-0000,\n"
        "trial-0001,pruned,0.1,0.002,0.3,1,1.5,1.0,runs/trial-0001,\n"
        "trial-0002,complete,0.03,0.0005,0.9,4,3.6,3.1,runs/trial-0002,\n"
        f'trial-0003,failed,0.5,0.001,,0,1.0,0.0,runs/trial-0003,"{EVIL}"\n'
    )
    (folder / "best.yaml").write_text("recipe: digits\nlr_max: 0.03\n")
    (folder / "sweep.yaml").write_text("method: bayes\nparameters: {lr_max: {distribution: log_uniform_values}}\n")
    metric = {"name": "best/val_acc", "goal": "maximize"}
    best = {"trial": "trial-0002", "value": 0.9, "parameters": {"lr_max": 0.03, "lr_min": 0.0005}}
    summary = {
        "name": name,
        "method": "bayes",
        "metric": metric,
        "best": best,
        "importance": {"lr_max": 0.7, "lr_min": 0.3},
    }
    write_json(folder / "sweep.json", summary)
    return folder
