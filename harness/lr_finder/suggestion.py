"""Suggest LRMIN and LRMAX from the curves of several seeds, with reasons, cautions and the estimates of other rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.lr_finder.analysis import FEWEST_LOSSES, LRCurve, Peak, accuracy_peak, divergence, loss_points
from harness.lr_finder.measure import ACCURACY, RANKING, Measure

SAFETY = 4.0  # LRMAX stays this factor below the first divergence
# Of LRMAX to LRMIN, where the schedule ends. Training has to end at a low rate: the custom ResNet on CIFAR-10 reached
# 85.9, 89.5, 90.5 and 90.5 % on held-out images with ratios of 3, 10, 30 and 100 (docs/log.md, 2026-11-26).
RATIO_LEAST, RATIO_MOST = 30.0, 300.0
AGREE, DISAGREE = 2.0, 3.0  # factors between the seeds
FAR_ABOVE = 2.0  # times the loss without any learning: a start from which a test says little about a run
COARSE = 10  # steps per decade under which a curve is too coarse


@dataclass(frozen=True)
class RuleEstimate:
    """The learning rate by one rule: the median over the seeds and their extremes; None where it gives none.

    Attributes:
        note: what the rule is, and a warning where it is worth nothing on these curves.
    """

    rule: str
    lr: float | None
    low: float | None
    high: float | None
    note: str


@dataclass(frozen=True)
class Caution:
    """A reason to doubt a suggestion; a `serious` one makes it unsure."""

    kind: str
    text: str
    serious: bool = True


@dataclass(frozen=True)
class Suggestion:
    """Which learning rates to train with.

    Attributes:
        lr_min, lr_max: None where the test found none.
        interval: least and greatest LRMAX of the single seeds.
        begins: where learning begins, the median over the seeds.
        divergence: where the loss first diverges, the median over the seeds; None where it does not.
        confidence: begins with `sure`, `fairly sure` or `unsure`, followed by the reason.
        rules: the estimate of each rule.
    """

    lr_min: float | None
    lr_max: float | None
    interval: tuple[float, float] | None
    begins: float | None
    divergence: float | None
    confidence: str
    reasons: tuple[str, ...]
    cautions: tuple[Caution, ...]
    rules: tuple[RuleEstimate, ...]


@dataclass(frozen=True)
class _Seed:
    """One seed's curve with all that is read from it.

    Attributes:
        points: index into the curve by name, see `loss_points`.
        divergence: learning rate at which the loss diverges; None where it does not.
    """

    curve: LRCurve
    peak: Peak | None
    points: dict[str, int]
    divergence: float | None

    def lr_at(self, point: str) -> float | None:
        """Return the learning rate at a named point of the curve."""
        index = self.points.get(point)
        return None if index is None else float(self.curve.lrs[index])

    def lr_max(self, by_accuracy: bool) -> float | None:
        """Return this seed's LRMAX: its accuracy peak (or a tenth of its loss minimum), well below its divergence."""
        if by_accuracy:
            lr = None if self.peak is None else self.peak.lr
        else:
            lr = None if (lowest := self.lr_at("minimum")) is None else lowest / 10
        return lr if lr is None or self.divergence is None else min(lr, self.divergence / SAFETY)


