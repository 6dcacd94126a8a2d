"""Weights and losses that are NaN or infinite end a run with status 5 before a finite checkpoint is replaced."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from timm.models import register_model
from torch import nn

import harness
from harness.runs.progress import ProgressReporter
from harness.runs.summary import best_epoch
from harness.tracking.journal import read_journal
from harness.training.finite import first_not_finite
from harness.training.loop import TrainerState, fit
from harness.utils.errors import DivergedError
from tests.support.training import Batches, EvalBatches, learner, net, schedule

SMALL = {"recipe": "digits", "model": "poisoned_net", "epochs": 3, "peak_epoch": 1, "gallery": 0, "cam": "none", "threads": 1,
         "wandb": "disabled", "report": False, "device": "cpu", "precision": "fp32", "val_fraction": 0.2}  # fmt: skip


class PoisonedNet(nn.Module):
    """A linear classifier that sets one of its values after so many training steps; the loss of that step is finite."""

    def __init__(self, num_classes=10, where="fc", value=math.nan, after=30, unused=False, **arguments):
        super().__init__()
        self.num_classes = num_classes
        self.fc, self.norm = nn.Linear(3 * 32 * 32, num_classes), nn.BatchNorm1d(3 * 32 * 32)
        self.unused = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("mask", torch.full((2,), -math.inf))  # by design, as of an attention
        self.where, self.value, self.steps, self.after = where, float(value), 0, after
        self.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}

    def forward(self, images):
        logits = self.fc(self.norm(images.flatten(1)))
        if self.training:
            self.steps += 1
            if self.steps == self.after:
                target = {"unused": self.unused, "norm": self.norm.running_var, "fc": self.fc.bias}[self.where]
                target.data[0] = self.value
        return logits


@register_model
def poisoned_net(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **arguments):
    return PoisonedNet(**arguments)


def saved_tensors(folder):
    state = torch.load(folder / "checkpoints/last.pt", weights_only=True)["learner"]
    return {**state["model"], **{f"best.{key}": value for key, value in weights_of_best(folder).items()}}


def weights_of_best(folder):
    return load_file(folder / "checkpoints/model.safetensors")


@pytest.mark.parametrize(
    ("where", "value", "more"),
    [
        ("unused", "nan", {}),  # no loss shows it
        ("norm", "inf", {}),  # nor does a training loss
        ("unused", "-inf", {"ema": 0.5}),
        ("fc", "nan", {"checkpoint_every": 1}),
    ],
)
def test_weights_that_are_not_finite_end_the_run_and_the_checkpoint_and_the_best_epoch_before_stay(
    tmp_path, where, value, more
):
    """There are 17 steps in an epoch; the values change in the second one."""
    arguments = {"where": where, "value": value}
    config = harness.make_config(
        {**SMALL, "batch_size": 64, "output": str(tmp_path), "name": "r", "model_args": arguments, **more}
    )
    with pytest.raises(DivergedError, match="is not finite"):
        harness.run(config, ProgressReporter())
    folder = tmp_path / "r"
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 5)
    assert first_not_finite(saved_tensors(folder), {"mask"}) == ""
    epochs = [record for record in read_journal(folder).records if record.kind == "epoch"]
    assert [record.epoch for record in epochs] == [1]
    assert json.loads((folder / "checkpoints/model.json").read_text())["epoch"] == 1


def test_a_validation_loss_that_is_not_finite_ends_the_training_before_its_epoch_counts():
    """The weights are finite: their product with the activations overflows."""
    one, state = learner(net(dropout=0.0)), TrainerState()
    images, labels = torch.full((4, 3, 8, 8), 1e38), torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():
        one.model[0].weight.fill_(1e4)
    with pytest.raises(DivergedError, match=r"training diverged: val/loss (nan|inf) in epoch 1 at step 3"):
        list(
            fit(
                one, Batches(), schedule(2), epochs=2, evaluations={"val": EvalBatches([(images, labels)])}, state=state
            )
        )
    assert one.first_not_finite() == ""
    assert state.history == []


def test_the_best_epoch_is_never_one_whose_loss_or_accuracy_is_not_finite():
    def row(epoch, acc, loss):
        return {"epoch": epoch, "val/acc": acc, "val/loss": loss}

    history = [row(1, 0.5, 1.0), row(2, 0.9, math.nan), row(3, math.nan, 1.0), row(4, 0.8, math.inf), row(5, 0.7, 1.0)]
    assert best_epoch(history, "val") == (5, 0.7)
    epoch, acc = best_epoch(history[1:4], "val")
    assert epoch == 0 and math.isnan(acc)
