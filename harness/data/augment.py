"""Random crop, flip and Cutout of training images, the same in meaning for whole batches on the device,
for timm's and torchvision's transforms of single images, and for albumentations.

The order is crop > flip > normalise > Cutout. The hole is filled with zero after the normalisation, which is the mean
colour; it is always one whole square inside the image, as in timm's RandomErasing, not clipped at the border.
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
SMALL = 64  # up to this many pixels a side, images are padded and cropped; above, a random part is resized
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of the random resized crop: share of the area, width / height
# Names of the padding modes in albumentations' terms: OpenCV's border types, by number.
BORDERS = {"constant": 0, "edge": 1, "reflect": 4}


@dataclass(frozen=True)
class Augment:
    """How a training image is changed.

    Attributes:
        crop: `pad`: pad, then crop at random; `resized`: resize a random part; `none`.
        padding: pixels on each side; 0 unless `crop` is `pad`.
        cutout: side of the hole, pixels; 0: none.
    """

    crop: Crop
    padding: int
    padding_mode: str
    flip: bool
    cutout: int


@dataclass(frozen=True)
class Parameters:
    """What was drawn for each of N images.

    Attributes:
        top, left: int64 [N], where the crop starts in the padded image, 0..2 * padding.
        flip: bool [N], mirrored after the crop.
        hole_top, hole_left: int64 [N], where the hole starts in the cropped and mirrored image, 0..size - cutout.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    hole_top: Tensor
    hole_left: Tensor

    def __getitem__(self, index: Tensor) -> Parameters:
        return self.map(lambda values: values[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> Parameters:
        return Parameters(*(change(values) for values in vars(self).values()))


def make_augment(config: Config, preprocess: Preprocess) -> Augment:
    """The augmentation that the settings ask for, at the size that the model sees.

    Raises:
        UsageError: the hole or the padding does not fit the image.
    """
    size = preprocess.size
    if config.augment == "none":
        return Augment("none", 0, config.padding_mode, flip=False, cutout=0)
    crops: dict[str, Crop] = {
        "auto": "pad" if size <= SMALL else "resized",
        "pad": "pad",
        "resized": "resized",
        "none": "none",
    }
    crop = crops[config.crop]
    padding = config.crop_padding if crop == "pad" else 0
    if config.cutout >= size:
        raise UsageError(
            f"cutout={config.cutout} would cover the whole image of {size} x {size}; set a smaller --cutout"
        )
    if config.padding_mode == "reflect" and padding >= size:
        raise UsageError(
            f"crop_padding={padding} can not be mirrored out of an image of {size} x {size}; set a smaller --crop-padding"
        )
    return Augment(crop, padding, config.padding_mode, config.flip, config.cutout)


def draw_parameters(augment: Augment, size: int, count: int, seed: int, epoch: int) -> Parameters:
    """The parameters of `count` images for one epoch, drawn on the CPU so that they are the same on every device."""
    generator = torch.Generator().manual_seed(seed_for(seed, "augment", epoch))
    offsets = torch.randint(0, 2 * augment.padding + 1, (2, count), generator=generator)
    flip = torch.randint(0, 2, (count,), generator=generator) == 1
    holes = torch.randint(0, size - augment.cutout + 1, (2, count), generator=generator)
    return Parameters(offsets[0], offsets[1], flip & augment.flip, holes[0], holes[1])


def pad(pixels: Tensor, padding: int, mode: str) -> Tensor:
    """uint8 [N, H, W, 3] with `padding` more pixels on each side: black, mirrored, or the edge repeated."""
    if not padding:
        return pixels.contiguous()
    count, height, width, channels = pixels.shape
    if mode == "constant":
        padded = pixels.new_zeros(count, height + 2 * padding, width + 2 * padding, channels)
        padded[:, padding : padding + height, padding : padding + width] = pixels
        return padded
    rows, columns = (torch.from_numpy(np.pad(np.arange(side), padding, mode=mode)) for side in (height, width))  # type: ignore[call-overload]
    return pixels.index_select(1, rows.to(pixels.device)).index_select(2, columns.to(pixels.device)).contiguous()


def crop_and_flip(padded: Tensor, index: Tensor, parameters: Parameters, size: int) -> Tensor:
    """The crops of some images in one gather, uint8 [B, size, size, 3].

    Args:
        padded: the store, uint8 [N, H, W, 3], contiguous.
        index: int64 [B], which images; `parameters` are theirs, in that order.
    """
    count, height, width, channels = padded.shape
    row = width * channels
    # Every window of the store as a view: [N, top, left, size rows, size * 3 bytes]. Whole rows of bytes are copied,
    # 1.7 times as fast on a CPU as a window that keeps the channels apart.
    windows = padded.as_strided(
        (count, height - size + 1, width - size + 1, size, size * channels), (height * row, row, channels, row, 1)
    )
    crops = windows[index, parameters.top, parameters.left].view(-1, size, size, channels)
    return torch.where(parameters.flip[:, None, None, None], crops.flip(2), crops)


def cutout(images: Tensor, parameters: Parameters, side: int) -> Tensor:
    """Sets a square of `side` x `side` pixels of each of the normalised images [B, 3, H, W] to zero, in place."""
    if not side:
        return images
    rows, columns = (torch.arange(length, device=images.device) for length in images.shape[2:])
    inside_rows = (rows >= parameters.hole_top[:, None]) & (rows < parameters.hole_top[:, None] + side)  # [B, H]
    inside_columns = (columns >= parameters.hole_left[:, None]) & (columns < parameters.hole_left[:, None] + side)
    return images.masked_fill_((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0)


def apply_augment(
    padded: Tensor, index: Tensor, parameters: Parameters, size: int, side: int, constants: tuple[Tensor, Tensor]
) -> Tensor:
    """Crop, flip, normalisation and Cutout of a batch, float32 [B, 3, size, size], in NHWC order in memory.

    Args:
        padded: the store, uint8 [N, H, W, 3].
        constants: `Preprocess.constants` on the store's device.
    """
    pixels = crop_and_flip(padded, index, parameters, size).permute(0, 3, 1, 2)
    return cutout(torch.sub(pixels, constants[0]).div_(constants[1]), parameters, side)


@contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """Inside, the global generators of Python and torch's CPU start from `seed`; afterwards they go on as before."""
    python, torch_cpu = random.getstate(), torch.get_rng_state()
    try:
        _seed(seed)
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(torch_cpu)


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which also looks for GPUs


class TimmTransform:
    """torchvision's and timm's random transforms of one image, as a function of a seed.

    Normalisation and Cutout (`TimmCutout`) follow on the device, for the whole batch.
    """

    normalised = False

    def __init__(self, augment: Augment, preprocess: Preprocess) -> None:
        from timm.data import create_transform
        from torchvision import transforms

        self.augment, self.preprocess = augment, preprocess
        size, half = preprocess.size, 0.5 if augment.flip else 0.0
        if augment.crop == "resized":
            full = create_transform(
                size, is_training=True, hflip=half, color_jitter=None, scale=SCALE, ratio=RATIO,
                interpolation=preprocess.interpolation, normalize=False,
            )  # fmt: skip
            steps = list(full.transforms[:-1])
        else:
            steps = [transforms.RandomHorizontalFlip(half)] if augment.flip else []
            if augment.crop == "pad":
                steps.insert(0, transforms.RandomCrop(size, augment.padding, padding_mode=augment.padding_mode))
        self.transform = transforms.Compose(steps)

    def __call__(self, image: Image.Image, seed: int) -> np.ndarray:
        """uint8 [3, size, size]. Leaves the global generators seeded: call it inside `seeded`."""
        _seed(seed)
        if self.augment.crop != "resized":
            image = self.preprocess.square(image)
        return np.ascontiguousarray(np.asarray(self.transform(image)).transpose(2, 0, 1))


class TimmCutout:
    """timm's RandomErasing set to one square hole of zeros in every image, as a function of (seed, epoch, batch)."""

    def __init__(
        self,
        side: int,
        size: int,
        seed: int,
        device: torch.device,
        mine: Callable[[int], slice] = lambda batch: slice(0, None),
    ) -> None:
        """`mine`: which images of a batch are this process' own."""
        from timm.data.random_erasing import RandomErasing

        area = side**2 / size**2
        self.erase = RandomErasing(1.0, area, area, min_aspect=1.0, max_aspect=1.0, mode="const", device=device)
        self.seed, self.epoch, self.batch = seed, 0, 0
        self.mine = mine

    def start(self, epoch: int, batch: int) -> None:
        """The next call is for this batch."""
        self.epoch, self.batch = epoch, batch

    def __call__(self, images: Tensor) -> Tensor:
        """Cuts into normalised images [B, 3, H, W], in place."""
        state = random.getstate()
        random.seed(seed_for(self.seed, "cutout", self.epoch, self.batch))
        try:
            if before := self.mine(self.batch).start:  # draw what other processes draw for the images before ours
                self.erase(torch.empty(before, *images.shape[1:]))
            return self.erase(images)
        finally:
            random.setstate(state)
            self.batch += 1


class AlbumentationsTransform:
    """The same with albumentations, as a function of a seed.

    Its own seeding repeats one stream in every worker process and every epoch, and `set_random_seed` starts all
    transforms of a pipeline on the same number (a crop from the top then is never mirrored). So each image brings
    one generator of its own, which the transforms draw from in turn.
    """

    normalised = True

    def __init__(self, augment: Augment, preprocess: Preprocess) -> None:
        self.augment, self.preprocess = augment, preprocess
        self._compose: Any = None

    def __call__(self, image: Image.Image, seed: int) -> np.ndarray:
        """float32 [3, size, size], normalised and with its hole."""
        if self._compose is None:
            self._compose = albumentations_compose(self.augment, self.preprocess)
        if self.augment.crop != "resized":
            image = self.preprocess.square(image)
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311  no secrets here
        changed = self._compose(image=np.asarray(image))["image"]
        return np.ascontiguousarray(changed.transpose(2, 0, 1), dtype=np.float32)


def albumentations_compose(augment: Augment, preprocess: Preprocess) -> Any:
    """The albumentations pipeline.

    Raises:
        UsageError: the package is not installed.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or its import asks the network for a newer version
    try:
        import albumentations
        import cv2
    except ImportError:
        raise UsageError(
            "augment=albumentations needs the package; pip install albumentations, or set --augment timm"
        ) from None
    cv2.setNumThreads(0)  # each loader process is one thread already
    size, steps = preprocess.size, []
    if augment.crop == "pad":
        if augment.padding:
            steps.append(albumentations.Pad(augment.padding, fill=0, border_mode=BORDERS[augment.padding_mode], p=1))
        steps.append(albumentations.RandomCrop(size, size, p=1))
    elif augment.crop == "resized":
        orders = {"nearest": 0, "bilinear": 1, "bicubic": 2, "lanczos": 4}
        order = orders.get(preprocess.interpolation, 1)
        steps.append(albumentations.RandomResizedCrop((size, size), SCALE, RATIO, interpolation=order, p=1))
    if augment.flip:
        steps.append(albumentations.HorizontalFlip(p=0.5))
    steps.append(albumentations.Normalize(preprocess.mean, preprocess.std, max_pixel_value=255, p=1))
    if augment.cutout:
        hole = (augment.cutout, augment.cutout)
        steps.append(albumentations.CoarseDropout((1, 1), hole, hole, fill=0, p=1))
    return albumentations.Compose(steps)
