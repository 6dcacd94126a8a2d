"""What the settings of augmentation may say: timm's policy strings, ranges, and which of them go together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.utils.errors import UsageError

if TYPE_CHECKING:
    from harness.config.settings import Config

NO_POLICY = "none"
CROP_SCALE, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of the random resized crop: fraction of the area, width / height
ERASING_AREA = (0.02, 1 / 3)  # timm's default
MAX_JITTER = 100.0
MAX_HUE = 0.5  # half of the colour circle: torchvision takes no more
JITTER_COUNTS = (1, 3, 4)  # of all; of brightness, contrast, saturation; of these and the hue
# timm skips what it cannot read of a policy, or stops in an assertion; so the sections are listed here.
_NUMBER = r"\d+(?:\.\d*)?"
_POLICIES = {
    "rand": rf"m\d+|n[1-9]\d*|p{_NUMBER}|mstd{_NUMBER}|mmax[1-9]\d*|inc[01]|t(?:weights|3aw|3a)",
    "augmix": rf"m\d+|w[1-9]\d*|d[1-9]\d*|a{_NUMBER}|b[01]|mstd{_NUMBER}",
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), rf"mstd{_NUMBER}"),
}
MAX_MAGNITUDE = 10  # timm takes larger ones as this, but for RandAugment with a limit of its own, `mmax`
MAX_LAYERS = 14  # of RandAugment: with weights an operation is not repeated, and the shortest list has so many
_LIMITS: dict[str, dict[str, float]] = {"rand": {"n": MAX_LAYERS, "p": 1.0}, "augmix": {"w": 100, "d": 100}}
PIPELINE_KEYS = {"__version__", "transform"}
OPENING = {"ReplayCompose", "metadata_key", "reference_images", "read_fn", "font_path"}  # classes and arguments
SIZES = {"height", "width", "min_height", "min_width", "max_height", "max_width", "max_size"}  # of images, in pixels
MAX_SIDE, MAX_DEPTH = 4096, 24
_RANGES = {
    "crop_scale": (1.0, "fractions of the area, such as 0.35,1"),
    "crop_ratio": (100.0, "ratios of width to height, such as 0.75,1.33"),
    "erasing_area": (1.0, "fractions of the area, such as 0.02,0.33"),
}
POLICY_EXAMPLES = "rand-m9-mstd0.5-inc1, original, v0, 3a or augmix-m3-w3"


def check_augmentation(config: Config) -> None:
    """Refuse combinations that no augmentation has. With augment=none they have no effect, as crop and flip.

    Raises:
        UsageError: two settings do not fit together.
    """
    if config.augment == "none":
        return
    if config.sets_resized_crop and config.crop in ("pad", "none"):
        raise UsageError(
            f"crop_scale and crop_ratio belong to the random resized crop, and crop={config.crop}; set --crop resized"
        )
    _check_channels(config)
    if config.augment == "albumentations":
        _check_albumentations(config)
    elif config.augment_pipeline:
        raise UsageError(
            f"augment_pipeline is a pipeline of albumentations, and augment={config.augment}; set --augment albumentations"
        )


def _check_channels(config: Config) -> None:
    """Refuse transforms of colours where the images have none, or are no images of Pillow.

    Raises:
        UsageError: there is one.
    """
    if config.in_chans == 3:
        return
    if config.in_chans == 1:
        if config.grayscale:
            raise UsageError(
                f"grayscale={config.grayscale:g}, but the images of in_chans=1 are grey; leave --grayscale out"
            )
        return
    of_colours = [text for text in timm_only(config) if not text.startswith("blur=")]
    of_colours += [f"aug_splits={config.aug_splits}"] if config.aug_splits else []
    if of_colours:
        raise UsageError(
            f"{of_colours[0]} is for images of 3 channels or 1, and in_chans={config.in_chans}; {_off(of_colours[0])}"
        )


def check_policy(setting: str, policy: str) -> None:
    """Refuse a policy that timm does not have, or would read otherwise than it is written.

    Raises:
        UsageError: it does not.
    """
    name, *sections = policy.split("-")
    if policy == NO_POLICY:
        return
    if name not in _POLICIES:
        raise UsageError(f"{setting}={policy!r}: timm has no such policy; need none, or such as {POLICY_EXAMPLES}")
    for section in sections:
        if not re.fullmatch(_POLICIES[name], section, re.ASCII):
            raise UsageError(f"{setting}={policy!r}: {name} cannot have {section!r}; need such as {POLICY_EXAMPLES}")
    for key, limit in _LIMITS.get(name, {}).items():
        for section in sections:
            if re.fullmatch(rf"{key}{_NUMBER}", section) and float(section[len(key) :]) > limit:
                raise UsageError(f"{setting}={policy!r}: {section!r}: need at most {key}{limit:g}")
    if name == "augmix" and any(re.fullmatch(r"a0*\.?0*", section) for section in sections):
        raise UsageError(f"{setting}={policy!r}: the section a needs a number above 0, such as a1")


def magnitude_limit(policy: str) -> int | None:
    """Return the magnitude that timm takes in place of a larger one in a policy; None where it has no larger one.

    With a spread (`mstd`, which AugMix has unless it is 0) timm draws around the magnitude first, so that a larger one counts.
    """
    spread = 0.0 if policy.startswith("rand") else 1.0
    found = {"mmax": float(MAX_MAGNITUDE), "mstd": spread, "m": 0.0}
    found |= {key: float(value) for key, value in re.findall(rf"-(m|mmax|mstd)({_NUMBER})(?=-|$)", policy)}
    return int(found["mmax"]) if found["m"] > found["mmax"] and not found["mstd"] else None


def check_jitter(setting: str, strengths: Sequence[float]) -> None:
    """Refuse strengths of the colour jitter that torchvision does not take.

    Raises:
        UsageError: it does not.
    """
    shown = ",".join(f"{value:g}" for value in strengths)
    if strengths and len(strengths) not in JITTER_COUNTS:
        raise UsageError(
            f"{setting}={shown}: need one number, three (brightness, contrast, saturation) or four (also hue)"
        )
    if not all(0 <= value <= MAX_JITTER for value in strengths):
        raise UsageError(f"{setting}={shown}: need numbers from 0 to {MAX_JITTER:g}, such as 0.4")
    if len(strengths) == JITTER_COUNTS[-1] and strengths[-1] > MAX_HUE:
        raise UsageError(f"{setting}={shown}: need a hue, the fourth number, of at most {MAX_HUE:g}")


def check_pipeline(setting: str, pipeline: Mapping[str, Any]) -> None:
    """Refuse what is no serialised pipeline of albumentations, and one that would open files or make huge images.

    The settings of a run are shown and uploaded, and a recipe may name any file; so no other content becomes a setting.

    Raises:
        UsageError: it is one of these.
    """
    transform = pipeline.get("transform")
    is_serialised = isinstance(transform, Mapping) and "__class_fullname__" in transform
    if pipeline and not (is_serialised and pipeline.keys() <= PIPELINE_KEYS):
        raise UsageError(
            f"{setting}: need a pipeline as albumentations.save or albumentations.to_dict writes it, which has the key 'transform' with the name of a class"
        )
    _check_part(setting, transform, 0)


def _check_part(setting: str, part: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise UsageError(f"{setting}: transforms are nested deeper than {MAX_DEPTH // 2} levels; combine some")
    if isinstance(part, Mapping):
        for key, value in part.items():
            if key in OPENING or (key == "__class_fullname__" and str(value).rpartition(".")[2] in OPENING):
                raise UsageError(
                    f"{setting}: {value if key == '__class_fullname__' else key} opens files, or transforms other inputs than the image; leave it out"
                )
            if key in SIZES and isinstance(value, int) and value > MAX_SIDE:
                raise UsageError(f"{setting}: {key}={value}: need at most {MAX_SIDE} pixels")
            _check_part(setting, value, depth + 1)
    elif isinstance(part, list | tuple):
        for item in part:
            _check_part(setting, item, depth + 1)


def check_range(setting: str, values: Sequence[float]) -> None:
    """Refuse anything but two numbers in increasing order, within the bounds of the setting.

    Raises:
        UsageError: they are not.
    """
    limit, meaning = _RANGES[setting]
    if len(values) != 2 or not 0 < values[0] <= values[1] <= limit:
        shown = ",".join(f"{value:g}" for value in values)
        raise UsageError(f"{setting}={shown}: need two numbers in increasing order, {meaning}")


def timm_only(config: Config) -> list[str]:
    """Return the settings that only timm's transforms of single images have, as `name=value`, where they are on."""
    is_on = {
        "auto_augment": config.auto_augment != NO_POLICY,
        "color_jitter": any(config.color_jitter),
        "grayscale": config.grayscale > 0,
        "blur": config.blur > 0,
    }
    return [f"{name}={_shown(getattr(config, name))}" for name, applies in is_on.items() if applies]


