"""Mixup and CutMix as a function of (seed, step)."""

import numpy as np
import pytest
import torch
from torch import nn

from harness.config.settings import Config
from harness.data.mixup import make_mixup


def batch(count=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.randint(0, 4, (count,), generator=generator)


def test_without_mixup_and_cutmix_there_is_no_function():
    assert make_mixup(Config(), 4) is None


def test_mixup_combines_each_image_with_the_one_at_the_mirrored_position_of_the_batch():
    images, labels = batch()
    mix = make_mixup(Config(mixup=0.4), 4)
    mixed, targets = mix(images, labels, 3)
    one_hot = nn.functional.one_hot(labels, 4).float()
    different = (one_hot != one_hot.flip(0)).any(1)
    index = int(different.nonzero()[0])
    lam = float(targets[index, labels[index]])  # the weight of the image and of its own label
    torch.testing.assert_close(mixed, lam * images + (1 - lam) * images.flip(0))
    torch.testing.assert_close(targets, lam * one_hot + (1 - lam) * one_hot.flip(0))


@pytest.mark.parametrize(
    "settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1}]
)
@pytest.mark.parametrize("count", [6, 7, 1])
def test_the_mix_depends_on_the_step_and_on_nothing_else(settings, count):
    images, labels = batch(count)
    before = images.clone()
    mix = make_mixup(Config(**settings), 4)
    first, targets = mix(images, labels, 1)
    np.random.seed(99)
    state = np.random.get_state()
    again, same = make_mixup(Config(**settings), 4)(images, labels, 1)
    assert all(np.array_equal(*pair) for pair in zip(np.random.get_state(), state, strict=True))
    assert torch.equal(first, again)
    assert torch.equal(targets, same)
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    assert torch.equal(images, before)
    if count > 1:
        assert any(not torch.equal(first, mix(images, labels, step)[0]) for step in (2, 3, 4))
