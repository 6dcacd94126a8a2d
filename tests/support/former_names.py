"""Run directories as version 0.1 wrote them: metrics under their former names."""

from __future__ import annotations

import json

import torch

from harness.tracking.metric_names import FORMER_METRIC_NAMES
from harness.utils.files import read_json, write_json
from tests.support.checkpoints import vouch_for

FORMER_NAMES = {present: former for former, present in FORMER_METRIC_NAMES.items()}


def renamed(value):
    """The same value with every mapping's keys under their former names."""
    if isinstance(value, dict):
        return {FORMER_NAMES.get(key, key): renamed(part) for key, part in value.items()}
    return [renamed(part) for part in value] if isinstance(value, list) else value


def use_former_names(folder):
    """Rewrite the journal, the summary and the checkpoint's history of a run directory; return the number of names."""
    lines = [renamed(json.loads(line)) for line in (folder / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("crc32", None)  # version 0.1 had no checksums
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary := renamed(read_json(folder / "summary.json")):
        if "seconds_before" in summary.get("environment", {}):
            summary["environment"]["seconds before"] = summary["environment"].pop("seconds_before")
        write_json(folder / "summary.json", summary)
    checkpoint = folder / "checkpoints/last.pt"
    state = torch.load(checkpoint, weights_only=True)
    state["progress"]["history"] = renamed(state["progress"]["history"])
    torch.save(state, checkpoint)
    vouch_for(checkpoint)
    return sum(json.dumps(lines).count(json.dumps(name)) for name in FORMER_METRIC_NAMES)
