"""Text for the terminal: whatever it is made of, it moves no cursor, sets no title and hides nothing."""

from __future__ import annotations

import contextlib
import io
import logging
import select
import sys
from collections.abc import Iterator
from typing import TextIO

import click

from harness.utils.text import printable


def echo(text: object, *, err: bool = False) -> None:
    """Print text on standard output, or on standard error.

    Names and messages may come from a file of somebody else; what is not printable (escape sequences, marks of the
    writing direction) is replaced by spaces.
    """
    click.echo(printable(text, keep_newlines=True), err=err)


class OutputClosedError(Exception):
    """What reads standard output, such as `head`, has ended."""


@contextlib.contextmanager
def broken_pipes() -> Iterator[None]:
    """Tell the end of what reads standard output from any other pipe that breaks: click ends the program for both in silence.

    Raises:
        OutputClosedError: standard output has no reader, and standard error has one. RuntimeError: another pipe has broken.
    """
    try:
        yield
    except BrokenPipeError as error:
        if _has_no_reader(sys.stdout) and not _has_no_reader(sys.stderr):
            raise OutputClosedError from error
        raise RuntimeError(f"a pipe has broken: {error}") from error


def _has_no_reader(stream: TextIO) -> bool:
    if not hasattr(select, "poll"):  # on Windows, where another error than that of a broken pipe says so
        return False
    poll = select.poll()
    with contextlib.suppress(io.UnsupportedOperation):  # it is no file, but one in memory
        poll.register(stream.fileno(), 0)
    return bool(poll.poll(0))


class TerminalStream(io.RawIOBase):
    """Standard output as a binary stream whose text is printed as `echo` prints it; a pipe gets every byte as it is."""

    def write(self, content: bytes) -> int:  # type: ignore[override]
        """Print UTF-8 text."""
        sys.stdout.write(printable(content.decode("utf-8", "replace"), keep_newlines=True))
        return len(content)


class PrintableFormatter(logging.Formatter):
    """The messages of log records, as `echo` prints them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message with its traceback, where it has one."""
        return printable(super().format(record), keep_newlines=True)


def prepare_logging() -> None:
    """Send warnings to standard error in printable text; a log that cannot be written is no reason for a traceback."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.raiseExceptions = False  # W&B logs to a file in the run directory, whose disk may be full
