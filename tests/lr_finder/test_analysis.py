"""The rules of the range test on curves whose answer is known, and on those that mislead other finders."""

import math
import re
import tracemalloc

import numpy as np
import pytest

from harness.lr_finder.analysis import (
    DivergenceDetector,
    LRCurve,
    accuracy_peak,
    divergence,
    gaussian_smooth,
    loss_points,
    smoothing_decay,
)
from harness.lr_finder.suggestion import RATIO_LEAST, RATIO_MOST, SAFETY, log_median, lr_min_for, suggest
from harness.utils.stats import moving_average

UNIFORM_LOSS = math.log(10)


def lr_curve(losses, accs=None, low=1e-4, high=10.0, planned=None, end=None, seed=0, linear=False):
    """Return the curve of a range test with these losses; it ends where they diverge."""
    losses = np.asarray(losses, dtype=float)
    planned = planned or len(losses)
    share = np.arange(len(losses)) / (planned - 1)
    lrs = low + (high - low) * share if linear else low * (high / low) ** share
    accs = np.full(len(losses), 0.1) if accs is None else np.asarray(accs, dtype=float)
    detector, count, reason = DivergenceDetector(UNIFORM_LOSS, planned), len(losses), "end of range"
    for index, loss in enumerate(losses):
        if detector.update(loss):
            count, reason = index + 1, "diverged" if math.isfinite(loss) else "not finite"
            break
    return LRCurve(seed, lrs[:count], losses[:count], accs[:count], np.ones(count), planned, end or reason)


def typical_curve(seed=0, best=2e-2, diverges=3.0, noise=0.02, steps=100, start=4.0, low=1e-4, high=10.0, width=0.7):
    """Return a curve like the custom network's: a high loss that falls at once, a peak of accuracy around `best`, and
    divergence at `diverges`."""
    random = np.random.default_rng(seed)
    lr = np.logspace(math.log10(low), math.log10(high), steps)
    hill = np.exp(-0.5 * (np.log10(lr / best) / width) ** 2)
    acc = 0.1 + 0.4 * hill + noise * random.standard_normal(steps)
    loss = (start - UNIFORM_LOSS) * np.exp(-np.arange(steps) / 8) + UNIFORM_LOSS - 1.0 * hill
    loss = loss + 2 * noise * random.standard_normal(steps) + np.expm1(np.minimum((lr / diverges) ** 3, 30))
    return lr_curve(loss, acc, low, high, seed=seed)


@pytest.mark.parametrize("best", [2e-3, 2e-2, 0.2])
def test_lr_max_is_the_top_of_the_accuracy(best):
    suggestion = suggest([typical_curve(seed, best=best) for seed in range(3)], uniform_loss=UNIFORM_LOSS)
    assert suggestion.lr_max == pytest.approx(best, rel=0.35)
    assert suggestion.confidence.startswith("sure")
    assert suggestion.cautions == ()


@pytest.mark.parametrize("best", [2e-3, 2e-2, 0.2])
def test_the_middle_of_a_top_is_the_one_of_a_logarithmic_axis(best):
    """On a linear one it would be 14 % higher for a top of this width."""
    peak = accuracy_peak(typical_curve(best=best, noise=0, steps=500))
    assert peak.lr == pytest.approx(best, rel=0.03)


def test_lr_max_is_the_same_in_another_range_and_with_more_steps():
    one = suggest([typical_curve(seed) for seed in range(3)], uniform_loss=UNIFORM_LOSS)
    wide = suggest([typical_curve(seed, low=1e-6, high=100, steps=200) for seed in range(3)], uniform_loss=UNIFORM_LOSS)
    assert wide.lr_max == pytest.approx(one.lr_max, rel=0.3)