def suggest(
    curves: Sequence[LRCurve], *, uniform_loss: float, chance: float = 0.0, measure: Measure = ACCURACY
) -> Suggestion:
    """Return LRMIN and LRMAX by the accuracy peak and the divergence, with reasons and cautions.

    Args:
        curves: one of each seed, over the same learning rates.
        uniform_loss: loss of a model that gives every class the same probability, ln(classes), nats.
        chance: accuracy 0..1 of always naming the most frequent class, or what `measure` is without any learning.
        measure: what the accuracies of the curves are.
    """
    seeds = [
        _Seed(curve, accuracy_peak(curve), loss_points(curve, uniform_loss), divergence(curve, uniform_loss))
        for curve in curves
    ]
    by_accuracy = 2 * sum(seed.peak is not None for seed in seeds) >= len(seeds)
    lr_maxes = [lr for seed in seeds if (lr := seed.lr_max(by_accuracy)) is not None]
    begins = log_median([seed.peak.begin for seed in seeds if seed.peak is not None])
    diverges = log_median([seed.divergence for seed in seeds if seed.divergence is not None])
    rules = _rule_estimates(seeds, measure)
    test_cautions = _test_cautions(seeds, uniform_loss, measure)
    median = log_median(lr_maxes)
    if median is None or 2 * len(lr_maxes) < len(seeds):
        reason = _no_descent(curves, measure)
        return Suggestion(
            lr_min=None,
            lr_max=None,
            interval=None,
            begins=begins,
            divergence=diverges,
            confidence="unsure: no learning rate to suggest",
            reasons=(reason,),
            cautions=(Caution("no descent", reason), *test_cautions),
            rules=rules,
        )
    lr_max, interval = round_significant(median), (min(lr_maxes), max(lr_maxes))
    lr_min = lr_min_for(begins, lr_max)
    cautions = (
        *_lr_cautions(seeds, interval, begins, lr_max, by_accuracy, measure),
        *(_below_chance(seeds, chance, measure) if by_accuracy else ()),
        *test_cautions,
    )
    return Suggestion(
        lr_min=lr_min,
        lr_max=lr_max,
        interval=interval,
        begins=begins,
        divergence=diverges,
        confidence=_confidence(len(lr_maxes), interval, cautions),
        reasons=(_lr_max_reason(lr_max, seeds, diverges, by_accuracy, measure), _lr_min_reason(lr_min, begins, lr_max)),
        cautions=cautions,
        rules=rules,
    )


def lr_min_for(begins: float | None, lr_max: float) -> float:
    """Return LRMIN: where learning begins, but at most LRMAX / `RATIO_LEAST` and at least LRMAX / `RATIO_MOST`."""
    begins = lr_max / 100 if begins is None else begins
    return round_significant(min(max(begins, lr_max / RATIO_MOST), lr_max / RATIO_LEAST))


def peak_rule(measure: Measure) -> str:
    """Return the name of the rule that LRMAX comes from."""
    return f"{measure.short_name.removeprefix('ROC ')} peak"


def round_significant(value: float, digits: int = 2) -> float:
    """Return `value` rounded to so many significant digits."""
    return float(f"{value:.{digits - 1}e}")


def log_median(values: Sequence[float]) -> float | None:
    """Return the median on a logarithmic axis; None of no values."""
    return math.exp(float(np.median(np.log(values)))) if len(values) else None


def _lr_max_reason(
    lr_max: float, seeds: Sequence[_Seed], diverges: float | None, by_accuracy: bool, measure: Measure
) -> str:
    if by_accuracy:
        limited = sum(seed.divergence is not None and seed.lr_max(True) == seed.divergence / SAFETY for seed in seeds)
        acc = _best_accuracy(seeds)
        where = "at a higher rate" if limited else "there"
        reason = f"LRMAX {lr_max:.2g}: the {measure.name} is highest {where} ({100 * acc:.1f} %, median of {len(seeds)} seeds)"
        if limited:
            return f"{reason}; capped at 1/{SAFETY:g} of the learning rate at which the loss diverges, for {limited} of {len(seeds)} seeds"
    else:  # a loss is lowest before it diverges, and a tenth of that rate is never capped
        reason = f"LRMAX {lr_max:.2g}: a tenth of where the loss is lowest, since the {measure.name} hardly rises"
    if diverges is None:
        return f"{reason}; the loss does not diverge in the range"
    return f"{reason}; the loss diverges only at {diverges:.2g}"


def _best_accuracy(seeds: Sequence[_Seed]) -> float:
    """Return the median over the seeds of the highest smoothed batch accuracy, 0..1."""
    return float(np.median([seed.peak.acc for seed in seeds if seed.peak is not None]))


def _below_chance(seeds: Sequence[_Seed], chance: float, measure: Measure) -> list[Caution]:
    """Return a reason to doubt a rate at which the model is no better than one that has learnt nothing of the images."""
    if (acc := _best_accuracy(seeds)) > chance:
        return []
    text = f"the highest {measure.name}, {100 * acc:.1f} %, is not above {100 * chance:.1f} %, {measure.lesson}: it says little about the rate; compare the loss, or set more --steps"
    return [Caution(f"{measure.short_name} at chance", text)]


