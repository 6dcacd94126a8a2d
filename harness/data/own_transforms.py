"""Transforms that a plug-in registers: functions of a training image and a random generator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from harness.config.settings import Config
from harness.data.image_io import GREY, as_pixels
from harness.utils.errors import DataError, UsageError, did_you_mean, first_line
from harness.utils.registry import find_registered, register, registered_names
from harness.utils.signatures import check_arguments, takes_argument


@dataclass(frozen=True)
class OwnTransform:
    """A transform of a plug-in with its arguments."""

    name: str
    function: Callable[..., Any]

    def __call__(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return the transformed image, uint8 [H, W, C] as the given one, which it may change.

        Raises:
            DataError: the function fails, or returns no such image.
        """
        shape = image.shape
        try:
            result = self.function(image, generator)
        except Exception as error:
            raise DataError(
                f"transforms={self.name} raised {type(error).__name__} on an image of {_text(shape)} uint8: {first_line(error)[:200]}"
            ) from error
        if isinstance(result, Image.Image):
            result = np.array(
                as_pixels(result) if shape[-1] == GREY else result
            )  # a copy, since that of the image is read-only
        if not isinstance(result, np.ndarray):
            raise DataError(
                f"transforms={self.name} returned {type(result).__name__}; need a NumPy array or a PIL image, {_text(shape)} uint8"
            )
        if result.shape != shape or result.dtype != np.uint8:
            raise DataError(
                f"transforms={self.name} returned {_text(result.shape)} {result.dtype}; need {_text(shape)} uint8, as the image that it got"
            )
        return result


def register_transform(function: Any = None, *, name: str = "") -> Any:
    """Register a transform of training images: `--transforms NAME --plugin MODULE` applies it.

    The function gets an image, uint8 [H, W, 3] (RGB, or with the channels of `in_chans`; at the model's input size, after crop, flip and all other transforms of
    single images, before the normalisation), and a `numpy.random.Generator`. It returns an image of the same shape and type; it may
    change the given one. All that is random should come from the generator, which is seeded by (seed, epoch, image): then the number
    of workers and a resumed run change nothing. `--transform-args` are further arguments.

    Args:
        name: by default that of the function.

    Raises:
        UsageError: the name is `none`, or another module has registered it.
    """
    return register("transform", function, name=name, taken=("none",))


def find_transforms(config: Config) -> tuple[OwnTransform, ...]:
    """Return the transforms of the setting, each with its arguments; none without augmentation.

    Raises:
        UsageError: no plug-in registers one, or an argument is none of theirs.
    """
    functions: dict[str, Callable[..., Any]] = {}
    for name in config.transforms:
        function = find_registered("transform", name, config.plugin)
        if function is None:
            known = registered_names("transform")
            raise UsageError(
                f"transforms={name!r}: no plug-in registers it{did_you_mean(name, known)}; need a name that a module of --plugin registers"
            )
        functions[name] = function
    arguments = _arguments_by_name(functions, config.transform_args)
    for name, function in functions.items():
        check_arguments(f"transforms={name}", "transform_args", function, arguments[name], positional=2)
    if config.augment == "none":
        return ()
    return tuple(
        OwnTransform(name, functools.partial(functions[name], **arguments[name])) for name in config.transforms
    )


def _arguments_by_name(
    functions: Mapping[str, Callable[..., Any]], given: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return name of a transform -> its arguments: `ARGUMENT` is for all that have it, `NAME.ARGUMENT` for one.

    Raises:
        UsageError: no transform has it.
    """
    by_name: dict[str, dict[str, Any]] = {name: {} for name in functions}
    for key, value in sorted(given.items(), key=lambda item: "." in item[0]):  # those for one come last, and win
        name, _, argument = key.rpartition(".")
        if name in functions:
            by_name[name][argument] = value
            continue
        takers = [each for each, function in functions.items() if takes_argument(function, key)]
        if len(functions) == 1:
            takers = list(functions)  # check_arguments says what is wrong with it
        if not takers:
            has = f"none of {', '.join(functions)} has it" if functions else "there are no --transforms"
            raise UsageError(f"transform_args={key}={value}: {has}; need ARGUMENT=VALUE or NAME.ARGUMENT=VALUE")
        for each in takers:
            by_name[each][key] = value
    return by_name


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
