"""Read the weights of a model from a file of another program, without running anything in it.

A file may come from anybody. It is opened as a regular file, safetensors have no code, and `torch.load` is only called with
`weights_only`. Tensors of an archive are mapped and not read, so that a file costs no more memory than the model that takes
its weights.
"""

from __future__ import annotations

import argparse
import os
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.utils.errors import CheckpointError, first_line
from harness.utils.files import is_archive, open_regular

# Keys of checkpoints that hold a model's weights, the first that is there: timm's and torchvision's moving average,
# timm's and Lightning's weights, and others'.
STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "model.")  # of DataParallel and moving averages, of Lightning's modules
COMPILED = "_orig_mod."  # in the names of a compiled module, wherever it is in the model
MAX_PREFIXES = 4
# Files of PyTorch before 1.6 are no archives: torch.load reads all of them into memory.
MAX_LEGACY_BYTES = 4 * 2**30


def read_weight_file(path: Path) -> dict[str, Any]:
    """Return what a `.safetensors` file, or one that `torch.save` wrote, has at its top level; tensors are on the CPU.

    Raises:
        CheckpointError: it is missing, a link or no regular file, damaged, of another format, or holds code.
    """
    try:
        descriptor = open_regular(path)
    except OSError as error:
        hint = f"; name the file that it leads to: {os.path.realpath(path)}" if path.is_symlink() else ""
        raise CheckpointError(f"cannot read the weights {path}: {error.strerror}{hint}") from None
    with open(descriptor, "rb") as file:
        size, start = os.fstat(descriptor).st_size, file.read(64)
        if not size:
            raise CheckpointError(f"{path} is empty; it holds no weights")
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        is_zip = is_archive(file)
        if is_zip:
            _check_archive(path)
        elif size > MAX_LEGACY_BYTES:
            raise CheckpointError(
                f"{path} has {size:,} bytes and is no archive of PyTorch 1.6 or newer; save it again with a newer version"
            )
        elif start.lstrip().startswith((b"<", b"version https://git-lfs")):
            raise CheckpointError(
                f"{path} is a text ({'a web page' if b'<' in start else 'a Git LFS pointer'}), no weights; download the file itself"
            )
    return _load(path, is_zip)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, MemoryError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {first_line(error)}") from None


def _check_archive(path: Path) -> None:
    """Refuse an archive with parts that would unpack to more than there is; torch stores its parts as they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [part for part in archive.infolist() if part.compress_type != zipfile.ZIP_STORED]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged: {first_line(error)}") from None
    if packed:
        raise CheckpointError(
            f"{path} is refused: its part {packed[0].filename!r:.80} is compressed, as torch.save never does; save the weights again with torch.save, or as safetensors"
        )


def _load(path: Path, is_zip: bool) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):  # in timm's checkpoints
            warnings.simplefilter("ignore")  # a sparse tensor, which is refused where it is used
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # noqa: BLE001 - torch raises many types; each means that the file is damaged or unsafe
        name = re.search(r"(?:GLOBAL |Unsupported (?:global|class|operand)[^\w]*)([\w.]+)", str(error))
        if "weights_only" in str(error) or "Unsupported" in str(error):
            if name and name[1].isdigit():  # a byte that stands for no allowed operation, as in a text
                raise CheckpointError(
                    f"{path} is refused: it is no file of weights, or would run code when it is read; need safetensors, or a state_dict() saved by torch.save"
                ) from None
            held = f" ({name[1]})" if name else ""
            raise CheckpointError(
                f"{path} is refused: it holds more than tensors and plain values{held}, which would run code; save the model's state_dict() alone, or as safetensors"
            ) from None
        raise CheckpointError(
            f"cannot load {path}: {first_line(error)}; need safetensors, or a file of torch.save"
        ) from None
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__} instead of named weights; save the model's state_dict()"
        )
    return {str(key): value for key, value in content.items()}


def state_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint: at its top level, or under one of `STATE_KEYS`."""
    key = state_key(content)
    if key:
        return state_of({str(name): value for name, value in content[key].items()})
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def state_key(content: Mapping[str, Any]) -> str:
    """Return the first of `STATE_KEYS` under which a checkpoint has tensors; empty where they are at its top level."""
    for key in STATE_KEYS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            return key
    return ""


def without_prefixes(weights: Mapping[str, Tensor], expected: Collection[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights under the names of a model, and the names of those that have another prefix than these.

    Prefixes of wrappers are removed where more names are then those of the model; what is not below the prefix (the weights
    of a loss in Lightning's module, the counter of a moving average) does not belong to it.
    """
    current = {name.replace(COMPILED, ""): (name, tensor) for name, tensor in weights.items()}
    best, best_count = current, len(current.keys() & set(expected))
    for _ in range(MAX_PREFIXES):
        prefix = max(PREFIXES, key=lambda prefix: sum(name.startswith(prefix) for name in current))
        current = {name.removeprefix(prefix): pair for name, pair in current.items() if name.startswith(prefix)}
        if (count := len(current.keys() & set(expected))) > best_count:
            best, best_count = current, count
    kept = {name for name, _ in best.values()}
    return {name: tensor for name, (_, tensor) in best.items()}, [name for name in weights if name not in kept]
