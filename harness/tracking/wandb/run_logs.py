"""The content of a run in W&B's own logs: those of all its W&B run directories, in the order of their steps.

A resumed run, and one whose W&B process died, has several; their names and times come from clocks that may disagree, so
what they contain decides. A log may come from elsewhere: only plain files of the run directory are uploaded, whatever
paths it names.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.tracking.lineage import RUN_ALIAS, run_alias
from harness.tracking.wandb.offline_log import name_of, read_log, step_of
from harness.utils.files import is_plain_path, link_inside, read_regular
from harness.utils.plain import json_text, parse_json

# Kinds of records beside the run, the rows, the files, the artifacts and the exit that are uploaded as they are. Others
# (a request to download, a folder of TensorBoard files) would read or write whatever a log names.
SETUP = ("config", "metric", "telemetry")
EVENTS = ("stats", "output", "output_raw", "output_logger", "alert", "use_artifact")
RUNTIMES = ("_runtime", "_wandb/runtime")

ArtifactKey = tuple[str, str]


@dataclass
class Row:
    """One row of the history, with the changes of the summary that were made with it."""

    history: Any
    summaries: list[Any]

    @property
    def step(self) -> int:
        return step_of(self.history)

    def values(self) -> dict[str, str]:
        """Return the name of each item, and its value as JSON."""
        return {name_of(item): item.value_json for item in self.history.item}

    def time(self) -> float:
        """Return when the row was made, seconds since 1970; 0 where it does not say."""
        return json_number(self.values().get("_timestamp"))

    def media(self) -> set[str]:
        """Return the names of the files of its images and tables."""
        return {name for value in self.values().values() for name in re.findall(r'"(media/[^"\\]+)"', value)}

    def tables(self) -> set[str]:
        """Return the client ids of the artifacts that hold its tables."""
        ids = (re.findall(r"wandb-client-artifact://(\w+)/", value) for value in self.values().values())
        return {each for some in ids for each in some}


@dataclass
class RunContent:
    """A whole run, as it is uploaded.

    Attributes:
        run: the record that names and describes it; None where there is no log.
        candidates: step -> its rows in the order of the logs; `choose_rows` chooses among them.
        rows: step -> row, in increasing order.
        files: name in W&B -> file on disk.
        artifacts: (name, digest) -> record, with the paths that its files have now.
        lost: artifacts whose files are no longer there: W&B removes them after the upload.
        manifests: (name, digest) -> the manifest of an artifact of so many files that W&B keeps it in a file.
        exit_code: None where no log has an end.
    """

    run: Any = None
    setup: list[Any] = field(default_factory=list)
    environment: Any = None
    candidates: dict[int, list[Row]] = field(default_factory=dict)
    rows: dict[int, Row] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    artifacts: dict[ArtifactKey, Any] = field(default_factory=dict)
    lost: dict[ArtifactKey, Any] = field(default_factory=dict)
    manifests: dict[ArtifactKey, dict[str, Any]] = field(default_factory=dict)
    links: list[Any] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    tail: list[Any] = field(default_factory=list)
    exit_code: int | None = None

    def choose_rows(self, committed: Collection[ArtifactKey], last_step: int) -> None:
        """Choose one row of each step: the first whose files and tables are all there; the journal has the others.

        Args:
            committed: the artifacts that W&B has.
            last_step: the last that W&B has; rows up to it stay as they are.
        """
        known = [*self.artifacts.values(), *(artifact for key, artifact in self.lost.items() if key in committed)]
        ids = {each for artifact in known for each in (artifact.client_id, artifact.sequence_client_id)}
        self.rows = {}
        for step, rows in sorted(self.candidates.items()):
            whole = [row for row in rows if row.media() <= self.files.keys() and row.tables() <= ids]
            if whole or step <= last_step:
                self.rows[step] = (whole or rows)[0]

    def artifact_types(self) -> dict[ArtifactKey, str]:
        """Return the type of each artifact, those whose files are gone included."""
        return {key: str(artifact.type) for key, artifact in {**self.lost, **self.artifacts}.items()}

    def results(self, committed: Collection[ArtifactKey]) -> dict[str, Any]:
        """Return name -> record of each model of the result that W&B has or that can be sent; no interim version."""
        kept = {key: artifact for key, artifact in self.lost.items() if key in committed}
        return {name: artifact for (name, _), artifact in {**kept, **self.artifacts}.items() if is_result(artifact)}

    def replaced_tables(self) -> set[str]:
        """Return the client ids of tables that no row leads to any more: each of their rows was made anew."""
        used = {each for row in self.rows.values() for each in row.tables()}
        former: dict[str, set[int]] = {}
        for step, rows in self.candidates.items():
            for each in {each for row in rows for each in row.tables()}:
                former.setdefault(each, set()).add(step)
        return {each for each, steps in former.items() if each not in used and steps <= self.rows.keys()}

    def files_of(self, key: ArtifactKey) -> list[Path]:
        """Return the files of an artifact that are uploaded."""
        if key in self.manifests:
            paths = [entry.get("local_path") for entry in self.manifests[key]["contents"].values()]
        else:
            paths = [entry.local_path for entry in self.artifacts[key].manifest.contents]
        return [Path(path) for path in paths if path]

    def bytes_of(self, files: Iterable[str], artifacts: Iterable[ArtifactKey]) -> int:
        """Return how many bytes some files and artifacts have."""
        paths = [self.files[name] for name in files]
        paths += [path for key in artifacts for path in self.files_of(key)]
        return sum(path.stat().st_size for path in paths if path.is_file())


def is_result(artifact: Any) -> bool:
    """Return whether the record of an artifact is that of the run's result, whose alias names the run."""
    return any(alias.startswith(RUN_ALIAS) for alias in artifact.aliases)


