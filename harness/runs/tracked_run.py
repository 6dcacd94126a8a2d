"""The lifecycle of everything that is recorded: open the trackers, and close them however it ends."""

from __future__ import annotations

import contextlib
import logging
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.settings import ALERTS, WANDB, Config, canonical_name
from harness.reporting.html.pages import write_run_page
from harness.runs.console_log import ConsoleLog
from harness.runs.summary import last_accuracy
from harness.tracking import run_dir
from harness.tracking.backends.registry import check_trackers, open_trackers, other_trackers
from harness.tracking.backends.tracker import BackendTracker
from harness.tracking.journal import REPLACED, Journal, JournalContents, NullJournal, read_journal
from harness.tracking.journal_repair import JournalRepair, repair_journal
from harness.tracking.lineage import dataset_artifact
from harness.tracking.log_intervals import has_changed
from harness.tracking.records import Artifact
from harness.tracking.run_dir import RunDir, RunState
from harness.tracking.run_files import CONSOLE, DIFF
from harness.tracking.tracker import MultiTracker, NullTracker, Tracker
from harness.tracking.wandb import init
from harness.tracking.wandb.client import in_sweep
from harness.tracking.wandb.limits import check_wandb_values
from harness.utils.checksums import SUMS, write_sums
from harness.utils.environment import describe_process, git_diff
from harness.utils.errors import DivergedError, ResourceError, TrackingError, as_harness_error
from harness.utils.files import write_atomically, write_json
from harness.utils.signals import PREEMPTED, Interrupted, StopRequests

if TYPE_CHECKING:
    from harness.runs.progress import ProgressReporter
    from harness.tracking.wandb.tracker import WandbTracker
    from harness.training.loop import TrainerState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedRun:
    """The open trackers of a run.

    Attributes:
        tracker: the journal, where the run has a directory of its own, W&B, and the other trackers of the settings.
        journal: writes `journal.jsonl`; a NullJournal where only W&B is written.
        wandb: writes to W&B; a NullTracker where W&B is disabled.
    """

    tracker: Tracker
    journal: Journal | NullJournal
    wandb: WandbTracker | NullTracker
    others: Sequence[BackendTracker] = ()


@contextlib.contextmanager
def tracked_run(
    config: Config,
    directory: RunDir,
    reporter: ProgressReporter,
    stop_requests: StopRequests,
    *,
    header: Mapping[str, Any],
    state: TrainerState | None = None,
    inputs: Sequence[Artifact] = (),
) -> Iterator[TrackedRun]:
    """Open the journal and W&B of a run directory; close both and write `status.json`, whatever happens.

    Args:
        config: the requested settings; written to `config.yaml`.
        header: plain facts that the journal and W&B store with the settings: environment, data, parameters.
        state: position of the training; a resumed run continues from it, a stopped one ended at it. None: a range test.
        inputs: artifacts that a new run uses besides its data.

    Raises:
        Interrupted: with exit code 0 in place of the caught one when a W&B sweep stopped the run early.
        TrackingError: W&B was required and is not available.
    """
    (directory.path / SUMS).unlink(missing_ok=True)  # of a run that was killed at its very end
    if directory.resumed:  # before its settings change: a finished run with more epochs is no longer finished
        directory.status(RunState.RUNNING, **_position(directory, state))
    write_atomically(directory.path / run_dir.CONFIG, config.replace(resume="auto").to_yaml())
    if not directory.resumed:  # a new run writes its settings first
        directory.status(RunState.RUNNING, **_position(directory, state))
    try:
        with stop_requests.at_once():
            dataset = dataset_artifact(config, directory.path, header["dataset"]) if "dataset" in header else None
            tracked, known = _open(config, directory, reporter, stop_requests, header, state)
    except BaseException as error:
        if isinstance(error, TrackingError) and not directory.resumed:
            directory.discard()  # W&B is required: nothing has begun
        else:
            with contextlib.suppress(ResourceError):  # the first error is the one that is raised
                directory.status(_state_after(error), **_failure(directory, state, error))
        raise
    with _console_log(directory, tracked, reporter):
        if tracked.wandb.url:
            reporter.message(f"W&B: {tracked.wandb.url}")
        try:
            if dataset is not None:
                _declare_dataset(tracked, dataset, known)
            for artifact in inputs:  # not in the journal, which has no files outside of the run directory
                tracked.wandb.artifact(artifact)
            yield tracked
            if config.alerts == "ended":
                tracked.tracker.alert("run finished", f"{directory.name} has finished")
            tracked.tracker.finish("finished", 0)
        except BaseException as error:
            final = _early_stop_of_sweep(tracked, error) or error
            _close_failed(config, directory, tracked, reporter, state, final)
            if final is not error:
                raise final from error
            raise
        if (
            config.report
        ):  # before the state is `finished`: a run that is killed here is resumed and writes the page then
            write_run_page(directory.path, reporter.message, RunState.FINISHED)
        write_sums(directory.path, run_dir.RESULT_FILES)
        sync = {"sync": tracked.wandb.sync_command} if tracked.wandb.sync_command else {}
        directory.status(
            RunState.FINISHED,
            exit_code=0,
            **_counters(state),
            tracking=tracked.wandb.state,
            **sync,
            **({"trackers": {each.kind: each.state for each in tracked.others}} if tracked.others else {}),
        )  # `resume` is left out: there is nothing to resume
        _report_paths(directory, tracked, reporter)


