"""The loopback server with a sweep: the queries of `wandb sweep`, of `wandb agent` and of its runs."""

from __future__ import annotations

import itertools
import json
import threading
from typing import Any

import yaml

from tests.support.wandb_server import PROJECT, Run, Server


class SweepServer(Server):
    """A server with one sweep, whose runs it gives to agents.

    The runs are the grid of the sweep's parameters; a parameter with a range has its middle in the grid. Commands in
    `queue` come first.

    Attributes:
        config: the sweep's configuration, as uploaded.
        queue: commands for the agents' next heartbeats.
        handed: run id -> the parameters it was started with.
        early: stop a run once it has logged the sweep's metric this many times; 0: never.
        early_runs: how many runs are stopped early.
    """

    SWEEP = "sweep001"

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.queue: list[dict[str, Any]] = []
        self.handed: dict[str, dict[str, Any]] = {}
        self.early = 0
        self.early_runs = 1
        self.state = "RUNNING"
        self._grid: list[dict[str, Any]] = []
        self._turn = threading.Lock()

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "UpsertSweep":
                self.take(yaml.safe_load(variables["config"]))
                sweep = {"name": self.SWEEP, "project": PROJECT}
                return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}
            case "SweepWithRuns":
                about = {"id": "s", "name": self.SWEEP, "state": self.state, "config": yaml.safe_dump(self.config)}
                edges = [{"node": {"name": name}} for name in self.runs]
                return {"project": {"sweep": {**about, "runs": {"edges": edges}}}}
            case "CreateAgent":
                return {"createAgent": {"agent": {"id": "agent1"}}}
            case "Heartbeat":
                with self._turn:
                    commands = self._commands(set(json.loads(variables["runState"])))
                return {"agentHeartbeat": {"agent": {"id": "agent1"}, "commands": json.dumps(commands)}}
        return super().answer(operation, variables)

    def metric(self, run: Run) -> list[float]:
        """Return the values of the sweep's metric in a run's history."""
        name = self.config["metric"]["name"]
        return [row[name] for row in run.history if name in row]

    def command(self, run_id: str, kind: str = "run") -> dict[str, Any]:
        """Return the command that starts or resumes a run."""
        args = {key: {"value": value} for key, value in self.handed[run_id].items()}
        return {"type": kind, "run_id": run_id, "program": self.config.get("program"), "args": args}

    def take(self, config: dict[str, Any]) -> None:
        """Begin a sweep."""
        self.config = config
        lists = {key: values(about) for key, about in self.config["parameters"].items()}
        self._grid = [dict(zip(lists, row, strict=True)) for row in itertools.product(*lists.values())]
        self._grid = self._grid[: self.config.get("run_cap", len(self._grid))]

    def _commands(self, alive: set[str]) -> list[dict[str, Any]]:
        for name in alive & self.runs.keys():
            run = self.runs[name]
            marked = sum(other.stopped for other in self.runs.values())
            if self.early and not run.stopped and len(self.metric(run)) >= self.early and marked < self.early_runs:
                run.stopped = True
        stops = [
            {"type": "stop", "run_id": name} for name in sorted(alive & self.runs.keys()) if self.runs[name].stopped
        ]
        if stops or alive:
            return stops
        if self.queue:
            return [self.queue.pop(0)]
        if self._grid:
            name = f"run{len(self.handed) + 1}"
            self.handed[name] = self._grid.pop(0)
            return [self.command(name)]
        return [{"type": "exit"}]


def values(parameter: dict[str, Any]) -> list[Any]:
    """Return the values of a sweep's parameter in the grid."""
    if "parameters" in parameter:
        lists = {key: values(about) for key, about in parameter["parameters"].items()}
        return [dict(zip(lists, row, strict=True)) for row in itertools.product(*lists.values())]
    if "value" in parameter:
        return [parameter["value"]]
    if "values" in parameter:
        return list(parameter["values"])
    return [(parameter["min"] * parameter["max"]) ** 0.5]
