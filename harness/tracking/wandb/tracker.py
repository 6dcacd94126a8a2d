"""A run in W&B: one row a step, at the step's own number, never repeated and never behind.

Here nothing of W&B's may end a run: what it does not take is said once, and the journal has it.
"""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness.tracking.records import Artifact, Record, Scalar, Value
from harness.tracking.tracker import Status
from harness.tracking.wandb.rows import rows
from harness.tracking.wandb.session import Session, State, is_preemption, reason
from harness.tracking.wandb.values import to_wandb
from harness.utils.errors import TrackingError
from harness.utils.signals import PREEMPTED

RESTARTS = 3  # of a W&B process that died under the run

log = logging.getLogger(__name__)


class WandbTracker:
    """Writes to W&B in a thread of its own, off the path of training; made by `wandb_run.start`.

    Attributes:
        state: `online`, `offline`, or `incomplete`: W&B misses something that the journal has.
        first_step: rows below it are in W&B already and are left out.
        url: the run's page; empty when it has none.
    """

    def __init__(self, session: Session, online: bool, resumed_step: int | None) -> None:
        self._session = session
        self._summary: dict[str, Scalar] = {}
        self._restarts = RESTARTS
        self._run: Any
        self.state: State
        self._run, self.state = session.connect(online)
        self.first_step = session.first_step(self._run, resumed_step)
        self.url = str(self._run.url or "") if session.online else ""
        self._last = self.first_step - 1  # step of the last row handed over
        self._open = False  # whether that row can be added to
        session.note_sent(self._last)
        self._worker: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="wandb-tracker")
        self._jobs: list[Future[object]] = []

    @property
    def sync_command(self) -> str:
        """What brings the run to W&B whole; empty when it is there."""
        if self.state == "incomplete":
            return f"harness sync {shlex.quote(str(self._session.folder))}"
        return self._session.sync_command() if self.state == "offline" else ""

    def record(self, record: Record) -> None:
        """Log one row for every step that the record speaks of, but for those that W&B has already."""
        self._later(lambda: self._record(record))

    def _later(self, job: Callable[[], object], wait: bool = False) -> None:
        """Do a job after those before it; a mistake of ours in an earlier one is raised here."""
        if self._worker is None:
            raise RuntimeError("the tracker is finished")
        self._jobs.append(self._worker.submit(job))
        while self._jobs and (wait or self._jobs[0].done()):
            self._jobs.pop(0).result()

    def _record(self, record: Record) -> None:
        config = self._session.config
        # Closed rows are charted at once. The last epoch's stays open: the final record has the same step.
        hold = record.kind != "epoch" or record.epoch >= config.epochs or config.early_stop > 0
        if record.steps is not None:
            names = set(record.steps.lines) - set(record.values)
            self._attempt(lambda run: self._session.by_step(run, names))
        plan = self._plan(record)
        if plan:
            # Noted before it is sent: after a crash a row may be missing, which can be mended, but never doubled.
            self._session.note_sent(plan[-1][0] - hold)
        for step, values in plan:
            self._log(step, values, hold=hold and step == plan[-1][0])

    def _plan(self, record: Record) -> list[tuple[int, dict[str, Value]]]:
        """The rows of a record that W&B has not, upwards."""
        *before, (step, values) = rows(record)
        plan = [(earlier, row) for earlier, row in before if earlier > self._last]
        if step >= self.first_step or record.kind == "final":
            # A row that is closed already can not be added to; the next number is better than losing it.
            plan.append((max(step, self._last if self._open else self._last + 1), values))
        return plan

    def _log(self, step: int, values: Mapping[str, Value], hold: bool) -> None:
        """Send one row; with `hold` it can still be added to."""

        def send(run: Any) -> None:
            row: dict[str, Any] = {}
            for key, value in values.items():
                try:
                    row.update(to_wandb(self._session.wandb, key, value))
                except (TypeError, ValueError) as error:
                    self._session.say(f"W&B does not take {key}: {error}; the journal has it")
            run.log(row, step=step, commit=not hold)

        if self._attempt(send):
            self._last, self._open = step, hold

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Plain figures for the run's summary; they are set at the end, over what the last row left there."""
        self._summary.update(values)

    def artifact(self, artifact: Artifact) -> None:
        """Log the files as an artifact; they are copied, so they may change afterwards."""
        for path in artifact.files.values():
            if not Path(path).is_file():
                raise FileNotFoundError(f"artifact {artifact.name}: there is no file {path}")

        def send(run: Any) -> None:
            name = re.sub(r"[^\w.-]+", "-", artifact.name, flags=re.ASCII)[:128]
            if artifact.kind == "code":  # W&B keeps this type for itself
                self._log_code(run, name, artifact)
                return
            kept = self._session.wandb.Artifact(name, type=artifact.kind, metadata=dict(artifact.metadata))
            for inside, path in artifact.files.items():
                kept.add_file(str(path), name=inside, skip_cache=True)
            run.log_artifact(kept, aliases=list(artifact.aliases))

        self._later(lambda: self._attempt(send), wait=True)

    def _log_code(self, run: Any, name: str, artifact: Artifact) -> None:
        with tempfile.TemporaryDirectory(dir=self._session.files) as folder:
            for inside, path in artifact.files.items():
                shutil.copyfile(path, Path(folder, inside))
            run.log_code(
                folder, name=name, include_fn=lambda path, root=folder: True, exclude_fn=lambda path, root=folder: False
            )

    def alert(self, title: str, text: str) -> None:
        """Send a W&B alert."""
        self._later(lambda: self._attempt(lambda run: run.alert(title=title, text=text, level="WARN")))

    def stopped_by_server(self) -> bool:
        """Whether W&B stopped the run, so that a signal means an early end and not a preemption."""
        return self._run is not None and self._session.stopped_by_server(self._run)

    def finish(self, status: Status, exit_code: int) -> None:
        """Close the run in W&B, within `config.finish_timeout` seconds.

        Raises:
            TrackingError: W&B was asked for by name (`wandb=online`) and does not have everything.
        """
        if self._worker is None:
            return
        try:
            self._later(lambda: self._finish(exit_code), wait=True)
        finally:
            self._worker.shutdown()
            self._worker = self._run = None
            self._session.leave()
        if self.state == "incomplete" and self._session.config.wandb == "online":
            raise TrackingError(f"W&B does not have the whole run; bring it there with: {self.sync_command}")

    def _finish(self, exit_code: int) -> None:
        if self._open:
            self._session.note_sent(self._last)
            self._attempt(lambda run: run.log({}, step=self._last, commit=True))
        if self._summary:
            self._attempt(lambda run: run.summary.update(self._summary))
        if exit_code in PREEMPTED and is_preemption(exit_code) and not self.stopped_by_server():
            self._attempt(lambda run: run.mark_preempting())  # W&B queues the run again, under the same id
        run, started = self._run, time.monotonic()
        if not self._attempt(lambda run: run.finish(exit_code=exit_code), again=False) or not self._session.online:
            return
        patience = self._session.config.finish_timeout
        late = f"not uploaded within {patience} s" if time.monotonic() - started > 0.95 * patience else ""
        if why := late or self._session.refusal(run):
            self._complain(why)

    def _attempt(self, call: Callable[[Any], object], again: bool = True) -> bool:
        """Whether W&B took it, if need be in a new offline segment that goes on where the dead one ended."""
        while self._run is not None:
            try:
                call(self._run)
                return True
            except (TypeError, ValueError) as error:  # what it was given; W&B itself is well
                self._complain(reason(error))
                return False
            except Exception as error:  # noqa: BLE001 - W&B raises its own, asyncio's and the system's alike
                self._complain(reason(error))
            self._run = self._session.restart() if again and self._restarts > 0 else None
            self._restarts -= 1
        return False

    def _complain(self, why: str) -> None:
        """Tell the user, once, that W&B does not get everything."""
        if self.state != "incomplete":
            self.state = "incomplete"
            self._session.say(
                f"W&B stopped taking the run ({why}); the journal has it, and it comes to W&B with: {self.sync_command}"
            )
