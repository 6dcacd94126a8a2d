"""`harness sync`: upload what W&B lacks of a run: W&B's own logs as far as they are whole, the journal for the rest.

W&B's own log has what the run's machine noted: its commit, command and host, system metrics, the time of each row. It
loses its end when a process is killed, and it is in several parts after a resume; the journal is complete. What has
arrived is counted at W&B: rows, files, tables and artifacts.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.settings import WANDB, Config, setting_fields
from harness.tracking import run_dir
from harness.tracking.journal import JournalContents
from harness.tracking.lineage import run_alias
from harness.tracking.uploadable import read_uploadable
from harness.tracking.wandb import from_journal, init, run_logs, session
from harness.tracking.wandb.api import wandb_api_errors
from harness.tracking.wandb.arrived import Arrived, look_up_arrived
from harness.tracking.wandb.artifacts import complete_model
from harness.tracking.wandb.client import missing_service, reason
from harness.tracking.wandb.limits import check_link, check_wandb_values
from harness.tracking.wandb.run_logs import ArtifactKey, RunContent, is_result
from harness.tracking.wandb.upload import upload
from harness.tracking.wandb.values import artifact_name
from harness.utils.errors import TrackingError, UsageError
from harness.utils.plain import json_text

log = logging.getLogger(__name__)

TRIES = 3
SETTLING = 20.0  # seconds in which W&B shows what it has received
FIRST_PAUSE, LAST_PAUSE = 0.25, 2.0  # seconds between two questions whether it does
# A setting, and the field of W&B's record of the run.
FIELDS = {
    "project": "project", "entity": "entity", "name": "display_name", "group": "run_group", "job_type": "job_type",
    "tags": "tags", "notes": "notes",
}  # fmt: skip


@dataclass(frozen=True)
class SyncResult:
    """The result of a sync.

    Attributes:
        records: in the journal.
        sent: records that W&B did not have.
        steps: history rows of the run, all of which W&B has now.
        files: number of files, as images and tables, all of which W&B has now.
        artifacts: number of artifacts, as the model, all of which W&B has now; None where it does not report them.
    """

    folder: Path
    url: str
    records: int
    sent: int
    steps: int
    files: int
    artifacts: int | None


def sync(
    folder: Path,
    notify: Callable[[str], None],
    anew: bool = False,
    corrections: Mapping[str, Any] | None = None,
    timeout: float | None = None,
) -> SyncResult:
    """Send to W&B what it lacks of a run, each step once, and check that it has arrived.

    Args:
        anew: send everything as a new W&B run; W&B accepts no step before its latest.
        corrections: setting -> value, in place of what the run was started with: `project`, `tags` and the like.
        timeout: seconds that the upload may take beyond what its bytes need; `finish_timeout` of the run when None.

    Raises:
        UsageError: W&B would refuse the project, a tag or a name of the run.
        DataError: there is no journal.
        BusyError: the run is still being written.
        TrackingError: W&B is unavailable, or did not accept everything.
    """
    folder = Path(folder).expanduser()
    # The run may come from somebody else, who does not decide what a registry gets: its own `link` does not hold.
    link = str((corrections or {}).get("link", ""))
    corrections = {name: value for name, value in (corrections or {}).items() if name != "link"}
    journal, config = _checked(folder, corrections, link)
    folder = folder.resolve()
    import wandb

    if why := missing_service(wandb):
        raise TrackingError(why)
    init.check_workspace(Path.cwd())
    content = run_logs.load(folder)
    run_id = _run_id(folder, content, anew)
    with wandb_api_errors():
        target = _target(config, content, corrections or {}, run_id)
        arrived = look_up_arrived(target["entity"], target["project"], run_id, content.artifact_types())
    content = _completed(config, folder, target, journal, content, arrived, notify)
    _add_journal_facts(content, journal, corrections or {})
    before = arrived
    sent, arrived = _upload_missing(
        content, folder, target, arrived, bool(corrections), timeout or config.finish_timeout
    )
    if link or arrived != before:
        with wandb_api_errors():
            _complete_model(wandb.Api(timeout=10), run_id, arrived, journal, content, link)
    session.note_sent(folder / "wandb", run_id, max(content.rows, default=-1))
    # In a run of an earlier version the values of the final record are in the row of its own step.
    steps = [
        {record.step, *(step for step, _ in from_journal.journal_rows(config, journal, record))}
        for record in journal.records
    ]
    artifacts = None if arrived.artifacts is None else len(content.artifacts)
    count = sum(not sent.isdisjoint(each) for each in steps)
    return SyncResult(
        folder, arrived.url, len(journal.records), count, len(content.rows), len(content.files), artifacts
    )


def _complete_model(
    api: Any, run_id: str, arrived: Arrived, journal: JournalContents, content: RunContent, link: str
) -> None:
    """Give the model of the run what a result has, the alias `best` if it leads, and the link that was requested.

    Raises:
        TrackingError: it is not linked.
    """
    models = [artifact for artifact in journal.artifacts if artifact.kind == "model" and not artifact.is_input]
    if not models:
        return
    name = artifact_name(models[-1])
    # Not the version that is the latest of its collection: that may be an interim one, or another run's.
    result = content.results(content.lost.keys() if arrived.artifacts is None else arrived.artifacts).get(name)
    if result is None:
        if link:
            raise TrackingError(f"the run is uploaded, but its model is not linked to {link}: W&B lacks the model")
        return
    # Its alias may be missing: of content that W&B has already there is no new version.
    number = (arrived.artifacts or {}).get((name, str(result.digest)))
    version = run_alias(run_id) if number is None else f"v{number}"
    project = arrived.path.rpartition("/")[0]
    try:
        complete_model(api, f"{project}/{name}:{version}", models[-1], run_id, link)
    except Exception as error:  # noqa: BLE001 - W&B raises its own, pydantic's and the system's alike
        if link:
            raise TrackingError(
                f"the run is uploaded, but its model is not linked to {link}: {reason(error)}"
            ) from None
        log.debug("the aliases of %s: %s", name, reason(error))


def _checked(folder: Path, corrections: Mapping[str, Any], link: str) -> tuple[JournalContents, Config]:
    """Return the journal and the settings of a run directory that can be uploaded."""
    journal, config = read_uploadable(folder, {**corrections, "tracker": (WANDB,)})
    config = config.replace(wandb="online")
    try:
        check_wandb_values(config)
        check_link(link)
    except UsageError as error:
        raise UsageError(f"{folder}: {error}; give another value to harness sync with that option") from None
    if link and not any(artifact.kind == "model" and not artifact.is_input for artifact in journal.artifacts):
        raise UsageError(f"{folder} has no model to link to {link}: the run did not finish, or log_model was never")
    run_dir.make_folder(folder / "wandb", "copy the run directory to where it can be written")
    return journal, config


def _run_id(folder: Path, content: RunContent, anew: bool) -> str:
    """Return the id that the run has in W&B: a new one on request, and where it has none."""
    if anew:
        return uuid.uuid4().hex[:8]
    in_log = content.run.run_id if content.run is not None else ""
    return session.known_run_id(folder) or in_log or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]


def _target(config: Config, content: RunContent, corrections: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    """Return the fields of W&B's record of the run that say where it is uploaded, and those that were corrected."""
    fields = {FIELDS[name]: getattr(config, name) for name in corrections if name in FIELDS}
    in_log = content.run
    for name, variable in (("project", "WANDB_PROJECT"), ("entity", "WANDB_ENTITY")):
        by_variable = os.environ.get(variable) if getattr(config, name) == setting_fields()[name].default else None
        if name not in fields:
            fields[name] = (in_log and getattr(in_log, name)) or by_variable or getattr(config, name)
    return {**fields, "run_id": run_id}


