"""What `harness doctor` does with the images of a folder, an archive or a table: read them and hold out as a run would."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from harness.config.settings import Config
from harness.data.dataset import in_memory, spread_indices
from harness.data.listing import ListedSplit, Listing, StoredData, read_listing
from harness.data.registry import divide_splits

MOST_IMAGES = 5000  # that are read


def check_images(config: Config, listing: Listing) -> str:
    """Read the images, at most `MOST_IMAGES` of them, and divide them as a run does; return in words what was read.

    Raises:
        DataError: an image that is not to be skipped cannot be read, or no image of a class can.
        UsageError: the fractions that are held out do not fit the data.
    """
    total = sum(map(len, listing.splits.values()))
    is_whole = total <= MOST_IMAGES
    sampled = {
        name: split if is_whole else _sample(split, max(1, MOST_IMAGES * len(split) // total))
        for name, split in listing.splits.items()
    }
    skip_bad = config.bad_images == "skip"
    stored = read_listing(
        replace(listing, splits=sampled), skip_bad, config.grey_limits(), config.in_chans, is_for_training=is_whole
    )
    if "train" in listing.splits:
        no_pixels = {
            name: in_memory(name, np.zeros((len(split), 1, 1, 3), np.uint8), split.labels, split.ids)
            for name, split in listing.splits.items()
        }
        divide_splits(config, StoredData(listing.classes, no_pixels))
    read = sum(map(len, sampled.values()))
    words = "all of them were read" if is_whole else f"{read:,} of them, evenly spread, were read"
    return f"{words}, {len(stored.skipped):,} unreadable ones are skipped" if stored.skipped else words


def _sample(split: ListedSplit, count: int) -> ListedSplit:
    """Return some images of a split, evenly spread."""
    indices = spread_indices(len(split), count)
    files, ids = [split.files[index] for index in indices], [split.ids[index] for index in indices]
    return ListedSplit(split.name, files, ids, split.labels[np.asarray(indices)])
