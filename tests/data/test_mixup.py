"""Mixup and CutMix as a function of (seed, step), and the number formats of a step."""

import numpy as np
import pytest
import torch
from torch import nn

from harness.config.settings import Config
from harness.data.mixup import make_mixup
from harness.training.device import autocast_dtype, pick_precision
from harness.training.learner import make_learner


def batch(count=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.randint(0, 4, (count,), generator=generator)


def test_off_is_nothing():
    assert make_mixup(Config(), 4) is None


def test_mixup_is_the_convex_combination_of_each_image_with_its_mirror_in_the_batch():
    images, labels = batch()
    mix = make_mixup(Config(mixup=0.4), 4)
    mixed, targets = mix(images, labels, 3)
    one_hot = nn.functional.one_hot(labels, 4).float()
    different = (one_hot != one_hot.flip(0)).any(1)
    index = int(different.nonzero()[0])
    lam = float(targets[index, labels[index]])  # the share of the image's own label
    torch.testing.assert_close(mixed, lam * images + (1 - lam) * images.flip(0))
    torch.testing.assert_close(targets, lam * one_hot + (1 - lam) * one_hot.flip(0))


@pytest.mark.parametrize(
    "settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1}]
)
@pytest.mark.parametrize("count", [6, 7, 1])
def test_a_step_is_always_mixed_the_same_way_and_two_steps_are_not(settings, count):
    images, labels = batch(count)
    before, state = images.clone(), np.random.get_state()[1].copy()
    mix = make_mixup(Config(**settings), 4)
    first, targets = mix(images, labels, 1)
    np.random.seed(99) if count == 6 else None
    again, same = make_mixup(Config(**settings), 4)(images, labels, 1)
    assert torch.equal(first, again)
    assert torch.equal(targets, same)
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    assert torch.equal(images, before)
    if count > 1:
        assert any(not torch.equal(first, mix(images, labels, step)[0]) for step in (2, 3, 4))
    if count != 6:
        assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_in_any_number_format_is_the_float32_step_to_its_accuracy(precision):
    def step(word):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
        learner = make_learner(Config(precision=word), model, torch.device("cpu"), autocast_dtype(word))
        images, labels = batch(32)
        outcome = learner.train_step(images, labels, 0, 0.1, 0.9)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        return outcome, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    (expected, weights), (outcome, got) = step("fp32"), step(precision)
    tolerance = {"fp32": 0.0, "bf16": 3e-2, "fp16": 5e-3}[precision]
    assert float(outcome.loss) == pytest.approx(float(expected.loss), abs=tolerance + 1e-9)
    torch.testing.assert_close(got, weights, rtol=0, atol=tolerance)


def test_the_verdict_on_bfloat16_is_measured_once_a_machine_and_kept(home):
    first = pick_precision("auto", torch.device("cpu"))
    kept = list(home.rglob("bf16_gain.json"))
    assert first in ("fp32", "bf16")
    assert len(kept) <= 1  # none where the processor has no bfloat16
    if kept:
        content = kept[0].read_bytes()
        assert pick_precision("auto", torch.device("cpu")) == first
        assert kept[0].read_bytes() == content