def _completed(
    config: Config,
    folder: Path,
    target: Mapping[str, Any],
    journal: JournalContents,
    content: RunContent,
    arrived: Arrived,
    notify: Callable[[str], None],
) -> RunContent:
    """Return the content of W&B's logs, after what they lack was added from the journal."""
    committed = arrived.artifacts or {}
    content.choose_rows(committed, arrived.last_step)
    records = from_journal.lacking_rows(config, journal, content)
    artifacts = from_journal.lacking_artifacts(journal, content, committed)
    if not records and not artifacts and content.run is not None:
        return content
    identity = from_journal.run_identity(config, folder, target, content.run)
    from_journal.add_log(config, folder, identity, journal, records, artifacts, notify)
    content = run_logs.load(folder)
    content.choose_rows(committed, arrived.last_step)
    return content


def _add_journal_facts(content: RunContent, journal: JournalContents, corrections: Mapping[str, Any]) -> None:
    """Add how the run ended, by its journal, and the settings that it has found out or that were corrected."""
    from wandb.proto import wandb_internal_pb2 as protobuf

    changed = {**journal.settings, **corrections}
    if changed:
        record = protobuf.ConfigRecord()
        for key, value in changed.items():
            record.update.add(key=key, value_json=json_text(value))
        content.setup.append(protobuf.Record(config=record))
    summary = protobuf.SummaryRecord()
    for key, value in journal.summary.items():
        summary.update.add(key=key, value_json=json_text(value))
    if journal.status == "finished" and "reason" not in journal.summary:
        summary.remove.add(key="reason")
    if journal.summary:
        content.tail.append(protobuf.Record(summary=summary))
    # A killed run has no last line; W&B would show it as finished with 0.
    content.exit_code = journal.exit_code if journal.exit_code is not None else content.exit_code or 1


