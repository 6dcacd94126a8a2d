"""Keep the decoded images of an archive in the user's cache, so that the next run need not unpack and decode them.

An entry belongs to one archive: its path, size and modification time, and the version of Pillow. Only images that were
read without a problem are kept. An entry holds no pickled objects, and a damaged one is replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL

from harness.config.names import SplitName
from harness.data.dataset import Split, in_memory
from harness.utils.errors import HarnessError
from harness.utils.files import cache_folder, write_atomically

FORMAT = 2
MIN_IMAGES = 5000  # fewer are decoded in about a second
MAX_BYTES = 2**30
MAX_ENTRIES = 3  # the least recently used one is removed first
log = logging.getLogger(__name__)


def load_decoded(archive: Path) -> tuple[tuple[str, ...], dict[SplitName, Split]] | None:
    """Return the classes and splits of an archive; None where they are not in the cache, or the archive has changed."""
    path = _entry(archive)
    if path is None or not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            index = json.loads(arrays["index"].tobytes())
            splits: dict[SplitName, Split] = {
                name: in_memory(name, arrays[f"{name}/pixels"], arrays[f"{name}/labels"], ids)
                for name, ids in index["ids"].items()
            }
        for split in splits.values():
            assert split.pixels is not None
            if not len(split.ids) == len(split.labels) == len(split.pixels):
                raise ValueError("its arrays have different lengths")
        os.utime(path)
        return tuple(index["classes"]), splits
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s); decoding the images again", path, error)
        return None


def save_decoded(archive: Path, classes: tuple[str, ...], splits: Mapping[SplitName, Split]) -> None:
    """Keep decoded images, unless they are few, too large, or the cache cannot be written."""
    path = _entry(archive)
    arrays: dict[str, np.ndarray] = {}
    for name, split in splits.items():
        if split.pixels is None:
            return
        arrays |= {f"{name}/pixels": split.pixels, f"{name}/labels": split.labels}
    is_worthwhile = sum(map(len, splits.values())) >= MIN_IMAGES
    if path is None or not is_worthwhile or sum(array.nbytes for array in arrays.values()) > MAX_BYTES:
        return
    index = json.dumps({"classes": classes, "ids": {name: list(split.ids) for name, split in splits.items()}})
    arrays["index"] = np.frombuffer(index.encode(), np.uint8)
    with contextlib.suppress(HarnessError, OSError):
        write_atomically(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        for old in sorted(path.parent.glob("*.npz"), key=lambda file: -file.stat().st_mtime)[MAX_ENTRIES:]:
            old.unlink(missing_ok=True)


def _entry(archive: Path) -> Path | None:
    """Return the file of an archive's entry; None where the archive has no status, or the cache is turned off."""
    if os.environ.get("HARNESS_CACHE") == "off":
        return None
    try:
        status = archive.stat()
    except OSError:
        return None
    key = json.dumps([FORMAT, str(archive.resolve()), status.st_size, status.st_mtime_ns, PIL.__version__])
    return cache_folder() / "decoded" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
