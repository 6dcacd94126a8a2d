"""As much of W&B's server, on the loopback, as a run needs that logs history rows."""

from __future__ import annotations

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef" * 3  # of the form that W&B's client takes


class Server(ThreadingHTTPServer):
    """Takes one run; a context.

    Attributes:
        rows: line number -> history row.
        stream_status: HTTP status of its answers to rows.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rows: dict[int, dict[str, Any]] = {}
        self.stream_status = 200
        self.exit_code: int | None = None

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def history(self) -> list[dict[str, Any]]:
        return [self.rows[line] for line in sorted(self.rows)]

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        project = {"name": "p", "entity": {"name": "e"}}
        bucket = {
            "id": "b",
            "name": variables.get("name"),
            "displayName": "n",
            "project": project,
            "historyLineCount": len(self.rows),
        }
        match operation:
            case "Viewer":
                return {
                    "viewer": {
                        "id": "u",
                        "entity": "e",
                        "username": "e",
                        "email": "",
                        "flags": "{}",
                        "teams": {"edges": []},
                    }
                }
            case "UpsertBucket":
                return {"upsertBucket": {"bucket": bucket, "inserted": not self.rows}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "RunResumeStatus" if self.rows:
                empty = {
                    "summaryMetrics": "{}",
                    "config": "{}",
                    "eventsTail": "[]",
                    "tags": [],
                    "logLineCount": 0,
                    "eventsLineCount": 0,
                }
                tail = json.dumps([json.dumps(self.history[-1])])
                found = {**bucket, **empty, "historyTail": tail, "wandbConfig": json.dumps({"t": {"value": 1}})}
                return {"model": {"bucket": found, "name": "p"}}
            case "RunResumeStatus":
                return {"model": None}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables.get("files", [])]
                return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def stream(self, body: dict[str, Any]) -> None:
        """Keep the rows of one message of the file stream."""
        lines = body.get("files", {}).get("wandb-history.jsonl")
        if lines:
            self.rows |= {lines["offset"] + place: json.loads(line) for place, line in enumerate(lines["content"])}
        if body.get("complete"):
            self.exit_code = body.get("exitcode")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *words: object) -> None:
        """Nothing."""

    def do_PUT(self) -> None:
        self._body()
        self._reply({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.endswith("/file_stream"):
            if self.server.stream_status == 200:
                self.server.stream(json.loads(body))
            self._reply({}, self.server.stream_status)
        elif self.path.endswith("/graphql"):
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            self._reply({"data": self.server.answer(operation[1] if operation else "", asked.get("variables") or {})})
        else:
            self._reply({})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, value: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