@pytest.mark.parametrize("diverges", [0.03, 0.05])
def test_where_the_loss_diverges_near_the_top_of_the_accuracy_lr_max_is_a_quarter_of_that_rate(diverges):
    curves = [typical_curve(seed, diverges=diverges) for seed in range(3)]
    suggestion = suggest(curves, uniform_loss=UNIFORM_LOSS)
    assert suggestion.divergence == pytest.approx(diverges, rel=0.6)
    tops = [accuracy_peak(curve).lr for curve in curves]
    limits = [divergence(curve, UNIFORM_LOSS) / SAFETY for curve in curves]
    assert min(top / limit for top, limit in zip(tops, limits, strict=True)) > 1.2  # by the accuracy it would be higher
    assert suggestion.lr_max == pytest.approx(np.median(limits), rel=0.06)  # of two significant digits
    assert "capped at 1/4" in suggestion.reasons[0] and "for 3 of 3 seeds" in suggestion.reasons[0]


def test_a_divergence_far_above_the_top_of_the_accuracy_does_not_lower_lr_max():
    suggestion = suggest([typical_curve(seed, diverges=3.0) for seed in range(3)], uniform_loss=UNIFORM_LOSS)
    assert suggestion.lr_max == pytest.approx(2e-2, rel=0.35) and suggestion.divergence > 5 * suggestion.lr_max
    assert "capped" not in suggestion.reasons[0]


def test_the_rate_of_two_seeds_is_their_geometric_mean():
    assert log_median([0.001, 0.1]) == pytest.approx(0.01)
    assert log_median([0.3, 0.001, 0.02]) == pytest.approx(0.02)
    assert log_median([]) is None
    curves = [typical_curve(0, best=2e-3), typical_curve(1, best=0.2)]
    suggestion = suggest(curves, uniform_loss=UNIFORM_LOSS)
    tops = [accuracy_peak(curve).lr for curve in curves]
    assert suggestion.lr_max == pytest.approx(math.sqrt(tops[0] * tops[1]), rel=0.06)
    assert suggestion.interval == pytest.approx(tuple(tops))


def test_lr_min_is_where_learning_begins_in_a_sane_ratio():
    for begins in (None, 1e-9, 1e-3, 5e-3, 1.0):
        ratio = 0.02 / lr_min_for(begins, 0.02)
        assert RATIO_LEAST * 0.95 <= ratio <= RATIO_MOST * 1.05
    assert lr_min_for(2e-4, 0.02) == 2e-4


def test_the_steepest_rule_picks_the_start_of_the_curve_and_ours_does_not():
    curves = [typical_curve(seed) for seed in range(3)]
    suggestion = suggest(curves, uniform_loss=UNIFORM_LOSS)
    steepest = next(rule for rule in suggestion.rules if rule.rule == "steepest")
    assert steepest.lr < 1e-3
    assert "left edge" in steepest.note
    assert suggestion.lr_max > 20 * steepest.lr


def test_a_constant_stays_constant_under_every_smoothing():
    # Lightning's exponent is off by one, so that a constant 1 rises from 0.505; torch-lr-finder corrects nothing.
    ones = np.ones(50)
    np.testing.assert_allclose(moving_average(ones, 0.98), ones, rtol=1e-12)
    np.testing.assert_allclose(gaussian_smooth(ones, 2.5), ones, rtol=1e-12)
    detector = DivergenceDetector(UNIFORM_LOSS, 50)
    assert not any(detector.update(1.0) for _ in range(50))
    assert detector.smoothed == pytest.approx(1.0)


def test_the_moving_average_is_the_weighted_mean_of_all_before():
    values = np.random.default_rng(0).normal(size=30)
    decay = 0.9
    for index in range(30):
        weights = decay ** np.arange(index, -1, -1)
        assert moving_average(values, decay)[index] == pytest.approx(np.average(values[: index + 1], weights=weights))


@pytest.mark.parametrize("length", [0, 1, 2, 17, 200, 1000])
@pytest.mark.parametrize("width", [0.5, 2.5, 25.0, 400.0])
def test_gaussian_smoothing_is_the_weighted_mean_over_all_values(length, width):
    values = np.random.default_rng(length).normal(size=length) * 1e3
    distances = np.subtract.outer(np.arange(length), np.arange(length)) / width
    weights = np.exp(-(distances**2) / 2)
    np.testing.assert_allclose(gaussian_smooth(values, width), weights @ values / weights.sum(1), rtol=1e-12, atol=1e-9)


