"""Answers of the loopback server to what W&B's public API asks about a run: its facts, files and artifacts."""

from __future__ import annotations

import json
from typing import Any

PAGE = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}


def run_fragment(name: str, run: Any) -> dict[str, Any]:
    """The run as the query `Run` returns it."""
    state = {None: "running", 0: "finished"}.get(run.exit_code, "failed")
    return {
        "id": name,
        "projectId": "1",
        "name": name,
        "displayName": run.name or name,
        "sweepName": run.sweep or None,
        "state": state,
        "tags": run.upserted.get("tags") or [],
        "group": run.upserted.get("groupName") or "",
        "jobType": run.upserted.get("jobType") or "",
        "commit": run.upserted.get("commit") or "",
        "readOnly": False,
        "description": "",
        "notes": run.upserted.get("notes") or "",
        "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
        "summaryMetrics": json.dumps(run.summary),
        "systemMetrics": "{}",
        "createdAt": "2026-01-01",
        "heartbeatAt": "2026-01-01",
        "historyLineCount": len(run.rows),
        "historyKeys": {"lastStep": run.steps[-1]} if run.rows else {},
        "user": {"name": "e", "username": "e"},
        "project": {"internalId": "1"},
    }


def files_answer(run: Any) -> dict[str, Any]:
    """The run's files as the query `RunFiles` returns them."""
    about = {"url": "", "directUrl": "", "mimetype": "", "updatedAt": "2026-01-01", "md5": ""}
    nodes = [{"id": name, "name": name, "sizeBytes": len(content), **about} for name, content in run.files.items()]
    edges = [{"node": node, "cursor": str(number)} for number, node in enumerate(nodes)]
    files = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
    return {"project": {"internalId": "1", "run": {"fileCount": len(edges), "files": files}}}


def artifacts_answer(run_id: str, artifacts: dict[str, Any]) -> dict[str, Any]:
    """The artifacts that the run logged, complete or not."""
    edges = [
        {
            "node": {
                "artifactSequence": {"name": artifact.name},
                "state": "COMMITTED" if artifact.committed else "PENDING",
                "digest": artifact.digest,
                "versionIndex": getattr(artifact, "number", 0),
            }
        }
        for artifact in artifacts.values()
        if artifact.run == run_id
    ]
    return {"project": {"run": {"page": {"pageInfo": PAGE, "edges": edges}}}}


def collection_answer(collection: str, artifacts: dict[str, Any]) -> dict[str, Any]:
    """The versions in a collection, of all runs."""
    nodes = [
        {
            "artifactSequence": {"name": collection},
            "digest": artifact.digest,
            "state": "COMMITTED",
            "versionIndex": getattr(artifact, "number", 0),
        }
        for artifact in artifacts.values()
        if artifact.name == collection and artifact.committed
    ]
    page = {"page": {"pageInfo": PAGE, "edges": [{"node": node} for node in nodes]}}
    return {"project": {"artifactType": {"artifactCollection": page if nodes else None}}}
