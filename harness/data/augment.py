"""Random crop, flip and Cutout of training images, in three equivalent implementations: for whole batches on the
device (here), with timm's and torchvision's transforms of single images, and with albumentations (`image_transforms`).

The order is crop > flip > normalise > Cutout. The cutout is filled with zero after normalisation, which is the mean
colour; it is always a complete square inside the image, as in timm's RandomErasing, never clipped at the border.
Everything else (policies, colours, a pipeline of the user's) transforms single images, between flip and normalise;
random erasing comes after Cutout, for whole batches (`erasing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from harness.config.augmentation import CROP_RATIO, CROP_SCALE, ERASING_AREA, NO_POLICY, per_image_settings
from harness.config.settings import Config
from harness.data.preprocess import Preprocess
from harness.utils.errors import UsageError
from harness.utils.seeding import seed_for

Crop: TypeAlias = Literal["pad", "resized", "none"]
# With crop=auto, images of up to this side in pixels are padded and cropped; larger ones get a random resized crop.
MAX_PAD_CROP_SIZE = 64
MIN_BLUR_SIZE = 12  # pixels: torchvision's blur reflects half of timm's kernel of 23 pixels at the border


@dataclass(frozen=True)
class Erasing:
    """Random rectangles that are erased of training images; see timm's RandomErasing.

    Attributes:
        area: the smallest and the greatest fraction of the image's area, for all rectangles of an image.
    """

    probability: float
    mode: str
    count: int
    area: tuple[float, float]

    def describe(self) -> str:
        """Return the settings in a few words, without those that have their defaults."""
        rectangles = f", at most {self.count} rectangles" if self.count > 1 else ""
        area = f", area {_range(self.area)}" if self.area != ERASING_AREA else ""
        return f"erasing ({self.mode}{rectangles}{area}) in {self.probability:.0%}"


@dataclass(frozen=True)
class Augment:
    """The augmentation of training images.

    Attributes:
        crop: `pad`: pad, then crop at random; `resized`: crop a random area and resize it; `none`.
        padding: pixels on each side; 0 unless `crop` is `pad`.
        cutout: side of the cutout in pixels; 0 for none.
        alternating_flip: mirror the images in turns (`alternating_flips`) instead of at random.
        scale, ratio: of the random resized crop: fraction of the area, width / height.
        vflip: probability of mirroring vertically.
        policy: timm's string; `none`: no policy.
        color_jitter: brightness, contrast, saturation and perhaps hue, or one number for the first three; empty: none.
        color_jitter_prob, grayscale, blur: probabilities.
        repeats: how often an epoch shows each of its images.
        pipeline: a serialised pipeline of albumentations, in place of crop and flips; empty: none.
        per_image: the settings that only transforms of single images have, as `name=value`.
        transforms: names of the transforms that plug-ins register.
        views: of each image; the first has crop and flips alone.
    """

    crop: Crop
    padding: int
    padding_mode: str
    flip: bool
    cutout: int
    alternating_flip: bool = False
    scale: tuple[float, float] = CROP_SCALE
    ratio: tuple[float, float] = CROP_RATIO
    vflip: float = 0.0
    policy: str = NO_POLICY
    color_jitter: tuple[float, ...] = ()
    color_jitter_prob: float = 1.0
    grayscale: float = 0.0
    blur: float = 0.0
    erasing: Erasing | None = None
    repeats: float = 1.0
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    per_image: tuple[str, ...] = ()
    transforms: tuple[str, ...] = ()
    views: int = 1

    @property
    def random_flip(self) -> bool:
        """Whether every image is mirrored at random."""
        return self.flip and not self.alternating_flip

    def describe(self) -> list[str]:
        """Return the steps in their order, each in a few words with its strength."""
        ratio = f", width / height {_range(self.ratio)}" if self.ratio != CROP_RATIO else ""
        crops = {
            "pad": f"crop after padding by {self.padding}",
            "resized": f"resized crop {_range(self.scale)}{ratio}",
            "none": "",
        }
        flip = "alternating flip" if self.alternating_flip else "flip"
        jitter = f" in {self.color_jitter_prob:.0%}" if self.color_jitter_prob < 1 else ""
        steps = [
            "a pipeline of albumentations" if self.pipeline else crops[self.crop],
            flip if self.flip else "",
            f"vertical flip in {self.vflip:.0%}" if self.vflip else "",
            self.policy if self.policy != NO_POLICY else "",
            f"colour jitter {_words(self.color_jitter)}{jitter}" if self.color_jitter else "",
            f"grey in {self.grayscale:.0%}" if self.grayscale else "",
            f"blur in {self.blur:.0%}" if self.blur else "",
            *self.transforms,
            f"cutout {self.cutout}" if self.cutout else "",
            self.erasing.describe() if self.erasing else "",
            f"each image {self.repeats:g} times" if self.repeats > 1 else "",
            f"{self.views} views of each image, the first with crop and flip alone" if self.views > 1 else "",
        ]
        return [step for step in steps if step]


def _words(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _range(values: tuple[float, float]) -> str:
    return f"{values[0]:g} to {values[1]:g}"


@dataclass(frozen=True)
class AugmentParameters:
    """The random parameters of N images.

    Attributes:
        top, left: int64 [N], the corner of the crop in the padded image, 0..2 * padding.
        flip: bool [N], whether the crop is mirrored.
        cutout_top, cutout_left: int64 [N], the corner of the cutout in the cropped and mirrored image, 0..size - cutout.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    cutout_top: Tensor
    cutout_left: Tensor

    def __getitem__(self, index: Tensor) -> AugmentParameters:
        return self.map(lambda values: values[index])

    def map(self, function: Callable[[Tensor], Tensor]) -> AugmentParameters:
        """Return the parameters with `function` applied to every tensor."""
        return AugmentParameters(*(function(values) for values in vars(self).values()))


