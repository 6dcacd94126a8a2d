"""Write records to W&B: one history row a step, at the step's own number, each exactly once and in order.

No failure of W&B raises here: the first is reported to the user, and the journal has everything.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness.tracking.records import Artifact, Record, Scalar, Value
from harness.tracking.tracker import Status, Tracker
from harness.tracking.wandb.artifacts import complete_result, link_command, needs_link, send_artifact
from harness.tracking.wandb.client import reason
from harness.tracking.wandb.rows import TIMESTAMP, rows
from harness.tracking.wandb.session import AXES, Session, State, is_preemption
from harness.tracking.wandb.values import to_wandb
from harness.tracking.wandb.variables import own_defaults
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

    def __init__(self, session: Session, online: bool, resumed_step: int | None, first_step: int | None = None) -> None:
        self._session = session
        self._summary: dict[str, Scalar] = {}
        self._restarts_left = MAX_RESTARTS
        self._has_link = False  # whether there is a model to link, which W&B does only online
        self._run: Any
        self.state: State
        self._run, self.state = session.connect(online)
        self.first_step = session.first_step(self._run, resumed_step) if first_step is None else first_step
        self.url = str(self._run.url or "") if session.online else ""
        self._last_step = self.first_step - 1  # of the last row sent
        self._is_resumed = resumed_step is not None
        self._is_open = False  # whether values can be added to that row
        self._last_time: dict[str, Any] = {}  # when it was measured; W&B would note when it is closed
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

    def rows(self, record: Record, steps: set[int]) -> None:
        """Log those rows of a record that are at some steps."""

        def log_rows() -> None:
            if record.steps is not None:
                names = set(record.steps.lines) - set(record.values) - set(AXES)
                self._attempt(lambda run: self._session.plot_by_step(run, names))
            for step, values in rows(record):
                if step in steps:
                    self._log(step, values, keep_open=record.kind == "find")

        self._submit(log_rows)

    def _submit(self, job: Callable[[], object], wait: bool = False) -> None:
        """Run a job in the background after those before it; an exception of an earlier one is raised here."""
        if self._worker is None:
            raise RuntimeError("the tracker is finished")
        self._jobs.append(self._worker.submit(job))
        while self._jobs and (wait or self._jobs[0].done()):
            self._jobs.pop(0).result()

    def _record(self, record: Record) -> None:
        # A row that is closed can be plotted at once. Those of a range test stay open: all its records have step 0.
        keep_open = record.kind == "find"
        if record.steps is not None:
            names = set(record.steps.lines) - set(record.values) - set(AXES)
            self._attempt(lambda run: self._session.plot_by_step(run, names))
        pending = self._pending_rows(record)
        if pending:
            # Stored before sending: after a crash a row may be missing, which `harness sync` repairs, but never doubled.
            self._session.note_sent(pending[-1][0] - keep_open)
        for step, values in pending:
            self._log(step, values, keep_open=keep_open and step == pending[-1][0])

    def _pending_rows(self, record: Record) -> list[tuple[int, dict[str, Value]]]:
        """Return the rows of a record that W&B does not have, in increasing order."""
        numbered = list(rows(record, self._session.config.log_every))
        pending = [(step, row) for step, row in numbered if step > self._last_step]
        if record.kind == "steps" or (pending and pending[-1][0] == numbered[-1][0]):
            return pending
        step, values = numbered[-1]
        # A run that was killed at its very end and resumed has its final row in W&B already. Otherwise nothing can be added
        # to a closed row, and the next step number is better than losing the values.
        has_result = self._is_resumed and not self._session.is_borrowed
        if step >= self.first_step or (record.kind == "final" and not has_result):
            pending.append((self._last_step if self._is_open else self._last_step + 1, values))
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
            has_media = any(not isinstance(value, Scalar) for value in values.values())
            with self._session.limited() if has_media else contextlib.nullcontext():
                run.log(row, step=step, commit=not keep_open)

        if self._attempt(send):
            self._last_step, self._is_open = step, keep_open
            self._last_time = {name: value for name, value in values.items() if name == TIMESTAMP}

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

    def console(self, text: str) -> None:
        """Add lines to the run's console log in W&B, unless W&B captures the console itself, as it does in a run of the user's code."""
        worker = self._worker
        if worker is None or self._session.is_borrowed or "console" not in own_defaults():
            return
        with contextlib.suppress(RuntimeError):  # it is being closed; messages come from other threads as well
            worker.submit(lambda: self._attempt(lambda run: run.write_logs(text)))

    def file(self, path: Path) -> None:
        """Add a copy of a file to the files of the run in W&B."""

        def send(run: Any) -> None:
            copy = Path(run.dir, path.name)
            shutil.copyfile(path, copy)
            run.save(str(copy), base_path=run.dir, policy="now", glob=False)

        self._submit(lambda: self._attempt(send))

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
            self._attempt(lambda run: run.log(self._last_time, step=self._last_step, commit=True))
        if self._summary.get("status") == "finished":
            self._forget_end(["reason"])
        if self._summary:
            self._attempt(lambda run: run.summary.update(self._summary))
        if exit_code in PREEMPTED and is_preemption(exit_code) and not self.stopped_by_server():
            self._attempt(lambda run: run.mark_preempting())  # W&B queues the run again, under the same id
        if self._session.is_borrowed:  # the user's code closes it
            complete_result(self._session)
            return
        reasons: list[str] = []
        self._attempt(lambda run: reasons.append(self._session.finish(run, exit_code)), restart=False)
        if any(reasons):
            self._report_failure(reasons[0])
        elif reasons:
            complete_result(self._session)

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
