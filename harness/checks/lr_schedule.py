"""Check the learning rate of every update, read back from an optimizer that the schedule has set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from harness.checks.table import CheckRow, row
from harness.config.recipe import make_config
from harness.config.settings import FIND, Config
from harness.reporting.figures.schedule import curve
from harness.training.optimizer import current_lr, make_optimizer, set_lr_and_momentum
from harness.training.schedule import make_schedule
from harness.utils.files import read_json
from harness.utils.text import percent

EPOCHS, PEAK = 24, 5
EXACT = 1e-6  # relative tolerance; a rate is a float64 after a dozen roundings
ROUNDED = 0.05  # relative tolerance for a suggested rate that a user rounded: 0.0045 for 0.00448


@dataclass(frozen=True)
class RateCurve:
    """The learning rate of every update.

    Attributes:
        lr: float64 [N], of updates 0 ... N-1; with `has_end`, the last is the rate after the last update.
        per_epoch: updates per epoch.
        is_complete: whether it covers all epochs of the settings.
        has_end: see `lr`; a journal has no rate after its last update.
        how: how the rates were obtained.
    """

    lr: np.ndarray
    per_epoch: int
    is_complete: bool
    has_end: bool
    how: str


def rates_of_config(config: Config, per_epoch: int) -> RateCurve:
    """Return the rates of a configuration, read back from its optimizer while its schedule sets them."""
    schedule = make_schedule(config, per_epoch)
    optimizer = make_optimizer(config.replace(head_lr_scale=1.0, layer_decay=1.0, optimizer_args={}), nn.Linear(1, 1))
    lr = []
    for step in range(schedule.steps + 1):
        set_lr_and_momentum(optimizer, schedule.lr(step), schedule.momentum_at(step))
        lr.append(current_lr(optimizer))
    return RateCurve(np.array(lr), per_epoch, True, True, "optimizer set by the schedule, every step")


def rate_rows(rates: RateCurve, lr_min: float, lr_max: float) -> list[CheckRow]:
    """Return the rows about start, maximum, end, shape and minimum of the one-cycle schedule.

    Args:
        lr_min, lr_max: the settings, or the rates that the run's range test chose.
    """
    lr, how = rates.lr, rates.how
    if not len(lr):
        return [row(name, "one cycle", "no update yet", how, None) for name in NAMES]
    top = int(lr.argmax())
    has_peak = rates.is_complete or len(lr) > PEAK * rates.per_epoch
    curvature = _curvature(lr, top)
    lowest = float(lr.min())
    is_below = lowest < lr_min * (1 - EXACT) or lr_min == 0
    return [
        row("LR start", f"LRMIN = {lr_min:g}", f"{lr[0]:g} at step 0", how, _equal(lr[0], lr_min)),
        row(
            "LR maximum",
            f"LRMAX = {lr_max:g} at epoch {PEAK}",
            f"{lr[top]:g} at epoch {top / rates.per_epoch:g} (step {top:,})",
            how,
            (top == PEAK * rates.per_epoch and _equal(lr[top], lr_max)) if has_peak else None,
        ),
        row(
            "LR end",
            f"LRMIN = {lr_min:g}",
            f"{lr[-1]:g} after the last epoch" if rates.is_complete else "not reached yet",
            how,
            _ends_at_minimum(rates, lr_min, lr_max) if rates.is_complete else None,
        ),
        row("LR shape", "one cycle: linear up, linear down", curvature or "linear up, linear down", how, not curvature),
        row("LR floor", "never below LRMIN (no annihilation)", f"lowest {lowest:g}", how, not is_below),
    ]


NAMES = ("LR start", "LR maximum", "LR end", "LR shape", "LR floor")


def _equal(value: float, wanted: float) -> bool:
    return bool(abs(value - wanted) <= EXACT * max(abs(wanted), 1e-12))


def _ends_at_minimum(rates: RateCurve, lr_min: float, lr_max: float) -> bool:
    """Return whether the last rate is LRMIN; the last update of a run is one step of the descent above it."""
    if rates.has_end:
        return _equal(rates.lr[-1], lr_min)
    step = (lr_max - lr_min) / max(len(rates.lr) - int(rates.lr.argmax()), 1)
    return bool(-EXACT * lr_max <= rates.lr[-1] - lr_min <= step * (1 + EXACT))


def _curvature(lr: np.ndarray, top: int) -> str:
    """Return how far the curve is from two straight lines that meet at its maximum; empty where it is linear."""
    knots = [0, top, len(lr) - 1]
    lines = np.interp(np.arange(len(lr)), knots, lr[knots])
    distance = float(np.abs(lr - lines).max())
    if lr.min() == lr.max():
        return "constant"
    # A maximum between two updates is not curved: it is less than one update's change of the lines away. That of the
    # rates themselves would allow any jump.
    is_linear = distance <= max(EXACT * lr.max(), float(np.abs(np.diff(lines)).max()))
    return "" if is_linear else f"up to {percent(distance / lr.max())} of LRMAX away from straight lines"


def range_test_row(config: Config, folder: Path | None) -> CheckRow:
    """Return the row about the origin of LRMIN and LRMAX, which is to be a range test.

    Args:
        folder: the run directory; where there is none, the runs in `config.output` are searched.
    """
    wanted, how = "LRMAX and LRMIN from an LR range test", "the settings; lr_finder.json of the runs"
    from_test = [name for name in ("lr_min", "lr_max") if getattr(config, name) == FIND]
    if len(from_test) == 2 or (folder is not None and from_test and (folder / "lr_finder.json").is_file()):
        return row("range test", wanted, "the run begins with a range test", how, True)
    fixed = {name: float(getattr(config, name)) for name in ("lr_min", "lr_max") if name not in from_test}
    shown = ", ".join(f"{name} {value:g}" for name, value in fixed.items())
    for path in sorted((folder.parent if folder else Path(config.output).expanduser()).glob("*/lr_finder.json")):
        suggestion = read_json(path)
        if all(_is_near(suggestion.get(name), value) for name, value in fixed.items()):
            return row("range test", wanted, f"{shown}: suggested in {path.parent}", how, True)
    shipped = make_config({})
    if all(_equal(value, float(getattr(shipped, name))) for name, value in fixed.items()):
        return row("range test", wanted, f"{shown}: suggested for the shipped recipe, see its header", how, True)
    description = (
        f"{shown}: from no range test in that folder; test with harness lr-find, or --lr-min find --lr-max find"
    )
    return row("range test", wanted, description, how, False)


def _is_near(suggested: object, value: float) -> bool:
    return isinstance(suggested, int | float) and abs(suggested - value) <= ROUNDED * value


def cyclic_row() -> CheckRow:
    """Return the row about the triangular schedule of `harness plot --schedule cyclic`, compared with Smith's formula."""
    drawn = curve({"schedule": "cyclic"}, steps_per_epoch=97)
    lr = np.array(drawn.lr)
    x = np.arange(100 + 1)
    cycle = np.floor(1 + x / 20)
    triangle = 0.08 + (0.8 - 0.08) * np.maximum(0, 1 - np.abs(x / 10 - 2 * cycle + 1))
    agrees = len(lr) == len(x) and bool(np.abs(lr - triangle).max() < EXACT)
    wanted = "triangle 0.08 to 0.8, step size 10, 100 iterations"
    description = f"{lr.min():g} to {lr.max():g}, step size {_first_maximum(lr)}, {len(lr) - 1} iterations"
    return row("cyclic plot", wanted, description, "Smith's formula at every point", agrees)


def _first_maximum(lr: Sequence[float] | np.ndarray) -> int:
    return int(np.flatnonzero(np.asarray(lr) >= max(lr) * (1 - EXACT))[0])
