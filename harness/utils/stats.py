"""Statistics without NumPy: mean with its interval over repeated runs, moving average."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class MeanInterval:
    """Statistics of one quantity over several runs.

    Attributes:
        n: number of values.
        sd: sample standard deviation (divided by n - 1); None for a single value.
        low, high: Student's t interval of the mean; None for a single value.
        least, most: the smallest and the largest value.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    least: float
    most: float


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> MeanInterval:
    """Return mean, standard deviation and Student's t interval of the mean.

    The interval covers what varies between the runs (the seed), not the choice of the test images.

    Args:
        values: at least one.
        confidence: the level of the interval, 0..1.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    numbers = [float(value) for value in values]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"need at least one value, all of them finite, got {numbers}")
    n, mean = len(numbers), statistics.fmean(numbers)
    if n == 1:
        return MeanInterval(1, mean, None, None, None, mean, mean)
    from scipy.special import stdtrit  # not scipy.stats, whose import takes half a second

    sd = statistics.stdev(numbers)
    half_width = float(stdtrit(n - 1, (1 + confidence) / 2)) * sd / math.sqrt(n)
    return MeanInterval(n, mean, sd, mean - half_width, mean + half_width, min(numbers), max(numbers))


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

    def update(self, value: float) -> float:
        """Take the next value and return the average."""
        self._total = self.decay * self._total + (1 - self.decay) * value
        self._weight = self.decay * self._weight + (1 - self.decay)
        self.value = self._total / self._weight
        return self.value


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