def json_number(text: str | None) -> float:
    """Return a number in JSON; 0 where it is none."""
    try:
        return float(parse_json(text or "0"))
    except (TypeError, ValueError, OverflowError):
        return 0.0


def load(folder: Path) -> RunContent:
    """Return what the logs under `folder`/wandb contain together.

    Where two have a row of the same step, the earlier log's counts, as in W&B; `choose_rows` has to be called.
    """
    content = RunContent()
    logs = [(log, list(read_log(log))) for log in log_files(folder)]
    logs = [(log, records) for log, records in logs if any(record.HasField("run") for record in records)]
    for log, records in sorted(logs, key=lambda pair: _order(pair[1])):
        _Reader(content, folder, log.parent / "files").add(records)
    return content


def log_files(folder: Path) -> list[Path]:
    """Return W&B's logs in a run directory, by name; none through a link, such as `latest-run`."""
    return [
        log
        for log in sorted((folder / "wandb").glob("*run-*/run-*.wandb"))
        if not link_inside(folder, log) and log.is_file()
    ]


def _order(records: list[Any]) -> tuple[int, float]:
    """Return the first step of a log (those without rows come first), then when its run was started."""
    steps = [step_of(record.history) for record in records if record.HasField("history")]
    started = next(record.run.start_time for record in records if record.HasField("run"))
    return min(steps, default=-1), started.seconds + started.nanos / 1e9


