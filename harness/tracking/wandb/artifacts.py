"""Send artifacts to W&B: the versions that a run makes, and those that it uses.

The `wandb` module is passed in with the session, so that importing this stays cheap.
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

from harness.tracking.lineage import BEST, RUN_ALIAS, leads, run_alias
from harness.tracking.records import Artifact
from harness.tracking.wandb.client import reason
from harness.tracking.wandb.session import Session
from harness.tracking.wandb.values import artifact_name
from harness.utils.plain import to_plain

REQUEST_TIMEOUT = 10  # seconds that a question to the server may take
REGISTRY = "wandb-registry-"  # what the project of a registry begins with

log = logging.getLogger(__name__)


def send_artifact(session: Session, run: Any, artifact: Artifact) -> None:
    """Log an artifact as an output of a run, or declare it as an input.

    Files of an output are copied, so they may change afterwards; those of an input may not.
    """
    if artifact.is_input:
        _declare_input(session, run, artifact)
    elif artifact.kind == "code":  # a type that W&B reserves
        _log_code(session, run, artifact)
    else:
        _log_output(session, run, artifact)


def needs_link(session: Session, artifact: Artifact) -> bool:
    """Return whether an artifact is the model that `link` is about: that of the result."""
    return bool(session.link) and _is_result(artifact)


def _is_result(artifact: Artifact) -> bool:
    return artifact.kind == "model" and not (artifact.is_input or artifact.is_interim)


def _log_output(session: Session, run: Any, artifact: Artifact) -> None:
    logged = _make(session, artifact)
    for inside, path in artifact.files.items():
        logged.add_file(str(path), name=inside, skip_cache=True)
    if artifact.keep_days:
        logged.ttl = timedelta(days=artifact.keep_days)
    aliases = [alias for alias in artifact.aliases if alias != BEST]
    if BEST in artifact.aliases and _is_best(session, run, logged.name, artifact.metadata):
        aliases.append(BEST)
    if _is_result(artifact):
        aliases.append(run_alias(run.id))
    with session.limited():
        run.log_artifact(logged, aliases=aliases)
    if _is_result(artifact):
        session.result = (logged, dataclasses.replace(artifact, aliases=tuple(aliases)))
    if needs_link(session, artifact):
        _link(session, run, logged)


def _make(session: Session, artifact: Artifact) -> Any:
    """Return W&B's artifact with the references and metadata, without the files."""
    made = session.wandb.Artifact(artifact_name(artifact), type=artifact.kind, metadata=dict(artifact.metadata))
    if artifact.references:
        from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

        # Not `add_reference`: it has no way to give the checksum, reads every file to compute one, and without one
        # makes an entry for every file of a folder, whose checksum is that of its path on this machine.
        for inside, reference in artifact.references.items():
            made.manifest.add_entry(ArtifactManifestEntry(path=inside, ref=reference.uri, digest=reference.checksum))
    return made


def _declare_input(session: Session, run: Any, artifact: Artifact) -> None:
    """Declare that the run uses an artifact: the version in W&B where there is one, else this content.

    W&B finds a version of equal content by its checksum, and uploads nothing then.
    """
    if session.online and artifact.version:
        stored = _full_path(run, artifact.version)
        try:
            version = _within(session, lambda: _api(session, run).artifact(stored, type=artifact.kind))
            _within(session, lambda: run.use_artifact(version))
            return
        except Exception as error:  # noqa: BLE001 - W&B raises its own, pydantic's and the system's alike
            log.debug("W&B has no %s: %s", artifact.version, reason(error))
    made = _make(session, artifact)
    # A model stays where it is; a small file is copied to W&B's own, with which it can be moved and uploaded.
    policy = "immutable" if artifact.kind == "model" else "mutable"
    for inside, path in artifact.files.items():
        made.add_file(str(Path(path).absolute()), name=inside, skip_cache=True, policy=policy)
    made.finalize()
    # `run.use_artifact` refuses to work offline, waits without a limit for the upload, and moves the alias `latest`. This
    # is what it calls: W&B's process notes the use once the artifact is there, which `wandb sync` does later.
    publish = getattr(run._interface, "publish_artifact", None)
    if publish is not None:
        publish(run, made, [], is_user_created=True, use_after_commit=True)
    elif session.online:
        _within(session, lambda: run.use_artifact(made))


def _is_best(session: Session, run: Any, name: str, metadata: Mapping[str, Any]) -> bool:
    """Return whether a version takes over the alias `best` of its collection; offline nobody knows, and it does not."""
    if not session.online:
        return False
    try:
        return bool(_within(session, lambda: _leads_collection(_api(session, run), _full_path(run, name), metadata)))
    except ValueError as error:
        log.debug("no best version of %s: %s", name, error)
        return False


def _leads_collection(api: Any, path: str, metadata: Mapping[str, Any]) -> bool:
    """Return whether a version is better than the one of its collection that has the alias `best`, or the first to have it."""
    try:
        former = api.artifact(f"{path}:{BEST}")
    except Exception as error:  # noqa: BLE001 - as above
        log.debug("no best version of %s: %s", path, reason(error))
        return "not found" in str(error)
    return leads(metadata, former.metadata)


