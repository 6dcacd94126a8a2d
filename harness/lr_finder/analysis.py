"""Read the curve of one LR range test: pure functions from curves to points on them.

Sources: Smith, "Cyclical Learning Rates", https://arxiv.org/abs/1506.01186, section 3.3 (accuracy over LR); Smith and
Topin, "Super-Convergence", https://arxiv.org/abs/1708.07120 (LRMAX where accuracy is highest); valley, minimum/10 and
steepest are the rules of fastai's `lr_find`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from harness.utils.stats import MovingAverage, moving_average

TOP = 0.95  # of the rise: what still counts as the top of the accuracy
BEGIN = 0.2  # of the rise: where learning has begun
CERTAIN = 4.0  # standard errors from which on a change is not noise
REACH = 9  # standard deviations of a Gaussian beyond which it is zero in float64 sums
FEWEST_LOSSES = 8  # losses under which a curve is not read

End = Literal["end of range", "diverged", "not finite"]


@dataclass(frozen=True)
class LRCurve:
    """The measurements of a range test with one seed, one entry per update.

    Attributes:
        lrs: [N] learning rate of each update.
        losses, accs: [N] of its batch, before the update. `accs` is the accuracy, or the area under the ROC curve where images have
            several labels: see `measure.Measure`.
        norms: [N] of the gradient.
        planned: updates that the range was planned for; there are more where it was extended.
        end: why it ended. Where it is "not finite", the last loss is not.
        val_points: index into the curve -> (loss, accuracy or mAP) on the held-out images after that update.
    """

    seed: int
    lrs: np.ndarray
    losses: np.ndarray
    accs: np.ndarray
    norms: np.ndarray
    planned: int
    end: End
    val_points: Mapping[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def smoothed(self) -> np.ndarray:
        """[N] moving average of the losses, as the divergence detector saw it during the test; NaN from the first NaN on."""
        return np.array(moving_average(self.losses, smoothing_decay(self.planned)))

    @property
    def finite(self) -> int:
        """How many losses there are before the first that is not finite."""
        bad = np.flatnonzero(~np.isfinite(self.losses))
        return int(bad[0]) if len(bad) else len(self.losses)

    @property
    def level(self) -> np.ndarray:
        """[finite] losses smoothed to both sides; explosions are clipped first, so that they do not reach back."""
        losses = self.losses[: self.finite]
        ceiling = 2 * float(np.median(losses[: _at_start(len(losses))])) if len(losses) else 0.0
        return gaussian_smooth(np.minimum(losses, ceiling), self.width)

    @property
    def acc_level(self) -> np.ndarray:
        """[finite] batch accuracies smoothed to both sides."""
        return gaussian_smooth(self.accs[: self.finite], self.width)

    @property
    def width(self) -> float:
        """The standard deviation of the kernel that the rules smooth with, steps."""
        return max(1.5, self.planned / 40)


@dataclass(frozen=True)
class Peak:
    """The highest part of a curve of accuracies.

    Attributes:
        lr: the middle of the top on a logarithmic axis.
        first, last: its ends, indices into the curve.
        acc: the highest smoothed accuracy.
        begin: the learning rate at which the rise has begun.
        others: learning rates of further, separate maxima nearly as high.
    """

    lr: float
    first: int
    last: int
    acc: float
    begin: float
    others: tuple[float, ...] = ()


def smoothing_decay(planned: int) -> float:
    """Return the decay of the moving average for a test of so many steps: it remembers a tenth of them."""
    return 1 - 1 / max(5.0, planned / 10)


def gaussian_smooth(values: np.ndarray, width: float) -> np.ndarray:
    """Return the values averaged with their neighbours on both sides, which moves nothing along the axis.

    A moving average lags behind, and would report every event at a higher learning rate than it happened at.

    Args:
        values: [N], finite.
        width: standard deviation of the weights, steps.
    """
    values = np.asarray(values, dtype=float)
    # Beyond `REACH` standard deviations a weight is less than the rounding of a sum, 1e-17.
    reach = min(math.ceil(REACH * width), max(len(values) - 1, 0))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    sums, weights = (_windowed(array, kernel, reach) for array in (values, np.ones_like(values)))
    return np.asarray(sums / weights)


def _windowed(values: np.ndarray, kernel: np.ndarray, reach: int) -> np.ndarray:
    """Return the sum over the kernel about each value, zero outside."""
    return np.convolve(values, kernel)[reach : reach + len(values)] if len(values) else values


class DivergenceDetector:
    """Decides, loss by loss, whether training has diverged.

    It has when the smoothed loss is four times its lowest value, above one and a half times the uniform loss, and
    above the first losses; or when it had learned and is above the uniform loss for a while. So none of one lucky
    batch, a high loss at the start, and the noise of a model with hardly any loss counts as divergence.

    Args:
        uniform_loss: loss of a model that gives every class the same probability, ln(classes), nats.
        planned: steps of the range test.
    """

    def __init__(self, uniform_loss: float, planned: int) -> None:
        self.uniform_loss, self.average = uniform_loss, MovingAverage(smoothing_decay(planned))
        self.warmup = round(1 / (1 - self.average.decay))
        self.lowest = math.inf
        self._first: list[float] = []
        self._steps_above_uniform = 0

    @property
    def smoothed(self) -> float:
        """The moving average of the losses so far."""
        return self.average.value

    def update(self, loss: float) -> bool:
        """Take the next loss and return whether training has diverged."""
        if not math.isfinite(loss):
            return True
        self.average.update(loss)
        if len(self._first) < self.warmup:
            self._first.append(loss)
            return False
        self.lowest = min(self.lowest, self.smoothed)
        has_forgotten = self.smoothed > self.uniform_loss and self.lowest < 0.9 * self.uniform_loss
        self._steps_above_uniform = self._steps_above_uniform + 1 if has_forgotten else 0
        start = float(np.median(self._first))
        has_exploded = self.smoothed > max(4 * self.lowest, 1.5 * self.uniform_loss, start)
        return has_exploded or self._steps_above_uniform >= self.warmup


def divergence(curve: LRCurve, uniform_loss: float) -> float | None:
    """Return the learning rate at which the loss rose for good after the model had learned; None without divergence."""
    if curve.end == "end of range":
        return None
    last = len(curve.lrs) - 1
    smoothed, losses = curve.smoothed[: curve.finite], curve.losses[: curve.finite]
    if not len(smoothed) or smoothed.min() >= 0.9 * uniform_loss:
        return float(curve.lrs[last])
    # The moving average lags behind an explosion; the raw losses dip below the uniform loss in a slow collapse.
    return float(curve.lrs[min(last, _final_stretch(smoothed > uniform_loss), _final_stretch(losses > uniform_loss))])


def accuracy_peak(curve: LRCurve) -> Peak | None:
    """Return where the batch accuracy is highest; None when it does not rise above its noise.

    Not the one highest point, which moves by a factor of four between seeds, but the middle of all of the top. Of several
    maxima that are nearly as high, the one at the lowest rate: after a dip the curve is that of a network that higher rates
    have upset, and the seeds differ in which maximum is the highest.
    """
    accs = curve.accs[: curve.finite]
    if len(accs) < FEWEST_LOSSES:
        return None
    level = curve.acc_level
    start = min(float(np.mean(accs[: _at_start(len(accs))])), float(level[0]))
    error, noise = _error_and_noise(accs, level, curve.width)
    top = int(np.argmax(level))
    rise = float(level[top]) - start
    if rise <= max(CERTAIN * noise, 1e-9):
        return None
    maxima = sorted([top, *_other_maxima(level, start, rise, top)])
    top = maxima[0]
    first, last = _stretch(level >= start + TOP * rise - error, top)
    begin, _ = _stretch(level >= start + BEGIN * rise, top)
    return Peak(
        lr=math.sqrt(float(curve.lrs[first]) * float(curve.lrs[last])),
        first=first,
        last=last,
        acc=float(level[top]),
        begin=float(curve.lrs[begin]),
        others=tuple(float(curve.lrs[index]) for index in maxima[1:]),
    )


def loss_points(curve: LRCurve, uniform_loss: float) -> dict[str, int]:
    """Return indices by name: `minimum`, `valley`, `steepest`; empty when the loss does not fall.

    It falls when it gets below both its start and the uniform loss, by more than its noise.
    """
    losses = curve.losses[: curve.finite]
    if len(losses) < FEWEST_LOSSES:
        return {}
    level = curve.level
    start = float(np.median(losses[: _at_start(len(losses))]))
    _, noise = _error_and_noise(np.minimum(losses, level.max()), level, curve.width)
    lowest = int(np.argmin(level))
    if level[lowest] >= min(start, uniform_loss) - max(CERTAIN * noise, 1e-9):
        return {}
    slope = np.gradient(level, np.log(curve.lrs[: len(level)]))
    return {"minimum": lowest, "valley": _valley(level), "steepest": int(np.argmin(slope[: lowest + 1]))}


def _at_start(count: int) -> int:
    """Return how many of the first values stand for the start of a curve."""
    return max(5, count // 20)


def _error_and_noise(values: np.ndarray, level: np.ndarray, width: float) -> tuple[float, float]:
    """Return the standard error of a smoothed curve, from how the values scatter about it, and of its rise from the start."""
    averaged = max(1.0, 2 * math.sqrt(math.pi) * width)  # values in a Gaussian kernel: 1 / sum of squared weights
    error = float(np.std(values - level)) / math.sqrt(averaged)
    return error, math.hypot(error, error * math.sqrt(averaged / _at_start(len(values))))


def _stretch(mask: np.ndarray, index: int) -> tuple[int, int]:
    """Return the ends of the unbroken stretch around `index` in which `mask` is true."""
    first = last = index
    while first > 0 and mask[first - 1]:
        first -= 1
    while last < len(mask) - 1 and mask[last + 1]:
        last += 1
    return first, last


def _final_stretch(mask: np.ndarray) -> int:
    """Return where the stretch up to the end in which `mask` is true begins."""
    breaks = np.flatnonzero(~mask)
    return int(breaks[-1]) + 1 if len(breaks) else 0


def _other_maxima(level: np.ndarray, start: float, rise: float, top: int) -> list[int]:
    """Return the indices of maxima nearly as high, separated from the highest by a dip of a third of the rise."""
    high = level >= start + 0.67 * rise
    highest = _stretch(high, top)
    others, index = [], 0
    while index < len(level):
        if not high[index]:
            index += 1
            continue
        first, last = _stretch(high, index)
        best = first + int(np.argmax(level[first : last + 1]))
        if (first, last) != highest and level[best] >= start + 0.85 * rise:
            others.append(best)
        index = last + 1
    return others


def _valley(level: np.ndarray) -> int:
    """Return the middle of the longest fall, as in fastai: half of the way from its beginning to its end."""
    longest = np.ones(len(level), dtype=int)
    for index in range(1, len(level)):
        higher = level[:index] > level[index]
        if higher.any():
            longest[index] = longest[:index][higher].max() + 1
    last = int(np.argmax(longest))
    first = last - int(longest[last])
    third = (last - first) / 3
    return max(0, first + int(third) + int(third / 2))
