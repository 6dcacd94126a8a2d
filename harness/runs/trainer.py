"""The steps of one run: train, evaluate, explain, draw and keep the result. `run.py` opens and closes what it needs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import nn

from harness.config.names import SELECTION_TEXTS, main_metric
from harness.models import factory
from harness.models.model_card import model_card
from harness.models.pretrained import architecture_of
from harness.reporting import augmented_images
from harness.reporting.augmented_images import draw_augmented
from harness.reporting.evaluation_report import EvaluationResult, Evaluator, prefixed
from harness.reporting.figures import training_curves
from harness.reporting.html.run_charts import multilabel_training_loss, training_loss
from harness.runs.advice import missing_weights
from harness.runs.components import Components, describe_data
from harness.runs.model_log import WEIGHTS, ModelLog
from harness.runs.progress import ProgressReporter
from harness.runs.summary import best_epoch, flatten_summary, last_accuracy, plain_metrics, summarise
from harness.tracking import run_dir
from harness.tracking.chosen_settings import read_choices
from harness.tracking.journal import Journal, NullJournal, read_journal
from harness.tracking.records import Image, Record, Scalar, Value
from harness.tracking.run_dir import RunDir, RunState
from harness.tracking.tracker import Tracker
from harness.training import checkpoint
from harness.training.checkpoint import CheckpointWriter, NullCheckpointWriter
from harness.training.device import pause_garbage_collection
from harness.training.finite import first_not_finite
from harness.training.histograms import model_histograms
from harness.training.live_steps import LIVE_SECONDS
from harness.training.loop import EvalBatches, StepInfo, TrainerState, evaluate_batches, fit
from harness.training.multilabel import evaluate_multilabel
from harness.utils import fault_injection
from harness.utils.errors import CheckpointError, DivergedError, is_compiler_error
from harness.utils.files import read_json, write_atomically, write_json
from harness.utils.signals import Interrupted, Interruptible, StopRequests
from harness.utils.text import counted


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        folder: the run directory.
        summary: the contents of `summary.json`.
        history: the scalars of every epoch's record.
        model: with the weights of the result, in evaluation mode.
    """

    folder: Path
    summary: dict[str, Any]
    history: list[dict[str, float]]
    model: nn.Module = field(repr=False)