class _Reader:
    """Add the records of one log to the content of the run."""

    def __init__(self, content: RunContent, root: Path, files: Path) -> None:
        self.content, self.root, self.files = content, root, files
        self.pending: list[Any] = []  # changes of the summary since the last row
        self.environment: Any = None
        self.offset: float | None = None  # seconds of the run before this log, which its runtimes leave out
        self.runtime = max(
            (json_number(rows[-1].values().get("_runtime")) for rows in content.candidates.values()), default=0.0
        )

    def add(self, records: list[Any]) -> None:
        content = self.content
        content.exit_code = None
        self.pending = content.tail
        for record in records:
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self._add_run(record.run)
            elif kind in SETUP:
                content.setup.append(record)
            elif kind in EVENTS:
                content.events.append(record)
            elif kind == "environment":
                self._add_environment(record.environment)
            elif kind == "summary":
                self._shift(record.summary.update)
                self.pending.append(record)
            elif kind == "history":
                self._shift(record.history.item)
                row = Row(record.history, self.pending)
                content.candidates.setdefault(row.step, []).append(row)
                self.pending = []
            elif kind == "files":
                self._add_files(record.files)
            elif kind == "artifact":
                self._add_artifact(record.artifact)
            elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
                self._add_artifact(record.request.log_artifact.artifact)
            elif kind == "request" and record.request.WhichOneof("request_type") == "link_artifact":
                content.links.append(record)
            elif kind == "exit":
                content.exit_code = int(record.exit.exit_code)
        content.tail = self.pending

    def _add_run(self, run: Any) -> None:
        """Keep the first record of the run, and of later ones what they change: W&B has the state of the latest."""
        if self.content.run is None:
            self.content.run = type(run)()
            self.content.run.CopyFrom(run)
            return
        mine, started = self.content.run, type(run.start_time)()
        started.CopyFrom(mine.start_time)
        if run.tags:
            del mine.tags[:]
        mine.MergeFrom(run)
        mine.start_time.CopyFrom(started)

    def _add_environment(self, environment: Any) -> None:
        """Join the parts of one process's environment; that of a later process replaces it."""
        if self.environment is None:
            self.environment = self.content.environment = type(environment)()
        self.environment.MergeFrom(environment)

    def _shift(self, items: Iterable[Any]) -> None:
        """Count the runtime from the start of the run: a resumed offline run begins at zero again."""
        for item in items:
            if name_of(item) in RUNTIMES:
                value = json_number(item.value_json)
                if self.offset is None:
                    self.offset = self.runtime if value < self.runtime else 0.0
                if self.offset:
                    total = value + self.offset
                    item.value_json = json_text(int(total) if isinstance(parse_json(item.value_json), int) else total)

    def _add_files(self, record: Any) -> None:
        for file in record.files:
            path = self.files / file.path
            if is_plain_path(file.path) and not link_inside(self.root, path) and path.is_file():
                self.content.files[file.path] = path

    def _add_artifact(self, artifact: Any) -> None:
        """Keep an artifact with the paths that its files have now, apart from those of which a file is lost."""
        kept = type(artifact)()
        kept.CopyFrom(artifact)
        key = (str(kept.name), str(kept.digest))
        former = self.content.artifacts.get(key)
        if former is not None and is_result(former) and not is_result(kept):
            return  # of an epoch that has become the result: W&B has one version of equal content
        kind = self.content.artifacts if self._find_files(key, kept.manifest) else self.content.lost
        kind[key] = kept

    def _find_files(self, key: ArtifactKey, manifest: Any) -> bool:
        if manifest.manifest_file_path:
            path = find_staged(self.root, manifest.manifest_file_path)
            listed = _read_manifest(path)
            if path is None or listed is None or not self._relocate(listed.get("contents")):
                return False
            self.content.manifests[key] = listed
        for entry in manifest.contents:
            if entry.local_path:
                staged = find_staged(self.root, entry.local_path)
                if staged is None:
                    return False
                entry.local_path = str(staged)
        return True

    def _relocate(self, entries: Any) -> bool:
        """Put the present paths into the entries of a manifest; False where a file is lost."""
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            return False
        for entry in entries.values():
            if entry.get("local_path"):
                staged = find_staged(self.root, str(entry["local_path"]))
                if staged is None:
                    return False
                entry["local_path"] = str(staged)
        return True


