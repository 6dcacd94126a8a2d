"""The part of W&B's server that runs need, on the loopback: history, summaries, files and artifacts."""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

from tests.support.wandb_queries import artifacts_answer, collection_answer, files_answer, run_fragment

KEY = "0123456789abcdef" * 3  # of the form that W&B's client takes
VIEWER = {"id": "u", "entity": "e", "username": "e", "email": "", "flags": "{}", "teams": {"edges": []}}
PROJECT = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}


@dataclass
class Run:
    """A run as the server has it.

    Attributes:
        config: key -> value.
        sweep: id of its sweep; empty without one.
        rows: line number -> history row.
        exit_code: None until the run has ended.
        preempting: whether it requested to be queued again.
        stopped: whether the server requests it to stop.
        stops: how often it asked whether it should stop.
        files: name -> content.
        upserted: what the run's requests `UpsertBucket` have said beside its config: commit, repo, host, program, tags.
        events: line number -> row of system metrics.
        console: line number -> line of the console log.
    """

    config: dict[str, Any] = field(default_factory=dict)
    sweep: str = ""
    name: str = ""
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    preempting: bool = False
    stopped: bool = False
    stops: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    upserted: dict[str, Any] = field(default_factory=dict)
    events: dict[int, dict[str, Any]] = field(default_factory=dict)
    console: dict[int, str] = field(default_factory=dict)

    @property
    def history(self) -> list[dict[str, Any]]:
        return [self.rows[line] for line in sorted(self.rows)]

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]


@dataclass
class StoredArtifact:
    """An artifact as the server has it; complete once it is committed."""

    name: str
    kind: str
    run: str
    aliases: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False
    digest: str = ""
    project: str = ""
    client_id: str = ""
    sequence_client_id: str = ""


