"""The chapters of a run: train, judge, look, draw, keep. What they share is in `Trainer`; `runner` opens and closes it."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from torch import nn

from harness.utils import environment
from harness.utils import fault_injection
from harness.tracking import run_dir
from harness.models.model_card import model_card
from harness.config.settings import Config
from harness.utils.files import read_json, write_atomically, write_json
from harness.utils.signals import Interrupted, Interruptible, StopRequests
from harness.runs.components import Components, describe_data
from harness.tracking.run_dir import RunDir, RunState
from harness.reporting.evaluation_report import EvaluationResult, Evaluator, prefixed
from harness.runs.summary import best_epoch, flatten_summary, summarise
from harness.tracking.wandb import init
from harness.tracking.journal import Journal, NullJournal
from harness.tracking.journal import read_journal as read_journal
from harness.tracking.tracker import MultiTracker, Tracker
from harness.training import checkpoint
from harness.training.loop import EvalBatches, TrainerState, StepInfo, evaluate, fit
from harness.training.checkpoint_writer import NullCheckpointWriter, CheckpointWriter
from harness.tracking.records import Artifact, Record, Scalar, Value
from harness.reporting.figures import training_curves
from harness.models import factory


class ProgressReporter(Protocol):
    """Who shows a person how a run goes."""

    def tick(self, tick: StepInfo) -> None: ...
    def record(self, record: Record, epochs: int) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass(frozen=True)
class RunResult:
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


@dataclass
class Trainer:
    """The chapters of one run, sharing what they all need."""

    components: Components
    folder: RunDir
    tracker: Tracker
    journal: Journal | NullJournal
    display: ProgressReporter
    progress: TrainerState
    stop_requests: StopRequests
    reported_parts: int = 1

    def __post_init__(self) -> None:
        self.reported_parts = self.components.learner.grad_accumulation
        self.processes = self.components.learner.processes
        self.saver = CheckpointWriter(self.components.learner.device) if self.processes.is_main else NullCheckpointWriter()

    def tell(self, facts: Mapping[str, Any]) -> RunResult:
        """Train, then keep the result and what can be said of it."""
        self.train()
        fault_injection.point("chapter")
        trained = time.monotonic()
        model = self._result_model()
        fault_injection.point("chapter")
        final = self._judge(model)
        self.stop_requests.check()
        fault_injection.point("chapter")
        self._draw()
        fault_injection.point("chapter")
        explained = time.monotonic() - trained
        summary = summarise(self.components, self.progress, final, facts)
        summary["seconds"]["explain"] = round(explained, 3)  # predictions, galleries, maps, figures
        self._keep_weights(model, summary)
        fault_injection.point("chapter")
        write_json(self.folder.path / run_dir.SUMMARY, summary)
        self.tracker.summary(flatten_summary(summary))
        self.tracker.artifact(self._artifact(summary))
        return RunResult(self.folder.path, summary, self.progress.history, model)

    def train(self) -> None:
        """Every epoch that is left. This is all that a process does which does not lead."""
        try:
            self._train()
        finally:
            self.saver.flush()  # whatever ended it: its last checkpoint is on the disk

    def _train(self) -> None:
        parts, config = self.components, self.components.config
        evaluated = {parts.watched: self._watched_batches()}
        records = fit(
            parts.learner,
            parts.batches.train,
            parts.schedule,
            epochs=config.epochs,
            evaluations=evaluated,
            seed=config.seed,
            progress=self.progress,
            on_step=self._watch,
        )
        if self._stops_early():  # resumed after its last epoch
            return
        try:
            for record in records:
                self._record(record)
                if self._stops_early():
                    self.display.say(f"stopped early: no better validation accuracy for {config.early_stop} epochs")
                    break
                self._check()
        except Interrupted:
            if not self.progress.losses or math.isfinite(self.progress.losses[-1]):
                self._save()
            raise

    def _watched_batches(self) -> EvalBatches:
        """The split that is evaluated after every epoch; of several processes each has its part of it."""
        batches = getattr(self.components.batches, self.components.watched)
        if self.processes.world_size > 1:  # which all have to come to the end of
            return cast(EvalBatches, batches.shard(self.processes))
        return Interruptible(batches, self.stop_requests)

    def _check(self) -> None:
        """Stop where a stop was asked for: all processes after the same update."""
        self.stop_requests.obey(self.processes.reduce_stop_flag(self.stop_requests.asked))

    def _record(self, record: Record) -> None:
        epoch, acc = best_epoch(self.progress.history, self.components.watched)
        values = {**record.values, f"best/{self.components.watched}_acc": acc, **self._explained(record)}
        self.tracker.record(Record(record.step, record.epoch, values, record.steps, record.kind))
        if self.components.selects and epoch == record.epoch:
            self._save_model(self.components.learner.eval_model, {"epoch": epoch})
        self._save()
        self.display.record(record, self.components.config.epochs)

    def _explained(self, record: Record) -> dict[str, Value]:
        """In an epoch that `explain_every` names: what can be seen of the watched split, under figures/epoch-N."""
        every, parts = self.components.config.explain_every, self.components
        if not every or record.epoch % every or record.epoch == parts.config.epochs or not self.processes.is_main:
            return {}
        split, batches = getattr(parts.data, parts.watched), getattr(parts.batches, parts.watched)
        viewer = Evaluator(parts.config, parts.learner.eval_model, parts.preprocess, parts.data.classes, parts.learner.device)
        return viewer.see(split, batches, self.folder.figures / f"epoch-{record.epoch}").values

    def _watch(self, tick: StepInfo) -> None:
        self.display.tick(tick)
        every = self.components.config.checkpoint_every
        self._tell_parts()
        self._check()
        if every and tick.step % every == 0 and tick.batch < tick.batches and math.isfinite(tick.loss()):
            self._save()

    def _tell_parts(self) -> None:
        """Say, once, that memory made the learner compute its batches in more parts."""
        parts = self.components.learner.grad_accumulation
        if parts != self.reported_parts:
            self.reported_parts = parts
            text = (
                f"out of memory: each batch of {self.components.config.batch_size} images is now computed in {parts} parts"
            )
            self.display.say(text)
            self.tracker.alert("out of memory", text)

    def _save(self) -> None:
        self.components.learner.average_buffers()
        self.journal.sync()  # the journal is never behind a checkpoint
        facts = {"step": self.progress.step, "epoch": len(self.progress.history), "model": self.components.config.model}
        state = {
            "learner": self.components.learner.state_dict(),
            "progress": self.progress.state_dict(),
            "fingerprint": self.components.data.fingerprint,
            **self._about_model(),
        }

        def write(state: dict[str, Any]) -> None:
            checkpoint.save_checkpoint(self.folder.checkpoints, state, facts)
            self.folder.status(RunState.RUNNING, **facts, resume=resume_command(self.folder))

        self.saver.save(state, write)

    def _stops_early(self) -> bool:
        patience, history = self.components.config.early_stop, self.progress.history
        return bool(patience and history) and len(history) - best_epoch(history, "val")[0] >= patience

    def _result_model(self) -> nn.Module:
        """The model with the weights that the run's result is about, in evaluation mode."""
        model = self.components.learner.eval_model
        if self.components.selects and self.progress.history:
            weights, _ = checkpoint.load_weights(self.folder.checkpoints / "model.safetensors")
            checkpoint.load_weights_strict(model, weights, self.folder.checkpoints / "model.safetensors")
        return model.eval()

    def _judge(self, model: nn.Module) -> dict[str, Scalar]:
        """The result's figures on every split that was held out, and what can be seen of it.

        Where a validation split chose, this is the one time that the test set is read.
        """
        parts, batches = self.components, self.components.batches
        final: dict[str, Scalar] = {}
        if batches.val is not None and batches.test is not None:
            held = Interruptible(batches.val, self.stop_requests)
            final |= prefixed(evaluate(model, held, parts.learner.device, parts.learner.precision), "val")
        seen, split = self._see(model, self.folder.path)
        final |= prefixed(seen.metrics, split)
        values = {**seen.values, **prefixed(final, "result")}
        self.tracker.record(Record(self.progress.step, len(self.progress.history), values, kind="final"))
        if seen.empty_maps[0]:
            final["empty_maps"] = seen.empty_maps[0]
            self.display.say(
                f"{seen.empty_maps[0]} of {seen.empty_maps[1]} class-activation maps are empty; another --cam may show more"
            )
        return final

    def _see(self, model: nn.Module, folder: Path) -> tuple[EvaluationResult, str]:
        """Predictions, galleries and maps of the reported split (test where there is one), written into `folder`."""
        parts = self.components
        split = parts.data.test or parts.data.val
        batches = parts.batches.test or parts.batches.val
        assert split is not None and batches is not None
        viewer = Evaluator(parts.config, model, parts.preprocess, parts.data.classes, parts.learner.device)
        return viewer.see(split, Interruptible(batches, self.stop_requests), folder), split.name

    def _about_model(self) -> dict[str, Any]:
        """What a file of weights is told beside them."""
        parts = self.components
        return {
            "config": parts.config.to_dict(),
            "classes": list(parts.data.classes),
            "preprocess": parts.preprocess.to_dict(),
        }

    def _save_model(self, model: nn.Module, facts: Mapping[str, Any]) -> None:
        path, about = self.folder.checkpoints / "model.safetensors", {**self._about_model(), **facts}
        self.saver.save(model.state_dict(), lambda weights: checkpoint.save_weights(path, weights, about))

    def _keep_weights(self, model: nn.Module, summary: Mapping[str, Any]) -> None:
        """The weights of the result with a model card, in a folder that stock timm loads."""
        facts = {key: summary[key] for key in ("result", "parameters")} | {"epoch": summary["result"]["epoch"]}
        self._save_model(model, facts)
        self.saver.flush()
        folder = self.folder.checkpoints
        write_atomically(folder / "README.md", model_card(read_json(folder / "model.json")))
        factory.write_timm_config(model, self.components.data.classes, self.components.preprocess, folder / "config.json")

    def _draw(self) -> None:
        story = [record for record in read_journal(self.folder.path).records if record.kind == "epoch"]
        if not story:
            return
        training_curves.losses(story, self.folder.figures / "losses.png")
        training_curves.accuracy(story, self.folder.figures / "accuracy.png")
        steps = [int(step) for record in story if record.steps for step in record.steps.x]
        rates = [rate for record in story if record.steps for rate in record.steps.lines["lr"]]
        training_curves.learning_rate(
            steps, rates, self.folder.figures / "lr.png", steps_per_epoch=self.components.batches.train.steps
        )

    def _artifact(self, summary: Mapping[str, Any]) -> Artifact:
        folder = self.folder.checkpoints
        names = ("model.safetensors", "model.json", "config.json", "README.md")
        kept = {name: folder / name for name in names if (folder / name).exists()}
        return Artifact(
            name=f"{self.folder.name}-model",
            kind="model",
            files={**kept, "config.yaml": self.folder.path / run_dir.CONFIG},
            aliases=("best", "latest") if self.components.selects else ("latest",),
            metadata={"config": self.components.config.to_dict(), **flatten_summary(summary)},
        )


