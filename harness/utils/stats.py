"""Mean, standard deviation and confidence interval of repeated measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
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