class Server(ThreadingHTTPServer):
    """A server that accepts runs; a context manager.

    Attributes:
        runs: id -> run. `rows`, `history`, `steps` and `exit_code` are those of the first.
        artifacts: id -> artifact.
        stream_status: HTTP status of its answers to rows.
        upload_status: HTTP status of its answers to files; those that it refuses are lost.
        seconds_per_mb: how long it takes to receive files.
        requests: how many GraphQL requests it has answered.
        uploaded: the names of the runs' files, each time that they were uploaded.
    """

    daemon_threads = True
    request_queue_size = 512  # W&B opens a connection for each of hundreds of files at once

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, StoredArtifact] = {}
        self.projects: list[str] = []  # of each request that made or changed a run
        self.stream_status = self.upload_status = 200
        self.seconds_per_mb = 0.0
        self.requests = 0
        self.uploaded: list[str] = []

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing about a client that disconnected."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def rows(self) -> dict[int, dict[str, Any]]:
        return next(iter(self.runs.values()), Run()).rows

    @property
    def history(self) -> list[dict[str, Any]]:
        return next(iter(self.runs.values()), Run()).history

    @property
    def steps(self) -> list[int]:
        return next(iter(self.runs.values()), Run()).steps

    @property
    def exit_code(self) -> int | None:
        return next(iter(self.runs.values()), Run()).exit_code

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the data of the GraphQL response to an operation."""
        match operation:
            case "Viewer":
                return {"viewer": VIEWER}
            case "UpsertBucket":
                return {"upsertBucket": self._upsert(variables)}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "RunStoppedStatus":
                run = self.runs[variables["runId"]]
                run.stops += 1
                return {"project": {"run": {"stopped": run.stopped}}}
            case "GetDefaultEntity" | "GetViewer":
                return {"viewer": {**VIEWER, "apiKeys": {"edges": []}}}
            case "Run" | "RunHistoryKeys" | "RunFiles" | "RunArtifacts" as query:
                return self._about(query, variables)
            case "CollectionVersions":
                return collection_answer(variables["collection"], self.artifacts)
            case "RunResumeStatus":
                return {"model": self._resume(variables["name"])}
            case "CreateRunFiles":
                files = [
                    {"name": name, "uploadUrl": f"{self.url}/run/{variables['run']}/{quote(name, safe='')}"}
                    for name in variables["files"]
                ]
                return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        return self._artifact(operation, variables)

    def _about(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Return what the public API asks about a run."""
        name = variables.get("name") or variables.get("run") or ""
        run = self.runs.get(name)
        if run is None:
            return {"project": {"run": None}}
        match query:
            case "RunFiles":
                return files_answer(run)
            case "RunArtifacts":
                return artifacts_answer(name, self.artifacts)
        return {"project": {"run": run_fragment(name, run)}}

    def _bucket(self, run_id: str) -> dict[str, Any]:
        run = self.runs[run_id]
        about = {"displayName": run.name or run_id, "sweepName": run.sweep or None, "project": PROJECT}
        return {"id": run_id, "name": run_id, "historyLineCount": len(run.rows), **about}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        inserted = variables["name"] not in self.runs
        run = self.runs.setdefault(variables["name"], Run())
        run.config |= {key: part.get("value") for key, part in json.loads(variables.get("config") or "{}").items()}
        self.projects.append(variables.get("project") or "")
        run.upserted |= {key: value for key, value in variables.items() if value is not None and key != "config"}
        run.sweep, run.name = variables.get("sweep") or run.sweep, variables.get("displayName") or run.name
        return {"bucket": self._bucket(variables["name"]), "inserted": inserted}

    def _resume(self, run_id: str) -> dict[str, Any] | None:
        run = self.runs.get(run_id)
        if run is None:
            return None
        # Of the last row: the SDK continues from the higher of this and the tail of the history.
        step = {"_step": run.steps[-1]} if run.rows else {}
        tail = json.dumps([json.dumps(row) for row in run.history[-1:]])
        about = {
            "summaryMetrics": json.dumps({**run.summary, **step}),
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "historyTail": tail,
            "eventsTail": "[]",
            "tags": [],
            "logLineCount": 0,
            "eventsLineCount": len(run.events),
            "wandbConfig": json.dumps({"t": {"value": 1}}),
        }
        return {"bucket": {**self._bucket(run_id), **about}, "name": "p"}

    def _artifact(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "ArtifactType":
                return {"project": None}  # none of that name yet
            case "CreateArtifact":
                about = variables["input"]
                artifact_id = f"a{len(self.artifacts)}"
                aliases = [alias["alias"] for alias in about.get("aliases") or []]
                artifact = StoredArtifact(
                    about["artifactCollectionName"], about["artifactTypeName"], about["runName"], aliases
                )
                artifact.project = about.get("projectName") or ""
                artifact.digest, artifact.client_id = about["digest"], about.get("clientID") or ""
                artifact.sequence_client_id = about.get("sequenceClientID") or ""
                self.artifacts[artifact_id] = artifact
                sequence = {"id": f"s{artifact_id}", "latestArtifact": None}
                return {
                    "createArtifact": {
                        "artifact": {"id": artifact_id, "state": "PENDING", "artifactSequence": sequence}
                    }
                }
            case "CreateArtifactManifest" | "UpdateArtifactManifest":
                artifact_id = variables.get("artifactID") or variables["artifactManifestID"]
                file = {
                    "id": artifact_id,
                    "uploadUrl": f"{self.url}/artifact/{artifact_id}/manifest",
                    "uploadHeaders": [],
                }
                name = operation[0].lower() + operation[1:]
                return {name: {"artifactManifest": {"id": artifact_id, "file": file}}}
            case "CreateArtifactFiles":
                nodes = [
                    {
                        "storagePath": f"{file['artifactID']}/{file['name']}",
                        "uploadUrl": f"{self.url}/artifact/{file['artifactID']}/{quote(file['name'], safe='')}",
                        "uploadHeaders": [],
                        "uploadMultipartUrls": None,
                        "artifact": {"id": file["artifactID"]},
                    }
                    for file in variables["input"]["artifactFiles"]
                ]
                return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
            case "UseArtifact":
                return {"useArtifact": {"artifact": {"id": variables["input"]["artifactID"]}}}
            case "CommitArtifact":
                self.artifacts[variables["artifactID"]].committed = True
                return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": ""}}}
        return {}

    def stream(self, run_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Store one message of a run's file stream, and return the response."""
        run = self.runs.setdefault(run_id, Run())
        lines = body.get("files", {}).get("wandb-history.jsonl")
        if lines:
            run.rows |= {lines["offset"] + index: json.loads(line) for index, line in enumerate(lines["content"])}
        lines = body.get("files", {}).get("wandb-events.jsonl")
        if lines:
            run.events |= {lines["offset"] + index: json.loads(line) for index, line in enumerate(lines["content"])}
        if lines := body.get("files", {}).get("output.log"):
            run.console |= {lines["offset"] + index: line for index, line in enumerate(lines["content"])}
        if summary := body.get("files", {}).get("wandb-summary.json"):
            run.summary = json.loads(summary["content"][-1])
        run.preempting |= bool(body.get("preempting"))
        if body.get("complete"):
            run.exit_code = body.get("exitcode")
        return {"stopped": True} if run.stopped else {}

    def upload(self, path: str, content: bytes) -> None:
        """Store an uploaded file with its run or artifact."""
        kind, owner, name = path.strip("/").split("/")
        files = self.runs[owner].files if kind == "run" else self.artifacts[owner].files
        files[unquote(name)] = content
        if kind == "run":
            self.uploaded.append(unquote(name))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *message: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Answer with a file of an artifact, under the address that it was uploaded to."""
        _, kind, owner, name = self.path.partition("?")[0].split("/", 3)
        self._send(self.server.artifacts[owner].files[unquote(name)] if kind == "artifact" else b"", 200)

    def do_PUT(self) -> None:
        body = self._body()
        if self.server.upload_status == 200:
            self.server.upload(self.path, body)
        self._reply({}, self.server.upload_status)

    def do_POST(self) -> None:
        body = self._body()
        if self.path.endswith("/file_stream"):
            answer = {}
            if self.server.stream_status == 200:
                answer = self.server.stream(self.path.split("/")[-2], json.loads(body))
            self._reply(answer, self.server.stream_status)
        elif self.path.endswith("/graphql"):
            request = json.loads(body)
            self.server.requests += 1
            operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            self._reply({"data": self.server.answer(operation[1] if operation else "", request.get("variables") or {})})
        else:
            self._reply({})

    def _body(self) -> bytes:
        body, left = b"", int(self.headers.get("Content-Length", 0))
        while left > 0:
            part = self.rfile.read(min(left, 50_000))
            body, left = body + part, left - len(part)
            if self.command == "PUT" and self.server.seconds_per_mb:
                time.sleep(self.server.seconds_per_mb * len(part) / 1e6)
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, value: dict[str, Any], status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status)

    def _send(self, data: bytes, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
