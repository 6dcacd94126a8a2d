"""Read what each tracker has of a run, with the tracker's own reader."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support import wandb_files


@dataclass
class TrackedContent:
    """What a tracker has of a run.

    Attributes:
        scalars: metric -> (step, value) of each point, in the order of the steps.
        images: name -> (step, uint8 [H, W, 3]) of each.
        config: settings by name, nested ones as `model_args.width`.
        summary: figures of the whole run, and texts.
        files: name -> content; an empty one where the tracker keeps no content.
        state: how the run ended, in the tracker's own word.
    """

    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    images: dict[str, list[tuple[int, np.ndarray]]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = ""

    def add(self, name: str, step: int, value: Any) -> None:
        self.scalars.setdefault(name, []).append((step, value))


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def read_wandb(folder: Path, project: str) -> TrackedContent:
    """Read the offline run directories, by W&B's protocol."""
    content = TrackedContent()
    for run in wandb_files.offline_runs(folder):
        content.config |= _flat(run.config)
        content.summary |= {key: value for key, value in run.summary.items() if not isinstance(value, dict)}
        for row in (wandb_files.joined(row.items()) for row in run.rows):
            for key, value in row.items():
                if isinstance(value, dict) and value.get("_type") == "image-file":
                    file = run.folder / "files" / value["path"]
                    content.images.setdefault(key, []).append((row["_step"], pixels(file.read_bytes())))
                elif isinstance(value, dict) and value.get("_type") == "images/separated":
                    for number, name in enumerate(value["filenames"]):
                        file = run.folder / "files" / name
                        content.images.setdefault(f"{key}/{number}", []).append(
                            (row["_step"], pixels(file.read_bytes()))
                        )
                elif not isinstance(value, dict) and not key.startswith("_"):
                    content.add(key, row["_step"], value)
        for artifact in run.artifacts:
            content.files |= {name: Path(path).read_bytes() for name, path in artifact["files"].items()}
        content.state = {0: "finished"}.get(run.exit_code, "failed")
    return content


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def read_tensorboard(folder: Path, project: str) -> TrackedContent:
    """Read the event files, with the accumulator of TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import api_pb2, metadata

    content = TrackedContent()
    reader = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    tags = reader.Tags()
    for name in tags["scalars"]:
        content.scalars[name] = [(event.step, event.value) for event in reader.Scalars(name)]
        content.summary[name] = content.scalars[name][-1][1]
    plugins = {name: reader.SummaryMetadata(name).plugin_data.plugin_name for name in tags["tensors"]}
    for name in (name for name, plugin in plugins.items() if plugin == "images"):
        for event in reader.Tensors(name):
            width, height, png = event.tensor_proto.string_val
            image = pixels(png)
            assert image.shape[:2] == (int(height), int(width))
            content.images.setdefault(name, []).append((event.step, image))
    texts = {
        name: reader.Tensors(name)[-1].tensor_proto.string_val[0].decode()
        for name, plugin in plugins.items()
        if plugin == "text"
    }
    content.summary |= {cells[1]: cells[2] for cells in _cells(texts["summary"])}
    for name, text in texts.items():
        if name.startswith("files/") and text.startswith("| file"):
            for cells in _cells(text):
                assert len(cells[3]) == 64
                content.files.setdefault(cells[1], b"")
        elif name.startswith("files/"):
            file = name.split("/", 2)[2]
            content.files[file] = "".join(line[4:] + "\n" for line in text.splitlines()).encode()
    plugin = reader.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(plugin)
    content.config = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    plugin = reader.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    content.state = api_pb2.Status.Name(metadata.parse_session_end_info_plugin_data(plugin).status)
    return content


def _cells(table: str) -> list[list[str]]:
    return [[html.unescape(cell.strip()) for cell in line.split("|")] for line in table.splitlines()[2:]]


def read_mlflow(folder: Path, project: str) -> TrackedContent:
    """Read the only run of an experiment, with MLflow's client."""
    from mlflow import MlflowClient

    content, client = TrackedContent(), MlflowClient()
    experiment = client.get_experiment_by_name(project)
    (run,) = client.search_runs([experiment.experiment_id])
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        content.scalars[name] = [(each.step, each.value) for each in sorted(history, key=lambda each: each.step)]
    content.summary = {**run.data.metrics, **run.data.tags}
    content.config = {**run.data.params, **run.data.tags}
    content.state = run.info.status

    def walk(inside: str) -> None:
        for each in client.list_artifacts(run.info.run_id, inside):
            if each.is_dir:
                walk(each.path)
                continue
            data = Path(client.download_artifacts(run.info.run_id, each.path)).read_bytes()
            if not each.path.startswith("images/"):
                content.files[each.path.split("/", 1)[1]] = data
            elif each.path.endswith(".png"):
                name, _, step, *_ = each.path.removeprefix("images/").split("+")
                content.images.setdefault(name.replace("~", "/"), []).append((int(step), pixels(data)))

    walk("")
    return content


def read_trackio(folder: Path, project: str) -> TrackedContent:
    """Read the only run of a project, from Trackio's database."""
    import trackio
    from trackio import cas
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import MEDIA_DIR

    content = TrackedContent()
    (run,) = trackio.Api().runs(project)
    content.config = _flat(run.config)
    for row in SQLiteStorage.get_logs(project, run.name, run_id=run.id):
        for name, value in row.items():
            if isinstance(value, dict) and value.get("_type") == "trackio.image":
                image = pixels((MEDIA_DIR / value["file_path"]).read_bytes())
                content.images.setdefault(name, []).append((row["step"], image))
            elif name not in ("step", "timestamp"):
                content.add(name, row["step"], value)
                content.summary[name] = value
    for artifact in SQLiteStorage.get_run_artifacts(project, run.name, run.id)["output"]:
        manifest = SQLiteStorage.get_artifact_manifest(project, artifact["name"], f"v{artifact['version']}")
        for entry in manifest["manifest"]:
            content.files[entry["path"]] = cas.blob_path(project, entry["digest"]).read_bytes()
    content.state = str(content.summary.get("state"))
    return content


READERS = {"wandb": read_wandb, "tensorboard": read_tensorboard, "mlflow": read_mlflow, "trackio": read_trackio}