def _read_manifest(path: Path | None) -> dict[str, Any] | None:
    try:
        listed = parse_json(read_regular(path)) if path is not None else None
    except (OSError, ValueError):
        return None
    return listed if isinstance(listed, dict) else None


def find_staged(root: Path, path: str) -> Path | None:
    """Return where a file lies that W&B has staged for an artifact; None where it is lost.

    W&B stores the absolute path of the machine on which the run was made. The file is looked for under the run
    directory, or under WANDB_DATA_DIR, and nowhere else.
    """
    parts = [part for part in re.split(r"[/\\]", path) if part]
    candidates: list[tuple[Path, Path]] = []
    if "wandb" in parts:
        last = len(parts) - 1 - parts[::-1].index("wandb")
        candidates.append((root, root.joinpath("wandb", *parts[last + 1 :])))
    for folder in (root, *([Path(os.environ["WANDB_DATA_DIR"])] if os.environ.get("WANDB_DATA_DIR") else [])):
        if Path(path).is_relative_to(folder):
            candidates.append((folder, Path(path)))
    for folder, candidate in candidates:
        inner = candidate.relative_to(folder).as_posix()
        if is_plain_path(inner) and not link_inside(folder, candidate) and _is_regular(candidate):
            return candidate
    return None


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def select(
    content: RunContent,
    *,
    rows: Iterable[int],
    files: Iterable[str],
    artifacts: Iterable[ArtifactKey],
    after: float,
    changes: Mapping[str, Any],
) -> Iterator[Any]:
    """Yield the records of a log that uploads a part of a run, and always the whole of its settings and summary.

    Args:
        rows: the steps to upload.
        after: seconds since 1970; system metrics and console lines before it are in W&B.
        changes: fields of the run's record to replace; an empty list removes all tags. Its artifacts follow it: each
            names its run, project and entity as well, and the alias of the result names the run.
    """
    from wandb.proto import wandb_internal_pb2 as protobuf

    run = protobuf.RunRecord()
    run.CopyFrom(content.run)
    for name, value in changes.items():
        run.ClearField(name)
        if isinstance(value, list | tuple):
            getattr(run, name).extend(value)
        elif value:
            setattr(run, name, value)
    run.resume = True  # rows are added to those that W&B has
    yield protobuf.Record(run=run)
    if content.environment is not None:
        yield protobuf.Record(environment=content.environment)
    yield from content.setup
    if files := [protobuf.FilesItem(path=name, type=_file_type(protobuf, name)) for name in files]:
        yield protobuf.Record(files=protobuf.FilesRecord(files=files))
    for key in artifacts:
        artifact = protobuf.ArtifactRecord()
        artifact.CopyFrom(content.artifacts[key])
        artifact.run_id, artifact.project, artifact.entity = run.run_id, run.project, run.entity
        if is_result(artifact):
            others = [alias for alias in artifact.aliases if not alias.startswith(RUN_ALIAS)]
            artifact.aliases[:] = [*others, run_alias(run.run_id)]
        yield protobuf.Record(artifact=artifact)
    steps = set(rows)
    for step, row in content.rows.items():
        yield from row.summaries
        if step in steps:
            yield protobuf.Record(history=row.history)
    yield from (record for record in content.events if _event_time(record, after) >= after)
    yield from content.tail
    yield protobuf.Record(exit=protobuf.RunExitRecord(exit_code=content.exit_code or 0))


def _file_type(protobuf: Any, name: str) -> Any:
    kinds = protobuf.FilesItem.FileType
    return kinds.Value("MEDIA") if name.startswith("media/") else kinds.Value("WANDB")


def _event_time(record: Any, default: float) -> float:
    """Return when a system metric or a console line was made; just before `default` where that is not known."""
    event = getattr(record, record.WhichOneof("record_type"))
    if "timestamp" not in event.DESCRIPTOR.fields_by_name:
        return default if default == 0 else -1.0
    return float(event.timestamp.seconds + event.timestamp.nanos / 1e9)
