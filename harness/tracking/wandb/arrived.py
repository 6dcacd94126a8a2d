"""What W&B has of a run: rows, files and artifacts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.tracking.wandb.client import reason
from harness.tracking.wandb.run_logs import ArtifactKey

PAGE = "pageInfo { endCursor hasNextPage } edges { node { digest state versionIndex artifactSequence { name } } }"
OF_RUN = """query RunArtifacts($entity: String!, $project: String!, $run: String!, $cursor: String) {
    project(entityName: $entity, name: $project) {
        run(name: $run) { page: %s(after: $cursor, first: 100) { %s } }
    }
}"""
OF_COLLECTION = """query CollectionVersions(
    $entity: String!, $project: String!, $type: String!, $collection: String!, $cursor: String
) {
    project(entityName: $entity, name: $project) {
        artifactType(name: $type) {
            artifactCollection(name: $collection) { page: artifacts(after: $cursor, first: 100) { %s } }
        }
    }
}"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arrived:
    """What W&B has of a run.

    Attributes:
        path: ENTITY/PROJECT/ID.
        exists: whether W&B knows the run.
        rows: how many history rows it has; the first ones of the run.
        last_step: -1 where there is no row.
        files: their names; that of an image or a table has a part of its SHA-256.
        artifacts: (name, digest) of its outputs and inputs that are committed -> number of the version in its collection;
            None where the server does not report them.
        state: of the run: `running`, `finished`, `failed`, `crashed`.
    """

    path: str
    url: str = ""
    exists: bool = False
    rows: int = 0
    last_step: int = -1
    files: frozenset[str] = frozenset()
    artifacts: dict[ArtifactKey, int] | None = field(default_factory=dict)
    state: str = ""


def look_up_arrived(entity: str, project: str, run_id: str, expected: Mapping[ArtifactKey, str]) -> Arrived:
    """Return what W&B has of a run; called inside `wandb_api_errors`.

    Args:
        expected: (name, digest) -> type of each artifact of the run.
    """
    import wandb

    api = wandb.Api(timeout=10)
    path = f"{entity or api.default_entity or ''}/{project}/{run_id}"
    try:
        run = api.run(path)
    except Exception as error:
        cause = getattr(error, "exc", error)  # W&B wraps its exceptions
        if isinstance(cause, ValueError) and "could not find" in str(cause).lower():
            return Arrived(path)
        raise
    files = frozenset(file.name for file in run.files(per_page=500))
    count = int(run.historyLineCount or 0)
    last = int(run.lastHistoryStep) if count else -1
    return Arrived(path, run.url, True, count, last, files, _committed(run, expected), str(run.state))


def _committed(run: Any, expected: Mapping[ArtifactKey, str]) -> dict[ArtifactKey, int] | None:
    """Return the artifacts of a run that W&B has whole, as in `Arrived`; None where the server cannot be asked.

    An output that equals a version of another run is that version, and not listed with this run: its collection is asked.
    W&B's own `logged_artifacts` raises an AssertionError where one artifact is not complete.
    """
    where = {"entity": run.entity, "project": run.project}
    try:
        committed: dict[ArtifactKey, int] = {}
        for kind in ("outputArtifacts", "inputArtifacts"):
            committed |= _versions(run, OF_RUN % (kind, PAGE), {**where, "run": run.id}, ("run",))
        for key, kind in expected.items():
            if key not in committed:
                variables = {**where, "type": kind, "collection": key[0]}
                versions = _versions(run, OF_COLLECTION % PAGE, variables, ("artifactType", "artifactCollection"))
                committed |= {key: versions[key]} if key in versions else {}
        return committed
    except Exception as error:  # noqa: BLE001 - W&B raises its own, pydantic's and the system's alike
        log.debug("W&B does not report the artifacts of a run: %s", reason(error))
        return None


def _versions(run: Any, query: str, variables: Mapping[str, Any], path: Sequence[str]) -> dict[ArtifactKey, int]:
    """Return the complete artifacts in all pages of a query, as in `Arrived`; none where there is no such collection."""
    versions: dict[ArtifactKey, int] = {}
    cursor: str | None = None
    while True:
        answer = run._service_api.execute_graphql(query, variables={**variables, "cursor": cursor})["project"]
        for name in path:
            answer = (answer or {}).get(name)
        if answer is None:
            return versions
        for node in (edge["node"] for edge in answer["page"]["edges"]):
            if node["state"] == "COMMITTED":
                versions[str(node["artifactSequence"]["name"]), str(node["digest"])] = int(node["versionIndex"])
        cursor = answer["page"]["pageInfo"]["endCursor"]
        if not answer["page"]["pageInfo"]["hasNextPage"]:
            return versions
