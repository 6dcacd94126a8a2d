"""Write records to W&B: one history row a step, at the step's own number, each exactly once and in order.

No failure of W&B raises here: the first is reported to the user, and the journal has everything.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness.tracking.records import Artifact, Record, Scalar, Value
from harness.tracking.tracker import Status, Tracker
from harness.tracking.wandb.artifacts import link_command, needs_link, send_artifact
from harness.tracking.wandb.client import reason
from harness.tracking.wandb.rows import rows
from harness.tracking.wandb.session import Session, State, is_preemption
from harness.tracking.wandb.values import to_wandb
from harness.utils.errors import TrackingError
from harness.utils.signals import PREEMPTED

MAX_RESTARTS = 3  # of a W&B process that died during the run

log = logging.getLogger(__name__)


class WandbTracker(Tracker):
    """A tracker that writes to W&B in a background thread; made by `wandb.init.start`.

    Attributes:
        state: `online`, `offline`, or `incomplete` when W&B lacks something that the journal has.
        first_step: rows before it are in W&B already and are not sent.
        url: the run's page; empty when it has none.
    """

    def __init__(self, session: Session, online: bool, resumed_step: int | None) -> None:
        self._session = session
        self._summary: dict[str, Scalar] = {}
        self._restarts_left = MAX_RESTARTS
        self._has_link = False  # whether there is a model to link, which W&B does only online
        self._run: Any
        self.state: State
        self._run, self.state = session.connect(online)
        self.first_step = session.first_step(self._run, resumed_step)
        self.url = str(self._run.url or "") if session.online else ""
        self._last_step = self.first_step - 1  # of the last row sent
        self._is_open = False  # whether values can be added to that row
        session.note_sent(self._last_step)
        self._worker: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="wandb-tracker")
        self._jobs: list[Future[object]] = []
        if resumed_step is not None:  # how it was stopped is no longer true
            self._submit(lambda: self._forget_end(("status", "reason")))

    def _forget_end(self, names: Sequence[str]) -> None:
        """Remove from the run's summary how an earlier part of the run ended."""

        def remove(run: Any) -> None:
            for name in names:
                del run.summary[name]

        self._attempt(remove)

    @property
    def sync_command(self) -> str:
        """The command that uploads what W&B lacks; empty when it has everything."""
        if self.state != "online" and self._has_link:
            return link_command(self._session)
        if self.state == "incomplete":
            return f"harness sync {shlex.quote(str(self._session.folder))}"
        return self._session.sync_command() if self.state == "offline" else ""

    def record(self, record: Record) -> None:
        """Log one row for every step of the record, except those that W&B has already."""
        self._submit(lambda: self._record(record))

    def _submit(self, job: Callable[[], object], wait: bool = False) -> None:
        """Run a job in the background after those before it; an exception of an earlier one is raised here."""
        if self._worker is None:
            raise RuntimeError("the tracker is finished")
        self._jobs.append(self._worker.submit(job))
        while self._jobs and (wait or self._jobs[0].done()):
            self._jobs.pop(0).result()

    def _record(self, record: Record) -> None:
        config = self._session.config
        # W&B plots a row once it is closed. The last epoch's stays open: the final record has the same step.
        keep_open = record.kind != "epoch" or record.epoch >= config.epochs or config.early_stop > 0
        if record.steps is not None:
            names = set(record.steps.lines) - set(record.values)
            self._attempt(lambda run: self._session.plot_by_step(run, names))
        pending = self._pending_rows(record)
        if pending:
            # Stored before sending: after a crash a row may be missing, which `harness sync` repairs, but never doubled.
            self._session.note_sent(pending[-1][0] - keep_open)
        for step, values in pending:
            self._log(step, values, keep_open=keep_open and step == pending[-1][0])

    def _pending_rows(self, record: Record) -> list[tuple[int, dict[str, Value]]]:
        """Return the rows of a record that W&B does not have, in increasing order."""
        *before, (step, values) = rows(record)
        pending = [(earlier, row) for earlier, row in before if earlier > self._last_step]
        if step >= self.first_step or record.kind == "final":
            # Nothing can be added to a closed row; the next step number is better than losing the values.
            pending.append((max(step, self._last_step if self._is_open else self._last_step + 1), values))
        return pending

    def _log(self, step: int, values: Mapping[str, Value], keep_open: bool) -> None:
        """Send one row; with `keep_open`, values can still be added to it."""

        def send(run: Any) -> None:
            row: dict[str, Any] = {}
            for key, value in values.items():
                try:
                    row.update(to_wandb(self._session.wandb, key, value, self._session.folder))
                except (OSError, SyntaxError, TypeError, ValueError) as error:  # an image's file may be damaged or gone
                    self._session.notify(f"W&B does not accept {key}: {error}; the journal has it")
            run.log(row, step=step, commit=not keep_open)

        if self._attempt(send):
            self._last_step, self._is_open = step, keep_open

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Add figures to the run's summary; they are set at the end and override those of the last row."""
        self._summary.update(values)

    def settings(self, values: Mapping[str, Scalar]) -> None:
        """Replace values in the run's config; one that a sweep has set stays as it is."""
        self._submit(lambda: self._attempt(lambda run: run.config.update(dict(values), allow_val_change=True)))

    def artifact(self, artifact: Artifact) -> None:
        """Log the files as an artifact; they are copied, so they may change afterwards, except those of an input.

        Raises:
            FileNotFoundError: a file is missing.
        """
        for path in artifact.files.values():
            if not Path(path).is_file():
                raise FileNotFoundError(f"artifact {artifact.name}: there is no file {path}")
        is_copied = not artifact.is_input
        self._submit(lambda: self._attempt(lambda run: send_artifact(self._session, run, artifact)), wait=is_copied)
        self._has_link |= needs_link(self._session, artifact)

    def alert(self, title: str, text: str) -> None:
        """Send a W&B alert."""
        self._submit(lambda: self._attempt(lambda run: run.alert(title=title, text=text, level="WARN")))

    def stopped_by_server(self) -> bool:
        """Return whether W&B stopped the run, so that a signal means an early end and not a preemption."""
        return self._run is not None and self._session.stopped_by_server(self._run)

    def finish(self, status: Status, exit_code: int) -> None:
        """Close the run in W&B, within `config.finish_timeout` seconds.

        Raises:
            TrackingError: `wandb` is `online` by name, and W&B does not have everything.
        """
        if self._worker is None:
            return
        try:
            self._submit(lambda: self._finish(exit_code), wait=True)
        finally:
            self._worker.shutdown()
            self._worker = self._run = None
            self._session.leave()
        if self.state == "incomplete" and self._session.config.wandb == "online":
            raise TrackingError(f"W&B does not have the whole run; upload the rest with: {self.sync_command}")

    def _finish(self, exit_code: int) -> None:
        if self._is_open:
            self._session.note_sent(self._last_step)
            self._attempt(lambda run: run.log({}, step=self._last_step, commit=True))
        if self._summary.get("status") == "finished":
            self._forget_end(["reason"])
        if self._summary:
            self._attempt(lambda run: run.summary.update(self._summary))
        if exit_code in PREEMPTED and is_preemption(exit_code) and not self.stopped_by_server():
            self._attempt(lambda run: run.mark_preempting())  # W&B queues the run again, under the same id
        if self._session.is_borrowed:  # the user's code closes it
            return
        run, started = self._run, time.monotonic()
        if not self._attempt(lambda run: run.finish(exit_code=exit_code), restart=False) or not self._session.online:
            return
        timeout = self._session.finish_timeout
        late = f"not uploaded within {timeout:g} s" if time.monotonic() - started > 0.95 * timeout else ""
        if why := late or self._session.refusal(run):
            self._report_failure(why)

    def _attempt(self, call: Callable[[Any], object], restart: bool = True) -> bool:
        """Call W&B and return whether it accepted; after its process died, try again in a new offline run directory."""
        while self._run is not None:
            try:
                call(self._run)
                return True
            except (TypeError, ValueError) as error:  # of this value; W&B itself works
                self._report_failure(reason(error))
                return False
            except Exception as error:  # noqa: BLE001 - W&B raises its own, asyncio's and the system's alike
                self._report_failure(reason(error))
            self._run = self._session.restart() if restart and self._restarts_left > 0 else None
            self._restarts_left -= 1
        return False

    def _report_failure(self, why: str) -> None:
        """Report, once, that W&B does not get everything."""
        if self.state != "incomplete":
            self.state = "incomplete"
            self._session.notify(
                f"W&B stopped accepting the run ({why}). The journal is complete. Upload later with: {self.sync_command}"
            )
