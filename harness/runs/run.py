"""`harness run`: one run from its settings to its result, alone or as one of several processes."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from harness.config.automatic import Choice
from harness.config.recipe import AnyConfig
from harness.config.settings import Config
from harness.config.sweep_values import with_sweep_values
from harness.config.unused_settings import unused_settings
from harness.config.words import settings_of
from harness.data.listing import short_list
from harness.data.own_datasets import config_of_call
from harness.data.preprocess import Preprocess
from harness.lr_finder.finder import with_placeholder_lr
from harness.models import factory
from harness.runs.advice import few_updates, missing_weights
from harness.runs.automatic import choices_table, decide_settings
from harness.runs.components import Components, build_components
from harness.runs.console_log import ConsoleLog
from harness.runs.extension import report_extension, with_extension
from harness.runs.lr_find import resolve_lr
from harness.runs.model_log import WEIGHTS
from harness.runs.progress import LineReporter, ProgressReporter
from harness.runs.summary import summary_table
from harness.runs.tracked_run import TrackedRun, check_tracking, tracked_run
from harness.runs.trainer import RunResult, Trainer, tracking_header
from harness.tracking import run_dir
from harness.tracking.chosen_settings import read_choices, write_choices
from harness.tracking.journal import NullJournal
from harness.tracking.lineage import model_of_run
from harness.tracking.records import Artifact, Scalar
from harness.tracking.run_dir import RunDir
from harness.tracking.run_files import CHECKPOINTS, is_locked
from harness.tracking.run_names import slug
from harness.tracking.run_packages import missing_packages_named
from harness.tracking.tracker import NullTracker
from harness.tracking.wandb.client import has_active_run
from harness.tracking.wandb.failed_trial import report_failed_trial
from harness.training import checkpoint, distributed
from harness.training.device import describe_environment
from harness.training.distributed import SingleProcess
from harness.training.loop import TrainerState
from harness.training.process_settings import restore_process_state
from harness.training.saved_progress import check_progress
from harness.training.schedule import make_schedule
from harness.utils.environment import rank
from harness.utils.errors import BusyError, CheckpointError, PeerLostError, UsageError, as_harness_error
from harness.utils.files import remove_temporary_files
from harness.utils.seeding import seed_for
from harness.utils.signals import StopRequests
from harness.utils.text import counted

MAX_ROWS = 100_000  # of a run in W&B, whose pages become slow beyond that: https://docs.wandb.ai/guides/track/limits


@restore_process_state()
def run(
    config: AnyConfig = None, reporter: ProgressReporter | None = None, *, given: Collection[str] = (), **settings: Any
) -> RunResult:
    """Train, evaluate every epoch and record everything: the same as `harness run`.

    Args:
        config: a configuration, a dictionary of settings, a recipe by its name or path, or a mapping of `train`, `val` and
            `test` to data sets.
        given: names of the settings of a `Config` that the user has set: a warning names those without effect, as it does
            those of a dictionary and those by keyword.
        settings: settings by keyword, such as `epochs=3`; they win. `data` may also be a data set as an object with a length
            and items (image, label), such as a torch `Dataset`, or a mapping of `train`, `val` and `test` to such. A run
            of such data is resumed by the same call, not from the command line.

    Raises:
        HarnessError: with one line that names what is wrong and the remedy.
        Interrupted: a signal stopped the run; its state was saved, and the same call resumes it.
    """
    started_at = time.monotonic()
    reporter = ConsoleLog(reporter or LineReporter(sys.stderr))
    with contextlib.ExitStack() as data:
        with report_failed_trial():
            of_config = settings_of(config) if isinstance(config, Mapping) and "train" not in config else {}
            given = {*given, *of_config, *settings_of(settings)}
            config = data.enter_context(config_of_call(config, settings))
            config = with_sweep_values(config, reporter.message, is_own=has_active_run())
        for sentence in unused_settings(config, given) if rank() == 0 else ():
            reporter.message(f"Warning: {sentence}")
        return _run(config, reporter, started_at)


def _run(config: Config, reporter: ProgressReporter, started_at: float) -> RunResult:
    """Run as one of the processes that `torchrun` starts, or as the only one."""
    try:
        processes = distributed.init_distributed(config.device, config.process_timeout)
        try:
            with processes.report_peer_failure():
                if processes.is_main:
                    with missing_packages_named(config.resume):
                        return _run_main(config, reporter, started_at, processes)
                return _run_worker(config, processes)
        finally:
            processes.close()
    except Exception as error:
        known = as_harness_error(error)
        if known is None or known is error:
            raise
        raise known from error


def _run_main(config: Config, reporter: ProgressReporter, started_at: float, processes: SingleProcess) -> RunResult:
    """Run as the process that writes, most often the only one."""
    with report_failed_trial():
        check_tracking(config)
        run_dir.check_output(config)
        _check_distributed(config, processes)
        config = with_extension(config, processes)
        requested = config.replace(precision=run_dir.kept_precision(config))
        decided = decide_settings(requested, processes, run_dir.kept_settings)
        if decided.choices:
            reporter.message(choices_table(decided.choices))
        resumed = resumed_preprocess(requested, processes)
        components = build_components(with_placeholder_lr(decided.config), processes, resumed, decided.dataset)
        if components.initial_note:
            reporter.message(f"{components.initial_note}.")
        if config.freeze:
            model = components.learner.model
            frozen, total = factory.count_frozen(model), factory.count_parameters(model)
            reporter.message(f"Frozen: {frozen:,} of {total:,} parameters.")
        if skipped := components.dataset.skipped:
            reporter.message(
                f"Skipped {counted(len(skipped), 'unreadable image', 'unreadable images')}: {short_list(skipped)}"
            )
        # The requested settings, with `find` or `auto` where it stands, name the directory, and a resumed run must agree with them.
        changes: dict[str, Any] = {
            "precision": components.config.precision,
            "log_every": config.log_every or 1 + components.schedule.steps // MAX_ROWS,
        }
        requested, config = requested.replace(**changes), decided.config.replace(**changes)
        directory = run_dir.claim_run_dir(requested)
        _report_other_name(requested, directory, reporter)
        epochs, batch_size = components.config.epochs, components.config.batch_size
        updates = few_updates(components.schedule.steps, epochs, len(components.dataset.train), batch_size)
        for line in filter(None, [missing_weights(config.model, decided.choices), updates]):
            reporter.message(f"Warning: {line}")
    try:
        write_choices(directory.path, decided.choices)
        return _train(config, components, directory, reporter, time.monotonic() - started_at)
    finally:
        components.loaders.close()
        directory.close()


def _train(
    config: Config, components: Components, directory: RunDir, reporter: ProgressReporter, seconds_before: float
) -> RunResult:
    """Train in a run directory, from its newest checkpoint where it has one."""
    remove_temporary_files(directory.path)
    learner = components.learner
    saved = _load_checkpoint(directory, components, reporter) if directory.resumed else None
    if config.init and (saved is None) != (components.initial is not None):
        raise BusyError(f"{directory.path} was taken by another process in the meantime; give the same command again")
    saved, _ = learner.processes.broadcast((saved, str(directory.path.absolute())))
    state = restore_state(components, saved)
    if saved is not None:
        directory.checkpoint_step = state.step
        reporter.message(f"Resuming run in {directory.path} from step {state.step} (epoch {len(state.history)}).")
    facts = describe_environment(learner.device)
    with (
        StopRequests() as stop_requests,
        tracked_run(
            config,
            directory,
            reporter,
            stop_requests,
            header=tracking_header(components, facts),
            state=state,
            inputs=_initial_models(components),
        ) as tracked,
    ):
        tracked.tracker.settings(_settings_of(read_choices(directory.path), config))
        if (extensions := config.extensions()) and state.step == extensions[-1][0]:
            report_extension(components, tracked.tracker, reporter)
        components = _with_found_lr(config, components, directory, tracked, reporter, stop_requests)
        trainer = Trainer(components, directory, tracked.tracker, tracked.journal, reporter, state, stop_requests)
        with learner.processes.report_peer_failure():
            result = trainer.run({**facts, "seconds_before": round(seconds_before, 2)})
        if isinstance(reporter, ConsoleLog):
            reporter.log(summary_table(result.summary))  # the command line shows it at its end, on standard output
        return result


def _run_worker(config: Config, processes: SingleProcess) -> RunResult:
    """Train as another process than the main one, which alone writes, evaluates the result and explains it."""
    _check_distributed(config, processes)
    config = with_extension(config, processes)
    decided = decide_settings(config, processes)
    resumed = resumed_preprocess(config, processes)
    components = build_components(with_placeholder_lr(decided.config), processes, resumed, decided.dataset)
    nothing: tuple[dict[str, Any] | None, str] = (None, "")
    saved, path = processes.broadcast(nothing)
    state = restore_state(components, saved)
    directory = RunDir(Path(path), resumed=False)  # the main process writes to it
    trainer = Trainer(components, directory, NullTracker(), NullJournal(), ProgressReporter(), state, StopRequests())
    try:
        with trainer.stop_requests, processes.report_peer_failure():
            trainer.train()
    except PeerLostError as error:
        reason = f"rank 0 of {processes.world_size} ended without an error message (killed, most often for lack of memory); the same command resumes from the last checkpoint"
        run_dir.mark_failed(directory.path, reason, error.exit_code)
        raise
    return RunResult(directory.path, {}, state.history, components.learner.eval_model)


def resumed_preprocess(config: Config, processes: SingleProcess) -> Preprocess | None:
    """Return the preprocessing in the checkpoint that these settings resume; None where training starts anew, or without
    `init`, when nothing depends on it.

    Only the main process looks for it.
    """
    if not config.init:
        return None
    preprocess = None
    for path in run_dir.unfinished_runs(config) if processes.is_main else ():
        newest = None if is_locked(path) else checkpoint.newest_checkpoint(path / CHECKPOINTS)
        if newest is not None:
            try:
                preprocess = Preprocess.from_facts(checkpoint.load_checkpoint(newest))
            except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"{newest} has no usable preprocessing ({error}); start again with --resume never"
                ) from None
            break
    return processes.broadcast(preprocess)


def _initial_models(components: Components) -> list[Artifact]:
    """Return the model in W&B that training starts from, as an artifact that the run uses; empty where W&B has none."""
    initial = components.initial
    logged = None if initial is None or initial.run is None else model_of_run(initial.run)
    return [] if logged is None else [logged]


def restore_state(components: Components, saved: dict[str, Any] | None) -> TrainerState:
    """Load a checkpoint into the components and return the state of the training; a fresh one where nothing was saved.

    Raises:
        CheckpointError: the checkpoint does not fit the run's optimizer.
    """
    state = TrainerState()
    if saved is None:
        return state
    try:
        components.learner.load_state_dict(saved["learner"])
        state.load_state_dict(saved["progress"], components.learner.device)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the checkpoint does not fit the run's optimizer and progress: {reason}; start again with --resume never"
        ) from error
    if rank_key := components.learner.processes.rank_key:  # the saved random state is the main process's
        torch.manual_seed(seed_for(components.config.seed, "resumed", state.step, *rank_key))
    return state


def _load_checkpoint(directory: RunDir, components: Components, reporter: ProgressReporter) -> dict[str, Any] | None:
    """Return the newest checkpoint of a run; None where it has saved none.

    Raises:
        UsageError: the data has changed since.
        CheckpointError: every checkpoint is damaged or gone, or its weights do not fit.
    """
    path, saved_step = checkpoint.newest_checkpoint(directory.checkpoints), run_dir.saved_step(directory.path)
    if path is None:
        if saved_step:
            raise CheckpointError(
                f"the checkpoints of {directory.path} are gone, the last one of step {saved_step}; put {directory.checkpoints} back, or start again with --resume never"
            )
        reporter.message(f"{directory.path} has no checkpoint yet: the run starts from step 0.")
        return None
    saved = checkpoint.load_checkpoint(path)
    try:
        step = _check_position(saved["progress"], components.loaders.train.steps)
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of this run: {error}; start again with --resume never"
        ) from None
    if saved_step > step:
        reporter.message(f"The checkpoint of step {saved_step} is lost; the one before it is of step {step}.")
    if saved.get("fingerprint") != components.dataset.fingerprint:
        raise UsageError(
            f"the data has changed since {directory.path} was started; start a new run with --resume never"
        )
    checkpoint.load_weights_strict(components.learner.model, saved["learner"]["model"], path)
    if components.selection_split and saved["progress"]["history"]:  # the weights of the best epoch so far
        checkpoint.load_weights(directory.checkpoints / WEIGHTS)
    return saved


def _check_position(progress: Any, steps_per_epoch: int) -> int:
    """Return the step in the progress of a checkpoint.

    Raises:
        ValueError: the progress makes no sense, or its step is not that of its epochs.
    """
    check_progress(progress)
    step: int = progress["step"]
    if step != (expected := len(progress["history"]) * steps_per_epoch + len(progress["lrs"])):
        raise ValueError(f"its step is {step}, and that of its {len(progress['history'])} epochs is {expected}")
    return step


def _with_found_lr(
    config: Config,
    components: Components,
    directory: RunDir,
    tracked: TrackedRun,
    reporter: ProgressReporter,
    stop_requests: StopRequests,
) -> Components:
    """Return the components with the learning rates of a range test, where the settings ask for one."""
    if not config.needs_lr_find:
        return components
    requested = config
    config = resolve_lr(config, components, directory.path, tracked.tracker, reporter, stop_requests.check)
    rates: dict[str, Scalar] = {}
    for name in ("lr_min", "lr_max"):
        if getattr(config, name) != getattr(requested, name):
            rates |= {name: getattr(config, name), f"{name}_requested": getattr(requested, name)}
    tracked.tracker.settings(rates)
    return dataclasses.replace(
        components, config=config, schedule=make_schedule(config, components.loaders.train.steps)
    )


def _settings_of(choices: Mapping[str, Choice], config: Config) -> dict[str, Scalar]:
    """Return each chosen value that holds with what was requested, for the settings that trackers store.

    The number of epochs may have been changed since.
    """
    settings: dict[str, Scalar] = {}
    for name, choice in choices.items():
        if isinstance(choice.value, int | float | str):
            value = {name: choice.value} if choice.value == getattr(config, name, None) else {}
            settings |= {**value, f"{name}_requested": choice.requested}
    return settings


def _check_distributed(config: Config, processes: SingleProcess) -> None:
    """Refuse what several processes cannot do together.

    Raises:
        UsageError: the settings require a range test, which runs in one process.
    """
    if processes.world_size > 1 and config.needs_lr_find:
        raise UsageError(
            "lr_min or lr_max is `find`, which needs a single process; run `harness lr-find` first and give torchrun its numbers"
        )


def _report_other_name(config: Config, directory: RunDir, reporter: ProgressReporter) -> None:
    """Report that the requested name belongs to another run, if it does."""
    requested = slug(config.name) if config.name else directory.name
    if directory.name.startswith(requested) and directory.name != requested:
        other = directory.path.parent / requested
        reporter.message(f"{other} is another run or is finished already; this run is written to {directory.path}")
