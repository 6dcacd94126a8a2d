"""TensorBoard: event files in the run directory, written without torch and TensorFlow. The only importer of tensorboard."""

from __future__ import annotations

import io
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import struct_pb2  # type: ignore[import-untyped, unused-ignore]
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_STRING
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from harness.tracking.backends.backend import POSITION, Backend, MeasuredRow, RunLabels, flat
from harness.tracking.records import Artifact, Histogram, Scalar
from harness.tracking.tracker import Status
from harness.utils.files import sha256, write_atomically
from harness.utils.text import markdown

VERSION = "brain.Event:2"
MAX_TEXT = 64 * 1024  # bytes of a text file that is shown
TEXTS = (".csv", ".json", ".yaml", ".md", ".txt")
STATES = {"finished": api_pb2.STATUS_SUCCESS, "failed": api_pb2.STATUS_FAILURE, "stopped": api_pb2.STATUS_UNKNOWN}


class TensorBoard(Backend):
    """One event file in `<run directory>/tensorboard`; a resumed run adds another.

    TensorBoard takes the first hyperparameters and the first status that it reads, so these are in a file of their own,
    which is replaced when they change.

    TensorBoard keeps no files: of each it gets the name, the size and the checksum, and of a short text its content.
    """

    title = "TensorBoard"
    is_replaced = True

    def __init__(self, labels: RunLabels) -> None:
        folder = labels.folder / "tensorboard"
        earlier = sorted(folder.glob("events.out.tfevents.*"))
        if not labels.run_id and (folder / POSITION).is_file():  # of an earlier evaluation into the same folder
            for path in earlier:
                path.unlink()
            earlier = []
        self.run_id = labels.run_id if labels.run_id and earlier else uuid.uuid4().hex
        self.address = f"tensorboard --logdir {labels.folder.parent}"
        self._labels, self._last_step, self._began = labels, 0, labels.started or time.time()
        self._last_time = labels.started
        self._hyperparameters: dict[str, Scalar] = {}
        self._session = folder / f"events.out.tfevents.{0:010d}.hparams"
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names, and goes back to none.
        seconds = max([int(time.time()), *(_seconds(path) + 1 for path in earlier)])
        name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter(open(folder / name, "xb"))  # noqa: SIM115 - closed by `close`
        self._writer.write(Event(wall_time=time.time(), file_version=VERSION).SerializeToString())
        self._writer.flush()

    def log(self, rows: Sequence[MeasuredRow]) -> None:
        """Write scalars, images, histograms, and texts as TensorBoard's text."""
        for row in rows:
            self._last_step = max(self._last_step, row.step)
            self._last_time = max(self._last_time, row.time)
            for name, value in row.scalars.items():
                self._value(_text(name, value) if isinstance(value, str) else _number(name, value), row.step, row.time)
            for name, picture in row.pictures.items():
                about = image_metadata.create_summary_metadata(None, markdown(picture.caption))
                strings = [*(str(pixels).encode() for pixels in picture.size), picture.png]
                self._value(Summary.Value(tag=name, metadata=about, tensor=_strings(strings)), row.step, row.time)
            for name, histogram in row.histograms.items():
                about = histogram_metadata.create_summary_metadata(None, None)
                self._value(Summary.Value(tag=name, metadata=about, tensor=_bins(histogram)), row.step, row.time)
        self._writer.flush()

    def config(self, values: Mapping[str, Any]) -> None:
        """Write the settings as hyperparameters and as text."""
        self._hyperparameters |= flat(values)
        self._write_session()
        about = {"name": self._labels.name, "project": self._labels.project, "job type": self._labels.job_type}
        about |= {"group": self._labels.group, "tags": ", ".join(self._labels.tags), "notes": self._labels.notes}
        self._value(_text("run", _table(about)), 0)
        self._value(_text("config", _table(self._hyperparameters)), 0)
        self._writer.flush()

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Write the figures as scalars of the last step, and all of them as text."""
        for name, value in values.items():
            if not isinstance(value, str):
                self._value(_number(name, value), self._last_step)
        self._value(_text("summary", _table(values)), self._last_step)
        self._writer.flush()

    def files(self, artifact: Artifact) -> None:
        """Write where the files are, with sizes and checksums, and the content of short texts."""
        rows = ["| file | bytes | SHA-256 | path |", "| --- | --- | --- | --- |"]
        for name, path in artifact.files.items():
            rows.append(f"| {markdown(name)} | {path.stat().st_size} | {sha256(path)} | {markdown(str(path))} |")
            if path.suffix in TEXTS and path.stat().st_size <= MAX_TEXT:
                content = path.read_text(errors="replace")
                self._value(_text(f"files/{artifact.name}/{name}", _indented(content)), self._last_step)
        self._value(_text(f"files/{artifact.name}", "\n".join(rows)), self._last_step)
        self._writer.flush()

    def close(self, status: Status) -> None:
        """Write how the run ended, and close the file."""
        self._writer.close()
        self._write_session(plugin_data_pb2.SessionEndInfo(status=STATES[status], end_time_secs=self._now()))

    def _write_session(self, end: plugin_data_pb2.SessionEndInfo | None = None) -> None:
        """Write the file with the hyperparameters, and how the session ended."""
        hparams = {name: _protobuf(value) for name, value in self._hyperparameters.items()}
        group = self._labels.group or self._labels.name
        start = plugin_data_pb2.SessionStartInfo(hparams=hparams, group_name=group, start_time_secs=self._began)
        content = io.BytesIO()
        writer = RecordWriter(content)
        writer.write(Event(wall_time=self._began, file_version=VERSION).SerializeToString())
        values = {metadata.SESSION_START_INFO_TAG: plugin_data_pb2.HParamsPluginData(session_start_info=start)}
        if end is not None:
            values[metadata.SESSION_END_INFO_TAG] = plugin_data_pb2.HParamsPluginData(session_end_info=end)
        for tag, data in values.items():
            about = metadata.create_summary_metadata(data)
            writer.write(_event(Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR), 0, time.time()))
        write_atomically(self._session, content.getvalue())

    def _value(self, value: Summary.Value, step: int, wall_time: float | None = None) -> None:
        self._writer.write(_event(value, step, self._now() if wall_time is None else wall_time))

    def _now(self) -> float:
        """Return the time, seconds since 1970; of a run that is written afterwards, that of its last row."""
        return self._last_time if self._labels.started else time.time()


def _seconds(path: Path) -> int:
    """Return the time in the name of an event file, seconds; 0 where it has none."""
    digits = path.name.removeprefix("events.out.tfevents.").split(".")[0]
    return int(digits) if digits.isdecimal() else 0


def _event(value: Summary.Value, step: int, wall_time: float) -> bytes:
    event = Event(wall_time=wall_time, step=step, summary=Summary(value=[value]))
    return bytes(event.SerializeToString())


def _number(name: str, value: float | int) -> Summary.Value:
    return Summary.Value(tag=name, simple_value=float(value))


def _text(name: str, text: str) -> Summary.Value:
    about = text_metadata.create_summary_metadata(name, None)
    return Summary.Value(tag=name, metadata=about, tensor=_strings([text.encode("utf-8", "backslashreplace")]))


def _strings(values: Sequence[bytes]) -> TensorProto:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(values))])
    return TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=values)


def _bins(histogram: Histogram) -> TensorProto:
    """Return a histogram as TensorBoard keeps it: float64 [bins, 3], of each the lower edge, the upper one and the count."""
    bins = zip(histogram.edges[:-1], histogram.edges[1:], histogram.counts, strict=True)
    sizes = (len(histogram.counts), 3)
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])
    return TensorProto(
        dtype=DT_DOUBLE, tensor_shape=shape, double_val=[float(value) for each in bins for value in each]
    )


def _table(values: Mapping[str, Scalar]) -> str:
    rows = [f"| {markdown(name)} | {markdown(str(value))} |" for name, value in values.items()]
    return "\n".join(["| name | value |", "| --- | --- |", *rows])


def _indented(text: str) -> str:
    """Return a text as a code block of Markdown."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def _protobuf(value: Scalar) -> struct_pb2.Value:
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if isinstance(value, str):
        return struct_pb2.Value(string_value=value)
    return struct_pb2.Value(number_value=value)
