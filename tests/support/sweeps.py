"""A quick sweep on digits: its file, and the results that `harness sweep` leaves."""

import csv

from harness.config import yaml_io

QUICK = {
    "name": "quick",
    "method": "random",
    "metric": {"name": "best/val_acc", "goal": "maximize"},
    "command": ["${env}", "harness", "run", "${args}"],
    "parameters": {
        "recipe": {"value": "digits"},
        "image_size": {"value": 16},
        "val_fraction": {"value": 0.2},
        "model_args": {"parameters": {"width": {"value": 4}}},
        "precision": {"value": "fp32"},
        "threads": {"value": 1},
        "batch_size": {"value": 128},
        "gallery": {"value": 0},
        "report": {"value": False},
        "epochs": {"value": 2},
        "lr_max": {"distribution": "log_uniform_values", "min": 0.02, "max": 0.1},
        "lr_min": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.02},
    },
}


def write_sweep(folder, **changes):
    """Write `sweep.yaml`: the quick sweep with other keys, without those that are None; `parameters` are added to its own."""
    document = {key: value for key, value in {**QUICK, **changes}.items() if value is not None}
    if "parameters" in changes:
        document["parameters"] = {**QUICK["parameters"], **changes["parameters"]}
    (folder / "sweep.yaml").write_text(yaml_io.dump_yaml(document))


def sweep_folder(folder):
    """Return the only sweep folder under `folder`/runs."""
    (path,) = (folder / "runs").iterdir()
    return path


def read_trials(folder):
    """Return the rows of a sweep's `trials.csv`."""
    with open(folder / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))
