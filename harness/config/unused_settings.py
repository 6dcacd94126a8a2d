"""Settings that were given and have no effect with the other settings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from harness.config.augmentation import magnitude_limit
from harness.config.names import SCHEDULES
from harness.utils.plain import setting_text

if TYPE_CHECKING:
    from harness.config.settings import Config

# Schedules that use a setting. Of one that a plug-in registers nothing is said.
_USERS: dict[str, tuple[str, ...]] = {
    "peak_epoch": ("one_cycle", "cosine"),
    "cycles": ("cyclic",),
    "step_epochs": ("step",),
    "milestones": ("multi_step",),
    "step_factor": ("step", "multi_step"),
    "poly_power": ("polynomial",),
    "plateau_patience": ("plateau",),
    "plateau_factor": ("plateau",),
    "momentum_min": ("one_cycle", "cyclic", "cosine", "polynomial"),
    **dict.fromkeys(("lr_min", "lr_min_ratio"), tuple(schedule for schedule in SCHEDULES if schedule != "constant")),
}
_OF_PADDING = ("crop_padding", "padding_mode")
_OF_ERASING = ("erasing_mode", "erasing_count", "erasing_area")
_OF_CROP_FLIP_CUTOUT = ("crop", *_OF_PADDING, "flip", "cutout")
_OF_AUGMENTATION = (
    *_OF_CROP_FLIP_CUTOUT, "alternating_flip", "crop_scale", "crop_ratio", "vflip", "auto_augment", "color_jitter", "color_jitter_prob",
    "grayscale", "blur", "erasing", *_OF_ERASING, "aug_repeats", "augment_pipeline", "transforms", "transform_args",
)  # fmt: skip


def unused_settings(config: Config, given: Collection[str]) -> list[str]:
    """Return a sentence on each setting that was given and has no effect with the other settings.

    It is no error: the commands of a sweep give the same settings beside many values of others.

    Args:
        given: names of the settings that the user has set, not those of a recipe.
    """
    reasons: dict[str, str] = {}
    for name, reason in _reasons(config):
        value = getattr(config, name)
        is_off = value in (False, "", (), {}, None, "none") or name in config.undecided
        if name in given and not is_off:
            # Of a mapping, which may be long, only the name; lists as on the command line.
            shown = "" if isinstance(value, Mapping) else f"={setting_text(value).replace(', ', ',')}"
            reasons.setdefault(name, f"{name}{shown} has no effect {reason}")
    return list(reasons.values())


def _reasons(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the settings that have no effect, with the reason and the remedy."""
    for name, schedules in _USERS.items():
        if config.schedule in SCHEDULES and config.schedule not in schedules:
            yield name, f"with schedule={config.schedule}"
    if config.schedule == "cosine" and (config.warmup_epochs > 0.5 or config.warmup_steps):  # more than 0 updates
        yield "peak_epoch", f"because {'warmup_steps' if config.warmup_steps else 'warmup_epochs'} replaces it"
    if not (config.warmup_epochs or config.warmup_steps):
        yield "warmup_factor", "without a warm-up; set --warmup-epochs"
    if config.augment == "none":
        for name in _OF_AUGMENTATION:
            yield name, "with augment=none"
    for name in _OF_ERASING if not config.erasing else ():
        yield name, "without erasing; set --erasing 0.25"
    if (limit := magnitude_limit(config.auto_augment)) is not None:
        more = ", or a higher limit such as mmax20" if config.auto_augment.startswith("rand") else ""
        yield "auto_augment", f"beyond magnitude {limit}, up to which timm goes; set m{limit}{more}"
    if config.augment == "albumentations" and config.augment_pipeline:
        for name in _OF_CROP_FLIP_CUTOUT:
            yield name, "because augment_pipeline replaces it"
    if config.crop in ("none", "resized") or (config.crop == "auto" and config.sets_resized_crop):
        for name in _OF_PADDING:
            yield name, f"with {'a resized crop' if config.crop == 'auto' else f'crop={config.crop}'}"
    conditions = {
        "color_jitter_prob": (any(config.color_jitter), "without color_jitter; set --color-jitter 0.4"),
        "padding_mode": (config.crop_padding, "without padding; set --crop-padding 4"),
        "ema_warmup": (config.ema, "without ema; set --ema 0.999"),
        "bias_decay": (config.weight_decay, "with weight_decay=0"),
    }
    for name, (is_used, reason) in conditions.items():
        if not is_used:
            yield name, reason
