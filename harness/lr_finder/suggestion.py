"""From the curves of several seeds to LRMIN and LRMAX, with the reasons, the doubts and what other rules say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.lr_finder.analysis import LRCurve, Peak, accuracy_peak, divergence, loss_points

SAFETY = 4.0  # LRMAX stays this factor below the first divergence
RATIO_LEAST, RATIO_MOST = 3.0, 30.0  # of LRMAX to LRMIN
AGREE, DISAGREE = 2.0, 3.0  # factors between the seeds
COARSE = 10  # steps a decade under which a curve is too coarse


@dataclass(frozen=True)
class RuleEstimate:
    """What one rule says: the median over the seeds and their extremes; None where it says nothing.

    Attributes:
        note: what it is, and a warning where it is worth nothing here.
    """

    rule: str
    lr: float | None
    low: float | None
    high: float | None
    note: str


@dataclass(frozen=True)
class Caution:
    """A reason to doubt a suggestion; a `grave` one makes it unsure."""

    kind: str
    text: str
    grave: bool = True


@dataclass(frozen=True)
class Suggestion:
    """Which rates to train with.

    Attributes:
        lr_min, lr_max: None where the test found none.
        interval: least and greatest LRMAX of the single seeds.
        begins: where learning begins, the median over the seeds.
        divergence: where the loss first diverges, the median over the seeds; None where it did not.
        sure: begins with `sure`, `fairly sure` or `unsure`, and says why.
        rules: what each rule says.
    """

    lr_min: float | None
    lr_max: float | None
    interval: tuple[float, float] | None
    begins: float | None
    divergence: float | None
    sure: str
    reasons: tuple[str, ...]
    cautions: tuple[Caution, ...]
    rules: tuple[RuleEstimate, ...]


@dataclass(frozen=True)
class _Seed:
    """One seed's curve with all that is read off it."""

    trace: LRCurve
    peak: Peak | None
    points: dict[str, int]
    end: float | None

    def at(self, name: str) -> float | None:
        place = self.points.get(name)
        return None if place is None else float(self.trace.lrs[place])

    def lr_max(self, by_accuracy: bool) -> float | None:
        """The seed's own LRMAX: its accuracy peak (or a tenth of its loss minimum), well below its divergence."""
        if by_accuracy:
            lr = None if self.peak is None else self.peak.lr
        else:
            lr = None if (lowest := self.at("minimum")) is None else lowest / 10
        return lr if lr is None or self.end is None else min(lr, self.end / SAFETY)


def suggest(curves: Sequence[LRCurve], *, uniform_loss: float) -> Suggestion:
    """LRMIN and LRMAX by the accuracy peak and the divergence, with all that speaks for and against them.

    Args:
        curves: one of each seed, over the same rates.
        chance: the loss of a model that guesses, ln(classes), nats.
    """
    seeds = [
        _Seed(trace, accuracy_peak(trace), loss_points(trace, uniform_loss), divergence(trace, uniform_loss))
        for trace in curves
    ]
    by_accuracy = 2 * sum(seed.peak is not None for seed in seeds) >= len(seeds)
    each = [lr for seed in seeds if (lr := seed.lr_max(by_accuracy)) is not None]
    begins = log_median([seed.peak.begin for seed in seeds if seed.peak is not None])
    far = log_median([seed.end for seed in seeds if seed.end is not None])
    middle = log_median(each)
    if middle is None or 2 * len(each) < len(seeds):
        why = _no_descent(curves)
        cautions = (Caution("no descent", why), *_about_the_test(seeds, uniform_loss))
        return Suggestion(
            None, None, None, begins, far, "unsure: there is nothing to suggest", (why,), cautions, _estimates(seeds)
        )
    lr_max, interval = round_significant(middle), (min(each), max(each))
    lr_min = lr_min_for(begins, lr_max)
    cautions = (*_about_the_rates(seeds, interval, begins, lr_max, by_accuracy), *_about_the_test(seeds, uniform_loss))
    reasons = (_why_max(lr_max, seeds, far, by_accuracy), _why_min(lr_min, begins, lr_max))
    return Suggestion(
        lr_min,
        lr_max,
        interval,
        begins,
        far,
        _sure(len(each), interval, cautions),
        reasons,
        cautions,
        _estimates(seeds),
    )


def lr_min_for(begins: float | None, lr_max: float) -> float:
    """LRMIN: where learning begins, but no nearer to LRMAX than a third of it and no farther than a thirtieth."""
    begins = lr_max / 10 if begins is None else begins
    return round_significant(min(max(begins, lr_max / RATIO_MOST), lr_max / RATIO_LEAST))


