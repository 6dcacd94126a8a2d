"""Start a run in W&B: mode, API key, arguments of `wandb.init`. W&B is imported only here and when it is needed.

Under `wandb=auto` no failure of W&B ends a run; whatever W&B misses is in the journal.
"""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import shlex
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from harness.config.settings import WANDB, Config, setting_fields
from harness.tracking.lineage import log_model_mode
from harness.tracking.records import Artifact, Record
from harness.tracking.tracker import NullTracker
from harness.tracking.wandb.client import changed_environment, in_sweep, in_use, missing_service, reason, set_up
from harness.tracking.wandb.rows import last_row_step
from harness.tracking.wandb.session import Session, known_run_id
from harness.tracking.wandb.tracker import WandbTracker
from harness.tracking.wandb.variables import environment_changes, unused_lines
from harness.utils.errors import TrackingError, UsageError, did_you_mean

Mode: TypeAlias = Literal["auto", "online", "offline", "disabled"]

MODES = ("online", "offline", "disabled", "dryrun", "run", "shared", "")  # the values that WANDB_MODE may have

log = logging.getLogger(__name__)


def start(
    config: Config,
    folder: Path,
    *,
    run_name: str,
    run_id: str | None = None,
    resumed_step: int | None = None,
    earlier: Iterable[Record] = (),
    job_type: str | None = None,
    code: Mapping[str, Path] | None = None,
    extra: Mapping[str, Any] | None = None,
    link: str | None = None,
    on_stop: Callable[[], None] | None = None,
    first_step: int | None = None,
    notify: Callable[[str], None] = log.warning,
) -> WandbTracker | NullTracker:
    """Return a tracker that writes to W&B in the mode of `config.wandb`, where `config.tracker` names it, with W&B's own files under `folder`/wandb.

    Args:
        run_id: letters, digits and dashes, 64 at most; when None, the id that the directory's run had before, or a
            new one. In a sweep W&B chooses the id.
        resumed_step: the step from which a run is resumed.
        earlier: the journal's records of a resumed run; W&B is sent those that it does not have.
        job_type: `config.job_type` when None.
        code: source files to keep, when `config.log_code` is on: name -> file.
        extra: plain values beside the settings in W&B's config: the environment, facts of the data.
        link: registry collection that gets the model; `config.link` when None.
        on_stop: called, in another thread, when somebody stops the run in W&B; when None, W&B sends a SIGINT.
        first_step: rows before it are not sent; when None, those that W&B has already.
        notify: receives each line for the user.

    Raises:
        TrackingError: `wandb` is `online` or `offline` by name, and W&B is unavailable in that mode.
        UsageError: a run directory as the current one holds settings of W&B.
    """
    if WANDB not in config.tracker or (mode := resolve_mode(config.wandb)) == "disabled":
        return NullTracker()
    try:
        import wandb
    except ImportError as error:
        if config.wandb != "auto":
            raise TrackingError(
                f"wandb={config.wandb}, but W&B is not installed ({error}); pip install wandb"
            ) from error
        notify("W&B is not installed, so the run is not in W&B. Install it with: pip install wandb")
        return NullTracker()
    check_workspace(Path.cwd())
    folder = Path(folder).resolve()
    known_id = run_id or known_run_id(folder) or os.environ.get("WANDB_RUN_ID")
    session = Session(
        wandb=wandb,
        config=config,
        folder=folder,
        arguments=_arguments(config, run_name, known_id or uuid.uuid4().hex[:8], job_type, extra or {}),
        on_stop=on_stop,
        notify=notify,
        link=config.link if link is None else link,
        has_new_id=not known_id,
    )
    for line in unused_lines():
        notify(line)
    if session.link and log_model_mode(config) == "never":
        notify(
            f"link={session.link}: the trials of a sweep log no model, so none of them is linked. Train the best configuration with "
            f"--link {shlex.quote(session.link)} after the sweep, or set --log-model end to log and link the model of every trial"
        )
    session.enter()
    try:
        session.broken = missing_service(wandb) or _why_not_set_up(wandb, notify)
        session.why_offline = "" if session.broken else _why_offline(config, mode)
        tracker = WandbTracker(session, mode != "offline" and not session.why_offline, resumed_step, first_step)
        for record in earlier:
            if last_row_step(record) >= tracker.first_step:
                tracker.record(record)
        if config.log_code and code:
            tracker.artifact(Artifact(f"source-{session.run_id}", "code", code))
    except BaseException:
        session.leave()
        raise
    return tracker


def check_workspace(folder: Path) -> None:
    """Refuse W&B's settings file in the current directory where that is a run's, which may come from somebody else.

    Raises:
        UsageError: there is one; W&B would take the server from it, and send it the API key.
    """
    if os.path.lexists(folder / "wandb/settings") and os.path.lexists(folder / "journal.jsonl"):
        raise UsageError(
            f"{folder / 'wandb/settings'} may name another W&B server, which would get your API key; remove that file, or start from another directory"
        )


