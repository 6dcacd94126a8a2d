"""Write what W&B's own logs lack of a run from its journal, as one more log that says where and when the run was made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.config.settings import Config
from harness.tracking.journal import JournalContents
from harness.tracking.records import Artifact, Record, Value
from harness.tracking.run_files import DIFF
from harness.tracking.uploadable import valid_time
from harness.tracking.wandb import init
from harness.tracking.wandb.client import changed_environment
from harness.tracking.wandb.offline_log import encode_log, name_of, read_log
from harness.tracking.wandb.rows import rows
from harness.tracking.wandb.run_logs import ArtifactKey, Row, RunContent, json_number, log_files
from harness.tracking.wandb.tracker import WandbTracker
from harness.tracking.wandb.values import artifact_name
from harness.tracking.wandb.variables import OF_ANOTHER_RUN
from harness.utils.files import write_atomically
from harness.utils.plain import json_text, sub_mapping

# The machine that uploads is not the one that the run was made on.
NOT_RECORDED = {
    "WANDB_X_DISABLE_STATS": "true",
    "WANDB_X_DISABLE_MACHINE_INFO": "true",
    "WANDB_X_SAVE_REQUIREMENTS": "false",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_SAVE_CODE": None,
    **dict.fromkeys(OF_ANOTHER_RUN),
}
# The fields of W&B's record of a run that say whose and which it is.
IDENTITY = ("project", "entity", "display_name", "job_type", "run_group", "tags", "notes", "host", "sweep_id")
MAX_COUNT = 2**31 - 1


def lacking_rows(config: Config, journal: JournalContents, content: RunContent) -> list[tuple[Record, set[int]]]:
    """Return the records of which W&B's logs lack rows, each with the steps of these rows.

    Of the final record the names decide: in runs of earlier versions its values may be in the row of the last epoch.
    """
    result = []
    for record in journal.records:
        steps = {step for step, _ in journal_rows(config, journal, record) if step not in content.rows}
        if steps and not (record.kind == "final" and _has_values(content, record)):
            result.append((record, steps))
    return result


def journal_rows(config: Config, journal: JournalContents, record: Record) -> list[tuple[int, dict[str, Value]]]:
    """Return the rows of a record that the run has sent to W&B: a part of it that was resumed may have sent fewer."""
    return list(rows(record, config.log_every, journal.intervals))


def _has_values(content: RunContent, record: Record) -> bool:
    """Return whether rows from the step of a record on have all of its values, under names that begin with theirs."""
    names = {name for step, row in content.rows.items() if step >= record.step for name in row.values()}
    parts = {part for name in names for part in (name, *(name[:i] for i, letter in enumerate(name) if letter == "/"))}
    return set(record.values) <= parts


def lacking_artifacts(
    journal: JournalContents, content: RunContent, committed: Collection[ArtifactKey]
) -> list[Artifact]:
    """Return the artifacts of the journal that neither W&B nor its logs have.

    Interim versions have the name of the model of the result, which is another artifact.
    """
    names = {name for name, _ in (*content.artifacts, *committed)}
    results = content.results(committed)
    return [
        artifact
        for artifact in journal.artifacts
        if artifact_name(artifact) not in (results if artifact.kind == "model" and not artifact.is_input else names)
        and artifact.is_complete
    ]


def run_identity(config: Config, folder: Path, target: Mapping[str, Any], known: Any) -> Any:
    """Return a record of the run with its id and the fields of `IDENTITY`: as in its own logs, else by its settings.

    Args:
        target: project, entity and run id under which it is uploaded.
        known: the record in its logs; None where there is none.
    """
    from wandb.proto import wandb_internal_pb2 as protobuf

    run = protobuf.RunRecord(run_id=target["run_id"])
    if known is None:
        run.project, run.entity = target["project"], target["entity"] or ""
        run.display_name, run.run_group = config.name or folder.name, config.group
        run.job_type, run.notes = config.job_type, config.notes
        run.tags.extend(config.tags)
    else:
        _copy_identity(known, run)
    return run


def _copy_identity(source: Any, run: Any) -> None:
    for name in IDENTITY:
        run.ClearField(name)
        if name == "tags":
            run.tags.extend(source.tags)
        else:
            setattr(run, name, getattr(source, name))


def add_log(
    config: Config,
    folder: Path,
    identity: Any,
    journal: JournalContents,
    records: Iterable[tuple[Record, set[int]]],
    artifacts: Iterable[Artifact],
    notify: Callable[[str], None],
) -> None:
    """Write rows and artifacts as a further offline run directory.

    Args:
        identity: by `run_identity`; the log changes nothing of it.
        records: each with the steps of the rows to write; in increasing order.
    """
    before = set(log_files(folder))
    with changed_environment(**NOT_RECORDED):
        tracker = init.start(
            config.replace(wandb="offline"),
            folder,
            run_name=identity.display_name or folder.name,
            run_id=identity.run_id,
            extra=journal.facts,
            first_step=0,
            link="",
            notify=notify,
        )
        assert isinstance(tracker, WandbTracker)  # offline is never disabled
        try:
            for record, steps in records:
                tracker.rows(record, steps)
            for artifact in artifacts:
                tracker.artifact(artifact)
            if not before and (folder / DIFF).is_file():
                tracker.file(folder / DIFF)
            tracker.summary(journal.summary)
        finally:
            tracker.finish(*journal.end)
    for log in set(log_files(folder)) - before:
        _describe(log, sub_mapping(journal.header, "process"), identity)


def _describe(log: Path, process: Mapping[str, Any], identity: Any) -> None:
    """Put the facts of the run's own process in place of those of this one: host, command, start, seconds of each row."""
    from wandb.proto import wandb_internal_pb2 as protobuf

    records = list(read_log(log))
    times = [valid_time(Row(record.history, []).time()) for record in records if record.HasField("history")]
    started = valid_time(process.get("started")) or min(times, default=0.0)
    changed = []
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            _describe_run(record.run, process, started, identity)
        elif kind == "history":
            _set_runtime(record.history.item, started)
        elif kind == "summary":
            _set_runtime(record.summary.update, started, max(times, default=0.0))
        if kind in ("environment", "stats"):
            continue
        changed.append(record.SerializeToString())
        if kind == "run" and process:
            changed.append(protobuf.Record(environment=_environment(protobuf, process, started)).SerializeToString())
    write_atomically(log, encode_log(changed))


