"""Write records to a backend in a background thread, so that neither a slow nor a failing one delays the training.

No failure raises here: the first is reported to the user, and the journal has everything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from harness.tracking.backends.backend import POSITION, Backend, MeasuredRow, Picture, RunLabels
from harness.tracking.log_intervals import Interval
from harness.tracking.records import (
    Artifact,
    Curve,
    Histogram,
    Image,
    PlotlyFigure,
    Record,
    Scalar,
    StoredImage,
    Table,
    TableChart,
    Value,
    encode_png,
)
from harness.tracking.run_files import CONFIG, SUMMARY
from harness.tracking.serialization import stored_image
from harness.tracking.tracker import Status, Tracker
from harness.tracking.wandb.rows import TIMESTAMP, curve_rows, rows
from harness.utils.errors import first_line
from harness.utils.files import note_json, read_json, read_regular
from harness.utils.text import write_csv

MAX_FAILURES = 3  # in a row, after which a backend is left alone: each may have waited for a server
RESULTS = (CONFIG, SUMMARY, "predictions.csv", "per_class.csv", "lr_finder.json")  # kept at the end of a run

log = logging.getLogger(__name__)


class BackendTracker(Tracker):
    """A tracker that writes to a `Backend`.

    Args:
        kind: the tracker's name as in `--tracker`; its folder in the run directory has that name.
        is_resumed: continue the backend's run that began in this run directory.
        config: the settings, and plain facts beside them.
        earlier: the journal's records of a resumed run; the backend is sent those that it does not have.
        timeout: seconds to wait for the backend at the end of the run.
        log_every: write the metrics of every this many steps; 0: of all.
        intervals: as in `JournalContents`, for `earlier`.
        notify: receives each line for the user.

    Attributes:
        state: `incomplete` when the backend lacks something that the journal has.
        rows: how many it was given.
    """

    def __init__(
        self,
        kind: str,
        backend_type: type[Backend],
        labels: RunLabels,
        *,
        is_resumed: bool,
        config: Mapping[str, Any],
        earlier: Iterable[Record] = (),
        timeout: float,
        log_every: int = 1,
        intervals: Sequence[Interval] = (),
        notify: Callable[[str], None],
    ) -> None:
        self.kind, self.title = kind, backend_type.title
        self.state: Literal["complete", "incomplete"] = "complete"
        self._folder, self._timeout, self._notify = labels.folder, timeout, notify
        self._log_every, self._intervals = log_every, intervals
        self.rows = self._jobs_done = 0
        self._is_whole = True  # whether all rows up to the last step are written for certain
        self._summary: dict[str, Scalar] = {}
        self._backend: Backend | None = None
        self._failures, self._last_step, self._last_keys = 0, -1, set[str]()
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        # A daemon: a server that never answers does not keep the process from ending.
        self._thread: threading.Thread | None = threading.Thread(target=self._work, name=f"{kind}-tracker", daemon=True)
        self._thread.start()
        self._jobs.put(lambda: self._open(backend_type, labels, is_resumed))
        self._submit(lambda backend: backend.config(config))
        for record in earlier:
            self.record(record)

    def record(self, record: Record) -> None:
        """Write what was measured, except the steps that the backend has already."""
        self._submit(lambda backend: self._record(backend, record))

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Add figures to the run's summary, which is written at the end."""
        self._summary.update(values)

    def settings(self, values: Mapping[str, Scalar]) -> None:
        """Replace settings of the run."""
        self._submit(lambda backend: backend.config(dict(values)))

    def artifact(self, artifact: Artifact) -> None:
        """Keep the files as they are now, unless they are an input; the wait for a slow backend is limited."""
        if not artifact.files or artifact.is_input:
            return
        done = threading.Event()
        self._submit(lambda backend: backend.files(artifact))
        self._jobs.put(done.set)
        done.wait(self._timeout)

    def alert(self, title: str, text: str) -> None:
        """Write the alert into the summary: not every backend sends messages."""
        self.summary({"alert": f"{title}: {text}"})

    def finish(self, status: Status, exit_code: int) -> None:
        """Write what is pending and close, within the timeout."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        results = {name: self._folder / name for name in RESULTS if (self._folder / name).is_file()}
        if results:
            self._submit(lambda backend: backend.files(Artifact("results", "results", results)))
        self._submit(lambda backend: backend.summary(self._summary))
        self._submit(lambda backend: backend.close(status), even_after_failures=True)
        self._jobs.put(None)
        thread.join(self._timeout)
        if thread.is_alive():
            self._report_failure(f"not everything was written within {self._timeout:g} s")
        elif self.state == "complete":
            self._note_sent(self._last_step, ended=status)

    def flush(self) -> None:
        """Wait until everything is written, as long as something is written within each timeout."""
        done, before = threading.Event(), -1
        self._jobs.put(done.set)
        while not done.wait(self._timeout) and before < self._jobs_done:
            before = self._jobs_done

    def _submit(self, call: Callable[[Backend], object], even_after_failures: bool = False) -> None:
        def job() -> None:
            if self._backend is not None and (self._failures < MAX_FAILURES or even_after_failures):
                call(self._backend)
                self._failures = 0

        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
                self._jobs_done += 1
            except BaseException as error:
                self._failures += 1
                self._is_whole = False
                log.debug("%s failed", self.title, exc_info=True)
                self._report_failure(first_line(error))

    def _report_failure(self, reason: str) -> None:
        """Report, once, that the backend does not get everything."""
        if self.state == "complete":
            self.state = "incomplete"
            self._notify(f"{self.title} does not have the whole run ({reason[:300]}). The journal is complete.")

    def _open(self, backend_type: type[Backend], labels: RunLabels, is_resumed: bool) -> None:
        known = read_json(self._folder / self.kind / POSITION) if is_resumed else {}
        labels = dataclasses.replace(labels, run_id=str(known.get("run_id", "")), store=str(known.get("store", "")))
        self._backend = backend_type(labels)
        if self._backend.run_id == labels.run_id and isinstance(known.get("step"), int):  # else it has no earlier part
            self._last_step, self._last_keys = known["step"], set(map(str, known.get("keys", ())))
            self._is_whole = known.get("whole", True) is True
        self._note_sent(self._last_step)
        if self._backend.address:
            self._notify(f"{self.title}: {self._backend.address}")

    def _record(self, backend: Backend, record: Record) -> None:
        pending: list[MeasuredRow] = []
        tables: dict[str, Table | Curve] = {}
        for step, values in rows(record, self._log_every, self._intervals):
            # The last row of an epoch may be sent in two parts.
            is_begun = step == self._last_step and bool(self._last_keys)
            if step > self._last_step or is_begun:
                known = self._last_keys if is_begun else set[str]()
                new = {key: value for key, value in values.items() if key not in known}
                if new.keys() <= {TIMESTAMP}:
                    continue
                pending.append(self._row(step, new))
                tables |= {key: value for key, value in new.items() if isinstance(value, Table | Curve)}
                tables |= {key: value.table for key, value in new.items() if isinstance(value, TableChart)}
                self._last_keys = (self._last_keys if step == self._last_step else set[str]()) | set(values)
                self._last_step = max(step, self._last_step)
        if not pending:
            return
        # Stored before sending: after a kill a row may be missing, but never doubled.
        self._note_sent(self._last_step, is_sending=True)
        backend.log(pending)
        self.rows += len(pending)
        self._note_sent(self._last_step)
        if tables:
            with tempfile.TemporaryDirectory() as folder:
                backend.files(Artifact("tables", "tables", _write_tables(tables, Path(folder))))

    def _row(self, step: int, values: Mapping[str, Value]) -> MeasuredRow:
        """Return the values of a row that trackers show; an image that cannot be read is left out and reported.

        Layers are W&B's alone: of Grad-CAM the figure is sent.
        """
        scalars = {key: value for key, value in values.items() if isinstance(value, bool | int | float | str)}
        pictures: dict[str, Picture] = {}
        for key, value in values.items():
            if isinstance(value, PlotlyFigure) and value.picture is not None:
                value = value.picture
            images = {key: value} if isinstance(value, Image) else {}
            if isinstance(value, tuple):
                images = {f"{key}/{number}": image for number, image in enumerate(value) if isinstance(image, Image)}
            for name, image in images.items():
                try:
                    pictures[name] = _picture(image, self._folder)
                except Exception as error:  # noqa: BLE001 - its file may be damaged in any way, or gone
                    self._notify(f"{self.title} does not get {name}: {error}; the journal has it")
        measured_at = scalars.pop(TIMESTAMP, time.time())
        histograms = {key: value for key, value in values.items() if isinstance(value, Histogram)}
        return MeasuredRow(step, scalars, pictures, float(measured_at), histograms)

    def _note_sent(self, step: int, is_sending: bool = False, ended: Status | None = None) -> None:
        """Store the highest step sent, and which metrics of it: the row of an epoch's end is sent in two parts.

        Args:
            is_sending: whether its rows are only about to be written.
            ended: how the run has ended, when everything of it is written.
        """
        backend, folder = self._backend, self._folder / self.kind
        assert backend is not None  # what was sent was sent to it
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        sent = {"run_id": backend.run_id, "step": step, "keys": sorted(self._last_keys), "store": backend.store}
        sent |= {"whole": self._is_whole and not is_sending, **({"ended": ended} if ended else {})}
        note_json(folder / POSITION, sent)


def _picture(image: Image, folder: Path) -> Picture:
    """Return an image as PNG: the journal's file where there is one, since encoding takes long.

    Raises:
        OSError: its file is gone, or a link.
        ValueError, SyntaxError: its file is no PNG.
    """
    if isinstance(image, StoredImage):
        with open(image.open(), "rb") as file:
            png = file.read()
    else:
        path = stored_image(image, folder)
        png = read_regular(path) if path.is_file() else encode_png(image.pixels)
    from PIL import Image as PILImage

    with PILImage.open(io.BytesIO(png), formats=("PNG",)) as opened:
        return Picture(png, opened.size, image.caption)


def _write_tables(tables: Mapping[str, Table | Curve], folder: Path) -> dict[str, Path]:
    """Write tables and curves as CSV files, without columns of images; return name -> file."""
    files: dict[str, Path] = {}
    for key, value in tables.items():
        columns: Sequence[str]
        cells: Sequence[Sequence[Any]]
        if isinstance(value, Curve):
            columns, cells = curve_rows(value)
        else:
            kept = [
                index
                for index in range(len(value.columns))
                if not any(isinstance(row[index], Image) for row in value.rows)
            ]
            columns = [value.columns[index] for index in kept]
            cells = [[row[index] for index in kept] for row in value.rows]
        path = folder / f"{key}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_csv(path, columns, cells)
        files[f"{key}.csv"] = path
    return files