def _console_log(
    directory: RunDir, tracked: TrackedRun, reporter: ProgressReporter
) -> contextlib.AbstractContextManager[None]:
    """Return a context in which the lines of the console are written to the run directory and to W&B."""
    if not isinstance(reporter, ConsoleLog):
        return contextlib.nullcontext()
    return reporter.written_to(directory.path / CONSOLE, tracked.wandb.console)


def is_tracking_requested(settings: Mapping[str, Any]) -> bool:
    """Return whether the settings of an evaluation, an explanation or a plot name `wandb` or `tracker`."""
    return not {"wandb", "tracker"}.isdisjoint(canonical_name(key) for key in settings)


def is_tracked(config: Config) -> bool:
    """Return whether the settings name a tracker besides the run directory."""
    return bool(other_trackers(config)) or (WANDB in config.tracker and config.wandb != "disabled")


def check_tracking(config: Config) -> None:
    """Check, before anything takes time, that the trackers of the settings can be used.

    Raises:
        UsageError: W&B would refuse a value, or the package of another tracker is missing.
    """
    check_wandb_values(config)
    check_trackers(config)


@contextlib.contextmanager
def tracked_output(
    config: Config,
    folder: Path,
    *,
    job_type: str,
    name: str,
    enabled: bool = True,
    inputs: Callable[[], Sequence[Artifact]] = tuple,
) -> Iterator[Tracker]:
    """Open a run in the trackers for the results of an evaluation, an explanation or a plot; nothing unless `enabled`.

    What takes time before it calls `check_tracking` first.

    Args:
        folder: for the trackers' own files.
        inputs: returns the artifacts that the results are of; called when the run is open.

    Raises:
        UsageError: W&B would refuse a value, such as the project, or the package of a tracker is missing.
    """
    if not enabled or not is_tracked(config):
        yield NullTracker()
        return
    check_tracking(config)
    folder.mkdir(parents=True, exist_ok=True)
    # The settings are those of the training; its model has been linked then.
    wandb = init.start(config, folder, run_name=name, job_type=job_type, link="")
    others = open_trackers(config, folder, run_name=name, job_type=job_type, notify=log.warning)
    tracker = MultiTracker([wandb, *others])
    try:
        for artifact in inputs():
            tracker.artifact(artifact)
        yield tracker
    except BaseException as error:
        known = as_harness_error(error)
        with contextlib.suppress(Exception):  # the first error is the one that is raised
            tracker.finish("failed", known.exit_code if known else 1)
        raise
    tracker.finish("finished", 0)


