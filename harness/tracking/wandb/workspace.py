"""A saved view of a W&B project's workspace: curves, galleries and pinned columns of what the runs logged."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from typing import Any

from harness.tracking.wandb.api import RunFacts, RunsFacts, SweepFacts, metric_of, wandb_api_errors
from harness.tracking.wandb.client import reason
from harness.tracking.wandb.panels import (
    joined_facts,
    line_panels,
    machine_panels,
    media_panels,
    report_module,
    result_numbers,
)
from harness.tracking.wandb.report import look_up_all, swept_parameters
from harness.utils.errors import UsageError

SETTINGS = ("model", "data", "epochs", "batch_size", "lr_max", "seed")  # pinned columns
MAX_NAME = 128  # characters
OPEN = 3  # sections that are open


def save_workspace(*targets: str) -> str:
    """Save a new workspace view in W&B for runs or a sweep, and return its URL.

    Args:
        targets: as those of `save_report`.

    Raises:
        UsageError: a target is invalid, or W&B has no such run or sweep.
        TrackingError: wandb-workspaces is not installed, there is no API key, or W&B is unavailable.
    """
    report_module()
    with wandb_api_errors():
        workspace = build_workspace(look_up_all(targets))
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # it prints the address
                workspace.save()
        except ValueError as error:
            raise UsageError(f"W&B does not accept the workspace: {reason(error)}") from error
        return str(workspace.url)


def build_workspace(facts: RunFacts | RunsFacts | SweepFacts) -> Any:
    """Return a workspace view with the panels that runs like these have, not saved yet; no network."""
    wr = report_module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses deprecated features of pydantic
        import wandb_workspaces.workspaces as ws

    run = _example(facts)
    curves = [panel for panel, _, _ in line_panels(wr, run.summary)]
    sections = [
        ("Accuracy and loss", [panel for panel in curves if panel.y != ["lr"]]),
        ("Learning rate", [panel for panel in curves if panel.y == ["lr"]]),
        ("Throughput, time and memory", [panel for panel, _, _ in machine_panels(wr, run.summary)]),
        *((title, [panel for panel, _, _ in panels]) for title, panels in media_panels(wr, run)),
    ]
    name = "".join(letter for letter in facts.name if letter.isascii() and letter.isprintable())
    return ws.Workspace(
        entity=run.entity,
        project=run.project,
        name=f"harness: {name}"[:MAX_NAME],
        sections=[
            ws.Section(name=title, panels=panels, is_open=number < OPEN, pinned=number == 0)
            for number, (title, panels) in enumerate(section for section in sections if section[1])
        ],
        settings=ws.WorkspaceSettings(x_axis="Step"),
        runset_settings=ws.RunsetSettings(filters=_filter(facts), pinned_columns=_columns(facts, run.summary)),
        auto_generate_panels=True,  # whatever else a run logs is below these sections
    )


def _example(facts: RunFacts | RunsFacts | SweepFacts) -> RunFacts:
    """Return a run that logged what any of these did."""
    if isinstance(facts, RunsFacts):
        return joined_facts(facts.runs)
    if isinstance(facts, SweepFacts):
        known = [*facts.finals, *([facts.best] if facts.best is not None else [])]
        return joined_facts(known) if known else RunFacts(facts.entity, facts.project, "", facts.name, {}, {}, {})
    return facts


def _filter(facts: RunFacts | RunsFacts | SweepFacts) -> str:
    """Return which runs the view shows: those of the group or the sweep, or all of the project."""
    if isinstance(facts, SweepFacts) and facts.sweep_id:
        return f"Sweep == {facts.sweep_id!r}"
    group = "" if isinstance(facts, RunFacts) else facts.group
    return f"Group == {group!r}" if group else ""


def _columns(facts: RunFacts | RunsFacts | SweepFacts, summary: Mapping[str, Any]) -> list[str]:
    """Return the pinned columns: name, metrics of the result, and the settings that matter."""
    metrics = [key for key, _ in result_numbers(summary) if key.endswith(("/acc", "/map", "/loss"))]
    names: list[str] = list(SETTINGS)
    if isinstance(facts, SweepFacts):
        metric = metric_of(facts.config)[0]
        metrics, names = [*([metric] if metric else []), *metrics], list(swept_parameters(facts.config))
    columns = [f"summary:{key}" for key in dict.fromkeys(metrics)]
    # W&B keeps a setting as name -> {"value": ...}, a nested one inside that.
    return ["run:displayName", *columns, *(f"config:{_config_column(name)}" for name in names)]


def _config_column(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{first}.value.{rest}" if rest else f"{first}.value"
