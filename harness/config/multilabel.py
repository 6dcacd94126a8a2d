"""Data whose images have several labels or none: what its settings imply, and which settings it does not go with."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

from harness.config.conversion import BALANCED
from harness.config.names import MULTILABEL_METRICS
from harness.utils.errors import UsageError

if TYPE_CHECKING:
    from harness.config.settings import Config

LOSS, SELECT_BY = "bce", "map"  # what such data is trained with and selected by, where nothing else is said


def multilabel_settings(given: Container[str]) -> dict[str, Any]:
    """Return the settings that data with several labels per image implies, without those that are given."""
    implied = {"loss": LOSS, "select_by": SELECT_BY}
    return {name: value for name, value in implied.items() if name not in given}


def check_multilabel(config: Config) -> None:
    """Refuse settings that do not go with several labels per image, or only with them.

    Raises:
        UsageError: one of them does not.
    """
    if not config.is_multilabel:
        if config.select_by in MULTILABEL_METRICS and config.select_by != "f1_macro":
            raise UsageError(
                f"select_by={config.select_by} is a metric of images with several labels; set --label-separator or --label-columns, or another --select-by"
            )
        return
    named = "label_columns" if config.label_columns else "label_separator"
    if config.label_columns and config.label_separator:
        raise UsageError(
            f"label_separator={config.label_separator!r} and label_columns={','.join(config.label_columns)} are two forms of labels; keep one of them"
        )
    if config.label_columns and config.label_column:
        raise UsageError(
            f"label_column={config.label_column!r} and label_columns={','.join(config.label_columns)} are two forms of labels; keep one of them"
        )
    if config.data not in ("table", "folder"):
        raise UsageError(
            f"{named} is of tables, and data={config.data} has one label per image; set --data table and --data-dir to the table, or leave --{named.replace('_', '-')} out"
        )
    if config.loss != LOSS:
        raise UsageError(
            f"loss={config.loss} is for one label per image, and {named} gives an image several; set --loss {LOSS}"
        )
    if config.aug_splits:
        raise UsageError(
            f"aug_splits={config.aug_splits} is for one label per image, and {named} gives an image several; leave --aug-splits out"
        )
    if config.select_by not in (*MULTILABEL_METRICS, "loss"):
        raise UsageError(
            f"select_by={config.select_by} is for one label per image, and {named} gives an image several; set --select-by {SELECT_BY}"
        )
    if config.sampling == BALANCED:
        raise UsageError(
            f"sampling=balanced is for one label per image, and {named} gives an image several; set --class-weights balanced instead"
        )
    if config.class_weights and "pos_weight" in config.loss_args:
        raise UsageError(
            "class_weights and loss_args=pos_weight both weight the images that have a class; keep one of them"
        )