def per_image_settings(config: Config) -> list[str]:
    """Return the settings that only transforms of single images have, as `name=value`, where they are on."""
    others = {
        f"vflip={config.vflip:g}": config.vflip > 0,
        f"aug_repeats={config.aug_repeats:g}": config.aug_repeats > 1,
        "augment_pipeline": bool(config.augment_pipeline),
        f"transforms={','.join(config.transforms)}": bool(config.transforms),
        f"aug_splits={config.aug_splits}": config.aug_splits > 0,
    }
    return [*timm_only(config), *(text for text, is_on in others.items() if is_on)]


def view_settings(config: Config) -> list[str]:
    """Return the settings that are on and make the views of an image differ, which share its crop and flip (`aug_splits`)."""
    names = ("transforms", "cutout", "erasing")
    return [*timm_only(config), *(name for name in names if getattr(config, name))]


def _shown(value: object) -> str:
    return ",".join(f"{item:g}" for item in value) if isinstance(value, tuple) else str(value)


def _off(text: str) -> str:
    """Return what to do without a setting, given as `name=value`; a policy may be the recipe's."""
    name = text.partition("=")[0]
    return "set --auto-augment none" if name == "auto_augment" else f"leave --{name.replace('_', '-')} out"


def _check_albumentations(config: Config) -> None:
    if others := timm_only(config):
        remedy = (
            "" if config.augment_pipeline else ", or give albumentations' own transforms with --augment-pipeline FILE"
        )
        raise UsageError(
            f"{others[0]} is timm's, and augment=albumentations; {_off(others[0])}, or set --augment timm{remedy}"
        )
    if config.transforms:
        raise UsageError(
            f"transforms={','.join(config.transforms)} follow timm's transforms of an image, and augment=albumentations; set --augment timm"
        )
    if not config.augment_pipeline:
        return
    within = {
        "vflip": config.vflip > 0,
        "alternating_flip": config.alternating_flip,
        "crop_scale or crop_ratio": config.sets_resized_crop,
    }
    for name, applies in within.items():
        if applies:
            raise UsageError(f"augment_pipeline takes the place of {name}; leave {name} out, or add it to the pipeline")
