"""Look up which images that a model is evaluated on it was trained on."""

from __future__ import annotations

import numpy as np

from harness.config.names import BUILT_IN_DATASETS
from harness.config.settings import Config
from harness.data.dataset import Split, fingerprint
from harness.data.duplicates import shared_images
from harness.data.listing import pair_list
from harness.data.registry import divide_splits, list_files, read_stored
from harness.evaluation.trained_model import TrainedModel
from harness.utils.errors import HarnessError

MAX_READ_IMAGES = 100_000  # of the run; more would take longer to read than an evaluation should wait


def trained_on(trained: TrainedModel, images: Split, own_fingerprint: str) -> list[tuple[int, str]] | None:
    """Return the index of each image that is a training image of the model too, with the id of the first such.

    None where it cannot be looked up: the run's data is gone, has changed, comes from a plug-in or a hub, has more than
    100,000 images, or is stored in another way than the images.

    Args:
        own_fingerprint: of the data that the model was trained with; empty where it is not known.
    """
    config = Config(**trained.facts["config"]).replace(download=False)
    if not own_fingerprint or config.data not in BUILT_IN_DATASETS:
        return None
    try:
        listing = list_files(config)
        if listing is not None and sum(map(len, listing.splits.values())) > MAX_READ_IMAGES:
            return None
        source = read_stored(config)
        train, val, test = divide_splits(config, source)
    except HarnessError:  # moved, removed or changed since
        return None
    if fingerprint(source.classes, (train, val, test)) != own_fingerprint:
        return None
    compared = shared_images(train, images)
    return None if compared is None else [(index, str(train.ids[same])) for index, same in compared[0]]


def overlap_text(overlap: list[tuple[int, str]], images: Split, correct: np.ndarray) -> str:
    """Return how many images the model was trained on, which, and the accuracy on the others.

    Args:
        correct: bool [N], whether each image is classified correctly.
    """
    named = pair_list([(str(images.ids[index]), same) for index, same in overlap])
    text = f"the model was trained on {len(overlap):,} of these {len(images):,} {images.name} images: {named}"
    new = np.delete(correct, [index for index, _ in overlap])
    if not len(new):
        return f"{text}; the metrics say nothing about new images"
    measure = "exact match" if images.is_multilabel else "accuracy"
    return f"{text}; {measure} on the other {len(new):,}: {100 * new.mean():.2f} %"