def _lr_min_reason(lr_min: float, begins: float | None, lr_max: float) -> str:
    if begins is None:
        return f"LRMIN {lr_min:.2g}: a hundredth of LRMAX"
    reason = f"LRMIN {lr_min:.2g}: learning begins at {begins:.2g}"
    if begins < lr_max / RATIO_MOST:
        return f"{reason}, raised to LRMAX/{RATIO_MOST:g}"
    return f"{reason}, lowered to LRMAX/{RATIO_LEAST:g}" if begins > lr_max / RATIO_LEAST else reason


def _no_descent(curves: Sequence[LRCurve], measure: Measure) -> str:
    low = min(float(curve.lrs[0]) for curve in curves)
    high = max(float(curve.lrs[-1]) for curve in curves)
    if min(curve.finite for curve in curves) < FEWEST_LOSSES:
        return f"the loss was not finite from the very start (learning rate {low:.2g}); start lower, with --low {low / 1000:.1g}"
    return f"no descent: neither loss nor {measure.short_name} improved by more than its noise between {low:.2g} and {high:.2g}; try another --low and --high, or more --steps"


def _lr_cautions(
    seeds: Sequence[_Seed],
    interval: tuple[float, float],
    begins: float | None,
    lr_max: float,
    by_accuracy: bool,
    measure: Measure,
) -> list[Caution]:
    """Return the reasons to doubt the suggested learning rates."""
    cautions, peaks = [], [(seed.curve, seed.peak) for seed in seeds if seed.peak is not None]
    lrs = seeds[0].curve.lrs
    spread = interval[1] / interval[0]
    if spread > DISAGREE:
        text = f"the seeds disagree by a factor of {spread:.1f} ({interval[0]:.2g} to {interval[1]:.2g}); set more --seeds, or --confirm 5"
        cautions.append(Caution("seeds disagree", text))
    at_left = sum(peak.first <= _margin(curve) for curve, peak in peaks)
    if by_accuracy and 2 * at_left >= len(peaks):
        text = f"LRMAX lies at the left edge of the range ({lrs[0]:.2g}): the best one may be lower; set --low {lrs[0] / 100:.1g}"
        cautions.append(Caution("left edge", text))
    at_right = sum(
        peak.last >= len(curve.lrs) - 1 - _margin(curve) and curve.end == "end of range" for curve, peak in peaks
    )
    if by_accuracy and 2 * at_right >= len(peaks):
        text = f"LRMAX lies at the right edge of the range ({lrs[-1]:.2g}): the best one may be higher; set --high {lrs[-1] * 100:.1g}"
        cautions.append(Caution("right edge", text))
    if begins is not None and lr_max / RATIO_MOST < begins <= float(lrs[_margin(seeds[0].curve)]):
        text = f"learning has begun at the left edge of the range ({begins:.2g}): LRMIN may be lower"
        cautions.append(Caution("left edge of LRMIN", text, serious=False))
    others = sorted({round_significant(lr) for _, peak in peaks for lr in peak.others})
    if others:
        text = f"the {measure.short_name} has further maxima, at {', '.join(f'{lr:.2g}' for lr in others)}"
        cautions.append(Caution("several maxima", text, serious=False))
    if not by_accuracy:
        text = f"the {measure.name} does not rise above its noise, so the loss decides"
        cautions.append(Caution(f"{measure.short_name} flat", text))
    without_lr_max = sum(seed.lr_max(by_accuracy) is None for seed in seeds)
    if without_lr_max:
        text = f"{without_lr_max} of {len(seeds)} seeds did not learn at all"
        cautions.append(Caution("seed without descent", text))
    return cautions


