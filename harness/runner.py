"""The story of a run: settings become parts, parts yield records, records reach the tracker and the folder.

This and the command line are the only places that know every room.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from harness import environment, runfolder
from harness.config import Config
from harness.errors import DivergedError, HarnessError, UsageError
from harness.files import write_atomically, write_json
from harness.interrupts import Interrupted, Interrupts
from harness.runfolder import RunFolder
from harness.tracking import wandb_run
from harness.tracking.journal import Journal
from harness.tracking.journal import read as read_journal
from harness.tracking.tee import Tee
from harness.tracking.tracker import Tracker
from harness.training import checkpoint, machine
from harness.training.learner import Learner, make_learner
from harness.training.loop import Progress, Tick, evaluate, fit
from harness.training.schedule import Schedule, make_schedule
from harness.values import Artifact, Record, Scalar
from harness.vision import figures, loaders, models
from harness.vision.data import DataSet, load
from harness.vision.mix import make_mix
from harness.vision.preprocess import Preprocess, preprocess_for

log = logging.getLogger(__name__)


class Display(Protocol):
    """Who shows a person how a run goes."""

    def tick(self, tick: Tick) -> None: ...
    def record(self, record: Record, epochs: int) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    config: Config
    data: DataSet
    learner: Learner
    preprocess: Preprocess
    batches: loaders.Loaders
    schedule: Schedule

    @property
    def selects(self) -> str:
        """The split whose accuracy chooses the epoch that is kept; empty: the last epoch is kept."""
        match self.config.select:
            case "best-on-test":
                return "test"
            case "auto" | "best" if self.batches.val is not None:
                return "val"
        return ""

    @property
    def watched(self) -> str:
        """The split evaluated after every epoch: validation where there is one, else the test set."""
        return "val" if self.batches.val is not None else "test"


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        summary: what `summary.json` holds.
        history: the scalars of every epoch's record.
        model: with the weights of the result, in evaluation mode.
    """

    folder: Path
    summary: dict[str, Any]
    history: list[dict[str, float]]
    model: nn.Module = field(repr=False)


def run(config: Config, display: Display | None = None) -> Result:
    """Train, evaluate every epoch and record: the same as `harness run`.

    Raises:
        HarnessError: with one line that names what is wrong and its remedy.
        Interrupted: a signal stopped it; the state was saved and the same call goes on.
    """
    from harness.display import Lines

    display = display or Lines(sys.stderr)
    began = time.monotonic()
    parts = assemble(config)
    folder = runfolder.claim(config)
    try:
        return _run_in(folder, parts, display, time.monotonic() - began)
    finally:
        folder.close()


def assemble(config: Config) -> Parts:
    """Every part of a run, checked against the others; nothing is written."""
    device = machine.pick_device(config.device)
    machine.prepare(config, device)
    precision = machine.pick_precision(config.precision, device)
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
    learner = make_learner(config, model, device, precision, make_mix(config, classes))
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


def _check_choices(config: Config, batches: loaders.Loaders) -> None:
    needs = config.schedule == "plateau" or config.early_stop or config.select == "best"
    if needs and batches.val is None:
        raise UsageError(
            "the schedule, early_stop or select needs a validation split, and the data brings none; set --val-fraction 0.1"
        )
    if batches.val is None and batches.test is None:
        raise UsageError("the data has neither a validation nor a test split; set --val-fraction 0.1")


def _run_in(folder: RunFolder, parts: Parts, display: Display, seconds: float) -> Result:
    """One run in its folder: whatever happens, the status and the tracker say so at the end."""
    progress = _resume(folder, parts, display) if folder.resumed else Progress()
    write_atomically(folder.path / runfolder.CONFIG, parts.config.to_yaml())
    folder.status("running", step=progress.step, epoch=len(progress.history), resume=_resume_command(folder))
    facts = environment.describe(parts.learner.device)
    with Interrupts() as interrupts:
        try:
            tracker, wandb = _open_tracker(folder, parts, progress, facts, interrupts, display)
        except BaseException as error:
            folder.status("failed", reason=str(error), exit_code=getattr(error, "exit_code", 1), step=progress.step, epoch=len(progress.history))
            raise
        try:
            story = _Story(parts, folder, tracker, display, progress, interrupts)
            result = story.tell({**facts, "seconds before": round(seconds, 2)})
        except BaseException as error:
            _close_failed(folder, parts, tracker, progress, error, display)
            raise
        tracker.finish("finished", 0)
    folder.status(
        "finished", exit_code=0, step=progress.step, epoch=len(progress.history), tracking=wandb.state, **_sync(wandb)
    )
    display.say(f"run folder: {folder.path}" + (f"\nto W&B: {wandb.sync_command}" if wandb.sync_command else ""))
    return result


