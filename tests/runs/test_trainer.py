"""Checkpoints of an unfinished epoch."""

from types import SimpleNamespace

import pytest
import torch

from harness.config.settings import Config
from harness.runs.progress import ProgressReporter
from harness.runs.trainer import Trainer
from harness.tracking.journal import NullJournal
from harness.tracking.tracker import NullTracker
from harness.training import checkpoint
from harness.training.loop import StepInfo, TrainerState
from harness.utils.signals import StopRequests
from tests.support.training import eval_batches, learner, net


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
