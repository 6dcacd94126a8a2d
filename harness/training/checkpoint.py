"""Checkpoints that survive a kill: written to a temporary file and renamed, with the previous one kept.

`last.pt` holds everything needed to resume. `index.json` beside it holds the checksums of the newest checkpoints and is
written before they are renamed, so that a kill at any moment leaves at least one file with a listed checksum.
`model.safetensors` holds the weights of the result. No pickled code is ever run.

On a GPU an epoch of CIFAR-10 takes a third of a second, and a checkpoint with its checksum and its syncs takes nearly as
long: `CheckpointWriter` copies the state within the device's memory and writes it in a thread. On a CPU, where a thread
would take its time from training, it writes at once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.utils import fault_injection
from harness.utils.checksums import CHECKSUM, SUMS, changed_files, is_checked_json_intact, read_sums, write_checked_json
from harness.utils.errors import CheckpointError, first_line
from harness.utils.files import is_archive, read_json, sha256, sync_folder, write_atomically, write_json

FORMAT = 1  # of a checkpoint
WEIGHTS_FORMAT = 2  # of the facts beside weights; from 2 on they have the checksum of the weights and of themselves
REPLACED = "replaced"  # in the facts of weights: those of the weights before them
LAST, PREVIOUS, INCOMING, INDEX = "last.pt", "previous.pt", "incoming.pt", "index.json"
log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write `state` as the newest checkpoint in `folder`; the former newest one becomes the previous one.

    Args:
        state: tensors and plain values only, so that it is loaded without running code.
        about: plain facts for the index (`step` at least; epoch, model).

    Raises:
        ResourceError: the disk is full; the former checkpoints are unchanged.
    """
    incoming = folder / INCOMING
    write_atomically(incoming, lambda file: torch.save(dict(state), file))
    entry = {"format": FORMAT, "sha256": sha256(incoming), "bytes": incoming.stat().st_size, **about}
    write_json(folder / INDEX, {"checkpoints": [entry, *_entries(folder)[:2]]})
    if (folder / LAST).exists():
        os.replace(folder / LAST, folder / PREVIOUS)
        fault_injection.point("swap")
    os.replace(incoming, folder / LAST)
    sync_folder(folder)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest intact checkpoint in a folder, or None where there is none; warn of damaged ones.

    Where the index is gone (not damaged), the checksums that a zip archive has of its parts tell which are intact.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    paths = [path for name in (INCOMING, LAST, PREVIOUS) if (path := folder / name).exists()]
    if not (folder / INDEX).exists() and (unlisted := _newest_without_index(paths)):
        log.warning("%s is missing; %s is intact by the checksums of its parts", folder / INDEX, unlisted.name)
        return unlisted
    intact = {path: info for path in paths if (info := checkpoint_info(path))}
    if paths == [folder / INCOMING] and not intact:
        return None  # killed in its first save, before it was in the index
    for path in paths:
        if path not in intact:
            log.warning("%s is damaged or incomplete; using the one before it", path)
    if paths and not intact:
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged; start again with --resume never or another --name"
        )
    return max(intact, key=lambda path: intact[path]["step"], default=None)


def _newest_without_index(paths: Sequence[Path]) -> Path | None:
    """Return the newest checkpoint whose parts have their checksums; one that was never renamed does not count."""
    return next((path for path in paths if path.name != INCOMING and is_intact_archive(path)), None)