@dataclass
class Trainer:
    """Trains the components of one run and records the results."""

    components: Components
    directory: RunDir
    tracker: Tracker
    journal: Journal | NullJournal
    reporter: ProgressReporter
    state: TrainerState
    stop_requests: StopRequests
    reported_micro_batches: int = 1
    augmented: Image | None = None  # until it has been recorded
    thresholds: np.ndarray | None = None  # of the result, where images have several labels

    def __post_init__(self) -> None:
        learner = self.components.learner
        self.reported_micro_batches = learner.grad_accumulation
        self.processes = learner.processes
        self.model_log = ModelLog(self.components, self.directory, self.tracker)
        self.writer = CheckpointWriter(learner.device) if self.processes.is_main else NullCheckpointWriter()

    def run(self, environment: Mapping[str, Any]) -> RunResult:
        """Train, then evaluate, explain, draw and keep the result.

        Args:
            environment: plain facts of the machine, for the summary.
        """
        self._draw_augmented()
        self.train()
        fault_injection.point("phase")
        trained_at = time.monotonic()
        model = self._result_model()
        fault_injection.point("phase")
        metrics = self._evaluate_result(model)
        self.stop_requests.check()
        fault_injection.point("phase")
        self._draw_curves()
        fault_injection.point("phase")
        explain_seconds = time.monotonic() - trained_at
        summary = summarise(self.components, self.state, metrics, environment, self.thresholds)
        summary["seconds"]["explain"] = round(explain_seconds, 3)  # predictions, galleries, maps, figures
        choices = read_choices(self.directory.path)
        summary["warnings"] += filter(None, [missing_weights(self.components.config.model, choices)])
        for line in summary["warnings"]:
            self.reporter.message(f"Warning: {line}")
        self._keep_weights(model, summary)
        fault_injection.point("phase")
        write_json(self.directory.path / run_dir.SUMMARY, summary)
        self.tracker.summary(flatten_summary(summary))
        self.model_log.log_result(summary)
        return RunResult(self.directory.path, summary, self.state.history, model)

    def _draw_augmented(self) -> None:
        """Draw augmented training images, for the record of the first epoch; not in a run that has resumed after it."""
        components, config = self.components, self.components.config
        if config.gallery and config.epochs and not self.state.history:
            self.augmented = draw_augmented(
                components.loaders.train,
                components.learner.mix,
                config,
                components.preprocess,
                components.dataset.classes,
                self.directory.figures / augmented_images.NAME,
            )

    def train(self) -> None:
        """Train the epochs that are left. A process that is not the main one does nothing else."""
        try:
            self._train()
        finally:
            self.writer.flush()  # however it ended, its last checkpoint is on the disk

    def _train(self) -> None:
        components, config = self.components, self.components.config
        records = fit(
            components.learner,
            components.loaders.train,
            components.schedule,
            epochs=config.epochs,
            evaluations={components.eval_split: self._eval_batches()},
            seed=config.seed,
            state=self.state,
            on_step=self._on_step,
            live_seconds=LIVE_SECONDS if self.processes.is_main else None,
        )
        if self._stops_early():  # resumed after its last epoch
            return
        try:
            for record in records:
                if record.kind == "steps":
                    self.tracker.record(record)
                    continue
                self._on_epoch(record)
                if self._stops_early():
                    self.reporter.message(
                        f"Stopped early: no better validation {SELECTION_TEXTS[config.select_by]} for {counted(config.early_stop, 'epoch', 'epochs')}."
                    )
                    break
                self._check_stop()
        except Interrupted:
            if not self.state.losses or math.isfinite(self.state.losses[-1]):
                self._save_checkpoint()
            raise
        except Exception as error:
            if is_compiler_error(error):  # Ctrl-C ends the processes of the compiler too; the update is not complete
                self.stop_requests.check()
            raise

    def _eval_batches(self) -> EvalBatches:
        """Return the batches of the split that is evaluated after every epoch; under DDP this process's shard of it."""
        batches = getattr(self.components.loaders, self.components.eval_split)
        if self.processes.world_size > 1:  # all of them have to finish it
            return cast(EvalBatches, batches.shard(self.processes))
        return Interruptible(batches, self.stop_requests)

    def _check_stop(self) -> None:
        """Stop where a stop was requested: under DDP all processes after the same update."""
        self.stop_requests.raise_for(self.processes.reduce_stop_flag(self.stop_requests.signal_number))

    def _on_step(self, info: StepInfo) -> None:
        """Show progress, stop if requested, and save a checkpoint after every `checkpoint_every` updates.

        The loss is not read: that would wait for the device.
        """
        self.reporter.on_step(info)
        every = self.components.config.checkpoint_every
        self._report_split_batches()
        self._check_stop()
        if every and info.step % every == 0 and info.batch < info.batches:
            self._save_checkpoint()

    def _on_epoch(self, record: Record) -> None:
        """Record an epoch, keep its weights if they are the best, and save a checkpoint."""
        split = self.components.eval_split
        metric = self.components.config.select_by
        main = main_metric(self.components.config.is_multilabel)
        best = {f"best/{split}_{name}": best_epoch(self.state.history, split, name) for name in {main, metric}}
        epoch, value = best[f"best/{split}_{metric}"]
        record = dataclasses.replace(record, values={**record.values, **{name: best[name][1] for name in sorted(best)}})
        values: dict[str, Value] = {**record.values, **self._watch()}
        details: Mapping[str, Value] = {}
        if self.augmented is not None:
            values["gallery/augmented"], self.augmented = self.augmented, None
        if (explained := self._explain_epoch(record)) is not None:
            values, details = {**values, **explained.values}, explained.details
        self.tracker.record(dataclasses.replace(record, values=values, details=details))
        if self.components.selection_split and epoch == record.epoch:
            self._save_weights(self.components.learner.eval_model, {"epoch": epoch})
            if self.processes.is_main:
                self.model_log.log_best(
                    epoch, float(cast(float, record.values[f"{split}/{main}"])), value, self.writer.flush
                )
        self._save_checkpoint()
        self.reporter.on_epoch(record, self.components.config.epochs)

    def _watch(self) -> dict[str, Value]:
        """Return the histograms that `watch` names, of the model that is trained."""
        watched = self.components.config.watch
        if watched == "none" or not self.processes.is_main:
            return {}
        model, is_all = self.components.learner.model, watched == "all"
        return {
            **model_histograms(
                model, gradients=is_all or watched == "gradients", parameters=is_all or watched == "parameters"
            )
        }

    def _explain_epoch(self, record: Record) -> EvaluationResult | None:
        """Return galleries and figures of an epoch that `explain_every` names, written to figures/epoch-N; else None."""
        every, components = self.components.config.explain_every, self.components
        is_last = record.epoch == components.config.epochs
        if not every or record.epoch % every or is_last or not self.processes.is_main:
            return None
        split = getattr(components.dataset, components.eval_split)
        batches = getattr(components.loaders, components.eval_split)
        folder = self.directory.figures / f"epoch-{record.epoch}"
        return self._evaluator(components.learner.eval_model).evaluate(split, batches, folder)

    def _report_split_batches(self) -> None:
        """Report that batches are computed in more micro-batches, after memory ran out."""
        micro_batches = self.components.learner.grad_accumulation
        if micro_batches != self.reported_micro_batches:
            self.reported_micro_batches = micro_batches
            batch_size = self.components.config.batch_size
            text = f"out of memory: each batch of {batch_size} images is now computed in {micro_batches} micro-batches"
            if self.components.learner.is_without_onednn:
                text += ", without oneDNN, which fails in this process from now on: stop the run and resume it to train faster"
            self.reporter.message(text)
            if self.components.config.alerts != "none":
                self.tracker.alert("out of memory", text)

    def _save_checkpoint(self) -> None:
        self.components.learner.average_buffers()
        self.journal.sync()  # the journal is never behind a checkpoint
        step = self.state.step
        facts = {"step": step, "epoch": len(self.state.history), "model": self.components.config.model}
        accuracy = last_accuracy(self.state.history)
        state = {
            "learner": self.components.learner.state_dict(),
            "progress": self.state.state_dict(),
            **self._describe_model(),
        }

        def write(state: dict[str, Any]) -> None:
            losses = state["progress"]["losses"]  # of the unfinished epoch
            if losses is not None and not math.isfinite(losses[-1]):
                return
            self._check_finite(state["learner"])
            checkpoint.save_checkpoint(self.directory.checkpoints, state, facts)
            self.directory.checkpoint_step = step
            self.directory.status(RunState.RUNNING, **facts, **accuracy, resume=self.directory.resume_command)

        self.writer.save(state, write)

    def _check_finite(self, state: Mapping[str, Any]) -> None:
        """Refuse to save weights, averages or optimizer buffers that are not finite over a checkpoint whose are.

        Raises:
            DivergedError: one of them is NaN or infinite.
        """
        if name := first_not_finite(state, self.components.learner.infinite_buffers):
            raise DivergedError(
                f"training diverged: {name} is not finite at step {self.state.step}, and is not saved; lower --lr-max (harness lr-find suggests one) or set --clip-grad 1"
            )

    def _stops_early(self) -> bool:
        config, history = self.components.config, self.state.history
        patience, extensions = config.early_stop, config.extensions()
        # A run that was stopped early and is to train on is not stopped before it has.
        since = extensions[-1][0] // self.components.loaders.train.steps if extensions else 0
        return (
            bool(patience and history)
            and len(history) - max(best_epoch(history, "val", config.select_by)[0], since) >= patience
        )

    def _result_model(self) -> nn.Module:
        """Return the model with the weights of the result: those of the selected epoch, else the last ones."""
        model = self.components.learner.eval_model
        if self.components.selection_split and self.state.history:
            path = self.directory.checkpoints / WEIGHTS
            weights, facts = checkpoint.load_weights(path)
            epoch = self._chosen_epoch()
            if facts.get("epoch", epoch) != epoch:
                raise CheckpointError(
                    f"{path} has the weights of epoch {facts['epoch']}, and the best one is epoch {epoch}; start again with --resume never"
                )
            checkpoint.load_weights_strict(model, weights, path)
        return model.eval()

    def _chosen_epoch(self) -> int:
        """Return the epoch of the result, counted from 1: the best one on the split that selects it (0: there is none), else the last."""
        history, split = self.state.history, self.components.selection_split
        return best_epoch(history, split, self.components.config.select_by)[0] if split else len(history)

    @pause_garbage_collection()  # what it draws and encodes would set off a full collection
    def _evaluate_result(self, model: nn.Module) -> dict[str, Scalar]:
        """Return the metrics of the result on every held-out split; write its predictions, galleries and figures.

        Where a validation split selected the epoch, this is the only time that the test set is read.
        """
        components, loaders = self.components, self.components.loaders
        metrics: dict[str, Scalar] = {}
        if loaders.val is not None and loaders.test is not None:
            held_out = Interruptible(loaders.val, self.stop_requests)
            device, precision = components.learner.device, components.learner.precision
            if components.config.is_multilabel:
                values_of_val, self.thresholds = evaluate_multilabel(
                    model, held_out, device, precision, chooses_thresholds=True
                )
            else:
                values_of_val = evaluate_batches(model, held_out, device, precision)
            metrics |= prefixed(values_of_val, "val")
        split = components.dataset.test or components.dataset.val
        batches = loaders.test or loaders.val
        assert split is not None and batches is not None
        interruptible = Interruptible(batches, self.stop_requests)
        result = self._evaluator(model).evaluate(split, interruptible, self.directory.path)
        self.thresholds = result.thresholds
        metrics |= prefixed(result.metrics, split.name)
        for name in filter(result.metrics.__contains__, components.config.metrics):
            self.reporter.message(f"{split.name} {name}: {result.metrics[name]:.4f}")
        epoch = len(self.state.history)
        metrics |= plain_metrics(self.state.history, self._chosen_epoch())
        values = {**result.values, **prefixed(metrics, "result")}
        self.tracker.record(Record(self.state.step, epoch, values, kind="final", details=result.details))
        empty, total = result.empty_maps
        if empty:
            metrics["empty_maps"] = empty
            self.reporter.message(f"{empty} of {total} class-activation maps are empty; another --cam may show more")
        return metrics

    def _evaluator(self, model: nn.Module) -> Evaluator:
        components = self.components
        return Evaluator(
            components.config,
            model,
            components.preprocess,
            components.dataset.classes,
            components.learner.device,
            self.thresholds,
        )

    def _describe_model(self) -> dict[str, Any]:
        """Return what is stored with the weights, so that they can be loaded again."""
        components = self.components
        return {
            "config": components.config.to_dict(),
            "classes": list(components.dataset.classes),
            "preprocess": components.preprocess.to_dict(),
            "architecture": architecture_of(components.learner.model, components.config.model),
            "fingerprint": components.dataset.fingerprint,
        }

    def _save_weights(self, model: nn.Module, facts: Mapping[str, Any]) -> None:
        path, about = self.directory.checkpoints / WEIGHTS, {**self._describe_model(), **facts}

        def write(weights: dict[str, Any]) -> None:
            self._check_finite(weights)
            checkpoint.save_weights(path, weights, about)

        self.writer.save(model.state_dict(), write, "weights")

    def _keep_weights(self, model: nn.Module, summary: Mapping[str, Any]) -> None:
        """Write the weights of the result with a model card, in a folder that stock timm loads."""
        facts = {key: summary[key] for key in ("result", "parameters")} | {"epoch": summary["result"]["epoch"]}
        if self.thresholds is not None:
            facts["thresholds"] = self.thresholds.tolist()
        self._save_weights(model, facts)
        self.writer.flush()
        folder = self.directory.checkpoints
        write_atomically(folder / "README.md", model_card(read_json(folder / "model.json")))
        factory.write_class_map(self.components.dataset.classes, folder / factory.CLASS_MAP)
        factory.write_timm_config(
            model,
            self.components.dataset.classes,
            self.components.preprocess,
            folder / "config.json",
            None if self.thresholds is None else self.thresholds.tolist(),
        )

    def _draw_curves(self) -> None:
        epochs = [record for record in read_journal(self.directory.path).records if record.kind == "epoch"]
        if not epochs:
            return
        figures = self.directory.figures
        settings = self.components.config.to_dict()
        if self.components.config.is_multilabel:
            name = "binary cross entropy, sum over the classes (nats)"
            training_curves.draw_losses(epochs, figures / "losses.png", multilabel_training_loss(settings), name)
            training_curves.draw_average_precision(epochs, figures / "map.png")
        else:
            training_curves.draw_losses(epochs, figures / "losses.png", training_loss(settings))
            training_curves.draw_accuracy(epochs, figures / "accuracy.png")
        steps = [int(step) for record in epochs if record.steps for step in record.steps.x]
        lrs = [lr for record in epochs if record.steps for lr in record.steps.lines["lr"]]
        training_curves.draw_learning_rate(
            steps, lrs, figures / "lr.png", steps_per_epoch=self.components.loaders.train.steps
        )


def tracking_header(components: Components, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain facts that the journal and W&B store with the settings."""
    return {
        "environment": dict(environment),
        "dataset": describe_data(components),
        "parameters": factory.count_parameters(components.learner.model),
        **({"initial_weights": components.initial_note} if components.initial_note else {}),
    }
