"""Schedules against those of torch and against interpolation between their knots."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.settings import Config
from harness.training.schedule import Schedule, make_schedule, plateau_drops


@settings(max_examples=40, deadline=None)
@given(
    epochs=st.integers(2, 30),
    peak=st.floats(0, 1),
    per_epoch=st.integers(1, 40),
    low=st.floats(1e-5, 1e-2),
    ratio=st.floats(1.5, 100),
)
def test_one_cycle_is_linear_between_its_knots_and_equals_torchs(epochs, peak, per_epoch, low, ratio):
    peak = max(1, int(peak * (epochs - 1)))
    high, steps = low * ratio, epochs * per_epoch
    schedule = Schedule("one_cycle", steps, low, high, peak=peak * per_epoch)
    lrs = [schedule.lr(step) for step in range(steps + 1)]
    np.testing.assert_allclose(
        lrs, np.interp(np.arange(steps + 1), [0, peak * per_epoch, steps], [low, high, low]), rtol=1e-9
    )

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=high)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=high,
        total_steps=steps + 1,
        pct_start=(peak * per_epoch + 1) / (steps + 1),
        anneal_strategy="linear",
        div_factor=high / low,
        final_div_factor=1.0,
        cycle_momentum=False,
    )
    for step in range(steps):
        assert reference.get_last_lr()[0] == pytest.approx(lrs[step], rel=1e-7)
        optimizer.step()
        reference.step()
    assert reference.get_last_lr()[0] == pytest.approx(lrs[-1], rel=1e-7)


def test_the_default_schedule_is_lrmin_lrmax_lrmin_at_epochs_0_5_24_and_never_below():
    config = Config()
    schedule = make_schedule(config, 97)
    assert schedule.lr(0) == config.lr_min
    assert schedule.lr(5 * 97) == config.lr_max
    assert schedule.lr(24 * 97) == config.lr_min
    lrs = [schedule.lr(step) for step in range(24 * 97 + 1)]
    assert max(lrs) == config.lr_max
    assert min(lrs) == config.lr_min
    assert lrs.index(config.lr_max) == 5 * 97


def test_the_cyclic_schedule_equals_torchs_triangular_one():
    schedule = Schedule("cyclic", 100, 0.08, 0.8, cycles=5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.1, momentum=0.9)
    reference = torch.optim.lr_scheduler.CyclicLR(
        optimizer, 0.08, 0.8, step_size_up=10, mode="triangular", cycle_momentum=False
    )
    for step in range(100):
        assert schedule.lr(step) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()
    assert [schedule.lr(step) for step in (0, 10, 20, 90, 100)] == pytest.approx(
        [0.08, 0.8, 0.08, 0.8, 0.08], abs=1e-12
    )


def test_cosine_warms_up_linearly_and_then_equals_torchs_cosine():
    schedule = Schedule("cosine", 100, 0.01, 1.0, peak=20)
    assert [schedule.lr(step) for step in (0, 10, 20)] == pytest.approx([0.01, 0.505, 1.0])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=80, eta_min=0.01)
    for step in range(20, 101):
        assert schedule.lr(step) == pytest.approx(reference.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        reference.step()


@settings(max_examples=100, deadline=None)
@given(losses=st.lists(st.one_of(st.floats(0.1, 1), st.just(float("nan"))), max_size=40), patience=st.integers(0, 5))
def test_plateau_lowers_the_lr_when_torchs_does(losses, patience):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, eps=0)
    for loss in losses:
        reference.step(loss)
    schedule = Schedule("plateau", 10, 0.0, 1.0, patience=patience, factor=0.5)
    assert schedule.lr(0, losses) == pytest.approx(reference.get_last_lr()[0])
    assert 0.5 ** plateau_drops(losses, patience) == pytest.approx(reference.get_last_lr()[0])


@pytest.mark.parametrize(("patience", "factor"), [(0, 0.5), (2, 0.3), (3, 0.7)])
def test_patience_and_factor_of_the_settings_are_those_of_torchs_plateau(patience, factor):
    config = Config(
        schedule="plateau", lr_min=1e-6, lr_max=1.0, plateau_patience=patience, plateau_factor=factor, val_fraction=0.1
    )
    schedule = make_schedule(config, 7)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=factor, patience=patience)
    losses, lrs = [], []
    for loss in (1.0, 0.9, 0.95, 0.91, 0.92, 0.93, 0.94, 0.89, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9):
        losses.append(loss)
        reference.step(loss)
        lrs.append(schedule.lr(7 * len(losses), losses))
        assert lrs[-1] == pytest.approx(reference.get_last_lr()[0])
    assert 0 < lrs[-1] < lrs[0]


def test_peak_cycles_and_momentum_of_the_settings_are_those_of_the_schedule():
    config = Config(lr_min=0.01, lr_max=1.0, epochs=10, peak_epoch=2.5, cycles=4, momentum=0.95, momentum_min=0.85)
    steps = np.arange(81)
    knots = {"one_cycle": ([0, 20, 80], [0, 1, 0]), "cyclic": (np.arange(0, 81, 10), [0, 1] * 4 + [0])}
    for kind, (x, y) in knots.items():
        schedule = make_schedule(config.replace(schedule=kind), 8)
        height = np.interp(steps, x, y)
        np.testing.assert_allclose([schedule.lr(step) for step in steps], 0.01 + 0.99 * height, rtol=1e-9)
        np.testing.assert_allclose([schedule.momentum_at(step) for step in steps], 0.95 - 0.1 * height, rtol=1e-9)
    cosine = make_schedule(config.replace(schedule="cosine"), 8)
    assert [cosine.lr(step) for step in (0, 10, 20, 80)] == pytest.approx([0.01, 0.505, 1.0, 0.01])
    constant = make_schedule(config.replace(schedule="constant"), 8)
    assert {(constant.lr(step), constant.momentum_at(step)) for step in steps.tolist()} == {(1.0, 0.95)}


def test_plateau_stays_at_or_above_lr_min():
    assert Schedule("plateau", 10, 0.01, 1.0, patience=0, factor=0.1).lr(0, [1.0] * 50) == 0.01


def test_momentum_moves_inversely_to_the_lr_only_with_momentum_min():
    cycled = Schedule("one_cycle", 100, 0.1, 1.0, peak=50, momentum=0.95, momentum_min=0.85)
    assert [cycled.momentum_at(step) for step in (0, 50, 100)] == pytest.approx([0.95, 0.85, 0.95])
    constant = Schedule("one_cycle", 100, 0.1, 1.0, peak=50, momentum=0.95)
    assert {constant.momentum_at(step) for step in range(101)} == {0.95}


@pytest.mark.parametrize("peak", [0, 100])
def test_a_peak_at_either_end_gives_a_line(peak):
    schedule = Schedule("one_cycle", 100, 0.0, 1.0, peak=peak)
    assert schedule.lr(50) == pytest.approx(0.5)
    assert schedule.lr(peak) == 1.0