def is_intact_archive(path: Path) -> bool:
    """Return whether a file is a zip archive and every part of it has its CRC-32."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, ValueError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


def checkpoint_info(path: Path) -> dict[str, Any]:
    """Return the plain facts saved with a checkpoint; empty unless size and checksum of the file are in the index."""
    if not path.is_file():
        return {}
    size = path.stat().st_size
    candidates = [entry for entry in _entries(path.parent) if entry.get("bytes") == size]
    digest = sha256(path) if candidates else ""
    return next((entry for entry in candidates if entry.get("sha256") == digest), {})


def _entries(folder: Path) -> list[dict[str, Any]]:
    entries = read_json(folder / INDEX).get("checkpoints", [])
    return [entry for entry in entries if _is_entry(entry)] if isinstance(entries, list) else []


def _is_entry(entry: Any) -> bool:
    """Return whether an entry of the index has the types that harness writes; the index may come from somebody else."""
    return (
        isinstance(entry, dict)
        and all(type(entry.get(key)) is int for key in ("step", "bytes"))
        and type(entry.get("format", FORMAT)) is int
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state in a checkpoint, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, not a checkpoint of harness, from a newer version, or holds code.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    facts = checkpoint_info(path)
    if facts.get("format", 0) > FORMAT:
        raise CheckpointError(
            f"{path} was written by a newer version of harness (format {facts['format']}, this one reads {FORMAT}); upgrade it"
        )
    if _entries(path.parent) and not facts:
        raise CheckpointError(f"{path} is damaged: {INDEX} has another checksum")
    if not is_archive(path):
        raise CheckpointError(f"{path} is not a checkpoint of harness")
    if not facts and not is_intact_archive(path):  # a file without the index beside it
        raise CheckpointError(f"{path} is damaged: a part of it has another checksum")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a sparse tensor, which is refused where it is used
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises many types; each means that the file is damaged or unsafe
        reason = first_line(error)
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it holds more than tensors and plain values"
        raise CheckpointError(f"cannot load {path}: {reason}") from None
    learner = state.get("learner") if isinstance(state, dict) else None
    if not isinstance(learner, dict) or "progress" not in state or not {"model", "optimizer"} <= learner.keys():
        raise CheckpointError(f"{path} is not a checkpoint of harness: it has no learner and progress")
    return state


def save_weights(path: Path, weights: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """Write a model's `state_dict` as safetensors, and plain facts to a JSON file of the same name beside it.

    The JSON file has the checksum of the weights, and of itself. It is written first and keeps the facts of the weights
    that are replaced, so that a kill at any moment leaves weights whose facts and checksum are in it.
    """
    from safetensors.torch import save as to_bytes

    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    content = to_bytes(state, metadata={"format": "pt"})
    facts = {"format": WEIGHTS_FORMAT, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **about}
    if (former := _facts_on_disk(path)) and former["sha256"] != facts["sha256"]:
        facts[REPLACED] = former
    write_checked_json(path.with_suffix(".json"), facts)
    write_atomically(path, content)


def _facts_on_disk(path: Path) -> dict[str, Any]:
    """Return the facts of the weights that are there, with their checksum; empty where there are none or they are damaged."""
    facts = read_json(path.with_suffix(".json"))
    if not (path.is_file() and facts and is_checked_json_intact(facts)) or _lacks_checksums(facts):
        return {}
    try:
        facts = _facts_of(path, facts)
    except CheckpointError:
        return {}
    return {"sha256": sha256(path), **{key: value for key, value in facts.items() if key != CHECKSUM}}


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the weights in a `model.safetensors` of harness and the facts in the JSON file beside it.

    Both files are compared with the checksums in the facts, and with `SHA256SUMS` in the folder above where it lists them.
    A warning names weights of version 0.1 that have neither.

    Raises:
        CheckpointError: one of the files is missing, damaged or from a newer version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    facts = read_json(path.with_suffix(".json"))
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    if not is_checked_json_intact(facts):
        raise CheckpointError(
            f"{path.with_suffix('.json')} is damaged: its values have another checksum; restore it from a copy, or use last.pt"
        )
    if _lacks_checksums(facts):
        raise CheckpointError(
            f"{path.with_suffix('.json')} is damaged: it has no checksums; restore it from a copy, or use last.pt"
        )
    is_verified = {"sha256", CHECKSUM} <= facts.keys()
    facts = _facts_of(path, facts)
    if not {"config", "classes", "preprocess"} <= facts.keys():
        raise CheckpointError(
            f"{path} is not a checkpoint of harness: {path.with_suffix('.json').name} with its settings is missing"
        )
    if type(facts.get("format")) is not int:
        raise CheckpointError(f"{path} is not a checkpoint of harness: {path.with_suffix('.json').name} has no format")
    if facts["format"] > WEIGHTS_FORMAT:
        raise CheckpointError(
            f"{path} was written by a newer version of harness (format {facts['format']}, this one reads {WEIGHTS_FORMAT}); upgrade it"
        )
    _check_listed(path, is_verified)
    try:
        return load_file(path), facts
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _lacks_checksums(facts: Mapping[str, Any]) -> bool:
    """Return whether facts of the present format lack the checksum of the weights or of themselves."""
    version = facts.get("format")
    return isinstance(version, int) and version >= 2 and not {"sha256", CHECKSUM} <= facts.keys()


def _check_listed(path: Path, is_verified: bool) -> None:
    """Compare weights and their facts with `SHA256SUMS` of the run directory; warn once where nothing vouches for them.

    Raises:
        CheckpointError: one of them has another checksum there.
    """
    names = [f"{path.parent.name}/{file.name}" for file in (path, path.with_suffix(".json"))]
    folder = path.absolute().parent.parent
    if changed := changed_files(folder, names):
        raise CheckpointError(
            f"{folder / changed[0]} is damaged: {SUMS} has another checksum; restore it from a copy, or use last.pt"
        )
    if not is_verified and not set(names) <= read_sums(folder).keys():
        _warn_unverified(path.absolute())


@lru_cache
def _warn_unverified(path: Path) -> None:
    log.warning("%s has no checksums, as in version 0.1: it was not verified", path)


def _facts_of(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts that belong to a file of weights: those of the weights before it after a kill between two saves.

    Raises:
        CheckpointError: the file has none of the checksums in the facts.
    """
    if "sha256" not in facts:  # version 0.1
        return facts
    replaced, digest = facts.get(REPLACED), sha256(path)
    candidates = [facts, *([replaced] if isinstance(replaced, dict) else [])]
    for candidate in candidates:
        if candidate.get("sha256") == digest:
            return {key: value for key, value in candidate.items() if key != REPLACED}
    raise CheckpointError(
        f"{path} is damaged: {path.with_suffix('.json').name} has another checksum; restore it from a copy, or use last.pt"
    )


