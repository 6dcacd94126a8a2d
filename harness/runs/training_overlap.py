"""Look up which images that a model is evaluated on it was trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.config.names import BUILT_IN_DATASETS
from harness.config.settings import Config
from harness.data.dataset import Split, fingerprint
from harness.data.duplicates import MAX_COMPARED_BYTES, shared_images
from harness.data.folder_scan import find_layout
from harness.data.listing import StoredData, pair_list
from harness.data.registry import divide_splits, list_files, read_stored
from harness.data.stored_table import find_marked_tables
from harness.evaluation.trained_model import TrainedModel
from harness.utils.errors import DataError, HarnessError, first_line

MAX_READ_IMAGES = 100_000  # of the run; more would take longer to read than an evaluation should wait
_TOO_LARGE = f"the run's data has more than {MAX_READ_IMAGES:,} images or {MAX_COMPARED_BYTES / 2**30:g} GiB"


@dataclass(frozen=True)
class Overlap:
    """The images that a model was trained on, among those that it is evaluated on.

    Attributes:
        pairs: the index of each such image, and the id of the first training image that equals it.
        unknown: why they were not looked up; empty where they were.
    """

    pairs: Sequence[tuple[int, str]] = ()
    unknown: str = ""

    @property
    def count(self) -> int | None:
        """How many there are; None where they were not looked up."""
        return None if self.unknown else len(self.pairs)


def training_overlap(trained: TrainedModel, images: Split, own_fingerprint: str) -> Overlap:
    """Return which images are training images of a model, by reading its run's own images again.

    They are not looked up where the run's data is gone, has changed, is read by a plug-in or from a hub, or is large.

    Args:
        own_fingerprint: of the data that the model was trained with; empty where it is not known.
    """
    config = Config(**trained.facts["config"]).replace(download=False)
    data = config.data_dir or config.data
    if not own_fingerprint:
        return Overlap(unknown="the run does not say what its data was")
    if config.data not in BUILT_IN_DATASETS:
        return Overlap(unknown=f"{config.data} is no folder, archive or table")
    try:
        source = _read_own_images(config, trained.classes)
        if source is None:
            return Overlap(unknown=_TOO_LARGE)
        train, val, test = divide_splits(config, source)
        if fingerprint(source.classes, (train, val, test)) != own_fingerprint:
            return Overlap(unknown=f"{data} has changed since the model was trained")
        compared = shared_images(train, images)
    # Whatever is wrong with the run's own images, the others can be evaluated.
    except (HarnessError, OSError, RuntimeError, MemoryError) as error:
        reason = first_line(error).partition("; ")[0]  # its remedy is for training
        return Overlap(unknown=f"the run's data cannot be read ({reason})")
    if compared is None:
        return Overlap(unknown=f"the images cannot be compared with those of {data}")
    return Overlap([(index, str(train.ids[same])) for index, same in compared[0]])


def _read_own_images(config: Config, classes: Sequence[str]) -> StoredData | None:
    """Return the images that a run was trained with, without checking files that are not decoded; None for too large data.

    Raises:
        DataError: they are missing or unreadable.
    """
    path = Path(config.data_dir).expanduser()
    if config.data == "folder" and path.is_dir() and not _may_hold(path, classes):
        raise DataError(f"{path} has no folder of any class")
    is_file = config.data in ("folder", "table") and path.is_file()
    if is_file and path.stat().st_size > MAX_COMPARED_BYTES:
        return None
    # Listing an archive would read it, too.
    listing = None if is_file and config.data == "folder" else list_files(config)
    if listing is not None:
        splits = listing.splits.values()
        files = [file for split in splits if isinstance(split.files, list) for file in split.files]
        size = sum(os.path.getsize(file) for file in files if isinstance(file, str))
        if sum(map(len, splits)) > MAX_READ_IMAGES or size > MAX_COMPARED_BYTES:
            return None
    return read_stored(config, listing=listing, checks_files=False)


def _may_hold(folder: Path, classes: Sequence[str]) -> bool:
    """Return whether a folder may hold images of some of the classes, without listing all that is in it.

    A relative path may lead somewhere else now, to a home folder for instance.
    """
    if find_marked_tables(folder):
        return True
    layout = find_layout(folder)
    holders = list(layout.splits.values()) or [layout.prefix]
    return bool(layout.lists) or any((folder / holder / name).is_dir() for holder in holders for name in classes)


def overlap_text(overlap: Overlap, images: Split, correct: np.ndarray) -> str:
    """Return how many images the model was trained on, which, and the accuracy on the others.

    Args:
        correct: bool [N], whether each image is classified correctly.
    """
    named = pair_list([(str(images.ids[index]), same) for index, same in overlap.pairs])
    text = f"the model was trained on {len(overlap.pairs):,} of these {len(images):,} {images.name} images: {named}"
    new = np.delete(correct, [index for index, _ in overlap.pairs])
    if not len(new):
        return f"{text}; the metrics say nothing about new images"
    measure = "exact match" if images.is_multilabel else "accuracy"
    return f"{text}; {measure} on the other {len(new):,}: {100 * new.mean():.2f} %"
