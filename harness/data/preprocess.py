"""What a model expects of an image: decided once, saved with every checkpoint, the same wherever an image is shown to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from harness.config.settings import Config
from harness.data.dataset import Dataset
from harness.data.image_io import to_rgb
from harness.utils.errors import UsageError

OURS = "cifar_resnet"  # the module of our own models
EXTREME = 4  # beyond this ratio of the sides only the middle is kept


@dataclass(frozen=True)
class Preprocess:
    """The evaluation transform: resize the shorter side to `size / crop_pct`, crop the middle, normalise.

    Attributes:
        size: side of the square that the model sees, pixels.
        mean, std: by channel, 0..1 scale.
        interpolation: `bilinear`, `bicubic`, ...; timm's words.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    interpolation: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # a list, when it comes out of JSON
        object.__setattr__(self, "std", tuple(self.std))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON holds and `Preprocess(**values)` takes back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def pixels(self, picture: Image.Image | np.ndarray) -> Tensor:
        """The resized and cropped picture, uint8 [3, size, size].

        Args:
            picture: RGB; an array is uint8 [H, W, 3].
        """
        return pil_to_tensor(self.square(Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture))

    def square(self, picture: Image.Image) -> Image.Image:
        """The resized and cropped picture, RGB, `size` x `size`."""
        image = to_rgb(picture)
        if image.size == (self.size, self.size) and self.crop_pct == 1:
            return image
        return _resize_and_crop(self.size, self.crop_pct, self.interpolation)(center_square(image))

    def image(self, picture: Image.Image | np.ndarray) -> Tensor:
        """What the model is shown for a picture, float [3, size, size]."""
        return self.normalise(self.pixels(picture))

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [..., 3, H, W] as float32 of the same shape; zero is the mean colour."""
        mean, std = self.constants(pixels.device)
        return torch.sub(pixels, mean).div_(std)

    def denormalise(self, images: Tensor) -> Tensor:
        """Undoes `normalise`: float [..., 3, H, W], 0..1."""
        mean, std = self.constants(images.device)
        return ((images.to(torch.float32) * std + mean) / 255).clamp_(0, 1)

    def constants(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Mean and deviation on the 0..255 scale, float32 [3, 1, 1].

        Subtracting one, then dividing by the other gives to the bit what timm's PrefetchLoader gives.
        """
        mean, std = (torch.tensor([255 * value for value in values]).to(device) for values in (self.mean, self.std))
        return mean.view(3, 1, 1), std.view(3, 1, 1)


@lru_cache(maxsize=8)
def _resize_and_crop(size: int, crop_pct: float, interpolation: str) -> Callable[[Image.Image], Image.Image]:
    """timm's evaluation transform but for its last step, which makes a tensor."""
    from timm.data import create_transform
    from torchvision.transforms import Compose

    full = create_transform(size, is_training=False, crop_pct=crop_pct, interpolation=interpolation, normalize=False)
    assert isinstance(full, Compose)
    return Compose(full.transforms[:-1])


def pil_to_tensor(image: Image.Image) -> Tensor:
    """uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def make_preprocess(config: Config, model: nn.Module, data: Dataset) -> Preprocess:
    """What `model` expects of this data.

    The size is `config.image_size`, or what the model was made for. Mean and deviation are the data's own for our
    models from scratch and for models that name none, else those that the model was (or is usually) trained with.
    """
    cfg: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
    stored = data.train.pixels.shape[1:3] if data.train.pixels is not None else None
    size = config.image_size or int((cfg.get("input_size") or (3, stored[0] if stored else 224))[-1])
    ours = type(model).__module__.rpartition(".")[2] == OURS and not config.pretrained
    if ours or not cfg.get("mean") or not cfg.get("std"):
        mean, std = data.mean, data.std
    else:
        mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    if len(mean) != 3 or len(std) != 3:
        raise UsageError(
            f"model={config.model} was made for {len(mean)} channels; images here are RGB, choose another model"
        )
    crop_pct = 1.0 if stored == (size, size) else float(cfg.get("crop_pct") or 0.875)
    return Preprocess(size, mean, std, crop_pct, str(cfg.get("interpolation") or "bicubic"))


def center_square(image: Image.Image) -> Image.Image:
    """Of a very long picture the middle, which is all that the crop after the resizing keeps of it.

    Resizing the shorter side of 1 x 50,000,000 pixels would need all the memory there is.
    """
    width, height = image.size
    limit = EXTREME * min(width, height)
    if max(width, height) <= limit:
        return image
    left, top = max(0, (width - limit) // 2), max(0, (height - limit) // 2)
    return image.crop((left, top, min(width, left + limit), min(height, top + limit)))
