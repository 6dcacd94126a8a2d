"""Trackio: a run in its local database, or in a Hugging Face Space or server that its variables name.

The only importer of trackio.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import trackio
from PIL import Image as PILImage
from trackio.sqlite_storage import SQLiteStorage

from harness.tracking.backends.backend import Backend, MeasuredRow, RunLabels
from harness.tracking.records import Artifact, Scalar
from harness.tracking.tracker import Status
from harness.utils.plain import to_plain
from harness.utils.text import dashed


class Trackio(Backend):
    """One run of Trackio, where TRACKIO_DIR, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says."""

    title = "Trackio"

    def __init__(self, labels: RunLabels) -> None:
        # It prints, and its open run is one of this thread only: one of the user's code stays open.
        with contextlib.redirect_stdout(io.StringIO()):
            self._run = trackio.init(
                project=labels.project,
                name=labels.name,
                group=labels.group or None,
                resume="allow" if labels.run_id else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self._labels = labels
        self._is_local = bool(self._run._is_local)
        if labels.run_id and self._is_local and SQLiteStorage.get_log_count(labels.project, run_id=labels.run_id):
            self._run.id = labels.run_id  # it resumes the newest run of that name
        self.run_id = str(self._run.id)
        self.address = f"trackio show --project {labels.project}" if self._is_local else str(self._run.url)
        self._expected = self._count()
        self._last_step = 0

    def _count(self) -> int:
        """Return how many rows its database has of the run."""
        return int(SQLiteStorage.get_log_count(self._labels.project, run_id=self.run_id)) if self._is_local else 0

    def log(self, rows: Sequence[MeasuredRow]) -> None:
        """Write a row a step, with its images."""
        for row in rows:
            self._last_step = max(self._last_step, row.step)
            values: dict[str, Any] = dict(row.scalars)
            for name, picture in row.pictures.items():
                image = PILImage.open(io.BytesIO(picture.png), formats=("PNG",))
                values[name] = trackio.Image(image, caption=picture.caption or None)
            self._log(values, row.step)
        if self._is_local:
            with self._run._client_lock:  # else its thread writes them half a second later, and a kill loses them
                self._run._flush_queues_inline()

    def _log(self, values: dict[str, Any], step: int) -> None:
        self._run.log(values, step=step)
        self._expected += 1

    def config(self, values: Mapping[str, Any]) -> None:
        """Set the settings; they reach the database with the next row."""
        about = {"job_type": self._labels.job_type, "tags": list(self._labels.tags), "notes": self._labels.notes}
        self._run.config.update({**about, **to_plain(values)})
        self._run._config_logged = False

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Write the figures as a row of the last step: Trackio has no summary."""
        self._log(dict(values), self._last_step)

    def files(self, artifact: Artifact) -> None:
        """Keep the files as a version of an artifact."""
        name = dashed(f"{self._labels.name}-{artifact.name}")
        kept = trackio.Artifact(name, type=artifact.kind, metadata=to_plain(artifact.metadata))
        for inside, path in artifact.files.items():
            kept.add_file(path, name=inside)
        self._run.log_artifact(kept)

    def close(self, status: Status) -> None:
        """Write what is queued, and how the run ended.

        Raises:
            RuntimeError: its database lacks rows; Trackio itself only warns.
        """
        if not self._is_local:
            self._log({"state": status}, self._last_step)
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()
        if self._is_local:
            # Written by itself, with the settings: of rows that are queued together, those with the first settings win.
            about = {"project": self._labels.project, "run": self._run.name, "run_id": self.run_id}
            row = {"metrics_list": [{"state": status}], "steps": [self._last_step]}
            SQLiteStorage.bulk_log(**about, **row, config=self._run.config)
            if (count := self._count()) < self._expected + 1:
                raise RuntimeError(f"its database has {count} of {self._expected + 1} rows")
