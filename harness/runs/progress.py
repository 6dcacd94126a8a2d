"""Progress of a run on standard error: one line an epoch, and on a terminal a bar between them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from harness.config.names import MACRO_METRICS, SELECTION_TEXTS, SPLIT_NAMES
from harness.utils.text import duration, printable

if TYPE_CHECKING:
    from harness.tracking.records import Record, Scalar
    from harness.training.loop import StepInfo

BAR_NAMES = {"acc": "acc", "exact_match": "exact", "auc": "AUC"}
# Metrics of images with several labels -> how the line of an epoch names them.
MULTILABEL_NAMES = {"map": "mAP", "f1_macro": "F1", "exact_match": "exact"}
# Metrics of the weights without their moving average -> how the line of an epoch names them.
PLAIN_NAMES = {"acc_plain": "without EMA", "map_plain": "mAP without EMA"}
LEAST_LEFT = 60.0  # seconds: less is not worth a word
REDRAW_SECONDS = 0.1  # reading the loss makes the processor wait for a GPU


class ProgressReporter:
    """Shows nothing; the base of those that show something."""

    def on_step(self, info: StepInfo) -> None:
        """Show where training is, between two updates."""

    def on_epoch(self, record: Record, epochs: int) -> None:
        """Show the metrics of an epoch that has ended."""

    def message(self, text: str) -> None:
        """Show a line of text."""

    def close(self) -> None:
        """Remove what is not to stay on the screen."""


class LineReporter(ProgressReporter):
    """One line an epoch: for logs, pipes and notebooks."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr

    def on_epoch(self, record: Record, epochs: int) -> None:
        """Print the epoch's line."""
        self.message(epoch_line(record, epochs))

    def message(self, text: str) -> None:
        """Print a line of text."""
        print(printable(text, keep_newlines=True), file=self.stream, flush=True)


class BarReporter(LineReporter):
    """A bar with epoch, step, loss, accuracy, learning rate, images/s and time left; a line an epoch above it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._bar: Any = None
        self._redrawn_at, self._images = 0.0, 0

    def on_step(self, info: StepInfo) -> None:
        """Move the bar; the loss is read only when the bar is redrawn."""
        if self._bar is None:
            self._bar = self._new_bar(info)
        now = time.monotonic()
        if now - self._redrawn_at < REDRAW_SECONDS and info.batch < info.batches:
            return
        images = info.images - self._images if info.images > self._images else info.images
        throughput = f" {images / (now - self._redrawn_at):,.0f} images/s" if self._redrawn_at else ""
        self._redrawn_at, self._images = now, info.images
        self._bar.n, self._bar.total = info.step, info.batches * info.epochs
        self._bar.set_description_str(
            f"epoch {info.epoch + 1}/{info.epochs} step {info.batch}/{info.batches}", refresh=False
        )
        self._bar.set_postfix_str(
            f"loss {info.loss():.3f}, {BAR_NAMES[info.share_name]} {100 * info.acc():.1f} %, lr {info.lr:.2e},{throughput}",
            refresh=False,
        )
        self._bar.refresh()

    def _new_bar(self, info: StepInfo) -> Any:
        from tqdm import tqdm

        # A resumed run starts in the middle: the time left counts from there.
        return tqdm(
            total=info.batches * info.epochs,
            initial=info.step - 1,
            unit="step",
            dynamic_ncols=True,
            file=self.stream,
            leave=False,
            bar_format="{desc} |{bar}| {percentage:3.0f} %, {remaining} left{postfix}",
        )

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.clear()
        super().message(text)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def epoch_line(record: Record, epochs: int) -> str:
    """Return `epoch 3/24  train 1.2130  54.20 %  val 0.7420  73.10 %  lr 8.10e-02  180 images/s  11.9 s  about 4 min left`.

    A macro metric by which the best epoch is chosen follows the accuracy of its split. Where images have several labels, mAP,
    macro F1 and the share of exact matches stand in place of the accuracy. With a moving average of the weights, the accuracy
    (mAP) of the weights themselves follows. The time left is that of as many epochs as long as this one, and is shown from a
    minute on.
    """
    values = record.scalars()
    parts = [f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}"]
    for split in SPLIT_NAMES:
        if f"{split}/loss" in values:
            parts.append(f"{split} {float(values[f'{split}/loss']):.4f} {_shares(values, split)}")
            for metric in MACRO_METRICS if f"{split}/acc" in values else ():
                if f"best/{split}_{metric}" in values and f"{split}/{metric}" in values:
                    parts.append(f"{SELECTION_TEXTS[metric]} {100 * float(values[f'{split}/{metric}']):6.2f} %")
            for metric, name in PLAIN_NAMES.items():
                if (value := values.get(f"{split}/{metric}")) is not None:
                    parts.append(f"{name} {100 * float(value):6.2f} %")
    parts.append(f"lr {float(values['lr']):.2e}")
    parts.append(f"{float(values['throughput/images_per_s']):,.0f} images/s")
    seconds = float(values["time/epoch_s"])
    parts.append(f"{seconds:.1f} s")
    if (left := seconds * (epochs - record.epoch)) >= LEAST_LEFT:
        parts.append(f"about {duration(left, 0)} left")
    return "  ".join(parts)


def _shares(values: Mapping[str, Scalar], split: str) -> str:
    """Return the accuracy of a split, or what it has in its place where images have several labels."""
    if f"{split}/acc" in values:
        return f"{100 * float(values[f'{split}/acc']):6.2f} %"
    known = {
        name: float(values[f"{split}/{key}"]) for key, name in MULTILABEL_NAMES.items() if f"{split}/{key}" in values
    }
    return " ".join(f"{name} {100 * value:.2f} %" for name, value in known.items())