def make_augment(config: Config, preprocess: Preprocess) -> Augment:
    """Return the augmentation that the settings describe, at the model's input size.

    Raises:
        UsageError: the cutout or the padding does not fit the image.
    """
    size = preprocess.size
    if config.augment == "none":
        return Augment("none", 0, config.padding_mode, flip=False, cutout=0)
    erasing = Erasing(config.erasing, config.erasing_mode, config.erasing_count, _pair(config.erasing_area))
    common: dict[str, Any] = dict(erasing=erasing if config.erasing else None, repeats=config.aug_repeats)
    if config.augment_pipeline:
        common |= dict(pipeline=config.augment_pipeline, per_image=tuple(per_image_settings(config)))
        return Augment("none", 0, config.padding_mode, flip=False, cutout=0, **common)
    is_small = size <= MAX_PAD_CROP_SIZE and not config.sets_resized_crop
    crops: dict[str, Crop] = {
        "auto": "pad" if is_small else "resized",
        "pad": "pad",
        "resized": "resized",
        "none": "none",
    }
    crop = crops[config.crop]
    padding = config.crop_padding if crop == "pad" else 0
    if config.cutout >= size:
        raise UsageError(
            f"cutout={config.cutout} covers the whole image of {size} x {size} pixels; set a smaller --cutout"
        )
    if config.padding_mode == "reflect" and padding >= size:
        raise UsageError(
            f"crop_padding={padding} with padding_mode=reflect needs images of more than {padding} x {padding} pixels, got {size} x {size}; set a smaller --crop-padding"
        )
    if config.blur and size < MIN_BLUR_SIZE:
        raise UsageError(
            f"blur={config.blur:g} needs images of at least {MIN_BLUR_SIZE} x {MIN_BLUR_SIZE} pixels, got {size} x {size}; leave --blur out, or set --image-size"
        )
    return Augment(
        crop,
        padding,
        config.padding_mode,
        config.flip,
        config.cutout,
        config.alternating_flip,
        scale=_pair(config.crop_scale),
        ratio=_pair(config.crop_ratio),
        vflip=config.vflip,
        policy=config.auto_augment,
        color_jitter=config.color_jitter if any(config.color_jitter) else (),
        color_jitter_prob=config.color_jitter_prob,
        grayscale=config.grayscale,
        blur=config.blur,
        per_image=tuple(per_image_settings(config)),
        transforms=config.transforms,
        views=max(1, config.aug_splits),
        **common,
    )


def _pair(values: tuple[float, ...]) -> tuple[float, float]:
    low, high = values
    return low, high


