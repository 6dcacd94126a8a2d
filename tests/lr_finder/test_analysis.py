"""The rules of the range test on curves whose answer is known, and on those that lead other finders astray."""

import math

import numpy as np
import pytest

from harness.lr_finder.analysis import (
    DivergenceDetector,
    LRCurve,
    accuracy_peak,
    centred,
    divergence,
    loss_points,
    memory,
    moving_average,
)
from harness.lr_finder.suggestion import RATIO_LEAST, RATIO_MOST, SAFETY, lr_min_for, suggest

CHANCE = math.log(10)


def trace(losses, accs=None, low=1e-4, high=10.0, planned=None, end=None, seed=0, linear=False):
    """A range test that saw these losses; it ends where the alarm rings."""
    losses = np.asarray(losses, dtype=float)
    planned = planned or len(losses)
    share = np.arange(len(losses)) / (planned - 1)
    lrs = low + (high - low) * share if linear else low * (high / low) ** share
    accs = np.full(len(losses), 0.1) if accs is None else np.asarray(accs, dtype=float)
    alarm, stop, found = DivergenceDetector(CHANCE, planned), len(losses), "end of range"
    for place, loss in enumerate(losses):
        if alarm.rings(loss):
            stop, found = place + 1, "diverged" if math.isfinite(loss) else "not finite"
            break
    cut = slice(0, stop)
    return LRCurve(seed, lrs[cut], losses[cut], accs[cut], np.ones(stop), planned, end or found)


def story(seed=0, best=2e-2, bang=3.0, noise=0.02, steps=100, start=4.0, low=1e-4, high=10.0, width=0.7):
    """Losses and accuracies as of the custom network: a high start that falls at once, a hill of accuracy about
    `best`, an explosion at `bang`."""
    random = np.random.default_rng(seed)
    lr = np.logspace(math.log10(low), math.log10(high), steps)
    hill = np.exp(-0.5 * (np.log10(lr / best) / width) ** 2)
    acc = 0.1 + 0.4 * hill + noise * random.standard_normal(steps)
    loss = (start - CHANCE) * np.exp(-np.arange(steps) / 8) + CHANCE - 1.0 * hill
    loss = loss + 2 * noise * random.standard_normal(steps) + np.expm1(np.minimum((lr / bang) ** 3, 30))
    return trace(loss, acc, low, high, seed=seed)


@pytest.mark.parametrize("best", [2e-3, 2e-2, 0.2])
def test_lr_max_is_the_top_of_the_accuracy(best):
    said = suggest([story(seed, best=best) for seed in range(3)], uniform_loss=CHANCE)
    assert said.lr_max == pytest.approx(best, rel=0.35)
    assert said.sure.startswith("sure")
    assert said.cautions == ()


def test_lr_max_is_the_same_in_another_window_and_with_more_steps():
    one = suggest([story(seed) for seed in range(3)], uniform_loss=CHANCE)
    wide = suggest([story(seed, low=1e-6, high=100, steps=200) for seed in range(3)], uniform_loss=CHANCE)
    assert wide.lr_max == pytest.approx(one.lr_max, rel=0.3)


@pytest.mark.parametrize("bang", [0.03, 0.05, 3.0])
def test_lr_max_stays_below_the_divergence(bang):
    tests = [story(seed, bang=bang) for seed in range(3)]
    said = suggest(tests, uniform_loss=CHANCE)
    assert said.lr_max <= said.divergence / SAFETY * 1.05 or said.lr_max <= 0.025
    assert said.divergence == pytest.approx(bang, rel=0.6)


def test_lr_min_is_where_learning_begins_in_a_sane_ratio():
    for begins in (None, 1e-9, 1e-3, 5e-3, 1.0):
        ratio = 0.02 / lr_min_for(begins, 0.02)
        assert RATIO_LEAST * 0.95 <= ratio <= RATIO_MOST * 1.05
    assert lr_min_for(2e-3, 0.02) == 2e-3


def test_the_steepest_rule_falls_for_the_start_of_the_curve_and_ours_does_not():
    tests = [story(seed) for seed in range(3)]
    said = suggest(tests, uniform_loss=CHANCE)
    steepest = next(rule for rule in said.rules if rule.rule == "steepest")
    assert steepest.lr < 1e-3
    assert "left edge" in steepest.note
    assert said.lr_max > 20 * steepest.lr


