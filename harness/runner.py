"""The story of a run: settings become parts, parts yield records, records reach the tracker and the folder.

This and the command line are the only places that know every room.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness import environment, find, runfolder
from harness.bench import provisional
from harness.config import Config
from harness.errors import DivergedError, UsageError, known, nearest
from harness.files import write_atomically, write_json
from harness.interrupts import Interrupted, Interrupts
from harness.runfolder import RunFolder
from harness.story import Display, Parts, Result, Story, data_facts, resume_command
from harness.tracking import wandb_run
from harness.tracking.journal import Journal
from harness.tracking.journal import read as read_journal
from harness.tracking.tee import Tee
from harness.tracking.tracker import Tracker
from harness.training import checkpoint, machine
from harness.training.learner import make_learner
from harness.training.loop import Progress
from harness.training.schedule import make_schedule
from harness.values import Record
from harness.vision import cam, loaders, models
from harness.vision.data import load
from harness.vision.mix import make_mix
from harness.vision.preprocess import Preprocess, preprocess_for

log = logging.getLogger(__name__)


def run(config: Config, display: Display | None = None) -> Result:
    """Train, evaluate every epoch and record: the same as `harness run`.

    Raises:
        HarnessError: with one line that names what is wrong and its remedy.
        Interrupted: a signal stopped it; the state was saved and the same call goes on.
    """
    from harness.display import Lines

    display = display or Lines(sys.stderr)
    began = time.monotonic()
    runfolder.check_output(config)
    try:
        return _run(config, display, began)
    except Exception as error:
        meant = known(error)
        if meant is None or meant is error:
            raise
        raise meant from error


def _run(config: Config, display: Display, began: float) -> Result:
    parts = assemble(provisional(config))
    # What the settings say, the word `find` included, names the folder and is what a resumed run must agree with.
    config = config.replace(precision=parts.config.precision)
    folder = runfolder.claim(config)
    try:
        return _run_in(folder, config, parts, display, time.monotonic() - began)
    finally:
        folder.close()


def assemble(config: Config) -> Parts:
    """Every part of a run, checked against the others; nothing is written."""
    device = machine.pick_device(config.device)
    machine.prepare(config, device)
    config = config.replace(precision=machine.pick_precision(config.precision, device))
    data = load(config)
    classes = config.classes or len(data.classes)
    if classes < len(data.classes):
        raise UsageError(
            f"classes={classes}, but the data has {len(data.classes)}: {', '.join(data.classes[:5])} ...; leave --classes out"
        )
    torch.manual_seed(config.seed)
    model = models.create(config, classes)
    preprocess = preprocess_for(config, model, data)
    batches = loaders.make_batches(config, data, preprocess, device)
    _try_model(model, preprocess, config)
    _check_cam(model, config)
    learner = make_learner(config, model, device, machine.autocast_type(config.precision), make_mix(config, classes))
    _check_choices(config, batches)
    return Parts(config, data, learner, preprocess, batches, make_schedule(config, batches.train.steps))


def _try_model(model: nn.Module, preprocess: Preprocess, config: Config) -> None:
    """One image through the model, so that sizes that do not fit are found before training."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            shape = tuple(model.eval()(torch.zeros(1, 3, preprocess.size, preprocess.size)).shape)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{config.model} can not take images of {preprocess.size} pixels: {reason}; set --image-size or --model-args img_size={preprocess.size}"
        ) from None
    finally:
        for module, mode in modes:
            module.training = mode
    if len(shape) != 2:
        raise UsageError(
            f"{config.model} gives {list(shape)} instead of logits [1, classes]; it is no image classifier"
        )


def _check_cam(model: nn.Module, config: Config) -> None:
    """Find a method or layer that does not exist before training, not after it."""
    if config.cam != "none":
        cam.known_method(config.cam)
    layers = [name for name, _ in model.named_modules() if name]
    if config.cam_layer != "auto" and config.cam_layer not in layers:
        raise UsageError(
            f"cam_layer={config.cam_layer!r}: {config.model} has no such module{nearest(config.cam_layer, layers)}"
        )


def _check_choices(config: Config, batches: loaders.Loaders) -> None:
    needs = config.schedule == "plateau" or config.early_stop or config.select == "best"
    if needs and batches.val is None:
        raise UsageError(
            "the schedule, early_stop or select needs a validation split, and the data brings none; set --val-fraction 0.1"
        )
    if config.select == "best-on-test" and batches.val is not None:
        raise UsageError("select=best-on-test, but there is a validation split to choose by; set --select best")
    if batches.val is None and batches.test is None:
        raise UsageError("the data has neither a validation nor a test split; set --val-fraction 0.1")


