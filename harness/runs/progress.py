"""How a run shows itself: one line an epoch, and on a terminal a bar between them. All on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from harness.training.loop import StepInfo
    from harness.tracking.records import Record


class LineReporter:
    """One line an epoch: for logs, pipes and notebooks."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr

    def tick(self, tick: StepInfo) -> None:
        """Between updates: nothing."""

    def record(self, record: Record, epochs: int) -> None:
        """At the end of an epoch."""
        self.say(epoch_line(record, epochs))

    def say(self, text: str) -> None:
        """A line for the reader."""
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """When nothing more will be shown."""


class SilentReporter(LineReporter):
    """Shows nothing: another process does."""

    def record(self, record: Record, epochs: int) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class BarReporter(LineReporter):
    """A bar with epoch, step, loss, accuracy, learning rate, images/s and time left; a line an epoch above it.

    It is redrawn ten times a second at most, since reading the loss makes the processor wait for a GPU.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._bar: Any = None
        self._shown, self._images = 0.0, 0

    def tick(self, tick: StepInfo) -> None:
        """Move the bar; the loss is read only when it is drawn."""
        if self._bar is None:
            self._bar = self._new(tick)
        now = time.monotonic()
        if now - self._shown < 0.1 and tick.batch < tick.batches:
            return
        images = tick.images - self._images if tick.images > self._images else tick.images
        speed = f" {images / (now - self._shown):,.0f} images/s" if self._shown else ""
        self._shown, self._images = now, tick.images
        self._bar.n, self._bar.total = tick.step, tick.batches * tick.epochs
        self._bar.set_description_str(
            f"epoch {tick.epoch + 1}/{tick.epochs} step {tick.batch}/{tick.batches}", refresh=False
        )
        self._bar.set_postfix_str(
            f"loss {tick.loss():.3f}, acc {100 * tick.acc():.1f} %, lr {tick.lr:.2e},{speed}", refresh=False
        )
        self._bar.refresh()

    def _new(self, tick: StepInfo) -> Any:
        from tqdm import tqdm

        # A resumed run starts in the middle: the time left counts from there.
        return tqdm(
            total=tick.batches * tick.epochs,
            initial=tick.step - 1,
            unit="step",
            dynamic_ncols=True,
            file=self.stream,
            leave=False,
            bar_format="{desc} |{bar}| {percentage:3.0f} %, {remaining} left{postfix}",
        )

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.clear()
        super().say(text)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def epoch_line(record: Record, epochs: int) -> str:
    """`epoch 3/24  train 1.213 54.2 %  val 0.742 73.1 %  lr 8.1e-02  180 images/s  11.9 s`."""
    values = record.scalars()
    parts = [f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}"]
    for split in ("train", "val", "test"):
        if f"{split}/loss" in values:
            parts.append(f"{split} {float(values[f'{split}/loss']):.4f} {100 * float(values[f'{split}/acc']):6.2f} %")
    parts.append(f"lr {float(values['lr']):.2e}")
    parts.append(f"{float(values['throughput/images_per_s']):,.0f} images/s")
    parts.append(f"{float(values['time/epoch_s']):.1f} s")
    return "  ".join(parts)
