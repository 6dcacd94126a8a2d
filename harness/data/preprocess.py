"""Resize, crop and normalise images for a model: decided once, saved with every checkpoint and used everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from harness.config.settings import MAX_CHANNELS, Config
from harness.data.dataset import Dataset, PerChannel, Split, fit_channels, spread_indices
from harness.data.image_io import RGB, Picture, as_pixels, to_channels
from harness.utils.errors import UsageError
from harness.utils.plain import number
from harness.utils.text import counted

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "hamming", "box")  # timm's names
BUILT_IN_MODELS_PACKAGE = "harness.models."
MAX_ASPECT_RATIO = 4  # of images longer than that only the centre is kept, where a centre crop follows
CROP_MODES = {"crop": "center", "squash": "squash", "letterbox": "border"}  # setting `resize` -> timm's `crop_mode`
MIN_CUT_SHARE = 0.1  # of the images' area: less is not reported


@dataclass(frozen=True)
class Preprocess:
    """The evaluation transform: resize to `size / crop_pct`, crop the centre, normalise.

    Attributes:
        size: side of the model's square input, in pixels.
        mean, std: per channel of the images, on a 0..1 scale: three for RGB, one for grey images.
        interpolation: as timm names it: `bilinear`, `bicubic`, ...
        crop_mode: as timm names it: `center` resizes the shorter side; `squash` both sides, each by its own factor;
            `border` the longer side, and fills the rest with the mean colour.
    """

    size: int
    mean: PerChannel
    std: PerChannel
    crop_pct: float
    interpolation: str
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # a list where it was read from JSON
        object.__setattr__(self, "std", tuple(self.std))

    @property
    def channels(self) -> int:
        """The channels of the images that the model takes."""
        return len(self.mean)

    def check(self) -> None:
        """Check values that were read from a file.

        Raises:
            ValueError: one of them makes no sense.
        """
        numbers = (*self.mean, *self.std, self.crop_pct)
        if (
            type(self.size) is not int
            or not 1 <= self.size <= 8192
            or not 1 <= len(self.mean) == len(self.std) <= MAX_CHANNELS
            or not all(math.isfinite(number(value)) for value in numbers)
            or min(self.std) <= 0
            or not 0 < self.crop_pct <= 2
            or self.interpolation not in INTERPOLATIONS
            or self.crop_mode not in CROP_MODES.values()
        ):
            raise ValueError("its preprocessing makes no sense")

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Preprocess:
        """Return the preprocessing in the facts of a checkpoint, checked; errors are those of reading what makes no sense."""
        preprocess = cls(**facts["preprocess"])
        preprocess.check()
        return preprocess

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, which `Preprocess(**values)` accepts."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def pixels(self, picture: Picture) -> Tensor:
        """Return the resized and cropped image, uint8 [C, size, size].

        Args:
            picture: with the channels of the model; as an array uint8 [H, W, C].
        """
        return picture_to_tensor(self.square(picture))

    def square(self, picture: Picture) -> Picture:
        """Return the resized and cropped image, `size` x `size`: RGB, grey, or uint8 [size, size, C]."""
        image = to_channels(picture, self.channels)
        if isinstance(image, Image.Image):
            return self._square(image, self.mean)
        # Each by itself, as Pillow resizes RGB; colours are not weighted by a fourth channel, as Pillow does with RGBA.
        bands = zip(np.moveaxis(image, 2, 0), self.mean, strict=True)
        return np.stack([np.asarray(self._square(Image.fromarray(band), (mean,))) for band, mean in bands], 2)

    def _square(self, image: Image.Image, mean: PerChannel) -> Image.Image:
        if image.size == (self.size, self.size) and self.crop_pct == 1:
            return image
        if self.crop_mode != "squash":
            image = limit_aspect(image, MAX_ASPECT_RATIO if self.crop_mode == "center" else self.size)
        return _resize_and_crop(self.size, self.crop_pct, self.interpolation, self.crop_mode, mean)(image)

    def cut_share(self, width: int, height: int) -> float:
        """Return the fraction of the area of an image that is not seen, because the image is not square."""
        return 1 - min(width, height) / max(width, height) if self.crop_mode == "center" else 0.0

    def image(self, picture: Picture) -> Tensor:
        """Return the model's input for an image, float32 [C, size, size]."""
        return self.normalise(self.pixels(picture))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 [..., C, H, W] to float32 of the same shape; zero is the mean colour."""
        mean, std = self.constants(pixels.device)
        return torch.sub(pixels, mean).div_(std)

    def denormalise(self, images: Tensor) -> Tensor:
        """Reverse `normalise`; return float32 [..., C, H, W], 0..1."""
        mean, std = self.constants(images.device)
        return ((images.to(torch.float32) * std + mean) / 255).clamp_(0, 1)

    def constants(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation on the 0..255 scale, float32 [C, 1, 1].

        Subtracting the first and dividing by the second is bit-identical to timm's PrefetchLoader.
        """
        mean, std = (torch.tensor([255 * value for value in values]).to(device) for values in (self.mean, self.std))
        return mean.view(-1, 1, 1), std.view(-1, 1, 1)


@lru_cache(maxsize=64)
def _resize_and_crop(
    size: int, crop_pct: float, interpolation: str, crop_mode: str, mean: PerChannel
) -> Callable[[Image.Image], Image.Image]:
    """Return timm's evaluation transform without its last step, which makes a tensor."""
    from timm.data import create_transform
    from torchvision.transforms import Compose

    transform = create_transform(
        size, is_training=False, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation, mean=mean,
        normalize=False,
    )  # fmt: skip
    assert isinstance(transform, Compose)
    return Compose(transform.transforms[:-1])