def _open_tracker(
    folder: RunFolder,
    parts: Parts,
    progress: Progress,
    facts: Mapping[str, Any],
    interrupts: Interrupts,
    display: Display,
) -> tuple[Tee, Any]:
    about = {"environment": dict(facts), "data": data_facts(parts), "parameters": models.count_parameters(parts.learner.model)}
    header = {"config": parts.config.to_dict(), **about}
    earlier: list[Record] = []
    if folder.resumed:
        journal = Journal.resume(folder.path, progress.step, header)
        earlier = read_journal(folder.path).records
    else:
        journal = Journal(folder.path, header)
    wandb = wandb_run.start(
        parts.config,
        folder.path,
        run_name=parts.config.name or folder.name,
        resumed_step=progress.step if folder.resumed else None,
        earlier=earlier,
        code=_plugin_files(parts.config),
        extra=about,
        on_stop=interrupts.stop,
        say=display.say,
    )
    return Tee([journal, wandb]), wandb


def data_facts(parts: Parts) -> dict[str, Any]:
    """What the data is: sizes of the splits, classes, fingerprint, and how it is loaded."""
    data = parts.data
    sizes = {split.name: len(split) for split in (data.train, data.val, data.test) if split is not None}
    return {
        "name": data.name,
        "classes": list(data.classes),
        "images": sizes,
        "fingerprint": data.fingerprint,
        "loader": parts.batches.kind,
    }


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


@dataclass
class _Story:
    """The chapters of one run, sharing what they all need."""

    parts: Parts
    folder: RunFolder
    tracker: Tracker
    display: Display
    progress: Progress
    interrupts: Interrupts

    def tell(self, facts: Mapping[str, Any]) -> Result:
        """Train, then keep the result and what can be said of it."""
        self._train()
        model = self._result_model()
        final = self._judge(model)
        summary = self._summarise(final, facts)
        self._keep_weights(model, summary)
        self._draw()
        write_json(self.folder.path / runfolder.SUMMARY, summary)
        self.tracker.summary(flat(summary))
        self.tracker.artifact(self._artifact(summary))
        return Result(self.folder.path, summary, self.progress.history, model)

    def _train(self) -> None:
        parts, config = self.parts, self.parts.config
        evaluated = {parts.watched: getattr(parts.batches, parts.watched)}
        records = fit(
            parts.learner,
            parts.batches.train,
            parts.schedule,
            epochs=config.epochs,
            evaluations=evaluated,
            seed=config.seed,
            progress=self.progress,
            watch=self._watch,
        )
        if self._stops_early():  # resumed after its last epoch
            return
        for record in records:
            self._record(record)
            if self._stops_early():
                self.display.say(f"stopped early: no better validation accuracy for {config.early_stop} epochs")
                break
            self.interrupts.check()

    def _record(self, record: Record) -> None:
        epoch, acc = best(self.progress.history, self.parts.watched)
        record = Record(
            record.step,
            record.epoch,
            {**record.values, f"best/{self.parts.watched}_acc": acc},
            record.steps,
            record.kind,
        )
        self.tracker.record(record)
        if self.parts.selects and epoch == record.epoch:
            self._save_model(self.parts.learner.judged, {"epoch": epoch})
        self._save()
        self.display.record(record, self.parts.config.epochs)

    def _watch(self, tick: Tick) -> None:
        self.display.tick(tick)
        every = self.parts.config.checkpoint_every
        if self.interrupts.pending:
            self._save()
            self.interrupts.check()
        elif every and tick.step % every == 0 and tick.batch < tick.batches:
            self._save()

    def _save(self) -> None:
        state = {
            "learner": self.parts.learner.state_dict(),
            "progress": self.progress.state_dict(),
            "fingerprint": self.parts.data.fingerprint,
        }
        facts = {"step": self.progress.step, "epoch": len(self.progress.history), "model": self.parts.config.model}
        checkpoint.save(
            self.folder.checkpoints,
            {
                **state,
                "config": self.parts.config.to_dict(),
                "classes": list(self.parts.data.classes),
                "preprocess": self.parts.preprocess.to_dict(),
            },
            facts,
        )
        self.folder.status("running", **facts, resume=_resume_command(self.folder))

    def _stops_early(self) -> bool:
        patience, history = self.parts.config.early_stop, self.progress.history
        return bool(patience and history) and len(history) - best(history, "val")[0] >= patience

    def _result_model(self) -> nn.Module:
        """The model with the weights that the run's result is about, in evaluation mode."""
        model = self.parts.learner.judged
        if self.parts.selects and self.progress.history:
            weights, _ = checkpoint.load_weights(self.folder.checkpoints / "model.safetensors")
            checkpoint.fits(model, weights, self.folder.checkpoints / "model.safetensors")
        return model.eval()

    def _judge(self, model: nn.Module) -> dict[str, float]:
        """The result's figures on every split that was held out; the test set is read here when another one chose."""
        learner, batches = self.parts.learner, self.parts.batches
        final: dict[str, float] = {}
        for name, split in (("val", batches.val), ("test", batches.test)):
            if split is not None:
                scores = evaluate(model, split, learner.device, learner.precision)
                final |= {f"{name}/{key}": value for key, value in scores.items()}
        self.tracker.record(
            Record(
                self.progress.step,
                len(self.progress.history),
                {f"result/{key}": value for key, value in final.items()},
                kind="final",
            )
        )
        return final

    def _summarise(self, final: Mapping[str, float], facts: Mapping[str, Any]) -> dict[str, Any]:
        history, watched, selects = self.progress.history, self.parts.watched, self.parts.selects
        epoch, acc = best(history, watched) if history else (0, float("nan"))
        chosen = f"best {selects}/acc" if selects else "last epoch"
        warning = " (chosen on the test set)" if watched == "test" else ""
        return {
            "status": "finished",
            "result": {
                "epoch": epoch if selects else len(history),
                "chosen": chosen + (warning if selects == "test" else ""),
                **final,
            },
            "best": {"epoch": epoch, f"{watched}/acc": acc, "chosen": f"best {watched}/acc{warning}"},
            "last": history[-1] if history else {},
            "epochs": len(history),
            "steps": self.progress.step,
            "parameters": models.count_parameters(self.parts.learner.model),
            "seconds": {
                key: round(sum(row[f"time/{key}(s)"] for row in history), 3) for key in ("train", "eval", "epoch")
            },
            "data": data_facts(self.parts),
            "environment": dict(facts),
        }

    def _save_model(self, model: nn.Module, facts: Mapping[str, Any]) -> None:
        parts = self.parts
        checkpoint.save_weights(
            self.folder.checkpoints / "model.safetensors",
            model,
            {
                "config": parts.config.to_dict(),
                "classes": list(parts.data.classes),
                "preprocess": parts.preprocess.to_dict(),
                **facts,
            },
        )

    def _keep_weights(self, model: nn.Module, summary: Mapping[str, Any]) -> None:
        self._save_model(
            model,
            {"epoch": summary["result"]["epoch"], "result": summary["result"], "parameters": summary["parameters"]},
        )

    def _draw(self) -> None:
        story = [record for record in read_journal(self.folder.path).records if record.kind == "epoch"]
        if not story:
            return
        figures.losses(story, self.folder.figures / "losses.png")
        figures.accuracy(story, self.folder.figures / "accuracy.png")
        steps = [int(step) for record in story if record.steps for step in record.steps.x]
        rates = [rate for record in story if record.steps for rate in record.steps.lines["lr"]]
        figures.learning_rate(steps, rates, self.folder.figures / "lr.png")

    def _artifact(self, summary: Mapping[str, Any]) -> Artifact:
        folder = self.folder.checkpoints
        return Artifact(
            name=f"{self.folder.name}-model",
            kind="model",
            files={
                "model.safetensors": folder / "model.safetensors",
                "model.json": folder / "model.json",
                "config.yaml": self.folder.path / runfolder.CONFIG,
            },
            aliases=("best", "latest") if self.parts.selects else ("latest",),
            metadata={"config": self.parts.config.to_dict(), **flat(summary)},
        )


