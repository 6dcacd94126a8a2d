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

from harness.config.settings import Config
from harness.data.dataset import Dataset, Split, spread_indices
from harness.data.image_io import to_rgb
from harness.utils.errors import UsageError
from harness.utils.plain import number

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
        mean, std: per channel, on a 0..1 scale.
        interpolation: as timm names it: `bilinear`, `bicubic`, ...
        crop_mode: as timm names it: `center` resizes the shorter side; `squash` both sides, each by its own factor;
            `border` the longer side, and fills the rest with the mean colour.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    interpolation: str
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # a list where it was read from JSON
        object.__setattr__(self, "std", tuple(self.std))

    def check(self) -> None:
        """Check values that were read from a file.

        Raises:
            ValueError: one of them makes no sense.
        """
        numbers = (*self.mean, *self.std, self.crop_pct)
        if (
            type(self.size) is not int
            or not 1 <= self.size <= 8192
            or len(self.mean) != 3
            or len(self.std) != 3
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

    def pixels(self, picture: Image.Image | np.ndarray) -> Tensor:
        """Return the resized and cropped image, uint8 [3, size, size].

        Args:
            picture: RGB; as an array uint8 [H, W, 3].
        """
        return pil_to_tensor(self.square(Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture))

    def square(self, picture: Image.Image) -> Image.Image:
        """Return the resized and cropped image, RGB, `size` x `size`."""
        image = to_rgb(picture)
        if image.size == (self.size, self.size) and self.crop_pct == 1:
            return image
        if self.crop_mode != "squash":
            image = limit_aspect(image, MAX_ASPECT_RATIO if self.crop_mode == "center" else self.size)
        return _resize_and_crop(self.size, self.crop_pct, self.interpolation, self.crop_mode, self.mean)(image)

    def cut_share(self, width: int, height: int) -> float:
        """Return the fraction of the area of an image that is not seen, because the image is not square."""
        return 1 - min(width, height) / max(width, height) if self.crop_mode == "center" else 0.0

    def image(self, picture: Image.Image | np.ndarray) -> Tensor:
        """Return the model's input for an image, float32 [3, size, size]."""
        return self.normalise(self.pixels(picture))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 [..., 3, H, W] to float32 of the same shape; zero is the mean colour."""
        mean, std = self.constants(pixels.device)
        return torch.sub(pixels, mean).div_(std)

    def denormalise(self, images: Tensor) -> Tensor:
        """Reverse `normalise`; return float32 [..., 3, H, W], 0..1."""
        mean, std = self.constants(images.device)
        return ((images.to(torch.float32) * std + mean) / 255).clamp_(0, 1)

    def constants(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation on the 0..255 scale, float32 [3, 1, 1].

        Subtracting the first and dividing by the second is bit-identical to timm's PrefetchLoader.
        """
        mean, std = (torch.tensor([255 * value for value in values]).to(device) for values in (self.mean, self.std))
        return mean.view(3, 1, 1), std.view(3, 1, 1)


@lru_cache(maxsize=8)
def _resize_and_crop(
    size: int, crop_pct: float, interpolation: str, crop_mode: str, mean: tuple[float, float, float]
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


def pil_to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels of an RGB image, uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def make_preprocess(
    config: Config, model: nn.Module, data: Dataset, of_weights: Preprocess | None = None
) -> Preprocess:
    """Return the preprocessing of this data for `model`.

    The size is `config.image_size`, or else the width of the model's default input. Mean and standard deviation are those of the
    data for the built-in models trained from scratch and for models that name none; otherwise they are the model's. What
    the weights that training starts from were trained with takes the place of the model's defaults.

    Args:
        of_weights: the preprocessing of these weights; None where it is not known.

    Raises:
        UsageError: the model does not take RGB images.
    """
    cfg: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
    if of_weights is not None:
        cfg |= {**of_weights.to_dict(), "input_size": (3, of_weights.size, of_weights.size)}
    stored_size = data.train.pixels.shape[1:3] if data.train.pixels is not None else None
    size = config.image_size or int((cfg.get("input_size") or (3, stored_size[0] if stored_size else 224))[-1])
    is_built_in = type(model).__module__.startswith(BUILT_IN_MODELS_PACKAGE)
    if (is_built_in and not config.pretrained and of_weights is None) or not cfg.get("mean") or not cfg.get("std"):
        mean, std = data.mean, data.std
    else:
        mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    if len(mean) != 3 or len(std) != 3:
        raise UsageError(
            f"model={config.model} takes {len(mean)} channels, but the images are RGB; choose another model"
        )
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
    shapes = [data.train.picture(index).shape for index in spread_indices(len(data.train))]
    share = float(np.mean([preprocess.cut_share(shape[1], shape[0]) for shape in shapes] or [0.0]))
    if share >= MIN_CUT_SHARE:
        which = f"{len(shapes)} of {len(data.train):,}" if len(shapes) < len(data.train) else f"all {len(shapes)}"
        notes.append(
            f"the centre crop cuts {share:.0%} off the area of the training images (mean of {which}), because they are not square; --resize squash or letterbox keeps all of it"
        )
    return notes


def sample_images(split: Split, preprocess: Preprocess, count: int = 5000) -> Tensor:
    """Return the model's input for at most `count` images, evenly spaced in the split, float32 [N, 3, size, size]."""
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