def _test_cautions(seeds: Sequence[_Seed], uniform_loss: float, measure: Measure) -> list[Caution]:
    """Return the reasons to doubt the test itself."""
    cautions, curves = [], [seed.curve for seed in seeds]
    undiverged = sum(curve.end == "end of range" for curve in curves)
    if undiverged:
        text = f"the loss did not diverge up to {curves[0].lrs[-1]:.2g} in {undiverged} of {len(curves)} seeds; how high LRMAX can go is unknown"
        cautions.append(Caution("no divergence", text, serious=False))
    for curve in curves:
        if curve.end == "not finite":
            text = f"seed {curve.seed}: the loss was not finite at {curve.lrs[-1]:.2g}, which counts as divergence"
            cautions.append(Caution("not finite", text, serious=False))
    starts = [float(np.median(curve.losses[: min(5, curve.finite)])) for curve in curves if curve.finite]
    if starts and max(starts) < 0.7 * uniform_loss:
        text = f"the loss begins at {max(starts):.2g}, far below that of uniform predictions ({uniform_loss:.2g}): the model is already trained, and such a curve says little"
        cautions.append(Caution("already trained", text))
    if starts and measure is RANKING and min(starts) > FAR_ABOVE * uniform_loss:
        text = f"the loss begins at {min(starts):.2g}, far above that of a model that only knows how frequent each class is ({uniform_loss:.2g}): the low rates of the test have taken it down, and a run that is sooner at LRMAX may diverge; leave --prior-bias true and take a model whose classifier has a bias, or set --confirm 5"
        cautions.append(Caution("high start", text))
    lrs = curves[0].lrs
    decades = math.log10(float(lrs[-1] / lrs[0])) if len(lrs) > 1 else 0.0
    if decades and len(lrs) / decades < COARSE:
        text = f"only {len(lrs) / decades:.0f} steps per decade; set more --steps"
        cautions.append(Caution("too few steps", text, serious=False))
    return cautions


def _margin(curve: LRCurve) -> int:
    """Return how many steps from an end of the range still count as that edge."""
    return max(3, round(0.05 * curve.planned))


def _confidence(count: int, interval: tuple[float, float], cautions: Sequence[Caution]) -> str:
    spread = interval[1] / interval[0]
    serious = ", ".join(caution.kind for caution in cautions if caution.serious)
    seeds = (
        f"{count} seeds lie within a factor of {spread:.1f}" if count > 1 else "only one seed, so the spread is unknown"
    )
    if serious:
        return f"unsure: {serious}; {seeds}"
    return f"{'sure' if count >= 3 and spread <= AGREE else 'fairly sure'}: {seeds}"


def _rule_estimates(seeds: Sequence[_Seed], measure: Measure) -> tuple[RuleEstimate, ...]:
    """Return every rule's median and spread; the note says when the steepest descent is only the start of the curve."""
    peaks = [seed.peak for seed in seeds]
    at_edge = sum("steepest" in seed.points and seed.points["steepest"] <= 2 * _margin(seed.curve) for seed in seeds)
    steepest = "steepest fall of the loss over log LR; never a good LRMAX"
    if at_edge and 2 * at_edge >= len(seeds):
        steepest += "; here only the left edge of the range"
    tenths = [None if (lowest := seed.lr_at("minimum")) is None else lowest / 10 for seed in seeds]
    estimates: list[tuple[str, list[float | None], str]] = [
        (
            peak_rule(measure),
            [None if peak is None else peak.lr for peak in peaks],
            f"middle of the top of the {measure.name}{' (Smith)' * (measure is ACCURACY)}",
        ),
        (
            "valley",
            [seed.lr_at("valley") for seed in seeds],
            "half of the way down the longest fall of the loss (fastai)",
        ),
        ("minimum/10", tenths, "a tenth of where the loss is lowest (fastai)"),
        ("steepest", [seed.lr_at("steepest") for seed in seeds], steepest),
        (
            "held-out minimum",
            [_val_minimum(seed.curve) for seed in seeds],
            "where the loss on held-out images is lowest",
        ),
        (
            "learning begins",
            [None if peak is None else peak.begin for peak in peaks],
            f"a fifth of the rise of the {measure.short_name}",
        ),
        (
            "first divergence",
            [seed.divergence for seed in seeds],
            "where the loss rises for good; training there fails",
        ),
    ]
    return tuple(_estimate(*estimate) for estimate in estimates)


def _estimate(rule: str, values: Sequence[float | None], note: str) -> RuleEstimate:
    known = [value for value in values if value is not None]
    return RuleEstimate(rule, log_median(known), min(known, default=None), max(known, default=None), note)


def _val_minimum(curve: LRCurve) -> float | None:
    losses = {index: loss for index, (loss, _) in curve.val_points.items() if math.isfinite(loss)}
    return float(curve.lrs[min(losses, key=losses.__getitem__)]) if len(losses) >= 3 else None