def test_gaussian_smoothing_of_a_long_test_needs_no_square_of_its_length():
    values = np.random.default_rng(0).normal(size=10_000)
    tracemalloc.start()
    gaussian_smooth(values, 250.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6  # bytes; the square has 800 million


def test_gaussian_smoothing_keeps_a_step_in_place_and_the_moving_average_delays_it():
    step = np.repeat([0.0, 1.0], 50)
    assert np.argmax(gaussian_smooth(step, 2.5) >= 0.5) == 50
    assert np.argmax(np.array(moving_average(step, smoothing_decay(100))) >= 0.5) > 53


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("seed", range(8))
def test_noise_is_not_mistaken_for_learning(noise, seed):
    random = np.random.default_rng(seed)
    flat = [
        lr_curve(UNIFORM_LOSS + 5 * noise * random.standard_normal(100), 0.1 + noise * random.standard_normal(100))
        for _ in range(3)
    ]
    suggestion = suggest(flat, uniform_loss=UNIFORM_LOSS)
    assert suggestion.lr_max is None
    assert suggestion.lr_min is None
    assert "no descent" in {caution.kind for caution in suggestion.cautions}
    assert "no descent" in suggestion.reasons[0]


def test_a_high_start_that_only_falls_to_the_uniform_loss_is_no_descent():
    losses = UNIFORM_LOSS + 3 * np.exp(-np.arange(100) / 10) + 0.02 * np.random.default_rng(1).standard_normal(100)
    assert suggest([lr_curve(losses)], uniform_loss=UNIFORM_LOSS).lr_max is None


@pytest.mark.parametrize("index", [0, 1, 7, 40, 80])
def test_nan_ends_the_curve_at_once_and_counts_as_divergence(index):
    whole = typical_curve()
    losses = np.append(whole.losses[:index], math.nan)
    curve = lr_curve(losses, whole.accs[: index + 1], planned=100)
    assert curve.end == "not finite"
    assert curve.finite == index
    assert len(curve.lrs) == index + 1
    assert divergence(curve, UNIFORM_LOSS) <= curve.lrs[-1]
    suggestion = suggest([curve] * 3, uniform_loss=UNIFORM_LOSS)
    assert "not finite" in {caution.kind for caution in suggestion.cautions}
    if index == 80:
        assert suggestion.lr_max == pytest.approx(2e-2, rel=0.5)
    if index < 8:
        assert suggestion.lr_max is None
        assert "not finite from the very start" in suggestion.reasons[0]
    for rule in suggestion.rules:
        assert rule.lr is None or math.isfinite(rule.lr)


def test_a_range_without_divergence_gives_a_caution():
    suggestion = suggest([typical_curve(seed, diverges=1e9) for seed in range(3)], uniform_loss=UNIFORM_LOSS)
    assert suggestion.divergence is None
    assert [caution.kind for caution in suggestion.cautions] == ["no divergence"]
    assert suggestion.lr_max == pytest.approx(2e-2, rel=0.35)


def test_a_top_at_the_right_edge_is_called_an_edge():
    suggestion = suggest([typical_curve(seed, best=20, diverges=1e9) for seed in range(3)], uniform_loss=UNIFORM_LOSS)
    assert "right edge" in {caution.kind for caution in suggestion.cautions}
    assert suggestion.confidence.startswith("unsure")


def test_a_top_at_the_left_edge_is_called_an_edge():
    lr = np.logspace(-4, 1, 100)
    rise = np.clip(np.arange(100) / 6, 0, 1)
    acc = 0.1 + 0.4 * rise * np.exp(-np.maximum(np.log10(lr / 2e-4), 0) * 4)
    suggestion = suggest([lr_curve(UNIFORM_LOSS - 3 * (acc - 0.1), acc) for _ in range(3)], uniform_loss=UNIFORM_LOSS)
    assert "left edge" in {caution.kind for caution in suggestion.cautions}
    assert suggestion.confidence.startswith("unsure")


def test_a_rate_at_which_the_model_is_no_better_than_the_most_frequent_class_is_unsure():
    curves = [typical_curve(seed) for seed in range(3)]
    best = suggest(curves, uniform_loss=UNIFORM_LOSS)
    top = float(re.search(r"highest there \(([\d.]+) %", best.reasons[0])[1]) / 100
    for chance, is_sure in ((top - 0.01, True), (top + 0.01, False)):
        suggestion = suggest(curves, uniform_loss=UNIFORM_LOSS, chance=chance)
        assert suggestion.lr_max == best.lr_max and suggestion.confidence.startswith("unsure: accuracy at chance") == (
            not is_sure
        )
        assert any(f"not above {100 * chance:.1f} %" in caution.text for caution in suggestion.cautions) == (
            not is_sure
        )


def test_seeds_that_disagree_are_reported():
    suggestion = suggest(
        [typical_curve(0, best=3e-3), typical_curve(1, best=2e-2), typical_curve(2, best=0.2)],
        uniform_loss=UNIFORM_LOSS,
    )
    assert "seeds disagree" in {caution.kind for caution in suggestion.cautions}
    assert suggestion.confidence.startswith("unsure")
    assert suggestion.interval[1] / suggestion.interval[0] > 20
    assert suggestion.lr_max == pytest.approx(2e-2, rel=0.35)


def test_one_seed_alone_is_at_most_fairly_sure():
    assert suggest([typical_curve()], uniform_loss=UNIFORM_LOSS).confidence.startswith("fairly sure: only one seed")


def test_a_trained_model_is_noticed_and_does_not_count_as_diverged():
    random = np.random.default_rng(0)
    losses = np.abs(0.01 + 0.02 * random.standard_normal(100))  # ten times its mean now and then
    curve = lr_curve(losses, 0.99 + 0.005 * random.standard_normal(100))
    assert curve.end == "end of range"
    assert "already trained" in {caution.kind for caution in suggest([curve], uniform_loss=UNIFORM_LOSS).cautions}


def test_an_early_spike_or_one_lucky_batch_is_no_divergence():
    for index, value in ((1, 40.0), (0, 0.01), (3, 0.01), (30, 6.0)):
        losses = np.full(100, UNIFORM_LOSS) - np.linspace(0, 1, 100)
        losses[index] = value
        assert lr_curve(losses).end == "end of range", (index, value)


STEPS = 100  # the moving average remembers ten of them


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([0.1] * 30 + [1.2] * 20, None),  # twelve times the lowest, but below the uniform loss of 2.3
        ([1.2] * 30 + [3.3] * 8, None),  # above the uniform loss, but not by half of it, and not for long
        ([30.0] * 10 + [0.5] * 40 + [12.0] * 8, None),  # more than four times the lowest, but below the first losses
        ([2.0] * 30 + [6.0] * 30, "above the uniform loss for a while"),  # three times the lowest
        ([0.5] * 30 + [40.0] * 3, "exploded"),
        ([2.3] * 60 + [2.4] * 60, None),  # a model that has not learned cannot forget
    ],
)
def test_only_a_loss_above_each_of_three_bounds_is_an_explosion_and_forgetting_takes_a_while(losses, verdict):
    detector = DivergenceDetector(UNIFORM_LOSS, STEPS)
    verdicts = [detector.update(loss) for loss in losses]
    assert any(verdicts) == (verdict is not None)
    if verdict == "exploded":
        assert verdicts.index(True) < 32
    elif verdict:
        above = next(index for index, loss in enumerate(losses) if loss > UNIFORM_LOSS)
        assert 8 <= verdicts.index(True) - above <= 14


