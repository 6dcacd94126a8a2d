"""Checkpoints that a test has changed."""

from __future__ import annotations

from harness.utils.files import read_json, sha256, write_json


def vouch_for(checkpoint, **changes):
    """Make the index accept a checkpoint as it is now, and remove the one before it."""
    folder = checkpoint.parent
    index = read_json(folder / "index.json")
    for entry in index["checkpoints"]:
        entry.update({"sha256": sha256(checkpoint), "bytes": checkpoint.stat().st_size, **changes})
    write_json(folder / "index.json", index)
    (folder / "previous.pt").unlink(missing_ok=True)
