"""A run of a sweep that fails before it is opened in W&B is told to W&B, so that the sweep sees why."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.utils.environment import rank
from harness.utils.errors import AlreadyFinished, BusyError, as_harness_error

log = logging.getLogger(__name__)


@contextlib.contextmanager
def report_failed_trial() -> Iterator[None]:
    """A context around what comes before a run is opened in W&B; an error in it is told to the sweep and goes on."""
    try:
        yield
    except (AlreadyFinished, BusyError):  # that run is W&B's already, or another process is about to tell
        raise
    except Exception as error:
        meant = as_harness_error(error)
        send_failure(str(meant or error) or type(error).__name__, meant.exit_code if meant else 1)
        raise


def send_failure(reason: str, exit_code: int) -> None:
    """Open the run that a sweep's agent started as a failed one, with its reason in its summary; elsewhere nothing."""
    if not os.environ.get("WANDB_SWEEP_ID") or rank() > 0:
        return
    from harness.config.settings import Config
    from harness.tracking.wandb.init import has_api_key, resolve_mode
    from harness.tracking.wandb.session import Session
    from harness.tracking.wandb.tracker import WandbTracker

    try:
        import wandb

        if resolve_mode("auto") in ("offline", "disabled") or not has_api_key():
            return
        with tempfile.TemporaryDirectory() as folder:
            # W&B adds the parameters that the sweep drew, so the settings, which may be wrong, stay out.
            config = Config(wandb="online", finish_timeout=20)
            session = Session(wandb, config, Path(folder), {"resume": "allow"}, on_stop=None, say=log.warning)
            session.enter()
            try:
                tracker = WandbTracker(session, online=True, resumed_step=None)
            except BaseException:
                session.leave()
                raise
            tracker.summary({"status": "failed", "reason": reason})
            tracker.finish("failed", exit_code)
    except Exception:
        log.exception("while telling W&B of a run that failed")  # the first error is the one that is raised
