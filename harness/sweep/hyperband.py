"""W&B's early termination by Hyperband, a pure function of what the runs have logged.

Li et al., "Hyperband", https://arxiv.org/abs/1603.06560, as W&B's server does it (package `sweeps`,
`hyperband_stopping.py`): at the band of n values, a run continues if it is among the best 1/eta of all runs that have
logged n values.
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
        bands: after how many values of the metric runs are compared, ascending.
        strict: compare the value at the band; otherwise the best so far.
    """

    bands: tuple[int, ...]
    eta: float
    strict: bool

    def stops(self, values: Sequence[float], all_runs: Sequence[Sequence[float]], *, maximise: bool) -> bool:
        """Return whether a run is stopped.

        Args:
            values: its values of the metric, in the order of logging.
            all_runs: the values of every run, this one included.
        """
        sign = -1.0 if maximise else 1.0
        band = max((band for band in self.bands if band <= len(values)), default=0)
        if not band:
            return False
        at_band = sorted(sign * other[band - 1] for other in all_runs if len(other) >= band)
        threshold = at_band[int(len(at_band) / self.eta)]
        value = sign * values[band - 1] if self.strict else min(sign * value for value in values)
        return value > threshold


def read_hyperband(block: Any, where: str = "early_terminate") -> Hyperband:
    """Return the block of a sweep file, defaults filled in.

    Raises:
        UsageError: it is not valid by W&B's schema.
    """
    if not isinstance(block, Mapping):
        raise UsageError(f"{where}: need a mapping with `type: hyperband` and `min_iter:`, got {block!r}")
    if unknown := [str(key) for key in block if key not in KEYS]:
        raise UsageError(
            f"{where}: unknown key {unknown[0]!r}{did_you_mean(unknown[0], KEYS)}; keys are {', '.join(KEYS)}"
        )
    if block.get("type") != "hyperband":
        raise UsageError(f"{where}: type={block.get('type')!r}: need hyperband")
    eta, strict = block.get("eta", 3), block.get("strict", True)
    if isinstance(eta, bool) or not isinstance(eta, int | float) or eta <= 1:
        raise UsageError(f"{where}: eta={eta!r}: need a number above 1")
    if not isinstance(strict, bool):
        raise UsageError(f"{where}: strict={strict!r}: need true or false")
    if "max_iter" in block:
        highest, levels = _positive_int(block, "max_iter", where), _positive_int(block, "s", where)
        bands = [int(highest / eta**level) for level in range(1, levels + 1) if highest / eta**level >= 1]
    elif "min_iter" in block:
        lowest = _positive_int(block, "min_iter", where)
        bands = [int(lowest * eta**level) for level in range(100) if lowest * eta**level < 2**53]
    else:
        raise UsageError(f"{where}: need min_iter, or max_iter and s")
    if not bands:
        raise UsageError(
            f"{where}: max_iter={block['max_iter']} gives no band with eta={eta:g}; raise max_iter, or lower eta"
        )
    return Hyperband(tuple(sorted(set(bands))), float(eta), strict)


def _positive_int(block: Mapping[str, Any], key: str, where: str) -> int:
    value = block.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 1:
        raise UsageError(f"{where}: {key}={value!r}: need an integer of 1 or more")
    return int(value)
