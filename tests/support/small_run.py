"""A run directory of three epochs and four test images, written by hand, in which no two figures are equal.

The best epoch is not the last, the loss is lowest in another epoch than the accuracy is highest, validation and test
differ, and so do label and prediction of most images.
"""

from __future__ import annotations

import csv
from pathlib import Path

from harness.config.settings import Config
from harness.tracking.journal import Journal
from harness.tracking.records import Curve, Record
from harness.utils.files import write_json

CLASSES = ("ant", "bee", "cat")
STEPS = 2  # in an epoch
TRAIN_LOSS, VAL_LOSS, VAL_ACC = (2.0, 1.25, 0.75), (1.5, 0.9, 1.1), (0.25, 0.625, 0.5)
STEP_LOSSES, LRS = (2.5, 1.5, 1.4, 1.1, 0.8, 0.7), (0.01, 0.03, 0.05, 0.04, 0.02, 0.015)
SECONDS = {"train": (3.0, 2.0, 2.5), "eval": (0.5, 0.25, 0.75), "epoch": (4.5, 3.25, 4.25)}
# label, prediction, confidence, loss of each test image
IMAGES = (("ant", "ant", 0.9, 0.105), ("ant", "bee", 0.8, 1.9), ("bee", "cat", 0.7, 1.4), ("cat", "cat", 0.4, 0.916))
RESULT = {"epoch": 2, "chosen": "best val/acc", "val/acc": 0.625, "test/acc": 0.5, "test/loss": 1.08, "test/ece": 0.5}


def write_run(folder: Path, state: str = "finished", fingerprint: str = "f" * 16, **settings: object) -> Path:
    """Write the run directory; one that has not finished has no result."""
    folder.mkdir(parents=True)
    config = Config(**{"epochs": 3, "val_fraction": 0.1, "name": folder.name, "peak_epoch": 1, **settings})
    (folder / "config.yaml").write_text(config.to_yaml())
    write_json(folder / "status.json", {"state": state})
    dataset = {"name": "digits", "classes": list(CLASSES), "fingerprint": fingerprint}
    dataset["images"] = {"train": 16, "val": 8, "test": 4}
    journal = Journal(folder, {"config": config.to_dict(), "dataset": dataset, "environment": {"seconds_before": 1.5}})
    for index in range(3):
        part = slice(STEPS * index, STEPS * (index + 1))
        x = list(range(part.start + 1, part.stop + 1))
        curve = Curve("step", x, {"train/step_loss": list(STEP_LOSSES[part]), "lr": list(LRS[part])})
        values = {"train/loss": TRAIN_LOSS[index], "val/loss": VAL_LOSS[index], "val/acc": VAL_ACC[index]}
        values |= {"lr": LRS[part][-1], **{f"time/{key}_s": seconds[index] for key, seconds in SECONDS.items()}}
        journal.record(Record(x[-1], index + 1, values, curve))
    if state == "finished":
        journal.record(
            Record(6, 3, {f"result/{key}": value for key, value in RESULT.items() if "/" in key}, kind="final")
        )
        write_json(
            folder / "summary.json",
            {
                "status": "finished", "result": RESULT, "best": {"epoch": 2, "val/acc": 0.625, "chosen": "best val/acc"},
                "seconds": {**{key: sum(seconds) for key, seconds in SECONDS.items()}, "explain": 2.25},
                "dataset": dataset, "parameters": 1234,
            },
        )  # fmt: skip
        with open(folder / "predictions.csv", "w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["index", "id", "label", "prediction", "confidence", "loss", "margin"])
            table.writerows([index, f"test/{index}", *row, 0.0] for index, row in enumerate(IMAGES))
    journal.finish(state, 0 if state == "finished" else 1)
    return folder
