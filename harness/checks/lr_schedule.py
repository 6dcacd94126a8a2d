"""Does the learning rate move as the assignment says? Read back from an optimizer that the schedule has driven."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from harness.checks.table import CheckRow, row
from harness.config.recipe import make_config
from harness.config.settings import FIND, Config
from harness.reporting.figures.schedule import curve
from harness.training.optimizer import current_lr, make_optimizer, set_lr_and_momentum
from harness.training.schedule import make_schedule
from harness.utils.files import read_json

EPOCHS, PEAK = 24, 5
EXACT = 1e-6  # relative; a rate is a float64 that a dozen roundings lie behind
ROUNDED = 0.05  # people round what a range test says: 0.0045 for 0.00448


@dataclass(frozen=True)
class RateCurve:
    """The learning rate of every update.

    Attributes:
        lr: [N], of updates 0 ... N-1; with `ended`, the last is where the curve ends, after the last update.
        per_epoch: updates an epoch.
        whole: whether all epochs that the settings ask for are in it.
        ended: see `lr`; a journal has no rate after its last update.
        how: how they were had.
    """

    lr: np.ndarray
    per_epoch: int
    whole: bool
    ended: bool
    how: str


def rates_of_config(config: Config, per_epoch: int) -> RateCurve:
    """The rates of a configuration: its schedule drives its optimizer, and they are read back from that."""
    schedule = make_schedule(config, per_epoch)
    optimizer = make_optimizer(config, [nn.Parameter(torch.zeros(1))])
    lr = []
    for step in range(schedule.steps + 1):
        set_lr_and_momentum(optimizer, schedule.lr(step), schedule.momentum_at(step))
        lr.append(current_lr(optimizer))
    return RateCurve(np.array(lr), per_epoch, True, True, "schedule through the optimizer, every step")


def rate_rows(rates: RateCurve, lr_min: float, lr_max: float) -> list[CheckRow]:
    """Start, maximum, end and shape of one cycle, and that it never goes below LRMIN.

    Args:
        lr_min, lr_max: the settings, or what the range test of a run put in their place.
    """
    lr, how = rates.lr, rates.how
    if not len(lr):
        return [row(name, "one cycle", "no update yet", how, None) for name in NAMES]
    top = int(lr.argmax())
    reached = rates.whole or len(lr) > PEAK * rates.per_epoch
    ends = _ends(rates, lr_min, lr_max) if rates.whole else None
    bent = _bent(lr, top)
    lowest = float(lr.min())
    below = lowest < lr_min * (1 - EXACT) or lr_min == 0
    return [
        row("LR start", f"LRMIN = {lr_min:g}", f"{lr[0]:g} at step 0", how, _same(lr[0], lr_min)),
        row(
            "LR maximum",
            f"LRMAX = {lr_max:g} at epoch {PEAK}",
            f"{lr[top]:g} at epoch {top / rates.per_epoch:g} (step {top:,})",
            how,
            (top == PEAK * rates.per_epoch and _same(lr[top], lr_max)) if reached else None,
        ),
        row("LR end", f"LRMIN = {lr_min:g}", f"{lr[-1]:g} after the last epoch" if rates.whole else "not there yet", how, ends),
        row("LR shape", "one cycle: straight up, straight down", bent or "straight up, straight down", how, not bent),
        row("LR floor", "no annihilation: never below LRMIN", f"lowest {lowest:g}", how, not below),
    ]  # fmt: skip


NAMES = ("LR start", "LR maximum", "LR end", "LR shape", "LR floor")


def _same(value: float, wanted: float) -> bool:
    return bool(abs(value - wanted) <= EXACT * max(abs(wanted), 1e-12))


def _ends(rates: RateCurve, lr_min: float, lr_max: float) -> bool:
    """Whether the last rate is LRMIN; the last update of a run is one step of the way down above it."""
    if rates.ended:
        return _same(rates.lr[-1], lr_min)
    step = (lr_max - lr_min) / max(len(rates.lr) - int(rates.lr.argmax()), 1)
    return bool(-EXACT * lr_max <= rates.lr[-1] - lr_min <= step * (1 + EXACT))


def _bent(lr: np.ndarray, top: int) -> str:
    """How far the curve is from two straight lines that meet at its maximum; empty when it is not."""
    knots = [0, top, len(lr) - 1]
    lines = np.interp(np.arange(len(lr)), knots, lr[knots])
    off = float(np.abs(lr - lines).max())
    if lr.min() == lr.max():
        return "level"
    # A maximum that falls between two updates is no bend: it is less than one update's change away.
    straight = off <= max(EXACT * lr.max(), float(np.abs(np.diff(lr)).max()))
    return "" if straight else f"up to {100 * off / lr.max():.1f} % of LRMAX away from straight lines"


def range_test_row(config: Config, folder: Path | None) -> CheckRow:
    """Whether a range test stands behind LRMIN and LRMAX.

    Args:
        folder: of the run; None: there is none, and `config.output` is looked through.
    """
    wanted, how = "LRMAX and LRMIN found by a range test", "the settings; lr_finder.json of runs"
    asked = [name for name in ("lr_min", "lr_max") if getattr(config, name) == FIND]
    if len(asked) == 2 or (folder is not None and asked and (folder / "lr_finder.json").is_file()):
        return row("range test", wanted, "a range test comes first: find", how, True)
    given = {name: float(getattr(config, name)) for name in ("lr_min", "lr_max") if name not in asked}
    shown = ", ".join(f"{name} {value:g}" for name, value in given.items())
    for path in sorted((folder.parent if folder else Path(config.output).expanduser()).glob("*/lr_finder.json")):
        found = read_json(path)
        if all(_near(found.get(name), value) for name, value in given.items()):
            return row("range test", wanted, f"{shown}: found in {path.parent}", how, True)
    shipped = make_config({})
    if all(_same(value, float(getattr(shipped, name))) for name, value in given.items()):
        return row("range test", wanted, f"{shown}: found for the shipped recipe, see its header", how, True)
    return row("range test", wanted, f"{shown}: by hand; `harness lr-find` or --lr-min find --lr-max find tests them", how, False)  # fmt: skip


def _near(found: object, value: float) -> bool:
    return isinstance(found, int | float) and abs(found - value) <= ROUNDED * value


def cyclic_row() -> CheckRow:
    """The triangular curve that `harness plot --schedule cyclic` draws, held against Smith's formula."""
    drawn = curve({"schedule": "cyclic"}, steps_per_epoch=97)
    lr = np.array(drawn.lr)
    x = np.arange(100 + 1)
    cycle = np.floor(1 + x / 20)
    triangle = 0.08 + (0.8 - 0.08) * np.maximum(0, 1 - np.abs(x / 10 - 2 * cycle + 1))
    fits = len(lr) == len(x) and bool(np.abs(lr - triangle).max() < EXACT)
    found = f"{lr.min():g} to {lr.max():g}, step size {_first_top(lr)}, {len(lr) - 1} iterations"
    return row("cyclic plot", "triangle 0.08 to 0.8, step size 10, 100 iterations", found, "every point by Smith's formula", fits)  # fmt: skip


def _first_top(lr: Sequence[float] | np.ndarray) -> int:
    return int(np.flatnonzero(np.asarray(lr) >= max(lr) * (1 - EXACT))[0])
