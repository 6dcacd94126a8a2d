"""W&B's client in this process: its service, its open runs, and the environment under which it is used.

The `wandb` module is passed in, so that importing this stays cheap.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.utils.errors import first_line

log = logging.getLogger(__name__)


@contextlib.contextmanager
def changed_environment(**values: str | None) -> Iterator[None]:
    """Set environment variables inside the context; None removes one."""
    before = {name: os.environ.get(name) for name in values}
    _set_environment(values)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def set_up(wandb: Any, notify: Callable[[str], None] = log.warning) -> Any:
    """Start W&B's process and return W&B's settings; where W&B is in use already, its present settings.

    W&B reads `wandb/settings` of the current folder, which may be a run that came from elsewhere: the file would decide
    which server gets the API key and the run. It is left out.
    """
    settings_files = [path for path in (Path(".wandb/settings"), Path("wandb/settings")) if path.is_file()]
    if not settings_files or in_use(wandb):
        return wandb.setup().settings
    notify(
        f"{settings_files[0]} of the current folder is not used, as it could name another W&B server: set WANDB_BASE_URL, --entity "
        "and --project, or use ~/.config/wandb/settings"
    )
    current = os.getcwd()
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)  # W&B has no other way to leave the file out
        try:
            return wandb.setup(settings=wandb.Settings(root_dir=current)).settings
        finally:
            os.chdir(current)


def in_use(wandb: Any) -> bool:
    """Return whether W&B is set up in this process. It has no public API for that; False is the safe guess."""
    return getattr(getattr(wandb.sdk, "wandb_setup", None), "_singleton", None) is not None


def missing_service(wandb: Any) -> str:
    """Return why W&B's process cannot be started; empty where it can. W&B 0.31 hangs for ever when it tries in vain."""
    try:
        path = wandb.util.get_core_path()
    except Exception as error:  # noqa: BLE001 - W&B's own
        return f"W&B's process cannot be started ({reason(error)})"
    return "" if os.access(path, os.X_OK) else f"W&B's process cannot be started: {path} is no executable file"


def active_run(wandb: Any, run_id: str | None = None) -> Any:
    """Return the run that the user's code has opened and that this run belongs to; None where there is none.

    That is the run of a sweep, which W&B allows one process to open once, or the one with the id that was requested.
    """
    run = getattr(wandb, "run", None)
    if run is None or (not run.sweep_id and run.id != (run_id or os.environ.get("WANDB_RUN_ID"))):
        return None
    return run


def has_active_run() -> bool:
    """Return whether the user's code has opened the W&B run of this sweep."""
    wandb = sys.modules.get("wandb")
    return wandb is not None and active_run(wandb) is not None


def core_process(wandb: Any) -> subprocess.Popen[bytes] | None:
    """Return W&B's process; None where this version of W&B keeps it elsewhere."""
    value: Any = wandb.sdk
    for name in ("wandb_setup", "_singleton", "_connection", "_proc", "_process"):
        value = getattr(value, name, None)
    return value if isinstance(value, subprocess.Popen) else None


def in_sweep() -> bool:
    """Return whether a W&B sweep agent started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def reason(error: BaseException) -> str:
    """Return the first line of an error, without the API key."""
    text = first_line(error)
    key = os.environ.get("WANDB_API_KEY")
    return (text.replace(key, "***") if key else text)[:300]