def best(history: list[dict[str, float]], split: str) -> tuple[int, float]:
    """(epoch counted from 1, accuracy) of the first epoch with the highest accuracy on a split."""
    row = max(history, key=lambda row: row.get(f"{split}/acc", float("-inf")))
    return int(row["epoch"]), row.get(f"{split}/acc", float("nan"))


def flat(summary: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """The numbers and words of a summary under `part/key` names; the environment and the data stay out."""
    plain: dict[str, Scalar] = {}
    for key, value in summary.items():
        if key in ("environment", "data"):
            continue
        if isinstance(value, Mapping):
            plain |= flat(value, "" if key == "last" else f"{prefix}{key}/")
        elif isinstance(value, int | float | str):
            plain[f"{prefix}{key}"] = value
    return plain


def _plugin_files(config: Config) -> list[Path]:
    """The source files of the user's plug-in modules."""
    modules = (sys.modules.get(name) for name in config.plugin)
    return [Path(module.__file__) for module in modules if module is not None and module.__file__]


def _close_failed(
    folder: RunFolder, parts: Parts, tracker: Tracker, progress: Progress, error: BaseException, display: Display
) -> None:
    """Say in status, summary and tracker how the run ended, without hiding why."""
    code = error.exit_code if isinstance(error, HarnessError) else 1
    state = "interrupted" if isinstance(error, Interrupted) else "failed"
    reason = str(error) or type(error).__name__
    facts = dict(
        reason=reason, exit_code=code, step=progress.step, epoch=len(progress.history), resume=_resume_command(folder)
    )
    try:
        folder.status(state, **facts)
        if isinstance(error, DivergedError):
            tracker.alert("training diverged", reason)
        tracker.summary({"status": "stopped" if state == "interrupted" else "failed", "reason": reason})
        tracker.finish("stopped" if state == "interrupted" else "failed", code)
    except Exception:
        log.exception("while closing a run that had failed")  # the first error is the one that is raised
    if state == "interrupted":
        display.say(f"stopped at step {progress.step}; go on with: {_resume_command(folder)}")


def _resume_command(folder: RunFolder) -> str:
    return shlex.join(["harness", "run", "--recipe", str(folder.path / runfolder.CONFIG), "--resume", str(folder.path)])


def _sync(wandb: Any) -> dict[str, str]:
    return {"sync": wandb.sync_command} if wandb.sync_command else {}
