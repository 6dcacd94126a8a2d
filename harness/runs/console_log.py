"""The lines that a run shows, as a file of the run and in W&B: messages, warnings and epochs, without the progress bar."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.runs.progress import ProgressReporter, epoch_line
from harness.utils.files import open_regular
from harness.utils.text import printable

if TYPE_CHECKING:
    from harness.tracking.records import Record
    from harness.training.loop import StepInfo

FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT


class ConsoleLog(ProgressReporter):
    """Passes everything to another reporter, and writes its lines to the log of a run once that is open.

    Lines before that, such as which checkpoint is resumed from, are written when it is opened.
    """

    def __init__(self, shown: ProgressReporter) -> None:
        self.shown = shown
        self._waiting: list[str] = []
        self._write: Callable[[str], None] | None = None

    def on_step(self, info: StepInfo) -> None:
        """Pass the step on."""
        self.shown.on_step(info)

    def on_epoch(self, record: Record, epochs: int) -> None:
        """Show and write the epoch's line."""
        self.shown.on_epoch(record, epochs)
        self.log(epoch_line(record, epochs))

    def message(self, text: str) -> None:
        """Show and write a line of text."""
        self.shown.message(text)
        self.log(text)

    def close(self) -> None:
        """Close the other reporter."""
        self.shown.close()

    def log(self, text: str) -> None:
        """Write a line of text without showing it."""
        text = printable(text, keep_newlines=True)
        if self._write is None:
            self._waiting.append(text)
        else:
            self._write(text)

    @contextlib.contextmanager
    def written_to(self, path: Path, send: Callable[[str], None]) -> Iterator[None]:
        """Append the lines to a file, each with its time, and pass them to `send`, as well as the warnings of this package.

        A file that cannot be written is no reason to stop: the log is for reading.

        Args:
            send: receives each text as it is shown.
        """

        def write(text: str) -> None:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            lines = "".join(f"{now} {line}\n" for line in text.splitlines())
            with contextlib.suppress(OSError), open(open_regular(path, FLAGS), "ab") as file:
                file.write(lines.encode("utf-8", "backslashreplace"))
            send(text)

        handler = _Warnings(self)
        logger = logging.getLogger("harness")
        self._write = write
        for text in self._waiting:
            write(text)
        self._waiting.clear()
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            self._write = None


class _Warnings(logging.Handler):
    """Writes the warnings that the console shows to a log."""

    def __init__(self, log: ConsoleLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one warning."""
        self._log.log(self.format(record))
