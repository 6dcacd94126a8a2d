"""The curve of a range test equals that of torch-lr-finder: same weights, batches and rates, same losses."""

import pytest
import torch
from torch import nn

from harness.lr_finder.range_test import LRRange
from harness.utils.seeding import seed_for
from tests.lr_finder.test_finder import Batches, learner_factory, measure, net

peer = pytest.importorskip("torch_lr_finder", reason="needs torch-lr-finder (extra `peers`)")
pytestmark = pytest.mark.slow
STEPS = 40


class Train(peer.TrainDataLoaderIter):
    """The batches of one epoch, in their order."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def __next__(self):
        return next(self.batches)


OPTIMIZERS = {
    "sgd": (
        {"optimizer": "sgd", "weight_decay": 5e-4, "nesterov": True},
        lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=5e-4, nesterov=True),
    ),
    "adamw": (
        {"optimizer": "adamw", "weight_decay": 0.02, "momentum": 0.9},
        lambda parameters, lr: torch.optim.AdamW(parameters, lr, betas=(0.9, 0.999), weight_decay=0.02),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_rates_and_losses_of_a_range_test(name, kind):
    settings, make = OPTIMIZERS[name]
    lr_range = LRRange(1e-4, 0.05, STEPS, kind)
    ours = measure(
        lr_range,
        learner_factory=learner_factory(**settings),
        loader_factory=lambda seed: Batches(seed, (16,) * 2 * STEPS),
    )
    model = net(0)
    finder = peer.LRFinder(model, make(model.parameters(), lr_range.low), nn.CrossEntropyLoss(), device="cpu")
    torch.manual_seed(seed_for(0, "epoch", 0))  # of dropout
    finder.range_test(
        Train(Batches(0, (16,) * 2 * STEPS).epoch(0)),
        end_lr=lr_range.high,
        num_iter=STEPS,
        step_mode={"exponential": "exp", "linear": "linear"}[kind],
        smooth_f=0,
        diverge_th=1e9,
    )
    assert ours.lrs[:STEPS].tolist() == pytest.approx(finder.history["lr"], rel=1e-6)
    assert ours.losses[:STEPS].tolist() == pytest.approx(finder.history["loss"], rel=1e-4, abs=1e-6)
