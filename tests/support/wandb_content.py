"""The content of a run at the loopback server, in a form in which two runs can be compared field by field."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from tests.support.wandb_server import Run, Server

# Written by W&B for each upload: the process that sent it, and the telemetry of its features.
OF_THE_UPLOAD = ("_wandb",)
PROVENANCE = ("commit", "repo", "host", "program", "displayName", "groupName", "jobType", "tags", "notes")
METADATA = ("args", "program", "host", "git", "root", "executable", "python", "os", "startedAt")


def content(server: Server, run_id: str) -> dict[str, Any]:
    """The run's config, summary, history, system metrics, files, artifacts and provenance."""
    run = _with_named_tables(server, run_id)
    return {
        "config": {key: value for key, value in run.config.items() if key not in OF_THE_UPLOAD},
        "metrics": _metrics(run),
        "summary": {key: value for key, value in run.summary.items() if key not in OF_THE_UPLOAD},
        "history": run.history,
        "events": [run.events[line] for line in sorted(run.events)],
        # W&B notes when it has received a line.
        "console": [run.console[line].partition(" ")[2] for line in sorted(run.console)],
        "files": _files(run),
        "artifacts": sorted(
            (artifact.kind, artifact.name, artifact.digest, *sorted(artifact.aliases), *_hashes(artifact.files))
            for artifact in server.artifacts.values()
            if artifact.run == run_id and artifact.committed
        ),
        "provenance": {key: run.upserted.get(key) for key in PROVENANCE},
        "metadata": _metadata(run),
        "exit code": run.exit_code,
    }


def _metrics(run: Run) -> list[str]:
    """The definitions of the metrics; they name the metric that they are plotted over by its place in a list."""
    metrics = run.config["_wandb"].get("m", [])
    named = [{**metric, "5": metrics[metric["5"] - 1]["1"]} if "5" in metric else metric for metric in metrics]
    return sorted(json.dumps(metric, sort_keys=True) for metric in named)


def _with_named_tables(server: Server, run_id: str) -> Run:
    """The run with the names of its tables' artifacts in place of their ids, which are random."""
    run = server.runs[run_id]
    text = json.dumps([run.summary, {str(line): row for line, row in run.rows.items()}])
    for artifact in server.artifacts.values():
        for random_id in (artifact.client_id, artifact.sequence_client_id):
            text = text.replace(random_id, artifact.name) if random_id else text
    summary, rows = json.loads(text)
    return replace(run, summary=summary, rows={int(line): row for line, row in rows.items()})


def _files(run: Run) -> dict[str, str]:
    """Name -> hash of each file; of those that name the upload, only the name."""
    of_the_upload = ("config.yaml", "wandb-metadata.json", "wandb-summary.json", "output.log")
    return {name: "" if name in of_the_upload else hashlib.sha256(data).hexdigest() for name, data in run.files.items()}


def _hashes(files: dict[str, bytes]) -> list[str]:
    return sorted(f"{name} {hashlib.sha256(data).hexdigest()}" for name, data in files.items() if name != "manifest")


def _metadata(run: Run) -> dict[str, Any]:
    whole = json.loads(run.files.get("wandb-metadata.json", b"{}"))
    return {key: whole.get(key) for key in METADATA}