def _open(
    config: Config,
    directory: RunDir,
    reporter: ProgressReporter,
    stop_requests: StopRequests,
    header: Mapping[str, Any],
    state: TrainerState | None,
) -> tuple[TrackedRun, Sequence[Artifact]]:
    """Open the journal and W&B, and return them with the artifacts that the journal has.

    Those of a resumed run continue from `state.step`.
    """
    resumed_step = state.step if directory.resumed and state is not None else None
    full_header = {"config": config.to_dict(), **header, "process": describe_process()}
    if resumed_step is None:
        journal, contents = Journal(directory.path, full_header), JournalContents()
    else:
        repair = _repair_journal(directory, full_header, state)
        if repair and resumed_step:  # else the run was killed before its journal was whole, and starts again
            reporter.message(f"{repair}; what was there is in {REPLACED}")
        journal = Journal.resume(directory.path, resumed_step, full_header)
        contents = read_journal(directory.path)
    wandb = init.start(
        config,
        directory.path,
        run_name=config.name or directory.name,
        resumed_step=resumed_step,
        earlier=contents.records,
        code=_source_files(config) if config.log_code else None,
        extra=header,
        on_stop=stop_requests.stop,
        notify=reporter.message,
    )
    if resumed_step is not None:
        first_step = getattr(wandb, "first_step", resumed_step + 1)
        if has_changed(first_step, config.log_every, contents.header, contents.intervals):
            journal.set_log_every(config.log_every, first_step)
    if resumed_step is None and (diff := git_diff()):
        with contextlib.suppress(ResourceError):  # a full disk ends the run at its first checkpoint, or not at all
            write_atomically(directory.path / DIFF, diff)
            wandb.file(directory.path / DIFF)
    others = open_trackers(
        config,
        directory.path,
        run_name=config.name or directory.name,
        is_resumed=directory.resumed,
        earlier=contents.records,
        extra=header,
        notify=reporter.message,
    )
    return TrackedRun(MultiTracker([journal, wandb, *others]), journal, wandb, others), contents.artifacts


def _declare_dataset(tracked: TrackedRun, dataset: Artifact, known: Sequence[Artifact]) -> None:
    """Declare which data the run uses; the journal of a resumed run has that already."""
    is_known = any(artifact.is_input and artifact.kind == dataset.kind for artifact in known)
    (tracked.wandb if is_known else tracked.tracker).artifact(dataset)


def _repair_journal(directory: RunDir, header: Mapping[str, Any], state: TrainerState | None) -> JournalRepair:
    """Make the journal agree with the checkpoint, and return what it had lost."""
    assert state is not None
    return repair_journal(directory.path, state.step, header, state.history, state.step - len(state.lrs))


def _source_files(config: Config) -> dict[str, Path]:
    """Return the source files of the user's plug-in modules, packages whole, and of the script that has called harness."""
    files: dict[str, Path] = {}
    for name in config.plugin:
        module = sys.modules.get(name)
        if module is None or not module.__file__:
            continue
        path, is_package = Path(module.__file__), hasattr(module, "__path__")
        root = path.parent.parent if is_package else path.parent
        inside = sorted(path.parent.rglob("*.py")) if is_package else [path]
        files |= {str(file.relative_to(root)): file for file in inside}
    script = Path(getattr(sys.modules.get("__main__"), "__file__", None) or "")
    installed = [Path(__file__).parents[1], *map(Path, (sysconfig.get_path("purelib"), sysconfig.get_path("scripts")))]
    if (
        script.suffix == ".py"
        and script.is_file()
        and not any(script.resolve().is_relative_to(one) for one in installed)
    ):
        files.setdefault(script.name, script)
    return files


def _early_stop_of_sweep(tracked: TrackedRun, error: BaseException) -> Interrupted | None:
    """Return what to raise for a run that W&B stopped: inside a sweep an early end is no failure, and exits with 0."""
    # `wandb.agent` with a function runs it in a thread, and stops it with a plain exception that Python raises there.
    is_stop_of_thread = type(error) is Exception and not error.args and in_sweep()
    if (is_stop_of_thread or isinstance(error, Interrupted)) and tracked.wandb.stopped_by_server():
        return Interrupted(
            "stopped by W&B", error.exit_code if isinstance(error, Interrupted) and not in_sweep() else 0
        )
    return None


