"""Compare a resumed run with an uninterrupted one."""

from __future__ import annotations

import torch

from harness.tracking.journal import read_journal
from tests.support.forked import TINY

SAVING = [*TINY, "--checkpoint-every", "4"]
TIMED = ("time/", "throughput", "memory/")


def contents_of(folder):
    """All that must be bit-identical: weights, predictions, every metric of the journal but times, the checkpoint."""
    records = [
        (
            record.kind,
            record.step,
            record.epoch,
            {key: value for key, value in record.scalars().items() if not key.startswith(TIMED)},
            record.steps,
        )
        for record in read_journal(folder).records
    ]
    state = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    progress = state["progress"]
    progress["history"] = [
        {key: value for key, value in row.items() if not key.startswith(TIMED)} for row in progress["history"]
    ]
    progress.pop("seconds")
    return {
        "weights": (folder / "checkpoints/model.safetensors").read_bytes(),
        "predictions": (folder / "predictions.csv").read_bytes(),
        "records": records,
        "state": flatten({name: state[name] for name in ("learner", "progress")}),
    }


def flatten(value, path=""):
    """Return path -> leaf of nested dictionaries and lists, with the bytes of each tensor."""
    if isinstance(value, torch.Tensor):
        return {path: value.numpy().tobytes()}
    if isinstance(value, dict):
        return {key: part for name, inner in value.items() for key, part in flatten(inner, f"{path}/{name}").items()}
    if isinstance(value, list | tuple):
        return {
            key: part for index, inner in enumerate(value) for key, part in flatten(inner, f"{path}/{index}").items()
        }
    return {path: value}


def assert_same(folder, uninterrupted):
    """The only run in `folder`/runs has the contents of the uninterrupted one, and no temporary files are left."""
    assert [path.name for path in (folder / "runs").iterdir()] == ["r"]
    contents = contents_of(folder / "runs/r")
    for part, value in uninterrupted.items():
        assert contents[part] == value, part
    assert not list((folder / "runs/r").rglob("*.tmp"))
