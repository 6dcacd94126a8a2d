"""What W&B has of a run: rows, files and artifacts."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from harness.tracking.wandb.client import reason
from harness.tracking.wandb.run_logs import ArtifactKey

ARTIFACTS = """query RunArtifacts($entity: String!, $project: String!, $run: String!, $cursor: String) {
    project(entityName: $entity, name: $project) {
        run(name: $run) {
            outputArtifacts(after: $cursor, first: 100) {
                pageInfo { endCursor hasNextPage }
                edges { node { digest state artifactSequence { name } } }
            }
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
        files: their names; that of a picture or a table has a part of its SHA-256.
        artifacts: (name, digest) of those that are committed; None where the server does not report them.
        state: of the run: `running`, `finished`, `failed`, `crashed`.
    """

    path: str
    url: str = ""
    exists: bool = False
    rows: int = 0
    last_step: int = -1
    files: frozenset[str] = frozenset()
    artifacts: set[ArtifactKey] | None = field(default_factory=set)
    state: str = ""


def look_up_arrived(entity: str, project: str, run_id: str) -> Arrived:
    """Return what W&B has of a run; called inside `wandb_api_errors`."""
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
    return Arrived(path, run.url, True, count, last, files, _committed(run), str(run.state))


def _committed(run: Any) -> set[ArtifactKey] | None:
    """Return (name, digest) of each artifact of a run that W&B has whole; None where the server cannot be asked.

    W&B's own `logged_artifacts` raises an AssertionError where one of them is not complete.
    """
    artifacts: set[ArtifactKey] = set()
    cursor: str | None = None
    try:
        while True:
            variables = {"entity": run.entity, "project": run.project, "run": run.id, "cursor": cursor}
            answer = run._service_api.execute_graphql(ARTIFACTS, variables=variables)
            page = answer["project"]["run"]["outputArtifacts"]
            for node in (edge["node"] for edge in page["edges"]):
                if node["state"] == "COMMITTED":
                    artifacts.add((str(node["artifactSequence"]["name"]), str(node["digest"])))
            cursor = page["pageInfo"]["endCursor"]
            if not page["pageInfo"]["hasNextPage"]:
                return artifacts
    except Exception as error:  # noqa: BLE001 - W&B raises its own, pydantic's and the system's alike
        log.debug("W&B does not report the artifacts of a run: %s", reason(error))
        return None
