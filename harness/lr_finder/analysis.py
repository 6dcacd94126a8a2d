"""What the curve of one range test says: pure functions from curves to points on them.

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

TOP = 0.95  # of the rise: what still counts as the top of the accuracy
BEGIN = 0.2  # of the rise: where learning has begun
CERTAIN = 4.0  # standard errors from which on a change is no noise

End = Literal["end of range", "diverged", "not finite"]


@dataclass(frozen=True)
class LRCurve:
    """What the range test of one seed measured, one entry an update.

    Attributes:
        lrs: [N] the rate of each update. losses, accs: [N] of its batch, before the update. norms: [N] of the gradient.
        held: place in the curve -> (loss, accuracy) on the held-out images after that update.
        planned: updates that the range was planned for; more were made where it was extended.
        end: why it ended. Where it is "not finite", the last loss is not.
    """

    seed: int
    lrs: np.ndarray
    losses: np.ndarray
    accs: np.ndarray
    norms: np.ndarray
    planned: int
    end: End
    held: Mapping[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def smoothed(self) -> np.ndarray:
        """[N] the losses as the test saw them while it ran: a moving average, corrected for its start."""
        return moving_average(self.losses, memory(self.planned))

    @property
    def finite(self) -> int:
        """How many losses there are before the first that is not finite."""
        bad = np.flatnonzero(~np.isfinite(self.losses))
        return int(bad[0]) if len(bad) else len(self.losses)

    @property
    def level(self) -> np.ndarray:
        """[finite] the losses averaged to both sides, with explosions cut off first, lest they reach back."""
        losses = self.losses[: self.finite]
        few = max(5, len(losses) // 20)
        return centred(np.minimum(losses, 2 * float(np.median(losses[:few]))) if len(losses) else losses, self.width)

    @property
    def acc_level(self) -> np.ndarray:
        """[finite] the batch accuracies averaged to both sides."""
        return centred(self.accs[: self.finite], self.width)

    @property
    def width(self) -> float:
        """The standard deviation of the kernel that the rules smooth with, steps."""
        return max(1.5, self.planned / 40)


@dataclass(frozen=True)
class Peak:
    """The highest part of a curve of accuracies.

    Attributes:
        lr: the middle of the top on a logarithmic axis. first, last: its ends, places in the curve.
        acc: the highest smoothed accuracy.
        begin: the rate where the rise has begun.
        others: rates of further, separate maxima nearly as high.
    """

    lr: float
    first: int
    last: int
    acc: float
    begin: float
    others: tuple[float, ...] = ()


def memory(planned: int) -> float:
    """The decay of the moving average for a test of so many steps: it remembers a tenth of them."""
    return 1 - 1 / max(5.0, planned / 10)


def moving_average(values: np.ndarray, decay: float) -> np.ndarray:
    """The exponential moving average, corrected for its start: a constant stays that constant. NaN from the first NaN on."""
    total = weight = 0.0
    averages = []
    for value in np.asarray(values, dtype=float):
        total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        averages.append(total / weight)
    return np.array(averages)


def centred(values: np.ndarray, width: float) -> np.ndarray:
    """Values averaged with their neighbours on both sides, so that nothing is moved along the axis.

    A moving average lags behind, and would report every event at a higher rate than it happened at.
    """
    places = np.arange(len(values))
    kernel = np.exp(-0.5 * ((places[:, None] - places[None, :]) / width) ** 2)  # [N, N]
    return np.asarray(kernel @ np.asarray(values, dtype=float) / kernel.sum(1))


class DivergenceDetector:
    """Tells, loss by loss, whether training has diverged.

    It has when the smoothed loss is four times its lowest value, above one and a half times the loss of a guess, and
    above where it began; or when it had learned and is worse than a guess for a while. So neither one lucky batch,
    nor a high loss at the start, nor the noise of a model with hardly any loss rings it.

    Args:
        chance: the loss of a model that guesses, ln(classes).
    """

    def __init__(self, uniform_loss: float, planned: int) -> None:
        self.uniform_loss, self.decay = uniform_loss, memory(planned)
        self.warm = round(1 / (1 - self.decay))
        self.lowest, self.smoothed = math.inf, math.nan
        self._total = self._weight = 0.0
        self._first: list[float] = []
        self._worse = 0

    def rings(self, loss: float) -> bool:
        """Take the next loss; whether training has diverged."""
        if not math.isfinite(loss):
            return True
        self._total = self.decay * self._total + (1 - self.decay) * loss
        self._weight = self.decay * self._weight + (1 - self.decay)
        self.smoothed = self._total / self._weight
        if len(self._first) < self.warm:
            self._first.append(loss)
            return False
        self.lowest = min(self.lowest, self.smoothed)
        worse = self.smoothed > self.uniform_loss and self.lowest < 0.9 * self.uniform_loss
        self._worse = self._worse + 1 if worse else 0
        start = float(np.median(self._first))
        return self.smoothed > max(4 * self.lowest, 1.5 * self.uniform_loss, start) or self._worse >= self.warm


def divergence(trace: LRCurve, uniform_loss: float) -> float | None:
    """The rate at which the loss first went up for good, from where it had learned; None when it did not diverge."""
    if trace.end == "end of range":
        return None
    last = len(trace.lrs) - 1
    smoothed, losses = trace.smoothed[: trace.finite], trace.losses[: trace.finite]
    if not len(smoothed) or smoothed.min() >= 0.9 * uniform_loss:
        return float(trace.lrs[last])
    # The moving average lags behind an explosion; the raw losses dip below a guess in a slow collapse.
    return float(trace.lrs[min(last, _last_stretch(smoothed > uniform_loss), _last_stretch(losses > uniform_loss))])


def accuracy_peak(trace: LRCurve) -> Peak | None:
    """Where the batch accuracy is highest; None when it does not rise above its noise.

    Not the one highest point, which moves by a factor of four between seeds, but the middle of all of the top.
    """
    accs = trace.accs[: trace.finite]
    if len(accs) < 8:
        return None
    curve = trace.acc_level
    few = max(5, len(accs) // 20)
    start = min(float(np.mean(accs[:few])), float(curve[0]))
    error = _error(accs, curve, trace.width)
    noise = math.hypot(error, error * math.sqrt(_effective(trace.width) / few))
    top = int(np.argmax(curve))
    rise = float(curve[top]) - start
    if rise <= max(CERTAIN * noise, 1e-9):
        return None
    first, last = _stretch(curve >= start + TOP * rise - error, top)
    begun, _ = _stretch(curve >= start + BEGIN * rise, top)
    return Peak(
        lr=math.sqrt(float(trace.lrs[first]) * float(trace.lrs[last])),
        first=first,
        last=last,
        acc=float(curve[top]),
        begin=float(trace.lrs[begun]),
        others=_other_maxima(trace.lrs, curve, start, rise, top),
    )


def loss_points(trace: LRCurve, uniform_loss: float) -> dict[str, int]:
    """Places by the loss: `minimum`, `valley`, `steepest`; empty when it does not fall below chance and its start."""
    losses = trace.losses[: trace.finite]
    if len(losses) < 8:
        return {}
    few = max(5, len(losses) // 20)
    start = float(np.median(losses[:few]))
    curve = trace.level
    error = _error(np.minimum(losses, curve.max()), curve, trace.width)
    noise = math.hypot(error, error * math.sqrt(_effective(trace.width) / few))
    lowest = int(np.argmin(curve))
    if curve[lowest] >= min(start, uniform_loss) - max(CERTAIN * noise, 1e-9):
        return {}
    slope = np.gradient(curve, np.log(trace.lrs[: len(curve)]))
    return {"minimum": lowest, "valley": _valley(curve), "steepest": int(np.argmin(slope[: lowest + 1]))}


def _error(values: np.ndarray, curve: np.ndarray, width: float) -> float:
    """The standard error of a centred curve, from how the values scatter about it."""
    return float(np.std(values - curve)) / math.sqrt(_effective(width))


def _effective(width: float) -> float:
    """How many values a Gaussian kernel averages: 1 / sum of squared weights."""
    return max(1.0, 2 * math.sqrt(math.pi) * width)


def _stretch(holds: np.ndarray, place: int) -> tuple[int, int]:
    """The ends of the unbroken stretch around `place` in which `holds` is true."""
    first = last = place
    while first > 0 and holds[first - 1]:
        first -= 1
    while last < len(holds) - 1 and holds[last + 1]:
        last += 1
    return first, last


def _last_stretch(holds: np.ndarray) -> int:
    """Where the stretch up to the end in which `holds` is true begins."""
    breaks = np.flatnonzero(~holds)
    return int(breaks[-1]) + 1 if len(breaks) else 0


def _other_maxima(lrs: np.ndarray, curve: np.ndarray, start: float, rise: float, top: int) -> tuple[float, ...]:
    """Rates of the maxima that a dip of a third of the rise separates from the highest, and that are nearly as high."""
    inside = curve >= start + 0.67 * rise
    home = _stretch(inside, top)
    others, place = [], 0
    while place < len(curve):
        if not inside[place]:
            place += 1
            continue
        first, last = _stretch(inside, place)
        best = first + int(np.argmax(curve[first : last + 1]))
        if (first, last) != home and curve[best] >= start + 0.85 * rise:
            others.append(float(lrs[best]))
        place = last + 1
    return tuple(others)


def _valley(curve: np.ndarray) -> int:
    """The middle of the longest fall, as in fastai: half of the way from its beginning to its end."""
    longest = np.ones(len(curve), dtype=int)
    for place in range(1, len(curve)):
        higher = curve[:place] > curve[place]
        if higher.any():
            longest[place] = longest[:place][higher].max() + 1
    last = int(np.argmax(longest))
    first = last - int(longest[last])
    third = (last - first) / 3
    return max(0, first + int(third) + int(third / 2))