def _close_failed(
    config: Config,
    directory: RunDir,
    tracked: TrackedRun,
    reporter: ProgressReporter,
    state: TrainerState | None,
    error: BaseException,
) -> None:
    """Write how the run ended to `status.json`, `summary.json` and the trackers, without hiding why."""
    stopped, diverged = isinstance(error, Interrupted), isinstance(error, DivergedError)
    failure = _failure(directory, state, error)
    outcome: dict[str, Any] = {"status": "stopped" if stopped else "failed", "reason": failure["reason"]}
    if isinstance(reporter, ConsoleLog) and not stopped:
        reporter.log(f"error: {failure['reason']}")  # the command line shows it at its end

    def write_summary() -> None:
        if state is not None:
            last = state.history[-1] if state.history else {}
            counters = {"epochs": len(state.history), "steps": state.step}
            write_json(directory.path / run_dir.SUMMARY, {**outcome, "last": last, **counters})

    def close_trackers() -> None:
        title = "training diverged" if diverged else "run stopped" if stopped else "run failed"
        if ALERTS.index(config.alerts) >= ALERTS.index("diverged" if diverged else "ended" if stopped else "failed"):
            tracked.tracker.alert(title, failure["reason"])
        tracked.tracker.summary(outcome)
        tracked.tracker.finish("stopped" if stopped else "failed", failure["exit_code"])

    def write_page() -> None:
        if config.report and diverged:  # its curves show where
            write_run_page(directory.path, reporter.message)

    # Each on its own: on a full disk the summary may not fit, and the trackers are to be closed nevertheless.
    for close in (lambda: directory.status(_state_after(error), **failure), write_summary, close_trackers, write_page):
        try:
            close()
        except Exception as failed:
            known = as_harness_error(failed)
            if known is None:
                log.exception("while closing a run that had failed")  # the first error is the one that is raised
            elif str(known) != failure["reason"]:
                log.debug("while closing a run that had failed: %s", known)
    if isinstance(error, Interrupted) and state is not None:
        reason = str(error).removeprefix("stopped ")
        saved = "the state is saved"
        if directory.checkpoint_step != state.step:  # its loss was not finite, or W&B's agent stopped its thread
            step = directory.checkpoint_step
            saved = f"the last saved state is that of step {step}" if step else "no state is saved yet"
        reporter.message(f"Stopped at step {state.step} {reason}; {saved}. Resume with: {directory.resume_command}")
        error.is_reported = True


def _state_after(error: BaseException) -> RunState:
    """Return the state of a run that this error ended."""
    if not isinstance(error, Interrupted):
        return RunState.FAILED
    return RunState.PREEMPTED if error.exit_code in PREEMPTED else RunState.INTERRUPTED


def _failure(directory: RunDir, state: TrainerState | None, error: BaseException) -> dict[str, Any]:
    """Return what `status.json` holds of a run that did not finish."""
    known = as_harness_error(error)
    return {
        "reason": str(known or error) or type(error).__name__,
        "exit_code": 1 if known is None else known.exit_code,
        **_position(directory, state),
    }


def _position(directory: RunDir, state: TrainerState | None) -> dict[str, Any]:
    """Return how far the run is, and how to resume it; a range test is not resumed."""
    if state is None:
        return {"step": 0}
    return {**_counters(state), **last_accuracy(state.history), "resume": directory.resume_command}


def _counters(state: TrainerState | None) -> dict[str, int]:
    return {"step": 0} if state is None else {"step": state.step, "epoch": len(state.history)}


def _report_paths(directory: RunDir, tracked: TrackedRun, reporter: ProgressReporter) -> None:
    """Report where the results are."""
    lines = [f"Run directory: {directory.path}"]
    if (page := directory.path / "report.html").is_file():
        lines.append(f"Page: {page}")
    if tracked.wandb.sync_command:
        lines.append(f"Upload later with: {tracked.wandb.sync_command}")
    elif tracked.wandb.url:
        lines.append(f"W&B: {tracked.wandb.url}")
    reporter.message("\n".join(lines))
