"""Report a run of a sweep that fails before it is opened in W&B, so that the sweep shows why."""

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
    """Report an error inside the context to the sweep, and raise it again."""
    try:
        yield
    except (AlreadyFinished, BusyError):  # W&B has that run already, or another process reports it
        raise
    except Exception as error:
        user_error = as_harness_error(error)
        send_failure(str(user_error or error) or type(error).__name__, user_error.exit_code if user_error else 1)
        raise


def send_failure(reason: str, exit_code: int) -> None:
    """Record the run that a sweep's agent started as failed, with the reason in its summary; do nothing elsewhere."""
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
            # W&B adds the parameters that the sweep chose; the settings may be what is wrong, so they stay out.
            config = Config(wandb="online", finish_timeout=20)
            session = Session(wandb, config, Path(folder), {"resume": "allow"}, on_stop=None, notify=log.warning)
            session.enter()
            try:
                tracker = WandbTracker(session, online=True, resumed_step=None)
            except BaseException:
                session.leave()
                raise
            tracker.summary({"status": "failed", "reason": reason})
            tracker.finish("failed", exit_code)
    except Exception:
        log.exception("failed to report the failed run to W&B")  # the first error is the one that is raised
