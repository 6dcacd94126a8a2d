"""A W&B server on the loopback that refuses, hangs, answers nonsense or dies, and keeps everything that it was sent."""

from __future__ import annotations

import threading

from tests.support.wandb_server import KEY, Handler, Run, Server


class FaultyServer(Server):
    """A server with the faults that a test gives it.

    Attributes:
        status: HTTP status of all its answers.
        page: whether it answers with a web page, like the sign-in page of a hotel network.
        dies_after: number of rows after which it closes all connections; 0: never.
        received: every byte that was sent to it, headers included.
    """

    def __init__(self, status: int = 200, stream_status: int = 200, dies_after: int = 0, page: bool = False) -> None:
        super().__init__()
        self.RequestHandlerClass = FaultyHandler
        self.status, self.stream_status, self.dies_after, self.page = status, stream_status, dies_after, page
        self.dead = self.stopped = False
        self.operations: list[str] = []
        self.names: set[str] = set()  # ids of the runs that were opened
        self.received: list[bytes] = []

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that lead to it, with a short timeout of W&B's client."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_INIT_TIMEOUT": "2"}

    def answer(self, operation, variables):
        self.operations.append(operation)
        if operation == "UpsertBucket":
            self.names.add(str(variables.get("name")))
        match operation:
            case "RunStoppedStatus":
                return {"project": {"run": {"stopped": self.stopped}}}
        return super().answer(operation, variables)

    @property
    def shown(self) -> Run:
        """The latest run that has rows."""
        runs = list(self.runs.values())
        return next((run for run in reversed(runs) if run.rows), runs[0] if runs else Run())

    @property
    def rows(self) -> dict[int, dict]:
        return self.shown.rows

    @rows.setter
    def rows(self, rows: dict[int, dict]) -> None:
        self.shown.rows = rows

    @property
    def history(self) -> list[dict]:
        return self.shown.history

    @property
    def steps(self) -> list[int]:
        return self.shown.steps

    def stream(self, run_id, body):
        answer = super().stream(run_id, body)
        if self.dies_after and len(self.rows) >= self.dies_after:
            self.dead = True
            threading.Thread(target=self.shutdown).start()
            self.socket.close()
        return answer


class FaultyHandler(Handler):
    server: FaultyServer

    def _body(self):
        body = super()._body()
        self.server.received.append(str(self.headers).encode() + b"\n" + self.path.encode() + b"\n" + body)
        return body

    def _reply(self, value, status=200):
        if self.server.dead:
            self.close_connection = True
            self.connection.close()
            return
        if self.server.page:
            data = b"<html>Please sign in</html>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        super()._reply(value, status if self.server.status == 200 else self.server.status)


def has_steps(server: Server, last: int) -> bool:
    """Return whether each step from 1 to `last` has arrived exactly once, in order."""
    return server.steps == list(range(1, last + 1))
