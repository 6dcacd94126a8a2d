"""Checkpoints that survive: written beside and renamed, the one before kept, no pickled code ever run.

`last.pt` holds everything needed to go on. `index.json` beside it names the checksums of the newest checkpoints
and is written before they get their names, so a kill at any moment leaves at least one file that it vouches for.
`model.safetensors` holds the weights of the result, for anyone.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.utils import fault_injection
from harness.utils.errors import CheckpointError
from harness.utils.files import read_json, sha256, sync_folder, write_atomically, write_json

FORMAT = 1
LAST, PREVIOUS, INCOMING, INDEX = "last.pt", "previous.pt", "incoming.pt", "index.json"
log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """`state` as the newest checkpoint in `folder`; the newest until now becomes the previous one.

    Args:
        state: tensors and plain values only, so that it loads without running code.
        about: plain facts for people and for refusals (`step` at least; epoch, configuration, classes).

    Raises:
        ResourceError: the disk is full; the checkpoints that were there are untouched.
    """
    fresh = folder / INCOMING
    write_atomically(fresh, lambda file: torch.save(dict(state), file))
    entry = {"format": FORMAT, "sha256": sha256(fresh), "bytes": fresh.stat().st_size, **about}
    write_json(folder / INDEX, {"checkpoints": [entry, *_entries(folder)[:2]]})
    if (folder / LAST).exists():
        os.replace(folder / LAST, folder / PREVIOUS)
        fault_injection.point("swap")
    os.replace(fresh, folder / LAST)
    sync_folder(folder)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; a damaged newer one is named in a warning. None: there is none.

    Raises:
        CheckpointError: there are checkpoints, but none is whole.
    """
    found = [path for name in (INCOMING, LAST, PREVIOUS) if (path := folder / name).exists()]
    good = [path for path in found if checkpoint_info(path)]
    if found == [folder / INCOMING] and not good:
        return None  # killed in its very first save, before the index had it
    for path in found:
        if path not in good:
            log.warning("%s is damaged or incomplete; using the one before it", path)
    if found and not good:
        raise CheckpointError(f"no whole checkpoint in {folder}; start anew with --resume never or another --name")
    return max(good, key=lambda path: checkpoint_info(path)["step"], default=None)


def checkpoint_info(path: Path) -> dict[str, Any]:
    """The plain facts saved with a checkpoint; empty unless the file is whole, by size and checksum."""
    if not path.is_file():
        return {}
    size = path.stat().st_size
    likely = [entry for entry in _entries(path.parent) if entry.get("bytes") == size]
    digest = sha256(path) if likely else ""
    return next((entry for entry in likely if entry.get("sha256") == digest), {})


def _entries(folder: Path) -> list[dict[str, Any]]:
    entries = read_json(folder / INDEX).get("checkpoints", [])
    return (
        [entry for entry in entries if isinstance(entry, dict) and "step" in entry] if isinstance(entries, list) else []
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, not one of ours, from a newer harness, or holds code.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}")
    facts = checkpoint_info(path)
    if facts.get("format", 0) > FORMAT:
        raise CheckpointError(
            f"{path} was made by a newer harness (format {facts['format']}, this one reads {FORMAT}); upgrade harness"
        )
    if _entries(path.parent) and not facts:
        raise CheckpointError(f"{path} is damaged: {INDEX} beside it has another checksum")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is not a checkpoint of harness")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises many types; each means: not to be trusted or not whole
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it holds more than tensors and plain values"
        raise CheckpointError(f"{path} is refused: {reason}") from None
    learner = state.get("learner") if isinstance(state, dict) else None
    if not isinstance(learner, dict) or "progress" not in state or not {"model", "optimizer"} <= learner.keys():
        raise CheckpointError(f"{path} is not a checkpoint of harness: it has no learner and progress")
    return state


def save_weights(path: Path, weights: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """A model's `state_dict` as safetensors, with plain facts in a JSON file of the same name beside it."""
    from safetensors.torch import save as to_bytes

    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    content = to_bytes(state, metadata={"format": "pt"})
    write_atomically(path, content)
    write_json(path.with_suffix(".json"), {"format": FORMAT, "bytes": len(content), **about})


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights in a `model.safetensors` of ours and the facts beside them.

    Raises:
        CheckpointError: missing, damaged or without the JSON file that says what it is.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    facts = read_json(path.with_suffix(".json"))
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}")
    if not {"config", "classes", "preprocess"} <= facts.keys():
        raise CheckpointError(
            f"{path} is not one of ours: {path.with_suffix('.json').name} with its configuration is not beside it"
        )
    if not isinstance(facts.get("format"), int):
        raise CheckpointError(f"{path} is not one of ours: {path.with_suffix('.json').name} has no format number")
    if facts["format"] > FORMAT:
        raise CheckpointError(
            f"{path} was made by a newer harness (format {facts.get('format')}, this one reads {FORMAT}); upgrade harness"
        )
    try:
        return load_file(path), facts
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def load_weights_strict(model: nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load `weights` into `model`.

    Raises:
        CheckpointError: naming the first keys that are missing, unknown or of another shape.
    """
    have = model.state_dict()
    wrong = [f"{key} missing" for key in have if key not in weights]
    wrong += [f"{key} unknown" for key in weights if key not in have]
    wrong += [
        f"{key} {list(weights[key].shape)} instead of {list(have[key].shape)}"
        for key in have
        if key in weights and weights[key].shape != have[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit the model: {'; '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}"
        )
    model.load_state_dict(dict(weights))
