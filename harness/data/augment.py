"""Random crop, flip and Cutout of training images, in three equivalent implementations: for whole batches on the
device, with timm's and torchvision's transforms of single images, and with albumentations.

The order is crop > flip > normalise > Cutout. The cutout is filled with zero after normalisation, which is the mean
colour; it is always a complete square inside the image, as in timm's RandomErasing, never clipped at the border.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.config.settings import Config
from harness.data.preprocess import Preprocess
from harness.utils.errors import UsageError
from harness.utils.seeding import seed_for

Crop: TypeAlias = Literal["pad", "resized", "none"]
# With crop=auto, images of up to this side in pixels are padded and cropped; larger ones get a random resized crop.
MAX_PAD_CROP_SIZE = 64
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of the random resized crop: fraction of the area, width / height
CV2_BORDER_TYPES = {"constant": 0, "edge": 1, "reflect": 4}


@dataclass(frozen=True)
class Augment:
    """The augmentation of training images.

    Attributes:
        crop: `pad`: pad, then crop at random; `resized`: crop a random area and resize it; `none`.
        padding: pixels on each side; 0 unless `crop` is `pad`.
        cutout: side of the cutout in pixels; 0 for none.
        alternating_flip: mirror the images in turns (`alternating_flips`) instead of at random.
    """

    crop: Crop
    padding: int
    padding_mode: str
    flip: bool
    cutout: int
    alternating_flip: bool = False

    @property
    def random_flip(self) -> bool:
        """Whether every image is mirrored at random."""
        return self.flip and not self.alternating_flip


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
    crops: dict[str, Crop] = {
        "auto": "pad" if size <= MAX_PAD_CROP_SIZE else "resized",
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
    return Augment(crop, padding, config.padding_mode, config.flip, config.cutout, config.alternating_flip)


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
    """Pad images, uint8 [N, H, W, 3], by `padding` pixels on each side.

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
    """Return the crops of some images in one gather, uint8 [B, size, size, 3].

    Args:
        padded: all padded images, uint8 [N, H, W, 3], contiguous.
        index: int64 [B], the images to crop.
        parameters: those of the images at `index`, in that order.
    """
    num_images, height, width, channels = padded.shape
    row_stride = width * channels
    # A view of every window: [N, top, left, size rows, size * 3 bytes]. The gather then copies whole rows of bytes,
    # which is 1.7 times as fast on a CPU as with a separate dimension for the channels.
    windows = padded.as_strided(
        (num_images, height - size + 1, width - size + 1, size, size * channels),
        (height * row_stride, row_stride, channels, row_stride, 1),
    )
    crops = windows[index, parameters.top, parameters.left].view(-1, size, size, channels)
    return torch.where(parameters.flip[:, None, None, None], crops.flip(2), crops)


