"""W&B's early termination: which runs Hyperband's bands stop. A pure function of what the runs have logged.

Li et al., "Hyperband", https://arxiv.org/abs/1603.06560, in the form of W&B's server (package `sweeps`,
`hyperband_stopping.py`): at the band of n values, a run goes on when it is among the best 1/eta of all runs that
have logged n values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.utils.errors import UsageError, did_you_mean

KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")


@dataclass(frozen=True)
class Hyperband:
    """The `early_terminate` block of a sweep.

    Attributes:
        bands: after how many values of the metric the runs are compared, upwards.
        strict: compare the value at the band; otherwise the best so far.
    """

    bands: tuple[int, ...]
    eta: float
    strict: bool

    def stops(self, own: Sequence[float], all_runs: Sequence[Sequence[float]], *, maximise: bool) -> bool:
        """Whether a run with the values `own` is stopped.

        Args:
            own: values of the metric, in the order in which they were logged.
            all_runs: of every run, this one among them.
        """
        sign = -1.0 if maximise else 1.0
        band = max((band for band in self.bands if band <= len(own)), default=0)
        if not band:
            return False
        there = sorted(sign * values[band - 1] for values in all_runs if len(values) >= band)
        threshold = there[int(len(there) / self.eta)]
        value = sign * own[band - 1] if self.strict else min(sign * value for value in own)
        return value > threshold


def read_hyperband(block: Any, where: str = "early_terminate") -> Hyperband:
    """The block as W&B's schema has it, defaults filled in.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(block, Mapping):
        raise UsageError(f"{where}: need a mapping with `type: hyperband` and `min_iter:`, got {block!r}")
    if odd := [str(key) for key in block if key not in KEYS]:
        raise UsageError(f"{where}: there is no {odd[0]!r}{did_you_mean(odd[0], KEYS)}; known: {', '.join(KEYS)}")
    if block.get("type") != "hyperband":
        raise UsageError(f"{where}: type={block.get('type')!r}: need hyperband")
    eta, strict = block.get("eta", 3), block.get("strict", True)
    if isinstance(eta, bool) or not isinstance(eta, int | float) or eta <= 1:
        raise UsageError(f"{where}: eta={eta!r}: need a number above 1")
    if not isinstance(strict, bool):
        raise UsageError(f"{where}: strict={strict!r}: need true or false")
    if "max_iter" in block:
        most, levels = _count(block, "max_iter", where), _count(block, "s", where)
        bands = [int(most / eta**level) for level in range(1, levels + 1) if most / eta**level >= 1]
    elif "min_iter" in block:
        least = _count(block, "min_iter", where)
        bands = [int(least * eta**level) for level in range(100) if least * eta**level < 2**53]
    else:
        raise UsageError(f"{where}: need min_iter, or max_iter and s")
    if not bands:
        raise UsageError(
            f"{where}: max_iter={block['max_iter']} leaves no band with eta={eta:g}; raise it, or lower eta"
        )
    return Hyperband(tuple(sorted(set(bands))), float(eta), strict)


def _count(block: Mapping[str, Any], key: str, where: str) -> int:
    value = block.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{where}: {key}={value!r}: need a whole number of 1 or more")
    return value