def open_tracker(
    config: Config,
    folder: RunDir,
    parts: Components,
    facts: Mapping[str, Any],
    stop_requests: StopRequests,
    display: ProgressReporter,
    progress: TrainerState | None = None,
) -> tuple[MultiTracker, Journal, Any]:
    """The journal and W&B behind one door; a resumed run's go on from where `progress` is."""
    about = {
        "environment": dict(facts),
        "dataset": describe_data(parts),
        "parameters": factory.count_parameters(parts.learner.model),
    }
    header = {"config": config.to_dict(), **about}
    earlier: list[Record] = []
    if folder.resumed and progress is not None:
        journal = Journal.resume(folder.path, progress.step, header)
        earlier = read_journal(folder.path).records
    else:
        journal = Journal(folder.path, header)
    wandb = init.start(
        config,
        folder.path,
        run_name=config.name or folder.name,
        resumed_step=progress.step if folder.resumed and progress is not None else None,
        earlier=earlier,
        code=_plugin_files(config),
        extra=about,
        on_stop=stop_requests.stop,
        say=display.say,
    )
    return MultiTracker([journal, wandb]), journal, wandb


def _plugin_files(config: Config) -> list[Path]:
    """The source files of the user's plug-in modules."""
    modules = (sys.modules.get(name) for name in config.plugin)
    return [Path(module.__file__) for module in modules if module is not None and module.__file__]


def resume_command(folder: RunDir) -> str:
    words = ["run", "--recipe", str(folder.path / run_dir.CONFIG), "--resume", str(folder.path)]
    return shlex.join([*environment.launch_command(), *words])