def cutout(images: Tensor, parameters: AugmentParameters, side: int) -> Tensor:
    """Set a square of `side` x `side` pixels in each normalised image [B, 3, H, W] to zero, in place."""
    if not side:
        return images
    rows, columns = (torch.arange(length, device=images.device) for length in images.shape[2:])
    top, left = parameters.cutout_top[:, None], parameters.cutout_left[:, None]  # [B, 1]
    in_rows, in_columns = (rows >= top) & (rows < top + side), (columns >= left) & (columns < left + side)
    return images.masked_fill_((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)


def apply_augment(
    padded: Tensor, index: Tensor, parameters: AugmentParameters, size: int, side: int, constants: tuple[Tensor, Tensor]
) -> Tensor:
    """Crop, flip, normalise and cut out a batch; return float32 [B, 3, size, size] in NHWC memory order.

    Args:
        padded: all padded images, uint8 [N, H, W, 3].
        index: int64 [B], the images of the batch; `parameters` are theirs, in that order.
        side: of the cutout, in pixels.
        constants: `Preprocess.constants` on the device of `padded`.
    """
    pixels = crop_and_flip(padded, index, parameters, size).permute(0, 3, 1, 2)
    return cutout(torch.sub(pixels, constants[0]).div_(constants[1]), parameters, side)


@contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """Seed the global generators of Python and of torch on the CPU inside the context, and restore them afterwards."""
    python, torch_cpu = random.getstate(), torch.get_rng_state()
    try:
        _seed(seed)
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(torch_cpu)


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also query the GPUs


class TimmTransform:
    """torchvision's and timm's random transforms of one image, as a function of a seed.

    Normalisation and Cutout (`TimmCutout`) follow on the device, for whole batches.
    """

    normalised = False

    def __init__(self, augment: Augment, preprocess: Preprocess) -> None:
        from timm.data import create_transform
        from torchvision import transforms

        self.augment, self.preprocess = augment, preprocess
        size, half = preprocess.size, 0.5 if augment.random_flip else 0.0
        if augment.crop == "resized":
            timm_transform = create_transform(
                size, is_training=True, hflip=half, color_jitter=None, scale=SCALE, ratio=RATIO,
                interpolation=preprocess.interpolation, normalize=False,
            )  # fmt: skip
            steps = list(timm_transform.transforms[:-1])
        else:
            steps = [transforms.RandomHorizontalFlip(half)] if augment.random_flip else []
            if augment.crop == "pad":
                steps.insert(0, transforms.RandomCrop(size, augment.padding, padding_mode=augment.padding_mode))
        self.transform = transforms.Compose(steps)

    def __call__(self, image: Image.Image, seed: int) -> np.ndarray:
        """Return uint8 [3, size, size]. Call it inside `seeded_rng`, since it seeds the global generators."""
        _seed(seed)
        if self.augment.crop != "resized":
            image = self.preprocess.square(image)
        return np.ascontiguousarray(np.asarray(self.transform(image)).transpose(2, 0, 1))


class TimmCutout:
    """timm's RandomErasing, set to one square of zeros in every image, as a function of (seed, epoch, batch)."""

    def __init__(
        self,
        side: int,
        size: int,
        seed: int,
        device: torch.device,
        shard: Callable[[int], slice] = lambda batch: slice(0, None),
    ) -> None:
        """Create the transform; `shard` maps a batch's index in the epoch to the images in it that this process trains on."""
        from timm.data.random_erasing import RandomErasing

        area = side**2 / size**2
        self.erase = RandomErasing(1.0, area, area, min_aspect=1.0, max_aspect=1.0, mode="const", device=device)
        self.seed, self.epoch, self.batch = seed, 0, 0
        self.shard = shard

    def start(self, epoch: int, batch: int) -> None:
        """Set the batch that the next call is for."""
        self.epoch, self.batch = epoch, batch

    def __call__(self, images: Tensor) -> Tensor:
        """Cut out a square of each of the normalised images [B, 3, H, W], in place."""
        state = random.getstate()
        random.seed(seed_for(self.seed, "cutout", self.epoch, self.batch))
        try:
            if skipped := self.shard(self.batch).start:  # draw what lower ranks draw for the images of their shards
                self.erase(torch.empty(skipped, *images.shape[1:]))
            return self.erase(images)
        finally:
            random.setstate(state)
            self.batch += 1


class AlbumentationsTransform:
    """albumentations' random transforms of one image, as a function of a seed.

    albumentations' own seeding repeats the same stream in every worker process and epoch, and `set_random_seed` gives
    all transforms of a pipeline the same seed, which correlates them (a crop at the top is then never mirrored).
    Therefore each image gets one generator, which the transforms draw from in turn.
    """

    normalised = True

    def __init__(self, augment: Augment, preprocess: Preprocess) -> None:
        self.augment, self.preprocess = augment, preprocess
        self._compose: Any = None

    def __call__(self, image: Image.Image, seed: int) -> np.ndarray:
        """Return float32 [3, size, size], normalised and with its cutout."""
        if self._compose is None:
            self._compose = albumentations_compose(self.augment, self.preprocess)
        if self.augment.crop != "resized":
            image = self.preprocess.square(image)
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311 - not for secrets
        augmented = self._compose(image=np.asarray(image))["image"]
        return np.ascontiguousarray(augmented.transpose(2, 0, 1), dtype=np.float32)


def albumentations_compose(augment: Augment, preprocess: Preprocess) -> Any:
    """Return the albumentations pipeline.

    Raises:
        UsageError: the package is not installed.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would look for a newer version on the network
    try:
        import albumentations
        import cv2
    except ImportError:
        raise UsageError(
            "augment=albumentations needs the package albumentations; run pip install albumentations, or set --augment timm"
        ) from None
    cv2.setNumThreads(0)  # the loader runs several processes already
    size, steps = preprocess.size, []
    if augment.crop == "pad":
        if augment.padding:
            steps.append(
                albumentations.Pad(augment.padding, fill=0, border_mode=CV2_BORDER_TYPES[augment.padding_mode], p=1)
            )
        steps.append(albumentations.RandomCrop(size, size, p=1))
    elif augment.crop == "resized":
        cv2_codes = {"nearest": 0, "bilinear": 1, "bicubic": 2, "lanczos": 4}
        interpolation = cv2_codes.get(preprocess.interpolation, 1)
        steps.append(albumentations.RandomResizedCrop((size, size), SCALE, RATIO, interpolation=interpolation, p=1))
    if augment.random_flip:
        steps.append(albumentations.HorizontalFlip(p=0.5))
    steps.append(albumentations.Normalize(preprocess.mean, preprocess.std, max_pixel_value=255, p=1))
    if augment.cutout:
        side = (augment.cutout, augment.cutout)
        steps.append(albumentations.CoarseDropout((1, 1), side, side, fill=0, p=1))
    return albumentations.Compose(steps)
