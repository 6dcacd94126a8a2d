"""What an LR range test measures beside the loss: by the kind of labels that an image has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """What a range test measures of a batch and of the held-out images; both are shares, 0..1, and the more the better.

    Attributes:
        key: of a batch, in files and tables; `held_out_key` is a metric of `harness`.
        name: of a batch, for a reader.
        held_out_name: for a reader.
        lesson: what a model has learnt where it is no better than `chance`, for a reader.
    """

    key: str
    name: str
    held_out_key: str
    held_out_name: str
    lesson: str

    @property
    def short_name(self) -> str:
        """The name without the word batch."""
        return self.name.removeprefix("batch ")


ACCURACY = Measure(
    "acc", "batch accuracy", "acc", "accuracy", "that of always naming the most frequent class of the training images"
)
# Of several labels per image the exact matches tell little at the beginning: with many classes there are none, and with rare ones
# they are those of images without labels. The area under the ROC curve needs no threshold, and chance is 0.5 for every class.
RANKING = Measure("auc", "batch ROC AUC", "map", "mAP", "that of chance")


def measure_of(is_multilabel: bool) -> Measure:
    """Return what a range test measures on data whose images have one label each, or several."""
    return RANKING if is_multilabel else ACCURACY
