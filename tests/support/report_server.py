"""The part of W&B's server that reports need, on the loopback: queries of runs and sweeps, and saved reports."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import yaml

from tests.support.wandb_queries import run_fragment
from tests.support.wandb_server import VIEWER, Run, Server


@dataclass
class Saved:
    """A report as the server has it."""

    title: str
    kind: str
    project: str
    spec: dict[str, Any]


class ReportServer(Server):
    """A server with the project e/p.

    Attributes:
        saved: the reports, oldest first.
        sweeps: id -> file of each sweep; its runs are those whose `sweep` is its id.
        is_known: whether the project exists.
    """

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[Saved] = []
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.is_known = True

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        mine = self.is_known and variables.get("entity", variables.get("entityName")) == "e"
        match operation:
            case "GetDefaultEntity" | "GetViewer":
                return {"viewer": {**VIEWER, "apiKeys": {"edges": []}}}
            case "ProjectInternalId":
                return {"project": {"id": "p", "internalId": "1"} if mine else None}
            case "GetProjects":
                about = {"name": "p", "entityName": "e", "createdAt": "2026-01-01", "isBenchmark": False, "user": None}
                edges = [{"node": {"__typename": "Project", "id": "p", **about}}]
                page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
                return {"models": {"pageInfo": page, "edges": edges}}
            case "Run":
                found = mine and self._known(variables["name"])
                return {"project": {"run": found or None} if mine else None}
            case "GetSweep" | "GetSweepLegacy":
                return {"project": {"sweep": self._sweep(variables["name"])} if mine else None}
            case "Runs":
                return {"project": self._runs(variables)}
            case "upsertView" | "UpsertView2":
                return {"upsertView": self._save(variables)}
        return super().answer(operation, variables)

    def _known(self, name: str) -> dict[str, Any] | None:
        run = self.runs.get(name)
        return None if run is None else run_fragment(name, run)

    def _sweep(self, name: str) -> dict[str, Any] | None:
        if name not in self.sweeps:
            return None
        config = self.sweeps[name]
        about = {"id": name, "name": name, "displayName": config.get("name"), "method": config["method"]}
        more = {"state": "FINISHED", "description": "", "bestLoss": None, "createdAt": "", "updatedAt": None}
        return {**about, **more, "config": yaml.safe_dump(config), "runCount": 1, "runCountExpected": None}

    def _runs(self, variables: dict[str, Any]) -> dict[str, Any]:
        where = json.loads(variables["filters"])
        for condition in where.pop("$and", ()):
            where |= condition
        found = [(name, run) for name, run in self.runs.items() if where.items() <= self._labels(run).items()]
        sign, key = variables["order"][0], variables["order"][1:].removeprefix("summary_metrics.")
        if sign in "+-" and key != "created_at":
            found.sort(key=lambda item: item[1].summary[key], reverse=sign == "-")
        edges = [{"node": run_fragment(name, run), "cursor": name} for name, run in found]
        page = {"endCursor": None, "hasNextPage": False}
        about = {"internalId": "1", "runCount": len(found), "readOnly": False}
        return {**about, "runs": {"edges": edges[: variables["perPage"]], "pageInfo": page}}

    @staticmethod
    def _labels(run: Run) -> dict[str, Any]:
        labels = {key: run.upserted.get(name) for key, name in (("group", "groupName"), ("jobType", "jobType"))}
        return {**labels, "sweep": run.sweep}

    def _save(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.saved.append(
            Saved(variables["displayName"], variables["type"], variables["projectName"], json.loads(variables["spec"]))
        )
        number = base64.b64encode(f"View:{len(self.saved)}".encode()).decode()
        project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
        view = {key: variables[key] for key in ("type", "name", "displayName", "description", "spec")}
        return {
            "view": {"id": number, **view, "project": project, "updatedAt": "2026-01-01T00:00:00"},
            "inserted": True,
        }
