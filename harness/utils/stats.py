"""Statistics without NumPy: mean with its interval over repeated runs, moving average."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

CONFIDENCE = 0.95
LEAST_VALUES = 3  # for an interval of a mean: that of two values is so wide that it says nothing
Scale: TypeAlias = Literal["linear", "log", "logit"]


@dataclass(frozen=True)
class MeanInterval:
    """Statistics of one quantity over several runs.

    Attributes:
        n: number of values.
        sd: sample standard deviation (divided by n - 1); None for a single value.
        low, high: Student's t interval of the mean, on the scale that was named; None for fewer than 3 values, and for equal ones,
            which do not show how far others would lie from them.
        least, most: the smallest and the largest value.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    least: float
    most: float


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE, scale: Scale = "linear") -> MeanInterval:
    """Return mean, standard deviation and Student's t interval of the mean.

    The interval covers what varies between the runs (the seed), not the choice of the test images.

    Args:
        values: at least one.
        confidence: the level of the interval, 0..1.
        scale: on which the values are taken as normally distributed; mean and standard deviation are of the values
            themselves. `logit` is for fractions, whose interval stays within 0..1, and `log` for positive numbers. A value
            at the very end of its range counts as half-way to the nearest other one there; values beyond it are taken as
            they are.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    numbers = [float(value) for value in values]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"need at least one value, all of them finite, got {numbers}")
    lowest, highest = {"linear": (-math.inf, math.inf), "log": (0.0, math.inf), "logit": (0.0, 1.0)}[scale]
    if min(numbers) < lowest or max(numbers) > highest:
        return mean_interval(numbers, confidence)
    n, mean = len(numbers), statistics.fmean(numbers)
    if n == 1:
        return MeanInterval(1, mean, None, None, None, mean, mean)
    sd = statistics.stdev(numbers)
    inner = [value for value in numbers if lowest < value < highest]
    low: float | None
    high: float | None
    if n < LEAST_VALUES or sd == 0:
        low = high = None
    elif not inner:  # zeros and ones, which say nothing more
        low, high = lowest, highest
    else:
        ends = {lowest: (lowest + min(inner)) / 2, highest: (highest + max(inner)) / 2}
        forth, back = _SCALES[scale]
        low, high = map(back, _t_interval([forth(ends.get(value, value)) for value in numbers], confidence))
        low, high = min(low, mean), max(high, mean)
    return MeanInterval(n, mean, sd, low, high, min(numbers), max(numbers))


def _t_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    from scipy.special import stdtrit  # not scipy.stats, whose import takes half a second

    n, mean = len(values), statistics.fmean(values)
    half_width = float(stdtrit(n - 1, (1 + confidence) / 2)) * statistics.stdev(values) / math.sqrt(n)
    return mean - half_width, mean + half_width


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(max(value, -700)) / (1 + math.exp(max(value, -700)))


def _logit(fraction: float) -> float:
    return math.log(fraction) - math.log1p(-fraction)


def _power(value: float) -> float:
    return math.exp(min(value, 700.0))


def _same(value: float) -> float:
    return value


# Scale -> the function to it, and the one back.
_SCALES: dict[Scale, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "linear": (_same, _same),
    "log": (math.log, _power),
    "logit": (_logit, _logistic),
}


def share_interval(share: float, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval of a fraction that is observed in `count` draws, such as the accuracy on as many images.

    Source: Wilson (1927); Brown, Cai, DasGupta, "Interval Estimation for a Binomial Proportion", 2001, eq. 4.
    """
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def chance_probability(correct: int, n: int, chance: float) -> float:
    """Return the probability of at least `correct` hits among `n` items that are each hit with probability `chance`."""
    from scipy.special import bdtrc

    return 1.0 if correct <= 0 else float(bdtrc(correct - 1, n, chance))


class MovingAverage:
    """An exponential moving average with bias correction: of a constant it is that constant from the first value on.

    Args:
        decay: weight of the past, 0..1; the average remembers about 1 / (1 - decay) values.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.value = math.nan
        self._total = self._weight = 0.0

    def update(self, value: float) -> None:
        """Take the next value."""
        self._total = self.decay * self._total + (1 - self.decay) * value
        self._weight = self.decay * self._weight + (1 - self.decay)
        self.value = self._total / self._weight


def moving_average(values: Iterable[float], decay: float, *, skip_non_finite: bool = False) -> list[float]:
    """Return the exponential moving average at each value.

    Args:
        skip_non_finite: leave NaN and infinite values out of the average; otherwise it is not finite from the first one on.
    """
    average = MovingAverage(decay)
    averages = []
    for value in values:
        if not skip_non_finite or math.isfinite(value):
            average.update(value)
        averages.append(average.value)
    return averages


def pareto_indices(points: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of the points than which no other is smaller in one value and at most as large in all."""
    tuples = [tuple(point) for point in points]
    return [
        index
        for index, point in enumerate(tuples)
        if not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in tuples)
    ]


def macro_scores(hits: Sequence[int], true: Sequence[int], predicted: Sequence[int]) -> tuple[float, float]:
    """Return balanced accuracy and macro F1, fractions 0..1; NaN without images.

    Balanced accuracy is the mean recall of the classes that have images, macro F1 the mean F1 of those that have images or
    predictions: what scikit-learn computes.

    Args:
        hits: of each class, images that are correctly classified.
        true, predicted: of each class, its images, and the images that are classified as it.
    """
    recalls = [hit / images for hit, images in zip(hits, true, strict=True) if images]
    f1 = [
        2 * hit / total for hit, total in zip(hits, map(sum, zip(true, predicted, strict=True)), strict=True) if total
    ]
    return (statistics.fmean(recalls), statistics.fmean(f1)) if recalls else (math.nan, math.nan)
