"""A small network, random batches for it, and its learner on a CPU."""

import torch
from torch import nn

from harness.config.settings import Config
from harness.training.learner import make_learner
from harness.training.schedule import Schedule

CPU = torch.device("cpu")


class Batches:
    """Training batches of random images as a function of the epoch."""

    def __init__(self, sizes=(8, 8, 5), seed=0):
        self.sizes, self.seed = sizes, seed
        self.steps, self.num_images = len(sizes), sum(sizes)

    def epoch(self, epoch, start=0):
        generator = torch.Generator().manual_seed(100 * self.seed + epoch)
        for index, size in enumerate(self.sizes):
            images = torch.randn(size, 3, 8, 8, generator=generator)
            labels = torch.randint(0, 3, (size,), generator=generator)
            if index >= start:
                yield images, labels


class EvalBatches(list):
    """A list of evaluation batches."""

    @property
    def num_images(self):
        return sum(len(labels) for _, labels in self)


def net(seed=0, dropout=0.2):
    """Return a small network for images of 8 x 8 pixels and three classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(216, 3)
    )


def learner(model, **settings):
    """Return a learner of the model on the CPU, in float32."""
    config = Config(**{"precision": "fp32", "channels_last": False, **settings})
    return make_learner(config, model, CPU, None)


def eval_batches(sizes=(7, 7, 3)):
    """Return evaluation batches of random images."""
    generator = torch.Generator().manual_seed(9)
    return EvalBatches(
        (torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator)) for n in sizes
    )


def schedule(epochs, steps=3):
    return Schedule("one_cycle", epochs * steps, 0.01, 0.1, peak=steps)


def weights(model):
    """Return a copy of the weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