@dataclass(frozen=True)
class _Missing:
    """What W&B lacks of a run."""

    rows: list[int]
    files: list[str]
    artifacts: list[ArtifactKey]
    gap: int  # rows before W&B's latest, which it does not accept any more
    lost: list[str]  # artifacts of such rows whose files are gone
    end: bool  # whether it has not learnt that the run is finished

    def __bool__(self) -> bool:
        return bool(self.rows or self.files or self.artifacts or self.end)


def _missing(content: RunContent, arrived: Arrived) -> _Missing:
    committed = arrived.artifacts
    artifacts = [key for key in content.artifacts if committed is not None and key not in committed]
    if committed is None and not arrived.exists:
        artifacts = list(content.artifacts)
    return _Missing(
        rows=[step for step in content.rows if step > arrived.last_step],
        files=[name for name in content.files if name not in arrived.files],
        artifacts=artifacts,
        lost=_lost(content, arrived),
        gap=sum(step <= arrived.last_step for step in content.rows) - arrived.rows,
        end=not arrived.exists or (content.exit_code == 0 and arrived.state in ("running", "crashed", "failed")),
    )


def _lost(content: RunContent, arrived: Arrived) -> list[str]:
    """Return the artifacts that W&B lacks, whose files are gone, and which were not made anew from the journal."""
    if arrived.artifacts is None:
        return []
    names = {name for name, _ in (*content.artifacts, *arrived.artifacts)}
    results, replaced = content.results(arrived.artifacts), content.replaced_tables()
    return [
        name
        for (name, _), artifact in content.lost.items()
        if name not in (results if artifact.type == "model" and is_result(artifact) else names)
        and artifact.client_id not in replaced
    ]


def _upload_missing(
    content: RunContent, folder: Path, changes: Mapping[str, Any], arrived: Arrived, is_corrected: bool, timeout: float
) -> tuple[set[int], Arrived]:
    """Upload what is missing, again where it has not arrived; return the steps that were sent and what W&B has then.

    Raises:
        TrackingError: W&B lacks something in the end.
    """
    missing, sent, why = _missing(content, arrived), set[int](), ""
    for number in range(TRIES):
        if not missing and not (is_corrected and number == 0):
            break
        last = content.rows.get(arrived.last_step)
        why = upload(
            content,
            changes["run_id"],
            folder / "wandb",
            rows=missing.rows,
            files=missing.files,
            artifacts=missing.artifacts,
            after=last.time() if last is not None else 0.0,
            changes=changes,
            timeout=timeout,
        )
        before, arrived = arrived, _wait_for(content, changes, arrived)
        sent |= {step for step in missing.rows if step <= arrived.last_step}
        missing = _missing(content, arrived)
        if arrived == before:  # nothing at all has arrived: trying again would only take time
            break
    _check_complete(content, folder, arrived, missing, why)
    return sent, arrived


def _wait_for(content: RunContent, changes: Mapping[str, Any], before: Arrived) -> Arrived:
    """Return what W&B has once it has everything, or shows nothing new any more."""
    began, latest, pause = time.monotonic(), before, FIRST_PAUSE
    while True:
        with wandb_api_errors():
            arrived = look_up_arrived(
                changes["entity"], changes["project"], changes["run_id"], content.artifact_types()
            )
        if not _missing(content, arrived) or (time.monotonic() - began > SETTLING and arrived == latest):
            return arrived
        if arrived != latest:
            began, latest = time.monotonic(), arrived
        time.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE)


def _check_complete(content: RunContent, folder: Path, arrived: Arrived, missing: _Missing, why: str) -> None:
    """Raise TrackingError where W&B lacks rows, files or artifacts."""
    quoted = shlex.quote(str(folder))
    anew = f"send all of them as a new W&B run with: harness sync --anew {quoted}"
    if missing.gap > 0:
        raise TrackingError(
            f"W&B has {arrived.rows} of {len(content.rows)} steps of {folder} and accepts none before its latest; {anew}"
        )
    if missing.lost:
        raise TrackingError(
            f"W&B lacks {len(missing.lost)} artifacts of {folder} ({missing.lost[0]}) that W&B's folder has lost; {anew}"
        )
    if not missing:
        return
    counts: dict[str, Sequence[Any]] = {
        "steps": missing.rows,
        "files": missing.files,
        "artifacts": [name for name, _ in missing.artifacts],
    }
    parts = [
        f"{len(items)} {kind} ({items[0]}{', ...' if len(items) > 1 else ''})"
        for kind, items in counts.items()
        if items
    ]
    raise TrackingError(
        f"W&B lacks {', '.join(parts) or 'the end'} of {folder}{f': {why}' if why else ''}; "
        f"the same command sends them again, with more patience by --timeout: harness sync --timeout 600 {quoted}"
    )