def load_weights_strict(model: nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load `weights` into `model`.

    Raises:
        CheckpointError: keys are missing, unknown, or no dense tensor of the shape and the kind of numbers (floating-point,
            integer, complex) of the model; the message names the first ones.
    """
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{path} does not fit the model: its weights are no mapping")
    expected = model.state_dict()
    if kinds := [
        f"{key} {kind}" for key in expected if key in weights and (kind := other_kind(weights[key], expected[key]))
    ]:
        raise CheckpointError(
            f"{path} does not fit the model: {'; '.join(kinds[:5])}{' ...' if len(kinds) > 5 else ''}"
        )
    problems = [f"{key} missing" for key in expected if key not in weights]
    problems += [f"{key} unknown" for key in weights if key not in expected]
    problems += [
        f"{key} {list(weights[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not fit the model: {'; '.join(problems[:5])}{' ...' if len(problems) > 5 else ''}"
        )
    model.load_state_dict(dict(weights))


def other_kind(value: Any, expected: Tensor) -> str:
    """Return what a value of a checkpoint is, where it is no dense tensor with the kind of numbers of another; else nothing."""
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} instead of a tensor"
    if value.layout != torch.strided or value.is_nested or value.is_quantized or value.device.type == "meta":
        return "instead of a dense tensor"
    kinds = [
        (dtype.is_floating_point, dtype.is_complex, dtype == torch.bool) for dtype in (value.dtype, expected.dtype)
    ]
    return "" if kinds[0] == kinds[1] else f"{value.dtype} instead of {expected.dtype}"


class CheckpointWriter:
    """Writes states in the order in which they were given; on a GPU in a thread, from copies on the device.

    A state that still waits when a newer one of its kind is given is skipped: epochs that are shorter than a write never
    wait for it, and the newest state is always written. The error of a write (a full disk) is raised by the next call of
    `save` or `flush`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._in_background = device.type != "cpu" or fault_injection.background_saves()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[tuple[str, Future[None]]] = deque()

    @property
    def num_pending(self) -> int:
        """The number of states that are being written or wait for it."""
        return len(self._pending)

    def save(self, state: Mapping[str, Any], write: Callable[[dict[str, Any]], None], kind: str = "checkpoint") -> None:
        """Write `state` as it is now, whatever happens to its tensors after this returns.

        Args:
            state: tensors, mappings, lists and plain values.
            write: receives the state with its tensors on the CPU.
            kind: the file that is written; a state is skipped for a newer one of the same kind.
        """
        if not self._in_background:
            write(dict(state))
            return
        while self._pending and self._pending[0][1].done():
            self._pending.popleft()[1].result()
        self._pending = deque(
            (other, future) for other, future in self._pending if other != kind or not future.cancel()
        )
        try:
            snapshot, copied = _copy_tensors(dict(state)), _record_event(self._device)
        except torch.OutOfMemoryError:  # there is no memory for a copy on the device
            self.flush()
            write(dict(state))
            return
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        # Only the thread refers to the snapshot, so that skipping it frees its memory.
        self._pending.append((kind, self._pool.submit(_write_snapshot, write, snapshot, self._device, copied)))

    def flush(self) -> None:
        """Wait until all states are on the disk."""
        while self._pending:
            self._pending.popleft()[1].result()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


class NullCheckpointWriter:
    """Writes nothing; for processes other than the main one."""

    def save(self, state: Mapping[str, Any], write: Callable[[dict[str, Any]], None], kind: str = "checkpoint") -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""


def _map_tensors(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, dict):
        return {key: _map_tensors(function, value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_map_tensors(function, value) for value in state)
    return state


def _copy_tensors(state: dict[str, Any]) -> dict[str, Any]:
    # clone() keeps the memory order of NHWC weights, so that a file holds the same bytes whichever way it is written.
    copied: dict[str, Any] = _map_tensors(lambda tensor: tensor.detach().clone(), state)
    return copied


def _record_event(device: torch.device) -> Any:
    """Return an event for when the device has done all its work so far; None where work is done in order anyway."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def _write_snapshot(
    write: Callable[[dict[str, Any]], None], snapshot: dict[str, Any], device: torch.device, copied: Any
) -> None:
    """Copy the snapshot to the CPU, on a stream of its own beside the device's work for training, and write it."""
    if copied is None:
        write(_map_tensors(lambda tensor: tensor.cpu(), snapshot))
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        torch.cuda.current_stream(device).wait_event(copied)
        on_cpu = _map_tensors(lambda tensor: tensor.cpu(), snapshot)  # only this thread waits for the copies
    write(on_cpu)
