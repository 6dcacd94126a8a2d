"""The losses of training and their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.utils.errors import UsageError, did_you_mean

GAMMA = 2.0  # of the focal loss. Source: Lin et al., https://arxiv.org/abs/1708.02002, section 5
# Loss -> its arguments in `loss_args`, each with the least and the greatest value; None: true or false.
_ARGUMENTS: Mapping[str, Mapping[str, tuple[float, float] | None]] = {
    "cross_entropy": {},
    "bce": {"target_threshold": (0.0, 1.0), "sum_classes": None, "pos_weight": (0.0, 1e6)},
    "focal": {"gamma": (0.0, 100.0)},
}
LOSSES = tuple(_ARGUMENTS)


def check_loss_args(loss: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that a loss does not have, and values that they cannot have.

    Raises:
        UsageError: one of the arguments is wrong.
    """
    if loss not in _ARGUMENTS:  # of a plug-in, which is checked by its signature where it is used
        return
    known = _ARGUMENTS[loss]
    for name, value in arguments.items():
        if name not in known:
            others = [other for other in LOSSES if name in _ARGUMENTS[other]]
            remedy = f"; set --loss {others[0]}" if others else did_you_mean(name, known)
            has = f"has only {', '.join(known)}" if known else "has no arguments"
            raise UsageError(f"loss_args={name}={value}: loss={loss} {has}{remedy}")
        bounds = known[name]
        if bounds is None:
            if not isinstance(value, bool):
                raise UsageError(f"loss_args={name}={value!r}: need true or false")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not bounds[0] <= value <= bounds[1]:
            raise UsageError(f"loss_args={name}={value!r}: need a number from {bounds[0]:g} to {bounds[1]:g}")