def complete_result(session: Session) -> None:
    """Make the version that W&B has of the model of the result what was logged, when all is uploaded."""
    if session.result is None or not session.online:
        return
    logged, artifact = session.result
    try:
        version = _within(session, lambda: logged.wait(timeout=int(session.finish_timeout)))
    except Exception as error:  # noqa: BLE001 - as above
        log.debug("W&B does not show the version of %s: %s", artifact.name, reason(error))
        return
    if not _describe_result(version, artifact, session.run_id):
        return
    try:
        _within(session, version.save)
    except Exception as error:  # noqa: BLE001 - as above
        session.notify(
            f"W&B had the model of the result already, from an epoch during a training, and may delete it ({reason(error)}). "
            f"In W&B, remove the TTL of {version.name}"
        )


def _describe_result(version: Any, model: Artifact, run_id: str) -> bool:
    """Give a version the aliases and the metadata of a result, and no date of its deletion; return whether that changes it.

    W&B makes no new version of content that it has: it may have been logged before, as the model of an epoch. Where
    it is the result of another run, that one's metadata stay.
    """
    own, metadata = run_alias(run_id), to_plain(model.metadata)
    wanted = [own]
    is_of_another = any(alias.startswith(RUN_ALIAS) and alias != own for alias in version.aliases)
    is_changed = not is_of_another and version.metadata != metadata
    if is_changed:
        from wandb.sdk.artifacts.artifact_ttl import ArtifactTTL

        version.metadata, version.ttl = metadata, ArtifactTTL.INHERIT
        wanted += model.aliases
    lacking = [alias for alias in dict.fromkeys(wanted) if alias not in version.aliases]
    version.aliases += lacking
    return is_changed or bool(lacking)


def complete_model(api: Any, path: str, model: Artifact, run_id: str, link: str) -> None:
    """Do for an uploaded model what W&B does only online: make it the result, `best` if it leads, and link it.

    Args:
        path: of the version, ENTITY/PROJECT/NAME:ALIAS.
        link: REGISTRY/COLLECTION; empty: none.

    Raises:
        Exception: W&B's own; the model is not linked.
    """
    version = api.artifact(path)
    others = tuple(alias for alias in model.aliases if alias != BEST)
    is_changed = _describe_result(version, dataclasses.replace(model, aliases=others), run_id)
    is_candidate = BEST in model.aliases and BEST not in version.aliases
    if is_candidate and _leads_collection(api, path.partition(":")[0], model.metadata):
        version.aliases.append(BEST)
        is_changed = True
    if is_changed:
        version.save()
    if link:
        version.link(_registry_path(link))


def _registry_path(link: str) -> str:
    registry, collection = link.split("/")
    return f"{REGISTRY}{registry.removeprefix(REGISTRY)}/{collection}"


def _link(session: Session, run: Any, logged: Any) -> None:
    """Link a logged artifact to the collection of a registry; report why where that is not possible."""
    path = _registry_path(session.link)
    why = "W&B links only online"
    if session.online:
        try:
            logged.wait(timeout=session.finish_timeout)
            _within(session, lambda: run.link_artifact(logged, path))
            return
        except Exception as error:  # noqa: BLE001 - as above
            why = reason(error)
    session.notify(f"The model is not linked to {session.link} ({why}). Link it later with: {link_command(session)}")


def link_command(session: Session) -> str:
    """Return the command that uploads what W&B lacks and links the model."""
    return shlex.join(["harness", "sync", str(session.folder), "--link", session.link])


def _within(session: Session, call: Callable[[], Any]) -> Any:
    """Return the result of a call that asks the server; W&B would wait for some answers without a limit.

    Raises:
        ValueError: it takes longer than `finish_timeout`. W&B's process itself works: only this call has failed.
    """
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            result.set_exception(error)

    threading.Thread(target=run, name="wandb-request", daemon=True).start()
    try:
        return result.result(session.finish_timeout)
    except TimeoutError:
        raise ValueError(f"no answer within {session.finish_timeout:g} s") from None


def _api(session: Session, run: Any) -> Any:
    return session.wandb.Api(overrides={"entity": run.entity, "project": run.project}, timeout=REQUEST_TIMEOUT)


def _full_path(run: Any, path: str) -> str:
    """Return ENTITY/PROJECT/NAME:ALIAS of a path that may lack its first parts."""
    defaults = [run.entity, run.project][: 2 - path.count("/")]
    return "/".join([*defaults, path])


def _log_code(session: Session, run: Any, artifact: Artifact) -> None:
    with tempfile.TemporaryDirectory(dir=session.files) as folder:
        for inside, path in artifact.files.items():
            Path(folder, inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, Path(folder, inside))
        run.log_code(
            folder,
            name=artifact_name(artifact),
            include_fn=lambda path, root=folder: True,
            exclude_fn=lambda path, root=folder: False,
        )