def test_a_collapse_to_the_uniform_loss_that_never_explodes_is_divergence():
    # A network of BatchNorm and weights that only give directions falls back to uniform predictions, not to infinity.
    losses = np.concatenate([np.linspace(UNIFORM_LOSS, 1.0, 60), np.full(60, UNIFORM_LOSS + 0.02)])
    curve = lr_curve(losses)
    assert curve.end == "diverged"
    assert divergence(curve, UNIFORM_LOSS) == pytest.approx(curve.lrs[60], rel=0.3)


def test_several_maxima_are_all_shown():
    lr = np.logspace(-4, 1, 100)
    acc = (
        0.1
        + 0.4 * np.exp(-0.5 * (np.log10(lr / 2e-3) / 0.25) ** 2)
        + 0.38 * np.exp(-0.5 * (np.log10(lr / 0.2) / 0.25) ** 2)
    )
    peak = accuracy_peak(lr_curve(UNIFORM_LOSS - acc, acc))
    assert peak.lr == pytest.approx(2e-3, rel=0.2)
    assert peak.others == pytest.approx((0.2,), rel=0.2)
    suggestion = suggest([lr_curve(UNIFORM_LOSS - acc, acc)] * 3, uniform_loss=UNIFORM_LOSS)
    assert "several maxima" in {caution.kind for caution in suggestion.cautions}


