"""The losses of training and their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.config.augmentation import view_settings
from harness.utils.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from harness.config.settings import Config

GAMMA = 2.0  # of the focal loss. Source: Lin et al., https://arxiv.org/abs/1708.02002, section 5
JSD_ALPHA = (
    12.0  # factor on the divergence. Source: timm; Hendrycks et al., https://arxiv.org/abs/1912.02781, section 4
)
# Loss -> its arguments in `loss_args`, each with the least and the greatest value; None: true or false.
_ARGUMENTS: Mapping[str, Mapping[str, tuple[float, float] | None]] = {
    "cross_entropy": {},
    "bce": {"target_threshold": (0.0, 1.0), "sum_classes": None, "pos_weight": (0.0, 1e6)},
    "focal": {"gamma": (0.0, 100.0)},
    "jsd": {"alpha": (0.0, 1000.0)},
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


def check_views(config: Config) -> None:
    """Refuse views of images without the loss that compares them, that loss without them, and what it cannot take.

    Raises:
        UsageError: two settings do not fit together.
    """
    views = config.aug_splits
    if views == 1:
        raise UsageError("aug_splits=1: one view is no comparison; need 2 or more, such as 3, or 0")
    if config.loss != "jsd":
        if views:
            raise UsageError(
                f"aug_splits={views} makes views of each image, which loss=jsd compares, and loss={config.loss}; set --loss jsd, or leave --aug-splits out"
            )
        return
    if not views:
        raise UsageError("loss=jsd compares views of each image, and aug_splits=0 makes none; set --aug-splits 3")
    for name in ("mixup", "cutmix"):
        if value := getattr(config, name):
            raise UsageError(f"loss=jsd needs images of one label, and {name}={value:g} mixes them; set --{name} 0")
    if config.class_weights:
        raise UsageError(
            "loss=jsd takes no weights of the classes; leave --class-weights out, or set --sampling balanced"
        )
    if config.augment != "timm":
        raise UsageError(
            f"aug_splits={views} needs timm's transforms, and augment={config.augment}; set --augment timm"
        )
    if not view_settings(config) and "auto_augment" not in config.undecided:
        raise UsageError(
            f"aug_splits={views}: nothing differs between the views of an image; set --auto-augment, such as augmix-m3-w3 or rand-m9-mstd0.5-inc1"
        )
