"""The story of a run: settings become parts, parts yield records, records reach the tracker and the folder.

This and the command line are the only places that know every room.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from typing import Any

from harness.utils import environment
from harness.runs import lr_find
from harness.tracking import run_dir
from harness.lr_finder.finder import with_placeholder_lr
from harness.config.settings import Config
from harness.utils.errors import DivergedError, UsageError, as_harness_error
from harness.utils.files import remove_temporary_files, write_atomically, write_json
from harness.runs.follow import check_distributed, run_worker, restore_state
from harness.utils.signals import PREEMPTED, Interrupted, StopRequests
from harness.runs.components import Components, build_components
from harness.tracking.run_dir import RunDir, RunState
from harness.reporting.html.share import PAGE, write_run_page
from harness.runs.trainer import ProgressReporter, RunResult, Trainer, open_tracker, resume_command
from harness.tracking.tracker import Tracker
from harness.tracking.wandb.failed_trial import report_failed_trial
from harness.tracking.wandb.session import in_sweep
from harness.training import checkpoint
from harness.training import distributed
from harness.training.distributed import SingleProcess
from harness.training.loop import TrainerState
from harness.training.schedule import make_schedule

log = logging.getLogger(__name__)


def run(config: Config, display: ProgressReporter | None = None) -> RunResult:
    """Train, evaluate every epoch and record: the same as `harness run`.

    Raises:
        HarnessError: with one line that names what is wrong and its remedy.
        Interrupted: a signal stopped it; the state was saved and the same call goes on.
    """
    from harness.runs.progress import LineReporter

    display = display or LineReporter(sys.stderr)
    began = time.monotonic()
    try:
        return _run(config, display, began)
    except Exception as error:
        meant = as_harness_error(error)
        if meant is None or meant is error:
            raise
        raise meant from error


def _run(config: Config, display: ProgressReporter, began: float) -> RunResult:
    processes = distributed.init_distributed(config.device, config.process_timeout)
    try:
        with processes.report_peer_failure():
            if processes.is_main:
                return _lead(config, display, began, processes)
            return run_worker(config, processes)
    finally:
        processes.close()


def _lead(config: Config, display: ProgressReporter, began: float, processes: SingleProcess) -> RunResult:
    """The run as the process that writes does it, most often the only one."""
    with report_failed_trial():
        run_dir.check_output(config)
        check_distributed(config, processes)
        parts = build_components(with_placeholder_lr(config), processes)
        if skipped := parts.data.skipped:
            display.say(f"{len(skipped)} unreadable images are left out, the first is {skipped[0]}")
        # What the settings say, the word `find` included, names the folder and is what a resumed run must agree with.
        config = config.replace(precision=parts.config.precision)
        folder = run_dir.claim_run_dir(config)
        if config.name and folder.name.startswith(asked := run_dir.slug(config.name)) and folder.name != asked:
            display.say(f"{folder.path.parent / asked} is another run, or finished; this one is {folder.path}")
    try:
        return _run_in(folder, config, parts, display, time.monotonic() - began)
    finally:
        folder.close()


def _run_in(folder: RunDir, config: Config, parts: Components, display: ProgressReporter, seconds: float) -> RunResult:
    """One run in its folder: whatever happens, the status and the tracker say so at the end."""
    remove_temporary_files(folder.path)
    state = parts.learner.processes.broadcast(_saved(folder, parts) if folder.resumed else None)
    progress = restore_state(parts, state)
    if state is not None:
        display.say(f"going on with {folder.path} from step {progress.step} (epoch {len(progress.history)})")
    write_atomically(folder.path / run_dir.CONFIG, config.replace(resume="auto").to_yaml())
    folder.status(RunState.RUNNING, step=progress.step, epoch=len(progress.history), resume=resume_command(folder))
    facts = environment.describe_environment(parts.learner.device)
    with StopRequests() as stop_requests:
        try:
            with stop_requests.at_once():
                tracker, journal, wandb = open_tracker(config, folder, parts, facts, stop_requests, display, progress)
        except BaseException as error:
            folder.status(_ending(error), **_facts(folder, progress, error))
            raise
        if wandb.url:
            display.say(f"W&B: {wandb.url}")
        try:
            parts = _with_rates(config, parts, folder, tracker, display, stop_requests)
            story = Trainer(parts, folder, tracker, journal, display, progress, stop_requests)
            with parts.learner.processes.report_peer_failure():
                result = story.tell({**facts, "seconds_before": round(seconds, 2)})
            tracker.finish("finished", 0)
        except BaseException as error:
            meant: BaseException = error
            if isinstance(error, Interrupted) and wandb.stopped_by_server():
                # In a sweep an early end is what was meant to happen: an agent would count another status as a failure.
                meant = Interrupted("stopped by W&B", 0 if in_sweep() else error.exit_code)
            _close_failed(folder, parts, tracker, progress, meant, display)
            if meant is not error:
                raise meant from error
            raise
        if config.report:  # before the run is finished: one that is killed here is gone on with, and writes it then
            write_run_page(folder.path, display.say, RunState.FINISHED)
        folder.status(
            RunState.FINISHED,
            exit_code=0,
            step=progress.step,
            epoch=len(progress.history),
            tracking=wandb.state,
            **_sync(wandb),
        )
    told = f"to W&B: {wandb.sync_command}" if wandb.sync_command else f"W&B: {wandb.url}" if wandb.url else ""
    page = f"\npage: {folder.path / PAGE}" if (folder.path / PAGE).is_file() else ""
    display.say(f"run folder: {folder.path}{page}" + (f"\n{told}" if told else ""))
    return result


def _with_rates(
    config: Config, parts: Components, folder: RunDir, tracker: Tracker, display: ProgressReporter, stop_requests: StopRequests
) -> Components:
    """The parts with the learning rates that a range test finds, where the settings ask for one."""
    if not config.needs_lr_find:
        return parts
    found = lr_find.resolve_lr(config, parts, folder.path, tracker, display, stop_requests.check)
    return dataclasses.replace(parts, config=found, schedule=make_schedule(found, parts.batches.train.steps))


def _saved(folder: RunDir, parts: Components) -> dict[str, Any] | None:
    """What the newest checkpoint of a run holds; None: it has none."""
    path = checkpoint.newest_checkpoint(folder.checkpoints)
    if path is None:
        return None
    state = checkpoint.load_checkpoint(path)
    if state.get("fingerprint") != parts.data.fingerprint:
        raise UsageError(f"the data has changed since {folder.path} was begun; start a new run with --resume never")
    checkpoint.load_weights_strict(parts.learner.model, state["learner"]["model"], path)
    return state


def _close_failed(
    folder: RunDir, parts: Components, tracker: Tracker, progress: TrainerState, error: BaseException, display: ProgressReporter
) -> None:
    """Say in status, summary and tracker how the run ended, without hiding why."""
    stopped = isinstance(error, Interrupted)
    facts = _facts(folder, progress, error)
    reason, code = facts["reason"], facts["exit_code"]
    try:
        folder.status(_ending(error), **facts)
        last = progress.history[-1] if progress.history else {}
        told = {"status": "stopped" if stopped else "failed", "reason": reason, "last": last}
        write_json(folder.path / run_dir.SUMMARY, {**told, "epochs": len(progress.history), "steps": progress.step})
        if isinstance(error, DivergedError):
            tracker.alert("training diverged", reason)
        tracker.summary({"status": "stopped" if stopped else "failed", "reason": reason})
        tracker.finish("stopped" if stopped else "failed", code)
        if parts.config.report and isinstance(error, DivergedError):  # its curves show where
            write_run_page(folder.path, display.say)
    except Exception:
        log.exception("while closing a run that had failed")  # the first error is the one that is raised
    if stopped:
        display.say(f"stopped at step {progress.step}; go on with: {resume_command(folder)}")


def _ending(error: BaseException) -> RunState:
    """The state of a run that this error ended."""
    if not isinstance(error, Interrupted):
        return RunState.FAILED
    return RunState.PREEMPTED if error.exit_code in PREEMPTED else RunState.INTERRUPTED


def _facts(folder: RunDir, progress: TrainerState, error: BaseException) -> dict[str, Any]:
    """What `status.json` says of a run that did not come to its end."""
    meant = as_harness_error(error)
    return dict(
        reason=str(meant or error) or type(error).__name__,
        exit_code=1 if meant is None else meant.exit_code,
        step=progress.step,
        epoch=len(progress.history),
        resume=resume_command(folder),
    )


def _sync(wandb: Any) -> dict[str, str]:
    return {"sync": wandb.sync_command} if wandb.sync_command else {}
