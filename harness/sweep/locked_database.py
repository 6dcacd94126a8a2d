"""Wait for a SQLite database while another process has locked it, and say so.

A trial's process does not use the database of the search, so it trains meanwhile.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

TIMEOUT = 1.0  # seconds of one try; Python handles signals between two tries
FIRST_MESSAGE, INTERVAL = 4.0, 60.0  # seconds of waiting before the first message, and between two of them
T = TypeVar("T")


class PatientConnection(sqlite3.Connection):
    """A connection to SQLite that tries again, without end, while another process has locked the database.

    Attributes:
        notify: receives each line for the user.
    """

    notify: ClassVar[Callable[[str], None]]
    _has_written = False  # in this transaction

    def cursor(self, *_: Any) -> Any:
        """Return a cursor whose statements are tried again."""
        return super().cursor(PatientCursor)

    def commit(self) -> None:
        """Commit; SQLite allows to repeat a commit that had to wait for readers."""
        self.try_again(super().commit)

    def rollback(self) -> None:
        """Roll back."""
        super().rollback()
        self._has_written = False

    def try_again(self, call: Callable[[], T]) -> T:
        """Return the result of a call, which is repeated while the database is locked."""
        began = time.monotonic()
        said = began + FIRST_MESSAGE - INTERVAL
        while True:
            try:
                result = call()
            except sqlite3.OperationalError as error:
                if (error.sqlite_errorcode & 0xFF) != sqlite3.SQLITE_BUSY:
                    raise
                if self.in_transaction and not self._has_written:
                    self.rollback()  # else its read lock could be what the other process waits for
                if (now := time.monotonic()) - said >= INTERVAL:
                    said = now
                    type(self).notify(
                        f"Waiting for the database of the search since {now - began:.0f} s: another process has locked "
                        "it. Running trials are not affected. Press Ctrl-C twice to leave."
                    )
                time.sleep(0.05)
            else:
                self._has_written = self.in_transaction
                if said > began:
                    type(self).notify(f"The database of the search was free after {time.monotonic() - began:.0f} s.")
                return result


class PatientCursor(sqlite3.Cursor):
    """A cursor of a `PatientConnection`."""

    connection: PatientConnection

    def execute(self, *arguments: Any) -> PatientCursor:
        """Execute a statement."""
        return self.connection.try_again(lambda: super(PatientCursor, self).execute(*arguments))

    def executemany(self, *arguments: Any) -> PatientCursor:
        """Execute a statement for each set of parameters."""
        return self.connection.try_again(lambda: super(PatientCursor, self).executemany(*arguments))


def connect_arguments(notify: Callable[[str], None]) -> dict[str, Any]:
    """Return the arguments of `sqlite3.connect` for connections that wait."""
    factory = type("NotifyingConnection", (PatientConnection,), {"notify": staticmethod(notify)})
    return {"timeout": TIMEOUT, "factory": factory}