def round_significant(value: float, digits: int = 2) -> float:
    """`value` to so many significant digits."""
    return float(f"{value:.{digits - 1}e}")


def log_median(values: Sequence[float]) -> float | None:
    """The median on a logarithmic axis; None of nothing."""
    return math.exp(float(np.median(np.log(values)))) if len(values) else None


def _why_max(lr_max: float, seeds: Sequence[_Seed], far: float | None, by_accuracy: bool) -> str:
    held_back = [seed for seed in seeds if seed.end is not None and seed.lr_max(by_accuracy) == seed.end / SAFETY]
    if by_accuracy:
        top = float(np.median([seed.peak.acc for seed in seeds if seed.peak is not None]))
        text = (
            f"LRMAX {lr_max:.2g}: the batch accuracy is highest there ({100 * top:.1f} %, median of {len(seeds)} seeds)"
        )
    else:
        text = f"LRMAX {lr_max:.2g}: a tenth of where the loss is lowest, since the accuracy hardly rises"
    if held_back and by_accuracy:
        return f"LRMAX {lr_max:.2g}: the batch accuracy is highest above it ({100 * top:.1f} %, median of {len(seeds)} seeds), and it is held back to 1/{SAFETY:g} of where the loss diverges in {len(held_back)} of them"
    if held_back:
        return f"{text}, held back to 1/{SAFETY:g} of where the loss diverges in {len(held_back)} of them"
    return text + (
        f"; the loss diverges only at {far:.2g}" if far is not None else "; the loss does not diverge in the range"
    )


def _why_min(lr_min: float, begins: float | None, lr_max: float) -> str:
    if begins is None:
        return f"LRMIN {lr_min:.2g}: a tenth of LRMAX"
    text = f"LRMIN {lr_min:.2g}: learning begins at {begins:.2g}"
    if begins < lr_max / RATIO_MOST:
        return f"{text}, raised to LRMAX/{RATIO_MOST:g}"
    return f"{text}, lowered to LRMAX/{RATIO_LEAST:g}" if begins > lr_max / RATIO_LEAST else text


def _no_descent(curves: Sequence[LRCurve]) -> str:
    low = min(float(trace.lrs[0]) for trace in curves)
    high = max(float(trace.lrs[-1]) for trace in curves)
    if min(trace.finite for trace in curves) < 8:
        return f"the loss was not finite from the very start (rate {low:.2g}); begin lower, with --low {low / 1000:.1g}"
    return f"no descent: neither loss nor accuracy got better than its noise between {low:.2g} and {high:.2g}; try another --low and --high, or more --steps"


def _about_the_rates(
    seeds: Sequence[_Seed], interval: tuple[float, float], begins: float | None, lr_max: float, by_accuracy: bool
) -> list[Caution]:
    """What there is to doubt about the suggested rates."""
    found, peaks = [], [(seed.trace, seed.peak) for seed in seeds if seed.peak is not None]
    spread = interval[1] / interval[0]
    if spread > DISAGREE:
        found.append(
            Caution(
                "seeds disagree",
                f"the seeds disagree by a factor of {spread:.1f} ({interval[0]:.2g} to {interval[1]:.2g}); ask for more --seeds, or --confirm 5",
            )
        )
    left = sum(peak.first <= _margin(trace) for trace, peak in peaks)
    if by_accuracy and 2 * left >= len(peaks):
        found.append(
            Caution(
                "left edge",
                f"LRMAX lies at the left edge of the window ({seeds[0].trace.lrs[0]:.2g}): the true one may be lower; set --low {seeds[0].trace.lrs[0] / 100:.1g}",
            )
        )
    right = sum(
        peak.last >= len(trace.lrs) - 1 - _margin(trace) and trace.end == "end of range" for trace, peak in peaks
    )
    if by_accuracy and 2 * right >= len(peaks):
        found.append(
            Caution(
                "right edge",
                f"LRMAX lies at the right edge of the window ({seeds[0].trace.lrs[-1]:.2g}): the true one may be higher; set --high {seeds[0].trace.lrs[-1] * 100:.1g}",
            )
        )
    if begins is not None and lr_max / RATIO_MOST < begins <= float(seeds[0].trace.lrs[_margin(seeds[0].trace)]):
        found.append(
            Caution(
                "left edge of LRMIN",
                f"learning has begun at the left edge of the window ({begins:.2g}): LRMIN may be lower",
                grave=False,
            )
        )
    others = sorted({round_significant(lr) for _, peak in peaks for lr in peak.others})
    if others:
        found.append(
            Caution(
                "several maxima",
                f"the accuracy has further maxima, at {', '.join(f'{lr:.2g}' for lr in others)}",
                grave=False,
            )
        )
    if not by_accuracy:
        found.append(
            Caution("accuracy flat", "the batch accuracy does not rise above its noise, so the loss had to decide")
        )
    silent = sum(seed.lr_max(by_accuracy) is None for seed in seeds)
    if silent:
        found.append(Caution("seed without descent", f"{silent} of {len(seeds)} seeds did not learn at all"))
    return found