def test_where_the_accuracy_is_flat_the_loss_decides_and_a_caution_says_so():
    curves = []
    for seed in range(3):
        whole = typical_curve(seed)
        curves.append(lr_curve(whole.losses, np.zeros(len(whole.losses)), planned=100, seed=seed, end=whole.end))
    suggestion = suggest(curves, uniform_loss=UNIFORM_LOSS)
    assert suggestion.lr_max == pytest.approx(2e-3, rel=0.5)  # a tenth of the minimum
    assert "accuracy flat" in {caution.kind for caution in suggestion.cautions}


def test_the_middle_of_the_top_varies_less_between_seeds_than_its_highest_point():
    noisy = [typical_curve(seed, noise=0.05) for seed in range(20)]
    middles = np.log([accuracy_peak(curve).lr for curve in noisy])
    highest = np.log([curve.lrs[np.argmax(curve.accs)] for curve in noisy])
    assert middles.std() < 0.7 * highest.std()


def test_too_few_steps_per_decade_give_a_caution():
    suggestion = suggest([typical_curve(steps=40, noise=0.0)], uniform_loss=UNIFORM_LOSS)
    assert "too few steps" in {caution.kind for caution in suggestion.cautions}


def test_a_linear_range_is_read_at_its_own_learning_rates():
    lr = np.linspace(0.01, 1.0, 100)
    acc = 0.1 + 0.4 * np.exp(-0.5 * ((lr - 0.4) / 0.15) ** 2)
    suggestion = suggest([lr_curve(UNIFORM_LOSS - 2 * acc, acc, 0.01, 1.0, linear=True)] * 3, uniform_loss=UNIFORM_LOSS)
    assert suggestion.lr_max == pytest.approx(0.4, rel=0.1)


def test_the_minimum_and_the_valley_of_a_loss_are_found():
    losses = np.concatenate([np.linspace(2.3, 1.0, 70), np.linspace(1.0, 2.2, 30)])
    points = loss_points(lr_curve(losses), UNIFORM_LOSS)
    assert points["minimum"] == pytest.approx(69, abs=2)
    assert points["valley"] == pytest.approx(35, abs=3)


def test_a_seed_that_does_not_learn_is_said_to_be_one_where_the_others_do():
    flat = lr_curve(np.full(100, UNIFORM_LOSS), np.full(100, 0.1), seed=2)
    suggestion = suggest([typical_curve(0), typical_curve(1), flat], uniform_loss=UNIFORM_LOSS)
    (caution,) = (one for one in suggestion.cautions if one.kind == "seed without descent")
    assert caution.text == "1 of 3 seeds did not learn at all" and suggestion.lr_max == pytest.approx(2e-2, rel=0.5)