def test_a_constant_stays_constant_in_every_smoothing():
    # Lightning's exponent is off by one, so that a constant 1 rises from 0.505; torch-lr-finder corrects nothing.
    ones = np.ones(50)
    np.testing.assert_allclose(moving_average(ones, 0.98), ones, rtol=1e-12)
    np.testing.assert_allclose(centred(ones, 2.5), ones, rtol=1e-12)
    alarm = DivergenceDetector(CHANCE, 50)
    assert not any(alarm.rings(1.0) for _ in range(50))
    assert alarm.smoothed == pytest.approx(1.0)


def test_the_moving_average_is_the_weighted_mean_of_all_before():
    values = np.random.default_rng(0).normal(size=30)
    decay = 0.9
    for place in range(30):
        weights = decay ** np.arange(place, -1, -1)
        assert moving_average(values, decay)[place] == pytest.approx(np.average(values[: place + 1], weights=weights))


def test_a_step_is_seen_where_it_is_by_the_centred_mean_and_later_by_the_moving_one():
    step = np.repeat([0.0, 1.0], 50)
    assert np.argmax(centred(step, 2.5) >= 0.5) == 50
    assert np.argmax(moving_average(step, memory(100)) >= 0.5) > 53


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("seed", range(8))
def test_noise_is_not_taken_for_learning(noise, seed):
    random = np.random.default_rng(seed)
    flat = [
        trace(CHANCE + 5 * noise * random.standard_normal(100), 0.1 + noise * random.standard_normal(100))
        for _ in range(3)
    ]
    said = suggest(flat, uniform_loss=CHANCE)
    assert said.lr_max is None
    assert said.lr_min is None
    assert "no descent" in {caution.kind for caution in said.cautions}
    assert "no descent" in said.reasons[0]


def test_a_high_start_that_only_falls_to_a_guess_is_no_descent():
    losses = CHANCE + 3 * np.exp(-np.arange(100) / 10) + 0.02 * np.random.default_rng(1).standard_normal(100)
    assert suggest([trace(losses)], uniform_loss=CHANCE).lr_max is None


@pytest.mark.parametrize("place", [0, 1, 7, 40, 80])
def test_nan_ends_the_curve_at_once_and_counts_as_divergence(place):
    whole = story()
    losses = np.append(whole.losses[:place], math.nan)
    test = trace(losses, whole.accs[: place + 1], planned=100)
    assert test.end == "not finite"
    assert test.finite == place
    assert len(test.lrs) == place + 1
    assert divergence(test, CHANCE) <= test.lrs[-1]
    said = suggest([test] * 3, uniform_loss=CHANCE)
    assert "not finite" in {caution.kind for caution in said.cautions}
    if place == 80:
        assert said.lr_max == pytest.approx(2e-2, rel=0.5)
    if place < 8:
        assert said.lr_max is None
        assert "not finite from the very start" in said.reasons[0]
    for rule in said.rules:
        assert rule.lr is None or math.isfinite(rule.lr)


def test_a_range_without_divergence_is_warned_of():
    said = suggest([story(seed, bang=1e9) for seed in range(3)], uniform_loss=CHANCE)
    assert said.divergence is None
    assert [caution.kind for caution in said.cautions] == ["no divergence"]
    assert said.lr_max == pytest.approx(2e-2, rel=0.35)


def test_a_top_at_the_right_edge_is_called_an_edge():
    said = suggest([story(seed, best=20, bang=1e9) for seed in range(3)], uniform_loss=CHANCE)
    assert "right edge" in {caution.kind for caution in said.cautions}
    assert said.sure.startswith("unsure")


def test_a_top_at_the_left_edge_is_called_an_edge():
    lr = np.logspace(-4, 1, 100)
    rise = np.clip(np.arange(100) / 6, 0, 1)
    acc = 0.1 + 0.4 * rise * np.exp(-np.maximum(np.log10(lr / 2e-4), 0) * 4)
    said = suggest([trace(CHANCE - 3 * (acc - 0.1), acc) for _ in range(3)], uniform_loss=CHANCE)
    assert "left edge" in {caution.kind for caution in said.cautions}
    assert said.sure.startswith("unsure")


