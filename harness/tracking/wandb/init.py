"""Weights & Biases, imported only when a run is started.

W&B being away, slow or dying never ends a run that asked for `wandb=auto`; what it missed is in the journal.
"""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from harness.config.settings import Config, setting_fields
from harness.tracking.records import Artifact, Record
from harness.tracking.tracker import NullTracker
from harness.tracking.wandb.session import Session, in_sweep, in_use, known_run_id, reason, variables
from harness.tracking.wandb.tracker import WandbTracker
from harness.utils.errors import TrackingError, UsageError, did_you_mean

Mode: TypeAlias = Literal["auto", "online", "offline", "disabled"]

MODES = ("online", "offline", "disabled", "dryrun", "run", "shared", "")  # the words that WANDB_MODE may be

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
    code: Sequence[Path] = (),
    extra: Mapping[str, Any] | None = None,
    on_stop: Callable[[], None] | None = None,
    say: Callable[[str], None] = log.warning,
) -> WandbTracker | NullTracker:
    """The tracker that writes to W&B as `config.wandb` asks, with W&B's own files under `folder`/wandb.

    Args:
        run_id: letters, digits and dashes, 64 at most; when None, the one that the folder's run had before, or a
            new one. Inside a sweep W&B's own id counts instead.
        resumed_step: the step that a resumed run goes on from.
        earlier: the journal's records of a resumed run; W&B is given those that it missed.
        job_type: `config.job_type` when None.
        code: source files to keep, when `config.log_code` is on.
        extra: plain values that go beside the settings in W&B's config: the environment, facts of the data.
        on_stop: called, in another thread, when somebody stops the run in W&B; otherwise it is a SIGINT.
        say: takes each line meant for the user.

    Raises:
        TrackingError: `wandb` is `online` or `offline` by name and W&B can not be had so.
    """
    mode = resolve_mode(config.wandb)
    if mode == "disabled":
        return NullTracker()
    try:
        import wandb
    except ImportError as error:
        if config.wandb != "auto":
            raise TrackingError(
                f"wandb={config.wandb}, but W&B is not installed ({error}); pip install wandb"
            ) from error
        say("W&B is not installed, so the run is not tracked by it; pip install wandb")
        return NullTracker()
    folder = Path(folder).resolve()
    session = Session(
        wandb=wandb,
        config=config,
        folder=folder,
        arguments=_arguments(
            config,
            run_name,
            run_id or known_run_id(folder) or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8],
            job_type,
            extra or {},
        ),
        on_stop=on_stop,
        say=say,
    )
    session.enter()
    try:
        session.why_offline = _why_offline(config, mode)
        tracker = WandbTracker(session, mode != "offline" and not session.why_offline, resumed_step)
        for record in earlier:
            if record.step >= tracker.first_step:
                tracker.record(record)
        if config.log_code and code:
            tracker.artifact(Artifact(f"source-{session.run_id}", "code", {path.name: path for path in code}))
    except BaseException:
        session.leave()
        raise
    return tracker


def preload() -> None:
    """Import W&B now, with what it would import when a run begins, for a process that waits for work."""
    with contextlib.suppress(ImportError):
        import wandb.apis.public
        import wandb.sdk.launch  # noqa: F401


def count_arrived_rows(url: str, expected: int, patience: float = 20.0) -> int | None:
    """How many history rows W&B has of a run, asked until there are as many as expected; None where it does not say."""
    import wandb

    entity, project, _, run_id = urlsplit(url).path.strip("/").split("/")
    ours, count, began = not in_use(wandb), None, time.monotonic()
    with variables(WANDB_SILENT="true"):
        try:
            while time.monotonic() - began < patience:
                run = wandb.Api(timeout=10).run(f"{unquote(entity)}/{unquote(project)}/{run_id}")
                count = int(run.historyLineCount)
                if count >= expected:
                    break
                time.sleep(2)
        except Exception as error:  # noqa: BLE001 - W&B raises its own, pydantic's and the system's alike
            log.debug("W&B does not say how many rows it has: %s", reason(error))
        finally:
            if ours:
                wandb.teardown()
    return count


def resolve_mode(setting: str) -> Mode:
    """The mode that `config.wandb` means here; WANDB_MODE, where that is set, decides what `auto` means.

    Raises:
        UsageError: WANDB_MODE is no mode, which W&B itself would not start with.
    """
    by_environment = os.environ.get("WANDB_MODE", "")
    if by_environment.lower() not in MODES and setting != "disabled":
        raise UsageError(
            f"WANDB_MODE={by_environment!r}: need online, offline or disabled{did_you_mean(by_environment, MODES)}; unset it, or set --wandb disabled"
        )
    word = setting if setting != "auto" else by_environment.lower()
    match word:
        case "online":
            return "online"
        case "offline" | "dryrun":  # the latter is W&B's older word
            return "offline"
        case "disabled":
            return "disabled"
    return "auto"


def has_api_key() -> bool:
    """Whether an API key lies where W&B looks for one: the environment, its own settings, a netrc file. No network."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        import wandb
    except ImportError:
        return False
    ours = not in_use(wandb)
    with variables(WANDB_SILENT="true"):
        known = wandb.setup().settings  # starts W&B's process
    try:
        return bool(known.api_key) or _in_netrc(known.base_url, usual=known.base_url == wandb.Settings().base_url)
    finally:
        if ours:
            wandb.teardown()


def _in_netrc(server: str, usual: bool) -> bool:
    """Whether a netrc file has a key for the server; the usual one has two names."""
    hosts = [urlsplit(server).netloc, *(["api.wandb.ai"] if usual else [])]
    for name in [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            known = netrc.netrc(os.path.expanduser(name))
            if any(entry[2] for host in hosts if (entry := known.authenticators(host))):
                return True
    return False


def _why_offline(config: Config, mode: Mode) -> str:
    """Why the run is offline from the start although `config.wandb` does not say so; else nothing.

    Raises:
        TrackingError: `wandb` is `online` by name and there is no key.
    """
    if mode == "offline":
        return "WANDB_MODE is offline" if config.wandb == "auto" else ""
    if has_api_key():
        return ""
    if config.wandb == "online":  # W&B itself would ask for the key on a terminal, and wait
        raise TrackingError("wandb=online, but there is no W&B API key here; try `wandb login`, or set --wandb offline")
    return "there is no W&B API key here"


def _arguments(
    config: Config, run_name: str, run_id: str, job_type: str | None, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of `wandb.init` that say which run this is."""
    arguments: dict[str, Any] = dict(
        name=(config.name or None) if in_sweep() else run_name,  # W&B names a sweep's runs, which the id does not
        group=config.group or None,
        job_type=job_type or config.job_type or None,
        tags=list(config.tags) or None,
        notes=config.notes or None,
        config={**config.to_dict(), **extra},
        resume="allow",
    )
    if not in_sweep():  # there W&B decides these
        by_environment = "WANDB_PROJECT" in os.environ and config.project == setting_fields()["project"].default
        arguments.update(id=run_id, entity=config.entity or None, project=None if by_environment else config.project)
    return arguments