def preload() -> None:
    """Import W&B now, with all that it imports when a run starts.

    Before torch it takes half as long as after it: pydantic searches all imported modules for the source of each class.
    """
    with contextlib.suppress(ImportError):
        import wandb.apis.public
        import wandb.sdk.launch  # noqa: F401


def resolve_mode(setting: str) -> Mode:
    """Return the mode for a value of `config.wandb`; `auto` follows WANDB_MODE where that is set.

    Raises:
        UsageError: WANDB_MODE is no mode; W&B itself would not start.
    """
    variable = os.environ.get("WANDB_MODE", "")
    if variable.lower() not in MODES and setting != "disabled":
        raise UsageError(
            f"WANDB_MODE={variable!r}: need online, offline or disabled{did_you_mean(variable, MODES)}; "
            "unset it, or set --wandb disabled"
        )
    match setting if setting != "auto" else variable.lower():
        case "online":
            return "online"
        case "offline" | "dryrun":  # the latter is W&B's former name
            return "offline"
        case "disabled":
            return "disabled"
    return "auto"


def has_api_key() -> bool:
    """Return whether there is an API key where W&B looks: environment, its settings, a netrc file. No network."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        import wandb
    except ImportError:
        return False
    if missing_service(wandb):
        return False
    is_ours = not in_use(wandb)
    with changed_environment(**environment_changes()):
        settings = set_up(wandb)
    try:
        is_default = settings.base_url == wandb.Settings().base_url
        return bool(settings.api_key) or _in_netrc(settings.base_url, is_default)
    finally:
        if is_ours:
            wandb.teardown()


def _in_netrc(server: str, is_default: bool) -> bool:
    """Return whether a netrc file has a key for the server; the default one has two names."""
    hosts = [urlsplit(server).netloc, *(["api.wandb.ai"] if is_default else [])]
    for name in [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            entries = netrc.netrc(os.path.expanduser(name))
            if any(entry[2] for host in hosts if (entry := entries.authenticators(host))):
                return True
    return False


def _why_not_set_up(wandb: Any, notify: Callable[[str], None]) -> str:
    """Start W&B's process; return why that is not possible, for example a variable that W&B cannot read."""
    try:
        set_up(wandb, notify)
    except Exception as error:  # noqa: BLE001 - W&B raises its own, pydantic's and the system's alike
        errors = getattr(error, "errors", None)
        if not callable(errors):
            return f"W&B cannot be used ({reason(error)})"
        # pydantic's own text quotes the value, which may be a key.
        texts = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in errors()]
        return f"W&B cannot be used ({'; '.join(texts)})"
    return ""


def _why_offline(config: Config, mode: Mode) -> str:
    """Return why the run is offline from the start although `config.wandb` does not ask for it; empty otherwise.

    Raises:
        TrackingError: `wandb` is `online` by name and there is no key.
    """
    if mode == "offline":
        return "WANDB_MODE is offline" if config.wandb == "auto" else ""
    if has_api_key():
        return ""
    if config.wandb == "online":  # W&B itself would ask for the key on a terminal, and wait
        raise TrackingError("wandb=online, but no W&B API key was found; run `wandb login`, or set --wandb offline")
    return "no API key was found"


def _arguments(
    config: Config, run_name: str, run_id: str, job_type: str | None, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `wandb.init` that identify and describe the run."""
    arguments: dict[str, Any] = dict(
        # A sweep's runs get W&B's names.
        name=config.name or os.environ.get("WANDB_NAME") or (None if in_sweep() else run_name),
        group=config.group or None,
        job_type=_job_type(config, job_type),
        tags=list(config.tags) or None,
        notes=config.notes or None,
        config={**config.to_dict(), **_without_class_names(extra)},
        resume="allow",
    )
    if not in_sweep():  # there W&B decides these
        by_variable = "WANDB_PROJECT" in os.environ and config.project == setting_fields()["project"].default
        arguments.update(id=run_id, entity=config.entity or None, project=None if by_variable else config.project)
    return arguments


def _without_class_names(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts with the number of classes in place of their names, which are in the artifact of the data set."""
    dataset = extra.get("dataset")
    if not isinstance(dataset, Mapping) or not isinstance(dataset.get("classes"), list | tuple):
        return dict(extra)
    return {**extra, "dataset": {**dataset, "classes": len(dataset["classes"])}}


def _job_type(config: Config, job_type: str | None) -> str | None:
    """Return the job type: an option over WANDB_JOB_TYPE over that of the command."""
    is_default = config.job_type == setting_fields()["job_type"].default
    variable = os.environ.get("WANDB_JOB_TYPE") if is_default else None
    return variable or job_type or config.job_type or None