def picture_to_tensor(picture: Picture) -> Tensor:
    """Return the pixels of an image, uint8 [C, H, W]."""
    return torch.from_numpy(np.array(as_pixels(picture))).permute(2, 0, 1).contiguous()


def make_preprocess(
    config: Config, model: nn.Module, data: Dataset, of_weights: Preprocess | None = None
) -> Preprocess:
    """Return the preprocessing of this data for `model`.

    The size is `config.image_size`, or else the width of the model's default input. Mean and standard deviation are those of the
    data for the built-in models trained from scratch, for models that name none, and for models without weights that name
    them of other channels; otherwise they are the model's. What the weights that training starts from were trained with
    takes the place of the model's defaults; weights of other channels are adapted, and their mean and standard deviation too.

    Args:
        of_weights: the preprocessing of these weights; None where it is not known.

    Raises:
        UsageError: the model takes other channels than the settings name.
    """
    cfg: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
    if of_weights is not None:
        cfg |= {**of_weights.to_dict(), "input_size": (of_weights.channels, of_weights.size, of_weights.size)}
    stored_size = data.train.pixels.shape[1:3] if data.train.pixels is not None else None
    size = config.image_size or int((cfg.get("input_size") or (3, stored_size[0] if stored_size else 224))[-1])
    is_built_in = type(model).__module__.startswith(BUILT_IN_MODELS_PACKAGE)
    has_weights, channels = config.pretrained or of_weights is not None, config.in_chans
    mean, std = tuple(cfg.get("mean") or ()), tuple(cfg.get("std") or ())
    if channels == RGB and of_weights is None and len(mean) not in (0, RGB):
        raise UsageError(
            f"model={config.model} takes images of {counted(len(mean), 'channel', 'channels')}; set --in-chans {len(mean)}"
        )
    is_of_data = not has_weights and (is_built_in or len(mean) != channels)
    if is_of_data or not mean or not std:
        mean, std = data.mean, data.std
    mean, std = fit_channels(mean, channels), fit_channels(std, channels)
    crop_mode = CROP_MODES.get(config.resize) or str(cfg.get("crop_mode") or "center")
    if crop_mode not in CROP_MODES.values():
        raise UsageError(
            f"model={config.model} asks for crop_mode={crop_mode!r}, which is unknown; set --resize crop, squash or letterbox"
        )
    keeps_all = stored_size == (size, size) or config.resize in ("squash", "letterbox")
    crop_pct = 1.0 if keeps_all else float(cfg.get("crop_pct") or 0.875)
    return Preprocess(size, mean, std, crop_pct, str(cfg.get("interpolation") or "bicubic"), crop_mode)


def preprocess_notes(config: Config, model: nn.Module, data: Dataset, preprocess: Preprocess) -> list[str]:
    """Return sentences on what the preprocessing cuts away, and where it is not that of the model's configuration."""
    notes, cfg, size = [], dict(getattr(model, "pretrained_cfg", None) or {}), preprocess.size
    height, width = (cfg.get("input_size") or (3, size, size))[-2:]
    if height != width:
        notes.append(
            f"{config.model} is configured for images of {width} x {height} pixels; it is given {size} x {size}"
        )
    channels = int((cfg.get("input_size") or (config.in_chans,))[0])
    if config.pretrained and channels != config.in_chans:
        notes.append(
            f"the pretrained weights of {config.model} are of {channels} channels, and in_chans={config.in_chans}: timm adapts the first convolution"
        )
    shapes = [data.train.picture(index).shape for index in spread_indices(len(data.train))]
    share = float(np.mean([preprocess.cut_share(shape[1], shape[0]) for shape in shapes] or [0.0]))
    if share >= MIN_CUT_SHARE:
        which = f"{len(shapes)} of {len(data.train):,}" if len(shapes) < len(data.train) else f"all {len(shapes)}"
        notes.append(
            f"the centre crop cuts {share:.0%} off the area of the training images (mean of {which}), because they are not square; --resize squash or letterbox keeps all of it"
        )
    return notes


def sample_images(split: Split, preprocess: Preprocess, count: int = 5000) -> Tensor:
    """Return the model's input for at most `count` images, evenly spaced in the split, float32 [N, C, size, size]."""
    indices = np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)
    if split.pixels is not None and split.pixels.shape[1:3] == (preprocess.size,) * 2 and preprocess.crop_pct == 1:
        return preprocess.normalise(torch.from_numpy(split.pixels[indices]).permute(0, 3, 1, 2))
    return preprocess.normalise(torch.stack([preprocess.pixels(split.picture(int(index))) for index in indices]))


def limit_aspect(image: Image.Image, ratio: int) -> Image.Image:
    """Return the centre of an image that is more than `ratio` times as long as it is wide.

    Resizing the shorter side of an image of 1 x 50,000,000 pixels would exhaust the memory, and resizing the longer one
    leaves less than a pixel of the shorter. The part that a centre crop keeps is in the centre returned.
    """
    width, height = image.size
    limit = ratio * min(width, height)
    if max(width, height) <= limit:
        return image
    left, top = max(0, (width - limit) // 2), max(0, (height - limit) // 2)
    return image.crop((left, top, min(width, left + limit), min(height, top + limit)))
