"""How far repeated measurements lie apart, and how well their mean is known."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class MeanInterval:
    """The figures of one quantity over several runs.

    Attributes:
        n: how many values.
        sd: sample standard deviation (n - 1 below the line); None for a single value.
        low, high: Student's interval of the mean, at 95 %; None for a single value.
        least, most: the lowest and the highest value.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    least: float
    most: float


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> MeanInterval:
    """Mean, standard deviation and Student's t interval of the mean.

    The interval speaks of what varies between the runs (the seed), not of other test images.

    Args:
        values: at least one, finite.

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
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * sd / math.sqrt(n)
    return MeanInterval(n, mean, sd, mean - half, mean + half, min(numbers), max(numbers))