def _set_runtime(items: Iterable[Any], started: float, time: float = 0.0) -> None:
    """Set the seconds since the start, by the time that a row has; `time` where there is none."""
    times = [valid_time(json_number(item.value_json)) for item in items if name_of(item) == "_timestamp"]
    seconds = max(0.0, round(max(times, default=time) - started, 3))
    for item in items:
        if name_of(item) == "_runtime":
            item.value_json = json_text(seconds)
        elif name_of(item) == "_wandb/runtime":
            item.value_json = json_text(int(seconds))


def _text(value: Any) -> str:
    """Return a text in characters that W&B's protocol can express; empty where a value is none."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""


def _describe_run(run: Any, process: Mapping[str, Any], started: float, identity: Any) -> None:
    git = sub_mapping(process, "git")
    _copy_identity(identity, run)
    run.host = identity.host or _text(process.get("host"))
    run.ClearField("git")
    for name, value in (("commit", _text(git.get("commit"))), ("remote_url", _text(git.get("remote")))):
        if value:
            setattr(run.git, name, value)
    if started:
        run.start_time.FromMicroseconds(int(started * 1e6))


def _environment(protobuf: Any, process: Mapping[str, Any], started: float) -> Any:
    """Return the environment of the run's process as W&B describes it."""
    environment = protobuf.EnvironmentRecord()
    for name in ("os", "python", "program", "root", "host", "executable"):
        if text := _text(process.get(name)):
            setattr(environment, name, text)
    if isinstance(process.get("args"), list):
        environment.args.extend(_text(str(argument)) for argument in process["args"])
    count = process.get("cpu_count")
    if isinstance(count, int) and 0 < count <= MAX_COUNT:
        environment.cpu_count = count
    git = sub_mapping(process, "git")
    if commit := _text(git.get("commit")):
        environment.git.commit = commit
    if remote := _text(git.get("remote")):
        environment.git.remote_url = remote
    if started:
        environment.started_at.FromMicroseconds(int(started * 1e6))
    return environment
