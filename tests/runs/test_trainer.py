"""Checkpoints of an unfinished epoch."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import harness
from harness.config.settings import Config
from harness.runs.progress import ProgressReporter
from harness.runs.trainer import Trainer
from harness.tracking.journal import NullJournal
from harness.tracking.tracker import NullTracker
from harness.training import checkpoint
from harness.training.loop import StepInfo, TrainerState
from harness.training.schedule import Schedule
from harness.utils.signals import StopRequests
from tests.support.image_folders import make_class_folders
from tests.support.reporters import Lines
from tests.support.training import Batches, eval_batches, learner, net


def test_a_checkpoint_within_an_epoch_does_not_read_the_loss_and_one_with_a_loss_that_is_not_finite_is_not_written(
    monkeypatch, tmp_path
):
    def train(learner, train, schedule, *, state, on_step, **options):
        for step, loss in enumerate((1.0, float("nan")), 1):
            state.step = step
            state.losses.append(torch.tensor(loss))
            read = lambda: pytest.fail("this waits for a GPU")  # noqa: E731
            on_step(StepInfo(step, 0, 1, step, 9, 8 * step, 0.1, loss=read, acc=read))
        yield from ()

    monkeypatch.setattr("harness.runs.trainer.fit", train)
    components = SimpleNamespace(
        config=Config(checkpoint_every=1, epochs=24),
        learner=learner(net()),
        loaders=SimpleNamespace(train=None, test=eval_batches()),
        schedule=None,
        eval_split="test",
        dataset=SimpleNamespace(fingerprint="", classes=("a", "b", "c")),
        preprocess=SimpleNamespace(to_dict=dict),
    )
    directory = SimpleNamespace(
        path=tmp_path, checkpoints=tmp_path, status=lambda *args, **facts: None, resume_command=""
    )
    with StopRequests() as stop_requests:
        Trainer(
            components, directory, NullTracker(), NullJournal(), ProgressReporter(), TrainerState(), stop_requests
        ).train()
    assert checkpoint.checkpoint_info(checkpoint.newest_checkpoint(tmp_path))["step"] == 1
    assert [path.name for path in sorted(tmp_path.glob("*.pt"))] == ["last.pt"]


class ScriptedLabels:
    """One batch whose labels make the accuracy of an unchanged model that of the script, a pass for each."""

    num_images = 10

    def __init__(self, model, accuracies):
        images = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            right = model(images).argmax(1)
        labels = [torch.where(torch.arange(10) < 10 * acc, right, (right + 1) % 3) for acc in accuracies]
        self.passes = iter([(images, each)] for each in labels)

    def __iter__(self):
        return iter(next(self.passes))


@pytest.mark.parametrize(
    ("accuracies", "patience", "epochs"),
    [
        ([0.5, 0.4, 0.3, 0.2, 0.1], 1, 2),
        ([0.5, 0.4, 0.3, 0.2, 0.1], 2, 3),
        ([0.1, 0.5, 0.4, 0.5, 0.4, 0.6], 3, 5),  # an equal one is not better
        ([0.1, 0.5, 0.4, 0.3, 0.6, 0.2, 0.1], 3, 7),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 1, 5),
        ([0.5, 0.4, 0.3, 0.2, 0.1], 0, 5),  # off
    ],
)
def test_training_stops_after_exactly_as_many_epochs_without_a_better_one_as_early_stop_says(
    tmp_path, accuracies, patience, epochs
):
    state, messages = TrainerState(), []
    with trainer_of(tmp_path, accuracies, state, messages, early_stop=patience, epochs=len(accuracies)) as trainer:
        trainer.train()
        assert [row["val/acc"] for row in state.history] == accuracies[:epochs]
        assert bool(messages) == (epochs < len(accuracies))
        if epochs < len(accuracies):  # resumed, it does not go on
            trainer.train()
            assert len(state.history) == epochs


@pytest.mark.parametrize(("metric", "epochs"), [("loss", 3), ("acc", 4), ("balanced_acc", 4)])
def test_early_stopping_counts_the_epochs_since_the_best_one_by_select_by(tmp_path, metric, epochs):
    """The loss is lowest in the first of three epochs, the accuracies are highest in the last."""
    rows = [(1, 1.0, 0.1), (2, 1.5, 0.2), (3, 1.4, 0.3)]
    history = [{"epoch": epoch, "val/loss": loss, "val/acc": acc, "val/balanced_acc": acc} for epoch, loss, acc in rows]
    state = TrainerState(history=history)
    with trainer_of(tmp_path, [0.4], state, [], early_stop=2, epochs=4, select_by=metric) as trainer:
        trainer.train()
    assert len(state.history) == epochs


@contextlib.contextmanager
def trainer_of(tmp_path, accuracies, state, messages, **settings):
    """Have the trainer of a model that does not change, whose validation accuracies are scripted."""
    model = net(dropout=0.0)
    model[1] = nn.Identity()
    components = SimpleNamespace(
        config=Config(peak_epoch=0, val_fraction=0.1, **settings),
        learner=learner(model, weight_decay=0.0),
        loaders=SimpleNamespace(train=Batches(), val=ScriptedLabels(model, accuracies)),
        schedule=Schedule("constant", 99, 0.0, 0.0),
        eval_split="val",
        selection_split="",
        dataset=SimpleNamespace(fingerprint="", classes=("a", "b", "c")),
        preprocess=SimpleNamespace(to_dict=dict),
    )
    directory = SimpleNamespace(
        path=tmp_path, checkpoints=tmp_path, status=lambda *args, **facts: None, resume_command=""
    )
    reporter = ProgressReporter()
    reporter.message = messages.append
    with StopRequests() as stop_requests:
        yield Trainer(components, directory, NullTracker(), NullJournal(), reporter, state, stop_requests)


def test_a_run_says_what_is_frozen_and_what_was_skipped(tmp_path):
    make_class_folders(tmp_path / "data", count=8, size=(16, 16))
    (tmp_path / "data/train/cat/0.png").write_bytes(b"no image")
    settings = {
        "recipe": "custom-resnet", "data": "folder", "data_dir": str(tmp_path / "data"), "bad_images": "skip", "workers": 0,
        "model_args": "width=4", "batch_size": 8, "epochs": 1, "peak_epoch": 1, "precision": "fp32", "threads": 1, "report": False,
        "wandb": "disabled", "output": str(tmp_path / "runs"), "name": "r", "gallery": 0, "cam": "none", "cutout": 4,
        "freeze": "prep",
    }  # fmt: skip
    reporter = Lines()
    result = harness.run(settings, reporter=reporter)
    sizes = {name: parameter.numel() for name, parameter in result.model.named_parameters()}
    frozen = sum(size for name, size in sizes.items() if name.startswith("prep."))
    assert f"Frozen: {frozen:,} of {sum(sizes.values()):,} parameters." in reporter.lines
    assert "Skipped 1 unreadable image: train/cat/0.png" in reporter.lines