def test_seeds_that_disagree_are_told():
    said = suggest([story(0, best=3e-3), story(1, best=2e-2), story(2, best=0.2)], uniform_loss=CHANCE)
    assert "seeds disagree" in {caution.kind for caution in said.cautions}
    assert said.sure.startswith("unsure")
    assert said.interval[1] / said.interval[0] > 20
    assert said.lr_max == pytest.approx(2e-2, rel=0.35)


def test_one_seed_alone_is_never_sure():
    assert suggest([story()], uniform_loss=CHANCE).sure.startswith("fairly sure: there is but one seed")


def test_a_trained_model_is_noticed_and_does_not_ring_the_alarm():
    random = np.random.default_rng(0)
    losses = np.abs(0.01 + 0.02 * random.standard_normal(100))  # ten times its mean now and then
    test = trace(losses, 0.99 + 0.005 * random.standard_normal(100))
    assert test.end == "end of range"
    assert "already trained" in {caution.kind for caution in suggest([test], uniform_loss=CHANCE).cautions}


def test_an_early_spike_or_one_lucky_batch_is_no_divergence():
    for place, value in ((1, 40.0), (0, 0.01), (3, 0.01), (30, 6.0)):
        losses = np.full(100, CHANCE) - np.linspace(0, 1, 100)
        losses[place] = value
        assert trace(losses).end == "end of range", (place, value)


def test_a_collapse_to_guessing_that_never_explodes_is_divergence():
    # A network of BatchNorm and weights that only give directions falls back to guessing, not to infinity.
    losses = np.concatenate([np.linspace(CHANCE, 1.0, 60), np.full(60, CHANCE + 0.02)])
    test = trace(losses)
    assert test.end == "diverged"
    assert divergence(test, CHANCE) == pytest.approx(test.lrs[60], rel=0.3)


def test_several_maxima_are_all_shown():
    lr = np.logspace(-4, 1, 100)
    acc = (
        0.1
        + 0.4 * np.exp(-0.5 * (np.log10(lr / 2e-3) / 0.25) ** 2)
        + 0.38 * np.exp(-0.5 * (np.log10(lr / 0.2) / 0.25) ** 2)
    )
    peak = accuracy_peak(trace(CHANCE - acc, acc))
    assert peak.lr == pytest.approx(2e-3, rel=0.2)
    assert peak.others == pytest.approx((0.2,), rel=0.2)
    said = suggest([trace(CHANCE - acc, acc)] * 3, uniform_loss=CHANCE)
    assert "several maxima" in {caution.kind for caution in said.cautions}


def test_where_the_accuracy_says_nothing_the_loss_decides_and_says_so():
    tests = []
    for seed in range(3):
        whole = story(seed)
        tests.append(trace(whole.losses, np.zeros(len(whole.losses)), planned=100, seed=seed, end=whole.end))
    said = suggest(tests, uniform_loss=CHANCE)
    assert said.lr_max == pytest.approx(2e-3, rel=0.5)  # a tenth of the minimum
    assert "accuracy flat" in {caution.kind for caution in said.cautions}


def test_the_middle_of_the_top_scatters_less_than_its_highest_point():
    noisy = [story(seed, noise=0.05) for seed in range(20)]
    middles = np.log([accuracy_peak(test).lr for test in noisy])
    highest = np.log([test.lrs[np.argmax(test.accs)] for test in noisy])
    assert middles.std() < 0.7 * highest.std()


def test_too_few_steps_a_decade_are_warned_of():
    said = suggest([story(steps=40, noise=0.0)], uniform_loss=CHANCE)
    assert "too few steps" in {caution.kind for caution in said.cautions}


def test_a_linear_range_is_read_at_its_own_rates():
    lr = np.linspace(0.01, 1.0, 100)
    acc = 0.1 + 0.4 * np.exp(-0.5 * ((lr - 0.4) / 0.15) ** 2)
    said = suggest([trace(CHANCE - 2 * acc, acc, 0.01, 1.0, linear=True)] * 3, uniform_loss=CHANCE)
    assert said.lr_max == pytest.approx(0.4, rel=0.1)


def test_the_minimum_and_the_valley_are_where_they_are():
    losses = np.concatenate([np.linspace(2.3, 1.0, 70), np.linspace(1.0, 2.2, 30)])
    places = loss_points(trace(losses), CHANCE)
    assert places["minimum"] == pytest.approx(69, abs=2)
    assert places["valley"] == pytest.approx(35, abs=3)