def draw_parameters(augment: Augment, size: int, num_images: int, seed: int, epoch: int) -> AugmentParameters:
    """Draw the parameters of one epoch on the CPU, so that they are the same for every device."""
    generator = torch.Generator().manual_seed(seed_for(seed, "augment", epoch))
    crops = torch.randint(0, 2 * augment.padding + 1, (2, num_images), generator=generator)
    flip = torch.randint(0, 2, (num_images,), generator=generator) == 1
    if augment.alternating_flip:
        flip = alternating_flips(num_images, seed, epoch)
    cutouts = torch.randint(0, size - augment.cutout + 1, (2, num_images), generator=generator)
    return AugmentParameters(crops[0], crops[1], flip & augment.flip, cutouts[0], cutouts[1])


def alternating_flips(num_images: int, seed: int, epoch: int) -> Tensor:
    """Return whether each image is mirrored in an epoch, bool [N]: a random half first, and the other half after it.

    Source: Keller Jordan, https://arxiv.org/abs/2404.00498, section 3.6.
    """
    generator = torch.Generator().manual_seed(seed_for(seed, "flip"))
    return (torch.randint(0, 2, (num_images,), generator=generator) + epoch) % 2 == 1


def pad(pixels: Tensor, padding: int, mode: str) -> Tensor:
    """Pad images, uint8 [N, H, W, C], by `padding` pixels on each side.

    Args:
        mode: `constant` (black), `reflect` or `edge`, as in `numpy.pad`.
    """
    if not padding:
        return pixels.contiguous()
    num_images, height, width, channels = pixels.shape
    if mode == "constant":
        padded = pixels.new_zeros(num_images, height + 2 * padding, width + 2 * padding, channels)
        padded[:, padding : padding + height, padding : padding + width] = pixels
        return padded
    rows, columns = (torch.from_numpy(np.pad(np.arange(side), padding, mode=mode)) for side in (height, width))  # type: ignore[call-overload]
    return pixels.index_select(1, rows.to(pixels.device)).index_select(2, columns.to(pixels.device)).contiguous()


def crop_and_flip(padded: Tensor, index: Tensor, parameters: AugmentParameters, size: int) -> Tensor:
    """Return the crops of some images in one gather, uint8 [B, size, size, C].

    Args:
        padded: all padded images, uint8 [N, H, W, C], contiguous.
        index: int64 [B], the images to crop.
        parameters: those of the images at `index`, in that order.
    """
    num_images, height, width, channels = padded.shape
    row_stride = width * channels
    # A view of every window: [N, top, left, size rows, size * C bytes]. The gather then copies whole rows of bytes,
    # which is 1.7 times as fast on a CPU as with a separate dimension for the channels.
    windows = padded.as_strided(
        (num_images, height - size + 1, width - size + 1, size, size * channels),
        (height * row_stride, row_stride, channels, row_stride, 1),
    )
    crops = windows[index, parameters.top, parameters.left].view(-1, size, size, channels)
    return torch.where(parameters.flip[:, None, None, None], crops.flip(2), crops)


def cutout(images: Tensor, parameters: AugmentParameters, side: int) -> Tensor:
    """Set a square of `side` x `side` pixels in each normalised image [B, channels, H, W] to zero, in place."""
    if not side:
        return images
    rows, columns = (torch.arange(length, device=images.device) for length in images.shape[2:])
    top, left = parameters.cutout_top[:, None], parameters.cutout_left[:, None]  # [B, 1]
    in_rows, in_columns = (rows >= top) & (rows < top + side), (columns >= left) & (columns < left + side)
    return images.masked_fill_((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)


def apply_augment(
    padded: Tensor, index: Tensor, parameters: AugmentParameters, size: int, side: int, constants: tuple[Tensor, Tensor]
) -> Tensor:
    """Crop, flip, normalise and cut out a batch; return float32 [B, channels, size, size] in NHWC memory order.

    Args:
        padded: all padded images, uint8 [N, H, W, C].
        index: int64 [B], the images of the batch; `parameters` are theirs, in that order.
        side: of the cutout, in pixels.
        constants: `Preprocess.constants` on the device of `padded`.
    """
    pixels = crop_and_flip(padded, index, parameters, size).permute(0, 3, 1, 2)
    return cutout(torch.sub(pixels, constants[0]).div_(constants[1]), parameters, side)