def _about_the_test(seeds: Sequence[_Seed], uniform_loss: float) -> list[Caution]:
    """What there is to doubt about the test itself."""
    found, curves = [], [seed.trace for seed in seeds]
    whole = sum(trace.end == "end of range" for trace in curves)
    if whole:
        found.append(
            Caution(
                "no divergence",
                f"the loss did not diverge up to {curves[0].lrs[-1]:.2g} in {whole} of {len(curves)} seeds; how far LRMAX can go is not known",
                grave=False,
            )
        )
    for trace in curves:
        if trace.end == "not finite":
            found.append(
                Caution(
                    "not finite",
                    f"seed {trace.seed}: the loss was not finite at {trace.lrs[-1]:.2g}, which counts as divergence",
                    grave=False,
                )
            )
    starts = [float(np.median(trace.losses[: min(5, trace.finite)])) for trace in curves if trace.finite]
    if starts and max(starts) < 0.7 * uniform_loss:
        found.append(
            Caution(
                "already trained",
                f"the loss begins at {max(starts):.2g}, far below a guess ({uniform_loss:.2g}): the model is already trained, and such a curve says little",
            )
        )
    decades = math.log10(float(curves[0].lrs[-1] / curves[0].lrs[0])) if len(curves[0].lrs) > 1 else 0.0
    if decades and len(curves[0].lrs) / decades < COARSE:
        found.append(
            Caution(
                "too few steps",
                f"only {len(curves[0].lrs) / decades:.0f} steps a decade; ask for more --steps",
                grave=False,
            )
        )
    return found


def _margin(trace: LRCurve) -> int:
    """How many places from an end still count as that edge."""
    return max(3, round(0.05 * trace.planned))


def _sure(count: int, interval: tuple[float, float], cautions: Sequence[Caution]) -> str:
    spread = interval[1] / interval[0]
    doubts = ", ".join(caution.kind for caution in cautions if caution.grave)
    seeds = (
        f"{count} seeds lie within a factor of {spread:.1f}"
        if count > 1
        else "there is but one seed, so the spread is not known"
    )
    if doubts:
        return f"unsure: {doubts}; {seeds}"
    return f"{'sure' if count >= 3 and spread <= AGREE else 'fairly sure'}: {seeds}"


def _estimates(seeds: Sequence[_Seed]) -> tuple[RuleEstimate, ...]:
    """Every rule with its median and spread; a steepest descent that begins the curve is called what it is."""
    edge = sum("steepest" in seed.points and seed.points["steepest"] <= 2 * _margin(seed.trace) for seed in seeds)
    steep = "steepest fall of the loss over log LR; never a good LRMAX"
    if edge and 2 * edge >= len(seeds):
        steep += "; here only the left edge of the window"
    tenth = [None if (lowest := seed.at("minimum")) is None else lowest / 10 for seed in seeds]
    held = [_held_minimum(seed.trace) for seed in seeds]
    return (
        _estimate(
            "accuracy peak",
            [None if seed.peak is None else seed.peak.lr for seed in seeds],
            "middle of the top of the batch accuracy (Smith)",
        ),
        _estimate(
            "valley",
            [seed.at("valley") for seed in seeds],
            "half of the way down the longest fall of the loss (fastai)",
        ),
        _estimate("minimum/10", tenth, "a tenth of where the loss is lowest (fastai)"),
        _estimate("steepest", [seed.at("steepest") for seed in seeds], steep),
        _estimate("held-out minimum", held, "where the loss on held-out images is lowest"),
        _estimate(
            "learning begins",
            [None if seed.peak is None else seed.peak.begin for seed in seeds],
            "a fifth of the rise of the accuracy",
        ),
        _estimate(
            "first divergence", [seed.end for seed in seeds], "where the loss goes up for good; training there fails"
        ),
    )


def _estimate(rule: str, values: Sequence[float | None], note: str) -> RuleEstimate:
    said = [value for value in values if value is not None]
    return RuleEstimate(rule, log_median(said), min(said, default=None), max(said, default=None), note)


def _held_minimum(trace: LRCurve) -> float | None:
    finite = {place: loss for place, (loss, _) in trace.held.items() if math.isfinite(loss)}
    return float(trace.lrs[min(finite, key=finite.__getitem__)]) if len(finite) >= 3 else None