def _run_in(folder: RunFolder, config: Config, parts: Parts, display: Display, seconds: float) -> Result:
    """One run in its folder: whatever happens, the status and the tracker say so at the end."""
    progress = _resume(folder, parts, display) if folder.resumed else Progress()
    write_atomically(folder.path / runfolder.CONFIG, config.replace(resume="auto").to_yaml())
    folder.status("running", step=progress.step, epoch=len(progress.history), resume=resume_command(folder))
    facts = environment.describe(parts.learner.device)
    with Interrupts() as interrupts:
        try:
            tracker, journal, wandb = open_tracker(config, folder, parts, facts, interrupts, display, progress)
        except BaseException as error:
            folder.status(
                "failed",
                reason=str(error),
                exit_code=getattr(error, "exit_code", 1),
                step=progress.step,
                epoch=len(progress.history),
            )
            raise
        try:
            parts = _with_rates(config, parts, folder, tracker, display, interrupts)
            story = Story(parts, folder, tracker, journal, display, progress, interrupts)
            result = story.tell({**facts, "seconds before": round(seconds, 2)})
            tracker.finish("finished", 0)
        except BaseException as error:
            _close_failed(folder, parts, tracker, progress, error, display)
            raise
    folder.status(
        "finished", exit_code=0, step=progress.step, epoch=len(progress.history), tracking=wandb.state, **_sync(wandb)
    )
    display.say(f"run folder: {folder.path}" + (f"\nto W&B: {wandb.sync_command}" if wandb.sync_command else ""))
    return result


def _with_rates(
    config: Config, parts: Parts, folder: RunFolder, tracker: Tracker, display: Display, interrupts: Interrupts
) -> Parts:
    """The parts with the learning rates that a range test finds, where the settings ask for one."""
    if not config.seeks:
        return parts
    found = find.resolve_rates(config, parts, folder.path, tracker, display, interrupts.check)
    return dataclasses.replace(parts, config=found, schedule=make_schedule(found, parts.batches.train.steps))


def open_tracker(
    config: Config,
    folder: RunFolder,
    parts: Parts,
    facts: Mapping[str, Any],
    interrupts: Interrupts,
    display: Display,
    progress: Progress | None = None,
) -> tuple[Tee, Journal, Any]:
    """The journal and W&B behind one door; a resumed run's go on from where `progress` is."""
    about = {
        "environment": dict(facts),
        "dataset": data_facts(parts),
        "parameters": models.count_parameters(parts.learner.model),
    }
    header = {"config": config.to_dict(), **about}
    earlier: list[Record] = []
    if folder.resumed and progress is not None:
        journal = Journal.resume(folder.path, progress.step, header)
        earlier = read_journal(folder.path).records
    else:
        journal = Journal(folder.path, header)
    wandb = wandb_run.start(
        config,
        folder.path,
        run_name=config.name or folder.name,
        resumed_step=progress.step if folder.resumed and progress is not None else None,
        earlier=earlier,
        code=_plugin_files(config),
        extra=about,
        on_stop=interrupts.stop,
        say=display.say,
    )
    return Tee([journal, wandb]), journal, wandb


def _resume(folder: RunFolder, parts: Parts, display: Display) -> Progress:
    progress = Progress()
    path = checkpoint.newest(folder.checkpoints)
    if path is None:
        return progress
    state = checkpoint.load(path)
    if state.get("fingerprint") != parts.data.fingerprint:
        raise UsageError(f"the data has changed since {folder.path} was begun; start a new run with --resume never")
    checkpoint.fits(parts.learner.model, state["learner"]["model"], path)
    parts.learner.load_state_dict(state["learner"])
    progress.load_state_dict(state["progress"], parts.learner.device)
    display.say(f"going on with {folder.path} from step {progress.step} (epoch {len(progress.history)})")
    return progress


def _plugin_files(config: Config) -> list[Path]:
    """The source files of the user's plug-in modules."""
    modules = (sys.modules.get(name) for name in config.plugin)
    return [Path(module.__file__) for module in modules if module is not None and module.__file__]


def _close_failed(
    folder: RunFolder, parts: Parts, tracker: Tracker, progress: Progress, error: BaseException, display: Display
) -> None:
    """Say in status, summary and tracker how the run ended, without hiding why."""
    meant = known(error)
    code = meant.exit_code if meant is not None else 1
    stopped = isinstance(error, Interrupted)
    state = ("preempted" if code == 143 else "interrupted") if stopped else "failed"
    reason = str(error) or type(error).__name__
    facts = dict(
        reason=reason, exit_code=code, step=progress.step, epoch=len(progress.history), resume=resume_command(folder)
    )
    try:
        folder.status(state, **facts)
        last = progress.history[-1] if progress.history else {}
        told = {"status": "stopped" if stopped else "failed", "reason": reason, "last": last}
        write_json(folder.path / runfolder.SUMMARY, {**told, "epochs": len(progress.history), "steps": progress.step})
        if isinstance(error, DivergedError):
            tracker.alert("training diverged", reason)
        tracker.summary({"status": "stopped" if stopped else "failed", "reason": reason})
        tracker.finish("stopped" if stopped else "failed", code)
    except Exception:
        log.exception("while closing a run that had failed")  # the first error is the one that is raised
    if stopped:
        display.say(f"stopped at step {progress.step}; go on with: {resume_command(folder)}")


def _sync(wandb: Any) -> dict[str, str]:
    return {"sync": wandb.sync_command} if wandb.sync_command else {}
