"""MLflow: a run in the experiment of the project, on a server or in a local store. The only importer of mlflow."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image as PILImage

from harness.config.conversion import FIND
from harness.tracking.backends.backend import Backend, MeasuredRow, RunLabels, flat
from harness.tracking.records import Artifact, Scalar
from harness.tracking.tracker import Status
from harness.utils.text import dashed

T = TypeVar("T")

MAX_METRICS, MAX_PARAMS = 1000, 100  # of one request
MAX_PARAM, MAX_TAG = 6000, 8000  # characters
STATES = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class MLflow(Backend):
    """One run of MLflow, where MLFLOW_TRACKING_URI or MLflow's default says.

    Numbers are metrics, texts are tags. MLflow changes no parameter once it is set: a setting that changes becomes a tag.
    """

    title = "MLflow"

    def __init__(self, labels: RunLabels) -> None:
        with _quiet():
            self._client = MlflowClient()
        uri = str(self._client.tracking_uri)
        self.store = re.sub(r"//[^/@]*@", "//", uri)  # without a password
        self._params: dict[str, str] = {}
        self._labels, self._last_step, self._last_time = labels, 0, labels.started
        run = self._known_run(labels)
        if run is None:
            experiment = self._client.get_experiment_by_name(labels.project)
            experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(labels.project)
            about = {"group": labels.group, "job_type": labels.job_type, "mlflow.note.content": labels.notes}
            tags = {name: value[:MAX_TAG] for name, value in about.items() if value} | dict.fromkeys(
                labels.tags, "true"
            )
            started = _milliseconds(labels.started)
            run = self._client.create_run(experiment_id, start_time=started, run_name=labels.name, tags=tags)
        self.run_id = str(run.info.run_id)
        page = f"{self.store.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{self.run_id}"
        is_server = urlsplit(uri).scheme in ("http", "https")
        self.address = page if is_server else f"mlflow ui --backend-store-uri {self.store}"

    def _known_run(self, labels: RunLabels) -> Any:
        """Return the run that is resumed, running again; None for a new one, or where the store does not have it."""
        if not labels.run_id or labels.store != self.store:
            return None
        try:
            run = self._client.get_run(labels.run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        self._client.update_run(labels.run_id, status="RUNNING")
        self._params = dict(run.data.params)
        return run

    def log(self, rows: Sequence[MeasuredRow]) -> None:
        """Write numbers as metrics in few requests, texts as tags, and images for MLflow's image grid."""
        metrics = [
            Metric(name, float(value), int(row.time * 1000), row.step)
            for row in rows
            for name, value in row.scalars.items()
            if not isinstance(value, str)
        ]
        for part in _parts(metrics, MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=part)
        for row in rows:
            self._last_step, self._last_time = max(self._last_step, row.step), max(self._last_time, row.time)
            self._tag({name: value for name, value in row.scalars.items() if isinstance(value, str)})
            for name, picture in row.pictures.items():
                with PILImage.open(io.BytesIO(picture.png), formats=("PNG",)) as image:
                    self._client.log_image(self.run_id, image, key=name, step=row.step, synchronous=True)

    def config(self, values: Mapping[str, Any]) -> None:
        """Set parameters; a learning rate that a range test is still to find waits for its number."""
        texts = {
            name: str(value)[:MAX_PARAM]
            for name, value in flat(values)
            if not (name in ("lr_min", "lr_max") and value == FIND)
        }
        new = [Param(name, text) for name, text in texts.items() if name not in self._params]
        for part in _parts(new, MAX_PARAMS):
            self._client.log_batch(self.run_id, params=part)
        self._params |= {param.key: param.value for param in new}
        self._tag({name: text for name, text in texts.items() if self._params[name] != text})

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Write numbers as metrics of the last step, texts as tags."""
        self.log([MeasuredRow(self._last_step, values, {}, self._last_time if self._labels.started else time.time())])

    def files(self, artifact: Artifact) -> None:
        """Upload the files under the artifact's name."""
        folder = PurePosixPath(dashed(artifact.name))
        for name, path in artifact.files.items():
            inside = folder / name
            if inside.name == path.name:
                self._client.log_artifact(self.run_id, str(path), str(inside.parent))
                continue
            with tempfile.TemporaryDirectory() as temporary:
                renamed = Path(temporary, inside.name)
                shutil.copyfile(path, renamed)
                self._client.log_artifact(self.run_id, str(renamed), str(inside.parent))

    def close(self, status: Status) -> None:
        """Write how the run ended."""
        ended = _milliseconds(self._last_time if self._labels.started else 0.0)
        self._client.set_terminated(self.run_id, STATES[status], end_time=ended)

    def _tag(self, texts: Mapping[str, str]) -> None:
        tags = [RunTag(name, text[:MAX_TAG]) for name, text in texts.items()]
        for part in _parts(tags, MAX_PARAMS):
            self._client.log_batch(self.run_id, tags=part)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow from printing how it makes its database."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _milliseconds(seconds: float) -> int | None:
    """Return a time as MLflow takes it; None, which is now, where it is not known."""
    return int(seconds * 1000) if seconds else None


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
